"""Processes that do not fit together, and an error of one: a sentence, the right exit code, nobody left, nothing
half-written."""

import os

import numpy as np
import pytest
from shared_commands import digests, together, whole, words, world

from diffdistill.errors import DataError
from diffdistill.files import sha256
from diffdistill.training import resume
from diffdistill.training import run as training
from diffdistill.training.tasks.teacher import TeacherTask

pytestmark = pytest.mark.dist

LATEST = "resume_from_checkpoint=latest"


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return world(tmp_path_factory.mktemp("world"))


def refused(config, run, argv, folder, size=2, within=None):
    """The one sentence that the first process says, and that nothing is there."""
    done = together(argv, size, folder, within)
    assert done.codes == [2] * size, done
    ((rank, line),) = done.errors()
    assert rank == 0
    assert not run.exists()
    return line


def test_other_settings(config, tmp_path):
    run = tmp_path / "run"
    line = refused(config, run, lambda rank: words(config, run, f"seed={rank}"), tmp_path / "logs")
    assert "process 1 has other settings than process 0" in line


def test_other_packages(config, tmp_path):
    run = tmp_path / "run"

    def within(rank):
        versions = training.package_versions()
        training.package_versions = lambda: versions | {"torch": f"2.{rank}"}

    line = refused(config, run, words(config, run), tmp_path / "logs", 3, within)
    assert "process 1 has other version of torch than process 0" in line


def in_folders_of_their_own(tmp_path):
    """Each process in a folder of its own, as on machines that share none."""

    def within(rank):
        os.environ |= {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
        (tmp_path / f"machine{rank}").mkdir(exist_ok=True)
        os.chdir(tmp_path / f"machine{rank}")

    return within


def test_other_data(config, tmp_path):
    run = tmp_path / "run"
    for rank in range(2):
        (tmp_path / f"machine{rank}").mkdir()
        pixels = np.random.default_rng(0).integers(0, 256, (24, 8, 8), dtype=np.uint8)
        pixels[3, 2, 1] ^= rank  # one pixel
        np.savez(tmp_path / f"machine{rank}" / "data.npz", images=pixels, labels=np.arange(24) % 3)
    argv = words(config, run, "data.path=data.npz")
    line = refused(config, run, argv, tmp_path / "logs", within=in_folders_of_their_own(tmp_path))
    assert "process 1 has other data than process 0" in line


def test_other_weights(config, tmp_path):
    """What is built must be equal too: here a network of another seed."""
    run = tmp_path / "run"

    def within(rank):
        build = TeacherTask.__init__

        def building(self, given, *more):
            build(self, given.model_copy(update={"seed": given.seed + rank}), *more)

        TeacherTask.__init__ = building

    done = together(words(config, run), 2, tmp_path / "logs", within)
    assert done.codes == [2, 2], done
    ((rank, line),) = done.errors()
    assert (rank, "process 1 has other weights than process 0" in line) == (0, True)
    assert not list(run.glob("checkpoints/*"))


def test_a_run_folder_that_is_not_shared(config, tmp_path):
    argv, apart = words(config, "run"), in_folders_of_their_own(tmp_path)

    def within(rank):
        apart(rank)
        if rank:  # the leader's path, which is a whole one, leads nowhere here
            resume.sha256 = lambda file: sha256(file.with_name("nothing"))

    assert together([*argv, "max_train_steps=2"], 1, tmp_path / "first", within).codes == [0]
    before = digests(tmp_path / "machine0" / "run")
    done = together([*argv, "max_train_steps=4", LATEST], 2, tmp_path / "logs", within)
    assert done.codes == [2, 2], done
    ((rank, line),) = done.errors()
    assert rank == 0
    assert "not every process sees the checkpoint" in line
    after = digests(tmp_path / "machine0" / "run")
    assert {name: after[name] for name in before if name.startswith("checkpoints/")} == {
        name: digest for name, digest in before.items() if name.startswith("checkpoints/")
    }
    assert not (tmp_path / "machine1" / "run").exists()


def test_more_processes_than_images(config, tmp_path):
    run = tmp_path / "run"
    line = refused(config, run, words(config, run, "train_batch_size=2"), tmp_path / "logs", 3)
    assert "3 processes share the 2 images of train_batch_size" in line


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_of_one(config, tmp_path, rank):
    """It says its sentence and ends as always; the others end, by a sentence of the first at most."""
    run = tmp_path / "run"

    def within(mine):
        update = TeacherTask.update

        def failing(self, step):
            if (mine, step) == (rank, 3):
                raise DataError("a broken picture; give another")
            return update(self, step)

        TeacherTask.update = failing

    done = together(words(config, run), 3, tmp_path / "logs", within)
    assert done.codes[rank] == 3, done
    assert [code for other, code in enumerate(done.codes) if other != rank] == [1, 1], done
    own = [line for other, line in done.errors() if other == rank]
    who = f"process {rank}: " if rank else ""
    assert own == [f"diffdistill: error: {who}a broken picture; give another"]
    others = [line for other, line in done.errors() if other != rank]
    assert all("another process of this run has ended" in line for line in others)
    assert whole(run)[-1] == "step-000003"


def test_an_error_of_all_is_told_once(config, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "checkpoints").write_text("a file where a folder must be")
    done = together(words(config, run), 2, tmp_path / "logs")
    assert len(set(done.codes)) == 1, done
    assert done.codes[0] not in (0, 1), done
    assert len(done.errors()) == 1, done
