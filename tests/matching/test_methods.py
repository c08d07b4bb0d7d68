"""Every method on a tiny real UNet: who receives gradient, what the gradient is, what is refused."""

import pytest
import torch
from pydantic import ValidationError
from small_methods import batch, build, gradients
from tiny import tiny_teacher

from diffdistill.errors import ConfigError
from diffdistill.losses import denoising_loss
from diffdistill.matching.settings import Adversarial as PlainAdversarial
from diffdistill.matching.settings import Choices
from diffdistill.matching.step import DistributionMatching
from diffdistill.methods.base import Adversarial
from diffdistill.methods.diff_instruct import DiffInstruct
from diffdistill.methods.dmd2 import DMD2
from diffdistill.methods.f_distill import FDistill
from diffdistill.methods.sid import SiD
from diffdistill.methods.sim import SIM
from diffdistill.methods.uni_instruct import UniInstruct
from diffdistill.process import Level, LevelLaw, per_sample

CRITIC_EYES = Adversarial(features="critic", r1=1.0)
METHODS = {
    "diff_instruct": DiffInstruct(name="diff_instruct"),
    "dmd2": DMD2(name="dmd2"),
    "dmd2 on critic features": DMD2(name="dmd2", adversarial=CRITIC_EYES),
    "f_distill": FDistill(name="f_distill"),
    "f_distill forward_kl": FDistill(name="f_distill", divergence="forward_kl"),
    "sid": SiD(name="sid"),
    "sida": SiD(name="sid", adversarial=Adversarial()),
    "sid 0.5 per level": SiD(name="sid", alpha=0.5, level_weight="dmd_level"),
    "sim": SIM(name="sim"),
    "uni_instruct": UniInstruct(name="uni_instruct"),
    "uni_instruct on critic features": UniInstruct(
        name="uni_instruct", divergence="jeffreys", adversarial=CRITIC_EYES
    ),
    "guided": SiD(name="sid", guidance_scale=2.0),
}


@pytest.mark.parametrize("name", METHODS)
def test_the_students_step_gives_gradient_to_the_student_only(name):
    method = build(METHODS[name], critic_seed=1)
    x0, cond = batch()
    weight = torch.ones((), requires_grad=True)  # a student of one parameter
    images = weight * x0
    torch.manual_seed(0)
    gradient, _ = method.student_gradient(images, cond, progress=0.9)
    assert gradient.shape == x0.shape
    assert not gradient.requires_grad
    assert gradient.abs().sum() > 0
    assert weight.grad is None
    images.backward(gradient)
    assert weight.grad is not None
    for module in (method.teacher, method.critic, *method.modules().values()):
        assert not gradients(module)


@pytest.mark.parametrize("name", METHODS)
def test_the_critics_step_trains_critic_and_discriminator_only(name):
    method = build(METHODS[name], critic_seed=1)
    x0, cond = batch()
    weight = torch.ones((), requires_grad=True)
    torch.manual_seed(0)
    loss, _ = method.critic_loss(weight * x0, cond, batch(2)[0])
    loss.backward()
    assert weight.grad is None
    assert not gradients(method.teacher)
    assert len(gradients(method.critic)) == len(list(method.critic.parameters()))
    for module in method.modules().values():
        assert len(gradients(module)) == len(list(module.parameters()))


def test_on_teacher_features_the_discriminator_leaves_the_critic_alone():
    def critic_gradient(settings):
        method = build(settings, critic_seed=1)
        torch.manual_seed(0)
        method.critic_loss(*batch(), batch(2)[0])[0].backward()
        return torch.cat([g.flatten() for g in gradients(method.critic)])

    alone = critic_gradient(DiffInstruct(name="diff_instruct"))
    assert torch.equal(critic_gradient(DMD2(name="dmd2")), alone)
    assert not torch.allclose(critic_gradient(DMD2(name="dmd2", adversarial=CRITIC_EYES)), alone)


@pytest.mark.parametrize("name", ["diff_instruct", "sid", "sim", "sid 0.5 per level"])
def test_a_student_whose_critic_is_the_teacher_stands_still(name):
    method = build(METHODS[name])
    torch.manual_seed(0)
    gradient, metrics = method.student_gradient(*batch(), progress=0.9)
    assert gradient.abs().max() < 1e-5
    assert metrics["score_gap/relative"] < 1e-6


def test_diff_instruct_is_the_plain_score_gap():
    method = build(METHODS["diff_instruct"], critic_seed=1)
    x0, cond = batch()
    torch.manual_seed(0)
    gradient, _ = method.student_gradient(x0, cond, progress=0.0)
    torch.manual_seed(0)
    _, sigma = method.level.draw(4)
    x_t = x0 + per_sample(sigma, x0) * torch.randn_like(x0)
    with torch.no_grad():
        want = method.critic(x_t, sigma, cond) - method.teacher(x_t, sigma, cond)
    assert torch.allclose(gradient, want, atol=1e-6)


def test_reverse_kl_f_distill_is_dmd2():
    def gradient(settings):
        method = build(settings, critic_seed=1)
        torch.manual_seed(0)
        return method.student_gradient(*batch(), progress=0.9)[0]

    same = gradient(FDistill(name="f_distill", divergence="reverse_kl"))
    assert torch.equal(same, gradient(DMD2(name="dmd2")))


def test_uni_instruct_starts_as_sim_with_dmd_weight():
    uni = build(UniInstruct(name="uni_instruct"), critic_seed=1)
    torch.manual_seed(0)
    early, _ = uni.student_gradient(*batch(), progress=0.1)
    sid = build(SiD(name="sid", alpha=1.0, adversarial=Adversarial(weight=0.0)), critic_seed=1)
    torch.manual_seed(0)
    assert torch.equal(early, sid.student_gradient(*batch(), progress=0.1)[0])


def test_guidance_is_inside_the_gap():
    method = build(DiffInstruct(name="diff_instruct", guidance_scale=3.0), critic_seed=1)
    x0, cond = batch()
    torch.manual_seed(0)
    gradient, _ = method.student_gradient(x0, cond, progress=0.0)
    torch.manual_seed(0)
    _, sigma = method.level.draw(4)
    x_t = x0 + per_sample(sigma, x0) * torch.randn_like(x0)
    with torch.no_grad():
        want = method.critic(x_t, sigma, cond) - method.teacher.guided(x_t, sigma, cond, 3.0)
    assert torch.allclose(gradient, want, atol=1e-5)


def test_the_critic_loss_is_edm_denoising_of_the_students_images():
    method = build(METHODS["sid"], critic_seed=1)
    x0, cond = batch()
    torch.manual_seed(0)
    loss, _ = method.critic_loss(x0, cond, batch(2)[0])
    torch.manual_seed(0)
    _, sigma = method.critic_level.draw(4)
    x_t = x0 + per_sample(sigma, x0) * torch.randn_like(x0)
    assert loss.item() == pytest.approx(
        denoising_loss(method.critic(x_t, sigma, cond), x0, sigma).mean().item(), rel=1e-6
    )


def test_adversarial_weight_is_in_the_papers_mean_convention():
    def adversarial(weight):
        method = build(DMD2(name="dmd2", adversarial=Adversarial(weight=weight)), critic_seed=1)
        torch.manual_seed(0)
        return method.student_gradient(*batch(), progress=0.9)[0]

    matching, small, large = adversarial(0.0), adversarial(1e-3), adversarial(2e-3)
    assert torch.allclose(large - matching, 2 * (small - matching), atol=1e-5)


@pytest.mark.parametrize("name", ["f_distill", "uni_instruct"])
def test_a_ratio_needs_a_head(name):
    cls = {"f_distill": FDistill, "uni_instruct": UniInstruct}[name]
    with pytest.raises(ValidationError, match="needs a density ratio and there is no discriminator"):
        cls(name=name, divergence="forward_kl", adversarial=None)
    with pytest.raises(ConfigError, match="needs a density ratio and there is no discriminator"):
        Choices("score_gap", divergence="forward_kl")


def test_unstable_alpha_warns_with_its_bound():
    with pytest.warns(UserWarning, match="drives away a student"):
        build(SiD(name="sid", alpha=1.5))


def test_guidance_needs_a_null_class():
    teacher = tiny_teacher()
    teacher.null_class = None
    law = LevelLaw(Level())
    with pytest.raises(ConfigError, match="needs a teacher with a null class"):
        DistributionMatching(Choices("fisher", alpha=1.0, guidance_scale=2.0), teacher, tiny_teacher(1), law, law)


def test_an_unknown_tap_is_refused_before_training():
    with pytest.raises(ConfigError, match="matches no layer"):
        build(DMD2(name="dmd2", adversarial=Adversarial(taps=("middle",))))


def test_a_tap_that_gives_no_map_is_refused():
    with pytest.raises(ConfigError, match=r"tap 'time_embedding' gives \(\d+,\) for an image"):
        build(DMD2(name="dmd2", adversarial=Adversarial(taps=("time_embedding",))))


def test_a_tap_named_twice_is_refused():
    with pytest.raises(ValidationError, match="name each layer once"):
        Adversarial(taps=("mid_block", "mid_block"))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Choices("scoregap"), "form 'scoregap' is unknown; use score_gap or fisher"),
        (lambda: Choices("fisher", guidance="outsid"), "guidance 'outsid' is unknown; use inside or outside"),
        (lambda: PlainAdversarial(features="critics"), "features 'critics' is unknown; use teacher or critic"),
    ],
    ids=["form", "guidance", "features"],
)
def test_a_choice_that_is_none_is_refused(make, sentence):
    """In Python, where no schema checks them: taken for the other one, it would train another method in silence."""
    with pytest.raises(ConfigError, match=sentence):
        make()


@pytest.mark.parametrize("settings", [DiffInstruct, DMD2, FDistill])
def test_the_expansions_weight_is_of_the_fisher_form(settings):
    name = {DiffInstruct: "diff_instruct", DMD2: "dmd2", FDistill: "f_distill"}[settings]
    with pytest.raises(ValidationError, match="level_weight"):
        settings(name=name, level_weight="expansion")
    with pytest.raises(ConfigError, match="weighs the squared score gap of a Fisher form"):
        Choices("score_gap", level_weight="expansion")
