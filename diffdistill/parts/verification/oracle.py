"""Exact denoisers dressed as diffusers networks, so that the production `Denoiser` is in the loop."""

import torch
from torch import Tensor, nn

from diffdistill.parts.verification.analytic import Mixture
from diffdistill.process import EDM, VP, Flow, Process, per_sample


class OracleNetwork(nn.Module):
    """The network that a process would need to be exact for p(x0 | class), one mixture a class.

    It is called as diffusers networks are, with the scaled input and the process' own time, from which it has to find
    x_t and sigma again, and answers in the process' own prediction type.
    """

    def __init__(self, classes: list[Mixture], process: Process):
        super().__init__()
        self.classes, self.process = classes, process
        self.dtype_of_weights = nn.Parameter(torch.zeros(()), requires_grad=False)

    def forward(
        self, x_in: Tensor, time: Tensor, class_labels: Tensor | None = None, return_dict: bool = False
    ) -> tuple[Tensor]:
        sigma = level_of(self.process, time)
        x = x_in * per_sample(input_scale(self.process, sigma), x_in)
        self.answered(x, sigma)
        labels = torch.zeros(len(x), dtype=torch.long) if class_labels is None else class_labels
        answers = torch.stack([oracle(x, sigma) for oracle in self.classes])
        return (self.process.from_x0(answers[labels, torch.arange(len(x))], x, sigma),)

    def answered(self, x: Tensor, sigma: Tensor) -> None:
        """Called with what the network was found to be asked, before it answers."""


def level_of(process: Process, time: Tensor) -> Tensor:
    """sigma from the network's time argument."""
    if isinstance(process, EDM):
        return (time / (0.25 * process.time_scale)).exp()
    if isinstance(process, Flow):
        t = time / process.time_scale
        return t / (1 - t)
    below = time.long().clamp(0, len(process.log_sigmas) - 2)
    table = process.log_sigmas.to(time)
    return (table[below] + (time - below) * (table[below + 1] - table[below])).exp()


def input_scale(process: Process, sigma: Tensor) -> Tensor:
    """x_t over the network's input."""
    if isinstance(process, EDM):
        return (sigma**2 + process.sigma_data**2).sqrt()
    return (1 + sigma**2).sqrt() if isinstance(process, VP) else 1 + sigma
