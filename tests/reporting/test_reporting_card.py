"""The model card: its code runs as it stands, its figures carry their protocol."""

import json
import re

import numpy as np
import pytest
import torch
import yaml
from tiny import tiny_unet

from diffdistill.denoiser import Denoiser
from diffdistill.models import apply_scalelong
from diffdistill.pipelines.pixel.schedule import snap_levels, stock_levels
from diffdistill.process import EDM
from diffdistill.reporting.model_card import model_card
from diffdistill.sampling.generate import generate


def blocks(card, language):
    return re.findall(rf"```{language}\n(.*?)```", card, re.DOTALL)


@pytest.mark.parametrize("classes", [4, None])
@pytest.mark.parametrize("levels", [stock_levels(1, 2.5), stock_levels(2, 2.5), snap_levels((2.5, 1.1))[0]])
def test_the_code_of_a_student_card_makes_the_images_of_diffdistill(tmp_path, monkeypatch, levels, classes):
    student = Denoiser(tiny_unet(classes), EDM(), metadata={"role": "student", "levels": list(levels)})
    student.save_pretrained(tmp_path / "student", role="student", levels=levels)
    metadata = json.loads((tmp_path / "student" / "diffdistill.json").read_text())
    card = model_card(metadata=metadata | {"num_classes": classes})
    (code,) = blocks(card, "python")
    monkeypatch.chdir(tmp_path)
    found = {}
    exec(code, found)
    theirs = np.stack([np.array(image) for image in found["images"]]).astype(int)
    ours = torch.cat([batch for batch, _ in generate("student", num_images=8, device="cpu")])[:, 0].numpy()
    assert (tmp_path / "image.png").exists()
    # The batch of 8 differs in the last bits of a float; a pixel on the edge of two grey levels may fall either way.
    assert np.abs(theirs - ours).max() <= 1
    assert (theirs != ours).mean() < 0.01


@pytest.mark.parametrize("role", ["teacher", "student"])
@pytest.mark.parametrize(("mode", "said"), [("cs", "mode cs, kappa 0.8, position post_norm"), ("ls", "mode ls, pos")])
def test_scaled_skips_are_on_the_card_and_no_stock_code(tmp_path, role, mode, said):
    network = tiny_unet(4)
    apply_scalelong(network, mode=mode, kappa=0.8, position="post_norm")
    levels = stock_levels(1, 2.5) if role == "student" else ()
    model = Denoiser(network, EDM(), metadata={"role": role, "levels": list(levels)})
    model.save_pretrained(
        tmp_path / "model", role=role, levels=levels, card=lambda metadata: model_card(metadata=metadata)
    )
    card = (tmp_path / "model" / "README.md").read_text()
    assert said in card
    assert "diffusers by itself leaves the scales" in card
    assert "DiffusionPipeline.from_pretrained(" not in card
    assert "stock diffusers." not in card
    assert Denoiser.from_pretrained(str(tmp_path / "model")).metadata["scalelong"]["mode"] == mode


def test_front_matter_is_what_the_hub_reads():
    card = model_card(metadata={"role": "student", "levels": [2.5], "num_classes": 10})
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "apache-2.0"
    assert front["library_name"] == "diffusers"
    assert {"one-step", "class-conditional"} <= set(front["tags"])


def test_figures_carry_their_protocol():
    evaluation = {
        "metrics": {"fid": {"value": 1.834, "standard_error": 0.061, "floor": {"value": 0.312}}},
        "protocol": {
            "num_images": 5000,
            "features": {"id": "fashion_mnist", "sha256": "ab" * 32, "dim": 128},
            "reference": {"name": "builtin:fashion_mnist", "num_images": 60000, "fingerprint": "cd" * 32},
        },
        "warnings": ["few images"],
    }
    card = model_card(metadata={"role": "student", "levels": [2.5]}, evaluation=evaluation)
    assert "| FID (fashion_mnist) | 1.83 ± 0.06 | 0.31 |" in card.replace("0.061", "0.06")
    assert "- Generated images: 5,000" in card
    assert "- Features: fashion_mnist, 128 dimensions, SHA-256 abababababab" in card
    assert "- Reference: builtin:fashion_mnist, 60,000 images, SHA-256 cdcdcdcdcdcd" in card
    assert "- Warning: few images" in card
    assert "## Metrics" not in model_card(metadata={"role": "student", "levels": [2.5]})


def test_origin_and_settings_are_told_and_the_place_of_the_run_is_not():
    metadata = {
        "role": "student",
        "levels": [2.5],
        "teacher": "builtin:fashion_mnist_teacher",
        "data": {"path": "builtin:fashion_mnist", "fingerprint": "12" * 32},
        "config_sha256": "34" * 32,
    }
    config = "output_dir: /home/me/run  # overrides\nseed: 3  # /home/me/config.yaml, line 2\nmethod: {name: dmd2}\n"
    card = model_card(metadata=metadata, config=config)
    for words in (
        "# One-step generator of fashion mnist",
        "`builtin:fashion_mnist_teacher`",
        "12" * 32,
        "34" * 32,
        "seed: 3",
    ):
        assert words in card
    assert "/home/me" not in card


def test_a_teacher_card_says_how_to_sample_it():
    card = model_card(metadata={"role": "teacher", "levels": [], "num_classes": 10, "image_shape": [1, 28, 28]})
    assert "diffdistill sample model --num-images 8 --class-labels 0 --out samples" in card
    assert "images of 28 x 28 pixels, gray, of 10 classes" in card
    assert "one-step" not in yaml.safe_load(card.split("---")[1])["tags"]


def test_a_student_without_a_teacher_is_not_sent_to_one():
    made = {"role": "student", "levels": [80.0], "training": "x", "initialize_from": "start"}
    card = model_card(metadata=made)
    assert "teacher" not in card
    assert "of the data and of the model that it began with holds" in card
    assert "take its teacher" in model_card(metadata=made | {"teacher": "t"})
