"""Test C6: eight modes in the plane, all found but by reverse KL at low noise, which stays at the modes it meets."""

from collections.abc import Iterator

from diffdistill.losses import fisher_gradient, score_gap_gradient
from diffdistill.parts.verification.check import Check
from diffdistill.parts.verification.ring import MODES, RingTraining
from diffdistill.process import Level

WIDE = Level(law="karras", sigma_min=0.05, sigma_max=2.0)
LOW = Level(law="karras", sigma_min=0.03, sigma_max=0.1)
# With alpha > 1 a student that is much broader than the teacher runs away, and between two modes every student is,
# below their width.
ABOVE = Level(law="karras", sigma_min=0.3, sigma_max=2.0)

COVERING = {
    "reverse_kl, sigma up to 2": RingTraining(score_gap_gradient, WIDE),
    "forward_kl": RingTraining(score_gap_gradient, WIDE, {"divergence": "forward_kl", "normalize": True}),
    "jensen_shannon": RingTraining(score_gap_gradient, WIDE, {"divergence": "jensen_shannon", "normalize": True}),
    "sid, alpha = 1": RingTraining(fisher_gradient, WIDE, {"alpha": 1.0}),
    "sid, alpha = 1.2": RingTraining(fisher_gradient, ABOVE, {"alpha": 1.2}),
}


def thorough() -> Iterator[Check]:
    divergence = {}
    for name, training in COVERING.items():
        modes, divergence[name] = training.run()
        yield Check("C", f"ring, modes found: {name}", (modes,), (MODES,), tolerance=0, source="7.4, C6")
    modes, low = RingTraining(score_gap_gradient, LOW).run()
    quantity = "ring: reverse_kl, sigma up to 0.1 misses modes"
    yield Check("C", quantity, (modes,), (MODES,), tolerance=1, relation="differs", source="7.4, C6")
    yield Check(
        "C", "ring, KL of the modes: worst of the above < that one", (max(divergence.values()), low),
        tolerance=0.3, relation="increasing", source="7.4, C6",
    )  # fmt: skip
