"""What critic and discriminator learn: their losses written out by hand, and what they come to know."""

import copy
import math

import pytest
import torch
from by_hand import Karras, Net, lognormal, process_named, stratified
from worlds import GaussianNetwork, small_network

from diffdistill.denoiser import Denoiser
from diffdistill.matching.step import DistributionMatching
from diffdistill.methods.base import Adversarial
from diffdistill.methods.diff_instruct import DiffInstruct
from diffdistill.methods.dmd2 import DMD2
from diffdistill.pipelines.network import clone_network
from diffdistill.process import Level, LevelLaw

KINDS = [
    ("edm", 0.5),
    ("edm", 0.25),
    ("edm", 1.7),
    ("epsilon", 0.5),
    ("v_prediction", 0.5),
    ("sample", 0.5),
    ("flow", 0.5),
]
TAPS = ("down_blocks.0", "mid_block")


def built(settings, kind="edm", sigma_data=0.5, networks=None, law=None):
    process = process_named(kind, sigma_data)
    teacher, critic = networks or (small_network(4, 0), clone_network(small_network(4, 1), 3))
    torch.manual_seed(3)
    level = law or LevelLaw(Level(law="karras", u_max=0.8), process.sigma_min, process.sigma_max)
    return DistributionMatching(
        settings.choices(), Denoiser(teacher, process, null_class=3), Denoiser(critic, process), level,
        LevelLaw(Level(law="lognormal"), process.sigma_min, process.sigma_max),
    )  # fmt: skip


def drawn(seed, count=6):
    generator = torch.Generator().manual_seed(seed)
    real, fake = 0.6 * torch.randn(2, count, 1, 8, 8, generator=generator)
    return real, fake, torch.arange(count) % 3


def slopes(module):
    return [None if p.grad is None else p.grad.clone() for p in module.parameters()]


def at(x0, eps, sigma):
    return x0 + sigma.reshape(-1, 1, 1, 1) * eps


@pytest.mark.parametrize(("kind", "sigma_data"), KINDS)
def test_the_critics_loss_is_the_squared_error_of_its_networks_own_output(kind, sigma_data):
    method = built(DiffInstruct(name="diff_instruct"), kind, sigma_data)
    _, fake, labels = drawn(0)
    torch.manual_seed(1)
    loss, metrics = method.critic_loss(fake, labels, None)
    loss.backward()

    net = Net(copy.deepcopy(method.critic.network).requires_grad_(), kind, sigma_data)
    net.network.zero_grad()
    torch.manual_seed(1)
    sigma = lognormal(stratified(len(fake)))
    eps = torch.randn_like(fake)
    s = sigma.reshape(-1, 1, 1, 1)
    error = net(at(fake, eps, sigma), sigma, labels).output - net.target(fake, eps, s)
    want = error.square().mean()
    want.backward()
    assert loss.item() == pytest.approx(want.item(), rel=1e-4)
    assert metrics["critic/loss"].item() == pytest.approx(want.item(), rel=1e-4)
    for got, wanted in zip(slopes(method.critic), slopes(net.network), strict=True):
        torch.testing.assert_close(got, wanted, rtol=2e-3, atol=2e-4 * float(wanted.abs().max()))


@pytest.mark.parametrize("features", ["teacher", "critic"])
@pytest.mark.parametrize("labelled", [True, False])
def test_the_discriminators_loss_by_hand(features, labelled):
    """Its value beside the critic's, and the slope of every weight: heads, critic, nobody else."""
    settings = Adversarial(features=features, taps=TAPS, r1=0.7, critic_weight=0.3)
    networks = None if labelled else (small_network(None, 0), small_network(None, 1))
    method = built(DMD2(name="dmd2", adversarial=settings), networks=networks)
    heads = copy.deepcopy(method.adversarial.discriminator.heads)
    real, fake, labels = drawn(0)
    labels = labels if labelled else None
    torch.manual_seed(1)
    loss, metrics = method.critic_loss(fake, labels, real)
    loss.backward()

    teacher, critic = (Net(copy.deepcopy(m.network).requires_grad_()) for m in (method.teacher, method.critic))
    for net in (teacher, critic):
        net.network.zero_grad()
    torch.manual_seed(1)
    sigma = lognormal(stratified(len(fake)))
    eps = torch.randn_like(fake)
    s = sigma.reshape(-1, 1, 1, 1)
    denoising = (critic(at(fake, eps, sigma), sigma, labels).output - critic.target(fake, eps, s)).square().mean()
    sigma = Karras(0.002, 80.0).sigma(stratified(len(fake)))  # the student's law, one level for real and student
    real_eps, fake_eps = torch.randn(12, 1, 8, 8).chunk(2)
    eyes = critic if features == "critic" else teacher
    seen = [eyes(at(x, e, sigma), sigma, labels, TAPS).taps for x, e in ((real, real_eps), (fake, fake_eps))]
    logistic, penalties, right = 0, [], []
    for head, name in zip(heads, TAPS, strict=True):
        real_logit, fake_logit = (head(found[name]) for found in seen)
        right += [(real_logit > 0).float(), (fake_logit < 0).float()]
        # -log P(real is real) - log P(student is student), P = 1 / (1 + e^-l): a head for itself.
        logistic = logistic - (real_logit.sigmoid().log().mean() + (1 - fake_logit.sigmoid()).log().mean()) / 2
        leaf = seen[0][name].detach().requires_grad_()
        (slope,) = torch.autograd.grad(head(leaf).sum(), leaf, create_graph=True)
        penalties.append((leaf.detach() ** 2).mean((1, 2, 3)) * (slope**2).sum((1, 2, 3)))
    adversarial = logistic + 0.7 / 2 * torch.stack(penalties).mean()
    want = denoising + (0.3 if features == "critic" else 1.0) * adversarial
    want.backward()
    assert loss.item() == pytest.approx(want.item(), rel=1e-4)
    assert metrics["discriminator/accuracy"].item() == pytest.approx(torch.cat(right).mean().item())
    assert metrics["discriminator/r1"].item() == pytest.approx(torch.stack(penalties).mean().item(), rel=1e-3)
    for got, wanted in zip(slopes(method.adversarial.discriminator.heads), slopes(heads), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-5)
    for got, wanted in zip(slopes(method.critic), slopes(critic.network), strict=True):
        torch.testing.assert_close(got, wanted, rtol=2e-3, atol=1e-4 * float(wanted.abs().max()))
    assert slopes(method.teacher) == [None] * len(list(method.teacher.parameters()))


@pytest.mark.parametrize(("kind", "sigma_data"), KINDS)
def test_a_trained_critic_is_the_posterior_mean_of_the_students_images(kind, sigma_data):
    """Gaussian pixels: E[x0 | x_t] = (s^2 x_t + sigma^2 m) / (s^2 + sigma^2), which only the right loss ends at."""
    m, s = 0.3, 0.25
    networks = [GaussianNetwork(0.0, 0.5, kind, sigma_data) for _ in range(2)]
    method = built(DiffInstruct(name="diff_instruct"), kind, sigma_data, networks)
    method.teacher.null_class = None
    optimizer = torch.optim.Adam(method.critic.parameters(), lr=0.05, betas=(0.9, 0.99))
    torch.manual_seed(0)
    steps = 120
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.05 * max(0.05, 1 - step / steps)
        optimizer.zero_grad()
        method.critic_loss(m + s * torch.randn(48, 1, 8, 8), None, None)[0].backward()
        optimizer.step()
    mean, scale = method.critic.network.gaussian
    assert mean == pytest.approx(m, abs=0.02)
    assert scale == pytest.approx(s, abs=0.02)


REAL, FAKE = (0.08, 0.52), (-0.08, 0.46)


def exact_logit(x_t, sigma):
    """log p_real(x_t) / p_fake(x_t), summed over pixels."""
    logs = []
    for m, s in (REAL, FAKE):
        v = (s**2 + sigma.double() ** 2).reshape(-1, 1, 1, 1)
        logs.append((-((x_t.double() - m) ** 2) / (2 * v) - 0.5 * (2 * math.pi * v).log()).flatten(1).sum(1))
    return logs[0] - logs[1]


@pytest.mark.parametrize("heads", [1, 2])
def test_a_trained_discriminator_is_the_log_ratio_of_real_over_student_at_the_students_levels(heads):
    networks = [GaussianNetwork(0.0, 0.5, sample_size=4) for _ in range(2)]
    law = LevelLaw(Level(law="loguniform", sigma_min=0.3, sigma_max=1.5))
    taps = ("mid_block",) * heads  # the network has one layer; a recipe may not name it twice
    settings = DMD2(name="dmd2", adversarial=Adversarial(taps=taps[:1]).model_copy(update={"taps": taps}))
    method = built(settings, networks=networks, law=law)
    method.teacher.null_class = None
    discriminator = method.adversarial.discriminator
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=0.03, betas=(0.9, 0.99))
    torch.manual_seed(0)

    def pixels(count, mean, scale):
        return mean + scale * torch.randn(count, 1, 4, 4)

    steps = 150
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.03 * max(0.03, 1 - step / steps)
        optimizer.zero_grad()
        method.critic_loss(pixels(128, *FAKE), None, pixels(128, *REAL))[0].backward()
        optimizer.step()
    for source in (REAL, FAKE):
        _, sigma = law.draw(400)
        x_t = at(pixels(400, *source), torch.randn(400, 1, 4, 4), sigma)
        with torch.no_grad():
            logits = discriminator(method.teacher.features(x_t, sigma, None, taps))
        want = exact_logit(x_t, sigma)
        for logit in logits.T.double():
            slope = ((logit - logit.mean()) * (want - want.mean())).mean() / want.var()
            assert slope == pytest.approx(1, abs=0.25)
            assert (logit - want).square().mean().sqrt() < 0.35 * want.std()


def test_r1_makes_the_heads_flatter():
    """The same training with and without: the slope of the logits at real features falls, in units of their rms."""

    def steepness(r1):
        method = built(DMD2(name="dmd2", adversarial=Adversarial(taps=TAPS, r1=r1)))
        optimizer = torch.optim.Adam(method.adversarial.discriminator.parameters(), lr=0.01)
        torch.manual_seed(0)
        for step in range(25):
            real, fake, labels = drawn(step, 12)
            optimizer.zero_grad()
            method.critic_loss(fake, labels, 0.3 + real)[0].backward()
            optimizer.step()
        real, _, labels = drawn(99, 12)
        found = method.teacher.features(real, torch.full((12,), 0.3), labels, TAPS)
        total = []
        for head, f in zip(method.adversarial.discriminator.heads, found, strict=True):
            leaf = f.detach().requires_grad_()
            (slope,) = torch.autograd.grad(head(leaf).sum(), leaf)
            total.append((f.square().mean((1, 2, 3)) * slope.square().sum((1, 2, 3))).mean())
        return float(sum(total))

    assert steepness(3.0) < 0.3 * steepness(0.0)


def test_without_real_images_only_the_critic_learns():
    method = built(DMD2(name="dmd2"))
    _, fake, labels = drawn(0)
    loss, metrics = method.critic_loss(fake, labels, None)
    loss.backward()
    assert list(metrics) == ["critic/loss"]
    assert slopes(method.adversarial.discriminator) == [None] * len(
        list(method.adversarial.discriminator.parameters())
    )
