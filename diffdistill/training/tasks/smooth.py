"""A smooth student beside matching: the step-wise variation of its images on their noise (2312.04410)."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffdistill import processes
from diffdistill.denoiser import Denoiser
from diffdistill.errors import ConfigError
from diffdistill.files import reason_of
from diffdistill.matching.micro_batches import Metrics, blank_like, parts_of, rows_of
from diffdistill.matching.smoothness import PathLength, path_lengths
from diffdistill.methods.base import Smoothness

Images = Callable[[Tensor, Tensor, "Tensor | None"], Tensor]


class SmoothTerm:
    """The gradient of weight E (l - a)^2 at a one-step student's weights, in parts of a batch, over all processes.

    images: the student's pass, `(x, sigma, cond) -> x0`; level: its own. With `every` = n the term is of every n-th
    step and n times as heavy there (StyleGAN2's lazy regularisation). Attention is the mathematical kernel's within,
    for the fused ones have no second derivative.
    """

    def __init__(self, settings: Smoothness, student: Denoiser, images: Images, level: float, part_size: int | None):
        self.settings, self.images, self.part_size = settings, images, part_size
        self.scale = student.process.start_scale(level)  # x = scale z
        self.lengths = PathLength(settings.decay).to(student.device)

    def check(self, student: Denoiser, level: float) -> None:
        """ConfigError for a student that cannot be differentiated twice; no gradient is left, nor is one there yet."""
        shape, device = student.image_shape, student.device
        x, sigma = torch.zeros(1, *shape, device=device), torch.full((1,), level, device=device)
        try:
            # Of `autograd.grad` an operator without a second derivative would be out of the way to the weights.
            self.of(x, sigma, student.example_condition(1, device), torch.ones_like(x)).sum().backward()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # NotImplementedError is one
            raise ConfigError(
                f"method.smoothness differentiates the student twice, and a layer of it has no second derivative "
                f"({reason_of(error):.120}); set method.smoothness=null"
            ) from error
        finally:
            student.zero_grad()

    def of(self, x: Tensor, sigma: Tensor, cond: Tensor | None, y: Tensor) -> Tensor:
        """l of the images of these inputs, with a graph."""
        x = x.detach().requires_grad_()
        with sdpa_kernel(SDPBackend.MATH):
            images = self.images(x, sigma, cond)
        return path_lengths(images, x, y, self.scale)

    def backward(self, x: Tensor, sigma: Tensor, cond: Tensor | None, mine: slice, count: int, step: int) -> Metrics:
        """Add it to the weights' gradients, at the steps that have it.

        x, sigma, cond: the student's inputs, those `mine` of the `count` of all processes.
        """
        if step % self.settings.every:
            return {}
        y = torch.randn_like(blank_like(x, count))[mine]
        found: list[Tensor] = []
        for rows in parts_of(len(x), self.part_size):
            lengths = self.of(x[rows], sigma[rows], rows_of(cond, rows), y[rows])
            loss = self.lengths.losses(lengths).sum() / count
            (self.settings.weight * self.settings.every * loss).backward()
            found.append(lengths.detach())
        mine_all = torch.cat(found)
        figures = {"smoothness/loss": self.lengths.losses(mine_all).mean(), "smoothness/length": mine_all.mean()}
        metrics = processes.mean(figures, len(x), count)
        self.lengths.count(torch.as_tensor(metrics["smoothness/length"]))
        return metrics
