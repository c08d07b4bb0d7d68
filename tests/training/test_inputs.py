"""What a run is made from is told by content: whatever would train other weights has another digest."""

from hashlib import sha256
from types import SimpleNamespace

import pytest
from torch import nn

from diffdistill.data.source import Pair
from diffdistill.methods.base import Reward
from diffdistill.methods.diff_instruct_pp import DiffInstructPP
from diffdistill.objectives.raft import RAFT
from diffdistill.training.inputs import model_digest, pairs_digest, reward_digests, start_digest
from diffdistill.training.store import CheckpointStore

PAIR = Pair(("a", b"wanted"), ("b", b"other"), "a text")


def test_a_models_weights_and_settings_and_no_more_are_in_its_digest(tmp_path):
    (tmp_path / "unet").mkdir()
    for name in ("unet/weights.safetensors", "unet/config.json", "README.md"):
        (tmp_path / name).write_text("before")
    found = [model_digest(str(tmp_path))]
    for name in ("README.md", "unet/weights.safetensors", "unet/config.json"):
        (tmp_path / name).write_text("after")
        found.append(model_digest(str(tmp_path)))
    (tmp_path / "unet" / "weights.safetensors").rename(tmp_path / "unet" / "others.safetensors")
    found.append(model_digest(str(tmp_path)))
    assert found[0] == found[1]
    assert len(set(found)) == 4


@pytest.mark.parametrize(
    "other",
    [
        Pair(PAIR.lose, PAIR.win, "a text"),
        Pair(PAIR.win, PAIR.lose, "another text"),
        Pair(PAIR.win, PAIR.lose, "a text", tie=True),
        Pair(PAIR.win, ("b", b"Other"), "a text"),
    ],
    ids=["the other way round", "another caption", "a tie", "another image"],
)
def test_pairs_are_told_by_all_that_is_trained_on(other):
    assert pairs_digest([other]) != pairs_digest([PAIR])
    renamed = Pair(("c", b"wanted"), ("d", b"other"), "a text")
    assert pairs_digest([renamed]) == pairs_digest([PAIR])
    assert pairs_digest([PAIR, other]) != pairs_digest([other, PAIR])


def test_every_reward_that_lies_here_has_a_digest(tmp_path, monkeypatch):
    file, folder = tmp_path / "mine.py", tmp_path / "classifier"
    folder.mkdir()
    file.write_text("class Mine: ...\n")
    (folder / "weights.safetensors").write_text("1")
    method = DiffInstructPP.model_construct(
        reward=Reward.model_construct(
            name=None, sum={f"{file}:Mine": 1.0, f"classifier:{folder}": 0.5, "pickscore": 0.5}
        )
    )
    before = reward_digests(SimpleNamespace(method=method))
    assert before[f"reward {file}:Mine"] == sha256(file.read_bytes()).hexdigest()
    assert before["reward pickscore"] is None  # of the Hub, whose revisions tell it
    (folder / "weights.safetensors").write_text("2")
    after = reward_digests(SimpleNamespace(method=method))
    assert [name for name in before if before[name] != after[name]] == [f"reward classifier:{folder}"]
    assert reward_digests(SimpleNamespace(method=DiffInstructPP.model_construct(reward=None))) == {}
    raft = SimpleNamespace(objective=RAFT(reward=f"{file}:Mine"))
    assert reward_digests(raft) == {f"reward {file}:Mine": before[f"reward {file}:Mine"]}
    own = "examples/fashion_mnist/symmetry.py:symmetry"  # the package's, from any folder
    monkeypatch.chdir(tmp_path)
    assert reward_digests(SimpleNamespace(objective=RAFT(reward=own)))[f"reward {own}"] is not None


def test_a_first_stage_is_told_by_its_last_checkpoint(tmp_path):
    store, found = CheckpointStore(tmp_path / "checkpoints", keep=5), []
    for step in (1, 2):
        store.save(step, {"student": nn.Linear(1, 1)}, {})
        found.append(start_digest(str(tmp_path)))
    store.save(2, {"student": nn.Linear(1, 1)}, {}, replace=True)
    found.append(start_digest(str(tmp_path)))
    assert len({one["initialize_from"] for one in found}) == 3
    assert start_digest(None) == start_digest(str(tmp_path / "nothing")) == {}
