"""The commands of sharded runs, as two processes of a launcher give them, against one process."""

import json

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("pyarrow")
pytest.importorskip("peft")

import sharded_runs  # noqa: F401  # imports for those that are forked
from ranks import ended, ranks, start
from safetensors.torch import load_file
from tiny_commands import NETWORK, TINY, png_folder
from tiny_text import pair_folder, stable_diffusion

from diffdistill.cli import main

pytestmark = pytest.mark.dist
FSDP = "parallel.strategy=fsdp"
ALIGN = [
    "data.image_size=null", "max_train_steps=2", "train_batch_size=4", "micro_batch_size=null", "log_every=1",
    "mixed_precision=no", "gradient_checkpointing=false", "sample_every=1", "num_threads=1", "checkpoint_every=0",
    "evaluation.levels=2", "evaluation.sampling_steps=2", "data.held_out=0.3", "optimizer.learning_rate=1e-3",
]  # fmt: skip


def both(folder, *words):
    """The run folders of one process and of two."""
    places = []
    for size in (1, 2):
        place = folder / f"run-{size}"
        command = [*words, f"output_dir={place}", FSDP]
        ranks(lambda rank, command=command: main(command), size, folder / f"ranks-{size}", 900)
        places.append(place)
        chosen = json.loads((place / "environment.json").read_text())["parallel"]
        assert chosen == ("ddp" if size == 1 else "fsdp")
    return places


def same(places, name, role):
    """Asserts that published weights, and what was measured, are those of one process up to rounding."""
    one, two = ({f.relative_to(p / name): load_file(f) for f in (p / name).rglob("*.safetensors")} for p in places)
    assert one.keys() == two.keys()
    for file, tensors in one.items():
        assert tensors.keys() == two[file].keys()
        for key, value in tensors.items():
            assert torch.allclose(value.float(), two[file][key].float(), rtol=0, atol=1e-4), (file, key)
    figures = [json.loads((place / "evaluation.json").read_text())[role]["metrics"] for place in places]
    for figure, entry in figures[0].items():
        assert figures[1][figure]["value"] == pytest.approx(entry["value"], rel=1e-2, abs=1e-3), figure


def test_train_and_distill(tmp_path):
    data, _ = png_folder(tmp_path / "data")
    words = [f"data.path={data}", *TINY]
    (tmp_path / "train").mkdir()
    trained = both(tmp_path / "train", "train", "fashion_mnist/teacher", *words, *NETWORK)
    same(trained, "model", "teacher")
    (tmp_path / "distill").mkdir()
    teacher = f"teacher={trained[1] / 'model'}"
    distilled = both(tmp_path / "distill", "distill", "fashion_mnist/dmd2", *words, teacher, "student.sigma_init=2.5")
    same(distilled, "student", "student")


@pytest.mark.parametrize("lora", ["null", "{rank: 2}"])
def test_align_draws_measures_and_publishes(tmp_path, lora):
    """The leader alone calls the stock pipeline, whose network and text encoder lie on both."""
    model = stable_diffusion(tmp_path / "sd")
    pairs = pair_folder(tmp_path / "pairs")
    shard = "parallel.shard=[student,teacher,text_encoders]"
    words = ["--allow-code", f"model={model}", f"data.path={pairs}", f"lora={lora}", shard, *ALIGN]
    places = both(tmp_path, "align", "align/mapo_sd15", *words)
    same(places, "model", "aligned")
    assert (places[1] / "samples" / "step-000002.png").stat().st_size > 0


def test_what_cannot_be_sharded_is_refused_with_2(tmp_path):
    words = ["distill", "fashion_mnist/dmd2", f"output_dir={tmp_path / 'run'}", FSDP]
    pids = start(lambda rank: main([*words, "train_batch_size=3"]), 2, tmp_path / "ranks")
    assert ended(pids) == [2, 2]
    said = "".join((tmp_path / "ranks" / f"{rank}.log").read_text() for rank in (0, 1))
    assert "train_batch_size=3 is no multiple of the 2 processes, which must all make as many passes" in said
