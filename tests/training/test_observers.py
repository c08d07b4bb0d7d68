"""The observers of a run: what happens between its steps, in which order, at the start and at the end."""

import pytest
import torch
from runs import Watcher, go, settings

from diffdistill.errors import ConfigError, NonFiniteError
from diffdistill.evaluation.figures import numbers_of
from diffdistill.training.loop import Observer, run_loop
from diffdistill.training.observers import usual_observers
from diffdistill.training.store import CheckpointStore


class Counting:
    """A task of one weight that notes what is asked of it."""

    def __init__(self, bad=None):
        self.weight, self.bad = torch.nn.Parameter(torch.zeros(1)), bad
        self.parts = {"network": torch.nn.ParameterList([self.weight])}

    def update(self, step):
        self.weight.data += 1
        return {"loss": float("nan") if step == self.bad else 0.5}

    def averaged(self):
        return self.weight

    def networks(self):
        return {}


class Noting(Watcher):
    """Writes what happens into `events`; its FIDs are those given."""

    def __init__(self, events, fids=()):
        self.events, self.fids = events, list(fids)

    def grid(self, model, file):
        file.parent.mkdir(exist_ok=True)
        file.touch()
        self.events.append(f"grid {file.stem[-1]}")

    def evaluate(self, model):
        self.events.append(f"evaluate {int(model)}")
        return {"metrics": {"fid": {"value": self.fids.pop(0) if self.fids else 1.0}}}


@pytest.fixture
def events(monkeypatch):
    events = []
    save = CheckpointStore.save

    def noted(self, step, *args, **more):
        events.append(f"save {step}")
        return save(self, step, *args, **more)

    monkeypatch.setattr(CheckpointStore, "save", noted)
    return events


def observed(tmp_path, events, fids=(), **more):
    config = settings("sid", tmp_path, **{"max_train_steps": 3, "sample_every": 2, "checkpoint_every": 2} | more)
    return go(Counting(), config, tmp_path, Noting(events, fids))


def test_a_run_evaluates_draws_and_saves_in_this_order(tmp_path, events):
    observed(tmp_path, events)
    assert events == ["grid 0", "save 2", "grid 2", "save 3", "evaluate 3", "grid 3"]
    events.clear()
    run = observed(tmp_path, events, resume_from_checkpoint="latest")  # finished: measured for the record alone
    assert events == ["evaluate 3"]
    assert run.evaluation["metrics"]["fid"]["value"] == 1.0
    events.clear()
    observed(tmp_path, events, resume_from_checkpoint="latest", evaluation={"at_end": False})
    assert events == []


def test_a_run_that_is_watched_begins_with_an_evaluation_and_ends_with_the_last_good_model(tmp_path, events):
    stop = {"metric": "fid", "margin": 0.5}
    run = observed(
        tmp_path, events, [5.0, 3.0, 9.0, 3.0], max_train_steps=9, sample_every=9, checkpoint_every=0,
        evaluation={"every": 1, "stop": stop},
    )  # fmt: skip
    fallen = ["save 2", "evaluate 2", "save 2", "evaluate 1", "grid 2"]
    assert events == ["save 0", "evaluate 0", "grid 0", "save 1", "evaluate 1", *fallen]
    assert (run.step, run.ended, run.kept_step, int(run.task.averaged())) == (2, True, 1, 1)
    assert run.evaluation["metrics"]["fid"]["value"] == 3.0


def test_observers_are_called_in_their_order_and_may_end_the_run(tmp_path):
    calls = []

    class Named(Observer):
        def __init__(self, name):
            self.name = name

        def start(self, run):
            calls.append((self.name, "start", run.step))

        def after(self, run):
            calls.append((self.name, run.metrics["loss"], run.step))
            run.ended = run.step == 2

        def end(self, run):
            calls.append((self.name, "end", run.step))

    run_loop(Counting(), settings("sid", tmp_path), tmp_path, [Named("a"), Named("b")])
    assert calls == [
        (name, what, step) for what, step in (("start", 0), (0.5, 1), (0.5, 2), ("end", 2)) for name in "ab"
    ]


def test_a_figure_that_is_not_finite_names_its_step(tmp_path):
    with pytest.raises(NonFiniteError, match="loss not finite at step 2;"):
        go(Counting(bad=2), settings("sid", tmp_path), tmp_path)


def test_a_score_that_nothing_gives_is_refused():
    stop = {"metric": "reward/clip", "margin": 0.1}
    config = settings("sid", "x", evaluation={"every": 1, "metrics": ["fid"], "rewards": ["clip"], "stop": stop})
    watcher = Watcher()
    watcher.scores = ("reward/mine", "reward/other")
    with pytest.raises(ConfigError, match="what scores is reward/mine, reward/other; watch one"):
        usual_observers(config, watcher)
    watcher.scores = ("reward/clip",)
    assert len(usual_observers(config, watcher)) == 6


def test_figures_of_an_evaluation_by_name():
    prdc = {"precision": 0.5, "recall": 0.25, "density": 1.0, "coverage": 0.75, "k": 5}
    assert numbers_of({"metrics": {"fid": {"value": 2.0, "standard_error": 0.1}, "prdc": prdc}}) == {
        "fid": 2.0, "precision": 0.5, "recall": 0.25, "density": 1.0, "coverage": 0.75,
    }  # fmt: skip
