"""Dr. DPO's mean and f-DPO's rewards against closed forms; a step of aligning with them against the whole batch's."""

import math

import pytest
import torch

from diffdistill.alignment import diffusion_dpo_loss, robust, robust_mean
from diffdistill.alignment.baselines import check_preference, implicit_reward
from diffdistill.config.align import DiffusionDPO
from diffdistill.divergences import get_divergence
from diffdistill.errors import ConfigError

LOSSES = torch.tensor([0.2, 0.7, 3.0], dtype=torch.float64)
# g(u) of the penalty E_ref[g(p / p_ref)] that each divergence of the table is, f(r) E_p with r = 1 / u.
PENALTIES = {
    "reverse_kl": lambda u: u * u.log(),
    "forward_kl": lambda u: -u.log(),
    "jensen_shannon": lambda u: u * (u.log() - (u + 1).log()) - (1 + u).log(),
    "squared_hellinger": lambda u: (1 - u.sqrt()) ** 2,
    "jeffreys": lambda u: (u - 1) * u.log(),
    "pearson": lambda u: (1 - u) ** 2 / u,
    "alpha:0.5": lambda u: -4 * u.sqrt(),
}
U = torch.tensor([0.1, 0.5, 1.0, 3.0, 20.0], dtype=torch.float64)


@pytest.mark.parametrize(("beta", "loss"), [(0.1, 0.30919), (1.0, 0.78738), (10.0, 1.22766), (1e6, 1.3)])
def test_the_robust_mean_has_its_closed_form(beta, loss):
    assert robust_mean(LOSSES, beta).loss.item() == pytest.approx(loss, abs=5e-6)


def test_its_weights_are_its_gradient_and_do_not_overflow():
    found = robust_mean(LOSSES, 1.0)
    assert found.weights.tolist() == pytest.approx([0.5998, 0.3638, 0.0365], abs=5e-5)
    leaf = LOSSES.clone().requires_grad_()
    (-0.3 * (-leaf / 0.3).exp().mean().log()).backward()
    torch.testing.assert_close(robust_mean(LOSSES, 0.3).weights, leaf.grad)
    far = robust_mean(1e4 + 1e3 * LOSSES.float(), 0.1)
    assert far.loss.item() == pytest.approx(10200 + 0.1 * math.log(3), abs=2e-3)
    assert far.weights.tolist() == pytest.approx([1, 0, 0])


def test_it_is_the_mean_over_all_processes(monkeypatch):
    monkeypatch.setattr(robust.processes, "gather", lambda mine, count: LOSSES if count == 3 else mine)
    found = robust_mean(LOSSES[:2], 1.0, count=3)
    assert found.loss.item() == pytest.approx(0.78738, abs=5e-6)
    assert found.weights.tolist() == pytest.approx([0.5998, 0.3638], abs=5e-5)


@pytest.mark.parametrize(("name", "penalty"), PENALTIES.items())
def test_the_reward_of_a_divergence_is_the_slope_of_its_penalty(name, penalty):
    u = U.clone().requires_grad_()
    (slope,) = torch.autograd.grad(penalty(u).sum(), u)
    reward = implicit_reward(U.log(), name)
    torch.testing.assert_close(reward - reward[2], slope - slope[2])  # only differences count
    check_preference(name)


def test_the_best_policy_of_three_answers_is_that_of_its_divergence():
    """max E_p[R] - b D_g(p, ref) is where R - b g'(u) is one number: f-DPO's loss has its minimum there."""
    ref, reward, b = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.0, 0.4, 1.0]).double(), 0.7
    for name in ("reverse_kl", "forward_kl", "jensen_shannon", "alpha:0.5"):
        logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([logits], max_iter=100, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

        def loss(name=name, logits=logits, optimizer=optimizer):
            optimizer.zero_grad()
            log_u = logits.log_softmax(0) - ref.log()
            total = 0.0
            for i, j in ((0, 1), (0, 2), (1, 2)):  # labels of Bradley-Terry, both orders at their odds
                odds = torch.sigmoid(reward[i] - reward[j])
                # log u = (ref - loss) / 2 with log_ratio_scale 1; beta = b
                pair = diffusion_dpo_loss(
                    -2 * log_u[i : i + 1], -2 * log_u[j : j + 1], log_u[:1] * 0, log_u[:1] * 0, beta=b,
                    divergence=name, log_ratio_scale=1.0, label_smoothing=1 - odds,
                )  # fmt: skip
                total = total + pair.loss
            total.backward()
            return total

        optimizer.step(loss)
        u = logits.detach().softmax(0) / ref
        left = reward - b * implicit_reward(u.log(), name)
        assert float(left.max() - left.min()) < 1e-4, name


def test_near_the_reference_every_divergence_is_dpo_times_its_h_of_one():
    w, other, ref = (torch.tensor([v], dtype=torch.float64) for v in (0.30, 0.31, 0.305))
    plain = diffusion_dpo_loss(w, other, ref, ref, beta=50.0)
    for name in PENALTIES:
        found = diffusion_dpo_loss(w, other, ref, ref, beta=50.0, divergence=name, log_ratio_scale=1e-2)
        h = get_divergence(name).weight(torch.zeros(1, dtype=torch.float64))
        torch.testing.assert_close(found.margin, h * plain.margin, rtol=1e-3, atol=0)
    kept = diffusion_dpo_loss(w, other, ref, ref, beta=50.0, divergence="forward_kl")
    ours = [
        -(-50 * (ref - loss) / 2).exp() for loss in (w, other)
    ]  # -1 / u, and the scale is beta where none is given
    torch.testing.assert_close(50 * kept.margin, ours[0] - ours[1])


def test_divergences_that_let_images_go_are_refused():
    for name in ("neyman", "softened_reverse_kl", "alpha:-0.5"):
        with pytest.raises(ConfigError, match="does not keep an aligned model from losing images"):
            check_preference(name)
        with pytest.raises(ValueError, match=r"method\.divergence '.*' does not keep"):
            DiffusionDPO(name="diffusion_dpo", divergence=name)
    with pytest.raises(ValueError, match=r"method\.divergence 'kl' is not known"):
        DiffusionDPO(name="diffusion_dpo", divergence="kl")
    with pytest.raises(ValueError, match="log_ratio_scale changes nothing with divergence=reverse_kl"):
        DiffusionDPO(name="diffusion_dpo", log_ratio_scale=2.0)
