"""A pipeline in an aligning run: margins of held-out pairs at fixed noise, grids of their captions, judges."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffdistill.alignment import bernoulli_link
from diffdistill.alignment.mapo import accuracy
from diffdistill.data.pairs import PairSet
from diffdistill.data.prompts import spread
from diffdistill.evaluation.text_scores import by_name, joined
from diffdistill.pipelines.text.adapter import Adapter
from diffdistill.reporting.grid import image_grid
from diffdistill.rewards import load_reward
from diffdistill.rewards.protocol import Reward
from diffdistill.sampling.noise import image_seed
from diffdistill.training.monitors.images import save_picture
from diffdistill.training.randomness import mix
from diffdistill.training.tasks.align import AlignTask, pictures_of

GRID = 8
LINK_SCALE = 0.5  # of every method, so that margins compare


class PairMonitor:
    """Same pairs, same noise, same times for every model it looks at, from the untrained one on."""

    def __init__(self, task: AlignTask, held_out: PairSet):
        self.task, self.settings = task, task.config.evaluation
        settings = self.settings
        loaded = [load_reward(name).to(task.device.name) for name in settings.judges]
        self.judges: dict[str, Reward] = by_name(loaded, "judge")
        self.pairs = held_out.pairs[: settings.num_pairs]
        self.fingerprint = held_out.fingerprint
        self.captions = list(dict.fromkeys(pair.text for pair in held_out.pairs))
        self.prompts = list(settings.prompts or self.captions)[:GRID]
        self.scores = (*self.judges, *map(win_rate_of, self.judges))

    def begin(self, folder: Path) -> None:
        """The model that the run starts from is measured."""
        if self.settings.every or self.settings.at_end:
            self.start = self.margins()[0]
            self.start_scores = self.judgements()

    def grid(self, model: Adapter, file: Path) -> None:
        images = self.draw(self.prompts, range(len(self.prompts)))
        pixels = (images * 255).round().to(torch.uint8)
        save_picture(image_grid(pixels, min(len(self.prompts), GRID), self.prompts), file)

    @torch.no_grad()
    def draw(self, prompts: Sequence[str], numbers: Sequence[int]) -> Tensor:
        """Images `(B, 3, H, W)` in [0, 1] of the network as it is; of number i from the seed and i alone."""
        settings, pipeline = self.settings, self.task.model.pipeline
        # PixArt's draws at the nearest of the sizes it was trained at, and resizes.
        sized = "use_resolution_binning" in inspect.signature(pipeline.__call__).parameters
        self.task.model.wake()
        with self.task.device.autocast():
            images = pipeline(
                prompt=list(prompts),
                height=self.task.size,
                width=self.task.size,
                num_inference_steps=settings.sampling_steps,
                guidance_scale=settings.guidance_scale,
                generator=[torch.Generator().manual_seed(image_seed(settings.seed, i)) for i in numbers],
                output_type="pt",
                **({"use_resolution_binning": False} if sized else {}),
            ).images
        return images.float().cpu()

    @torch.no_grad()
    def judgements(self) -> dict[str, Tensor]:
        """What each judge gives images of held-out captions, each `(N,)`; the same captions and noise every time."""
        if not self.judges:
            return {}
        count = self.settings.judged_images
        texts = spread(self.captions, count)
        parts = []
        for numbers in torch.arange(count).split(self.settings.batch_size):
            prompts = [texts[i % len(texts)] for i in numbers.tolist()]
            images = self.draw(prompts, numbers.tolist()).to(self.task.device.name)
            parts.append({name: judge(images, prompts).cpu().double() for name, judge in self.judges.items()})
        return joined(parts)

    def evaluate(self, model: Adapter) -> dict[str, Any]:
        """margin: mean of phi(l_w / 2) - phi(l_l / 2); win_rate: part of the pairs where it is positive;
        win_rate_over_start: part where it rose, which is what the run did: the images of one side may be easier to
        denoise before any of it. judge/NAME: mean score of images of held-out captions; judge_win_rate/NAME: part of
        them that it prefers to those that the run's start made from the same noise, whose mean is judge_at_start/NAME.
        """
        margin, l_w, l_l = self.margins()
        rise = margin - self.start
        settings = self.settings
        judged = {}
        for name, scores in self.judgements().items():
            judged[name] = with_error(scores)
            judged[name.replace("judge/", "judge_at_start/", 1)] = with_error(self.start_scores[name])
            over_start = wins(scores - self.start_scores[name])
            judged[win_rate_of(name)] = with_error(over_start)
        return {
            "metrics": {
                **judged,
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
                "judges": {name: getattr(judge, "version", None) for name, judge in self.judges.items()},
                "judged_images": settings.judged_images if self.judges else None,
            },
        }

    @torch.no_grad()
    def margins(self) -> tuple[Tensor, Tensor, Tensor]:
        """`(margin, l_w, l_l)`, each `(N,)`: means over the levels; free of the batch size but for rounding."""
        task, settings = self.task, self.settings
        losses: list[Tensor] = []
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
                noised = task.noised(torch.cat(latents), noise=noise, u=u)
                pair_losses = noised.losses(task.predict(task.network, noised, cond), task.config.method.loss_space)
                losses.append(torch.stack(pair_losses).cpu())
        return self._means(losses)

    def _means(self, losses: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        levels = self.settings.levels
        batches = [torch.stack(losses[i : i + levels]) for i in range(0, len(losses), levels)]
        l_w, l_l = torch.cat(batches, dim=-1).unbind(1)
        margin = bernoulli_link(LINK_SCALE * l_w) - bernoulli_link(LINK_SCALE * l_l)
        return margin.mean(0), l_w.mean(0), l_l.mean(0)


def generator(*words: int) -> torch.Generator:
    return torch.Generator().manual_seed(mix(*words))


def win_rate_of(judge: str) -> str:
    """`judge/NAME` -> `judge_win_rate/NAME`."""
    return judge.replace("judge/", "judge_win_rate/", 1)


def wins(margin: Tensor) -> Tensor:
    """1, or 1/2 for a tie, or 0, of each pair."""
    return torch.stack([accuracy(one) for one in margin])


def with_error(values: Tensor) -> dict[str, float]:
    error = float(values.std() / len(values) ** 0.5) if len(values) > 1 else 0.0
    return {"value": float(values.mean()), "standard_error": error}
