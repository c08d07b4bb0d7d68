"""The losses MaPO is compared with: Diffusion-DPO, which needs a reference model, and ORPO, which does not."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from diffdistill.alignment.mapo import MaPOOutput, accuracy, single, smoothed, weighted_mean
from diffdistill.divergences import Divergence, get_divergence
from diffdistill.errors import ConfigError

Variant = Literal["sigmoid", "hinge", "ipo"]
FAR = 40.0  # log ratios up to which the functions of every divergence are finite in float32


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
    divergence: str | Divergence = "reverse_kl",
    log_ratio_scale: float | None = None,
) -> MaPOOutput:
    """Diffusion-DPO (2311.12908, eq. 14) with h = -((l_w - l_l) - (r_w - r_l)) / 2, r of the frozen reference model:

    sigmoid: -log sigmoid(beta h); hinge: max(0, 1 - beta h) (2305.10425); ipo: (h - 1/(2 beta))^2 (2310.12036, eq.
    17).

    loss_w, loss_l, ref_w, ref_l: `(B,)`, mean squared errors over C, H, W, all four at the same noise and time.
    beta: 5000 for SDXL, 2500 or 2000 for SD1.5. label_smoothing, weights: as in `mapo_loss`.
    divergence, log_ratio_scale: what keeps the network near its reference, see `implicit_reward`; h is then the
        difference of those rewards.
    Returns loss, margin h, the implicit rewards of both images, (r - l) / 2 for reverse_kl, and acc. Raises
    ConfigError for another variant, and as `check_preference`.

    >>> import torch
    >>> ref_w, ref_l = torch.tensor([0.3]), torch.tensor([0.2])
    >>> diffusion_dpo_loss(ref_w, ref_l, ref_w, ref_l).loss  # the network is the reference still: ln 2
    tensor(0.6931)
    >>> diffusion_dpo_loss(ref_w - 0.25, ref_l, ref_w, ref_l, variant="ipo", beta=4.0).loss  # h = 1 / (2 beta)
    tensor(0.)
    """
    loss_w, loss_l, ref_w, ref_l = (single(x) for x in (loss_w, loss_l, ref_w.detach(), ref_l.detach()))
    reward_w, reward_l = (ref_w - loss_w) / 2, (ref_l - loss_l) / 2
    chosen = check_preference(divergence)
    if chosen.name != "reverse_kl":
        scale = beta if log_ratio_scale is None else log_ratio_scale
        reward_w, reward_l = (implicit_reward(scale * reward, chosen) / scale for reward in (reward_w, reward_l))
    h = reward_w - reward_l

    def ordered(m: Tensor) -> Tensor:
        if variant == "sigmoid":
            return -logsigmoid(beta * m)
        if variant == "hinge":
            return relu(1 - beta * m)
        if variant == "ipo":
            return (m - 1 / (2 * beta)) ** 2
        raise ConfigError(f"variant '{variant}' of Diffusion-DPO is unknown; use sigmoid, hinge or ipo")

    losses = smoothed(ordered(h), ordered(-h), label_smoothing)
    loss, h = weighted_mean(losses, weights), h.detach()
    return MaPOOutput(loss, h, reward_w.detach(), reward_l.detach(), accuracy(h), losses)


def implicit_reward(log_ratio: Tensor, divergence: str | Divergence) -> Tensor:
    """f-DPO's reward g'(u) of u = p / p_ref for a penalty E_ref[g(u)] (2309.16240), up to a constant, any shape.

    With a divergence of the table, D_f = E_p[f(r)] and r = 1 / u, it is g(u) = u f(1 / u), and

        g'(u) = f(r) - r f'(r) = -∫ h(r) d log r        at log r = -log u:        `Divergence.adversarial`.

    reverse_kl (DPO): log u; forward_kl: -1 / u; jensen_shannon: log(u / (1 + u)). It rises in u, with slope h(1) in
    log u at u = 1. Log ratios beyond 40 are taken for 40.

    >>> log_u = torch.tensor([0.0, 2.0]).log()
    >>> implicit_reward(log_u, "forward_kl")[1]  # -1 / u
    tensor(-0.5000)
    """
    return get_divergence(divergence).adversarial((-log_ratio).clamp(-FAR, FAR))


def check_preference(divergence: str | Divergence) -> Divergence:
    """The divergence; ConfigError for one whose reward has a least value, at u = 0, where f-DPO's loss is not valid.

    Its theorem needs g' to fall without end as an image of the reference becomes impossible: h must not fall to 0 for
    large r, as it does for neyman, softened_reverse_kl and alpha:A with A < 0.

    >>> check_preference("jensen_shannon").name
    'jensen_shannon'
    """
    chosen = get_divergence(divergence)
    near, far = chosen.weight(torch.tensor([FAR / 2, FAR], dtype=torch.float64)).tolist()
    if far < near:
        raise ConfigError(
            f"divergence '{chosen.name}' does not keep an aligned model from losing images of its reference, as "
            "f-DPO's loss supposes; use reverse_kl, forward_kl, jensen_shannon, squared_hellinger, jeffreys, pearson "
            "or alpha:A with A >= 0"
        )
    return chosen


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
    losses = loss_w - beta * logsigmoid(margin)
    loss, m = weighted_mean(losses, weights), margin.detach()
    return MaPOOutput(loss, m, -loss_w.detach(), -loss_l.detach(), accuracy(m), losses)
