"""Learning from preferences: pairs of images of one caption, of which one is wanted."""

from diffdistill.alignment.baselines import diffusion_dpo_loss, diffusion_orpo_loss
from diffdistill.alignment.mapo import MaPOOutput, bernoulli_link, mapo_loss
from diffdistill.alignment.pairs import NoisedPairs, noise_pairs, paired_denoising_losses
from diffdistill.alignment.robust import RobustMean, robust_mean

__all__ = [
    "MaPOOutput",
    "NoisedPairs",
    "RobustMean",
    "bernoulli_link",
    "diffusion_dpo_loss",
    "diffusion_orpo_loss",
    "mapo_loss",
    "noise_pairs",
    "paired_denoising_losses",
    "robust_mean",
]
