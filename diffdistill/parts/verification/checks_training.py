"""Tests C3 to C5 by training: Adam on sampled noise, images of 64 dimensions, DMD's own normaliser."""

from collections.abc import Iterator
from typing import Any

from diffdistill.losses import fisher_gradient, score_gap_gradient
from diffdistill.parts.verification.analytic import TEACHER_2
from diffdistill.parts.verification.check import Check
from diffdistill.parts.verification.checks_optima import KARRAS_DMD, KARRAS_SID
from diffdistill.parts.verification.training import Training

# What to train, and (m, s) of the note's own trainings with exact networks (7.4, C3).
EXACT: dict[str, tuple[dict[str, Any], tuple[float, float]]] = {
    "dmd2 without discriminator": ({}, (-0.1994, 0.4183)),
    "f_distill, jensen_shannon": ({"divergence": "jensen_shannon"}, (-0.1999, 0.4692)),
    "f_distill, forward_kl": ({"divergence": "forward_kl"}, (-0.2000, 0.4758)),
    "sid, alpha = 0.5": ({"alpha": 0.5}, (-0.1985, 0.4270)),
    "sid, alpha = 1": ({"alpha": 1.0}, (-0.1993, 0.4548)),
    "sid, alpha = 1.2": ({"alpha": 1.2}, (-0.2017, 0.4766)),
    "uni_instruct, forward_kl": ({"alpha": 0.5, "divergence": "forward_kl"}, (-0.2, 0.475)),
}
# With a learned critic, and a learned ratio where one is needed: in the order of their scales.
LEARNED: dict[str, tuple[dict[str, Any], tuple[float, float], float]] = {
    "f_distill, softened_reverse_kl": ({"divergence": "softened_reverse_kl"}, (-0.2037, 0.3951), 0.02),
    "dmd2 without discriminator": ({}, (-0.1990, 0.4177), 0.01),
    "sid, alpha = 0.5": ({"alpha": 0.5}, (-0.1978, 0.4270), 0.01),
    "sid, alpha = 1": ({"alpha": 1.0}, (-0.1971, 0.4570), 0.01),
    "f_distill, jensen_shannon": ({"divergence": "jensen_shannon"}, (-0.1999, 0.4682), 0.02),
    "f_distill, forward_kl": ({"divergence": "forward_kl"}, (-0.2, 0.475), 0.02),
}


def training(settings: dict[str, Any], **how: Any) -> Training:
    fisher = "alpha" in settings
    return Training(
        fisher_gradient if fisher else score_gap_gradient, KARRAS_SID if fisher else KARRAS_DMD, settings, **how
    )


def thorough() -> Iterator[Check]:
    for name, (settings, expected) in EXACT.items():
        got = training(settings).run(TEACHER_2)
        yield Check("C", f"trained, exact critic: {name}", got, expected, tolerance=0.006, source="7.4, C3")
    scales = []
    for name, (settings, expected, tolerance) in LEARNED.items():
        got = training(settings, learned=True, steps=1000).run(TEACHER_2)
        scales.append(got[1])
        what = "critic and ratio" if "divergence" in settings else "critic"
        yield Check("C", f"trained, learned {what}: {name}", got, expected, tolerance, source="7.4, C4 and C5")
    for name, settings in (("dmd2 without discriminator", {}), ("sid, alpha = 1", {"alpha": 1.0})):
        slow = training(settings, learned=True, steps=1000, critic_updates=1, critic_rate=4e-4).run(TEACHER_2)
        quantity = f"critic at a tenth of the student's rate: {name} fails"
        yield Check("C", quantity, slow, LEARNED[name][1], tolerance=0.1, relation="differs", source="7.4, C4")
    yield Check(
        "C", "learned scales: srKL < DMD < SiD 0.5 < SiD 1 < JS < fKL", tuple(scales),
        tolerance=0.002, relation="increasing", source="7.4, C3",
    )  # fmt: skip
