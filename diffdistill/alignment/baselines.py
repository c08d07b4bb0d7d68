"""The losses MaPO is compared with: Diffusion-DPO, which needs a reference model, and ORPO, which does not."""

from typing import Literal

from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from diffdistill.alignment.mapo import MaPOOutput, accuracy, single, smoothed, weighted_mean
from diffdistill.errors import ConfigError

Variant = Literal["sigmoid", "hinge", "ipo"]


def diffusion_dpo_loss(
    loss_w: Tensor,
    loss_l: Tensor,
    ref_w: Tensor,
    ref_l: Tensor,
    *,
    beta: float = 5000.0,
    variant: Variant = "sigmoid",
    label_smoothing: float | Tensor = 0.0,
    weights: Tensor | None = None,
) -> MaPOOutput:
    """Diffusion-DPO (2311.12908, eq. 14) with h = -((l_w - l_l) - (r_w - r_l)) / 2, r of the frozen reference model:

    sigmoid: -log sigmoid(beta h); hinge: max(0, 1 - beta h) (2305.10425); ipo: (h - 1/(2 beta))^2 (2310.12036, eq.
    17).

    loss_w, loss_l, ref_w, ref_l: `(B,)`, mean squared errors over C, H, W, all four at the same noise and time.
    beta: 5000 for SDXL, 2500 or 2000 for SD1.5. label_smoothing, weights: as in `mapo_loss`.
    Returns loss, margin h, the implicit rewards (r - l) / 2 of both images, and acc. Raises ConfigError for another
    variant.

    >>> import torch
    >>> ref_w, ref_l = torch.tensor([0.3]), torch.tensor([0.2])
    >>> diffusion_dpo_loss(ref_w, ref_l, ref_w, ref_l).loss  # the network is the reference still: ln 2
    tensor(0.6931)
    >>> diffusion_dpo_loss(ref_w - 0.25, ref_l, ref_w, ref_l, variant="ipo", beta=4.0).loss  # h = 1 / (2 beta)
    tensor(0.)
    """
    loss_w, loss_l, ref_w, ref_l = (single(x) for x in (loss_w, loss_l, ref_w.detach(), ref_l.detach()))
    reward_w, reward_l = (ref_w - loss_w) / 2, (ref_l - loss_l) / 2
    h = reward_w - reward_l

    def ordered(m: Tensor) -> Tensor:
        if variant == "sigmoid":
            return -logsigmoid(beta * m)
        if variant == "hinge":
            return relu(1 - beta * m)
        if variant == "ipo":
            return (m - 1 / (2 * beta)) ** 2
        raise ConfigError(f"variant '{variant}' of Diffusion-DPO is unknown; use sigmoid, hinge or ipo")

    loss = weighted_mean(smoothed(ordered(h), ordered(-h), label_smoothing), weights)
    return MaPOOutput(loss, h.detach(), reward_w.detach(), reward_l.detach(), accuracy(h.detach()))


def diffusion_orpo_loss(
    loss_w: Tensor, loss_l: Tensor, *, beta: float = 0.1, weights: Tensor | None = None
) -> MaPOOutput:
    """ORPO for diffusion (after 2403.07691, eq. 6): mean[ l_w - beta log sigmoid(l_l - l_w) ].

    The log likelihood is replaced by -l, and the odds ratio by the ratio, as in the scripts in use; those have the
    sign of the second term the wrong way round and push l_w up against l_l.
    loss_w, loss_l: `(B,)`. Returns loss, margin l_l - l_w, rewards -l, acc.

    >>> import torch
    >>> losses = torch.tensor([0.2, 0.4])
    >>> round(diffusion_orpo_loss(losses, losses).loss.item(), 4)  # a tie: 0.3 + 0.1 ln 2
    0.3693
    """
    loss_w, loss_l = single(loss_w), single(loss_l)
    margin = loss_l - loss_w
    loss = weighted_mean(loss_w - beta * logsigmoid(margin), weights)
    return MaPOOutput(loss, margin.detach(), -loss_w.detach(), -loss_l.detach(), accuracy(margin.detach()))
