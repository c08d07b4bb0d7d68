"""What an aligning run looks at: margins of held-out pairs at fixed noise, and grids of their captions."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffdistill.alignment import bernoulli_link, noise_pairs
from diffdistill.alignment.mapo import accuracy
from diffdistill.config.align import PairEvaluation
from diffdistill.data.pairs import PairSet
from diffdistill.reporting.grid import image_grid
from diffdistill.sampling.noise import image_seed
from diffdistill.training.alignment import AlignTask, pictures_of
from diffdistill.training.randomness import mix

GRID = 8
LINK_SCALE = 0.5  # of every method, so that margins compare


class AlignObserver:
    """Same pairs, same noise, same times for every model it looks at, from the untrained one on."""

    def __init__(self, task: AlignTask, held_out: PairSet, settings: PairEvaluation):
        self.task, self.settings = task, settings
        self.pairs = held_out.pairs[: settings.num_pairs]
        self.fingerprint = held_out.fingerprint
        captions = settings.prompts or tuple(dict.fromkeys(pair.text for pair in held_out.pairs))
        self.prompts = list(captions[:GRID])
        # Before a checkpoint is loaded: this is the model that the run started from.
        self.start = self.margins()[0] if settings.every or settings.at_end else None

    def grid(self, model: Any, file: Path) -> None:
        settings = self.settings
        model.network.eval()
        with torch.no_grad(), self.task.device.autocast():
            images = model.pipeline(
                self.prompts,
                height=self.task.size,
                width=self.task.size,
                num_inference_steps=settings.sampling_steps,
                guidance_scale=settings.guidance_scale,
                generator=[
                    torch.Generator().manual_seed(image_seed(settings.seed, i)) for i in range(len(self.prompts))
                ],
                output_type="pt",
            ).images
        file.parent.mkdir(parents=True, exist_ok=True)
        image_grid((images.float().cpu() * 255).round().to(torch.uint8), min(len(self.prompts), GRID)).save(file)

    def evaluate(self, model: Any) -> dict[str, Any]:
        """margin: mean of phi(l_w / 2) - phi(l_l / 2); win_rate: part of the pairs where it is positive;
        win_rate_over_start: part where it rose, which is what the run did: the images of one side may be easier to
        denoise before any of it.
        """
        margin, l_w, l_l = self.margins()
        assert self.start is not None  # made when evaluations are asked for
        rise = margin - self.start
        settings = self.settings
        return {
            "metrics": {
                "margin": with_error(margin),
                "win_rate": with_error(wins(margin)),
                "win_rate_over_start": with_error(wins(rise)),
                "win_rate_at_start": with_error(wins(self.start)),
                "loss_win": with_error(l_w),
                "loss_lose": with_error(l_l),
            },
            "protocol": {
                "num_pairs": len(self.pairs),
                "levels": settings.levels,
                "seed": settings.seed,
                "loss_space": self.task.config.method.loss_space,
                "image_size": self.task.size,
                "held_out": self.fingerprint,
            },
        }

    @torch.no_grad()
    def margins(self) -> tuple[Tensor, Tensor, Tensor]:
        """`(margin, l_w, l_l)`, each `(N,)`: means over the levels; free of the batch size but for rounding."""
        task, settings = self.task, self.settings
        task.network.eval()
        found: list[Tensor] = []
        for first in range(0, len(self.pairs), settings.batch_size):
            pairs = self.pairs[first : first + settings.batch_size]
            pictures = pictures_of(pairs, task.size)
            cond = task.model.conditions([pair.text for pair in pairs] * 2, pictures)
            latents = task.model.latents(task.model.moments(pictures)).chunk(2)
            for level in range(settings.levels):
                noise = torch.stack(
                    [
                        torch.randn(latents[0].shape[1:], generator=generator(settings.seed, first + i, level))
                        for i in range(len(pairs))
                    ]
                )
                u = torch.full((len(pairs),), (level + 0.5) / settings.levels)
                noised = noise_pairs(task.model.scheduler, *latents, noise=noise, u=u)
                losses = noised.losses(task.predict(task.network, noised, cond), task.config.method.loss_space)
                found.append(torch.stack(losses).cpu())
        return self._means(found)

    def _means(self, found: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        levels = self.settings.levels
        batches = [torch.stack(found[i : i + levels]) for i in range(0, len(found), levels)]
        l_w, l_l = torch.cat(batches, dim=-1).unbind(1)
        margin = bernoulli_link(LINK_SCALE * l_w) - bernoulli_link(LINK_SCALE * l_l)
        return margin.mean(0), l_w.mean(0), l_l.mean(0)


def generator(*words: int) -> torch.Generator:
    return torch.Generator().manual_seed(mix(*words))


def wins(margin: Tensor) -> Tensor:
    """1, or 1/2 for a tie, or 0, of each pair."""
    return torch.stack([accuracy(one) for one in margin])


def with_error(values: Tensor) -> dict[str, float]:
    error = float(values.std() / len(values) ** 0.5) if len(values) > 1 else 0.0
    return {"value": float(values.mean()), "standard_error": error}
