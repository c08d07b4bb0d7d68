"""A distillation: what the student is shown, when each part moves, what starts a second stage."""

from itertools import pairwise

import pytest
import torch
from by_hand import Net
from small_tasks import distilling, nothing, vector

from diffdistill.errors import ConfigError
from diffdistill.matching.step import DistributionMatching
from diffdistill.training.randomness import seed_step
from diffdistill.training.store import CheckpointStore


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

    def critic_losses(self, x0, cond, real, noise=None):
        seen.append((real.clone(), cond.clone()))
        yield nothing(self.critic), {}

    monkeypatch.setattr(DistributionMatching, "critic_losses", critic_losses)
    task = distilling(seed=3)
    for step in range(3):
        task.update(step)
        want = task.data.draw(4, 3, step, False)
        assert all(torch.equal(a, b) for a, b in zip(seen[-1], want, strict=True))
    assert not torch.equal(seen[0][0], seen[1][0])


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
    right = DistributionMatching.critic_losses

    def critic_losses(self, x0, cond, real, noise=None):
        losses.append((x0.detach().clone(), noise.eps.clone(), noise.sigma.clone()))
        return right(self, x0, cond, real, noise)

    monkeypatch.setattr(DistributionMatching, "critic_losses", critic_losses)
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
    task.update(1)
    labels = task.data.draw(4, 0, 1, False)[1]
    assert [more[:2] for more in told] == [([f"class {int(c)}" for c in labels], 3)]


def test_levels_of_a_student_descend():
    for levels in ((1.0, 1.0), (1.0, 2.0)):
        with pytest.raises(ConfigError, match="must descend"):
            distilling(student={"steps": 2, "levels": levels})


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
    x, sigma, cond = torch.randn(4, 1, 8, 8), torch.full((4,), 2.5), task.data.draw(4, 0, 1, False)[1]
    monkeypatch.setattr(task, "student_input", lambda *_: (x, sigma))
    found = []
    monkeypatch.setattr(
        task.student_updater, "step", lambda _: found.extend(p.grad.clone() for p in task.student.parameters()) or {}
    )
    task.update(1)
    want = torch.autograd.grad((w * task.student(x, sigma, cond)).mean(), list(task.student.parameters()))
    for got, wanted in zip(found, want, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-7)
