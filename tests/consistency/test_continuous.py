"""The continuous form: its tangent vanishes for the consistency function of Gaussian data, and leads to it."""

import math

import pytest
import torch
from linear import SPREAD, Linear, consistent, nodes, noise_at, teacher_of
from tiny import tiny_teacher
from torch import nn

from diffdistill.consistency.continuous import (
    ContinuousConsistency,
    along_by_difference,
    along_by_forward_mode,
    normalised,
    output_of,
    tangent,
)
from diffdistill.consistency.objective import Noise
from diffdistill.consistency.settings import Continuous
from diffdistill.denoiser import Denoiser
from diffdistill.process import EDM, Flow


def objective(teacher=None, total=10, **settings):
    return ContinuousConsistency(Continuous(**{"difference": 1e-3} | settings), 1e-3, 80.0, total, teacher)


def outputs(spread, x, t):
    """F of N(0, s^2) at x = cos(t) x_t: (cos t - s / sqrt(s^2 cos^2 t + s_d^2 sin^2 t)) x / (s_d sin t)."""
    root = math.sqrt((spread * math.cos(t)) ** 2 + (SPREAD * math.sin(t)) ** 2)
    return (math.cos(t) - spread / root) * x / (SPREAD * math.sin(t))


@pytest.mark.parametrize("spread", [0.5, 1.0, 0.2])
def test_the_output_of_the_consistency_function_is_the_known_one(spread):
    t, x = 0.9, torch.full((1, 1, 1, 1), 1.3, dtype=torch.float64)
    sigma = torch.tensor([SPREAD * math.tan(t)], dtype=torch.float64)
    found = output_of(consistent(spread), x / math.cos(t), sigma, None, SPREAD)
    assert found.item() == pytest.approx(outputs(spread, 1.3, t), abs=1e-12)
    if spread == SPREAD:
        assert found.item() == pytest.approx(-math.tan(t / 2) * 1.3 / SPREAD, abs=1e-12)


def mean_tangent(model, spread, sigma, r, derivative):
    """E[g | x_t] at x_t = 1.3: the posterior's nodes, on data alone."""
    points, _, weight = nodes(6)
    x_t = torch.full_like(points, 1.3)
    level = torch.full((len(points),), sigma, dtype=torch.float64)
    mean, std = spread**2 / (spread**2 + sigma**2) * 1.3, spread * sigma / math.hypot(spread, sigma)
    x0 = mean + std * points
    t = (level / SPREAD).atan()
    cos, sin = t[0].cos(), t[0].sin()

    def F(x, sigma):
        return output_of(model, x, sigma, None, SPREAD)

    dF = derivative(F, x_t, level, x_t - x0)
    dx = cos * SPREAD * (x_t - x0) / sigma - sin * x0  # z = s_d eps
    return (weight * tangent(F(x_t, level), dF, cos * x_t, dx, t, r, SPREAD).flatten()).sum().item()


@pytest.mark.parametrize("spread", [0.5, 1.0, 0.2])
def test_the_mean_tangent_of_the_consistency_function_is_zero(spread):
    model = consistent(spread)
    by_difference = lambda *way: along_by_difference(*way, 1e-3)  # noqa: E731
    for sigma in (0.1, 0.63, 5.0):
        assert mean_tangent(model, spread, sigma, 1.0, along_by_forward_mode) == pytest.approx(0, abs=1e-12)
        assert mean_tangent(model, spread, sigma, 1.0, by_difference) == pytest.approx(0, abs=1e-6)
        assert abs(mean_tangent(teacher_of(spread), spread, sigma, 1.0, by_difference)) > 1e-3


@pytest.mark.parametrize("derivative", ["central", "forward"])
def test_on_a_teachers_trajectories_the_loss_of_the_consistency_function_is_zero(derivative):
    x0, eps, _ = nodes(3)
    of_teacher = objective(teacher_of(SPREAD), derivative=derivative)
    for sigma in (0.05, 0.5, 20.0):
        noise = noise_at(sigma, sigma, eps)
        assert of_teacher.losses(consistent(SPREAD), SPREAD * x0, None, noise, step=10).max() < 1e-9
        assert of_teacher.losses(teacher_of(SPREAD), SPREAD * x0, None, noise, step=10).max() > 1e-3


def test_the_tangent_sets_in_over_the_warm_up():
    form = objective(total=100, tangent_warmup=0.2)
    assert [form.warmed(step) for step in (0, 9, 19, 99)] == [0.05, 0.5, 1, 1]
    assert objective(tangent_warmup=0.0).warmed(0) == 1
    F, dF, x, dx = (torch.full((1, 1, 1, 1), v) for v in (0.3, 0.7, 1.1, -0.4))
    t = torch.tensor([0.6])
    cos, sin = math.cos(0.6), math.sin(0.6)
    first = -(cos**2) * (0.5 * 0.3 + 0.4)
    assert tangent(F, dF, x, dx, t, 0.0, 0.5).item() == pytest.approx(first, abs=1e-6)
    second = -(cos * sin * 1.1 + 0.5 * 0.7)
    assert tangent(F, dF, x, dx, t, 0.25, 0.5).item() == pytest.approx(first + 0.25 * second, abs=1e-6)


def test_the_tangent_has_one_length_over_the_whole_image():
    g = torch.randn(2, 3, 4, 4)
    norms = torch.stack([torch.linalg.vector_norm(one) for one in g])
    assert torch.allclose(normalised(g, 0.1), g / (norms + 0.1).reshape(-1, 1, 1, 1))


class Curve(nn.Module):
    """F(x, sigma) = k(t) x with k a polynomial of t, as a denoiser."""

    process = EDM(SPREAD)

    def __init__(self):
        super().__init__()
        self.k = nn.Parameter(torch.zeros(5, dtype=torch.float64))

    def forward(self, x_t, sigma, cond=None):
        t = (sigma / SPREAD).atan().reshape(-1, 1, 1, 1)
        k = sum(a * t**n for n, a in enumerate(self.k))
        x = t.cos() * x_t
        return t.cos() * x - SPREAD * t.sin() * k * x


@pytest.mark.parametrize("with_teacher", [True, False])
def test_training_leads_to_the_consistency_function(with_teacher):
    """F* = -tan(t / 2) x / s_d; by Adam on fixed nodes, where on data alone only the mean tangent leads there."""
    torch.manual_seed(0)
    form = objective(teacher_of(SPREAD) if with_teacher else None, total=400, tangent_constant=10.0)
    model, (x0, eps, weight) = Curve(), nodes(3)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    levels = torch.tensor([0.05, 0.2, 0.5, 1.2, 4.0], dtype=torch.float64)
    count = len(levels)
    sigma = levels.repeat_interleave(len(eps))
    noise = Noise(sigma * 0, sigma, sigma, eps.repeat(count, 1, 1, 1))
    for step in range(400):
        loss = form.losses(model, SPREAD * x0.repeat(count, 1, 1, 1), None, noise, step)
        optimizer.zero_grad()
        (weight.repeat(count) * loss).sum().backward()
        optimizer.step()
    t = (levels / SPREAD).atan()
    found = sum(a * t**n for n, a in enumerate(model.k.detach()))
    assert torch.allclose(found, -(t / 2).tan() / SPREAD, atol=0.02)


def test_levels_are_lognormal_within_the_bounds():
    form = ContinuousConsistency(Continuous(mean=0.0, std=3.0), 0.01, 20.0, 10)
    torch.manual_seed(0)
    noise = form.draw(torch.zeros(999, 1, 1, 1), step=0)
    assert noise.high.median().item() == pytest.approx(1.0, rel=0.02)
    assert (noise.high.min().item(), noise.high.max().item()) == pytest.approx((0.01, 20.0))
    assert torch.equal(noise.high, noise.low)


def test_the_weight_is_one_over_the_mean_loss_of_the_level():
    form = objective()
    u = torch.tensor([0.1, 0.9])
    noise = Noise(u, u, u, u)
    for _ in range(300):
        form.count(torch.tensor([4.0, 0.25]), noise)
    assert torch.allclose(form.weights(noise), torch.tensor([0.25, 4.0]), rtol=1e-3)
    assert list(form.modules()) == ["mean_loss"]


def test_a_network_without_forward_mode_falls_back_and_says_so(caplog):
    class Opaque(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

    form = objective(teacher_of(SPREAD), derivative="forward")
    model = Linear(lambda sigma: Opaque.apply(sigma) * 0 + consistent(SPREAD).slope(sigma))
    x0, eps, _ = nodes(2)
    with caplog.at_level("WARNING"):
        for _ in range(2):
            losses = form.losses(model, SPREAD * x0, None, noise_at(0.5, 0.5, eps), step=10)
    assert losses.max() < 1e-9
    assert [line for line in caplog.messages if "no forward-mode derivative" in line] == caplog.messages
    assert len(caplog.messages) == 1


def test_forward_mode_passes_through_a_stock_unet():
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    network = UNet2DModel(
        8, in_channels=1, out_channels=1, layers_per_block=1, norm_num_groups=4, attention_head_dim=4,
        block_out_channels=(8, 8), down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip
    for process in (EDM(0.5, time_scale=1.0), Flow(time_scale=10.0)):  # slow sines
        model = Denoiser(network, process)
        x, sigma = torch.randn(2, 1, 8, 8), torch.tensor([0.3, 2.0])
        with torch.no_grad():

            def F(x, sigma, model=model):
                return output_of(model, x, sigma, None, SPREAD)

            exact = along_by_forward_mode(F, x, sigma, torch.ones_like(x))
            near = along_by_difference(F, x, sigma, torch.ones_like(x), 1e-2)
        assert torch.allclose(exact, near, atol=2e-2 * float(exact.abs().max()))


def test_the_exact_derivative_is_taken_without_autocast(caplog):
    """In bfloat16 tangents would not fit the weights that autocast casts, and the difference would be taken."""
    form = ContinuousConsistency(
        Continuous(derivative="forward"), 2e-3, 80.0, 10, exact=lambda: torch.autocast("cpu", enabled=False)
    )
    x0, cond = torch.randn(2, 1, 8, 8), torch.arange(2)
    with torch.autocast("cpu", torch.bfloat16):
        form.losses(tiny_teacher(), x0, cond, form.draw(x0, 0), step=0)
    assert form.derivative == "forward"
    assert not caplog.records


def test_a_device_out_of_memory_says_nothing_about_the_network():
    form = objective(derivative="forward")

    def full(x_t, sigma):
        raise torch.OutOfMemoryError("no room")

    with pytest.raises(torch.OutOfMemoryError):
        form._along(full, torch.ones(1, 1, 1, 1), torch.ones(1), torch.ones(1, 1, 1, 1))
