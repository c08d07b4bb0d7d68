"""The gradient forms as tensor arithmetic: values, routing, invariances, refusals (means: test_verification)."""

import math
import warnings
from functools import partial

import pytest
import torch

from diffdistill.divergences import get_divergence
from diffdistill.errors import ConfigError
from diffdistill.losses import (
    alpha_bounds,
    fisher_gradient,
    fisher_loss,
    score_gap_gradient,
)
from diffdistill.matching.level_weights import dmd_weight, pseudo_huber_weight

SHAPE = (6, 3, 4, 4)


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def networks(x):
    """Toy denoisers and a logit of x, attached to it."""
    return 0.6 * x + 0.1 * x.sin(), 0.5 * x - 0.05 * x**2, (x.flatten(1).sum(1) * 0.1).tanh()


@pytest.fixture
def inputs():
    x0 = draw(*SHAPE).requires_grad_()
    return x0, *networks(x0)


# ---- score gap


def test_score_gap_is_the_weighted_difference(inputs):
    x0, teacher, critic, logit = inputs
    w = torch.rand(6, dtype=torch.float64)
    got = score_gap_gradient(x0, teacher, critic, logit=logit, divergence="forward_kl", level_weight=w)
    expected = (w * logit.exp()).reshape(-1, 1, 1, 1) * (critic - teacher)
    torch.testing.assert_close(got, expected.detach())
    assert not got.requires_grad


@pytest.mark.parametrize("shape", [(6,), (6, 1), (6, 1, 1, 1)])
def test_level_weight_and_logit_may_carry_ones(inputs, shape):
    x0, teacher, critic, logit = inputs
    w = torch.rand(6, dtype=torch.float64)
    flat = score_gap_gradient(x0, teacher, critic, logit=logit, divergence="jeffreys", level_weight=w)
    other = score_gap_gradient(
        x0, teacher, critic, logit=logit.reshape(shape), divergence="jeffreys", level_weight=w.reshape(shape)
    )
    assert torch.equal(flat, other)


def test_ways_to_say_the_same_weight(inputs):
    x0, teacher, critic, _ = inputs
    plain = score_gap_gradient(x0, teacher, critic)
    assert torch.equal(plain, (critic - teacher).detach())
    for same in (None, "none", 1, 1.0, torch.tensor(1.0), torch.ones(6), lambda x, t, c: torch.ones(6, 1, 1, 1)):
        assert torch.equal(score_gap_gradient(x0, teacher, critic, level_weight=same), plain)
    named = score_gap_gradient(x0, teacher, critic, level_weight="dmd")
    assert torch.equal(named, score_gap_gradient(x0, teacher, critic, level_weight=dmd_weight(x0, teacher)))
    assert torch.equal(score_gap_gradient(x0, teacher, critic, divergence=get_divergence("reverse_kl")), plain)


def test_dmds_surrogate_loss_has_this_gradient(inputs):
    x0, teacher, critic, _ = inputs
    leaf = x0.detach().requires_grad_()
    target = (leaf - dmd_weight(leaf, teacher) * (critic - teacher)).detach()
    (0.5 * (leaf - target).square().sum()).backward()
    torch.testing.assert_close(score_gap_gradient(x0, teacher, critic, level_weight="dmd"), leaf.grad)


def test_normalize_makes_the_mean_weight_one(inputs):
    x0, teacher, critic, logit = inputs
    got = score_gap_gradient(x0, teacher, critic, logit=logit, divergence="pearson", normalize=True)
    h = 2 * (2 * logit).exp()
    torch.testing.assert_close(got, ((h / h.mean()).reshape(-1, 1, 1, 1) * (critic - teacher)).detach())
    # A constant factor of the divergence is then irrelevant, however large the logits.
    shifted = score_gap_gradient(x0, teacher, critic, logit=logit - 40, divergence="pearson", normalize=True)
    torch.testing.assert_close(got, shifted)


def test_duplicating_or_permuting_the_batch_changes_nothing(inputs):
    x0, teacher, critic, logit = (t.detach() for t in inputs)
    settings = {"divergence": "forward_kl", "level_weight": "dmd", "normalize": True}
    one = score_gap_gradient(x0, teacher, critic, logit=logit, **settings)
    two = score_gap_gradient(*(torch.cat([t, t]) for t in (x0, teacher, critic)), logit=logit.repeat(2), **settings)
    torch.testing.assert_close(two, torch.cat([one, one]))
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    mixed = score_gap_gradient(x0[order], teacher[order], critic[order], logit=logit[order], **settings)
    torch.testing.assert_close(mixed, one[order])


def test_half_precision_inputs_are_subtracted_in_float32():
    x0, teacher, critic = (draw(*SHAPE, seed=s, dtype=torch.float32).bfloat16() for s in range(3))
    got = score_gap_gradient(x0, teacher, critic, level_weight="dmd")
    exact = score_gap_gradient(x0.double(), teacher.double(), critic.double(), level_weight="dmd")
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.double(), exact, rtol=2**-8, atol=1e-6)


# ---- Fisher form


@pytest.mark.parametrize(
    "divergence", ["reverse_kl", "forward_kl", "jensen_shannon", "softened_reverse_kl", "alpha:0.4"]
)
@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.2])
def test_fisher_gradient_differentiates_everything(inputs, divergence, alpha):
    x0, *_ = inputs
    w = torch.rand(6, dtype=torch.float64)
    got = fisher_gradient(
        x0, inputs[1], inputs[2], logit=inputs[3], divergence=divergence, level_weight=w, alpha=alpha
    )
    d, h = get_divergence(divergence), 1e-6

    def loss(x):
        teacher, critic, logit = networks(x)
        gap = teacher - critic
        weight, slope = d.weight(logit), d.weight_slope(logit)
        dot = (gap * (critic - x)).flatten(1).sum(1)
        return float((w * (weight * dot + (1 - alpha) * (weight - slope) * gap.square().flatten(1).sum(1))).sum())

    x = x0.detach()
    for index in ((0, 0, 0, 0), (2, 1, 3, 2), (5, 2, 1, 1)):
        step = torch.zeros_like(x)
        step[index] = h
        assert got[index].item() == pytest.approx((loss(x + step) - loss(x - step)) / (2 * h), rel=1e-5, abs=1e-8)


def test_the_gradient_is_that_of_the_summed_losses(inputs):
    x0, teacher, critic, logit = inputs
    loss = fisher_loss(x0, teacher, critic, logit=logit, divergence="jeffreys", level_weight="dmd")
    assert loss.shape == (6,)
    (expected,) = torch.autograd.grad(loss.sum(), x0, retain_graph=True)
    got = fisher_gradient(x0, teacher, critic, logit=logit, divergence="jeffreys", level_weight="dmd")
    torch.testing.assert_close(got, expected)
    assert x0.grad is None


def test_alpha_one_with_reverse_kl_is_sids_loss(inputs):
    x0, teacher, critic, _ = inputs
    for alpha in (0.5, 1.0, 1.2):
        published = ((teacher - critic) * ((teacher - x0) - alpha * (teacher - critic))).flatten(1).sum(1)
        torch.testing.assert_close(fisher_loss(x0, teacher, critic, alpha=alpha), published)


def test_an_attached_weight_is_differentiated_a_constant_one_is_not(inputs):
    x0, teacher, critic, _ = inputs
    keep = {"alpha": 1.0, "retain_graph": True}
    attached = fisher_gradient(x0, teacher, critic, level_weight=partial(pseudo_huber_weight, c=0.3), **keep)
    constant = pseudo_huber_weight(x0, teacher, critic, c=0.3).detach()
    detached = fisher_gradient(x0, teacher, critic, level_weight=constant, **keep)
    assert (attached - detached).abs().max() > 0.01
    gap = critic - teacher
    norm = (gap.square().flatten(1).sum(1) + 0.09).sqrt()
    loss = -((gap * (critic - x0)).flatten(1).sum(1) / norm).sum()
    torch.testing.assert_close(attached, torch.autograd.grad(loss, x0)[0])


def test_normalizing_the_fisher_form_rescales_it(inputs):
    x0, teacher, critic, logit = inputs
    both = [
        fisher_gradient(x0, teacher, critic, logit=logit, divergence="forward_kl", normalize=n, retain_graph=True)
        for n in (False, True)
    ]
    torch.testing.assert_close(both[0] / logit.exp().mean().detach(), both[1])


def test_detaching_the_ratio_is_another_gradient(inputs):
    x0, teacher, critic, logit = inputs
    kwargs = {"divergence": "forward_kl", "retain_graph": True}
    attached = fisher_gradient(x0, teacher, critic, logit=logit, **kwargs)
    ablation = fisher_gradient(x0, teacher, critic, logit=logit, detach_ratio=True, **kwargs)
    assert (attached - ablation).abs().max() > 0.01
    constant = fisher_gradient(x0, teacher, critic, logit=logit.detach(), detach_ratio=True, **kwargs)
    assert torch.equal(ablation, constant)


def test_no_parameter_receives_gradient(inputs):
    x0 = inputs[0]
    teacher, critic, head = (torch.nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in (0.6, 0.4, 0.1))
    logit = (head * x0).flatten(1).sum(1)
    settings = {"logit": logit, "divergence": "jensen_shannon"}
    score_gap_gradient(x0, teacher * x0, critic * x0, **settings)
    fisher_gradient(x0, teacher * x0, critic * x0, **settings)
    assert teacher.grad is None
    assert critic.grad is None
    assert head.grad is None
    assert x0.grad is None


@pytest.mark.parametrize("which", ["x0", "teacher_x0", "critic_x0"])
def test_fisher_refuses_inputs_without_a_graph(inputs, which):
    tensors = dict(zip(("x0", "teacher_x0", "critic_x0"), inputs, strict=False))
    tensors[which] = tensors[which].detach()
    with pytest.raises(ValueError, match=f"{which} carries no gradient"):
        fisher_gradient(**tensors)


def test_fisher_refuses_a_detached_ratio_unless_asked(inputs):
    x0, teacher, critic, logit = inputs
    with pytest.raises(ValueError, match="logit is detached from x0"):
        fisher_gradient(x0, teacher, critic, logit=logit.detach(), divergence="forward_kl")


# ---- refusals


@pytest.mark.parametrize("gradient", [score_gap_gradient, fisher_gradient])
def test_a_divergence_with_a_ratio_needs_a_logit(inputs, gradient):
    with pytest.raises(ConfigError, match="jensen_shannon weighs samples by the density ratio and got no logit"):
        gradient(*inputs[:3], divergence="jensen_shannon")


@pytest.mark.parametrize("gradient", [score_gap_gradient, fisher_gradient])
@pytest.mark.parametrize("weight", [-1.0, math.nan, torch.tensor([1.0, 1, 1, 1, 1, -0.5]), torch.tensor(-2.0)])
def test_negative_weights_are_refused(inputs, gradient, weight):
    with pytest.raises(ConfigError, match="must be a number >= 0"):
        gradient(*inputs[:3], level_weight=weight)


def test_an_unknown_weight_is_refused(inputs):
    with pytest.raises(ConfigError, match="level_weight 'snr' is not known; allowed are none, dmd, pseudo_huber"):
        score_gap_gradient(*inputs[:3], level_weight="snr")


@pytest.mark.parametrize("shape", [(5,), (6, 3), (6, 1, 4, 4), (1,)])
def test_a_logit_of_the_wrong_shape_does_not_broadcast(inputs, shape):
    with pytest.raises(ValueError, match=r"logit must have one value a sample, shape \(6,\)"):
        score_gap_gradient(*inputs[:3], logit=torch.zeros(shape), divergence="forward_kl")


# ---- stability of alpha


def test_bounds_of_alpha():
    assert alpha_bounds(0.5) == (0.0, math.inf)
    assert alpha_bounds(1.0) == (0.0, math.inf)
    assert alpha_bounds(1.2) == pytest.approx((0.0, 3.5))
    assert alpha_bounds(0.25) == pytest.approx((1 / 3, math.inf))
    assert alpha_bounds(0.0) == (0.5, math.inf)


@pytest.mark.parametrize(
    ("alpha", "sentence"),
    [(1.5, "broader than 2 times"), (3.0, "broader than 1.25 times"), (-0.5, "narrower than 0.667 times")],
)
def test_an_unstable_alpha_warns_with_its_bound(inputs, alpha, sentence):
    with pytest.warns(UserWarning, match=sentence):
        fisher_gradient(*inputs[:3], alpha=alpha)


@pytest.mark.parametrize("alpha", [0.5, 0.75, 1.0, 1.2])
def test_published_values_of_alpha_do_not_warn(inputs, alpha):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fisher_gradient(*inputs[:3], alpha=alpha)
