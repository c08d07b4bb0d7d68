"""Diff-Instruct++ and Diff-Instruct*: what the gradient is, where it goes, what is refused before training."""

import pytest
import torch
from small_methods import batch, build, gradients
from tiny import tiny_teacher

from diffdistill.errors import ConfigError
from diffdistill.losses import guidance_gradient, score_gap_gradient
from diffdistill.methods.base import Reward as Settings
from diffdistill.methods.diff_instruct import DiffInstruct
from diffdistill.methods.diff_instruct_pp import DiffInstructPP
from diffdistill.methods.diff_instruct_star import DiffInstructStar
from diffdistill.methods.sim import SIM
from diffdistill.process import per_sample
from diffdistill.rewards import CallableReward, WeightedReward
from diffdistill.rewards.term import RewardTerm, reward_term

METHODS = {"diff_instruct_pp": DiffInstructPP, "diff_instruct_star": DiffInstructStar}
PLAIN = {"diff_instruct_pp": DiffInstruct(name="diff_instruct"), "diff_instruct_star": SIM(name="sim")}
RIGHT = torch.linspace(-1, 1, 8)


def to_the_right(images, prompts):
    """Linear: how much brighter the right is than the left."""
    return (images * RIGHT).flatten(1).mean(1)


@pytest.fixture
def module(tmp_path, consent):
    """A reward with a network of its own, in a file of the user's."""
    file = tmp_path / "mine.py"
    file.write_text(
        "import torch\n"
        "net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 1))\n"
        "def score(images, prompts):\n    return net(images).squeeze(1)\n"
    )
    return f"{file}:score"


def settings(name, reward=None, **more):
    return METHODS[name](name=name, reward=reward and Settings(name=reward, weight=0.5), **more)


def student_gradient(method, seed=0):
    torch.manual_seed(seed)
    return method.student_gradient(*batch(), progress=0.9)


@pytest.mark.parametrize("guidance", ["inside", "outside"])
@pytest.mark.parametrize("name", METHODS)
def test_the_students_step_gives_gradient_to_the_student_only(name, guidance, module):
    method = build(settings(name, module, guidance=guidance, guidance_scale=3.0), critic_seed=1)
    x0, cond = batch()
    weight = torch.ones((), requires_grad=True)
    images = weight * x0
    gradient, metrics = method.student_gradient(images, cond, progress=0.0)
    assert weight.grad is None
    images.backward(gradient)
    assert weight.grad is not None
    network = method.reward.reward.function.__globals__["net"]
    for part in (method.teacher, method.critic, network):
        assert not gradients(part)
    assert metrics["gradient/reward"] > 0
    assert ("gradient/guidance" in metrics) == (guidance == "outside")


@pytest.mark.parametrize("name", METHODS)
def test_the_gradient_is_the_plain_methods_less_the_rewards(name, module):
    method = build(settings(name, module), critic_seed=1)
    gradient, metrics = student_gradient(method)
    plain, _ = student_gradient(build(PLAIN[name], critic_seed=1))
    slope = method.reward.reward.function.__globals__["net"][1].weight.detach().reshape(1, 1, 8, 8)
    expected = plain - 0.5 * 64 * 0.5 * slope  # weight, C H W, d pixels / d x0
    torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-5)
    assert metrics["gradient/reward"].item() == pytest.approx(16 * slope.norm().item(), rel=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_without_reward_and_guidance_it_is_the_plain_method_and_says_so(name):
    with pytest.warns(UserWarning, match="is (sim|diff_instruct); give one of them"):
        choices = settings(name).choices()
    gradient, metrics = student_gradient(build(choices, critic_seed=1))
    assert torch.equal(gradient, student_gradient(build(PLAIN[name], critic_seed=1))[0])
    assert "gradient/reward" not in metrics


def test_for_reverse_kl_guidance_outside_is_guidance_inside():
    inside, outside = (
        build(settings("diff_instruct_pp", guidance_scale=3.0, guidance=guidance), critic_seed=1)
        for guidance in ("inside", "outside")
    )
    torch.testing.assert_close(student_gradient(inside)[0], student_gradient(outside)[0], atol=1e-5, rtol=1e-4)


def test_for_the_score_based_divergence_they_differ():
    inside, outside = (
        student_gradient(build(settings("diff_instruct_star", guidance_scale=3.0, guidance=g), critic_seed=1))[0]
        for g in ("inside", "outside")
    )
    assert (inside - outside).norm() > 0.1 * inside.norm()


def test_outside_the_linear_term_is_the_teachers_own_difference():
    method = build(settings("diff_instruct_star", guidance_scale=3.0, guidance="outside"), critic_seed=1)
    x0, cond = batch()
    outside, _ = student_gradient(method)
    plain, _ = student_gradient(build(PLAIN["diff_instruct_star"], critic_seed=1))
    torch.manual_seed(0)
    _, sigma = method.level.draw(4)
    x_t = x0 + per_sample(sigma, x0) * torch.randn_like(x0)
    with torch.no_grad():
        term = 2 * (method.teacher(x_t, sigma, torch.full_like(cond, 3)) - method.teacher(x_t, sigma, cond))
    torch.testing.assert_close(outside - plain, term, atol=1e-5, rtol=1e-4)


def test_the_guidance_term_completes_the_score_gap():
    x, conditional, null, critic = torch.randn(4, 5, 1, 4, 4, dtype=torch.float64).unbind()
    weight = torch.rand(5, dtype=torch.float64)
    guided = null + 2.5 * (conditional - null)
    whole = score_gap_gradient(x, guided, critic, level_weight=weight)
    parts = score_gap_gradient(x, conditional, critic, level_weight=weight)
    parts += guidance_gradient(x, conditional, null, 2.5, level_weight=weight)
    torch.testing.assert_close(parts, whole)


def test_taps_of_a_guided_pass_are_those_of_the_conditional_one():
    teacher = tiny_teacher()
    x, cond = batch()
    sigma = torch.full((4,), 0.7)
    with torch.no_grad():
        guided, seen = teacher.guided_tapped(x, sigma, cond, 3.0, ("mid_block",))
        plain, alone = teacher.tapped(x, sigma, cond, ("mid_block",))
        null = teacher(x, sigma, torch.full_like(cond, 3))
    torch.testing.assert_close(seen[0], alone[0])
    torch.testing.assert_close(guided, null + 3 * (plain - null))


# ---- the term


def test_a_pixel_out_of_range_scores_as_clamped_and_is_called_back():
    term = RewardTerm(CallableReward(lambda images, c: -(images - 0.5).square().flatten(1).sum(1)), weight=1.0)
    x = torch.tensor([3.0, 0.5]).reshape(2, 1, 1, 1).requires_grad_()
    gradient, metrics = term.gradient(x)
    assert metrics["reward/score"].item() == pytest.approx(-(0.25 + 0.0625) / 2)
    torch.testing.assert_close(gradient.flatten(), torch.tensor([0.5, 0.25]))  # the clamped pixel's, not zero


def test_a_batch_in_parts_is_the_batch():
    def score(images, prompts):
        return (images.flatten(1).sum(1) + prompts).square()

    whole, parts = (RewardTerm(CallableReward(score), 1.0, batch_size=n) for n in (16, 2))
    x, labels = torch.rand(5, 1, 2, 2), torch.arange(5)
    (gradient, metrics), (again, same) = whole.gradient(x, labels), parts.gradient(x, labels)
    torch.testing.assert_close(again, gradient)
    torch.testing.assert_close(same["reward/score"], metrics["reward/score"])


def test_latents_are_decoded_on_the_way():
    matrix = torch.randn(3, 2)

    def decode(latents):
        return 0.1 * torch.einsum("ij,bjhw->bihw", matrix, latents)

    term = RewardTerm(CallableReward(to_the_right), weight=2.0, decode=decode)
    x = torch.randn(2, 2, 4, 8, requires_grad=True)
    expected = torch.autograd.grad(-2.0 * 64 * to_the_right(0.5 * decode(x) + 0.5, None).sum(), x)[0]
    torch.testing.assert_close(term.gradient(x)[0], expected)


def test_labels_become_the_texts_of_their_classes():
    heard = []

    def listen(images, prompts):
        heard.extend(prompts)
        return images.flatten(1).sum(1)

    term = RewardTerm(CallableReward(listen, needs_prompt=True), 1.0, class_prompts=("a shirt", "a bag"))
    term.gradient(torch.zeros(3, 1, 2, 2, requires_grad=True), torch.tensor([1, 0, 1]))
    assert heard == ["a bag", "a shirt", "a bag"]


def test_a_sum_logs_each_reward(module):
    term = reward_term(Settings(sum={module: 2.0}, weight=1.0))
    assert isinstance(term.reward, WeightedReward)
    _, metrics = term.gradient(torch.zeros(2, 1, 8, 8, requires_grad=True))
    assert metrics["reward/score"].item() == pytest.approx(2 * metrics[f"reward/{module}"].item())


# ---- what is refused


def test_a_reward_without_a_gradient_cannot_train():
    with pytest.raises(ConfigError, match=r"has no gradient and cannot train.*objective\.name=raft"):
        RewardTerm(CallableReward(to_the_right, pil=True), 1.0)
    term = RewardTerm(CallableReward(lambda images, c: images.detach().flatten(1).sum(1), "cut"), 1.0)
    with pytest.raises(ConfigError, match="scores of the reward cut carry no gradient"):
        term.gradient(torch.zeros(2, 1, 2, 2, requires_grad=True))


@pytest.mark.parametrize(
    ("texts", "message"),
    [(None, "reads texts and the teacher has 3 classes"), (("one", "two"), "has 2 texts and the teacher 3 classes")],
)
def test_texts_must_be_there_for_every_class(texts, message):
    term = RewardTerm(CallableReward(to_the_right, needs_prompt=True), 1.0, texts)
    with pytest.raises(ConfigError, match=message):
        term.check(3)
    term.check(None)


@pytest.mark.parametrize(
    ("given", "message"),
    [({}, "neither 'name' nor 'sum'"), ({"name": "clip", "sum": {"clip": 1.0}}, "both 'name' and 'sum'")],
)
def test_a_reward_has_a_name_or_a_sum(given, message):
    with pytest.raises(ValueError, match=message):
        Settings(weight=1.0, **given)


def test_an_unknown_reward_is_refused_before_training():
    with pytest.raises(ConfigError, match="did you mean classifier"):
        build(settings("diff_instruct_star", "clasifier"))
