"""The passes of a bare network: no preconditioning, no loss, no optimiser, the same shapes."""

import contextlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffdistill.denoiser import Denoiser
from diffdistill.matching.settings import Choices

WORDS = {
    "forward": "forward",
    "train": "forward + backward to the weights",
    "to_input": "forward + backward to the input",
    "features": "forward of the encoder, real and generated",
    "features_to_input": "backward of the encoder to the input",
}


class _Stop(Exception):
    """The tap is reached, the rest is not needed."""


class Bare:
    """A network and inputs for it, `batch` images; each method is one pass.

    The input is drawn once: its values do not matter for time.
    """

    def __init__(self, model: Denoiser, batch: int, autocast: Callable[[], Any], tap: str = "mid_block"):
        self.network: Any = model.network
        self.autocast, self.tap = autocast, tap
        here = next(model.parameters())
        self.inputs = self._inputs(model, batch, here.device)
        self.double = self._inputs(model, 2 * batch, here.device)

    @staticmethod
    def _inputs(model: Denoiser, batch: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor | None]:
        x, time = model.process.to_network(
            torch.randn(batch, *model.image_shape, device=device), torch.ones(batch, device=device)
        )
        count = model.num_classes
        return x, time, None if count is None else torch.arange(batch, device=device) % count

    def call(self, x: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        extra = {} if labels is None else {"class_labels": labels}
        with self.autocast():
            return self.network(x, time, **extra, return_dict=False)[0]

    def forward(self) -> None:
        with torch.no_grad():
            self.call(*self.inputs)

    def train(self) -> None:
        self.network.requires_grad_(True)
        self.network.zero_grad(set_to_none=True)
        output = self.call(*self.inputs)
        output.backward(torch.ones_like(output))

    def to_input(self) -> None:
        self._to_input(lambda output, tapped: output)

    def features(self) -> None:
        with torch.no_grad(), self._tapped(stop=True), contextlib.suppress(_Stop):
            self.call(*self.double)

    def features_to_input(self) -> None:
        """With the forward pass that the score gap needs anyway."""
        self._to_input(lambda output, tapped: tapped[0])

    def _to_input(self, chosen: Callable[[Tensor, list[Tensor]], Tensor]) -> None:
        self.network.requires_grad_(False)
        x = self.inputs[0].detach().requires_grad_()
        with self._tapped(stop=False) as tapped:
            target = chosen(self.call(x, *self.inputs[1:]), tapped)
        torch.autograd.grad(target, x, torch.ones_like(target))

    @contextlib.contextmanager
    def _tapped(self, stop: bool) -> Any:
        found: list[Tensor] = []

        def record(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            found.append(output)
            if stop:
                raise _Stop

        handle = self.network.get_submodule(self.tap).register_forward_hook(record)
        try:
            yield found
        finally:
            handle.remove()

    def run(self, passes: Sequence[str]) -> None:
        for name in passes:
            getattr(self, name)()


def needed(choices: Choices, critic_updates: int) -> list[str]:
    """The passes that a step of a method cannot do without, those of the student first.

    The student's and each critic's pass train weights. The score gap takes teacher and critic as constants, the Fisher
    form differentiates both to the image. A discriminator reads the teacher's encoder, for real and generated images
    in every critic update, and sends its gradient back through the encoder of the pass that gives the teacher's image.
    """
    adversarial = choices.adversarial is not None
    critic = ["train", "features"] if adversarial else ["train"]
    if choices.form == "fisher":
        gradient = ["to_input", "to_input"]
    else:
        gradient = ["features_to_input" if adversarial else "forward", "forward"]
    return ["train", *critic * critic_updates, *gradient]


def described(passes: Sequence[str]) -> str:
    return ", ".join(f"{count} x {name}" for name, count in Counter(passes).items())
