"""Test F, continued: whatever a network predicts, in whatever process, the gradient at x0 is the same."""

from collections.abc import Iterator

import torch
from torch import Tensor

from diffdistill.denoiser import Denoiser
from diffdistill.losses import fisher_gradient, score_gap_gradient
from diffdistill.parts.verification.analytic import TEACHER_1, Mixture, expected_gradient, hermite, nodes_at
from diffdistill.parts.verification.check import Check
from diffdistill.parts.verification.step import OracleNetwork, processes
from diffdistill.process import Process, per_sample, prediction_from_x0, x0_from_prediction

MEAN, SCALE, SIGMA = 0.5, 1.2, 0.7
# distillation note, 7.2 and 7.3.
SCORE_GAP = (0.1624833171178, -0.7599695332135)
UNI_FORWARD_KL = (0.698005315579, -2.577250395984)


class Converted(Mixture):
    """A teacher whose x0 goes through a process' prediction type and back, in float64."""

    def __init__(self, oracle: Mixture, process: Process):
        super().__init__(oracle.log_weights.exp().tolist(), oracle.means.tolist(), oracle.scale)
        self.process = process

    def __call__(self, x: Tensor, sigma: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.process.to_x0(self.process.from_x0(super().__call__(x, sigma), x, sigma), x, sigma)


class Dressed(Converted):
    """The same behind the production `Denoiser`, which calls a network with its own input and time, in float32."""

    def __init__(self, oracle: Mixture, process: Process):
        super().__init__(oracle, process)
        self.denoiser = Denoiser(OracleNetwork([oracle], process), process)

    def __call__(self, x: Tensor, sigma: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.denoiser(x, sigma).to(x)


def checks() -> Iterator[Check]:
    yield from round_trips()
    rule = hermite(128)
    nodes = nodes_at(SIGMA, rule, rule)
    for name, process in processes().items():
        for teacher, place, tolerance in (
            (Converted(TEACHER_1, process), "converted", 1e-6),
            (Dressed(TEACHER_1, process), "as a Denoiser", 1e-4),
        ):
            got = expected_gradient(score_gap_gradient, teacher, MEAN, SCALE, nodes, level_weight=1 / SIGMA**2)
            yield Check("F", f"{name} {place}: score gap", got, SCORE_GAP, tolerance)
            got = expected_gradient(
                fisher_gradient, teacher, MEAN, SCALE, nodes, divergence="forward_kl", level_weight=2 / SIGMA**4
            )
            yield Check("F", f"{name} {place}: Uni-Instruct, forward_kl", got, UNI_FORWARD_KL, tolerance)


def round_trips() -> Iterator[Check]:
    """x0 -> prediction -> x0 at three levels of a variance-preserving process and of a flow."""
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 3, 2, 4, 4, generator=generator, dtype=torch.float64).unbind()
    t = torch.tensor([0.02, 0.5, 0.98], dtype=torch.float64)
    coefficients = {"VP": ((1 - t**2).sqrt(), t), "flow": (1 - t, t)}
    targets = {
        "epsilon": lambda a, s: eps,
        "v_prediction": lambda a, s: a * eps - s * x0,
        "flow": lambda a, s: eps - x0,
    }
    for process, (alpha, sigma) in coefficients.items():
        a, s = per_sample(alpha, x0), per_sample(sigma, x0)
        x = a * x0 + s * eps
        for kind, target in targets.items():
            prediction = prediction_from_x0(x0, x, a, s, kind)
            error = (
                (prediction - target(a, s)).abs().max(),
                (x0_from_prediction(prediction, x, a, s, kind) - x0).abs().max(),
            )
            got = tuple(float(value) for value in error)
            yield Check(
                "F", f"{process}: {kind} is its definition, and back", got, (0.0, 0.0), tolerance=1e-10, source="3"
            )
