"""The student's gradient of every method is autograd of its paper's loss, written out in `papers.py`."""

import copy
import warnings
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from by_hand import F, Karras, Net, process_named
from papers import Reference
from tiny import tiny_unet
from worlds import small_network

from diffdistill.denoiser import Denoiser
from diffdistill.matching.step import DistributionMatching
from diffdistill.methods.base import Adversarial, Method
from diffdistill.methods.diff_instruct import DiffInstruct
from diffdistill.methods.diff_instruct_pp import DiffInstructPP
from diffdistill.methods.diff_instruct_star import DiffInstructStar
from diffdistill.methods.dmd2 import DMD2
from diffdistill.methods.f_distill import FDistill
from diffdistill.methods.sid import SiD
from diffdistill.methods.sim import SIM
from diffdistill.methods.uni_instruct import UniInstruct
from diffdistill.pipelines.network import clone_network
from diffdistill.process import Level, LevelLaw
from diffdistill.rewards import CallableReward
from diffdistill.rewards.term import RewardTerm

# lambda_G such that the adversarial term is of the matching term's size, for a wrong one to show.
TEACHER_EYES = Adversarial(weight=0.05, taps=("down_blocks.0", "mid_block"))
CRITIC_EYES = Adversarial(weight=0.05, features="critic", taps=("mid_block",))
SLOPE = torch.linspace(-1, 1, 8)
REWARD_WEIGHT = 0.3


@dataclass(frozen=True)
class Case:
    settings: Method
    kind: str = "edm"
    sigma_data: float = 0.5
    labelled: bool = True
    progress: float = 0.9
    reward: bool = False
    unet: bool = False


def f_distill(divergence: str, **more: Any) -> FDistill:
    return FDistill(name="f_distill", divergence=divergence, **{"adversarial": TEACHER_EYES} | more)


def uni(divergence: str, **more: Any) -> UniInstruct:
    return UniInstruct(name="uni_instruct", divergence=divergence, **{"adversarial": TEACHER_EYES} | more)


CASES = {
    "diff_instruct": Case(DiffInstruct(name="diff_instruct")),
    "diff_instruct, no classes": Case(DiffInstruct(name="diff_instruct"), labelled=False),
    "diff_instruct, dmd, guided": Case(DiffInstruct(name="diff_instruct", level_weight="dmd", guidance_scale=2.5)),
    "diff_instruct, adversarial": Case(DiffInstruct(name="diff_instruct", adversarial=TEACHER_EYES)),
    "dmd2": Case(DMD2(name="dmd2", adversarial=TEACHER_EYES)),
    "dmd2, no discriminator": Case(DMD2(name="dmd2", adversarial=None)),
    "dmd2, critic's features": Case(DMD2(name="dmd2", adversarial=CRITIC_EYES)),
    "dmd2, guided": Case(DMD2(name="dmd2", adversarial=TEACHER_EYES, guidance_scale=2.0)),
    "dmd2, no classes, sigma_data 0.25": Case(
        DMD2(name="dmd2", adversarial=TEACHER_EYES), sigma_data=0.25, labelled=False
    ),
    "dmd2, dmd_level": Case(DMD2(name="dmd2", adversarial=TEACHER_EYES, level_weight="dmd_level")),
    "sid": Case(SiD(name="sid")),
    "sid, alpha 0.5": Case(SiD(name="sid", alpha=0.5)),
    "sid, alpha 1.2, sigma_data 1.7": Case(SiD(name="sid", alpha=1.2), sigma_data=1.7),
    "sid, guided, no weight": Case(SiD(name="sid", alpha=0.75, guidance_scale=2.0, level_weight="none")),
    "sid, expansion": Case(SiD(name="sid", alpha=0.5, level_weight="expansion")),
    "sid, dmd_level": Case(SiD(name="sid", alpha=0.5, level_weight="dmd_level")),
    "sida": Case(SiD(name="sid", adversarial=TEACHER_EYES)),
    "sida, critic's features": Case(SiD(name="sid", adversarial=CRITIC_EYES)),
    "sim": Case(SIM(name="sim")),
    "sim, adversarial, no classes": Case(SIM(name="sim", adversarial=TEACHER_EYES), labelled=False),
    "sim, sigma_data 1.7": Case(SIM(name="sim"), sigma_data=1.7),
    "f_distill, reverse_kl, no discriminator": Case(f_distill("reverse_kl", adversarial=None)),
    "f_distill, critic's features": Case(f_distill("jensen_shannon", adversarial=CRITIC_EYES)),
    "f_distill, dmd_level": Case(f_distill("jeffreys", level_weight="dmd_level")),
    "f_distill, guided": Case(f_distill("forward_kl", guidance_scale=2.0)),
    "f_distill, no adversarial loss": Case(
        f_distill("forward_kl", adversarial=TEACHER_EYES.model_copy(update={"weight": 0.0}))
    ),
    **{f"f_distill, {name}": Case(f_distill(name)) for name in F},
    "uni_instruct, warm-up": Case(uni("forward_kl"), progress=0.19),
    "uni_instruct, after the warm-up": Case(uni("forward_kl"), progress=0.2),
    "uni_instruct, critic's features": Case(uni("jensen_shannon", adversarial=CRITIC_EYES)),
    "uni_instruct, expansion": Case(uni("jensen_shannon", level_weight="expansion")),
    "uni_instruct, dmd_level, guided": Case(uni("jensen_shannon", level_weight="dmd_level", guidance_scale=2.0)),
    "uni_instruct, ratio detached": Case(uni("forward_kl", detach_ratio=True)),
    "uni_instruct, reverse_kl, no discriminator": Case(uni("reverse_kl", adversarial=None)),
    "uni_instruct, no classes": Case(uni("jensen_shannon"), labelled=False),
    **{f"uni_instruct, {name}": Case(uni(name)) for name in F},
    "diff_instruct_pp": Case(DiffInstructPP(name="diff_instruct_pp", guidance_scale=3.0), reward=True),
    "diff_instruct_pp, outside": Case(
        DiffInstructPP(name="diff_instruct_pp", guidance_scale=3.0, guidance="outside"), reward=True
    ),
    "diff_instruct_pp, outside, dmd_level": Case(
        DiffInstructPP(name="diff_instruct_pp", guidance_scale=3.0, guidance="outside", level_weight="dmd_level")
    ),
    "diff_instruct_pp, reward alone, adversarial": Case(
        DiffInstructPP(name="diff_instruct_pp", adversarial=TEACHER_EYES), reward=True
    ),
    "diff_instruct_star": Case(DiffInstructStar(name="diff_instruct_star", guidance_scale=3.0), reward=True),
    "diff_instruct_star, outside": Case(
        DiffInstructStar(name="diff_instruct_star", guidance_scale=3.0, guidance="outside"), reward=True
    ),
    "diff_instruct_star, outside, adversarial": Case(
        DiffInstructStar(
            name="diff_instruct_star", guidance_scale=3.0, guidance="outside", adversarial=TEACHER_EYES
        )
    ),
    "diff_instruct, a UNet": Case(DiffInstruct(name="diff_instruct"), unet=True),
    "dmd2, a UNet, critic's features": Case(DMD2(name="dmd2", adversarial=CRITIC_EYES), unet=True),
    "uni_instruct, a UNet": Case(uni("jensen_shannon"), unet=True),
    **{
        f"{settings.name}, {kind}": Case(settings, kind=kind)
        for kind in ("epsilon", "v_prediction", "sample", "flow")
        for settings in (DMD2(name="dmd2", adversarial=TEACHER_EYES), uni("jensen_shannon"), SIM(name="sim"))
    },
}  # fmt: skip


def pair(case: Case) -> tuple[DistributionMatching, Reference]:
    """The production method, and the one by hand on copies of the same networks and heads."""
    classes = 4 if case.labelled else None
    process = process_named(case.kind, case.sigma_data)
    make = tiny_unet if case.unet else small_network
    teacher = Denoiser(make(classes, seed=0), process, null_class=3 if case.labelled else None).eval()
    critic = Denoiser(clone_network(make(classes, seed=1), 3 if case.labelled else None), process)
    law = LevelLaw(Level(law="karras", u_max=0.8), process.sigma_min, process.sigma_max, process)
    torch.manual_seed(7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a rewarded method whose reward is put in below
        choices = case.settings.choices()
    method = DistributionMatching(choices, teacher, critic, law, LevelLaw(Level(law="lognormal")))
    heads = None
    if method.adversarial is not None:
        sharpen(method.adversarial.discriminator)
        heads = copy.deepcopy(method.adversarial.discriminator.heads)
    if case.reward:
        linear = CallableReward(lambda images, _: (images * SLOPE).flatten(1).sum(1))
        method.reward = RewardTerm(linear, REWARD_WEIGHT)
    nets = (Net(copy.deepcopy(m.network), case.kind, case.sigma_data) for m in (teacher, critic))
    by_hand = Reference(
        case.settings, *nets, Karras(process.sigma_min, process.sigma_max), null_class=3, heads=heads,
        reward_slope=REWARD_WEIGHT * SLOPE if case.reward else None,
    )  # fmt: skip
    return method, by_hand


def sharpen(discriminator: torch.nn.Module) -> None:
    """Logits of several units, for ratios that are far from 1 and here and there out of bounds."""
    with torch.no_grad():
        for k, head in enumerate(discriminator.heads):
            head[-2].weight.mul_(6.0)
            head[-2].bias.fill_(0.5 - k)


def images(seed: int, count: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return 0.6 * torch.randn(count, 1, 8, 8, generator=generator), torch.arange(count) % 3


def close(got: torch.Tensor, want: torch.Tensor, part: float) -> None:
    """Each image's largest error is a part of its largest element."""
    scale = want.abs().flatten(1).amax(1)
    error = (got - want).abs().flatten(1).amax(1)
    assert bool((error <= part * scale + 1e-12).all()), (error / scale).tolist()


@pytest.mark.parametrize("name", CASES)
def test_the_gradient_is_that_of_the_papers_loss(name):
    """Three steps, of which the later ones know the ratios and the distances of the earlier ones."""
    case = CASES[name]
    method, by_hand = pair(case)
    for seed in range(3):
        # The ratio is that of student images: farther off at each step, so that what is remembered is not the present.
        x0, labels = images(seed)
        labels = labels if case.labelled else None
        torch.manual_seed(seed)
        got, _ = method.student_gradient((1 + seed) * x0, labels, case.progress)
        want = by_hand.gradient((1 + seed) * x0, labels, seed, case.progress)
        close(got, want.float(), 2e-4)


IN_PARTS = [name for name in CASES if not CASES[name].unet and ("dmd_level" in name or ", " not in name)]
IN_PARTS += ["dmd2, critic's features", "uni_instruct, expansion", "diff_instruct_star, outside", "dmd2, flow"]


@pytest.mark.parametrize("name", IN_PARTS)
def test_a_batch_in_parts_has_the_gradient_of_the_whole(name):
    """The second step, when there is a past to calibrate by; a part of four and one of two."""
    case, found = CASES[name], []
    whole, _ = pair(case)
    for size in (None, 4):
        method = copy.deepcopy(whole)
        for seed in range(2):
            torch.manual_seed(seed)
            x0, labels = images(seed)
            gradient, metrics = method.student_gradient(x0, labels, case.progress, part_size=size)
        state = {f"{k}.{n}": b for k, part in method.modules().items() for n, b in part.named_buffers()}
        found.append((gradient, state, {k: float(v) for k, v in metrics.items()}))
    (gradient, state, metrics), (in_parts, state_in_parts, metrics_in_parts) = found
    close(in_parts, gradient, 1e-5)
    assert state.keys() == state_in_parts.keys()
    assert all(torch.allclose(state[k], state_in_parts[k], rtol=1e-5) for k in state)
    assert metrics_in_parts == pytest.approx(metrics, rel=1e-4, abs=1e-6)


def test_one_by_one_is_the_whole_too():
    method, _ = pair(CASES["uni_instruct, forward_kl"])
    x0, labels = images(0)
    torch.manual_seed(0)
    whole, _ = copy.deepcopy(method).student_gradient(x0, labels, 0.9)
    torch.manual_seed(0)
    close(method.student_gradient(x0, labels, 0.9, part_size=1)[0], whole, 1e-5)


def test_a_reward_reads_each_images_own_text_in_parts_too():
    """The reward of image k is k times its mean: the pull at its pixels is proportional to k."""
    method, _ = pair(CASES["diff_instruct"])
    scale = CallableReward(lambda pixels, texts: torch.tensor([float(t) for t in texts]) * pixels.flatten(1).mean(1))
    x0, labels = images(0)
    found = []
    for weight in (0.0, 0.5):
        method.reward = RewardTerm(scale, weight)
        torch.manual_seed(0)
        found.append(method.student_gradient(x0, labels, 0.9, prompts=list("012345"), part_size=4)[0])
    pull = (found[1] - found[0]).flatten(1).mean(1)
    torch.testing.assert_close(pull, -0.5 * 0.5 * torch.arange(6.0), rtol=1e-3, atol=1e-4)


def test_what_the_log_says_of_a_step():
    """Relative gaps by level, spread, saturation on both sides, the ratio's means, and the terms' sizes."""
    method, by_hand = pair(CASES["f_distill, forward_kl"])
    x0, labels = images(0, 10)
    x0[0, 0, 0, :2] = torch.tensor([-1.5, 1.4])
    torch.manual_seed(0)
    gradient, found = method.student_gradient(x0, labels, 0.9)
    torch.manual_seed(0)
    u = (torch.randperm(10) + torch.rand(10)) / 10
    seen = by_hand.look(x0.clone().requires_grad_(), labels, u, torch.randn_like(x0))
    relative = (seen.critic - seen.teacher).abs().mean((1, 2, 3)) / (seen.x - seen.teacher).abs().mean((1, 2, 3))
    assert found["score_gap/relative"].item() == pytest.approx(relative.mean().item(), rel=1e-3)
    for k in range(5):
        here = relative[(u >= k / 5) & (u < (k + 1) / 5)]
        assert len(here) == 2
        assert found[f"score_gap/level_{k}"].item() == pytest.approx(here.mean().item(), rel=1e-3)
    assert found["x0/std"].item() == pytest.approx(x0.std().item(), rel=1e-5)
    beyond = ((x0 < -1.1) | (x0 > 1.1)).float().mean().item()
    assert (x0 > 1.1).float().mean().item() < beyond  # some of either side
    assert found["x0/saturation"].item() == pytest.approx(beyond, rel=1e-5)
    by_hand.ratio(seen)
    means = by_hand.memory.ratio[0] / by_hand.memory.ratio[1]
    for k in range(10):
        assert found[f"ratio/mean_{k}"] == pytest.approx(means[k].item(), rel=1e-3)
    terms = found["gradient/matching"], found["gradient/adversarial"]
    assert all(term > 0.01 for term in terms)
    assert gradient.flatten(1).norm(dim=1).mean() <= sum(terms)


@pytest.mark.parametrize(
    "form", [SiD(name="sid"), DiffInstructPP(name="diff_instruct_pp", guidance_scale=2.0, guidance="outside")]
)
def test_the_gap_is_taken_in_float32_where_it_is_asked_for(form):
    x0, labels = images(0)

    def gradient(half: bool, float32_gap: bool) -> torch.Tensor:
        method, _ = pair(Case(form))
        if half:
            method.autocast = lambda: torch.autocast("cpu", torch.bfloat16)
        method.float32_gap = float32_gap
        torch.manual_seed(0)
        return method.student_gradient(x0, labels, 0.9)[0]

    exact = gradient(False, False)
    assert torch.equal(gradient(True, True), exact)
    assert not torch.equal(gradient(True, False), exact)


@pytest.mark.parametrize("eyes", [TEACHER_EYES, CRITIC_EYES], ids=["teacher", "critic"])
def test_a_step_down_the_adversarial_term_makes_the_images_more_real(eyes):
    """At the same noise, the logit of each head's mean rises, by its slope."""
    x0, labels = images(0)

    def gradient(weight: float) -> torch.Tensor:
        method, _ = pair(Case(DMD2(name="dmd2", adversarial=eyes.model_copy(update={"weight": weight}))))
        torch.manual_seed(0)
        return method.student_gradient(x0, labels, 0.9)[0]

    method, _ = pair(Case(DMD2(name="dmd2", adversarial=eyes)))
    torch.manual_seed(0)
    _, sigma = method.level.draw(len(x0))
    noise = sigma.reshape(-1, 1, 1, 1) * torch.randn_like(x0)
    step = -1e-3 * (gradient(1.0) - gradient(0.0)) / 64
    term = method.adversarial

    def logit(x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            features = term.feature_network.features(x + noise, sigma, labels, term.discriminator.taps)
            return (
                torch.stack([h(f) for h, f in zip(term.discriminator.heads, features, strict=True)]).double().mean(0)
            )

    rise = logit(x0 + step) - logit(x0)
    # The levels at which the noise is a hundred times the image see nothing of the step.
    assert bool((rise[sigma < 3] > 0).all())
    assert rise.sum() > 0


def test_the_student_that_is_the_teacher_has_nothing_to_learn_from_it():
    """Every form's matching term is 0 where critic and teacher are one network, and the adversarial one is not."""
    for settings in (DiffInstruct(name="diff_instruct"), SiD(name="sid", alpha=0.5), SIM(name="sim"), SiD(name="sid")):
        method, _ = pair(Case(settings))
        method.critic.network = clone_network(method.teacher.network, 3).eval()
        gradient, metrics = method.student_gradient(*images(0), 0.9)
        assert gradient.abs().max() < 1e-5
        assert metrics["score_gap/relative"] < 1e-6
