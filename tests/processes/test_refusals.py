"""Processes that do not fit together, and an error of one: a sentence, the right exit code, nobody left, nothing
half-written."""

import os
import shutil
import time

import numpy as np
import pytest
from PIL import Image
from shared_commands import digests, together, whole, words, world

from diffdistill.errors import DataError
from diffdistill.files import sha256
from diffdistill.sampling import run as sampling
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
    assert "process 1 has other data, data files than process 0" in line


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
    assert "train_batch_size is 2 and there are 3 processes" in line


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(("error", "code"), [(DataError("a broken picture"), 3), (OSError(28, "No space left"), 6)])
def test_an_error_of_one(config, tmp_path, rank, error, code):
    """It says its sentence and ends as always; the others end by its code, and say nothing."""
    run = tmp_path / "run"

    def within(mine):
        update = TeacherTask.update

        def failing(self, step):
            if (mine, step) == (rank, 3):
                raise error
            return update(self, step)

        TeacherTask.update = failing

    done = together(words(config, run), 3, tmp_path / "logs", within)
    assert done.codes == [code] * 3, done
    ((told, line),) = done.errors()
    who = f"process {rank}: " if rank else ""
    assert told == rank
    assert line.startswith(f"diffdistill: error: {who}{'a broken picture' if code == 3 else 'no room left'}")
    assert whole(run)[-1] == "step-000003"


def test_an_error_of_all_is_told_once(config, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "checkpoints").write_text("a file where a folder must be")
    done = together(words(config, run), 2, tmp_path / "logs")
    assert len(set(done.codes)) == 1, done
    assert done.codes[0] not in (0, 1), done
    assert len(done.errors()) == 1, done


@pytest.fixture(scope="module")
def broken(config, tmp_path_factory):
    """A trained model, and what is broken of it and beside it."""
    folder = tmp_path_factory.mktemp("broken")
    assert together(words(config, folder / "run", "max_train_steps=1"), 1, folder / "logs").codes == [0]
    model = folder / "run" / "model"
    shutil.copytree(model, folder / "model")
    (weights,) = (folder / "model" / "unet").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-10])
    (folder / "pictures").mkdir()
    for number in range(3):
        Image.new("L", (8, 8), number).save(folder / "pictures" / f"{number}.png")
    (folder / "pictures" / "1.png").write_bytes(b"no picture")
    return {"model": str(model), "damaged": str(folder / "model"), "pictures": str(folder / "pictures")}


ALL_MEET = {
    "data": (3, lambda b, config, out: words(config, out, f"data.path={b['pictures']}", "data.keep=memory")),
    "streamed data": (3, lambda b, config, out: words(config, out, f"data.path={b['pictures']}", "data.keep=source")),
    "a setting of the network": (2, lambda b, config, out: words(config, out, "network.norm_num_groups=3")),
    "a teacher": (4, lambda b, config, out: [
        "distill", "fashion_mnist/dmd2", f"teacher={b['damaged']}", f"data.path={config.parent / 'data.npz'}",
        f"output_dir={out}", "student.regression=null",
    ]),
    "sample": (4, lambda b, config, out: ["sample", b["damaged"], "--num-images", "4", "--out", str(out)]),
    "sample's flags": (2, lambda b, config, out: [
        "sample", b["model"], "--num-images", "4", "--out", str(out), "--class-labels", "7",
    ]),
    "evaluate": (3, lambda b, config, out: [
        "evaluate", "--images", b["pictures"], "--reference", str(config.parent / "data.npz"), "--json", str(out),
    ]),
    "calibrate": (4, lambda b, config, out: [
        "calibrate", b["damaged"], "--data", str(config.parent / "data.npz"), "--out", str(out),
    ]),
}  # fmt: skip


@pytest.mark.parametrize("name", ALL_MEET)
def test_what_all_meet_is_told_once_by_the_leader(config, broken, tmp_path, name):
    code, argv_of = ALL_MEET[name]
    done = together(argv_of(broken, config, tmp_path / "out"), 2, tmp_path / "logs")
    assert done.codes == [code] * 2, done
    ((rank, _),) = done.errors()
    assert rank == 0
    assert not (tmp_path / "out").exists()


def test_one_that_comes_late_to_the_same_error_is_silent(config, broken, tmp_path):
    """The leader, here: the other one has told it long ago."""
    argv = ALL_MEET["sample"][1](broken, config, tmp_path / "out")

    def within(rank):
        read = sampling.Denoiser.from_pretrained
        if rank == 0:
            sampling.Denoiser.from_pretrained = lambda *given: (time.sleep(2.5), read(*given))

    done = together(argv, 2, tmp_path / "logs", within)
    assert done.codes == [4, 4], done
    ((rank, line),) = done.errors()
    assert rank == 1
    assert "process 1: " in line
