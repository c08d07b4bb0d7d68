"""Learning from preferences: pairs of images of one caption, of which one is wanted; and data from own samples."""

from diffdistill.alignment.baselines import diffusion_dpo_loss, diffusion_orpo_loss
from diffdistill.alignment.ddo import DDOOutput, ddo_loss
from diffdistill.alignment.mapo import MaPOOutput, bernoulli_link, mapo_loss
from diffdistill.alignment.pairs import NoisedPairs, noise_pairs, paired_denoising_losses
from diffdistill.alignment.robust import RobustMean, robust_mean

__all__ = [
    "DDOOutput",
    "MaPOOutput",
    "NoisedPairs",
    "RobustMean",
    "bernoulli_link",
    "ddo_loss",
    "diffusion_dpo_loss",
    "diffusion_orpo_loss",
    "mapo_loss",
    "noise_pairs",
    "paired_denoising_losses",
    "robust_mean",
]
