"""Step-wise variation: the length of a rotation in closed form, its running mean, and a student's term."""

import pytest
import torch
from pydantic import ValidationError
from runs import STEPS, lines, run, settings, task, without
from torch import nn

from diffdistill.errors import ConfigError
from diffdistill.matching.smoothness import PathLength, path_lengths
from diffdistill.methods.base import Smoothness
from diffdistill.training.randomness import seed_step
from diffdistill.training.tasks.smooth import SmoothTerm

SMOOTH = {"student": {"steps": 1}, "method": {"smoothness": {"every": 2, "weight": 3.0}}}
SHAPE = (1, 4, 4)


def rotation(size, seed=0):
    return torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(seed)))[0]


def test_of_a_rotation_times_k_the_length_is_that_of_the_direction():
    """G = k Q z: ||J^T y|| = k ||y||, so (l - a)^2 is moved by k alone: d/dk (l - a)^2 = 2 (l - a) ||y|| / sqrt(d)."""
    q, k = rotation(16), torch.tensor(2.5, requires_grad=True)
    z, y = torch.randn(2, 5, *SHAPE)
    z.requires_grad_()
    lengths = path_lengths((k * z.flatten(1) @ q.T).view_as(z), z, y, scale=2.0)
    of_y = 2.0 * y.flatten(1).norm(dim=1) / 4
    torch.testing.assert_close(lengths, k * of_y)
    mean = PathLength()
    mean.count(torch.tensor(1.0))
    mean.losses(lengths).sum().backward()
    torch.testing.assert_close(k.grad, (2 * (k * of_y - 1) * of_y).sum().detach())


def test_the_mean_begins_as_the_first_batch_and_forgets_by_a_hundredth():
    mean = PathLength(decay=0.01)
    assert mean.losses(torch.tensor([5.0])).tolist() == [0.0]  # nothing to be near to
    for value, wanted in ((4.0, 4.0), (2.0, 3.98), (2.0, 3.9602)):
        mean.count(torch.tensor(value))
        assert mean.mean.item() == pytest.approx(wanted)
    assert mean.losses(torch.tensor([2.9602])).item() == pytest.approx(1.0, rel=1e-5)
    again = PathLength()
    again.load_state_dict(mean.state_dict())
    assert torch.equal(again.losses(torch.ones(2)), mean.losses(torch.ones(2)))


class Linear(nn.Module):
    """D(x) = k x, at the level 2: x = 2 z, so every l is 2 k ||y|| / sqrt(d)."""

    image_shape, device = SHAPE, torch.device("cpu")

    def __init__(self):
        super().__init__()
        self.k = nn.Parameter(torch.tensor(0.5))
        self.process = self

    def start_scale(self, level):
        return level

    def example_condition(self, count, device):
        return None

    def forward(self, x, sigma, cond):
        return self.k * x


@pytest.mark.parametrize("part", [None, 3])
def test_the_term_is_of_every_nth_step_n_times_as_heavy(part):
    made = Linear()
    term = SmoothTerm(Smoothness(weight=0.1, every=3), made, made, 2.0, part)
    x, sigma = torch.randn(8, *SHAPE), torch.full((8,), 2.0)
    found = []
    for step in range(5):
        seed_step(0, step)
        y = torch.randn(8, *SHAPE)
        seed_step(0, step)
        metrics = term.backward(x, sigma, None, slice(0, 8), 8, step)
        assert bool(metrics) is (step % 3 == 0)
        found.append((made.k.grad.item() if made.k.grad is not None else 0.0, 2 * y.flatten(1).norm(dim=1) / 4))
    (first, of_first), (last, of_last) = found[0], found[3]
    assert first == 0.0  # the first only measures
    a = 0.5 * of_first.mean()
    assert last == pytest.approx((0.1 * 3 * 2 * (0.5 * of_last - a) * of_last).mean().item(), rel=1e-4)
    assert metrics == {}
    assert term.lengths.mean.item() == pytest.approx((a + 0.01 * (0.5 * of_last.mean() - a)).item(), rel=1e-5)


def test_a_students_run_keeps_its_mean_and_resumes_as_it_was(tmp_path):
    whole = run("diff_instruct", tmp_path / "whole", **SMOOTH)
    assert whole["smoothness.batches"] == 2  # of the steps 2 and 4; in the first the critic moves alone
    rows = lines(tmp_path / "whole")
    assert [("smoothness/length" in row) for row in rows[:STEPS]] == [
        step % 2 == 0 and step > 0 for step in range(STEPS)
    ]
    assert rows[2]["smoothness/loss"] == 0.0 < rows[4]["smoothness/loss"]
    plain = run("diff_instruct", tmp_path / "plain", student={"steps": 1})
    assert not torch.equal(plain["student.network.conv_in.weight"], whole["student.network.conv_in.weight"])
    run("diff_instruct", tmp_path / "parts", **SMOOTH)
    without(tmp_path / "parts", 4)
    again = run("diff_instruct", tmp_path / "parts", **SMOOTH, resume_from_checkpoint="latest")
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


@pytest.mark.parametrize(
    ("more", "key"),
    [
        ({"student": {"steps": 2}}, "student.steps"),
        ({"attention": "sdpa-flash"}, "attention=auto"),
        ({"gradient_checkpointing": True}, "gradient_checkpointing"),
        ({"speed": {"compile": "regional"}}, "speed.compile"),
        ({"parallel": {"strategy": "fsdp"}}, "parallel.strategy"),
    ],
)
def test_what_has_no_second_derivative_is_refused_by_the_name_of_its_setting(more, key, tmp_path):
    with pytest.raises(ValidationError, match=f"differentiates a one-step student twice; set {key}"):
        settings("diff_instruct", tmp_path, **SMOOTH | more)


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return gradient


def test_a_layer_without_a_second_derivative_is_refused_before_the_first_step(tmp_path, monkeypatch):
    from diffdistill.training.tasks import distill

    class Broken(SmoothTerm):
        def __init__(self, settings, student, images, level, part):
            super().__init__(settings, student, lambda x, *more: images(Once.apply(x), *more), level, part)

    monkeypatch.setattr(distill, "SmoothTerm", Broken)
    with pytest.raises(ConfigError, match=r"a layer of it has no second derivative \(.*once_differentiable"):
        task(settings("diff_instruct", tmp_path, **SMOOTH))
    monkeypatch.undo()
    made = task(settings("diff_instruct", tmp_path, **SMOOTH))
    assert all(weight.grad is None for weight in made.student.parameters())


def test_an_adapter_of_a_text_to_image_student_is_led_too(tmp_path_factory):
    pytest.importorskip("transformers")
    import text_world
    from tiny_text import stable_diffusion

    made = tmp_path_factory.mktemp("smooth")
    stable_diffusion(made / "sd")
    (made / "prompts.txt").write_text("a cat\na dog\n")
    options = {"smoothness": {"every": 1, "weight": 100.0}}
    weights = []
    for chosen in ({}, options):
        lora = {"student": {"steps": 1, "lora": {"rank": 2}}, "critic": {"lora": {"rank": 2}}}
        built = text_world.task(text_world.settings(made, options=chosen, **lora))
        figures = {}
        for step in range(4):
            seed_step(0, step)
            figures = built.update(step)
        weights.append(torch.cat([w.detach().flatten() for w in built.student.parameters() if w.requires_grad]))
    assert figures["smoothness/length"] > 0
    assert not torch.equal(*weights)
