"""`diffdistill verify`: every group holds, the table is honest, and a broken loss is found."""

import json
import math
from argparse import Namespace
from dataclasses import replace

import exact_expansion
import exact_guidance
import exact_optima
import exact_processes
import exact_ring
import exact_trainings
import pytest
import torch
from exact_optima import level_mean
from exact_ring import Points, coverage, ring

from diffdistill import divergences, losses
from diffdistill.divergences import Divergence
from diffdistill.matching import level_weights
from diffdistill.matching import step as matching
from diffdistill.matching.discriminators import AdversarialTerm
from diffdistill.matching.step import DistributionMatching
from diffdistill.methods import METHODS
from diffdistill.methods.base import Method
from diffdistill.parts.verification import checks_losses, checks_step, command
from diffdistill.parts.verification.analytic import TEACHER_1, F, Grid, Mixture, gaussian, hermite, nodes_at
from diffdistill.parts.verification.check import Check, table_line
from diffdistill.process import per_sample
from diffdistill.rewards.term import RewardTerm


def failures(checks):
    return [table_line(check) for check in checks if not check.ok]


@pytest.mark.parametrize(
    "group",
    [
        *command.GROUPS.values(),
        exact_expansion.checks,
        exact_guidance.checks,
        exact_processes.checks,
        exact_optima.one_level,
        exact_optima.moments,
    ],
    ids=lambda group: f"{group.__module__.rpartition('.')[2]}.{group.__name__}",
)
def test_every_check_holds(group):
    assert failures(group()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "group", [exact_optima.methods, exact_optima.thorough, exact_ring.thorough, exact_trainings.thorough]
)
def test_every_thorough_check_holds(group):
    assert failures(group()) == []


# ---- the oracles, independently of the losses


def test_the_mixtures_denoiser_is_its_score_by_tweedie():
    x = torch.linspace(-4, 4, 33, dtype=torch.float64).reshape(-1, 1, 1, 1).requires_grad_()
    sigma = torch.full((33,), 0.7, dtype=torch.float64)
    (score,) = torch.autograd.grad(TEACHER_1.log_density(x, sigma).sum(), x)
    torch.testing.assert_close(TEACHER_1(x, sigma), x + 0.49 * score)


def test_a_gaussians_denoiser_is_the_wiener_filter():
    x = torch.linspace(-4, 4, 33, dtype=torch.float64).reshape(-1, 1, 1, 1)
    sigma = torch.full((33,), 0.7, dtype=torch.float64)
    torch.testing.assert_close(gaussian(0.5, 1.2)(x, sigma), (1.44 * x + 0.49 * 0.5) / 1.93)


def test_the_rings_denoiser_is_its_score_by_tweedie_and_its_density_is_the_mixtures():
    plane = torch.randn(64, 2, 1, 1, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    sigma = torch.linspace(0.05, 2, 64, dtype=torch.float64)
    points = Points(torch.tensor([[0.3, -1.0], [0.3, 2.0]], dtype=torch.float64), 0.5)
    (score,) = torch.autograd.grad(points.log_density(plane, sigma).sum(), plane)
    torch.testing.assert_close(points(plane, sigma), plane + sigma.reshape(-1, 1, 1, 1) ** 2 * score)
    across, along = plane.detach().split(1, dim=1)
    product = gaussian(0.3, 0.5).log_density(across, sigma) + Mixture([0.5, 0.5], [-1.0, 2.0], 0.5).log_density(
        along, sigma
    )
    torch.testing.assert_close(points.log_density(plane.detach(), sigma), product)


def test_coverage_counts_modes_with_a_hundredth_of_the_images_and_measures_the_rest():
    centres = ring().centres
    even = centres.repeat(100, 1)
    assert coverage(even) == (8, pytest.approx(0, abs=1e-6))
    assert coverage(torch.cat([even[:2], centres[:1].repeat(998, 1)])) == (1, pytest.approx(math.log(8), abs=0.02))
    assert coverage(0.5 * even)[0] == 0  # nearest to a mode, but not in it


def test_densities_of_several_dimensions_multiply():
    x = torch.tensor([[0.3, -1.0], [2.0, 0.1]], dtype=torch.float64)
    sigma = torch.tensor([0.5, 1.0], dtype=torch.float64)
    joint = TEACHER_1.log_density(x.reshape(2, 2, 1, 1), sigma)
    single = [TEACHER_1.log_density(x[:, k].reshape(2, 1, 1, 1), sigma) for k in range(2)]
    torch.testing.assert_close(joint, sum(single))


def test_the_reference_knows_the_value_of_a_divergence_of_gaussians():
    m, s = 0.5, 1.2
    _, _, value = Grid(gaussian(0.0, 1.0), m, s, 0.0, reach=15.0).divergence(F["reverse_kl"])
    assert value == pytest.approx(-math.log(s) + (s**2 + m**2 - 1) / 2, abs=1e-12)


def test_nodes_integrate_to_moments_of_each_level():
    nodes = nodes_at(torch.tensor([0.5, 2.0]), hermite(20), hermite(20))
    assert nodes.weight.sum().item() == pytest.approx(1)
    squares = level_mean(nodes, (nodes.z + nodes.sigma * nodes.eps) ** 2)
    assert squares[0].item() == pytest.approx(1.25)
    assert squares[-1].item() == pytest.approx(5.0)


# ---- a broken loss is found


def replaced(name, **fields):
    good = divergences.get_divergence(name)
    kept = {key: getattr(good, key) for key in ("weight", "weight_slope", "adversarial", "needs_ratio")}
    return Divergence(name, **(kept | fields))


@pytest.mark.parametrize(
    ("field", "broken", "group"),
    [
        ("weight", lambda log_r: 0.5 * torch.sigmoid(log_r), checks_losses.score_gaps),
        ("weight", lambda log_r: torch.sigmoid(-log_r), checks_losses.score_gaps),
        ("weight_slope", torch.zeros_like, checks_losses.uni_instruct),
        ("adversarial", torch.neg, checks_losses.score_gaps),
    ],
)
def test_a_wrong_divergence_fails(monkeypatch, field, broken, group):
    monkeypatch.setitem(divergences._DIVERGENCES, "jensen_shannon", replaced("jensen_shannon", **{field: broken}))
    failed = failures(group())
    assert failed
    assert all("jensen_shannon" in line for line in failed)


def test_a_detached_ratio_fails(monkeypatch):
    attached = losses.fisher_gradient

    def detached(*args, **kwargs):
        return attached(*args, **kwargs | {"detach_ratio": True})

    monkeypatch.setattr(checks_losses, "fisher_gradient", detached)
    assert any("Uni-Instruct, forward_kl" in line for line in failures(checks_losses.uni_instruct()))


def test_a_detached_pseudo_huber_weight_fails(monkeypatch):
    def detached(*args, **kwargs):
        return level_weights.pseudo_huber_weight(*args, **kwargs).detach()

    monkeypatch.setattr(checks_losses, "pseudo_huber_weight", detached)
    assert len(failures(checks_losses.pseudo_huber())) == 3


def test_swapped_guidance_fails(monkeypatch):
    from diffdistill.denoiser import Denoiser

    def swapped(self, x_t, sigma, cond, guidance_scale=1.0):
        null, wanted = self(x_t, sigma, torch.ones_like(cond)), self(x_t, sigma, cond)
        return wanted + guidance_scale * (null - wanted)

    monkeypatch.setattr(Denoiser, "guided", swapped)
    assert len(failures(exact_guidance.guidance())) >= 4


def test_a_wrong_guidance_term_fails(monkeypatch):
    def swapped(x0, conditional, null, scale, **settings):
        return losses.guidance_gradient(x0, null, conditional, scale, **settings)

    monkeypatch.setattr(exact_guidance, "guidance_gradient", swapped)
    assert len(failures(exact_guidance.guidance_outside())) == 2


@pytest.mark.parametrize("factor", [-1.0, 2.0])
def test_a_reward_of_another_sign_or_scale_fails(monkeypatch, factor):
    right = RewardTerm.gradient

    def wrong(self, x, prompts=None):
        gradient, metrics = right(self, x, prompts)
        return factor * gradient, metrics

    monkeypatch.setattr(RewardTerm, "gradient", wrong)
    assert len(failures([*exact_guidance.linear_reward(), *exact_guidance.quadratic_reward()])) == 3


# ---- a broken step is found, by the rows that it breaks


def rows(failed):
    return {line.partition("step: ")[2][:48].split("  ")[0] for line in failed if "step: " in line}


def all_rows():
    return {check.quantity.removeprefix("step: ") for check in checks_step.method_rows()}


def test_every_method_has_a_row_with_its_default_settings():
    found = checks_step.rows()
    for name, method in METHODS.rows().items():
        if not issubclass(method, Method):  # a consistency model has rows of its own
            continue
        defaults = found[name].model_dump(exclude={"adversarial", "guidance_scale", "reward"})
        assert defaults == type(found[name])(name=name).model_dump(exclude={"adversarial", "guidance_scale", "reward"})
        assert (found[name].adversarial is None) == (type(found[name])(name=name).adversarial is None)


def test_a_negated_gradient_fails_in_every_row(monkeypatch):
    right = DistributionMatching.student_gradient

    def negated(self, *args, **kwargs):
        gradient, metrics = right(self, *args, **kwargs)
        return -gradient, metrics

    monkeypatch.setattr(DistributionMatching, "student_gradient", negated)
    found = rows(failures(checks_step.method_rows()))
    assert {name.split(",")[0] for name in found} == {name.split(",")[0] for name in checks_step.rows()}
    assert found == {name for name in all_rows() if not name.endswith("in parts")}


def test_swapped_teacher_and_critic_fail_in_every_fisher_row(monkeypatch):
    right = matching.fisher_gradient

    def swapped(x, teacher_x0, critic_x0, **settings):
        return right(x, critic_x0, teacher_x0, **settings)

    monkeypatch.setattr(matching, "fisher_gradient", swapped)
    found = rows(failures(checks_step.method_rows()))
    assert found == {n for n, s in checks_step.rows().items() if s.choices().form == "fisher"}


def test_a_generator_that_wants_to_be_taken_for_a_student_fails_where_there_are_heads(monkeypatch):
    right = AdversarialTerm.gradient
    monkeypatch.setattr(AdversarialTerm, "gradient", lambda self, logit, x: -right(self, logit, x))
    found = rows(failures(checks_step.method_rows()))
    assert found == {n for n, s in checks_step.rows().items() if s.adversarial is not None}


def test_alpha_that_is_ignored_fails(monkeypatch):
    right = matching.fisher_gradient
    monkeypatch.setattr(matching, "fisher_gradient", lambda *a, **settings: right(*a, **settings | {"alpha": 1.0}))
    found = rows(failures(checks_step.method_rows()))
    assert found >= {"sid, alpha = 0.5", "sid, alpha = 1.2", "uni_instruct, jensen_shannon"}
    assert "sid" not in found


def test_a_method_that_loses_its_weights_fails(monkeypatch):
    wrong = {"f_distill": {"normalize": False}, "dmd2": {"level_weight": "none"}, "sim": {"level_weight": "dmd"}}
    right = Method.choices
    monkeypatch.setattr(Method, "choices", lambda s: replace(right(s), **wrong.get(s.name, {})))
    found = rows(failures(checks_step.method_rows()))
    assert {name.split(",")[0] for name in found} == wrong.keys()


def test_real_and_student_images_swapped_fail(monkeypatch):
    right = AdversarialTerm.loss
    monkeypatch.setattr(AdversarialTerm, "loss", lambda self, real, fake, *more: right(self, fake, real, *more))
    assert len(failures(checks_step.discriminator())) >= 1


@pytest.mark.parametrize("wrong", [1.0, 0.5])
def test_a_critic_of_another_weight_or_noise_fails(monkeypatch, wrong):
    if wrong == 1.0:
        monkeypatch.setattr(matching, "native_weight", lambda process, sigma: torch.ones_like(sigma))
    else:
        monkeypatch.setattr(matching, "per_sample", lambda values, like: wrong * per_sample(values, like))
    failed = failures(checks_step.critic())
    assert len([line for line in failed if line.startswith("critic's loss")]) >= 5


# ---- the table and the command


def test_nan_is_never_ok():
    for relation in ("equal", "differs"):
        assert not Check("X", "nan", (math.nan,), (0.0,), relation=relation).ok


def test_relations():
    assert Check("X", "equal", (1.0, 2.0), (1.0, 2.0 + 5e-7)).ok
    assert not Check("X", "equal", (1.0, 2.0), (1.0, 2.1)).ok
    assert Check("X", "differs", (1.0,), (2.0,), tolerance=0.5, relation="differs").ok
    assert not Check("X", "differs", (1.0,), (1.1,), tolerance=0.5, relation="differs").ok
    assert Check("X", "increasing", (1.0, 2.0, 3.0), tolerance=0.5, relation="increasing").ok
    assert not Check("X", "increasing", (1.0, 2.0, 1.9), tolerance=0.5, relation="increasing").ok


def shortened(monkeypatch, *checks):
    monkeypatch.setattr(command, "all_checks", lambda: iter(checks))


def test_exit_code_and_json(monkeypatch, tmp_path, capsys):
    good, bad = Check("X", "good", (1.0,), (1.0,)), Check("X", "bad", (math.nan,), (1.0,))
    shortened(monkeypatch, good)
    out = tmp_path / "table.json"
    assert command.run(Namespace(json=str(out))) == 0
    written = json.loads(out.read_text())
    assert written["ok"] is True
    assert written["checks"][0]["quantity"] == "good"
    assert "1 of 1 checks hold" in capsys.readouterr().out

    shortened(monkeypatch, good, bad)
    assert command.run(Namespace(json=str(out))) == 1
    written = json.loads(out.read_text())
    assert written["ok"] is False
    assert written["checks"][1]["got"] == ["nan"]
    assert "FAILED: X bad" in capsys.readouterr().out
