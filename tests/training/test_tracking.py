"""Trackers hear of settings, figures and grids once, however a run is resumed, and no run is lost to one of them."""

import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from accelerate.state import PartialState
from accelerate.tracking import GeneralTracker
from PIL import Image
from runs import Watcher, settings
from test_observers import Counting

from diffdistill import registry
from diffdistill.config.watching import TRACKERS, check_tracker, installed, meant
from diffdistill.errors import ConfigError
from diffdistill.reporting import trackers
from diffdistill.training.loop import Observer, run_loop
from diffdistill.training.observers import usual_observers
from diffdistill.training.tracking import Trackers


class Fake(GeneralTracker):
    """What a tracker of accelerate's kind is told, over all sittings."""

    name, requires_logging_directory, main_process_only = "fake", False, True
    heard: list

    def __init__(self, run_name, **given):
        super().__init__()
        self.given = given

    def start(self):
        self.heard.append(("start", self.given.get("id")))

    @property
    def tracker(self):
        return self

    def store_init_configuration(self, values):
        self.heard.append(("settings", values["max_train_steps"], values["method.name"]))

    def log(self, values, step=None, **_):
        if self.broken_at == step:
            raise OSError("no route to host")
        self.heard += [(step, name, value) for name, value in values.items()]

    def log_images(self, values, step=None, **_):
        self.heard += [(step, name, np.asarray(pictures[0]).shape) for name, pictures in values.items()]

    def finish(self):
        self.heard.append("finish")

    broken_at = None


@pytest.fixture
def heard(monkeypatch):
    kind = type("Kind", (Fake,), {"heard": [], "broken_at": None})
    monkeypatch.setattr(trackers, "_class", lambda name: kind)
    monkeypatch.setattr("diffdistill.config.watching.installed", lambda name: True)
    return kind


class Drawing(Watcher):
    def grid(self, model, file):
        file.parent.mkdir(exist_ok=True)
        Image.new("L", (4, 6)).save(file)


class Killed(Exception):
    pass


class Kill(Observer):
    def __init__(self, step):
        self.step = step

    def after(self, run):
        if run.step == self.step:
            raise Killed


def sitting(folder, names=("wandb",), kill=None, **more):
    config = settings("sid", folder, **{"max_train_steps": 6, "sample_every": 3, "report_to": names} | more)
    resolved = SimpleNamespace(config=config, text_yaml="the settings")
    extra = [] if kill is None else [Kill(kill)]
    return run_loop(Counting(), config, folder, [Trackers(resolved), *usual_observers(config, Drawing()), *extra])


FIGURES = [(step, "loss", 0.5) for step in range(1, 7)]
PICTURES = [(step, "samples", (6, 4, 3)) for step in (0, 3, 6)]


def test_a_run_is_told_once_though_it_was_killed_after_a_checkpoint_and_resumed(tmp_path, heard):
    with pytest.raises(Killed):
        sitting(tmp_path, kill=5, checkpoint_every=4)  # the log has 5 steps, the checkpoint 4
    assert heard.heard[-1] == "finish"
    sitting(tmp_path, resume_from_checkpoint="latest")
    told = heard.heard
    assert sorted(what for what in told if what[1] == "loss") == FIGURES
    assert [what[0] for what in told if what[1] == "seconds"] == [1, 2, 3, 4, 5, 6, 6]  # 6 with its evaluation
    assert sorted(what for what in told if what[1] == "samples") == PICTURES
    assert [what for what in told if what[1] == "evaluation/fid"] == [(6, "evaluation/fid", 1.0)]
    begun = [what for what in told if what[0] == "start"]
    assert len(begun) == 2
    assert len(set(begun)) == 1  # the same run for the tracker
    assert [what for what in told if what[0] == "settings"] == [("settings", 6, "sid")]
    assert PartialState._shared_state == {}  # nothing of accelerate's is left behind


def test_a_tracker_that_comes_later_is_told_what_was_logged_before(tmp_path, heard):
    with pytest.raises(Killed):
        sitting(tmp_path, names=(), kill=5, checkpoint_every=4)
    assert heard.heard == []  # never begun where it is not asked for
    sitting(tmp_path, resume_from_checkpoint="latest")
    assert sorted(what for what in heard.heard if what[1] == "loss") == FIGURES


def test_a_new_run_in_a_folder_of_the_same_name_is_another_one(tmp_path, heard):
    for name in ("a", "b"):
        (tmp_path / name / "run").mkdir(parents=True)
        sitting(tmp_path / name / "run")
    begun = [what for what in heard.heard if what[0] == "start"]
    assert len(set(begun)) == 2


def test_a_tracker_that_fails_is_left_out_and_the_run_goes_on(tmp_path, heard, capsys):
    heard.broken_at = 3
    run = sitting(tmp_path)
    assert run.step == 6
    assert [what for what in heard.heard if what[1] == "loss"] == FIGURES[:2]
    assert capsys.readouterr().err.count("warning: wandb is told no more of this run: no route to host") == 1


def test_one_that_is_not_installed_is_a_sentence_before_training(monkeypatch, ask, tmp_path):
    monkeypatch.setattr("diffdistill.config.watching.installed", lambda name: False)
    out = f"output_dir={tmp_path / 'run'}"
    code, _, err = ask("distill", "fashion_mnist/dmd2", "report_to=[wandb]", out)
    assert code == 2
    assert err.startswith("diffdistill: error: override 'report_to=[wandb]': report_to names 'wandb', which is not ")
    assert err.endswith("pip install 'diffdistill[wandb]', or leave it out\n")
    assert not (tmp_path / "run").exists()
    assert ask("distill", "fashion_mnist/dmd2", "report_to=all", out)[0] == 2
    code, _, err = ask("distill", "fashion_mnist/dmd2", "report_to=wandbb", out)
    assert "report_to is 'wandbb'; it must be none, tensorboard, wandb, trackio, mlflow, all, FILE.py:NAME" in err
    with pytest.raises(ConfigError, match="is code, which would be run"):
        check_tracker("mine.py:Tracker")


def test_all_are_those_that_are_installed_each_once(monkeypatch):
    monkeypatch.setattr("diffdistill.config.watching.installed", lambda name: name != "mlflow")
    assert meant(("trackio", "all")) == ("trackio", "tensorboard", "wandb")


def test_wandb_without_a_key_works_offline_and_asks_nobody(tmp_path, heard, monkeypatch):
    for word in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(word, raising=False)
    netrc = tmp_path / "netrc"
    monkeypatch.setenv("NETRC", str(netrc))
    begin = trackers.BEGIN["wandb"]
    assert begin("wandb", tmp_path, "k", {}, 0)[0].given["mode"] == "offline"
    netrc.write_text("machine api.wandb.ai login user password secret\n")
    netrc.chmod(0o600)
    assert "mode" not in begin("wandb", tmp_path, "k", {}, 0)[0].given


def test_a_tracker_of_the_users_own_is_a_class_in_a_file(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from accelerate.tracking import GeneralTracker\nTOLD = []\n"
        "class Mine(GeneralTracker):\n    name, requires_logging_directory = 'mine', False\n"
        "    def __init__(self, run_name):\n        super().__init__()\n"
        "    @property\n    def tracker(self):\n        return self\n"
        "    def log(self, values, step=None, **_):\n        TOLD.append(step)\n"
    )
    registry.allow_code()
    (tmp_path / "run").mkdir()
    sitting(tmp_path / "run", names=(f"{tmp_path / 'mine.py'}:Mine",), max_train_steps=2)
    assert registry.load(f"{tmp_path / 'mine.py'}:TOLD") == [1, 2, 2]


def test_a_launcher_s_words_make_no_group_of_accelerate_s(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    with trackers.alone_in_accelerate():
        assert PartialState().num_processes == 1
    assert os.environ["WORLD_SIZE"] == "2"


@pytest.mark.skipif(not installed("tensorboard"), reason="needs tensorboard")
def test_tensorboard_has_each_figure_once_with_its_picture(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with pytest.raises(Killed):
        sitting(tmp_path, names=("tensorboard",), kill=5, checkpoint_every=4)
    sitting(tmp_path, names=("tensorboard",), resume_from_checkpoint="latest")
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4, 5, 6]
    assert [event.step for event in events.Images("samples")] == [0, 3, 6]
    assert sorted(events.Tags()["tensors"]) == ["settings/text_summary"]


def test_every_tracker_has_a_class_of_accelerate_s():
    assert TRACKERS.keys() == trackers.BEGIN.keys()
    assert {trackers._class(name).name for name in TRACKERS} == set(TRACKERS)
    assert not any(name in sys.modules for name in ("wandb", "mlflow", "trackio"))
