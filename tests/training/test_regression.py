"""The student's start: pairs are the teacher's own trajectories, and regression moves the student towards them."""

import pytest
import torch
from runs import data, go, settings, task
from tiny import tiny_teacher

from diffdistill.config.student import Regression
from diffdistill.errors import ConfigError
from diffdistill.sampling.levels import karras
from diffdistill.sampling.samplers.dpm_solver import dpm_solver
from diffdistill.training.device import Device
from diffdistill.training.tasks.regression import TrajectoryPairs, through


def pairs(teacher, w=1.0, levels=(2.5,), batch=4, **more):
    chosen = Regression(**{"pairs": 12, "solver_steps": 3} | more)
    return TrajectoryPairs(chosen, teacher, levels, data(), Device("no"), batch=batch, seed=7, w=w)


def test_an_image_is_the_solvers_own_of_its_noise_and_label():
    teacher = tiny_teacher()
    x, sigma, image, label = pairs(teacher, w=1.5)[1]
    noise = x / teacher.process.start_scale(2.5)

    def denoise(x, sigma):
        level = torch.full((len(x),), sigma)
        null = teacher(x, level, torch.full_like(label, teacher.null_class))
        return null + 1.5 * (teacher(x, level, label) - null)

    with torch.no_grad():
        mine = dpm_solver(denoise, noise * teacher.sigma_max, karras(3, teacher.sigma_min, teacher.sigma_max))
    assert torch.allclose(image, mine.clamp(-1, 1), atol=1e-6)
    assert image.shape == x.shape == (4, 1, 8, 8)
    assert set(label.tolist()) <= {0, 1, 2}
    assert sigma.tolist() == [2.5] * 4


def test_a_student_of_several_steps_sees_the_trajectory_at_each_of_its_levels():
    teacher, levels = tiny_teacher(), (2.5, 0.7, 0.2)
    x, sigma, image, label = pairs(teacher, levels=levels, batch=64, solver_steps=6)[0]
    at = torch.tensor([levels.index(round(float(level), 4)) for level in sigma])
    counts = torch.bincount(at, minlength=3)
    assert 24 <= counts[0] <= 40  # half of 64, within two standard deviations
    assert min(counts[1:]) >= 8  # a quarter each
    states = {}

    def denoise(x, sigma):
        states[sigma] = x
        return teacher(x, torch.full((len(x),), sigma), label)

    noise = pairs(teacher, batch=64, solver_steps=6)[0][0] / teacher.process.start_scale(2.5)
    with torch.no_grad():
        end = dpm_solver(
            denoise, noise * teacher.sigma_max, through(karras(6, teacher.sigma_min, teacher.sigma_max), levels[1:])
        )
    assert torch.allclose(image, end.clamp(-1, 1), atol=1e-6)
    for k, level in enumerate(levels[1:], 1):
        assert torch.allclose(x[at == k], states[level][at == k], atol=1e-5)
    assert torch.allclose(x[at == 0], 2.5 * noise[at == 0], atol=1e-5)


def test_the_solver_stops_at_the_levels_wanted_and_is_no_longer_for_it():
    grid = karras(10, 0.002, 80.0)
    moved = through(grid, [9.0, 1.5, 0.69])
    assert {9.0, 1.5, 0.69} < set(moved)
    assert len(moved) == len(grid) == len(set(moved))
    assert moved == sorted(moved, reverse=True)
    assert (moved[0], moved[-1]) == (grid[0], 0.0)
    assert len(set(moved) & set(grid)) == len(grid) - 3
    assert through(grid, []) == grid
    near = through(karras(3, 0.1, 80.0), [9.0, 8.9])  # both are nearest to the same level
    assert near == [pytest.approx(80.0), 9.0, 8.9, 0.0]


def test_a_solver_of_fewer_steps_than_the_student_is_refused():
    with pytest.raises(ConfigError, match="solver_steps is 2 and the student has 3 steps"):
        pairs(tiny_teacher(), levels=(2.5, 0.7, 0.2), solver_steps=2)


@pytest.mark.parametrize("levels", [(2.5,), (2.5, 0.7)])
def test_pairs_do_not_depend_on_the_order_in_which_they_are_asked_for(levels):
    first, second = pairs(tiny_teacher(), levels=levels), pairs(tiny_teacher(), levels=levels)
    forward = [first[k] for k in range(3)]
    backward = [second[k] for k in (2, 1, 0)][::-1]
    for mine, theirs in zip(forward, backward, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    assert not torch.equal(forward[0][0], forward[1][0])


def test_every_later_epoch_holds_all_pairs_in_an_order_of_its_own():
    def rows(epoch, made):
        return [row for k in range(3) for row in zip(*made[3 * epoch + k], strict=True)]

    def key(row):
        return tuple(float(value) for part in row for value in part.flatten())

    made, resumed = pairs(tiny_teacher()), pairs(tiny_teacher())
    third = rows(2, resumed)  # a run resumed there has not seen the first two
    epochs = [[key(row) for row in rows(epoch, made)] for epoch in range(3)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert [key(row) for row in third] == epochs[2]


@pytest.mark.parametrize("steps", [1, 2])
def test_regression_learns_the_map_and_leaves_critic_and_teacher_alone(tmp_path, steps):
    regression = {"steps": 60, "pairs": 8, "solver_steps": 2, "optimizer": {"learning_rate": 3e-3}}
    config = settings("dmd2", tmp_path, max_train_steps=61, student={"steps": steps, "regression": regression})
    made = task(config)
    before = {name: value.clone() for name, value in made.parts["critic"].state_dict().items()}
    teacher = {name: value.clone() for name, value in made.method.teacher.state_dict().items()}
    losses = [float(made.update(step)["regression/loss"]) for step in range(60)]
    assert sum(losses[-4:]) < 0.5 * sum(losses[:4])
    assert all(torch.equal(value, before[name]) for name, value in made.parts["critic"].state_dict().items())
    assert all(torch.equal(value, teacher[name]) for name, value in made.method.teacher.state_dict().items())
    assert "critic/loss" in made.update(60)  # matching has begun


def test_the_rates_of_matching_span_what_is_left_of_the_run(tmp_path):
    student = {
        "regression": {"steps": 50},
        "optimizer": {"learning_rate": 1.0, "schedule": "linear"},
    }
    made = task(settings("sid", tmp_path, max_train_steps=150, student=student))
    assert made.student_updater.rate(50) == pytest.approx(0.5)


def test_a_run_of_regression_only_is_a_first_stage(tmp_path):
    regression = {"steps": 3, "pairs": 8, "solver_steps": 2}
    first = settings("sid", tmp_path / "first", max_train_steps=3, student={"regression": regression})
    (tmp_path / "first").mkdir()
    done = task(first)
    go(done, first, tmp_path / "first")
    second = task(settings("dmd2", tmp_path / "second", initialize_from=str(tmp_path / "first")))
    for mine, theirs in zip(second.student.parameters(), done.averaged().parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_shortened_run_still_matches(tmp_path):
    made = task(settings("sid", tmp_path, max_train_steps=2, student={"regression": {"steps": 50, "pairs": 4}}))
    assert "regression/loss" in made.update(0)
    assert "critic/loss" in made.update(1)


def test_regression_that_undoes_a_first_stage_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="initialize_from starts from a distilled student"):
        task(settings("sid", tmp_path, student={"regression": {"steps": 2}}, initialize_from=str(tmp_path)))


def test_in_parts_it_is_the_same_gradient(tmp_path):
    gradients = []
    for size in (None, 3):  # of four: a last part of one
        student = {"regression": {"steps": 5, "pairs": 4, "solver_steps": 2}}
        made = task(settings("sid", tmp_path, max_train_steps=9, student=student, micro_batch_size=size))
        made.regression.updaters[0].optimizer.zero_grad = lambda **_: None  # left to be seen
        figures = made.update(0)
        gradients.append(torch.cat([p.grad.flatten() for p in made.student.parameters()]))
        assert figures["regression/loss"] > 0
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_a_resumed_run_reads_its_pairs_and_makes_none(tmp_path, monkeypatch):
    """To the last bit: those of the run that made them, whatever this machine would make."""
    teacher, made = tiny_teacher(), []
    first = pairs(teacher)
    first.keep(tmp_path / "pairs", {"teacher": "a"})
    seen = [first[k] for k in range(6)]  # an epoch, and another in its own order
    real = TrajectoryPairs._make
    monkeypatch.setattr(TrajectoryPairs, "_make", lambda self, k: made.append(k) or real(self, k))

    def again(**inputs):
        made.clear()
        other = pairs(teacher)
        other.keep(tmp_path / "pairs", inputs)
        found = [other[k] for k in (4, 5)]
        for one, before in zip(found, seen[4:], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, before, strict=True))
        return sorted(made)

    assert again(teacher="a") == []
    file = sorted((tmp_path / "pairs").iterdir())[1]
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert again(teacher="a") == [1]
    assert again(teacher="a") == []  # it was written anew
    assert again(teacher="b") == [0, 1, 2]  # of another teacher, though its pairs are the same


def test_pairs_that_cannot_be_kept_are_made(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    found = pairs(tiny_teacher())
    found.keep(tmp_path / "file", {})
    assert [len(found[k][2]) for k in range(4)] == [4] * 4
    assert [record.message for record in caplog.records if "what was made is not kept" in record.message] != []


def test_the_heads_may_learn_on_the_teachers_images(tmp_path):
    """Those of the pairs, of the classes they were made for, in place of the data's."""
    method = {"adversarial": {"reals": "teacher"}}
    made = task(settings("sid", tmp_path, method=method, student={"steps": 1, "regression": {"pairs": 8}}))
    plain = task(settings("sid", tmp_path, student={"steps": 1, "regression": {"pairs": 8}}))
    _, _, image, label = made.regression.pairs[5]
    real, cond = made.drawn(5, slice(0, 4))
    assert torch.equal(real, image)
    assert torch.equal(cond, label)
    assert not torch.equal(plain.drawn(5, slice(0, 4))[0], image)
