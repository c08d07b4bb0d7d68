"""Uni-Instruct (2505.20755): minimise the integral over levels of E[h(r) ||score gap||^2], which is an f-divergence of
the images.

    L = w [ h(r) (D_T - D_F) . (D_F - x0) + 1/2 (h(r) - r h'(r)) ||D_T - D_F||^2 ]  +  lambda_G softplus(-l(x_t))

The ratio r = exp(l(x_t)) stays attached: holding it constant gives the wrong gradient in every direction but a shift
(`diffdistill verify`, test B). First the critic alone, then SIM, then the divergence, as parts of the run.

Departures: the released code uses a scalar of the batch in place of r; here r is each sample's own, made 1 on average
per level. The weight w is DMD's by default, held constant; the expansion's own, d(sigma) / sigma^3 in x0 units, is
`level_weight: expansion`.
"""

from diffdistill.config.methods import UniInstruct
from diffdistill.matching.step import Choices


def choices(settings: UniInstruct) -> Choices:
    return Choices(
        form="fisher",
        alpha=0.5,
        divergence=settings.divergence,
        level_weight=settings.level_weight,
        normalize=True,
        detach_ratio=settings.detach_ratio,
        adversarial=settings.adversarial,
        ratio=settings.ratio,
        guidance_scale=settings.guidance_scale,
        critic_warmup=settings.critic_warmup,
        fisher_warmup=settings.fisher_warmup,
    )
