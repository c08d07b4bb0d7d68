"""The verbs one after the other, on data that is not in the repository, as a user types them."""

import gzip
import io
import json
import os
import shutil
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_unet
from tiny_commands import COUNT, NETWORK, SIZE, TINY, pictures, png_folder

from diffdistill.cli import main
from diffdistill.denoiser import Denoiser
from diffdistill.process import EDM


def idx_pair(folder):
    images, labels = pictures(1)
    folder.mkdir()
    with gzip.open(folder / "train-images-idx3-ubyte.gz", "wb") as file:
        file.write(struct.pack(">IIII", 0x803, COUNT, SIZE, SIZE) + images.tobytes())
    with gzip.open(folder / "train-labels-idx1-ubyte.gz", "wb") as file:
        file.write(struct.pack(">II", 0x801, COUNT) + labels.astype(np.uint8).tobytes())
    return folder / "train-images-idx3-ubyte.gz", 1


def parquet(folder):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    images, labels = pictures(3)
    cells = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        cells.append({"bytes": buffer.getvalue(), "path": None})
    folder.mkdir()
    pq.write_table(pa.table({"image": cells, "label": labels}), folder / "train.parquet")
    return folder / "train.parquet", 3


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFDISTILL_CACHE", str(tmp_path / "cache"))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    data, _ = png_folder(folder / "data")
    words = [f"data.path={data}", f"output_dir={folder / 't'}", *TINY, *NETWORK, "evaluation.at_end=false"]
    assert main(["train", "fashion_mnist/teacher", *words]) == 0
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A folder of its own with PNGs and a tiny teacher trained on them."""
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    return folder, folder / "data"


@pytest.mark.parametrize("make", [png_folder, idx_pair, parquet])
def test_train_distil_sample_evaluate_on_foreign_data(tmp_path, make):
    data, channels = make(tmp_path / "data")
    teacher, student = tmp_path / "t", tmp_path / "s"
    grids = "sample_every=2"
    words = [f"data.path={data}", f"output_dir={teacher}", *TINY, *NETWORK, *([grids] if make is png_folder else [])]
    assert main(["train", "fashion_mnist/teacher", *words]) == 0
    assert (teacher / "samples" / "step-000002.png").is_file() == (make is png_folder)
    words = [f"data.path={data}", f"teacher={teacher / 'model'}", f"output_dir={student}", *TINY, grids]
    assert main(["distill", "fashion_mnist/dmd2", *words]) == 0
    assert main(["sample", str(student / "student"), "--num-images", "7", "--out", str(tmp_path / "images")]) == 0
    names = sorted(path.name for path in (tmp_path / "images").iterdir())
    assert names == [*(f"{i:05d}.png" for i in range(7)), "grid.png", "samples.json"]
    assert Image.open(tmp_path / "images" / "00000.png").mode == ("L" if channels == 1 else "RGB")
    words = ["--reference", str(data), "--metrics", "fid", "--features", "pixels", "--json", str(tmp_path / "m.json")]
    assert main(["evaluate", "--model", str(student / "student"), "--num-images", "12", *words]) == 0
    assert json.loads((tmp_path / "m.json").read_text())
    for file in ("config.yaml", "metrics.jsonl", "samples/step-000002.png", "report.html", "student/README.md"):
        assert (student / file).stat().st_size > 0
    assert "http" not in (student / "report.html").read_text().split("<body")[0].replace("http://www.w3.org", "")
    assert not [path for path in tmp_path.rglob("*") if ".partial" in path.name]


def test_the_student_loads_where_this_package_is_absent(run):
    folder, data = run
    assert (
        main(
            [
                "distill",
                "fashion_mnist/sid",
                f"data.path={data}",
                f"teacher={folder / 't' / 'model'}",
                f"output_dir={folder / 's'}",
                *TINY,
            ]
        )
        == 0
    )
    assert main(["sample", str(folder / "s" / "student"), "--num-images", "3", "--out", str(folder / "images")]) == 0
    record = json.loads((folder / "images" / "samples.json").read_text())
    seeds, labels = ([image[key] for image in record["images"]] for key in ("torch_seed", "label"))
    script = f"""
import sys, torch
sys.modules["diffdistill"] = None      # importing it fails
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained({str(folder / "s" / "student")!r})
noise = [torch.Generator().manual_seed(seed) for seed in {seeds}]
for i, image in enumerate(pipe(batch_size=3, class_labels={labels}, generator=noise).images):
    image.save({str(folder)!r} + f"/{{i}}.png")
"""
    subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    for i in range(3):
        stock, ours = (
            np.asarray(Image.open(p)).astype(int) for p in (folder / f"{i}.png", folder / "images" / f"{i:05d}.png")
        )
        assert np.abs(stock - ours).max() <= 1  # one grey level: stock rounds x / 2 + 0.5 times 255


@pytest.mark.parametrize("steps", [2, 1000])
def test_a_run_of_regression_only_says_so(run, capsys, steps):
    folder, data = run
    words = [f"data.path={data}", f"teacher={folder / 't' / 'model'}", f"output_dir={folder / 's'}", *TINY]
    small = ["student.regression.pairs=4", "student.regression.solver_steps=2", "evaluation.at_end=false"]
    assert main(["distill", "fashion_mnist/sid", *words, *small, f"student.regression.steps={steps}"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "a first stage" in line]
    said = "all 2 steps are the start that student.regression asks for: a first stage, for initialize_from"
    assert [line.startswith(said) for line in lines] == ([True] if steps == 2 else [])


def test_the_record_of_a_student_names_the_weights_of_its_reward(run):
    folder, data = run
    (folder / "mine.py").write_text(
        "class Bright:\n"
        "    name, version, differentiable, needs_prompt = 'bright', 'bright 7', True, False\n"
        "    def __call__(self, images, prompts=None): return images.flatten(1).mean(1)\n"
        "    def to(self, device): return self\n"
        "bright = Bright()\n"
        "def red(images, prompts): return images[:, 0].flatten(1).mean(1)\n"
    )
    words = [f"data.path={data}", f"teacher={folder / 't' / 'model'}", f"output_dir={folder / 's'}", *TINY]
    names = f"{{{folder / 'mine.py'}:bright: 1.0, {folder / 'mine.py'}:red: 0.5}}"
    reward = ["student.regression=null", "method.reward.name=null", f"method.reward.sum={names}"]
    assert main(["distill", "fashion_mnist/diff_instruct_pp", "--allow-code", *words, *reward]) == 0
    metadata = json.loads((folder / "s" / "student" / "diffdistill.json").read_text())
    assert metadata["reward"] == {"mine.py:bright": "bright 7", "mine.py:red": None}
    assert "- Reward: mine.py:bright (bright 7), mine.py:red\n" in (folder / "s" / "student" / "README.md").read_text()


def test_an_interrupted_run_goes_on_and_ends_the_same(run):
    folder, data = run
    words = [
        "distill",
        "fashion_mnist/dmd2",
        f"data.path={data}",
        f"teacher={folder / 't' / 'model'}",
        *TINY,
        "checkpoint_every=1",
        "max_train_steps=3",
    ]
    assert main([*words, f"output_dir={folder / 'a'}"]) == 0
    assert main([*words, f"output_dir={folder / 'b'}"]) == 0
    for path in (folder / "b").glob("checkpoints/step-00000[23]/*"):
        path.unlink()
    for name in ("step-000002", "step-000003"):
        (folder / "b" / "checkpoints" / name).rmdir()
    for path in sorted((folder / "b" / "student").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (folder / "b" / "student").rmdir()
    assert main([*words, f"output_dir={folder / 'b'}", "resume_from_checkpoint=latest"]) == 0
    a, b = (next((folder / name / "student").rglob("*.safetensors")).read_bytes() for name in "ab")
    assert a == b


BAD = {
    "no such data": (["train", "fashion_mnist/teacher", "data.path=absent"], 3),
    "empty folder": (["train", "fashion_mnist/teacher", "data.path={empty}"], 3),
    "no such model": (["distill", "fashion_mnist/sid", "teacher=absent"], 4),
    "a pickle as a model": (["sample", "{pickle}", "--num-images", "1", "--out", "{out}"], 4),
    "unknown method": (["distill", "fashion_mnist/sid", "method.name=gan"], 2),
    "unknown key": (["distill", "fashion_mnist/sid", "critic.updates=3"], 2),
    "unknown divergence": (
        ["distill", "fashion_mnist/f_distill", "method.divergence=kl", "teacher={teacher}", "data.path={data}"],
        2,
    ),
    "gray teacher, colour data": (
        ["distill", "fashion_mnist/sid", "teacher=builtin:fashion_mnist_teacher", "data.path={data}"],
        3,
    ),
    "another run": (["train", "fashion_mnist/teacher", "data.path={data}", "output_dir={run}"], 2),
    "occupied output": (["sample", "{teacher}", "--num-images", "1", "--out", "{run}"], 2),
    "label out of range": (["sample", "{teacher}", "--num-images", "1", "--class-labels", "3", "--out", "{out}"], 2),
    "more than there are": (["train", "fashion_mnist/teacher", "data.path={data}", "data.limit=1000"], 3),
    "not a run": (["report", "{empty}"], 4),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_a_sentence_with_its_exit_code_and_leaves_nothing(run, case, capsys):
    folder, data = run
    (folder / "empty").mkdir()
    (folder / "model.pkl").write_bytes(b"\x80\x04N.")
    names = {"empty": folder / "empty", "pickle": folder / "model.pkl", "out": folder / "out", "data": data}
    names |= {"teacher": folder / "t" / "model", "run": folder / "t"}
    words, code = BAD[case]
    words = [word.format(**names) for word in words]
    if words[0] in ("train", "distill") and not any(word.startswith("output_dir") for word in words):
        words.append(f"output_dir={folder / 'out'}")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if "cache" not in path.parts}
    capsys.readouterr()
    assert main(words) == code
    error = capsys.readouterr().err.strip().splitlines()
    assert len([line for line in error if line.startswith("diffdistill: error: ")]) == 1, error
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if "cache" not in path.parts}
    assert before == after


def test_a_teacher_without_classes_leaves_labels_aside(tmp_path, capsys):
    folder, _ = png_folder(tmp_path / "images")
    Denoiser(tiny_unet(None, 3), EDM()).save_pretrained(tmp_path / "teacher", role="teacher")
    words = [f"teacher={tmp_path / 'teacher'}", f"data.path={folder}", f"output_dir={tmp_path / 'run'}"]
    assert main(["distill", "fashion_mnist/sid", *TINY, *words, "student.regression=null", "--quiet"]) == 0
    assert "the teacher has no classes: the labels of" in capsys.readouterr().out
