"""The two gradient forms of distribution matching, and the losses of the critic and of the discriminator.

Both forms return d(sum of the samples' losses) / d x0, shape (B, C, H, W): divide by the batch size once, in the
step, and send it home by `x0.backward(g)`. Throughout, x0 is the student's sample, D_T and D_F are the x0-predictions
of teacher and critic at x_t = x0 + sigma eps, r = p_teacher / p_student is the density ratio at x_t, and h is the
weight of the divergence. As x0-predictions teacher and critic are free of the noise schedule:

    grad log q - grad log p = (D_F - D_T) / sigma^2.
"""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import softplus

from diffdistill import processes
from diffdistill.divergences import Divergence, get_divergence
from diffdistill.errors import ConfigError
from diffdistill.loss_weights import edm_weight
from diffdistill.matching.level_weights import LEVEL_WEIGHTS
from diffdistill.process import EDM, Flow, Process, per_sample

WeightFunction = Callable[[Tensor, Tensor, Tensor], Tensor]
WeightLike = None | str | float | Tensor | WeightFunction

# Others of the table are functions of the level or of the batch, which no function here sees.
NAMED_WEIGHTS = {w.name: w.of_images for w in LEVEL_WEIGHTS.values() if w.of_level is None and not w.of_batch}


def score_gap_gradient(
    x0: Tensor,
    teacher_x0: Tensor,
    critic_x0: Tensor,
    *,
    logit: Tensor | None = None,
    divergence: str | Divergence = "reverse_kl",
    level_weight: WeightLike = None,
    normalize: bool = False,
) -> Tensor:
    """Gradient of an f-divergence at the student's sample (Diff-Instruct, DMD, DMD2, f-distill):

        g = w h(r) (D_F - D_T),        all factors constants        (2502.15681, Theorem 1).

    With w = 1 / sigma^2 the mean of g . dx0/dtheta is exactly dD_f(p_t || q_t)/dtheta (VE units).

    x0, teacher_x0, critic_x0: (B, C, H, W); any graph they carry is ignored.
    logit: log r, (B,); may be None if the divergence needs no ratio.
    divergence: a name or a `Divergence`.
    level_weight: w >= 0: None (1), a number, a tensor (B,) or (B, 1, 1, 1), "none", "dmd", "pseudo_huber", or a
        function (x0, teacher_x0, critic_x0) -> tensor.
    normalize: divide h by its mean over the batch (of all ranks), so that the learning rate means the same for every
        divergence.

    Returns g, (B, C, H, W), in the dtype of x0, without a graph. Raises ConfigError for an unknown divergence or
    weight, a missing logit, a negative weight.

    >>> x0, teacher_x0, critic_x0 = torch.zeros(1, 1, 1, 1), torch.full((1, 1, 1, 1), 0.5), torch.zeros(1, 1, 1, 1)
    >>> score_gap_gradient(x0, teacher_x0, critic_x0, level_weight="dmd").item()  # a descent moves towards the teacher
    -1.0
    """
    chosen = get_divergence(divergence)
    with torch.no_grad():
        x, teacher, critic = _at_least_float32(x0, teacher_x0, critic_x0)
        h, _ = _divergence_weights(chosen, logit, x, normalize)
        return (_level_weight(level_weight, x, teacher, critic) * h * (critic - teacher)).to(x0.dtype)


def fisher_loss(
    x0: Tensor,
    teacher_x0: Tensor,
    critic_x0: Tensor,
    *,
    logit: Tensor | None = None,
    divergence: str | Divergence = "reverse_kl",
    level_weight: WeightLike = None,
    alpha: float = 0.5,
    normalize: bool = False,
    detach_ratio: bool = False,
) -> Tensor:
    """Each sample's loss of the Fisher form, (B,), attached to x0; arguments as in `fisher_gradient`.

        L = w [ h(r) (D_T - D_F) . (D_F - x0) + (1 - alpha) (h(r) - r h'(r)) ||D_T - D_F||^2 ]

    Its value says little: for h = 1 its mean is (1 - alpha) w E||D_T - D_F||^2, so 0 for alpha = 1.

    >>> x0 = torch.ones(1, 1, 1, 1, requires_grad=True)
    >>> round(fisher_loss(x0, 0.5 * x0, 0.8 * x0).item(), 4)  # (0.5 - 0.8) (0.8 - 1) + 0.3^2 / 2
    0.105
    """
    chosen = get_divergence(divergence)
    warn_if_unstable(alpha)
    for name, tensor in (("x0", x0), ("teacher_x0", teacher_x0), ("critic_x0", critic_x0)):
        if not tensor.requires_grad:
            raise ValueError(
                f"{name} carries no gradient; the Fisher form needs x0 to require one and D(x0 + sigma eps) attached."
            )
    if chosen.needs_ratio and logit is not None and not (logit.requires_grad or detach_ratio):
        raise ValueError(
            "logit is detached from x0, which makes the gradient wrong; attach it, or say detach_ratio=True."
        )
    x, teacher, critic = _at_least_float32(x0, teacher_x0, critic_x0)
    h, slope = _divergence_weights(
        chosen, logit.detach() if detach_ratio and logit is not None else logit, x, normalize
    )
    gap = teacher - critic
    loss = h * gap * (critic - x) + (1 - alpha) * (h - slope) * gap.square()
    return (_level_weight(level_weight, x, teacher, critic) * loss).flatten(1).sum(1)


def fisher_gradient(
    x0: Tensor,
    teacher_x0: Tensor,
    critic_x0: Tensor,
    *,
    logit: Tensor | None = None,
    divergence: str | Divergence = "reverse_kl",
    level_weight: WeightLike = None,
    alpha: float = 0.5,
    normalize: bool = False,
    detach_ratio: bool = False,
    retain_graph: bool = False,
) -> Tensor:
    """Gradient of a Fisher-type objective at the student's sample (SIM, SiD, Uni-Instruct):

        g = d/dx0 sum over samples of  w [ h (D_T - D_F) . (D_F - x0) + (1 - alpha) (h - r h') ||D_T - D_F||^2 ],

    where D_T, D_F, r and, if attached, w depend on x0 through x_t, with the networks' parameters held constant.

    alpha = 1/2: with w = 2 / sigma^4 exactly the gradient of E_q[ h(r) ||grad log q - grad log p||^2 ], whose integral
        over levels, weighted by sigma, is D_f itself (2505.20755); for reverse_kl the Fisher divergence.
    alpha = 1: the same with the sampling law held constant (SIM, 2410.16794).
    Other values: SiD (2404.04057), see `alpha_bounds`.

    x0: (B, C, H, W), requires a gradient (a leaf copy of the student's output).
    teacher_x0, critic_x0: (B, C, H, W), computed from x0 with its graph.
    logit: log r, (B,), with its graph to x0; may be None if the divergence needs no ratio.
    divergence, level_weight, normalize: as in `score_gap_gradient`; a weight with a graph is differentiated.
    detach_ratio: ablation only, wrong in every direction but a shift: holds r constant, as the released Uni-Instruct
        code does.
    retain_graph: keep the graph for a further term, an adversarial one for example.

    Returns g, (B, C, H, W). Raises ConfigError as `score_gap_gradient`, ValueError for inputs that are not attached.

    >>> x0 = torch.ones(1, 1, 1, 1, requires_grad=True)
    >>> teacher_x0, critic_x0 = 0.5 * x0, 0.8 * x0  # as of denoisers of two Gaussians around 0
    >>> round(fisher_gradient(x0, teacher_x0, critic_x0, alpha=1.0).item(), 4)  # d/dx of (D_T - D_F) (D_F - x)
    0.12
    """
    loss = fisher_loss(
        x0, teacher_x0, critic_x0, logit=logit, divergence=divergence, level_weight=level_weight, alpha=alpha,
        normalize=normalize, detach_ratio=detach_ratio,
    )  # fmt: skip
    return torch.autograd.grad(loss.sum(), x0, retain_graph=retain_graph)[0]


def guidance_gradient(
    x0: Tensor,
    conditional_x0: Tensor,
    null_x0: Tensor,
    guidance_scale: float,
    *,
    level_weight: WeightLike = None,
) -> Tensor:
    """Guidance outside the gap, as a reward: the gradient of -(k - 1) w log p(c | x_t), Diff-Instruct* (2410.20898):

        g = w (k - 1) (D_null - D_cond),        constants.

    Added to the score gap of the unguided teacher it is the score gap of the guided one, for the same w; beside a
    Fisher form it is another objective than guidance inside.

    conditional_x0, null_x0: the teacher's, (B, C, H, W); level_weight: as in `score_gap_gradient`, of x0 and D_cond.
    Returns (B, C, H, W), without a graph.

    >>> x0, conditional_x0, null_x0 = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    >>> guidance_gradient(x0, conditional_x0, null_x0, 3.0).item()
    -2.0
    """
    with torch.no_grad():
        x, conditional, null = _at_least_float32(x0, conditional_x0, null_x0)
        weight = _level_weight(level_weight, x, conditional, conditional)
        return ((guidance_scale - 1) * weight * (null - conditional)).to(x0.dtype)


def alpha_bounds(alpha: float) -> tuple[float, float]:
    """Range of rho = v_q / v_p, noised student variance over teacher variance, in which the Fisher form attracts.

    For reverse KL and 1-D Gaussians the restoring forces on mean and scale are proportional to

        (2 alpha - 1) / rho - 2 (alpha - 1)    and    alpha / rho + 1 - alpha.

    Both are positive for every rho if 1/2 <= alpha <= 1. For alpha > 1 a student runs away that has
    rho > (2 alpha - 1) / (2 alpha - 2), for alpha < 1/2 one that has rho < (1 - 2 alpha) / (2 - 2 alpha); the mean
    flips before the scale.

    >>> alpha_bounds(1.0), alpha_bounds(1.5)
    ((0.0, inf), (0.0, 2.0))
    """
    low = max(0.0, (1 - 2 * alpha) / (2 - 2 * alpha)) if alpha < 1 else 0.0
    high = (2 * alpha - 1) / (2 * alpha - 2) if alpha > 1 else float("inf")
    return low, high


def warn_if_unstable(alpha: float) -> None:
    """Warn, with the bound of `alpha_bounds`, outside [0.5, 1.2]; a student that starts as a denoiser is narrow enough
    for 1.2.

    >>> import warnings
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warn_if_unstable(1.0)
    ...     warn_if_unstable(1.5)
    >>> [str(warning.message) for warning in caught]
    ["alpha = 1.5 drives away a student whose variance is broader than 2 times the teacher's; choose 0.5 to 1, ..."]
    """
    if 0.5 <= alpha <= 1.2:
        return
    low, high = alpha_bounds(alpha)
    side = f"narrower than {low:.3g}" if alpha < 0.5 else f"broader than {high:.3g}"
    warnings.warn(
        f"alpha = {alpha:g} drives away a student whose variance is {side} times the teacher's; "
        "choose 0.5 to 1, or 1.2 at most.",
        stacklevel=3,
    )


def denoising_loss(
    prediction: Tensor, x0: Tensor, sigma: Tensor, sigma_data: float = 0.5, *, weight: Tensor | None = None
) -> Tensor:
    """Denoising score matching: each sample's lambda(sigma) mean_{C,H,W} (D(x_t) - x0)^2 (2206.00364, Table 1).

    prediction, x0: (B, C, H, W); for the critic x0 is the student's sample, detached here. sigma: (B,). weight: (B,),
    in place of EDM's lambda.
    Returns (B,), about 1 for an untrained network with EDM preconditioning.

    >>> x0, prediction = torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)
    >>> denoising_loss(prediction, x0, torch.tensor([2.0]))
    tensor([4.2500])
    """
    error = (prediction.float() if prediction.element_size() < 4 else prediction) - x0.detach()
    return (edm_weight(sigma, sigma_data) if weight is None else weight) * error.square().flatten(1).mean(1)


def native_weight(process: Process, sigma: Tensor) -> Tensor:
    """The weight that makes the x0 error the squared error of the network's own output (2202.00512, section 4).

    epsilon: 1 / sigma^2; v: 1 + 1 / sigma^2; flow: (1 + 1 / sigma)^2; sample: 1; EDM: lambda(sigma), `edm_weight`.
    sigma: (B,). Returns (B,).

    >>> from diffdistill.process import Flow
    >>> native_weight(Flow(), torch.tensor([1.0]))
    tensor([4.])
    """
    if isinstance(process, EDM):
        return edm_weight(sigma, process.sigma_data)
    if isinstance(process, Flow):
        return (1 + 1 / sigma) ** 2
    return {"epsilon": 0.0, "v_prediction": 1.0}[process.kind] + sigma**-2 if process.kind != "sample" else sigma**0


def discriminator_loss(real_logit: Tensor, fake_logit: Tensor) -> Tensor:
    """Logistic loss mean softplus(-l_real) + mean softplus(l_fake), a scalar; its optimum is l = log p_real / p_fake.

    Any shapes: with one logit a head, `(B, heads)`, every head has a loss of its own. Real and student samples must be
    noised by the same law of levels, or l is not a density ratio.

    >>> round(discriminator_loss(torch.zeros(3), torch.zeros(3)).item(), 4)  # 2 ln 2: it knows nothing
    1.3863
    """
    return softplus(-real_logit).mean() + softplus(fake_logit).mean()


def feature_r1(logit: Tensor, feature: Tensor) -> Tensor:
    """R1 at the input f of a discriminator's head (2311.17042, section 3.2), f in units of its own rms:

        mean(f^2) ||dl / df||^2,        exact, differentiable in the head's weights.

    A penalty on pixels needs second derivatives of the whole network, or differences of two passes, which in bfloat16
    are rounding noise; the head alone is small and in float32, whatever the network's precision.

    logit: (B,), of that head; feature: (B, C, h, w), a leaf that requires a gradient. Returns (B,); the penalty of a
    weight gamma is gamma / 2 times its mean.

    >>> feature = torch.full((1, 1, 1, 1), 2.0, requires_grad=True)
    >>> feature_r1(3 * feature.flatten(), feature)  # 2^2 3^2
    tensor([36.])
    """
    (gradient,) = torch.autograd.grad(logit.sum(), feature, create_graph=True)
    return feature.detach().square().flatten(1).mean(1) * gradient.square().flatten(1).sum(1)


def noise_kl(eps: Tensor) -> Tensor:
    """KL(N(m, v) || N(0, 1)), m and v mean and variance of a predicted noise over its elements (2505.21960):

        (v + m^2 - 1 - ln v) / 2,        0 where the noise is standardised.

    eps: `(..., C, H, W)`, of K steps that share an encoder. Returns `(...)`; the loss is 0.1 times its sum over K.

    >>> noise_kl(torch.tensor([[[[-1.0, 1.0]]], [[[-1.0, 3.0]]]])).tolist()  # m = 0, v = 1; m = 1, v = 4
    [0.0, 1.3068528175354004]
    """
    flat = eps.flatten(-3)
    mean, variance = flat.mean(-1), flat.var(-1, correction=0)
    return (variance + mean.square() - 1 - variance.log()) / 2


def mean_weight(divergence: str | Divergence, logit: Tensor) -> Tensor:
    """The mean of h(r) over the batch of all ranks, a scalar without a graph; logit: log r, (B,).

    >>> mean_weight("jeffreys", torch.tensor([0.0, 0.0]))  # 1 + r
    tensor(2.)
    """
    h = get_divergence(divergence).weight(logit.detach())
    total, count = processes.total(torch.stack([h.sum(), h.new_full((), len(h))]))
    return total.clamp_min(torch.finfo(h.dtype).tiny) / count


def _at_least_float32(*tensors: Tensor) -> tuple[Tensor, ...]:
    # The difference of two nearly equal denoisers keeps 3 to 8 bits in half precision.
    return tuple(t.float() if t.element_size() < 4 else t for t in tensors)


def _divergence_weights(
    divergence: Divergence, logit: Tensor | None, x: Tensor, normalize: bool
) -> tuple[Tensor, Tensor]:
    """h and r h', each (B, 1, 1, 1)."""
    if not divergence.needs_ratio:
        logit = x.new_zeros(len(x)) if logit is None else logit.detach()
    if logit is None:
        raise ConfigError(
            f"divergence {divergence.name} weighs samples by the density ratio and got no logit; "
            "add a discriminator head or use reverse_kl."
        )
    (logit,) = _at_least_float32(_one_per_sample(logit, x, "logit"))
    h, slope = divergence.weight(logit), divergence.weight_slope(logit)
    if normalize:
        mean = mean_weight(divergence, logit.flatten())
        h, slope = h / mean, slope / mean
    return h, slope


def _level_weight(weight: WeightLike, x: Tensor, teacher: Tensor, critic: Tensor) -> Tensor | float:
    if isinstance(weight, str):
        if weight not in NAMED_WEIGHTS:
            raise ConfigError(
                f"level_weight {weight!r} is not known; allowed are {', '.join(NAMED_WEIGHTS)}, a number or a tensor."
            )
        weight = NAMED_WEIGHTS[weight]
    if weight is None:
        return 1.0
    if callable(weight):
        return weight(x, teacher, critic)
    if isinstance(weight, Tensor):
        lowest = float(weight.detach().min())
        weight = _one_per_sample(weight, x, "level_weight") if weight.numel() > 1 else weight.reshape(())
    else:
        lowest = weight
    if not lowest >= 0:
        raise ConfigError(
            f"level_weight is {lowest:g}; it must be a number >= 0, for a negative one drives the student away."
        )
    return weight


def _one_per_sample(values: Tensor, x: Tensor, name: str) -> Tensor:
    # (B, heads) or (B, 1) against (B, C, H, W) would broadcast silently to nonsense.
    if values.numel() != len(x) or values.ndim == 0 or len(values) != len(x):
        raise ValueError(f"{name} must have one value a sample, shape ({len(x)},), got {tuple(values.shape)}.")
    return per_sample(values, x)
