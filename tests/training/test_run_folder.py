"""The folder of a run: whose it is, asked again once it is ours alone, and by its settings where nothing is saved."""

import contextlib

import pytest
from runs import settings

from diffdistill.errors import ConfigError
from diffdistill.files import write_text
from diffdistill.training import run_folder as module
from diffdistill.training.run_folder import SETTINGS, opened


def test_a_run_that_began_while_we_waited_is_seen(tmp_path, monkeypatch):
    @contextlib.contextmanager
    def another_first(folder):
        (folder / SETTINGS).write_text("seed: 3\n")
        (folder / "checkpoints").mkdir()
        yield

    monkeypatch.setattr(module, "locked", another_first)
    with pytest.raises(ConfigError, match="already holds a run"), opened(settings("sid", tmp_path / "run")):
        raise AssertionError("not reached")
    assert (tmp_path / "run" / SETTINGS).read_text() == "seed: 3\n"


@pytest.mark.parametrize(
    ("more", "words"), [({"seed": 7}, "other seed"), ({"train_batch_size": 5}, "train_batch_size")]
)
def test_a_run_without_a_checkpoint_is_told_by_its_settings(tmp_path, more, words):
    from diffdistill.config import load_config

    before = settings("sid", tmp_path)
    (tmp_path / "checkpoints").mkdir()
    write_text(tmp_path / SETTINGS, before.model_dump_json())  # JSON is YAML
    assert load_config(type(before), tmp_path / SETTINGS).config == before
    with opened(settings("sid", tmp_path, resume_from_checkpoint="latest", max_train_steps=99)):
        pass
    other = settings("sid", tmp_path, resume_from_checkpoint="latest", **more)
    with pytest.raises(ConfigError, match=f"was run with .*{words}"), opened(other):
        raise AssertionError("not reached")
