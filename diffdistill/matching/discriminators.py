"""Heads that read a network's features and say log p_real / p_student (2405.14867, section 4.3)."""

from collections.abc import Sequence
from math import gcd

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from diffdistill.denoiser import Denoiser
from diffdistill.errors import ConfigError
from diffdistill.losses import discriminator_loss, feature_r1
from diffdistill.matching.adaptive_mix import between, draw_mix, mixing_loss, parted
from diffdistill.matching.micro_batches import Metrics
from diffdistill.matching.settings import Adversarial
from diffdistill.process import per_sample


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

    def map(self, features: Tensor) -> Tensor:
        """What its last layer reads, `(B, C, 4, 4)` or less: the features themselves where it is the only one."""
        for layer in list(self)[:-2]:
            features = layer(features)
        return features

    @property
    def inner(self) -> bool:
        """Whether it has layers before the last."""
        return len(self) > 2


def _exact(features: Sequence[Tensor]) -> torch.autocast:
    """Float32 in the heads, whatever the precision of what they read."""
    return torch.autocast(features[0].device.type, enabled=False)


class Discriminator(nn.Module):
    """One head a tap, each a discriminator of its own; the ratio of a sample is the geometric mean of theirs.

    The condition and the level reach the heads through the network's features. The heads are float32 in training and
    in use, whatever the precision of the network.
    """

    def __init__(self, network: Denoiser, taps: Sequence[str]):
        super().__init__()
        self.taps = tuple(taps)
        device = network.device
        probe = torch.zeros(1, *network.image_shape, device=device)
        with torch.no_grad():
            cond = network.example_condition(1, device)
            features = network.features(probe, torch.ones(1, device=device), cond, self.taps)
        for name, feature in zip(self.taps, features, strict=True):
            if feature.ndim != 4:
                raise ConfigError(
                    f"discriminator tap '{name}' gives {tuple(feature.shape[1:])} for an image, and a head reads a "
                    f"map (channels, height, width); name a block such as mid_block"
                )
        self.heads = nn.ModuleList(Head(f.shape[1], f.shape[2]) for f in features).to(device)
        with torch.no_grad():
            self.map_size = sum(one[0].numel() for one in self.maps(features))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Features of the taps, each `(B, C, h, w)` -> a logit of each head, `(B, heads)`."""
        with _exact(features):
            return torch.stack([head(f.float()) for head, f in zip(self.heads, features, strict=True)], dim=1)

    def maps(self, features: Sequence[Tensor]) -> list[Tensor]:
        """What the heads' last layers read, of each `(B, C, h, w)`."""
        with _exact(features):
            return [head.map(f.float()) for head, f in zip(self.heads, features, strict=True)]  # type: ignore[operator]

    def r1(self, features: Sequence[Tensor]) -> Tensor:
        """The mean over the heads of R1 at their inputs, `(B,)`; the network's weights get no gradient of it."""
        leaves = [f.detach().float().requires_grad_() for f in features]
        logits = self(leaves)
        return torch.stack([feature_r1(logits[:, k], leaf) for k, leaf in enumerate(leaves)]).mean(0)


class AdversarialTerm:
    """A discriminator on the features of teacher or critic, its loss, and what it says to the student's image."""

    def __init__(self, settings: Adversarial, teacher: Denoiser, critic: Denoiser):
        self.settings = settings
        self.feature_network = critic if settings.features == "critic" else teacher
        self.trains_features = self.feature_network is critic
        self.discriminator = Discriminator(self.feature_network, settings.taps)
        if settings.mix and not self.trains_features and not all(head.inner for head in self.discriminator.heads):
            raise ConfigError(
                "method.adversarial.mix moves the layers of a head before its last, and one here has none, on the "
                "frozen teacher's map of 4x4 or less; set mix=0, features=critic, or taps of a larger map"
            )

    def mix(self, count: int) -> Tensor:
        """What AdaptiveMix draws for a whole batch."""
        return draw_mix(count, self.discriminator.map_size, self.feature_network.device)

    def loss(
        self,
        real: Tensor,
        fake: Tensor,
        sigma: Tensor,
        cond: Tensor | None,
        eps: tuple[Tensor, Tensor],
        mix: Tensor | None = None,
    ) -> tuple[Tensor, Metrics]:
        """Logistic loss on real and student images `(B, C, H, W)`, noised by `eps` to the levels sigma `(B,)`; R1, and
        AdaptiveMix where `mix` is drawn.

        The levels must follow the law of the score gap: the logit is then log p_real / p_student where it is used.
        """
        images, sigmas = torch.cat([real, fake]), torch.cat([sigma, sigma])
        noised = images + per_sample(sigmas, images) * torch.cat(eps)
        labels = None if cond is None else torch.cat([cond, cond])
        if mix is not None:
            noised, sigmas = (
                torch.cat([noised, between(real, fake, sigma, eps, mix[:, 0])]),
                torch.cat([sigmas, sigma]),
            )
            labels = None if cond is None else torch.cat([cond, cond, cond])
        with torch.set_grad_enabled(self.trains_features):  # a pass that ends at the last tap
            seen = self.feature_network.features(noised, sigmas, labels, self.discriminator.taps)
        features = [f[: 2 * len(real)] for f in seen]
        real_logit, fake_logit = self.discriminator(features).chunk(2)
        loss = discriminator_loss(real_logit, fake_logit)
        metrics: Metrics = {
            "discriminator/loss": loss.detach(),
            "discriminator/accuracy": 0.5 * ((real_logit > 0).float().mean() + (fake_logit < 0).float().mean()),
        }
        if self.settings.r1 > 0:
            penalty = self.discriminator.r1([f[: len(real)] for f in features]).mean()
            loss = loss + 0.5 * self.settings.r1 * penalty
            metrics["discriminator/r1"] = penalty.detach()
        if mix is not None:
            mixing = self.mixing(seen, mix).mean()
            loss = loss + self.settings.mix * mixing
            metrics["discriminator/mix"] = mixing.detach()
        # On teacher features the heads share nothing with the critic, so a weight would only be a learning rate.
        return loss * (self.settings.critic_weight if self.trains_features else 1.0), metrics

    def mixing(self, features: Sequence[Tensor], mix: Tensor) -> Tensor:
        """-cos of AdaptiveMix, `(B,)`, a mean over the heads; features: of real, student and mixed images, each B."""
        maps = self.discriminator.maps(features)
        share, noise = parted(mix, [one[: len(mix)] for one in maps])
        losses = []
        for one, n in zip(maps, noise, strict=True):
            of_real, of_fake, of_mixed = one.chunk(3)
            losses.append(mixing_loss(of_mixed, of_real, of_fake, share, n))
        return torch.stack(losses).mean(0)

    def gradient(self, logit: Tensor, x: Tensor) -> Tensor:
        """d/dx of lambda_G times the mean over heads of softplus(-l), each sample's; `logit` `(B, heads)`, computed
        from x with its graph.

        lambda_G is given for a score gap averaged over C, H, W; ours is summed.
        """
        (gradient,) = torch.autograd.grad(softplus(-logit).mean(1).sum(), x)
        return self.settings.weight * x[0].numel() * gradient
