"""The distribution-matching methods, a page each: which choices, and where they depart from their paper."""

from diffdistill.config.methods import Method
from diffdistill.matching.step import Choices
from diffdistill.methods import (
    diff_instruct,
    diff_instruct_pp,
    diff_instruct_star,
    dmd2,
    f_distill,
    sid,
    sim,
    uni_instruct,
)

METHODS = {
    "diff_instruct": diff_instruct,
    "diff_instruct_pp": diff_instruct_pp,
    "diff_instruct_star": diff_instruct_star,
    "dmd2": dmd2,
    "f_distill": f_distill,
    "sid": sid,
    "sim": sim,
    "uni_instruct": uni_instruct,
}


def choices_of(settings: Method) -> Choices:
    """The row of the table that a method's settings mean."""
    return METHODS[settings.name].choices(settings)
