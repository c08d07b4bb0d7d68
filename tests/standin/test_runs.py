"""Whole runs: what is logged waits once, what resumes is the same, and nothing that is not finite is ever kept."""

import json

import pytest
import torch
from runs import Watcher, lines
from standin import WAITS
from standin_runs import near, numbers, on, same

from diffdistill.errors import NonFiniteError
from diffdistill.optimizers import Optimizer
from diffdistill.training import signals
from diffdistill.training.loop import Observer, run_loop
from diffdistill.training.observers import usual_observers
from diffdistill.training.optim.in_backward import BackwardUpdater
from diffdistill.training.optim.updater import Updater


class Counting(Observer):
    """The waits of each step, with what the observers before it did after the step."""

    def __init__(self):
        self.waits = []

    def start(self, run):
        WAITS.clear()

    def after(self, run):
        self.waits.append(WAITS.count)
        WAITS.clear()


class Drawing(Watcher):
    def grid(self, model, file):
        file.parent.mkdir(exist_ok=True)
        file.touch()


def go(device, folder, kind="dmd2", **more):
    critic = {} if kind == "train" else {"critic": {"updates_per_step": 1}}
    more = {"max_train_steps": 2, "evaluation": {"at_end": False}} | critic | more
    folder.mkdir(parents=True, exist_ok=True)
    task, counting = on(device, kind, folder, **more), Counting()
    config = task.config
    run_loop(task, config, folder, [*usual_observers(config, Drawing()), counting])
    return task, counting.waits


def test_a_run_that_was_resumed_is_the_whole_one_and_nearly_the_cpus(there, tmp_path):
    folder = tmp_path / "run"
    go(there, folder, max_train_steps=1)
    resumed, _ = go(there, folder, resume_from_checkpoint="latest")
    whole, _ = go(there, tmp_path / "whole")
    assert same(numbers(resumed), numbers(whole))
    assert lines(folder) == lines(tmp_path / "whole")
    cpu, _ = go("cpu", tmp_path / "cpu")
    assert [line.keys() for line in lines(tmp_path / "cpu")] == [line.keys() for line in lines(folder)]
    assert near(numbers(whole), numbers(cpu))
    assert json.loads((folder / "checkpoints" / "step-000002" / "state.json").read_text())["step"] == 2


def test_a_step_waits_where_it_is_logged_and_once(there, tmp_path):
    quiet = {"log_every": 2, "sample_every": 0, "checkpoint_every": 0, "max_train_steps": 5}
    _, waits = go(there, tmp_path, "f_distill", **quiet)
    assert waits[:4] == [1, 1, 0, 1]  # the first step is logged too


def spoilt(monkeypatch, name, at, value):
    """The gradients of an updater are multiplied at a step."""
    step = Updater.step

    def spoil(self, now):
        if self.name == name and now == at:
            torch._foreach_mul_([p.grad for p in self.parameters if p.grad is not None], value)
        return step(self, now)

    monkeypatch.setattr(Updater, "step", spoil)


# The last: a norm that overflows, of gradients that do not.
@pytest.mark.parametrize(("where", "value"), [("log", float("nan")), ("checkpoint", float("inf")), ("grid", 1e30)])
def test_an_update_that_was_not_finite_is_found_before_anything_is_kept(where, value, there, tmp_path, monkeypatch):
    every = {"log": "log_every", "checkpoint": "checkpoint_every", "grid": "sample_every"}
    quiet = {"max_train_steps": 9, "log_every": 9, "sample_every": 0, "checkpoint_every": 0} | {every[where]: 3}
    spoilt(monkeypatch, "network", 1, value)
    with pytest.raises(NonFiniteError, match="gradient of the network is not finite at step 1;") as raised:
        go(there, tmp_path, "train", **quiet)
    assert raised.value.exit_code == 5
    assert not list(tmp_path.glob("checkpoints/step-*"))
    assert not list(tmp_path.glob("samples/*3.png"))
    assert [line["step"] for line in lines(tmp_path)] == [1]


def test_a_signal_saves_nothing_of_such_a_run(there, tmp_path, monkeypatch):
    spoilt(monkeypatch, "network", 1, float("nan"))
    monkeypatch.setattr(signals, "_now", signals._now)  # the request is of this run alone

    class Signal(Observer):
        def after(self, run):
            run.stop.requested = run.step == 3

    task = on(there, "train", tmp_path, max_train_steps=9, log_every=9, checkpoint_every=0, sample_every=0)
    with pytest.raises(NonFiniteError, match="at step 1;"):
        run_loop(task, task.config, tmp_path, [Signal()])
    assert not list(tmp_path.glob("checkpoints/step-*"))


def test_weights_that_move_within_the_pass_are_watched_too(there):
    module = torch.nn.Linear(2, 2).to(there)
    updater = BackwardUpdater("network", module.parameters(), Optimizer(max_grad_norm=None), 10)
    noted = []
    for step in range(4):
        updater.begin(step)
        (module(torch.ones(1, 2, device=there)).sum() * (float("nan") if step == 1 else 1.0)).backward()
        WAITS.clear()
        metrics = updater.step(step)
        assert WAITS.count == 0
        noted.append(int(metrics["network/broken_at"]))
    assert noted == [-1, 1, 1, 1]
