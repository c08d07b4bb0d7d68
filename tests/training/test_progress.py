"""Lines of progress where there is no terminal, and the grids that a user chooses."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from runs import Watcher, go, settings
from test_observers import Counting
from tqdm import tqdm

from diffdistill.errors import ConfigError
from diffdistill.training import loop, progress
from diffdistill.training.monitors import images, texts
from diffdistill.training.monitors.images import check_classes


@pytest.fixture
def lines(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(loop, "tqdm", partial(tqdm, disable=True))  # as where there is no terminal
    monkeypatch.delenv(progress.QUIET, raising=False)

    def run(**more):
        config = settings("sid", tmp_path, max_train_steps=5, sample_every=0, **more)
        go(Counting(), config, tmp_path, Watcher())
        return [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]

    return run


def test_every_so_many_steps_a_line_and_one_at_the_end(lines):
    told = lines(print_every=2)
    assert [line.partition(",")[0] for line in told] == ["step 2/5", "step 4/5", "step 5/5"]
    assert all(", loss 0.5, " in line and " s a step, " in line for line in told)
    assert told[-1].endswith(", 0 s left")


def test_by_itself_a_line_only_when_time_has_passed(lines):
    assert lines() == []


def test_a_long_run_has_a_line_about_every_half_minute(lines, monkeypatch):
    monkeypatch.setattr(progress, "APART", 0.0)
    assert len(lines(log_every=2)) == 3


def test_quiet_has_none(lines, monkeypatch):
    monkeypatch.setenv(progress.QUIET, "1")
    assert lines(print_every=1) == []


def test_a_terminal_has_the_bar_instead(lines, monkeypatch):
    monkeypatch.setattr(loop, "tqdm", tqdm)
    assert lines(print_every=1) == []


def test_the_bar_says_the_time_that_is_left():
    assert "<00:10" in tqdm.format_meter(10, 20, 10.0, unit="step")


def test_grids_have_a_column_for_each_class_and_each_prompt_that_was_chosen(monkeypatch, tmp_path):
    drawn = {}

    def noted(model, **given):
        drawn.update(given)
        return iter(())

    monkeypatch.setattr(images, "generate", noted)
    monkeypatch.setattr(texts, "generate", noted)
    monkeypatch.setattr(images, "write_grid", lambda file, batches, columns: drawn.update(columns=columns))
    monkeypatch.setattr(texts, "write_grid", lambda file, batches, columns, captions: drawn.update(columns=columns))
    config = settings("sid", tmp_path, sample_classes=(7, 1, 7), evaluation={"at_end": False})
    of_images = images.ImageMonitor(config, SimpleNamespace(num_classes=10))
    of_images.grid(SimpleNamespace(num_classes=10), tmp_path)
    assert (drawn["class_labels"], drawn["columns"], drawn["num_images"]) == ((7, 1, 7), 3, 24)
    config = settings("sid", tmp_path, sample_prompts=("a cat", "a dog"), evaluation={"at_end": False})
    of_texts = texts.TextMonitor(config, SimpleNamespace(ids=torch.arange(2)))
    model = SimpleNamespace(picture_shape=(3, 64, 64), captions=lambda ids: ["first", "captions"], role="student")
    of_texts.grid(model, tmp_path)
    assert (drawn["prompts"], drawn["columns"], drawn["num_images"]) == (["a cat", "a dog"], 2, 32)


def test_classes_that_the_data_do_not_have_are_refused():
    class Three:
        num_classes = 3

    check_classes((2, 0), Three)
    check_classes(None, Three)
    with pytest.raises(ConfigError, match="sample_classes has 3, and there are classes 0 to 2 in the data"):
        check_classes((0, 3), Three)
