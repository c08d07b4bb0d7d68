"""DDO (2503.01103): a denoiser learns to tell the data from the samples of the model that it was before the round."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffdistill import processes
from diffdistill.alignment.ddo import ddo_loss
from diffdistill.config.schema import Train
from diffdistill.data import ImageSet
from diffdistill.denoiser import Denoiser
from diffdistill.errors import ConfigError
from diffdistill.losses import denoising_loss, native_weight
from diffdistill.matching.micro_batches import Metrics, rows_of
from diffdistill.objectives.ddo import DDO
from diffdistill.training.device import Device
from diffdistill.training.randomness import mix
from diffdistill.training.rounds import BEGIN, ROUND, RoundNumber, average_at
from diffdistill.training.signals import stoppable
from diffdistill.training.tasks.reference_images import ReferenceImages
from diffdistill.training.tasks.teacher import TeacherTask

ORDER_STREAM = 5  # of the negatives, apart from the order of the data


def check_classes(data: ImageSet, start: Denoiser | None) -> None:
    """ConfigError for data that lack classes of the model: nothing holds these, and each round is chosen by figures of
    all classes.
    """
    if start is None or start.num_classes is None or data.labels is None:
        return
    missing = sorted(set(range(start.num_classes)) - set(data.labels.unique().tolist()))
    if missing:
        listed = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
        raise ConfigError(
            f"'{data.name}' has no image of {len(missing)} of the {start.num_classes} classes of initialize_from "
            f"(class {listed}), and objective.name=ddo chooses its models by figures of all of them; give data of all"
        )


class DDOTask(TeacherTask):
    """minimise -E_data log sigmoid(beta D) - alpha E_reference log sigmoid(-beta D), D of one noise an image.

    The errors are squared ones of the networks' own outputs, summed over C, H, W. Dropout is off, for D is a
    difference of two networks that are nearly one.
    """

    dropout = False

    def __init__(self, config: Train, data: ImageSet, device: Device, start: Denoiser | None = None):
        assert isinstance(config.objective, DDO)
        self.objective = config.objective
        check_classes(data, start)
        self.round = RoundNumber()
        super().__init__(config, data, device, start)
        self.parts |= {"reference": self.reference, ROUND: self.round}
        self.negatives = ReferenceImages(self.objective, self.reference, data, device, config)
        processes.serve(BEGIN, self.begin)

    @property
    def steps(self) -> int:
        return self.objective.round_steps

    def others(self) -> dict[str, Denoiser]:
        self.reference: Denoiser = copy.deepcopy(self.model).requires_grad_(False).eval()
        return {"reference": self.reference}

    def keep(self, folder: Path, inputs: Mapping[str, Any]) -> None:
        self.negatives.keep(folder, inputs)

    def begin(self, number: int, checkpoint: str) -> None:
        """Begin a round with the average of that checkpoint: it is the model, its average and the reference."""
        for module in (self.model, self.ema.module, self.reference):
            average_at(Path(checkpoint), module)
        self.ema.updates.zero_()
        self.updater.optimizer.state.clear()
        self.round.number.fill_(number)

    def update(self, step: int) -> Metrics:
        config, count = self.config, self.config.train_batch_size
        number, step_of_round = divmod(step, self.objective.round_steps)
        mine = processes.rows(count)
        with stoppable():  # drawing the negatives may take minutes, and moves no weight
            negatives = self.negatives.of_round(number)
        flip = config.data.horizontal_flip
        data = self.noised(*self.data.draw(count, config.seed, step, flip, mine))
        own = self.noised(*negatives.draw(count, mix(config.seed, ORDER_STREAM), step, rows=mine))
        both = [rows_of(value, mine) for value in data], [rows_of(value, mine) for value in own]
        joined = [None if one is None else torch.cat([one, other]) for one, other in zip(*both, strict=True)]
        errors = self.errors(self.model, *joined)
        with torch.no_grad():
            before = self.errors(self.reference, *joined)
        halves = [half for pair in zip(errors.chunk(2), before.chunk(2), strict=True) for half in pair]
        output = ddo_loss(*halves, alpha=self.objective.alpha, beta=self.objective.beta)
        (len(errors) / 2 / count * output.loss).backward()
        metrics = self.updater.step(step_of_round)
        self.ema.update(self.model)
        figures: Metrics = {
            "ddo/loss": output.loss.detach(),
            "ddo/accuracy": output.acc,
            "ddo/ratio_data": output.ratio_data.mean(),
            "ddo/ratio_reference": output.ratio_reference.mean(),
        }
        return {**processes.mean(figures, len(errors) // 2, count), "ddo/round": number, **metrics}

    def errors(self, model: Denoiser, x0: Any, x_t: Any, _u: Any, sigma: Any, labels: Tensor | None) -> Tensor:
        """||F(x_t) - F||^2 of each image, `(B,)`, in units of the network's own output, summed over C, H, W."""
        weight = native_weight(model.process, sigma)
        return x0[0].numel() * denoising_loss(model(x_t, sigma, labels), x0, sigma, weight=weight)
