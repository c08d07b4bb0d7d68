"""Sweeps: which runs, in turn, each noted; what failed is passed over, what is finished skipped, the rest resumed."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from diffdistill.cli import sweep as sweeping
from diffdistill.cli.grid_of_runs import axes_of, called
from diffdistill.errors import ConfigError

WORDS = ("sweep", "fashion_mnist/dmd2", "critic.updates_per_step=1,2", "seeds=0,1", "max_train_steps=5")
NAMES = [f"updates_per_step={count},seed={seed}" for count in (1, 2) for seed in (0, 1)]


def test_one_value_is_a_setting_and_several_are_runs():
    fixed, axes = axes_of(["a.b-c=1", "seeds=0,1", "betas=[0.9, 0.99],[0, 0.9]"])
    assert fixed == ["a.b_c=1"]
    assert axes == {"seed": ["0", "1"], "betas": ["[0.9, 0.99]", "[0, 0.9]"]}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a=1"], "no setting has several values"),
        (["a"], "'a' is no setting with values"),
        (["a=1,,2"], "'a=1,,2' is no setting with values"),
        (["seed=0,1", "seeds=2,3"], "'seed' is given twice"),
        (["seeds=0,1,0"], "'seeds=0,1,0' has 0 twice, which would be one run"),
        (["output_dir=a,b"], "output_dir is the sweep's own to say"),
    ],
)
def test_what_is_no_sweep_is_refused(words, said):
    with pytest.raises(ConfigError, match=said):
        axes_of(words)


def test_no_two_runs_have_one_folder():
    names = called(["data.path", "seed"], [("a/b", "0"), ("a:b", "0"), ("a-b", "0"), ("x" * 200, "0")])
    assert len(set(names)) == 4
    assert not any("/" in name for name in names)
    assert called(["student.lr", "critic.lr"], [("1", "2")]) == ["student.lr=1,critic.lr=2"]


@pytest.fixture
def ran(monkeypatch, tmp_path):
    """Children that publish a model, or end with the code said for their name; what was run, in order."""
    ran, codes = [], {}

    def command(self, run):
        ran.append(run.name)
        folder, code = self.folder / run.name / "student", codes.get(run.name, 0)
        if code == 0:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "model_index.json").write_text("{}")
            (folder.parent / "metrics.jsonl").write_text('{"step": 1, "time": 1.0}\n')
        end = f"import sys; print('diffdistill: error: no such luck', file=sys.stderr); sys.exit({code})"
        return [sys.executable, "-S", "-c", end if code else ""]

    monkeypatch.setattr(sweeping.Sweep, "command", command)
    monkeypatch.setattr("diffdistill.cli.early.settings", lambda resolved: None)
    return ran, codes


def record(out):
    return json.loads((out / "sweep.json").read_text())["runs"]


def test_a_failed_run_is_noted_and_the_rest_goes_on_and_only_it_is_run_again(ran, ask, tmp_path):
    ran, codes = ran
    out = tmp_path / "out"
    codes[NAMES[1]] = 5
    code, said, err = ask(*WORDS, "--out", str(out))
    assert (code, ran) == (5, NAMES)
    assert "3 of 4 runs are finished, 1 failed" in said
    assert "diffdistill: error: no such luck" in err  # handed on
    state = record(out)[NAMES[1]]
    assert (state["state"], state["exit_code"], state["error"]) == ("failed", 5, "no such luck")
    assert (out / "compare" / "index.html").is_file()
    ran.clear()
    assert ask(*WORDS, "--out", str(out), "--dry-run")[1].splitlines()[:2] == [
        f"{NAMES[0]}  finished, skipped", f"{NAMES[1]}  failed, tried again",
    ]  # fmt: skip
    assert ran == []
    codes.clear()
    assert ask(*WORDS, "--out", str(out))[0] == 0
    assert ran == NAMES[1:2]
    ran.clear()
    assert ask(*WORDS, "seed=7", "--out", str(out))[0] == 2  # twice
    assert ask(*WORDS[:3], "seeds=0,1,2", WORDS[4], "--out", str(out))[0] == 0  # one seed more
    assert ran == ["updates_per_step=1,seed=2", "updates_per_step=2,seed=2"]


def test_other_settings_and_other_folders_are_refused_before_anything_is_run(ran, ask, tmp_path):
    ran, _ = ran
    out = tmp_path / "out"
    assert ask(*WORDS, "--out", str(out))[0] == 0
    ran.clear()
    code, _, err = ask(*WORDS[:4], "max_train_steps=6", "--out", str(out))
    assert code == 2
    assert f"'{out / NAMES[0]}' was run with other settings" in err
    code, _, err = ask(*WORDS[:3], "seeds=0,x", "--out", str(tmp_path / "new"))
    assert code == 2
    assert "'seed' is 'x'" in err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    assert ask(*WORDS, "--out", str(tmp_path / "mine"))[0] == 2
    assert ran == []


def test_a_run_that_was_preempted_ends_the_sweep_and_is_the_next_to_go_on(ran, ask, tmp_path):
    ran, codes = ran
    codes[NAMES[1]] = 75
    code, _, err = ask(*WORDS, "--out", str(tmp_path / "out"))
    assert (code, ran) == (75, NAMES[:2])
    assert f"stopped in run '{NAMES[1]}'; 1 of 4 are finished" in err
    assert f"{NAMES[1]}  resumed" in ask(*WORDS, "--out", str(tmp_path / "out"), "--dry-run")[1]


WAITS = """
import signal, sys, time
from pathlib import Path
def saved(number, frame):
    Path(sys.argv[1]).write_text("saved")
    sys.exit(75)
signal.signal(signal.SIGTERM, saved)
print("ready", file=sys.stderr, flush=True)
time.sleep(60)
"""
PARENT = """
import sys
from diffdistill.cli.sweep import child
from diffdistill.training.signals import stop_requests
from diffdistill.errors import DiffDistillError
try:
    with stop_requests() as stop:
        child([sys.executable, *sys.argv[3:], "-c", sys.argv[1], sys.argv[2]], stop)
except DiffDistillError as error:
    sys.exit(error.exit_code)
"""


def test_a_signal_is_handed_on_and_what_it_saves_is_waited_for(tmp_path, root):
    words = [sys.executable, "-c", PARENT, WAITS, str(tmp_path / "mark"), "-S"]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(root)})
    try:
        assert process.stderr.readline() == b"ready\n"
        time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 75
    finally:
        process.kill()
        process.stderr.close()
    assert (tmp_path / "mark").read_text() == "saved"


RUNS = """
import signal, sys, time
from diffdistill.cli import front
def work(words):
    try:
        print("ready", file=sys.stderr, flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        open(words[0], "w").write("saved")
front._dispatch = work
front.main(sys.argv[1:])
"""


@pytest.mark.skipif(os.name == "nt", reason="parents keep their number there")
def test_a_run_ends_by_itself_where_its_sweep_is_killed(tmp_path, root):
    mark = tmp_path / "mark"
    words = [sys.executable, "-c", PARENT, RUNS, str(mark)]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(root)})
    with process.stderr as told:
        assert told.readline() == b"ready\n"
        process.kill()
        process.wait()
    until = time.monotonic() + 20
    while not mark.exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert mark.read_text() == "saved"
