"""Going on: branches apart, the same inputs and settings, damaged side files, the early stop caught up."""

import json

import pytest
from counting import Counting, Doing, count, saved
from runs import lines, settings

from diffdistill.errors import ConfigError, DiskError
from diffdistill.training import loop as loop_module
from diffdistill.training.loop import run_loop
from diffdistill.training.observers import usual_observers
from diffdistill.training.resume import differing, settings_of


def test_an_earlier_step_begins_a_branch_and_the_other_is_kept_apart(tmp_path, capsys):
    count(tmp_path, checkpoint_every=1, sample_every=1)
    run = count(tmp_path, resume_from_checkpoint=2, max_train_steps=4, keep_checkpoints=1)
    assert (run.step, saved(tmp_path), saved(tmp_path / "abandoned-1")) == (4, [4], [3, 4, 5, 6])
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4]
    assert [line["step"] for line in lines(tmp_path / "abandoned-1")] == [1, 2, 3, 4, 5, 6]
    pictures = sorted(path.stem for path in (tmp_path / "abandoned-1" / "samples").iterdir())
    assert pictures == ["step-000003", "step-000004", "step-000005", "step-000006"]
    assert "step-000006 are in" in capsys.readouterr().out
    assert count(tmp_path, resume_from_checkpoint="latest", max_train_steps=8).step == 8
    assert int(count(tmp_path, resume_from_checkpoint="latest", max_train_steps=8).task.averaged()) == 8
    old = count(tmp_path / "abandoned-1", resume_from_checkpoint="latest", max_train_steps=7)  # a run as before
    assert int(old.task.averaged()) == 7


def test_a_kill_while_a_branch_is_set_aside_leaves_the_old_one(tmp_path, monkeypatch):
    count(tmp_path, checkpoint_every=1)
    rename = type(tmp_path).rename

    def killed(self, target):
        if self.name == "step-000005":
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(type(tmp_path), "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            count(tmp_path, resume_from_checkpoint=2)
    assert saved(tmp_path) == [1, 2, 3, 4, 5]
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert count(tmp_path, resume_from_checkpoint="latest").step == 6


def test_a_broken_checkpoint_is_set_aside_when_the_run_goes_on_from_an_older_one(tmp_path):
    count(tmp_path, checkpoint_every=2, max_train_steps=4)
    (tmp_path / "checkpoints" / "step-000004" / "state.json").write_text("{}")
    count(tmp_path, resume_from_checkpoint="latest", max_train_steps=3)
    assert (saved(tmp_path), saved(tmp_path / "abandoned-1")) == ([2, 3], [4])


def test_less_than_was_trained_is_refused(tmp_path):
    count(tmp_path)
    with pytest.raises(ConfigError, match=r"max_train_steps is 4 and .* is of step 6; raise it"):
        count(tmp_path, resume_from_checkpoint="latest", max_train_steps=4)
    assert saved(tmp_path) == [6]


def from_inputs(folder, inputs, **more):
    folder.mkdir(exist_ok=True)
    config = settings("sid", folder, **{"sample_every": 0, "evaluation": {"at_end": False}} | more)
    return run_loop(Counting(), config, folder, usual_observers(config, Doing()), inputs)


def test_other_content_under_the_same_path_is_refused_and_may_be_wanted(tmp_path):
    from_inputs(tmp_path, {"data": "1", "teacher": "2"})
    other = {"data": "1", "teacher": "3"}
    more = {"resume_from_checkpoint": "latest", "max_train_steps": 7}
    with pytest.raises(ConfigError, match=r"the content of teacher 'tiny' is not what .* was trained with; put the"):
        from_inputs(tmp_path, other, **more)
    assert saved(tmp_path) == [2, 4, 6]
    assert from_inputs(tmp_path, other, allow_changed_inputs=True, **more).step == 7
    assert from_inputs(tmp_path, other, **more).step == 7  # from here on this is what the run is made from


def test_other_settings_are_told_by_the_checkpoint(tmp_path):
    count(tmp_path)
    with pytest.raises(ConfigError, match=r"was made with other seed, train_batch_size; resume with"):
        count(tmp_path, resume_from_checkpoint="latest", seed=1, train_batch_size=5, max_train_steps=9)


@pytest.mark.parametrize("inputs", [{}, {"data": "1"}])
def test_data_may_lie_elsewhere_where_their_content_is_known(tmp_path, inputs):
    from_inputs(tmp_path, inputs, data={"path": "here"})
    more = {"resume_from_checkpoint": "latest", "max_train_steps": 7, "data": {"path": "there"}}
    if inputs:
        assert from_inputs(tmp_path, inputs, **more).step == 7
        return
    with pytest.raises(ConfigError, match=r"was made with other data\.path"):
        from_inputs(tmp_path, inputs, **more)


def test_what_an_older_version_did_not_record_is_no_difference():
    assert differing(None, {"a": 1}) == []
    assert differing({"a": 1, "gone": 2}, {"a": 1, "new": 3}) == []
    assert differing({"a": {"b": 1, "c": [1]}}, {"a": {"b": 2, "c": [1], "d": 4}}) == ["a.b"]


@pytest.mark.parametrize(
    "damage", [b"", b"\0" * 300, b"\xff\xfe\0" * 40, b"3\n[4]\n{}\n", b'{"step": "x"}\n', b"[" * 9**5]
)
def test_a_damaged_log_does_not_end_a_run(tmp_path, damage):
    count(tmp_path)
    (tmp_path / "metrics.jsonl").write_bytes(damage + b'{"step": 6, "loss": 0.5}\n')
    count(tmp_path, resume_from_checkpoint="latest", max_train_steps=7)
    assert [line["step"] for line in lines(tmp_path)][-1] == 7


def test_a_folder_in_the_place_of_the_log_is_a_sentence(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(DiskError, match="is a folder and should be the log of the run"):
        count(tmp_path)


def test_checkpoints_come_by_time_too(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(loop_module.time, "monotonic", lambda: now[0])

    def slow(step):
        now[0] += 240.0

    count(tmp_path, slow)
    assert saved(tmp_path) == [3, 6]
    count(tmp_path / "never", slow, checkpoint_minutes=0)
    assert saved(tmp_path / "never") == [6]
    count(tmp_path / "steps", slow, checkpoint_every=5)
    assert saved(tmp_path / "steps") == [5, 6]


FALLING = {"evaluation": {"every": 1, "at_end": False, "stop": {"metric": "fid", "margin": 0.5}}}


class Falling(Doing):
    """Its FID is worse from step 3 on."""

    def evaluate(self, model):
        self.note("evaluate", model)
        return {"metrics": {"fid": {"value": 9.0 if int(model) > 2 else 1.0}}}


@pytest.mark.parametrize(("what", "steps", "nth"), [("evaluate", 3, 1), ("evaluate", 2, 2)])
def test_a_run_that_fell_ends_the_same_when_killed_on_its_way_back(tmp_path, what, steps, nth):
    """At step 3 it is measured, goes back to step 2, and is measured again: a kill comes in each."""
    times = []

    def killed(*now):
        times.extend([now] if now == (what, steps) else [])
        if len(times) == nth:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        count(tmp_path / "run", monitor=Falling(killed), **FALLING)
    again = count(tmp_path / "run", monitor=Falling(), resume_from_checkpoint="latest", **FALLING)
    whole = count(tmp_path / "whole", monitor=Falling(), **FALLING)
    for run in (again, whole):
        assert (run.step, run.kept_step, run.ended, int(run.task.averaged())) == (3, 2, True, 2)
        assert run.evaluation["metrics"]["fid"]["value"] == 1.0
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")
    state = json.loads((tmp_path / "run" / "checkpoints" / "step-000003" / "state.json").read_text())
    assert state["went_back"] == 2


def test_all_but_length_place_and_what_is_looked_at_make_the_run(tmp_path):
    """What changes a weight may not change within a run; a new setting belongs to the run until it is said not to."""
    looks = {"log_every", "sample_every", "evaluation", "checkpoint_every", "checkpoint_minutes", "keep_checkpoints"}
    looks |= {"print_every", "report_to", "sample_classes", "sample_prompts"}
    place = {"output_dir", "resume_from_checkpoint", "allow_changed_inputs", "max_train_steps", "num_threads"}
    shared = {"parallel"}  # what a process holds of a weight
    config = settings("sid", tmp_path)
    assert settings_of(config).keys() == type(config).model_fields.keys() - looks - place - shared
