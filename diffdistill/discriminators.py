"""Heads that read a network's features and say log p_real / p_student (2405.14867, section 4.3)."""

from collections.abc import Sequence
from math import gcd

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from diffdistill.config.methods import Adversarial
from diffdistill.denoiser import Condition, Denoiser
from diffdistill.losses import approximate_r1, discriminator_loss
from diffdistill.process import per_sample

Metrics = dict[str, Tensor | float]


class Head(nn.Sequential):
    """`(B, C, h, w)` features -> logit `(B,)`: strided 4x4 convolutions with GroupNorm and SiLU down to 4x4 or less,
    then one number.
    """

    def __init__(self, channels: int, size: int):
        layers: list[nn.Module] = []
        while size > 4:
            layers += [nn.Conv2d(channels, channels, 4, 2, 1), nn.GroupNorm(gcd(32, channels), channels), nn.SiLU()]
            size = size // 2
        super().__init__(*layers, nn.Conv2d(channels, 1, size), nn.Flatten(0))


class Discriminator(nn.Module):
    """One head a tap; the logit of a sample is their mean, so its ratio is the geometric mean of theirs.

    The condition and the level reach the heads through the network's features.
    """

    def __init__(self, network: Denoiser, taps: Sequence[str]):
        super().__init__()
        self.taps = tuple(taps)
        device = next(network.parameters()).device
        probe = torch.zeros(1, *network.image_shape, device=device)
        with torch.no_grad():
            cond = network.example_condition(1, device)
            features = network.features(probe, torch.ones(1, device=device), cond, self.taps)
        self.heads = nn.ModuleList(Head(f.shape[1], f.shape[2]) for f in features).to(device)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Features of the taps, each `(B, C, h, w)` -> logit `(B,)`."""
        return torch.stack([head(f.float()) for head, f in zip(self.heads, features, strict=True)]).mean(0)


class AdversarialTerm:
    """A discriminator on the features of teacher or critic, its loss, and what it says to the student's image."""

    def __init__(self, settings: Adversarial, teacher: Denoiser, critic: Denoiser):
        self.settings = settings
        self.eyes = critic if settings.features == "critic" else teacher
        self.trains_eyes = self.eyes is critic
        self.discriminator = Discriminator(self.eyes, settings.taps)

    def logit(self, x_t: Tensor, sigma: Tensor, cond: Condition) -> Tensor:
        """Logit `(B,)` of noised images, by a pass that ends at the last tap."""
        with torch.set_grad_enabled(self.trains_eyes):
            features = self.eyes.features(x_t, sigma, cond, self.discriminator.taps)
        return self.discriminator(features)

    def loss(self, real: Tensor, fake: Tensor, sigma: Tensor, cond: Tensor | None) -> tuple[Tensor, Metrics]:
        """Logistic loss on real and student images, `(B, C, H, W)`, noised to the same levels sigma `(B,)`, and R1.

        The levels must follow the law of the score gap: the logit is then log p_real / p_student where it is used.
        """
        both, sigmas = torch.cat([real, fake]), torch.cat([sigma, sigma])
        noised = both + per_sample(sigmas, both) * torch.randn_like(both)
        real_logit, fake_logit = self.logit(noised, sigmas, None if cond is None else torch.cat([cond, cond])).chunk(2)
        loss = discriminator_loss(real_logit, fake_logit)
        metrics: Metrics = {
            "discriminator/loss": loss.detach(),
            "discriminator/accuracy": 0.5 * ((real_logit > 0).float().mean() + (fake_logit < 0).float().mean()),
        }
        if self.settings.r1 > 0:
            penalty = approximate_r1(lambda x: self.logit(x, sigma, cond), noised[: len(real)], real_logit).mean()
            loss = loss + 0.5 * self.settings.r1 * penalty
            metrics["discriminator/r1"] = penalty.detach()
        # On teacher features the heads share nothing with the critic, so a weight would only be a learning rate.
        return loss * (self.settings.critic_weight if self.trains_eyes else 1.0), metrics

    def gradient(self, logit: Tensor, x: Tensor) -> Tensor:
        """d/dx of lambda_G softplus(-l), each sample's, for `logit` computed from x with its graph.

        lambda_G is given for a score gap averaged over C, H, W; ours is summed.
        """
        (gradient,) = torch.autograd.grad(softplus(-logit).sum(), x)
        return self.settings.weight * x[0].numel() * gradient
