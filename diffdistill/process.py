"""The noise process: levels, their laws, and the affine maps between what networks predict.

A level is `sigma`, the noise-to-signal ratio sigma / alpha of the process, in units of the data (2206.00364, section
2): in these "VE" coordinates x_t = x0 + sigma * eps for every network, whatever process it was trained with.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from diffdistill.errors import ConfigError
from diffdistill.machine import finest, send

Law = Literal["lognormal", "karras", "uniform", "loguniform", "shifted", "timestep"]


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """`(B,)` -> `(B, 1, 1, 1)`, so that one number a sample multiplies `(B, C, H, W)`.

    >>> per_sample(torch.ones(2), torch.zeros(2, 3, 8, 8)).shape
    torch.Size([2, 1, 1, 1])
    """
    return values.reshape(-1, *[1] * (like.ndim - 1))


@dataclass(frozen=True)
class Level:
    """Which law of the level sigma, and its numbers; `LevelLaw` says what they mean. None: the network's own bound.

    Raises ConfigError for another law.

    >>> from diffdistill.process import LevelLaw
    >>> LevelLaw(Level("uniform", sigma_min=1.0, sigma_max=3.0)).sigma(torch.tensor([0.0, 0.5, 1.0]))
    tensor([1., 2., 3.])
    """

    law: Law = "karras"
    mean: float = -1.2
    std: float = 1.2
    sigma_min: float | None = None
    sigma_max: float | None = None
    rho: float = 7.0
    u_min: float = 0.0
    u_max: float = 1.0
    shift: float = 3.0

    def __post_init__(self) -> None:
        if self.law not in get_args(Law):
            raise ConfigError(f"level law '{self.law}' is unknown; use {', '.join(get_args(Law))}")


@dataclass(frozen=True)
class LevelLaw:
    """The law of sigma as the inverse distribution function of u ~ U(0, 1).

    Keeping u beside sigma matters: bins that are uniform in u hold equally many samples, bins in sigma do not.

    - lognormal: ln sigma ~ N(mean, std^2) (2206.00364, Table 1)
    - karras: sigma^(1/rho) uniform between its values at u_min and u_max of [sigma_min, sigma_max] (ibid., eq. 5);
      bounds that the settings leave open are the network's own
    - uniform: sigma uniform in [sigma_min, sigma_max]
    - loguniform: ln sigma uniform in [sigma_min, sigma_max]
    - shifted: t uniform, t' = s t / (1 + (s - 1) t), sigma = t' / (1 - t') (flow time with a resolution shift,
      2403.03206, eq. 23)
    - timestep: uniform between the parts u_min and u_max of the training steps of a VP network (2006.11239,
      Algorithm 1), as in the papers on Stable Diffusion

    >>> from diffdistill.process import Level
    >>> law = LevelLaw(Level("lognormal", mean=0.0))
    >>> u, sigma = law.draw(64)
    >>> u.shape, law.sigma(torch.tensor([0.5]))  # the median
    (torch.Size([64]), tensor([1.]))
    """

    settings: Level
    network_min: float = 0.002
    network_max: float = 80.0
    process: "Process | None" = None  # whose time steps the law `timestep` means

    def __post_init__(self) -> None:
        if self.settings.law == "timestep" and not isinstance(self.process, VP):
            raise ConfigError(
                "level law 'timestep' needs a network with training steps, as Stable Diffusion 1, 2 and XL have; use "
                "'shifted' for a flow and 'karras' for others"
            )

    def sigma(self, u: Tensor) -> Tensor:
        """Level at `u` in [0, 1], same shape; increasing in u, computed in float64, returned in float32."""
        s = self.settings
        u = u.to(finest(u.device))
        lowest, highest = s.sigma_min or self.network_min, s.sigma_max or self.network_max
        if s.law == "lognormal":
            inside = u.clamp(1e-6, 1 - 1e-6)
            return (s.mean + s.std * math.sqrt(2) * torch.erfinv(2 * inside - 1)).exp().float()
        if s.law == "karras":
            low, high = lowest ** (1 / s.rho), highest ** (1 / s.rho)
            return (low + (s.u_min + u * (s.u_max - s.u_min)) * (high - low)).pow(s.rho).float()
        if s.law == "uniform":
            return (lowest + u * (highest - lowest)).float()
        if s.law == "loguniform":
            return (math.log(lowest) + u * math.log(highest / lowest)).exp().float()
        if s.law == "timestep":
            assert isinstance(self.process, VP)
            steps = len(self.process.log_sigmas) - 1
            return self.process.level_at(steps * (s.u_min + u * (s.u_max - s.u_min)))
        t = u.clamp(1e-3, 1 - 1e-3)
        t = s.shift * t / (1 + (s.shift - 1) * t)
        return (t / (1 - t)).float()

    def slope(self, u: Tensor) -> Tensor:
        """d sigma / du at `u`, same shape: one over the density of sigma under the law."""
        with torch.enable_grad():
            u = u.detach().to(finest(u.device)).requires_grad_()
            (slope,) = torch.autograd.grad(self.sigma(u).sum(), u)
        return slope.float()

    def draw(self, count: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """`(u, sigma)`, each `(count,)`, stratified: one draw in each of `count` equal cells of u, in random order."""
        cells = torch.randperm(count) + torch.rand(count)
        u = send(cells / count, device)
        return u, self.sigma(u)


def karras_levels(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    """`steps` levels from sigma_max down to sigma_min (2206.00364, eq. 5), float64 `(steps,)`.

    >>> karras_levels(3, 0.002, 80.0).round(decimals=3).tolist()
    [80.0, 2.515, 0.002]
    """
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return (high + ramp * (low - high)).pow(rho)


def x0_from_prediction(prediction: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor, kind: str) -> Tensor:
    """x0 from a network's output p, for x = alpha x0 + sigma eps; all broadcastable to `(B, C, H, W)`.

    epsilon: (x - sigma p) / alpha; v = alpha eps - sigma x0: (alpha x - sigma p) / (alpha^2 + sigma^2); flow u = eps -
    x0: (x - sigma p) / (alpha + sigma); sample: p.

    >>> x, alpha, sigma = torch.tensor([1.0]), torch.tensor([0.5]), torch.tensor([0.5])
    >>> x0_from_prediction(torch.tensor([0.8]), x, alpha, sigma, "epsilon")
    tensor([1.2000])
    """
    if kind == "epsilon":
        return (x - sigma * prediction) / alpha
    if kind == "v_prediction":
        return (alpha * x - sigma * prediction) / (alpha**2 + sigma**2)
    if kind == "flow":
        return (x - sigma * prediction) / (alpha + sigma)
    if kind == "sample":
        return prediction
    raise ConfigError(f"prediction type '{kind}' is unknown; use epsilon, v_prediction, sample or flow")


def prediction_from_x0(x0: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor, kind: str) -> Tensor:
    """Inverse of `x0_from_prediction`, for sigma > 0.

    >>> x, alpha, sigma = torch.tensor([1.0]), torch.tensor([0.5]), torch.tensor([0.5])
    >>> prediction_from_x0(torch.tensor([1.2]), x, alpha, sigma, "epsilon")
    tensor([0.8000])
    """
    return x0 if kind == "sample" else prediction_of(x0, (x - alpha * x0) / sigma, alpha, sigma, kind)


def prediction_of(x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor, kind: str) -> Tensor:
    """What a network should predict where x0 and eps are known; all broadcastable to `(B, C, H, W)`.

    kind: "sample" (x0), "epsilon", "v_prediction" (alpha eps - sigma x0, 2202.00512) or "flow" (eps - x0, 2209.03003);
    ConfigError for another.

    >>> x0, eps, alpha, sigma = torch.tensor([2.0, 1.0, 0.8, 0.6])
    >>> kinds = "sample", "epsilon", "v_prediction", "flow"
    >>> [round(prediction_of(x0, eps, alpha, sigma, kind).item(), 4) for kind in kinds]
    [2.0, 1.0, -0.4, -1.0]
    """
    if kind == "sample":
        return x0
    if kind == "epsilon":
        return eps
    if kind == "v_prediction":
        return alpha * eps - sigma * x0
    if kind == "flow":
        return eps - x0
    raise ConfigError(f"prediction type '{kind}' is unknown; use epsilon, v_prediction, sample or flow")


@dataclass(frozen=True)
class EDM:
    """Preconditioning of 2206.00364, Table 1: D = c_skip x + c_out F(c_in x, time_scale * ln(sigma) / 4).

    `time_scale` is 1 in EDM and 1000 in consistency models (2303.01469) and diffusers' CMStochasticIterativeScheduler.

    `boundary` is 0 for denoisers. A consistency model has D(x, boundary) = x (2303.01469, eq. 5 and appendix C, whose
    epsilon it is): c_skip = sigma_data^2 / ((sigma - boundary)^2 + sigma_data^2) and c_out = sigma_data (sigma -
    boundary) / sqrt(sigma^2 + sigma_data^2), for sigma from `boundary` up.

    >>> x, sigma = torch.ones(1, 1, 1, 1), torch.tensor([0.5])
    >>> EDM().to_x0(torch.zeros(1, 1, 1, 1), x, sigma).item()  # c_skip = 1 / 2
    0.5
    """

    sigma_data: float = 0.5
    time_scale: float = 1000.0
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    boundary: float = 0.0

    def start_scale(self, sigma: float) -> float:
        """a of a student's first input x = a z, z ~ N(0, 1): where the stock pipeline begins, here with sigma z."""
        return sigma

    def to_network(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Network input `(B, C, H, W)` and time `(B,)` of x in VE coordinates."""
        return x / per_sample((sigma**2 + self.sigma_data**2).sqrt(), x), self.time_scale * 0.25 * sigma.log()

    def _scalings(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """`(c_skip, c_out)`, each `(B,)`."""
        above = sigma - self.boundary
        skip = self.sigma_data**2 / (above**2 + self.sigma_data**2)
        return skip, above * self.sigma_data / (sigma**2 + self.sigma_data**2).sqrt()

    def to_x0(self, output: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        """x0 from the network's raw output F."""
        skip, out = self._scalings(sigma)
        return per_sample(skip, x) * x + per_sample(out, x) * output

    def from_x0(self, x0: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        """The output F that means this x0, for sigma > boundary."""
        skip, out = self._scalings(sigma)
        return (x0 - per_sample(skip, x) * x) / per_sample(out, x)


class VP:
    """Discrete variance-preserving schedule: alpha = sqrt(abar_t), s = sqrt(1 - abar_t), level sigma = s / alpha.

    Between two time steps, t is interpolated linearly in ln sigma (networks take fractional time steps).

    alphas_cumprod: `(T,)`, abar of the T training steps, falling; steps without signal (abar 0) are left out. kind:
    what the network predicts, epsilon, v_prediction or sample.

    >>> process = VP(torch.tensor([0.9, 0.5, 0.2]), "epsilon")
    >>> process.level_at(torch.tensor([0.0, 1.0, 2.0]))  # sqrt((1 - abar) / abar)
    tensor([0.3333, 1.0000, 2.0000])
    >>> x = torch.full((1, 1, 1, 1), 3.0)  # x0 = 2 and eps = 1, at the level 1
    >>> round(process.to_x0(torch.ones(1, 1, 1, 1), x, torch.tensor([1.0])).item(), 4)
    2.0
    """

    def __init__(self, alphas_cumprod: Tensor, kind: str):
        # With zero terminal SNR the last level is infinite; it cannot be written in VE coordinates, so it is left out.
        abar = alphas_cumprod.double()
        self.log_sigmas = (0.5 * ((1 - abar) / abar).log())[abar > 1e-10]
        self.kind = kind
        self.sigma_min, self.sigma_max = (float(v.exp()) for v in (self.log_sigmas[0], self.log_sigmas[-1]))

    def time(self, sigma: Tensor) -> Tensor:
        table = self._table(sigma.device)
        wanted = sigma.to(table.dtype).log().clamp(table[0], table[-1]).contiguous()
        upper = torch.searchsorted(table, wanted).clamp(1, len(table) - 1)
        below, above = table[upper - 1], table[upper]
        time = upper - 1 + (wanted - below) / (above - below)
        # A level in float32 is some 1e-5 steps off the step it was taken from; the network was trained on whole steps.
        return torch.where((time - time.round()).abs() < 1e-3, time.round(), time).float()

    def _table(self, device: torch.device) -> Tensor:
        return send(self.log_sigmas.to(finest(device)), device)

    def level_at(self, time: Tensor) -> Tensor:
        """The level of training steps (whole or not), the inverse of `time`; float32, same shape."""
        table = self._table(time.device)
        below = time.to(table.dtype).floor().clamp(0, len(table) - 2)
        low, high = table[below.long()], table[below.long() + 1]
        return (low + (time - below) * (high - low)).exp().float()

    def start_scale(self, sigma: float) -> float:
        """x = sqrt(1 + sigma^2) z: the network sees z, as in the stock pipelines, which leave x_T without signal."""
        return math.sqrt(1 + sigma**2)

    def to_network(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return x / per_sample((1 + sigma**2).sqrt(), x), self.time(sigma)

    def _coefficients(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        alpha = per_sample((1 + sigma**2).rsqrt(), x)
        return alpha * x, alpha, per_sample(sigma, x) * alpha

    def to_x0(self, output: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        return x0_from_prediction(output, *self._coefficients(x, sigma), self.kind)

    def from_x0(self, x0: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        return prediction_from_x0(x0, *self._coefficients(x, sigma), self.kind)


# A flow's t = 1 is an infinite level. At this one sigma / (1 + sigma) is 1 in float32, so it is t = 1 to the last bit.
PURE_NOISE = 2.0**24


@dataclass(frozen=True)
class Flow:
    """Rectified flow: x_t = (1 - t) x0 + t eps, sigma = t / (1 - t), output eps - x0 (2209.03003).

    The network's time is time_scale t.

    >>> x0, eps = torch.full((1, 1, 1, 1), 2.0), torch.ones(1, 1, 1, 1)
    >>> sigma = torch.tensor([1.0])  # t = 1 / 2
    >>> x_in, time = Flow().to_network(x0 + sigma * eps, sigma)  # (1 - t) x0 + t eps
    >>> x_in.item(), time.item()
    (1.5, 500.0)
    >>> Flow().to_x0(eps - x0, x0 + sigma * eps, sigma).item()
    2.0
    """

    time_scale: float = 1000.0
    sigma_min: float = 1e-3
    sigma_max: float = 999.0

    def level_at(self, time: Tensor) -> Tensor:
        """The level of the network's time: t / (1 - t), and `PURE_NOISE` for t = 1; float32, same shape."""
        t = time.to(finest(time.device)) / self.time_scale
        return (t / (1 - t)).clamp(max=PURE_NOISE).float()

    def start_scale(self, sigma: float) -> float:
        """x = (1 + sigma) z: the network sees z."""
        return 1 + sigma

    def to_network(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return x / per_sample(1 + sigma, x), self.time_scale * sigma / (1 + sigma)

    def to_x0(self, output: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        # alpha + s = 1, so the map is x_t - t u, with no division by alpha.
        return (x - per_sample(sigma, x) * output) / per_sample(1 + sigma, x)

    def from_x0(self, x0: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        return (x - x0) / per_sample(sigma, x) - x0


Process = EDM | VP | Flow


def rescaled(guided: Tensor, cond: Tensor, part: float) -> Tensor:
    """Guided outputs of a network, `part` of the way to the spread of the conditional ones (2305.08891, eq. 15, 16).

    part (phi) times guided std(cond) / std(guided), and 1 - phi times guided; std over each image's elements.

    >>> guided, cond = torch.tensor([[[[-4.0, 4.0]]]]), torch.tensor([[[[-1.0, 1.0]]]])
    >>> rescaled(guided, cond, 0.5)  # half of 1, and half of 4
    tensor([[[[-2.5000,  2.5000]]]])
    """
    ratio = cond.flatten(1).std(1) / guided.flatten(1).std(1)
    return (part * per_sample(ratio, guided) + 1 - part) * guided
