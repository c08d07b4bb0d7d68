"""A student of K decoders over one encoder pass (TiUE, 2505.21960), and the term that holds its noise near N(0, 1)."""

import torch
from torch import Tensor

from diffdistill.config.schema import Distill
from diffdistill.denoiser import Denoiser
from diffdistill.losses import noise_kl
from diffdistill.pipelines.one_encoder import OneEncoder, one_encoder
from diffdistill.training.kinds.base import Kind


def with_decoders(
    config: Distill, student: Denoiser, kind: Kind, teacher: Denoiser, start: Denoiser | None
) -> Denoiser:
    """The student itself, or what `student.one_encoder` makes of it: its decoders have the levels that a student of as
    many steps would have.
    """
    settings = config.student.one_encoder
    if settings is None:
        return student
    several = config.student.model_copy(update={"steps": settings.decoders})
    return one_encoder(student, kind.levels(config.model_copy(update={"student": several}), teacher, start))


class NoiseTerm:
    """weight E sum_k KL(N(m_k, v_k) || N(0, 1)), m_k and v_k the moments of the noise eps_k that decoder k predicted
    for an image (`losses.noise_kl`), on the graph that the student's images have.
    """

    def __init__(self, student: OneEncoder, weight: float):
        self.student, self.weight = student, weight
        self.kl: Tensor | None = None

    def images(self, x: Tensor, sigma: Tensor, cond: Tensor | None) -> Tensor:
        """The student's; those that are made with a graph leave the KL of their noise, `(B,)`, for `backward`."""
        x0, noises = self.student.decoded(x, sigma, cond)
        if torch.is_grad_enabled():
            self.kl = noise_kl(noises).sum(0)
        return x0

    def backward(self, images: Tensor, gradient: Tensor, count: int) -> Tensor:
        """The way back of the last images, `count` in the whole batch, for this gradient at them and for the term.

        Returns their KL, `(B,)`, without a graph.
        """
        kl, self.kl = self.kl, None
        assert kl is not None  # `images` has left it
        torch.autograd.backward([images, self.weight * kl.sum() / count], [gradient, None])
        return kl.detach()
