"""sample, evaluate and calibrate on several processes: the files of one, byte for byte, and its numbers."""

import json

import pytest
from shared_commands import digests, together, words, world

COUNT = 22  # of which batches of 5 leave 2, and 3 processes have no even part
MANY = ["--num-images", str(COUNT), "--batch-size", "5", "--device", "cpu"]
FEW = ["--num-images", "8", "--batch-size", "3", "--device", "cpu"]  # calibrate draws them some twenty times
LIMIT = 300.0


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A teacher that was trained for some steps, and its data."""
    folder = tmp_path_factory.mktemp("place")
    config = world(folder)
    assert together(words(config, folder / "run", "max_train_steps=3"), 1, folder / "logs").codes == [0]
    return folder


def of_sizes(argv_of, sizes, folder):
    """What each number of processes leaves, and says, by that number."""
    said = {}
    for size in sizes:
        (folder / str(size)).mkdir(parents=True)
        done = together(argv_of(folder / str(size)), size, folder / f"logs{size}", limit=LIMIT)
        assert done.codes == [0] * size, done
        assert done.said[1:] == [""] * (size - 1)  # the first one alone says things
        lines = done.said[0].replace(str(folder / str(size)), "").replace("\r", "\n").splitlines()
        said[size] = [line for line in lines if line and "%|" not in line]  # but the progress bar
    return said


def sampled(place, out):
    return ["sample", str(place / "run" / "model"), *MANY, "--out", str(out / "images"), "--steps", "3"]


def evaluated(place, out):
    return [
        "evaluate", "--model", str(place / "run" / "model"), "--reference", str(place / "data.npz"), *MANY,
        "--steps", "2", "--features", "pixels", "--metrics", "fid,kid,prdc,brightness",
        "--json", str(out / "answer.json"),
    ]  # fmt: skip


def calibrated(place, out):
    return [
        "calibrate", str(place / "run" / "model"), "--data", str(place / "data.npz"), *FEW, "--steps", "2",
        "--features", "pixels", "--check-seeds", "1", "--out", str(out / "calibration.json"),
    ]  # fmt: skip


@pytest.mark.parametrize("sizes", [(1, 2), pytest.param((1, 3), marks=pytest.mark.dist)])
def test_sample_writes_the_same_files(place, tmp_path, sizes):
    said = of_sizes(lambda out: sampled(place, out), sizes, tmp_path)
    one, other = (digests(tmp_path / str(size)) for size in sizes)
    assert len(one) == COUNT + 2  # and grid and record
    assert one == other
    assert said[sizes[0]] == said[sizes[1]]


@pytest.mark.dist
def test_evaluate_gives_the_same_numbers(place, tmp_path):
    of_sizes(lambda out: evaluated(place, out), (1, 2, 3), tmp_path)
    answers = [json.loads((tmp_path / str(size) / "answer.json").read_text()) for size in (1, 2, 3)]
    for answer in answers:
        answer.pop("seconds")
        answer["request"].pop("json", None)
        assert {"fid", "kid", "prdc", "brightness"} <= answer["metrics"].keys()
    assert answers[0] == answers[1] == answers[2]


@pytest.mark.dist
@pytest.mark.parametrize("sizes", [(1, 2), (1, 3)])
def test_calibrate_fits_the_same(place, tmp_path, sizes):
    said = of_sizes(lambda out: calibrated(place, out), sizes, tmp_path)
    one, other = (digests(tmp_path / str(size)) for size in sizes)
    assert "calibration.json" in one
    assert one == other
    assert said[sizes[0]] == said[sizes[1]]


@pytest.mark.dist
def test_an_unfinished_calibration_is_continued_by_others(place, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    longer = ["--sampler", "euler,heun"]
    assert together(calibrated(place, out), 2, tmp_path / "first", limit=LIMIT).codes == [0, 0]
    assert together([*calibrated(place, out), *longer], 3, tmp_path / "second", limit=LIMIT).codes == [0, 0, 0]
    of_sizes(lambda one: [*calibrated(place, one), *longer], (1,), tmp_path / "whole")
    name = "calibration.json"
    assert digests(out)[name] == digests(tmp_path / "whole" / "1")[name]
    done = together([*calibrated(place, out), "--seed", "5"], 2, tmp_path / "other", limit=LIMIT)
    assert done.codes == [2, 2]
    ((rank, line),) = done.errors()
    assert rank == 0
    assert "exists and holds something else" in line
