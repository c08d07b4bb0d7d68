"""f-divergences of a teacher p and a student q, as functions of the logit l = log r, r = p / q (teacher over student).

With D_f(p || q) = E_q[f(r)] and x = x(theta) ~ q, the gradient of every member has one form (2502.15681, Theorem 1):

    d D_f / d theta = E[ h(r) (grad log q - grad log p) . dx/dtheta ],        h(r) = f''(r) r^2.

A `Divergence` holds h and what follows from it. The constants are those of f as listed here; divide for other
normalisations:

    name                  f(r)                                    h(r)         behaviour
    reverse_kl            -log r                                  1            seeks modes, needs no ratio
    softened_reverse_kl   (r + 1) log(1/2 + 1/(2 r))              1 / (1 + r)  seeks modes even more
    jensen_shannon        r log r - (r + 1) log((r + 1) / 2)      r / (1 + r)  bounded; this f gives 2 JS
    squared_hellinger     (1 - sqrt r)^2                          sqrt(r) / 2  between the two
    forward_kl            r log r                                 r            covers modes, high variance
    jeffreys              (r - 1) log r                           1 + r        forward plus reverse KL
    pearson               (r - 1)^2                               2 r^2        covers strongly, may be infinite
    neyman                (1 - r)^2 / r                           2 / r        seeks strongly, may be infinite
    alpha:A               (r^A - A r - (1 - A)) / (A (A - 1))     r^A          0: reverse KL, 1: forward KL

Every function is finite in float32 for |l| <= 40 (alpha:A: for |A| <= 2.2) and has the right limits there.

A new divergence is a `Divergence` of one's own: handed over as it is, or from a file as `FILE.py:NAME`, which a config
may say too (`method.divergence`); `register_divergence` gives it a name.

    >>> import torch
    >>> cube_root = Divergence(
    ...     name="cube_root",
    ...     weight=lambda log_r: (log_r / 3).exp(),
    ...     weight_slope=lambda log_r: (log_r / 3).exp() / 3,
    ...     adversarial=lambda log_r: -3 * (log_r / 3).exp(),
    ... )
    >>> get_divergence(cube_root).weight(torch.tensor([0.0, 3.0]))
    tensor([1.0000, 2.7183])

No torch is loaded here: settings are checked against the table of names.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING

from diffdistill import registry
from diffdistill.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Divergence:
    """One f-divergence, as elementwise functions of the logit l = log(p_teacher / p_student), any shape.

    weight:       h(e^l) = f''(r) r^2 >= 0, the factor on the score gap.
    weight_slope: r h'(r) = dh/dl, which the Fisher form needs: its sampling term has the factor h - r h'.
    adversarial:  -∫ h dl, the loss on the student's logits whose gradient -h grad l is the same field, because
                  grad l = -(grad log q - grad log p) for the optimal discriminator. Constant of integration free.
    needs_ratio:  False if h is constant, so that no discriminator is needed.

    >>> import torch
    >>> def r(logit):
    ...     return logit.exp()
    >>> kl = Divergence("my_forward_kl", weight=r, weight_slope=r, adversarial=lambda logit: -r(logit))
    >>> logit = torch.tensor(0.5, requires_grad=True)
    >>> bool(torch.autograd.grad(kl.adversarial(logit), logit)[0] == -kl.weight(logit))  # -h, as it must be
    True
    """

    name: str
    weight: Callable[[Tensor], Tensor]
    weight_slope: Callable[[Tensor], Tensor]
    adversarial: Callable[[Tensor], Tensor]
    needs_ratio: bool = True


def _one(log_r: Tensor) -> Tensor:
    return log_r.new_ones(log_r.shape)


def _zero(log_r: Tensor) -> Tensor:
    return log_r.new_zeros(log_r.shape)


def _exp(log_r: Tensor) -> Tensor:
    return log_r.exp()


def _sigmoid_slope(logit: Tensor) -> Tensor:
    # r / (1 + r)^2 as a product: s (1 - s) rounds to 0 long before r does.
    return logit.sigmoid() * (-logit).sigmoid()


def _log_sigmoid(logit: Tensor) -> Tensor:
    from torch.nn.functional import logsigmoid

    return logsigmoid(logit)


_DIVERGENCES = {
    divergence.name: divergence
    for divergence in (
        Divergence("reverse_kl", _one, _zero, lambda log_r: -log_r, needs_ratio=False),
        Divergence("forward_kl", _exp, _exp, lambda log_r: -log_r.exp()),
        Divergence(
            "jensen_shannon", lambda log_r: log_r.sigmoid(), _sigmoid_slope, lambda log_r: _log_sigmoid(-log_r)
        ),
        Divergence(
            "softened_reverse_kl",
            weight=lambda log_r: (-log_r).sigmoid(),
            weight_slope=lambda log_r: -_sigmoid_slope(log_r),
            adversarial=lambda log_r: -_log_sigmoid(log_r),
        ),
        Divergence(
            "squared_hellinger",
            weight=lambda log_r: 0.5 * (0.5 * log_r).exp(),
            weight_slope=lambda log_r: 0.25 * (0.5 * log_r).exp(),
            adversarial=lambda log_r: -(0.5 * log_r).exp(),
        ),
        Divergence("jeffreys", lambda log_r: 1 + log_r.exp(), _exp, lambda log_r: -(log_r + log_r.exp())),
        Divergence(
            "pearson",
            weight=lambda log_r: 2 * (2 * log_r).exp(),
            weight_slope=lambda log_r: 4 * (2 * log_r).exp(),
            adversarial=lambda log_r: -(2 * log_r).exp(),
        ),
        Divergence(
            "neyman",
            weight=lambda log_r: 2 * (-log_r).exp(),
            weight_slope=lambda log_r: -2 * (-log_r).exp(),
            adversarial=lambda log_r: 2 * (-log_r).exp(),
        ),
    )
}


def _alpha_family(exponent: float) -> Divergence:
    if exponent == 0:
        return Divergence("alpha:0", _one, _zero, lambda log_r: -log_r, needs_ratio=False)
    return Divergence(
        f"alpha:{exponent:g}",
        weight=lambda log_r: (exponent * log_r).exp(),
        weight_slope=lambda log_r: exponent * (exponent * log_r).exp(),
        adversarial=lambda log_r: -(exponent * log_r).exp() / exponent,
    )


def divergence_names() -> tuple[str, ...]:
    """The names that `get_divergence` knows, without the family `alpha:A`.

    >>> divergence_names()[:3]
    ('reverse_kl', 'forward_kl', 'jensen_shannon')
    """
    return tuple(_DIVERGENCES)


def register_divergence(divergence: Divergence) -> Divergence:
    """Make `divergence` available under its name, and return it. Raises ConfigError if the name is taken.

    >>> from diffdistill.divergences import Divergence, get_divergence
    >>> gentle = Divergence(
    ...     "gentle",
    ...     weight=lambda log_r: (0.3 * log_r).exp(),
    ...     weight_slope=lambda log_r: 0.3 * (0.3 * log_r).exp(),
    ...     adversarial=lambda log_r: -(0.3 * log_r).exp() / 0.3,
    ... )
    >>> register_divergence(gentle) is get_divergence("gentle")
    True
    """
    if divergence.name in _DIVERGENCES or divergence.name.startswith("alpha:"):
        raise ConfigError(f"divergence {divergence.name!r} exists already; choose another name.")
    _DIVERGENCES[divergence.name] = divergence
    return divergence


def get_divergence(name: str | Divergence) -> Divergence:
    """The divergence called `name`: one of the table above, `alpha:A` with a number A, `FILE.py:NAME` (a `Divergence`,
    or a function that makes one), or a `Divergence` itself.

    Raises ConfigError for a name that is not known, and for a file that the user has not allowed to run.

    >>> import torch
    >>> get_divergence("jensen_shannon").weight(torch.tensor([0.0]))  # r / (1 + r) at r = 1
    tensor([0.5000])
    >>> get_divergence("alpha:2").name
    'alpha:2'
    """
    if isinstance(name, Divergence):
        return name
    if registry.is_plugin(name):
        return _from_file(name)
    registry.plugins()  # a file of the user's may register divergences
    key = str(name).replace("-", "_") if not str(name).startswith("alpha:") else str(name)
    if key in _DIVERGENCES:
        return _DIVERGENCES[key]
    if key.startswith("alpha:"):
        return _alpha_family(_parse_exponent(key))
    close = get_close_matches(key, [*_DIVERGENCES, "alpha:0.5"], n=1)
    hint = f" did you mean {close[0]!r}?" if close else ""
    raise ConfigError(
        f"divergence {name!r} is not known;{hint} allowed are {', '.join(_DIVERGENCES)} and alpha:A with a number A, "
        "or FILE.py:NAME."
    )


def _from_file(name: str) -> Divergence:
    value = registry.load(name)
    value = value if isinstance(value, Divergence) or not callable(value) else value()
    if not isinstance(value, Divergence):
        raise ConfigError(
            f"'{name}' is no divergence; it must be a diffdistill.divergences.Divergence, or a function that makes one"
        )
    return value


def _parse_exponent(key: str) -> float:
    text = key.removeprefix("alpha:")
    try:
        exponent = float(text)
    except ValueError:
        exponent = math.nan
    if not math.isfinite(exponent):
        raise ConfigError(
            f"divergence {key!r}: {text!r} is not a number; write for example alpha:0.5 (useful: -1 to 2)."
        )
    return exponent
