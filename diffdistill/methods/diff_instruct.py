"""Diff-Instruct (2305.18455): minimise the integral over levels of w KL(q_t || p_t).

    d/dx0 = w (D_F(x_t) - D_T(x_t)),        w = 1 (equation 4 in x0 units: the KL weight is sigma^2)

Departures: teacher and critic run without dropout (the paper's code keeps it and replays its random state); the level
law of the student is the configured one (the paper's is the critic's log-normal); no augmentation of the critic's
images.
"""

from diffdistill.config.methods import DiffInstruct
from diffdistill.matching.step import Choices


def choices(settings: DiffInstruct) -> Choices:
    return Choices(
        form="score_gap",
        level_weight=settings.level_weight,
        adversarial=settings.adversarial,
        guidance_scale=settings.guidance_scale,
    )
