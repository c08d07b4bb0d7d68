"""The store of checkpoints: in the order of numbers, one reading a save, nothing half, pruning that may fail."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from diffdistill.errors import CheckpointError, DiskError, NonFiniteError
from diffdistill.training import store as module
from diffdistill.training.store import MANIFEST, CheckpointStore, load_checkpoint, problem_of, step_of


def net(value=1.0, size=2):
    made = torch.nn.Linear(size, size)
    with torch.no_grad():
        made.weight.fill_(value)
    return {"network": made}


def filled(folder, *steps, keep=10):
    store = CheckpointStore(folder / "checkpoints", keep)
    for step in steps:
        store.save(step, net(step), {"seconds": 0.0})
    return store


def names(store):
    return [folder.name for folder in store.folders()]


def test_the_millionth_step_comes_after_the_one_before(tmp_path):
    store = filled(tmp_path, 998_000, 999_999, 1_000_000, 1_000_500, keep=2)
    assert names(store) == ["step-1000000", "step-1000500"]
    assert store.find("latest")[0].name == "step-1000500"
    assert [step_of(Path(name)) for name in ("step-1", "step-0000001", "step-abcdef", "step-²²²²²²")] == [None] * 4


def test_a_save_reads_what_it_wrote_once(tmp_path, monkeypatch):
    hashed = []
    monkeypatch.setattr(module, "sha256", lambda file, real=module.sha256: (hashed.append(file.name), real(file))[1])
    store = filled(tmp_path, 1, 2, 3, keep=2)
    assert sorted(hashed) == sorted(["network.safetensors", "state.json"] * 3)
    assert all(problem_of(folder) is None for folder in store.folders())


def test_room_for_one_checkpoint_is_enough(tmp_path, monkeypatch):
    store = filled(tmp_path, 1)
    size = sum(t.nbytes for t in net(size=200)["network"].state_dict().values())
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("U", (), {"free": int(1.1 * size)})())
    store.save(2, net(size=200), {})
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("U", (), {"free": int(0.9 * size)})())
    with pytest.raises(DiskError, match="free space and resume"):
        store.save(3, net(size=200), {})


@pytest.mark.parametrize(
    "error", [SafetensorError("I/O error: File too large (os error 27)"), OSError(5, "Input/output error")]
)
def test_a_disk_that_fails_is_a_sentence_and_leaves_nothing_half(tmp_path, monkeypatch, error):
    store = filled(tmp_path, 1)

    def fails(*_):
        raise error

    monkeypatch.setattr(module, "save_file", fails)
    with pytest.raises(DiskError, match="could not write checkpoint"):
        store.save(2, net(), {})
    assert [path.name for path in store.folder.iterdir()] == ["step-000001"]


def test_a_checkpoint_that_cannot_be_removed_is_a_warning(tmp_path, monkeypatch, capsys):
    store = filled(tmp_path, 1, keep=1)
    rename = Path.rename
    monkeypatch.setattr(
        Path, "rename", lambda self, to: rename(self, to) if self.name != "step-000001" else _refuse(self)
    )
    store.save(2, net(), {})
    store.save(3, net(), {})
    assert names(store) == ["step-000001", "step-000003"]
    assert capsys.readouterr().out.count("could not remove old checkpoint") == 1


def _refuse(path):
    raise OSError(1, "Operation not permitted", str(path))


def test_a_kill_while_old_ones_are_removed_leaves_no_half_of_one(tmp_path, monkeypatch):
    store = filled(tmp_path, 1, keep=1)

    def killed(path):
        (path / "state.json").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "discard", killed)
    with pytest.raises(KeyboardInterrupt):
        store.save(2, net(), {})
    assert names(store) == ["step-000002"]


def test_pruning_takes_away_broken_ones_too_and_links_not_what_they_point_to(tmp_path):
    store = filled(tmp_path, 1, 2, 3)
    moved = tmp_path / "moved"
    store.of(1).rename(moved)
    store.of(1).symlink_to(moved)
    (store.of(2) / MANIFEST).unlink()
    store.keep = 2
    store.save(4, net(), {})
    assert names(store) == ["step-000003", "step-000004"]
    assert (moved / MANIFEST).is_file()


def test_a_file_in_the_place_of_a_checkpoint_gives_way(tmp_path):
    store = filled(tmp_path, 1)
    store.of(2).write_text("x")
    store.save(2, net(), {})
    assert names(store) == ["step-000001", "step-000002"]


@pytest.mark.parametrize(
    "text",
    ['{"files": {}}', "[1]", "", "[" * 100_000, '{"files": {"../x": {"size": 1, "sha256": "x"}}}', '{"files": 3}'],
)
def test_a_manifest_that_says_nothing_is_damage(tmp_path, text):
    store = filled(tmp_path, 1, 2)
    (store.of(2) / MANIFEST).write_text(text)
    found, skipped = CheckpointStore(store.folder, 1).find("latest")
    assert found.name == "step-000001"
    assert len(skipped) == 1


@pytest.mark.parametrize("state", ['{"step": 7}', '{"step": "x"}', "[]", '{"step": 2, "seconds": "x"}'])
def test_a_checkpoint_of_another_step_than_its_name_is_refused(tmp_path, state):
    store = filled(tmp_path, 2)
    (store.of(2) / "state.json").write_text(state)
    with pytest.raises(CheckpointError, match="does not say where it stands"):
        load_checkpoint(store.of(2), net())


def test_a_checkpoint_is_on_the_disk_before_its_name(tmp_path, monkeypatch):
    """All files, the manifest after them, and the folder; only then the name."""
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("needs /proc, which knows the file of a descriptor")
    synced, sync = [], os.fsync

    def noted(descriptor):
        synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    store = CheckpointStore(tmp_path / "checkpoints", 1)
    store.save(1, net(), {})
    assert {"network.safetensors", "state.json", MANIFEST} <= set(synced)
    assert synced[-1] == "checkpoints"
    assert json.loads((store.of(1) / MANIFEST).read_text())["files"].keys() == {"network.safetensors", "state.json"}


def flip(file):
    """One bit, so that the size stays."""
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def test_one_bit_is_noticed_and_so_is_a_file_from_elsewhere(tmp_path):
    store = filled(tmp_path, 1, 2)
    flip(store.of(1) / "network.safetensors")
    assert problem_of(store.of(1)) == "network.safetensors has another SHA-256"
    assert problem_of(store.of(1), hashes=False) is None
    manifest = json.loads((store.of(2) / MANIFEST).read_text())
    (store.of(2) / "network.safetensors").rename(tmp_path / "network.safetensors")
    assert "is missing" in problem_of(store.of(2))
    manifest["files"]["../../network.safetensors"] = manifest["files"].pop("network.safetensors")
    (store.of(2) / MANIFEST).write_text(json.dumps(manifest))
    assert "lies elsewhere" in problem_of(store.of(2))


def test_what_was_verified_is_read_again_where_it_was_written_again(tmp_path):
    store = filled(tmp_path, 1)
    assert store.problem(store.of(1)) is None
    flip(store.of(1) / "network.safetensors")
    os.utime(store.of(1) / MANIFEST, ns=(1, 1))
    assert "another SHA-256" in store.problem(store.of(1))


def test_a_broken_one_does_not_count_as_kept_and_is_written_again(tmp_path):
    store = filled(tmp_path, 1, 2, 3)
    (store.of(3) / "network.safetensors").write_text("x")
    assert [folder.name for folder in store.prune(keep=1)] == ["step-000001"]
    store.save(3, net(3.0), {})
    assert problem_of(store.of(3)) is None
    store.save(3, net(5.0), {})  # whole: stays
    restored = net()
    load_checkpoint(store.of(3), restored)
    assert restored["network"].weight[0, 0].item() == 3.0


def test_the_spared_one_stays_and_no_other_old_one(tmp_path):
    store = filled(tmp_path, 1, 2, 3)
    store.keep = 1
    store.save(4, net(), {}, spare=2)
    assert names(store) == ["step-000002", "step-000004"]


def test_an_optimiser_goes_on_with_its_moments(tmp_path):
    def trained(network, optimizer, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            network(torch.ones(1, 2)).square().sum().backward()
            optimizer.step()

    def made():
        parts = net(0.3)
        torch.nn.init.zeros_(parts["network"].bias)
        return {**parts, "optimizer": torch.optim.Adam(parts["network"].parameters(), lr=0.1)}

    whole, first, second = made(), made(), made()
    trained(whole["network"], whole["optimizer"], 5)
    trained(first["network"], first["optimizer"], 3)
    store = filled(tmp_path)
    load_checkpoint(store.save(3, first, {}), second)
    trained(second["network"], second["optimizer"], 2)
    assert torch.equal(whole["network"].weight, second["network"].weight)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_one_weight_that_is_no_number_is_not_written(tmp_path, value):
    store, broken = filled(tmp_path, 1), net()
    with torch.no_grad():
        broken["network"].weight[0, 1] = value
    with pytest.raises(NonFiniteError, match="the network holds NaN or infinity at step 2"):
        store.save(2, broken, {})
    assert names(store) == ["step-000001"]
    assert [path.name for path in store.folder.iterdir()] == ["step-000001"]
