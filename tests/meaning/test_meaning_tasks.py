"""What the tasks around the step do: what student and teacher are shown, when each part moves, what is averaged."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from by_hand import Net, process_named
from diffusers import DDPMScheduler
from tiny import tiny_teacher
from worlds import gaussian_data, small_network

from diffdistill.config.align import Align
from diffdistill.config.schema import Distill, Network, Optimizer, Train
from diffdistill.data import ImageSet
from diffdistill.data.pairs import Pair, PairSet
from diffdistill.denoiser import Denoiser
from diffdistill.errors import ConfigError, NonFiniteError
from diffdistill.evaluation.bootstrap import bootstrap_error
from diffdistill.evaluation.frechet import fit
from diffdistill.matching.step import DistributionMatching
from diffdistill.training.device import Device
from diffdistill.training.loop import finite, run_loop
from diffdistill.training.optim.updater import Ema, Updater
from diffdistill.training.randomness import seed_step
from diffdistill.training.store import CheckpointStore, load_checkpoint
from diffdistill.training.tasks import align as alignment
from diffdistill.training.tasks.distill import DistillTask
from diffdistill.training.tasks.teacher import TeacherTask, build_unet, draw_batch

CPU = Device("no")


def distilling(method=None, kind="edm", **more):
    settings = {
        "output_dir": "none", "teacher": "small", "max_train_steps": 8, "train_batch_size": 4,
        "method": method or {"name": "diff_instruct"}, "critic": {"updates_per_step": 1},
    }  # fmt: skip
    teacher = Denoiser(small_network(4), process_named(kind), null_class=3).eval()
    return DistillTask(Distill.model_validate(settings | more), teacher, gaussian_data((0.1, 0.0, -0.2), 0.3), CPU)


def nothing(module):
    """0, with a graph to every weight."""
    return 0 * sum(p.sum() for p in module.parameters())


def vector(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


# ---- what the student is shown


@pytest.mark.parametrize(("kind", "scale"), [("edm", lambda s: s), ("v_prediction", lambda s: (1 + s**2) ** 0.5)])
def test_a_students_step_is_shown_what_the_steps_before_make_of_noise(kind, scale):
    """Three steps: pure noise at the first level, then the clipped image noised to the next, by hand."""
    task = distilling(kind=kind, student={"steps": 3}, train_batch_size=5)
    levels = task.levels
    assert len(levels) == 3
    assert levels[0] > levels[1] > levels[2] > 0
    assert task.student.levels == levels
    assert task.student.num_classes == task.method.critic.num_classes == 3
    with torch.no_grad():
        task.student.network.conv_out.weight.mul_(4.0)  # images that leave [-1, 1]
    net, cond, seen, clipped = Net(task.student.network, kind), torch.arange(5) % 3, [], False
    for seed in range(24):
        torch.manual_seed(seed)
        x, sigma = task.student_input(None, cond)
        torch.manual_seed(seed)
        k = int(torch.randint(3, ()))
        want = scale(levels[0]) * torch.randn(5, 1, 8, 8)
        for at, to in list(pairwise(levels))[:k]:
            with torch.no_grad():
                x0 = net(want, torch.full((5,), at), cond).x0
            clipped = clipped or bool((x0.abs() > 1).any())
            want = x0.clamp(-1, 1) + to * torch.randn(5, 1, 8, 8)
        torch.testing.assert_close(x, want, rtol=1e-4, atol=1e-4)
        assert sigma.tolist() == pytest.approx([levels[k]] * 5)
        seen.append(k)
    assert clipped
    assert min(seen.count(k) for k in range(3)) >= 3


def test_noised_data_is_the_real_image_at_the_steps_own_level():
    task = distilling(student={"steps": 3, "training_input": "noised_data"})
    real, cond = 0.5 * torch.ones(4, 1, 8, 8), torch.zeros(4, dtype=torch.long)
    for seed in range(12):
        torch.manual_seed(seed)
        x, sigma = task.student_input(real, cond)
        torch.manual_seed(seed)
        k = int(torch.randint(3, ()))
        first = task.levels[0] * torch.randn(4, 1, 8, 8)
        assert sigma.tolist() == pytest.approx([task.levels[k]] * 4)
        torch.testing.assert_close(x, first if k == 0 else real + task.levels[k] * torch.randn(4, 1, 8, 8))


def test_every_step_has_its_own_batch_and_passes_on_its_labels(monkeypatch):
    """The images and labels of the discriminator and of the critic are those of the batch."""
    seen = []

    def critic_loss(self, x0, cond, real, noise=None):
        seen.append((real.clone(), cond.clone()))
        return nothing(self.critic), {}

    monkeypatch.setattr(DistributionMatching, "critic_loss", critic_loss)
    task = distilling(seed=3)
    for step in range(3):
        task.update(step)
        want = draw_batch(task.data, 4, 3, step, False)
        assert all(torch.equal(a, b) for a, b in zip(seen[-1], want, strict=True))
    assert not torch.equal(seen[0][0], seen[1][0])


# ---- when each part moves


def test_warm_ups_are_parts_of_what_is_left_after_the_regression(monkeypatch):
    """Two steps of regression, then ten: the student rests for three of them, and is told how far it is."""
    told = []
    right = DistributionMatching.student_gradient

    def student_gradient(self, x0, cond, progress, *more):
        told.append(progress)
        return right(self, x0, cond, progress, *more)

    monkeypatch.setattr(DistributionMatching, "student_gradient", student_gradient)
    method = {"name": "uni_instruct", "critic_warmup": 0.3, "fisher_warmup": 0.5}
    rate = {"learning_rate": 1e-3, "schedule": "linear"}
    student = {"regression": {"steps": 2, "pairs": 4, "solver_steps": 2}, "optimizer": rate}
    task = distilling(method, max_train_steps=12, student=student, critic={"updates_per_step": 1, "optimizer": rate})
    for step in range(12):
        before, critic, updates = vector(task.student), vector(task.method.critic), int(task.ema.updates)
        seed_step(0, step)
        metrics = task.update(step)
        moved = not torch.equal(before, vector(task.student))
        assert moved == (step < 2 or step >= 5), step
        assert int(task.ema.updates) - updates == moved
        assert (not torch.equal(critic, vector(task.method.critic))) == (step >= 2)
        if step >= 2:
            assert metrics["critic/learning_rate"] == pytest.approx(1e-3 * (1 - (step - 2) / 10))
        if step >= 5:
            assert metrics["student/learning_rate"] == pytest.approx(1e-3 * (1 - (step - 2) / 10))
            assert ("gradient/adversarial" in metrics) == (step >= 7)
    assert told == pytest.approx([k / 10 for k in range(3, 10)])


def test_the_critic_is_updated_as_often_as_asked_with_new_noise(monkeypatch):
    losses = []
    right = DistributionMatching.critic_loss

    def critic_loss(self, x0, cond, real, noise=None):
        losses.append((x0.detach().clone(), noise.eps.clone(), noise.sigma.clone()))
        return right(self, x0, cond, real, noise)

    monkeypatch.setattr(DistributionMatching, "critic_loss", critic_loss)
    task = distilling(critic={"updates_per_step": 3})
    task.update(0)
    assert len(losses) == 3
    (x0, eps, sigma), *others = losses
    for other, noise, level in others:
        assert torch.equal(other, x0)
        assert not torch.equal(noise, eps)
        assert not torch.equal(level, sigma)
    # The step count of Adam: one a call.
    steps = {int(s["step"]) for s in task.critic_updaters[0].optimizer.state.values()}
    assert steps == {3}


def test_critic_and_student_have_laws_of_levels_of_their_own(monkeypatch):
    seen = []
    right = DistributionMatching.critic_noise

    def critic_noise(self, x0, with_real):
        seen.append(right(self, x0, with_real))
        return seen[-1]

    monkeypatch.setattr(DistributionMatching, "critic_noise", critic_noise)
    narrow = {"law": "uniform", "sigma_min": 0.3, "sigma_max": 0.31}
    level = {"law": "lognormal", "mean": 1.0, "std": 0.01}
    task = distilling({"name": "dmd2"}, level=narrow, critic={"updates_per_step": 1, "level": level})
    task.update(0)
    assert seen[0].sigma.log().tolist() == pytest.approx([1.0] * 4, abs=0.05)
    assert seen[0].seen_sigma.tolist() == pytest.approx([0.305] * 4, abs=0.006)


def test_the_method_is_told_the_texts_and_the_size_of_the_parts(monkeypatch):
    told = []
    right = DistributionMatching.student_gradient

    def student_gradient(self, x0, cond, progress, *more):
        told.append(more)
        return right(self, x0, cond, progress, None, *more[1:])

    monkeypatch.setattr(DistributionMatching, "student_gradient", student_gradient)
    task = distilling(micro_batch_size=3)
    monkeypatch.setattr(task, "texts", lambda cond: [f"class {int(c)}" for c in cond])
    task.update(0)
    labels = draw_batch(task.data, 4, 0, 0, False)[1]
    assert told == [([f"class {int(c)}" for c in labels], 3)]


def test_an_update_is_adams_with_its_own_betas_decay_and_rate():
    """Three gradients of one weight, by hand: linear decay of the rate over four steps, decoupled weight decay."""
    weight = torch.nn.Parameter(torch.tensor(1.0))
    settings = Optimizer(learning_rate=0.1, betas=(0.3, 0.9), weight_decay=0.2, schedule="linear")
    updater = Updater("x", [weight], settings, 4)
    theta, first, second = 1.0, 0.0, 0.0
    for step, slope in enumerate((0.5, -0.2, 0.7)):
        (slope * weight).backward()
        updater.step(step)
        rate = 0.1 * (1 - step / 4)
        first, second = 0.3 * first + 0.7 * slope, 0.9 * second + 0.1 * slope**2
        unbiased = first / (1 - 0.3 ** (step + 1)), second / (1 - 0.9 ** (step + 1))
        theta = theta * (1 - rate * 0.2) - rate * unbiased[0] / (math.sqrt(unbiased[1]) + 1e-8)
        assert weight.item() == pytest.approx(theta, rel=1e-5)


def test_every_step_of_a_run_draws_noise_of_its_own(tmp_path):
    """And the same ones from the middle on, and in no other run."""

    class Drawing:
        parts, denoisers = {}, {}

        def update(self, step):
            drawn.append(float(torch.rand(())))
            return {"loss": 0.0}

        def averaged(self):
            return None

    def run(seed, folder):
        drawn.clear()
        folder.mkdir()
        settings = {"output_dir": str(folder), "seed": seed, "max_train_steps": 5, "evaluation": {"at_end": False}}
        more = {"sample_every": 0, "teacher": "none", "method": {"name": "sid"}}
        run_loop(Drawing(), Distill.model_validate(settings | more), folder, None)
        return list(drawn)

    drawn = []
    one, two = run(0, tmp_path / "a"), run(1, tmp_path / "b")
    assert len(set(one + two)) == 10
    assert run(0, tmp_path / "c") == one


def test_infinite_figures_stop_a_run():
    for bad in (float("inf"), -float("inf"), float("nan")):
        with pytest.raises(NonFiniteError, match="x not finite at step 3"):
            finite({"x": torch.tensor(bad), "y": 1.0}, 3)


def test_attention_is_at_the_same_resolutions_down_and_up():
    settings = Network(block_out_channels=(8, 16, 16), norm_num_groups=4, attention_head_dim=8, attention_levels=(0,))
    network = build_unet(settings, torch.Size((1, 8, 8)), None)
    assert network.config.down_block_types == ("AttnDownBlock2D", "DownBlock2D", "DownBlock2D")
    assert network.config.up_block_types == ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D")


def test_levels_of_a_student_descend():
    for levels in ((1.0, 1.0), (1.0, 2.0)):
        with pytest.raises(ConfigError, match="must descend"):
            distilling(student={"steps": 2, "levels": levels})


@pytest.mark.parametrize("phase", ["matching", "regression"])
def test_the_average_is_of_the_weights_after_the_step(phase):
    more = {"optimizer": {"learning_rate": 1e-2}, "ema_decay": 0.6}
    if phase == "regression":
        more |= {"regression": {"steps": 6, "pairs": 4, "solver_steps": 2, "optimizer": more["optimizer"]}}
    task = distilling(student=more)
    average = vector(task.student)
    assert torch.equal(vector(task.averaged()), average)
    for n in range(5):
        task.update(n)
        # (1 + n) / (10 + n) until it reaches the decay: 0.1, 0.18, 0.25, ...
        decay = min(0.6, (1 + n) / (10 + n))
        average = decay * average + (1 - decay) * vector(task.student)
        torch.testing.assert_close(vector(task.averaged()), average, rtol=1e-5, atol=1e-7)
    assert not torch.allclose(average, vector(task.student), atol=1e-3)


# ---- a teacher's training


def learning(monkeypatch, count=512, **more):
    """A `TeacherTask` whose network's calls are recorded: (task, [(x_t, sigma, labels), ...])."""
    settings = {
        "output_dir": "none", "max_train_steps": 10, "train_batch_size": count, "ema_decay": 0.9,
        "network": {"block_out_channels": (8, 16), "attention_head_dim": 8, "norm_num_groups": 4},
    }  # fmt: skip
    task = TeacherTask(Train.model_validate(settings | more), marked(), CPU)
    calls = []

    def forward(self, x_t, sigma, cond=None):
        calls.append((x_t, sigma, cond))
        s = sum(p.sum() for p in self.parameters())
        return (0.1 + s - s.detach()) * x_t

    monkeypatch.setattr(Denoiser, "forward", forward)
    return task, calls


def marked(count=600):
    """Images brighter at the left and at the top, of three classes; the class is written in the middle."""
    ramp = torch.linspace(200, 60, 8)
    images = (0.5 * ramp[None, :] + 0.5 * ramp[:, None]).repeat(count, 1, 1, 1)
    labels = torch.arange(count) % 3
    images[:, 0, 4, 3:5] = labels[:, None] * 50.0
    return ImageSet(images.byte(), labels, None, None, "marked", "0" * 64)


def test_labels_are_dropped_at_the_rate_asked_for_and_become_the_null_class(monkeypatch):
    task, calls = learning(monkeypatch, class_dropout=0.2)
    assert task.model.null_class == 3
    dropped = kept = 0
    for step in range(4):
        task.update(step)
        labels = draw_batch(task.data, 512, 0, step, False)[1]
        told = calls[-1][2]
        null = told == 3
        assert torch.equal(told[~null], labels[~null])
        dropped, kept = dropped + int(null.sum()), kept + int((~null).sum())
    assert dropped / (dropped + kept) == pytest.approx(0.2, abs=4 * (0.2 * 0.8 / 2048) ** 0.5)


def test_without_class_dropout_there_is_no_null_class_and_every_label_is_told(monkeypatch):
    task, calls = learning(monkeypatch, 64, class_dropout=0.0)
    task.update(0)
    assert task.model.null_class is None
    assert torch.equal(calls[-1][2], draw_batch(task.data, 64, 0, 0, False)[1])


@pytest.mark.parametrize("sigma_data", [0.25, 0.5, 1.7])
def test_a_teachers_loss_is_edms(monkeypatch, sigma_data):
    """lambda(sigma) (D - x0)^2, normal noise, ln sigma ~ N(-1.2, 1.2^2): from what the network was shown and said."""
    task, calls = learning(monkeypatch, sigma_data=sigma_data, class_dropout=0.0)
    assert task.model.process.sigma_data == sigma_data
    metrics = task.update(0)
    x_t, sigma, _ = calls[-1]
    x0, s = draw_batch(task.data, 512, 0, 0, False)[0], sigma.reshape(-1, 1, 1, 1)
    noise = ((x_t - x0) / s)[sigma > 0.05].double()
    assert noise.mean().item() == pytest.approx(0, abs=0.03)
    assert noise.var().item() == pytest.approx(1, abs=0.05)
    assert (noise**4).mean().item() == pytest.approx(3, abs=0.3)
    logs = sigma.log()
    assert logs.mean().item() == pytest.approx(-1.2, abs=0.05)
    assert logs.std().item() == pytest.approx(1.2, abs=0.05)
    weight = (s**2 + sigma_data**2) / (s * sigma_data) ** 2
    assert metrics["loss"].item() == pytest.approx((weight * (0.1 * x_t - x0) ** 2).mean().item(), rel=1e-4)


def test_a_teachers_average_is_of_the_weights_after_the_step(monkeypatch):
    task, _ = learning(monkeypatch, 8, optimizer={"learning_rate": 1e-2})
    average = vector(task.model)
    for n in range(3):
        task.update(n)
        decay = (1 + n) / (10 + n)
        average = decay * average + (1 - decay) * vector(task.model)
        torch.testing.assert_close(vector(task.averaged()), average, rtol=1e-5, atol=1e-7)
    assert not torch.allclose(average, vector(task.model), atol=1e-3)


def test_half_of_the_images_are_mirrored_left_to_right_and_keep_their_labels():
    data = marked()
    mirrored = 0
    for step in range(4):
        torch.manual_seed(step)
        x, labels = draw_batch(data, 300, 0, step, True)
        plain, same = draw_batch(data, 300, 0, step, False)
        assert torch.equal(labels, same)
        flipped = (x == plain.flip(-1)).flatten(1).all(1)
        assert bool((flipped | (x == plain).flatten(1).all(1)).all())
        mirrored += int(flipped.sum())
    assert mirrored / 1200 == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("kind", ["train", "distill"])
def test_a_run_mirrors_its_images_where_it_is_asked_to(monkeypatch, kind):
    """Images that grow darker to the right and downwards: mirrored ones grow brighter to the right, none upwards."""
    shown = []
    if kind == "train":
        task, calls = learning(
            monkeypatch,
            200,
            data={"horizontal_flip": True},
            level={"law": "uniform", "sigma_min": 1e-4, "sigma_max": 2e-4},
        )
        task.update(0)
        shown = calls[-1][0]
    else:

        def critic_loss(self, x0, cond, real, noise=None):
            shown.append(real)
            return nothing(self.critic), {}

        monkeypatch.setattr(DistributionMatching, "critic_loss", critic_loss)
        task = distilling(data={"horizontal_flip": True}, train_batch_size=200)
        task.data = marked()
        task.update(0)
        shown = shown[0]
    right = shown[..., 7].mean((1, 2)) - shown[..., 0].mean((1, 2))
    down = shown[..., 7, :].mean((1, 2)) - shown[..., 0, :].mean((1, 2))
    assert bool((down < 0).all())
    assert (right > 0).float().mean().item() == pytest.approx(0.5, abs=0.15)


# ---- figures


def test_the_bootstraps_error_is_the_delta_methods():
    """One feature, Gaussian: the distance is (m - m_r)^2 + (s - s_r)^2, variance (4 dm^2 + 2 ds^2) s^2 / n."""
    n, mean, scale = 3000, 0.7, 1.5
    generator = torch.Generator().manual_seed(2)
    reference = fit(torch.randn(200_000, 1, generator=generator, dtype=torch.float64))
    sample = mean + scale * torch.randn(n, 1, generator=generator, dtype=torch.float64)
    want = math.sqrt((4 * mean**2 + 2 * (scale - 1) ** 2) * scale**2 / n)
    assert bootstrap_error(reference, sample, resamples=400) == pytest.approx(want, rel=0.12)


def test_the_error_is_of_all_images_where_only_a_part_was_resampled():
    """Twice as many images have an error 1 / sqrt(2) as large."""
    generator = torch.Generator().manual_seed(2)
    reference = fit(torch.randn(50_000, 1, generator=generator, dtype=torch.float64))
    sample = 0.7 + 1.5 * torch.randn(4000, 1, generator=generator, dtype=torch.float64)
    few, many = (bootstrap_error(reference, part, resamples=300) for part in (sample[:1000], sample))
    assert few / many == pytest.approx(2, rel=0.15)


# ---- one network in training and in use


def test_a_student_is_the_same_network_in_training_in_use_and_when_published(tmp_path):
    """EDM's networks carry dropout 0.13: student and critic that equal the teacher show a gap of 0, and no pass
    differs from the one before; not when the run is resumed either, and not from the folder.
    """
    from diffdistill.models import SongUNet

    torch.manual_seed(0)
    network = SongUNet(
        sample_size=8, in_channels=1, out_channels=1, model_channels=16, channel_mult=[1, 2], num_blocks=1,
        attn_resolutions=[4], dropout=0.13, preconditioning={"kind": "edm"},
    )  # fmt: skip
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.05 * torch.randn_like(p))
    teacher = Denoiser(network, process_named("edm")).eval()
    settings = {
        "output_dir": "none", "teacher": "edm", "max_train_steps": 4, "train_batch_size": 4,
        "method": {"name": "sid"}, "critic": {"updates_per_step": 1},
    }  # fmt: skip
    task = DistillTask(Distill.model_validate(settings), teacher, gaussian_data((0.0,), 0.3), CPU)
    x0 = 0.4 * torch.randn(4, 1, 8, 8)
    sigma = torch.full((4,), 2.5)

    def passes(task):
        critic = task.method.critic
        return [model(x0, sigma) for model in (task.student, task.student, critic, critic, task.averaged())]

    def equal(first, *others):
        return all(torch.equal(first, other) for other in others)

    with torch.no_grad():
        assert equal(teacher(x0, sigma), *passes(task))
    _, metrics = task.method.student_gradient(x0, None, 0.9)
    assert metrics["score_gap/relative"] == 0
    task.update(0)
    after = DistillTask(Distill.model_validate(settings), teacher, gaussian_data((0.0,), 0.3), CPU)
    store = CheckpointStore(tmp_path / "checkpoints", 1)
    store.save(1, task.parts, {})
    load_checkpoint(store.find("latest")[0], after.parts)
    with torch.no_grad():
        for run in (task, after):
            assert equal(*passes(run)[:2])
            assert equal(*passes(run)[2:4])
        assert equal(task.student(x0, sigma), after.student(x0, sigma))
        after.averaged().save_pretrained(tmp_path / "student", role="student", levels=(2.5,))
        published = Denoiser.from_pretrained(tmp_path / "student")
        assert equal(published(x0, sigma), published(x0, sigma), after.averaged()(x0, sigma))


@pytest.mark.parametrize("features", ["teacher", "critic"])
def test_heads_say_the_same_in_training_and_in_use_under_bf16(monkeypatch, features):
    """What the heads are given may be rounded; what they make of it is float32 in both, to the last bit."""
    from diffdistill.matching.discriminators import Discriminator

    seen = []
    right = Discriminator.forward

    def forward(self, features):
        logits = right(self, features)
        seen.append(([f.detach().clone() for f in features], logits.detach().clone()))
        return logits

    monkeypatch.setattr(Discriminator, "forward", forward)
    bf16 = Device("bf16")
    teacher = tiny_teacher()
    settings = {
        "output_dir": "none", "teacher": "tiny", "max_train_steps": 4, "train_batch_size": 4,
        "critic": {"updates_per_step": 1},
        "method": {"name": "dmd2", "adversarial": {"features": features, "r1": 0.1}},
    }  # fmt: skip
    task = DistillTask(Distill.model_validate(settings), teacher, gaussian_data((0.1, 0.0, -0.2), 0.3), bf16)
    heads = [head.double() for head in copy.deepcopy(task.method.adversarial.discriminator).heads]
    seen.clear()
    x0, cond = 0.4 * torch.randn(4, 1, 8, 8), torch.arange(4) % 3
    task.method.critic_loss(x0, cond, x0.flip(0))
    task.method.student_gradient(x0, cond, 0.9)
    assert len(seen) == 3  # training, its penalty, use
    for given, logits in seen:
        assert logits.dtype == torch.float32
        want = torch.stack([head(f.double()) for head, f in zip(heads, given, strict=True)], 1)
        torch.testing.assert_close(logits.double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["edm", "epsilon", "v_prediction", "flow"])
def test_under_bf16_the_networks_own_output_is_float32_in_every_role(kind):
    """The last layer is not rounded: its outputs are no multiples of bfloat16's steps."""
    network = small_network(None)
    found = {}
    network.conv_out.register_forward_hook(lambda _m, inputs, out: found.update(given=inputs[0], out=out))
    model = Denoiser(network, process_named(kind))
    with torch.no_grad(), Device("bf16").autocast():
        model(torch.randn(2, 1, 8, 8), torch.full((2,), 0.7))
    assert found["given"].dtype == found["out"].dtype == torch.float32
    assert (found["out"] != found["out"].bfloat16().float()).float().mean() > 0.9
    with torch.no_grad():
        want = torch.nn.functional.conv2d(found["given"], network.conv_out.weight, network.conv_out.bias, padding=1)
    torch.testing.assert_close(found["out"], want)


class StubPipeline:
    """What `AlignTask` asks of an adapter, around a network with dropout."""

    image_size = 8

    def __init__(self):
        torch.manual_seed(0)
        self.network = torch.nn.Sequential(
            torch.nn.Conv2d(1, 8, 3, padding=1), torch.nn.Dropout(0.3), torch.nn.Conv2d(8, 1, 1)
        )
        self.scheduler = DDPMScheduler()

    def to(self, device, dtype):
        pass

    def moments(self, pictures):
        return torch.randn(8, 2, 8, 8)

    def latents(self, moments, noise):
        return moments[:, :1]

    def conditions(self, texts, pictures):
        return {}

    def predict(self, network, x_t, t, cond):
        return network(x_t)


@pytest.mark.parametrize("method", ["diffusion_dpo", "mapo"])
def test_alignment_compares_networks_of_one_mode(monkeypatch, method):
    """At the start the network is its reference: every margin over it is 0 and Diffusion-DPO's loss log 2, at each
    update; and the log's figures are those of the network as it is used.
    """
    monkeypatch.setattr(alignment, "pictures_of", lambda *_: [])
    pair = Pair(("a", b""), ("b", b""), "text")
    settings = {
        "output_dir": "none", "model": "stub", "data": {"path": "none"}, "train_batch_size": 4,
        "method": {"name": method}, "optimizer": {"learning_rate": 1e-12},
    }  # fmt: skip
    task = alignment.AlignTask(Align.model_validate(settings), StubPipeline(), PairSet((pair,) * 4, "x", {}, "0"), CPU)
    for step in range(2):
        torch.manual_seed(step)
        metrics = task.update(step)
        if method == "diffusion_dpo":
            assert float(metrics["margin"]) == pytest.approx(0, abs=1e-6)
            assert float(metrics["loss"]) == pytest.approx(math.log(2), abs=1e-4)
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(task.network(x), task.network(x))


def test_a_second_stage_starts_from_the_average_and_the_critic_of_the_first(tmp_path):
    rate = {"learning_rate": 1e-2}
    more = {"student": {"optimizer": rate, "ema_decay": 0.9}, "critic": {"updates_per_step": 1, "optimizer": rate}}
    first = distilling({"name": "dmd2"}, **more)
    for step in range(3):
        first.update(step)
    CheckpointStore(tmp_path / "checkpoints", 1).save(3, first.parts, {})
    second = distilling({"name": "dmd2"}, seed=5, initialize_from=str(tmp_path), **more)
    average = vector(first.averaged())
    assert not torch.allclose(average, vector(first.student), atol=1e-3)
    assert torch.equal(vector(second.student), average)
    assert torch.equal(vector(second.averaged()), average)
    assert torch.equal(vector(second.method.critic), vector(first.method.critic))
    heads = (task.method.adversarial.discriminator for task in (first, second))
    assert torch.equal(*(vector(part) for part in heads))
    assert not second.student_updater.optimizer.state


def test_a_shortened_run_of_regression_keeps_a_step_to_match():
    regression = {"steps": 100, "pairs": 4, "solver_steps": 2}
    assert distilling(student={"regression": regression}, max_train_steps=5).first == 4
    assert distilling(student={"regression": regression | {"steps": 5}}, max_train_steps=5).first == 5
    assert distilling(student={"regression": regression | {"steps": 2}}, max_train_steps=5).first == 2


@pytest.mark.parametrize("size", [None, 3])
def test_the_students_weights_get_the_gradient_of_a_mean_over_images_and_pixels(monkeypatch, size):
    """Adam hides a scale and clipping does not: with a gradient of w at x0 the weights get that of mean(w x0)."""
    w = torch.randn(4, 1, 8, 8)
    monkeypatch.setattr(DistributionMatching, "student_gradient", lambda self, *_: (w, {}))
    task = distilling(micro_batch_size=size)
    x, sigma, cond = torch.randn(4, 1, 8, 8), torch.full((4,), 2.5), draw_batch(task.data, 4, 0, 0, False)[1]
    monkeypatch.setattr(task, "student_input", lambda *_: (x, sigma))
    found = []
    monkeypatch.setattr(
        task.student_updater, "step", lambda _: found.extend(p.grad.clone() for p in task.student.parameters()) or {}
    )
    task.update(0)
    want = torch.autograd.grad((w * task.student(x, sigma, cond)).mean(), list(task.student.parameters()))
    for got, wanted in zip(found, want, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-7)


def test_rates_hold_until_they_decay_and_end_at_zero():
    half = Optimizer(learning_rate=1.0, schedule="linear", decay_from=0.5, warmup_steps=4)
    rates = [Updater("x", [torch.nn.Parameter(torch.zeros(1))], half, 20).rate(step) for step in range(21)]
    want = [(k + 1) / 4 if k < 4 else 1.0 if k <= 10 else (20 - k) / 10 for k in range(21)]
    assert rates == pytest.approx(want)
    cosine = Updater("x", [torch.nn.Parameter(torch.zeros(1))], half.model_copy(update={"schedule": "cosine"}), 20)
    assert [cosine.rate(k) for k in (10, 15, 20)] == pytest.approx([1.0, 0.5, 0.0], abs=1e-12)


def test_an_average_takes_buffers_as_they_are():
    network = torch.nn.BatchNorm1d(2)
    ema = Ema(network, 0.9)
    network.running_mean.fill_(3.0)
    ema.update(network)
    assert ema.module.running_mean.tolist() == [3.0, 3.0]


def test_a_gradient_is_clipped_to_its_bound_over_all_weights():
    weights = [torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1))]
    updater = Updater("x", weights, Optimizer(max_grad_norm=1.0), 10)
    seen = []
    right = updater.optimizer.step
    updater.optimizer.step = lambda: (seen.extend(p.grad.clone() for p in weights), right())[1]
    (3 * weights[0][0] + 4 * weights[1][0]).backward()
    metrics = updater.step(0)
    assert float(metrics["x/grad_norm"]) == pytest.approx(5)
    assert torch.cat(seen).tolist() == pytest.approx([0.6, 0.0, 0.8], abs=1e-6)
