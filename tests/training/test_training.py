"""The loop: a resumed run is the run that never stopped; guards act before weights move; checkpoints are whole or
absent.
"""

import os
import shutil
import signal

import pytest
import torch
from runs import STEPS, lines, run, settings, task, without
from safetensors.torch import save_file

from diffdistill.config.schema import Distill, Optimizer
from diffdistill.errors import CheckpointError, ConfigError, DiskError, Interrupted, NonFiniteError, Preempted
from diffdistill.files import new_folder
from diffdistill.process import EDM
from diffdistill.training.kinds.images import student_levels
from diffdistill.training.loop import Log
from diffdistill.training.optim.updater import Ema, Updater
from diffdistill.training.randomness import mix
from diffdistill.training.store import MANIFEST, CheckpointStore, problem_of
from diffdistill.training.tasks.distill import DistillTask


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole run of SiD: its folder, and what its parts are at the end."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    return folder, run("sid", folder)


@pytest.fixture
def copied(finished, tmp_path):
    """The folder of a whole run, to do with as one likes, and what its parts are."""
    shutil.copytree(finished[0], tmp_path / "run")
    return tmp_path / "run", finished[1]


@pytest.mark.parametrize(
    ("kind", "steps"),
    [("train", range(1, STEPS)), ("uni_instruct", range(1, STEPS)), ("dmd2", [3]), ("f_distill", [4]), ("sid", [5])],
)
def test_a_run_resumed_at_any_step_is_bit_equal_to_one_never_stopped(tmp_path, kind, steps):
    whole = run(kind, tmp_path / "whole", checkpoint_every=1)
    assert all(torch.isfinite(value).all() for value in whole.values())
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    for step in reversed(steps):
        without(tmp_path / "parts", step)
        resumed = run(kind, tmp_path / "parts", resume_from_checkpoint="latest", checkpoint_every=1)
        assert whole.keys() == resumed.keys()
        assert all(torch.equal(value, resumed[name]) for name, value in whole.items()), step
        assert lines(tmp_path / "whole") == lines(tmp_path / "parts")


@pytest.mark.parametrize("student_steps", [1, 2])
def test_a_run_that_starts_by_regression_resumes_in_both_phases(tmp_path, student_steps):
    student = {"steps": student_steps, "regression": {"steps": 3, "pairs": 8, "solver_steps": 2, "muon": {}}}
    whole = run("sid", tmp_path / "whole", student=student, checkpoint_every=1)
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    for step in (4, 3, 2, 1):  # 2: the pairs of step 0 are made again, those of a first epoch are not yet
        without(tmp_path / "parts", step)
        resumed = run("sid", tmp_path / "parts", student=student, resume_from_checkpoint="latest", checkpoint_every=1)
        assert all(torch.equal(value, resumed[name]) for name, value in whole.items()), step


def test_looking_does_not_change_the_run(tmp_path):
    often = run("dmd2", tmp_path / "a")
    never = run("dmd2", tmp_path / "b", sample_every=0, checkpoint_every=0, evaluation={"at_end": False})
    assert all(torch.equal(value, never[name]) for name, value in often.items())


def test_seeds_differ_by_step_and_by_run():
    values = {mix(seed, step) for seed in range(20) for step in range(200)}
    assert len(values) == 4000
    assert all(0 <= value < 2**63 for value in values)


def test_resume_falls_back_to_the_newest_whole_checkpoint(copied, tmp_path, capsys):
    _, whole = copied
    without(tmp_path / "run", 4)
    newest = tmp_path / "run" / "checkpoints" / "step-000004" / "student.safetensors"
    damaged = bytearray(newest.read_bytes())
    damaged[len(damaged) // 2] ^= 4
    newest.write_bytes(bytes(damaged))
    resumed = run("sid", tmp_path / "run", resume_from_checkpoint="latest")
    assert "skipped step-000004: student.safetensors has another SHA-256" in "".join(capsys.readouterr())
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_when_no_checkpoint_is_whole_nothing_starts_over(copied, tmp_path):
    for folder in (tmp_path / "run" / "checkpoints").iterdir():
        (folder / MANIFEST).unlink()
    with pytest.raises(CheckpointError, match=r"no checkpoint .* is whole"):
        run("sid", tmp_path / "run", resume_from_checkpoint="latest")


def test_a_checkpoint_that_is_not_there_is_a_sentence(copied, tmp_path):
    with pytest.raises(CheckpointError, match="there are step-000002, step-000004, step-000006"):
        run("sid", tmp_path / "run", resume_from_checkpoint=3)


def test_a_checkpoint_of_another_method_is_refused(copied, tmp_path):
    with pytest.raises(CheckpointError, match=r"has no discriminator.safetensors: it is of another method"):
        run("dmd2", tmp_path / "run", resume_from_checkpoint="latest")


@pytest.mark.parametrize(
    ("number", "error", "code"), [(signal.SIGTERM, Preempted, 75), (signal.SIGINT, Interrupted, 130)]
)
def test_a_signal_saves_at_the_step_boundary(finished, tmp_path, monkeypatch, number, error, code):
    _, whole = finished
    update = DistillTask.update

    def interrupted(self, step):
        if step == 2:
            os.kill(os.getpid(), number)
        return update(self, step)

    monkeypatch.setattr(DistillTask, "update", interrupted)
    with pytest.raises(error, match="stopped at step 3, state saved") as raised:
        run("sid", tmp_path / "run", checkpoint_every=0)
    assert raised.value.exit_code == code
    monkeypatch.setattr(DistillTask, "update", update)
    resumed = run("sid", tmp_path / "run", resume_from_checkpoint="latest")
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def parameter(value=1.0):
    return torch.nn.Parameter(torch.tensor([value]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_non_finite_gradient_stops_before_the_weights_move(bad):
    weight = parameter()
    weight.grad = torch.tensor([bad])
    with pytest.raises(NonFiniteError, match="gradient of the critic is not finite at step 5") as error:
        Updater("critic", [weight], Optimizer(), 10).step(5)
    assert weight.item() == 1.0
    assert error.value.exit_code == 5


def test_non_finite_weights_are_never_published(tmp_path):
    module = torch.nn.Linear(1, 1)
    store = CheckpointStore(tmp_path / "c", 3)
    store.save(1, {"student": module}, {})
    with torch.no_grad():
        module.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="no checkpoint was written"):
        store.save(2, {"student": module}, {})
    assert [f.name for f in (tmp_path / "c").iterdir()] == ["step-000001"]


def test_gradients_are_clipped_to_the_global_norm():
    weights = [parameter(), parameter()]
    for weight, grad in zip(weights, (3.0, 4.0), strict=True):
        weight.grad = torch.tensor([grad])
    updater = Updater("x", weights, Optimizer(max_grad_norm=1.0, betas=(0.0, 0.0)), 10)
    seen = []
    updater.optimizer.register_step_pre_hook(lambda *_: seen.extend(float(w.grad) for w in weights))
    assert float(updater.step(0)["x/grad_norm"]) == pytest.approx(5.0)
    assert seen == pytest.approx([0.6, 0.8], rel=1e-4)


def test_rates_warm_up_hold_and_decay():
    made = Optimizer(learning_rate=1.0, warmup_steps=4, schedule="linear", decay_from=0.5)
    updater = Updater("x", [parameter()], made, 100)
    assert [updater.rate(s) for s in (0, 3, 50, 75, 100)] == pytest.approx([0.25, 1.0, 1.0, 0.5, 0.0])
    cosine = Updater("x", [parameter()], Optimizer(learning_rate=1.0, schedule="cosine"), 100)
    assert [cosine.rate(s) for s in (0, 50, 100)] == pytest.approx([1.0, 0.5, 0.0])


def test_the_average_follows_its_recursion():
    module = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        module.weight.fill_(0.0)
    ema, expected = Ema(module, 0.5), 0.0
    for n in range(8):
        with torch.no_grad():
            module.weight.fill_(float(n))
        ema.update(module)
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * n
    assert ema.module.weight.item() == pytest.approx(expected, rel=1e-6)


def test_retention_keeps_the_newest_and_counts_only_whole_ones(tmp_path):
    store = CheckpointStore(tmp_path / "c", 2)
    module = torch.nn.Linear(2, 2)
    for step in (1, 2, 3):
        store.save(step, {"m": module}, {})
    assert [f.name for f in store.folders()] == ["step-000002", "step-000003"]
    (store.folders()[0] / "state.json").write_text("{}")
    assert "another size" in problem_of(store.folders()[0])
    store.save(4, {"m": module}, {})
    assert "step-000003" in [f.name for f in store.folders()]


def test_no_room_is_a_sentence_and_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path / "c", 2)
    module = torch.nn.Linear(100, 100)
    store.save(1, {"m": module}, {})
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("U", (), {"free": 1000})())
    with pytest.raises(DiskError, match="free space and resume") as error:
        store.save(2, {"m": module}, {})
    assert error.value.exit_code == 6
    assert problem_of(store.folders()[0]) is None


def test_the_log_drops_what_came_after_the_checkpoint(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')
    Log(file, 2).write({"step": 3, "loss": 1.0})
    assert file.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3, "loss": 1.0}\n'


@pytest.mark.parametrize(
    ("student", "sentence"),
    [({"steps": 2, "levels": (2.5,)}, "give one level a step"), ({"steps": 2, "levels": (1.0, 2.0)}, "must descend")],
)
def test_levels_that_do_not_fit_the_steps(student, sentence):
    with pytest.raises(ConfigError, match=sentence):
        student_levels(Distill(output_dir="x", method={"name": "sid"}, student=student), EDM(), 2.5)


def test_noised_data_feeds_later_steps_with_real_images():
    config = settings("sid", "x")
    config = config.model_copy(update={"student": config.student.model_copy(update={"training_input": "noised_data"})})
    made = task(config)
    real = torch.full((4, 1, 8, 8), 5.0)
    inputs = []
    for seed in range(8):
        torch.manual_seed(seed)
        inputs.append(made.student_input(real, torch.zeros(4, dtype=torch.int64)))
    for x, sigma in inputs:
        assert (x.mean() > 4) == (float(sigma[0]) < 2.5)
    assert sorted({float(sigma[0]) for _, sigma in inputs}) == pytest.approx(sorted(made.levels))


def test_weights_are_as_readable_as_other_files(tmp_path):
    run("dmd2", tmp_path / "run")
    with new_folder(tmp_path / "model") as staged:
        save_file({"x": torch.zeros(1)}, staged / "model.safetensors")
    files = list(tmp_path.rglob("*.safetensors"))
    assert len(files) > 1
    assert all(file.stat().st_mode & 0o777 == file.parent.stat().st_mode & 0o666 for file in files)
