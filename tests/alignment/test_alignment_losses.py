"""MaPO, Diffusion-DPO and ORPO against closed forms, float64, and their gradients' signs."""

import math

import pytest
import torch

from diffdistill.alignment import bernoulli_link, diffusion_dpo_loss, diffusion_orpo_loss, mapo_loss
from diffdistill.errors import ConfigError

# phi(x) = x / (e^x - 1) to ten digits.
LINK = {
    0.01: 0.9950083333, 0.05: 0.9752083247, 0.1: 0.9508331945, 0.25: 0.8802029160, 0.5: 0.7707470413,
    1.0: 0.5819767069, 2.0: 0.3130352855, 5.0: 0.0339182745,
}  # fmt: skip
SLOPE = {0.05: -0.49166736, 0.1: -0.48333889, 1.0: -0.33869689, 1e-12: -0.5}
# l_w, l_l, margin, log sigmoid(1000 m), loss, dL/dl_w, dL/dl_l of the released form.
RELEASED = [
    (0.10, 0.10, 0.0, -0.69314718, 0.16931472, 13.291684, -12.291684),
    (0.10, 0.12, 0.00490834, -0.00735758, 0.10073576, 1.180210, -0.179600),
    (0.12, 0.10, -0.00490834, -4.91570024, 0.61157002, 25.320460, -24.403158),
    (0.10, 0.101, 0.00024581, -0.57777481, 0.15777748, 11.788518, -10.786690),
    (0.05, 0.30, 0.06067779, 0.0, 0.05, 1.0, 0.0),
]
PAPER = [("scale", 8, 0.18191944), ("scale", 64, 0.10674465), ("scale", 1024, 0.10000005)]
PAPER += [("power", 8, 0.18341928), ("power", 64, 0.11068265), ("power", 1024, 0.10067690)]


def leaf(*values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize(("x", "phi"), LINK.items())
def test_the_link_has_its_closed_form(x, phi):
    assert bernoulli_link(leaf(x)).item() == pytest.approx(phi, rel=1e-9)


@pytest.mark.parametrize(("x", "slope"), SLOPE.items())
def test_the_slope_has_its_closed_form(x, slope):
    value = leaf(x)
    bernoulli_link(value).backward()
    assert value.grad.item() == pytest.approx(slope, rel=2e-8)


def exact_link(x):
    """phi and phi' in 50 digits."""
    from decimal import Decimal, localcontext

    with localcontext() as context:
        context.prec = 60
        x = Decimal(x)
        e = x.exp()
        return float(x / (e - 1)), float((e - 1 - x * e) / (e - 1) ** 2)


GRID = [1e-8, 1e-6, 1e-4, 1e-3, 0.0123, 0.0999, 0.1, 0.1001, 0.3, 1.0, 5.0, 20.0, 60.0, 87.0, 89.0, 90.0]


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 3e-6)])
def test_value_and_gradient_from_1e_8_to_90(dtype, rtol):
    x = torch.tensor([sign * g for g in GRID for sign in (1, -1)], dtype=dtype, requires_grad=True)
    phi = bernoulli_link(x)
    phi.sum().backward()
    exact = [exact_link(value) for value in x.tolist()]
    value, slope = (torch.tensor(column, dtype=dtype) for column in zip(*exact, strict=True))
    # Beyond 87 float32 holds e^-x as a denormal number only.
    torch.testing.assert_close(phi, value, rtol=rtol, atol=1e-36)
    torch.testing.assert_close(x.grad, slope, rtol=rtol, atol=1e-36)


def test_zero_and_the_largest_number():
    x = leaf(0.0, 3e38, dtype=torch.float32)
    phi = bernoulli_link(x)
    phi.sum().backward()
    assert phi.tolist() == [1.0, 0.0]
    assert x.grad.tolist() == [-0.5, 0.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(dtype):
    x = torch.tensor([1e-3, 0.05, 2.0], dtype=dtype)
    assert bernoulli_link(x).dtype == torch.float32
    torch.testing.assert_close(bernoulli_link(x), bernoulli_link(x.float()), rtol=0, atol=0)
    assert bernoulli_link(x).max() < 1
    assert mapo_loss(x, x + 0.01).loss.dtype == torch.float32


@pytest.mark.parametrize(("l_w", "l_l", "margin", "logsigmoid", "loss", "grad_w", "grad_l"), RELEASED)
def test_the_released_form(l_w, l_l, margin, logsigmoid, loss, grad_w, grad_l):
    w, o = leaf(l_w), leaf(l_l)
    out = mapo_loss(w, o)
    out.loss.backward()
    assert out.margin.item() == pytest.approx(margin, abs=5e-9)
    assert out.loss.item() == pytest.approx(l_w - 0.1 * logsigmoid, rel=1e-6)
    assert out.loss.item() == pytest.approx(loss, rel=1e-6)
    assert w.grad.item() == pytest.approx(grad_w, rel=1e-6)
    assert o.grad.item() == pytest.approx(grad_l, rel=1e-5, abs=1e-9)
    assert out.reward_w.item() == pytest.approx(bernoulli_link(leaf(0.5 * l_w)).item())


@pytest.mark.parametrize(("mode", "beta", "loss"), PAPER)
def test_the_papers_form(mode, beta, loss):
    assert mapo_loss(leaf(0.1), leaf(0.12), link_mode=mode, beta=beta).loss.item() == pytest.approx(loss, rel=1e-6)


def test_the_gradient_at_a_tie_is_the_papers_identity():
    w = leaf(0.1)
    mapo_loss(w, leaf(0.1)).loss.backward()
    slope = -exact_link(0.05)[1]
    assert w.grad.item() - 1 == pytest.approx(0.1 * 1000 * 0.5 * 0.5 * slope, rel=1e-12)


def test_a_mean_over_pairs_and_its_weights():
    w, o = leaf(0.1, 0.1, 0.12), leaf(0.1, 0.12, 0.1)
    losses = [row[4] for row in RELEASED[:3]]
    assert mapo_loss(w, o).loss.item() == pytest.approx(sum(losses) / 3, rel=1e-6)
    weighted = mapo_loss(w, o, weights=torch.tensor([1.0, 3.0, 0.0])).loss.item()
    assert weighted == pytest.approx((losses[0] + 3 * losses[1]) / 4, rel=1e-6)


def test_a_tie_counts_half_in_the_accuracy():
    assert mapo_loss(leaf(0.1, 0.1, 0.2), leaf(0.1, 0.2, 0.1)).acc.item() == 0.5
    assert mapo_loss(leaf(0.1, 0.1), leaf(0.1, 0.2)).acc.item() == 0.75


def test_a_tied_label_fits_both_and_draws_the_margin_to_zero():
    w, o = leaf(0.1), leaf(0.12)
    out = mapo_loss(w, o, label_smoothing=torch.tensor([0.5]))
    assert out.loss.item() == pytest.approx(0.5 * (0.10073576 + 0.61157002), rel=1e-6)
    out.loss.backward()
    assert w.grad.item() < 0 < o.grad.item()  # the two errors approach each other
    w, o = leaf(0.1), leaf(0.1)
    mapo_loss(w, o, label_smoothing=0.5).loss.backward()
    assert w.grad.item() == pytest.approx(0.5)
    assert o.grad.item() == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"link_mode": "power"}, "needs beta"),
        ({"link_mode": "log"}, "use scale or power"),
        ({"beta": 8.0, "margin_scale": 2.0}, "give beta, or those two"),
    ],
)
def test_settings_that_contradict(settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        mapo_loss(leaf(0.1), leaf(0.1), **settings)


def test_diffusion_dpo_has_its_closed_form():
    r = leaf(0.11)
    out = diffusion_dpo_loss(leaf(0.10), leaf(0.12), r, r)
    assert 5000 * out.margin.item() == pytest.approx(50.0, rel=1e-9)
    assert out.loss.item() == pytest.approx(math.exp(-50), rel=1e-6)
    assert diffusion_dpo_loss(r, r, r, r).loss.item() == pytest.approx(math.log(2))
    assert diffusion_dpo_loss(leaf(0.1098), leaf(0.11), r, r, variant="hinge").loss.item() == pytest.approx(0.5)
    assert diffusion_dpo_loss(leaf(0.1098), leaf(0.11), r, r, variant="ipo").loss.item() == pytest.approx(0, abs=1e-20)


def test_diffusion_dpo_gives_the_reference_no_gradient_and_knows_its_variants():
    r = leaf(0.11)
    w = leaf(0.11)
    diffusion_dpo_loss(w, leaf(0.11), r, r).loss.backward()
    assert r.grad is None
    assert w.grad.item() == pytest.approx(0.5 * 0.5 * 5000)
    with pytest.raises(ConfigError, match="use sigmoid, hinge or ipo"):
        diffusion_dpo_loss(w, w, r, r, variant="kto")


LOSSES = {
    "mapo": mapo_loss,
    "mapo paper, scale": lambda w, o: mapo_loss(w, o, beta=64.0),
    "mapo paper, power": lambda w, o: mapo_loss(w, o, beta=64.0, link_mode="power"),
    "dpo sigmoid": lambda w, o: diffusion_dpo_loss(w, o, w, o),
    "dpo hinge": lambda w, o: diffusion_dpo_loss(w, o, w, o, variant="hinge"),
    "dpo ipo": lambda w, o: diffusion_dpo_loss(w, o, w, o, variant="ipo"),
    "orpo": diffusion_orpo_loss,
}


@pytest.mark.parametrize("name", LOSSES)
def test_one_step_of_sgd_lowers_the_wanted_loss_against_the_other(name):
    """A linear denoiser: the preference term lowers l_w - l_l; with the sign ORPO has in common scripts it rises."""
    generator = torch.Generator().manual_seed(0)
    x, target = (torch.randn(2, 2, 6, dtype=torch.float64, generator=generator) for _ in range(2))
    weight = torch.full((6,), 0.5, dtype=torch.float64, requires_grad=True)

    def both():
        return ((x * weight - target) ** 2).mean(-1).unbind()

    w, o = both()
    before = (w - o).mean().item()
    preference_only = LOSSES[name](w, o).loss - (w.mean() if "dpo" not in name else 0)
    (gradient,) = torch.autograd.grad(preference_only, weight)
    with torch.no_grad():
        weight -= 1e-6 * gradient / gradient.norm()
    w, o = both()
    assert (w - o).mean().item() < before
