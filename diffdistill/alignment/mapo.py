"""MaPO: margin-aware preference optimisation without a reference model (2406.06424; AAAI-26)."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from diffdistill.errors import ConfigError

LinkMode = Literal["scale", "power"]

# Coefficients of phi's series in x^2, from the x^2 term on: Bernoulli numbers B_2k / (2k)!.
SERIES = (1 / 12, -1 / 720, 1 / 30240, -1 / 1209600)
# Below, the series is exact to double precision; above, the quotient loses less than a digit, gradient included.
NEAR = 0.1


class MaPOOutput(NamedTuple):
    """What a preference loss gives. With a graph: loss, scalar, and losses, of each pair, `(B,)`; the others are for
    the log: margin, reward_w, reward_l `(B,)`, acc a scalar.

    >>> from diffdistill.alignment import mapo_loss
    >>> output: MaPOOutput = mapo_loss(torch.tensor([0.1, 0.3]), torch.tensor([0.3, 0.1]))
    >>> torch.equal(output.margin, output.reward_w - output.reward_l), output.acc  # one pair is in order
    (True, tensor(0.5000))
    """

    loss: Tensor
    margin: Tensor
    reward_w: Tensor
    reward_l: Tensor
    acc: Tensor
    losses: Tensor


def bernoulli_link(x: Tensor) -> Tensor:
    """phi(x) = x / (exp(x) - 1), of any shape: decreasing, 1 at 0, between 0 and 1 for x > 0.

    Value and gradient are accurate for every finite x: near zero by the series 1 - x/2 + x^2/12 - ..., far from it as
    |x| exp(-|x|) / (1 - exp(-|x|)), with phi(-x) = phi(x) + x. The plain quotient is NaN at 0, and its gradient is NaN
    where exp overflows. Half precision is computed, and returned, in float32: in float16 phi would exceed 1.

    >>> bernoulli_link(torch.tensor([-1.0, 0.0, 1.0]))  # 1 / (e - 1) + 1, 1, 1 / (e - 1)
    tensor([1.5820, 1.0000, 0.5820])
    """
    x = single(x)
    near = x.abs() < NEAR
    # Each branch sees harmless values where the other one is taken, or its NaN gradient would come through `where`.
    small = torch.where(near, x, 0)
    square, series = small * small, torch.zeros_like(small)
    for coefficient in reversed(SERIES):
        series = (series + coefficient) * square
    large = torch.where(near, 1, x.abs())
    quotient = large * (-large).exp() / -torch.expm1(-large) + relu(-x)
    return torch.where(near, 1 - small / 2 + series, quotient)


def mapo_loss(
    loss_w: Tensor,
    loss_l: Tensor,
    *,
    c: float | None = None,
    margin_scale: float | None = None,
    margin_weight: float | None = None,
    link_mode: LinkMode = "scale",
    beta: float | None = None,
    label_smoothing: float | Tensor = 0.0,
    weights: Tensor | None = None,
) -> MaPOOutput:
    """The denoising loss of the wanted image, and a margin between the two in place of a reference model.

        m = phi(c l_w) - phi(c l_l),   L = mean[ l_w - margin_weight log sigmoid(margin_scale m) ]

    is what the authors' code computes, and what `beta=None` means (c 0.5, margin_scale 1000, margin_weight 0.1). With
    `beta` it is the loss of the AAAI-26 paper, L = mean[ l_w - log sigmoid(phi_beta(l_w) - phi_beta(l_l)) / beta ],
    which can be read in two ways: phi_beta = beta phi ("scale", as its gradient says) or phi^beta ("power", as it is
    typeset); c is then 1. Its beta is 8 to 1024: the larger, the more the loss is plain fine-tuning.

    At a tie the released margin pulls 12.3 times as hard as the denoising term, until m is about 0.005.

    loss_w, loss_l: `(B,)`, mean squared errors over C, H, W of the wanted and the other image, same noise and time.
    label_smoothing: e, a number or `(B,)`, the chance that the label is wrong: the loss is (1 - e) L(w, l) + e L(l,
        w). 0.5 is a tie: both images are fitted, and the margin is drawn to 0.
    weights: `(B,)` >= 0, weight of each pair; the mean is the weighted one.

    Returns margin m, rewards phi(c l) (phi^beta for "power") and acc = mean(m > 0) + mean(m = 0) / 2 without a graph.
    Raises ConfigError for "power" without beta, and for beta beside margin_scale or margin_weight.

    >>> losses = torch.tensor([0.2, 0.4])
    >>> tie = mapo_loss(losses, losses)
    >>> round(tie.loss.item(), 4), tie.margin  # 0.3 + 0.1 ln 2
    (0.3693, tensor([0., 0.]))
    >>> mapo_loss(losses, losses + 0.1).loss < tie.loss  # in order: less is left of the margin's term
    tensor(True)
    """
    if link_mode not in ("scale", "power"):
        raise ConfigError(f"link_mode '{link_mode}' is unknown; use scale or power")
    if link_mode == "power" and beta is None:
        raise ConfigError("link_mode 'power' is the paper's form and needs beta; set beta, 8 to 1024, or use 'scale'")
    if beta is not None and (margin_scale is not None or margin_weight is not None):
        raise ConfigError("beta sets margin_scale and margin_weight itself; give beta, or those two")
    loss_w, loss_l = single(loss_w), single(loss_l)
    if beta is None:
        defaults, exponent = (0.5, 1000.0, 0.1), 1.0
    elif link_mode == "scale":
        defaults, exponent = (1.0, beta, 1 / beta), 1.0
    else:
        defaults, exponent = (1.0, 1.0, 1 / beta), beta
    given = (c, margin_scale, margin_weight)
    c, scale, weight = (default if value is None else value for value, default in zip(given, defaults, strict=True))
    reward_w, reward_l = bernoulli_link(c * loss_w) ** exponent, bernoulli_link(c * loss_l) ** exponent
    margin = reward_w - reward_l

    def ordered(chosen: Tensor, m: Tensor) -> Tensor:
        return chosen - weight * logsigmoid(scale * m)

    losses = smoothed(ordered(loss_w, margin), ordered(loss_l, -margin), label_smoothing)
    m = margin.detach()
    return MaPOOutput(weighted_mean(losses, weights), m, reward_w.detach(), reward_l.detach(), accuracy(m), losses)


def accuracy(margin: Tensor) -> Tensor:
    """Part of the pairs on the right side, scalar; a tie counts half, so that chance is 1/2 for any rule."""
    return 0.5 * ((margin > 0).float() + (margin >= 0).float()).mean()


def single(x: Tensor) -> Tensor:
    """At least float32."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def smoothed(right: Tensor, wrong: Tensor, label_smoothing: float | Tensor) -> Tensor:
    """(1 - e) right + e wrong. Without smoothing `wrong` has no part in it: 0 times infinity would be NaN."""
    if isinstance(label_smoothing, float | int) and label_smoothing == 0:
        return right
    return (1 - label_smoothing) * right + label_smoothing * wrong


def weighted_mean(losses: Tensor, weights: Tensor | None) -> Tensor:
    return losses.mean() if weights is None else (weights * losses).sum() / weights.sum()
