"""Early stop: which evaluations end a run, that the last good model is kept, and that a resume decides alike."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError
from runs import Watcher, go, lines, run, settings, task

from diffdistill.config.align import PairEvaluation
from diffdistill.config.parts import EarlyStop
from diffdistill.config.schema import Evaluation
from diffdistill.errors import CheckpointError, ConfigError
from diffdistill.reporting import health
from diffdistill.reporting.rundata import read_run
from diffdistill.training.early_stop import EarlyStopObserver
from diffdistill.training.resume import check_same_run, settings_of
from diffdistill.training.store import CheckpointStore, command, tensors_of

STOP = {"metric": "fid", "margin": 0.5}


class Figures(Watcher):
    """A monitor whose FIDs are given: of the start, and then of each evaluation."""

    def __init__(self, *values, done=0):
        self.values, self.done, self.seen = values, done, []

    def grid(self, model, file):
        self.drawn = [value.clone() for value in model.state_dict().values()]

    def evaluate(self, model):
        torch.randn(3)  # a real one draws, too
        self.seen.append([value.clone() for value in model.state_dict().values()])
        self.done += 1
        return {"metrics": {"fid": {"value": self.values[min(self.done, len(self.values)) - 1]}}}


def watched(folder, *values, kind="sid", done=0, stop=None, **more):
    folder.mkdir(exist_ok=True)
    evaluation = {"every": 1, "stop": STOP | (stop or {})}
    config = settings(kind, folder, **{"sample_every": 0, "checkpoint_every": 0, "evaluation": evaluation} | more)
    made, observer = task(config), Figures(*values, done=done)
    return made, observer, go(made, config, folder, observer).evaluation


def tensors(made):
    return {f"{name}.{key}": v.clone() for name, part in made.parts.items() for key, v in tensors_of(part).items()}


def same(before, after):
    return before.keys() == after.keys() and all(torch.equal(value, after[name]) for name, value in before.items())


def watch(tmp_path, metric, values, **more):
    log = tmp_path / "metrics.jsonl"
    rows = [{"step": 10 * i, f"evaluation/{metric}": value} for i, value in enumerate(values)]
    log.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"step": 99, "loss": 1.0}]))
    settings = EarlyStop(metric=metric, **{"margin": 0.5} | more)
    return EarlyStopObserver(settings, None, [metric]).verdict(log)


@pytest.mark.parametrize(
    ("metric", "values", "patience", "good", "fallen"),
    [
        ("fid", [], 1, None, False),
        ("fid", [3.0], 1, 0, False),
        ("fid", [3.0, 3.5], 1, 10, False),  # the margin itself is not too much
        ("fid", [3.0, 3.6], 1, 0, True),
        ("fid", [3.0, 2.0, 2.4], 1, 20, False),
        ("fid", [3.0, 2.0, 2.4, 2.6], 1, 20, True),
        ("fid", [3.0, 3.4, 2.5, 3.1], 1, 20, True),  # 3.4 was good until there was a better one
        ("fid", [3.0, 2.0, 2.6], 1, 10, True),
        ("clip", [80.0, 81.0, 80.6], 1, 20, False),
        ("clip", [80.0, 81.0, 80.4], 1, 10, True),
        ("reward/mine", [-0.2, -0.1, -0.7], 1, 10, True),  # of any sign
        ("loss_win", [0.2, 0.9], 1, 0, True),
        ("fid", [2.0, 2.6], 2, 0, False),
        ("fid", [2.0, 2.6, 2.4], 2, 20, False),
        ("fid", [2.0, 2.6, 2.4, 2.6], 2, 20, False),  # in a row
        ("fid", [2.0, 2.6, 2.6], 2, 0, True),
        ("fid", [2.0, 2.6, 1.0, 1.1], 2, 30, False),
        ("fid", [2.0, 2.0, 2.0], 1, 20, False),
    ],
)
def test_a_run_ends_when_its_last_evaluations_are_all_worse_by_more_than_the_margin(
    tmp_path, metric, values, patience, good, fallen
):
    assert watch(tmp_path, metric, values, patience=patience) == (good, fallen)


@pytest.mark.parametrize("kind", ["train", "sid", "dmd2"])
def test_a_run_that_fell_ends_with_everything_as_it_was_when_it_was_last_good(tmp_path, kind):
    whole = run(kind, tmp_path / "whole", max_train_steps=3)
    made, observer, evaluation = watched(tmp_path / "run", 3.0, 2.5, 2.0, 2.2, 2.6, 2.2, kind=kind, max_train_steps=9)
    # Evaluated at 0, 1, 2, 3, 4, where it fell, and once more after going back to 3.
    assert [row["evaluation/fid"] for row in lines(tmp_path / "run") if "evaluation/fid" in row] == [
        3,
        2.5,
        2,
        2.2,
        2.6,
    ]
    assert len(observer.seen) == 6
    assert all(torch.equal(*pair) for pair in zip(observer.seen[3], observer.seen[5], strict=True))
    assert not all(torch.equal(*pair) for pair in zip(observer.seen[3], observer.seen[4], strict=True))
    assert evaluation["metrics"]["fid"]["value"] == 2.2
    if kind == "train":  # whose rate depends on the length of the run
        return
    assert same(whole, tensors(made))


def test_the_last_checkpoint_is_the_last_good_one_and_a_finished_run_stays_finished(tmp_path):
    made, observer, _ = watched(tmp_path / "run", 3.0, 2.0, 2.6, 2.0, sample_every=100)
    assert all(torch.equal(*pair) for pair in zip(observer.seen[1], observer.drawn, strict=True))  # the last grid, too
    store = CheckpointStore(tmp_path / "run" / "checkpoints", 10)
    assert [folder.name for folder in store.folders()] == ["step-000000", "step-000001", "step-000002"]
    log = lines(tmp_path / "run")
    again, observer, evaluation = watched(tmp_path / "run", 0.0, resume_from_checkpoint="latest")
    assert (len(observer.seen), lines(tmp_path / "run")) == (1, log)  # measured for the record, and no more trained
    assert evaluation["metrics"]["fid"]["value"] == 0.0
    assert same(tensors(made), tensors(again))
    # With more patience it goes on, from there.
    _, observer, _ = watched(tmp_path / "run", *[2.1] * 4, resume_from_checkpoint="latest", stop={"patience": 2})
    assert len(observer.seen) == 4
    assert lines(tmp_path / "run")[-1]["step"] == 6


def test_the_last_good_checkpoint_is_never_pruned(tmp_path):
    more = {"stop": {"patience": 9}, "keep_checkpoints": 1, "checkpoint_every": 1}
    watched(tmp_path / "run", 3.0, 2.0, 2.1, 2.6, 2.7, 2.8, 2.9, **more)
    store = CheckpointStore(tmp_path / "run" / "checkpoints", 1)
    assert [folder.name for folder in store.folders()] == ["step-000002", "step-000006"]
    assert command(SimpleNamespace(run=tmp_path / "run", action="prune", keep=1)) == 0
    assert [folder.name for folder in store.folders()] == ["step-000002", "step-000006"]


def test_a_run_goes_on_by_the_protocol_of_its_evaluations(tmp_path):
    """FIDs of other numbers of images, or of other features, cannot tell which model is the best."""

    def asked(**more):
        return settings("sid", tmp_path, evaluation={"every": 1, "stop": STOP, "num_images": 12} | more)

    state = {"step": 1, "settings": settings_of(asked())}
    check_same_run(tmp_path, state, asked(every=2, stop=STOP | {"patience": 3}, metrics=["fid", "kid"]), {})
    for name, other in (("num_images", 24), ("features", "pixels"), ("seed", 3)):
        with pytest.raises(ConfigError, match=f"was made with other evaluation.{name}; resume with"):
            check_same_run(tmp_path, state, asked(**{name: other}), {})
    alone = settings("sid", tmp_path, evaluation={"every": 1, "num_images": 12})
    check_same_run(tmp_path, {"step": 1, "settings": settings_of(alone)}, asked(num_images=24), {})


FALLING = 3.0, 2.0, 2.1, 2.2, 2.6, 2.0


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that its figures end, and its parts."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    made, _, _ = watched(folder, *FALLING, checkpoint_every=1, keep_checkpoints=10)
    return folder, tensors(made)


@pytest.mark.parametrize("cut", [0, 1, 2, 3])
def test_a_resumed_run_ends_where_one_never_stopped_does(whole, tmp_path, cut):
    shutil.copytree(whole[0], tmp_path / "cut")
    for folder in CheckpointStore(tmp_path / "cut" / "checkpoints", 10).folders():
        if int(folder.name[5:]) > cut:
            folder.rename(tmp_path / f"gone-{folder.name}")
    after = 0 if cut == 0 else cut + 1  # from the start, its evaluation is made again
    resumed, _, _ = watched(
        tmp_path / "cut", *FALLING, checkpoint_every=1, keep_checkpoints=10, resume_from_checkpoint="latest",
        done=after,
    )  # fmt: skip
    assert lines(whole[0]) == lines(tmp_path / "cut")
    assert same(whole[1], tensors(resumed))


def test_a_good_checkpoint_that_was_removed_is_missed_in_a_sentence(tmp_path):
    class Careless(Figures):
        def evaluate(self, model):
            shutil.rmtree(tmp_path / "run" / "checkpoints", ignore_errors=True)
            return super().evaluate(model)

    config = settings("sid", tmp_path / "run", sample_every=0, evaluation={"every": 1, "stop": STOP})
    (tmp_path / "run").mkdir()
    with pytest.raises(CheckpointError, match="there is no checkpoint of step 0 "):
        go(task(config), config, tmp_path / "run", Careless(2.0, 3.0))


def test_the_report_says_where_and_why(tmp_path):
    watched(tmp_path / "run", 3.0, 2.0, 2.6, 2.0)
    (tmp_path / "run" / "config.yaml").write_text("evaluation: {stop: {metric: fid, margin: 0.5, patience: 1}}\n")
    data = read_run(tmp_path / "run")
    verdict = health.early_stop(data)
    assert verdict.title == "The run was ended early"
    said = "fid was 2 at best and 2.6 at step 2: the model is that of step 1, with 2 the last within the margin of 0.5"
    assert said in verdict.text
    assert health.quality(data) is None
    (tmp_path / "other").mkdir()
    run("sid", tmp_path / "other")
    (tmp_path / "other" / "config.yaml").write_text("evaluation: {}\n")
    assert health.early_stop(read_run(tmp_path / "other")) is None


def test_watching_without_falling_changes_nothing(tmp_path):
    whole = run("sid", tmp_path / "whole")
    made, _, _ = watched(tmp_path / "run", 2.0)
    assert same(whole, tensors(made))


@pytest.mark.parametrize(
    ("kind", "given", "said"),
    [
        (Evaluation, {"stop": STOP}, "every is 0; set every"),
        (Evaluation, {"every": 5, "stop": STOP | {"metric": "kid"}}, "what is measured is fid; watch one"),
        (Evaluation, {"every": 5, "stop": STOP | {"metric": "reward/clip"}}, "what is measured is fid; watch one"),
        (
            Evaluation,
            {"every": 5, "metrics": ["prdc"], "rewards": ["clip"], "stop": STOP},
            "precision, recall, density, coverage, reward/NAME; watch one",
        ),
        (PairEvaluation, {"every": 5, "stop": STOP}, "margin, win_rate, win_rate_over_start, loss_win; watch one"),
    ],
)
def test_a_figure_that_is_not_measured_is_refused(kind, given, said):
    with pytest.raises(ValidationError, match="stop") as error:
        kind(**given)
    assert said in str(error.value)
    assert Evaluation(every=5, rewards=["clip"], stop=STOP | {"metric": "reward/clip"}).stop.patience == 1
