"""h, r h' and the adversarial loss of every divergence follow from its f; float32 holds to |logit| = 40."""

import math

import pytest
import torch

from diffdistill import divergences
from diffdistill.divergences import Divergence, divergence_names, get_divergence, register_divergence
from diffdistill.errors import ConfigError

NAMES = (
    "reverse_kl", "forward_kl", "jensen_shannon", "softened_reverse_kl", "squared_hellinger", "jeffreys", "pearson",
    "neyman", "alpha:-0.7", "alpha:0", "alpha:0.3", "alpha:1", "alpha:2",
)  # fmt: skip
F = {
    "reverse_kl": lambda r: -r.log(),
    "forward_kl": lambda r: r * r.log(),
    "jensen_shannon": lambda r: r * r.log() - (r + 1) * ((r + 1) / 2).log(),
    "softened_reverse_kl": lambda r: (r + 1) * (0.5 + 0.5 / r).log(),
    "squared_hellinger": lambda r: (1 - r.sqrt()).square(),
    "jeffreys": lambda r: (r - 1) * r.log(),
    "pearson": lambda r: (r - 1).square(),
    "neyman": lambda r: (1 - r).square() / r,
}
# h and r h' as Python floats of any size, for the accuracy of float32.
EXACT = {
    "reverse_kl": (lambda x: 1.0, lambda x: 0.0),
    "forward_kl": (math.exp, math.exp),
    "jensen_shannon": (lambda x: 1 / (1 + math.exp(-x)), lambda x: 1 / (2 + math.exp(-x) + math.exp(x))),
    "softened_reverse_kl": (lambda x: 1 / (1 + math.exp(x)), lambda x: -1 / (2 + math.exp(-x) + math.exp(x))),
    "squared_hellinger": (lambda x: math.exp(x / 2) / 2, lambda x: math.exp(x / 2) / 4),
    "jeffreys": (lambda x: 1 + math.exp(x), math.exp),
    "pearson": (lambda x: 2 * math.exp(2 * x), lambda x: 4 * math.exp(2 * x)),
    "neyman": (lambda x: 2 * math.exp(-x), lambda x: -2 * math.exp(-x)),
    "alpha:-0.7": (lambda x: math.exp(-0.7 * x), lambda x: -0.7 * math.exp(-0.7 * x)),
    "alpha:0": (lambda x: 1.0, lambda x: 0.0),
    "alpha:0.3": (lambda x: math.exp(0.3 * x), lambda x: 0.3 * math.exp(0.3 * x)),
    "alpha:1": (math.exp, math.exp),
    "alpha:2": (lambda x: math.exp(2 * x), lambda x: 2 * math.exp(2 * x)),
}
LOGITS = torch.linspace(-40, 40, 161)


def f_of(name):
    if name in F:
        return F[name]
    a = float(name.removeprefix("alpha:"))
    if a == 0:
        return F["reverse_kl"]
    if a == 1:
        return F["forward_kl"]
    return lambda r: (r**a - a * r - (1 - a)) / (a * (a - 1))


@pytest.mark.parametrize("name", NAMES)
def test_weight_is_the_second_derivative_of_f_times_r_squared(name):
    logit = torch.linspace(-5, 5, 41, dtype=torch.float64)
    r = logit.exp().requires_grad_()
    value = f_of(name)(r)
    assert torch.allclose(f_of(name)(torch.ones((), dtype=torch.float64)), torch.zeros((), dtype=torch.float64))
    (first,) = torch.autograd.grad(value.sum(), r, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), r)
    torch.testing.assert_close(get_divergence(name).weight(logit), second * r.detach() ** 2, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_slope_is_the_derivative_of_the_weight_in_the_logit(name):
    logit = torch.linspace(-8, 8, 33, dtype=torch.float64, requires_grad=True)
    divergence = get_divergence(name)
    weight = divergence.weight(logit)
    slope = torch.autograd.grad(weight.sum(), logit)[0] if weight.requires_grad else torch.zeros_like(logit)
    torch.testing.assert_close(divergence.weight_slope(logit.detach()), slope, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_adversarial_loss_falls_with_the_weight_as_slope(name, dtype):
    logit = LOGITS.to(dtype).requires_grad_()
    divergence = get_divergence(name)
    (gradient,) = torch.autograd.grad(divergence.adversarial(logit).sum(), logit)
    torch.testing.assert_close(gradient, -divergence.weight(logit.detach()), rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_float32_is_accurate_to_forty(name):
    divergence = get_divergence(name)
    for got, exact in zip((divergence.weight(LOGITS), divergence.weight_slope(LOGITS)), EXACT[name], strict=True):
        assert got.dtype == torch.float32
        expected = torch.tensor([exact(x) for x in LOGITS.tolist()], dtype=torch.float64)
        torch.testing.assert_close(got.double(), expected, rtol=2e-5, atol=0)
    logit = LOGITS.clone().requires_grad_()
    adversarial = divergence.adversarial(logit)
    assert adversarial.isfinite().all()
    weight = divergence.weight(logit)
    if weight.requires_grad:
        assert torch.autograd.grad(weight.sum(), logit)[0].isfinite().all()


@pytest.mark.parametrize(
    ("name", "at_zero", "at_infinity"),
    [("reverse_kl", 1, 1), ("jensen_shannon", 0, 1), ("softened_reverse_kl", 1, 0), ("jeffreys", 1, math.inf)],
)
def test_limits_beyond_all_floats(name, at_zero, at_infinity):
    weight = get_divergence(name).weight(torch.tensor([-500.0, 500.0]))
    assert weight.tolist() == [at_zero, at_infinity]


def test_the_softened_reverse_kl_is_the_non_saturating_loss():
    logit = torch.linspace(-30, 30, 61)
    adversarial = get_divergence("softened_reverse_kl").adversarial(logit)
    torch.testing.assert_close(adversarial, torch.nn.functional.softplus(-logit))


def test_members_of_the_alpha_family_are_the_named_divergences():
    logit = torch.linspace(-5, 5, 11)
    aliases = {"alpha:0": ("reverse_kl", 1), "alpha:1": ("forward_kl", 1), "alpha:0.5": ("squared_hellinger", 2)}
    aliases |= {"alpha:2": ("pearson", 0.5), "alpha:-1": ("neyman", 0.5)}
    for alias, (name, factor) in aliases.items():
        torch.testing.assert_close(get_divergence(alias).weight(logit), factor * get_divergence(name).weight(logit))


def test_only_constant_weights_need_no_ratio():
    assert [
        name for name in (*divergence_names(), "alpha:0", "alpha:0.2") if not get_divergence(name).needs_ratio
    ] == [
        "reverse_kl",
        "alpha:0",
    ]


def test_the_eight_names():
    assert set(divergence_names()) == set(F)
    assert all(get_divergence(name).name == name for name in F)


def test_an_unknown_name_gets_the_nearest_one():
    with pytest.raises(
        ConfigError,
        match=r"'jensen_shanon' is not known; did you mean 'jensen_shannon'\? allowed are reverse_kl, .*alpha:A",
    ):
        get_divergence("jensen_shanon")
    with pytest.raises(ConfigError, match="is not known; allowed are"):
        get_divergence("wasserstein")


@pytest.mark.parametrize("name", ["alpha:", "alpha:x", "alpha:nan", "alpha:inf"])
def test_alpha_needs_a_number(name):
    with pytest.raises(ConfigError, match=r"is not a number; write for example alpha:0\.5"):
        get_divergence(name)


def test_dashes_are_underscores():
    assert get_divergence("forward-kl") is get_divergence("forward_kl")


def test_a_new_divergence_is_a_table_entry(monkeypatch):
    monkeypatch.setattr(divergences, "_DIVERGENCES", dict(divergences._DIVERGENCES))
    cube_root = Divergence(
        name="cube_root",
        weight=lambda log_r: (log_r / 3).exp(),
        weight_slope=lambda log_r: (log_r / 3).exp() / 3,
        adversarial=lambda log_r: -3 * (log_r / 3).exp(),
    )
    assert get_divergence(cube_root) is cube_root
    register_divergence(cube_root)
    assert get_divergence("cube_root") is cube_root
    with pytest.raises(ConfigError, match="exists already"):
        register_divergence(cube_root)
