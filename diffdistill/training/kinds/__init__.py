"""The kinds of teachers that a distillation tells apart, in this one place."""

from diffdistill.denoiser import Denoiser
from diffdistill.training.kinds.base import Kind
from diffdistill.training.kinds.images import Images
from diffdistill.training.kinds.texts import Texts


def kind_of(teacher: Denoiser) -> Kind:
    return Texts() if teacher.draws_texts else Images()
