"""Signals: obeyed at once wherever nothing is lost by it, at the end of an update and its save elsewhere."""

import os
import signal
import subprocess
import sys
import time
from importlib import import_module

import pytest
from counting import Doing, count, saved
from runs import lines

from diffdistill import imports
from diffdistill.errors import Interrupted, Preempted
from diffdistill.training import store as store_module
from diffdistill.training.signals import Stopped, StopRequest, stop_requests, stoppable, stops

SIGNALS = [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGXCPU, signal.SIGINT]


def raising(number, when):
    """Something to call that sends a signal to this process when called so."""

    def send(*words):
        if words == when:
            os.kill(os.getpid(), number)

    return send


@pytest.mark.parametrize("number", SIGNALS)
def test_each_signal_ends_a_step_with_its_state_saved(tmp_path, number):
    error = Interrupted if number == signal.SIGINT else Preempted
    with pytest.raises(error, match="stopped at step 3, state saved; continue with resume_from_checkpoint=latest"):
        count(tmp_path, raising(number, (2,)))
    assert saved(tmp_path) == [3]
    run = count(tmp_path, resume_from_checkpoint="latest")
    assert (run.step, int(run.task.averaged())) == (6, 6)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("what", ["evaluate", "grid"])
@pytest.mark.parametrize("step", [2, 6])
def test_looking_at_the_model_is_left_at_once_and_done_when_resumed(tmp_path, what, step):
    def long(*now):
        if now == (what, step):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(30)

    more = {"sample_every": 2, "evaluation": {"every": 2}}
    began = time.monotonic()
    with pytest.raises(Preempted, match=f"stopped at step {step}, state saved"):
        count(tmp_path / "run", monitor=Doing(long), **more)
    assert time.monotonic() - began < 5
    assert saved(tmp_path / "run")[-1] == step
    monitor = Doing()
    count(tmp_path / "run", monitor=monitor, resume_from_checkpoint="latest", **more)
    assert f"{what} {step}" in monitor.seen
    count(tmp_path / "whole", **more)
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")


def test_a_kill_while_the_last_model_is_measured_loses_no_step(tmp_path):
    def killed(*now):
        raise RuntimeError

    with pytest.raises(RuntimeError):
        count(tmp_path, monitor=Doing(killed), evaluation={"at_end": True})
    assert saved(tmp_path) == [6]


def test_what_an_update_makes_before_weights_move_is_left_at_once(tmp_path):
    def pairs(step):
        if step == 2:
            with stoppable():
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(30)

    with pytest.raises(Preempted, match="stopped at step 2, state saved"):
        count(tmp_path, pairs)
    assert saved(tmp_path) == [2]


def test_a_save_is_finished_whatever_comes(tmp_path, monkeypatch):
    save = store_module.save_file

    def interrupted(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        save(*args)

    monkeypatch.setattr(store_module, "save_file", interrupted)
    with pytest.raises(Preempted, match="stopped at step 2"):
        count(tmp_path, checkpoint_every=2)
    assert saved(tmp_path) == [2]


def test_a_signal_to_process_and_group_is_one_and_a_later_ctrl_c_does_not_wait(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    stop = StopRequest()
    with stop.held():
        stop.handle(signal.SIGTERM, None)
        now[0] = 0.9
        stop.handle(signal.SIGTERM, None)
        stop.handle(signal.SIGINT, None)
        now[0] = 60.0
        stop.handle(signal.SIGXCPU, None)  # the system repeats it every second
        stop.handle(signal.SIGUSR1, None)
        with pytest.raises(KeyboardInterrupt):
            stop.handle(signal.SIGTERM, None)
        with pytest.raises(KeyboardInterrupt):
            stop.handle(signal.SIGINT, None)
    assert stop.error is Preempted
    with pytest.raises(Stopped):
        stop.obey()


def test_handlers_are_given_back_and_no_error_handler_takes_a_stop_for_an_error():
    before = signal.getsignal(signal.SIGTERM)

    @stops
    def loading():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        except Exception as error:  # as code does that fetches models
            raise AssertionError from error

    with pytest.raises(Preempted, match="before a step was trained"):
        loading()
    assert signal.getsignal(signal.SIGTERM) == before
    with stop_requests() as outer, stop_requests() as inner:
        assert outer is inner


def test_nohup_stays(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_requests():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


HALF_MADE = """import os, signal, time
try:
    os.kill(os.getpid(), signal.{name})
    time.sleep(0.1)
except BaseException:  # as the C code of torch does, which then fails in words of its own
    raise AttributeError("partially initialized module")
def train(resolved):
    time.sleep(30)
"""


@pytest.mark.parametrize(("name", "error"), [("SIGTERM", Preempted), ("SIGINT", Interrupted)])
def test_a_signal_in_the_middle_of_an_import_is_obeyed_at_its_end(tmp_path, monkeypatch, name, error):
    (tmp_path / "half_made.py").write_text(HALF_MADE.format(name=name))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "half_made", raising=False)
    began = time.monotonic()
    with pytest.raises(error, match="before a step was trained"), stop_requests():
        import_module("half_made").train(None)
    assert time.monotonic() - began < 5
    assert callable(sys.modules["half_made"].train)  # it is whole
    assert imports._until == {}


def test_a_signal_waits_for_an_import_a_while_and_no_longer(tmp_path, monkeypatch):
    """As for that of a script that does its work while it is imported."""
    monkeypatch.setattr(imports, "MOST", 0.2)
    (tmp_path / "working.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(30)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    began = time.monotonic()
    with pytest.raises(Preempted), stop_requests():
        import_module("working")
    assert 0.2 <= time.monotonic() - began < 5


TRAIN = ("train", "fashion_mnist/teacher", "output_dir=run", "data.path=builtin:emoji")


@pytest.mark.parametrize(
    ("words", "name", "code", "told"),
    [
        (TRAIN, "SIGTERM", 75, "stopped before a step was trained"),
        (("verify",), "SIGTERM", 130, "ended by SIGTERM"),
        (("verify",), "SIGINT", 130, "interrupted"),
    ],
)
def test_a_signal_while_libraries_are_loaded_is_obeyed(tmp_path, words, name, code, told):
    # A library in the place of the verb's own modules, which take seconds.
    library = HALF_MADE.format(name=name) + "run = train\n"
    script = (
        "import signal, sys, runpy\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # shells let what they start behind ignore it
        "from importlib.util import spec_from_loader\n"
        "class Finder:\n"
        "    def find_spec(self, name, *more):\n"
        "        if name in ('diffdistill.training.run', 'diffdistill.parts.verification.command'):\n"
        "            return spec_from_loader(name, self)\n"
        "    def create_module(self, spec): pass\n"
        "    def exec_module(self, module):\n"
        f"        exec({library!r}, vars(module))\n"
        "sys.meta_path.insert(0, Finder())\n"
        f"sys.argv = ['diffdistill', *{words!r}]\n"
        "try: runpy.run_module('diffdistill', run_name='__main__', alter_sys=False)\n"
        "finally: assert 'torch' not in sys.modules\n"  # what is asked to end imports nothing for it
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == code, done.stderr
    assert told in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()
