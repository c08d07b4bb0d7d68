"""Sharded runs from end to end: what they leave, where they go on, and what ends them."""

import os
import signal
import time

import pytest
import torch
from ranks import ended, ranks, start
from runs import without
from safetensors import safe_open
from safetensors.torch import load_file
from sharded_runs import DDP, FSDP, distances, figures, whole_run

from diffdistill import processes
from diffdistill.errors import ConfigError
from diffdistill.training.store import CheckpointStore, problem_of

pytestmark = pytest.mark.dist
EVALUATED = {"evaluation": {"every": 2, "features": "pixels"}, "sample_every": 3}
OFFLOADED = {"parallel": {"strategy": "fsdp", "cpu_offload": True}}
LATEST = {"resume_from_checkpoint": "latest"}


def go(folder, size=1, kind="f_distill", **more):
    """A run of so many processes; the tensors that it ends with."""
    more = {**EVALUATED, **more}
    if size == 1:
        return whole_run(kind, folder, **more)
    found = ranks(lambda rank: whole_run(kind, folder, **more), size, folder.with_name(f"{folder.name}-ranks"), 900)
    assert all(torch.equal(value, found[-1][name]) for name, value in found[0].items())
    return found[0]


def near(one, other, tolerance=1e-5):
    worst = distances({f"end {n}": v for n, v in one.items()}, {f"end {n}": v for n, v in other.items()})
    print(f"weights differ by {worst['weights']:.1e}")
    assert worst["weights"] <= tolerance


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """A run of two processes, sharded, and its tensors."""
    folder = tmp_path_factory.mktemp("sharded") / "run"
    return folder, go(folder, 2, **FSDP)


def test_a_run_leaves_what_one_process_leaves(tmp_path, sharded):
    """Among it what the leader alone drew and measured, and the model that stock diffusers loads."""
    from diffusers import ConsistencyModelPipeline

    folder, tensors = sharded
    near(go(tmp_path / "one", **FSDP), tensors)
    one, two = figures(tmp_path / "one"), figures(folder)
    assert one.keys() == two.keys() >= {2, 4, 6}
    assert all(two[step] == pytest.approx(value, rel=1e-5) for step, value in one.items())
    pipeline = ConsistencyModelPipeline.from_pretrained(folder / "model", use_safetensors=True)
    published = pipeline.unet.state_dict()
    average = {n.removeprefix("student_ema.module.network."): v for n, v in tensors.items() if "ema.module" in n}
    assert published.keys() == average.keys()
    assert all(torch.equal(value, average[name]) for name, value in published.items())


def test_a_checkpoint_is_in_pieces_whole_and_no_pickle(sharded):
    folder, tensors = sharded
    last = CheckpointStore(folder / "checkpoints", 1).folders()[-1]
    assert problem_of(last) is None
    pieces = sorted(last.glob("shard-*.safetensors"))
    assert {file.name for file in last.iterdir()} == {"MANIFEST.json", "state.json", *(file.name for file in pieces)}
    held = [{name: value.numel() for name, value in load_file(piece).items()} for piece in pieces]
    assert len(held) == 2
    total = sum(value.numel() for value in tensors.values())
    assert sum(map(sum, (piece.values() for piece in held))) == total  # each number once
    assert max(sum(piece.values()) for piece in held) < 0.6 * total
    with safe_open(pieces[0], "pt") as piece:
        assert "DCP_SHARDING_INFO" in piece.metadata()
    damaged = bytearray(pieces[1].read_bytes())
    damaged[-1] ^= 1
    whole = pieces[1].read_bytes()
    pieces[1].write_bytes(damaged)
    assert problem_of(last) == f"{pieces[1].name} has another SHA-256"
    pieces[1].write_bytes(whole)


@pytest.mark.parametrize(("size", "parallel"), [(2, FSDP), (2, OFFLOADED), (1, FSDP), (4, FSDP), (2, DDP), (1, DDP)])
def test_a_sharded_run_goes_on_in_any_number_and_way(tmp_path, sharded, size, parallel):
    """From step 4 of its 6; bit by bit where nothing is added in another order."""
    import shutil

    folder, tensors = sharded
    shutil.copytree(folder, tmp_path / "run")
    without(tmp_path / "run", 4)
    resumed = go(tmp_path / "run", size, **parallel, **LATEST)
    if size == 2 and parallel != DDP:
        assert all(torch.equal(value, resumed[name]) for name, value in tensors.items())
    near(tensors, resumed, 2e-6)


@pytest.mark.parametrize("former", [1, 2])
def test_a_plain_run_goes_on_sharded_and_back(tmp_path, former):
    plain = go(tmp_path / "run", former, **DDP)
    for size, parallel in ((2, FSDP), (former, DDP)):
        without(tmp_path / "run", 4)
        near(plain, go(tmp_path / "run", size, **parallel, **LATEST), 2e-6)


def test_loading_alone_changes_no_bit(tmp_path, sharded):
    """What one process holds after loading a finished sharded run, and four."""
    folder, tensors = sharded
    for size in (1, 4):
        loaded = go(folder, size, evaluation={"at_end": False}, sample_every=0, **FSDP, **LATEST)
        assert all(torch.equal(value, loaded[name]) for name, value in tensors.items())


def test_a_killed_process_ends_all_and_leaves_a_whole_checkpoint(tmp_path):
    def work(rank):
        whole_run("sid", tmp_path / "run", max_train_steps=1000, checkpoint_every=2, **EVALUATED, **FSDP)

    pids = start(work, 2, tmp_path / "ranks")
    store = CheckpointStore(tmp_path / "run" / "checkpoints", 3)
    end = time.monotonic() + 120
    while len(store.folders()) < 2 and time.monotonic() < end:
        time.sleep(0.05)
    os.kill(pids[1], signal.SIGKILL)
    killed = time.monotonic()
    codes = ended(pids, 60.0)
    assert codes[1] == -signal.SIGKILL
    assert codes[0] not in (0, -signal.SIGKILL)
    assert time.monotonic() - killed < 60
    assert "another process of this run has ended" in (tmp_path / "ranks" / "0.log").read_text()
    assert store.find("latest")[0] is not None


def test_processes_with_other_networks_are_refused(tmp_path):
    """The networks are copies of one teacher, and drawn from no seed of the run; a discriminator's heads are."""

    def work(rank):
        with pytest.raises(ConfigError, match="process 1 has other weights than process 0"):
            whole_run("dmd2", tmp_path / "run", seed=rank, **FSDP)

    ranks(work, 2, tmp_path / "ranks")


def test_a_signal_saves_and_the_run_goes_on(tmp_path):
    from diffdistill.training.tasks.distill import DistillTask

    update = DistillTask.update

    def work(rank):
        def interrupted(self, step):
            if step == 2 and rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return update(self, step)

        DistillTask.update = interrupted
        try:
            whole_run("sid", tmp_path / "run", checkpoint_every=0, **FSDP)
        except processes.DiffDistillError as error:
            return error.exit_code
        return 0

    assert ended(start(work, 2, tmp_path / "ranks")) == [75, 75]
    near(go(tmp_path / "whole", kind="sid"), go(tmp_path / "run", 2, kind="sid", **FSDP, **LATEST))
