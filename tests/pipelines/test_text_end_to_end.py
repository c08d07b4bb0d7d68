"""`diffdistill distill` on a tiny Stable Diffusion folder, and its student in a process that knows diffusers alone."""

import json

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from diffusers import DiffusionPipeline, LCMScheduler
from PIL import Image
from tiny_text import captioned_folder, stable_diffusion, stable_diffusion_xl

from diffdistill.cli import main
from diffdistill.sampling.noise import image_seed

STOCK = """
import json, sys, torch
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(sys.argv[1])
call = json.load(open(sys.argv[1] + "/diffdistill.json"))["call"]
for i, seed in enumerate(json.loads(sys.argv[2])):
    image = pipe("thing 3", **call, generator=torch.Generator().manual_seed(seed)).images[0]
    image.save(f"{sys.argv[3]}/{i}.png")
assert "diffdistill" not in sys.modules
"""


def config(folder, teacher, **more):
    settings = {
        "teacher": str(teacher), "output_dir": str(folder / "run"), "max_train_steps": 2, "train_batch_size": 2,
        "log_every": 1, "num_threads": 1, "sample_every": 2, "evaluation": {"at_end": False},
        "data": {"path": str(captioned_folder(folder / "images"))}, "method": {"name": "dmd2", "guidance_scale": 2.0},
    } | more  # fmt: skip
    (folder / "config.yaml").write_text(json.dumps(settings))
    return str(folder / "config.yaml")


def test_distil_sample_and_the_same_image_from_stock_diffusers(tmp_path, python):
    teacher = stable_diffusion(tmp_path / "teacher")
    words = config(tmp_path, teacher, student={"steps": 2})
    assert main(["distill", words, "student.lora.rank=2", "critic.lora.rank=2", "--quiet"]) == 0
    run = tmp_path / "run"
    assert {"teacher.png", "step-000000.png", "step-000002.png"} <= {f.name for f in (run / "samples").iterdir()}
    assert (run / "report.html").is_file()
    card = (run / "student" / "README.md").read_text()
    assert "num_inference_steps=2" in card
    assert "- Teacher: `teacher`" in card  # the name alone, not the place
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    theirs.mkdir()
    sample = ["sample", str(run / "student"), "--prompt", "thing 3", "--num-images", "2", "--seed", "4"]
    assert main([*sample, "--out", str(mine), "--quiet"]) == 0
    seeds = json.dumps([image_seed(4, i) for i in range(2)])
    done = python("-c", STOCK, str(run / "student"), seeds, str(theirs), PYTHONPATH="")
    assert done.code == 0, done.err
    for i in range(2):
        ours = np.asarray(Image.open(mine / f"{i:05d}.png"), dtype=int)
        stock = np.asarray(Image.open(theirs / f"{i}.png"), dtype=int)
        assert np.abs(ours - stock).max() <= 1  # one grey level: rounding
        assert ours.std() > 1


def test_the_adapter_beside_the_student_gives_its_image_on_the_teacher(tmp_path):
    pytest.importorskip("peft")
    teacher = stable_diffusion_xl(tmp_path / "teacher")
    lora = {"rank": 2, "alpha": 8.0, "targets": ["to_q", "to_k", "conv1", "proj_in"]}
    optimizer = {"learning_rate": 0.05}  # so that the adapter matters
    words = config(tmp_path, teacher, student={"lora": lora, "optimizer": optimizer, "ema_decay": 0.0})
    assert main(["distill", words, "--quiet"]) == 0
    student = tmp_path / "run" / "student"
    call = json.loads((student / "diffdistill.json").read_text())["call"]

    def draw(pipe):
        pipe.set_progress_bar_config(disable=True)
        return pipe("thing", **call, generator=torch.Generator().manual_seed(0), output_type="latent").images

    merged, plain = DiffusionPipeline.from_pretrained(student), DiffusionPipeline.from_pretrained(teacher)
    plain.scheduler = LCMScheduler.from_pretrained(student, subfolder="scheduler")
    before = draw(plain)
    plain.load_lora_weights(student / "lora")
    torch.testing.assert_close(draw(plain), draw(merged), rtol=1e-4, atol=1e-4)
    assert (before - draw(merged)).abs().max() > 0.01


def test_a_pipeline_without_adapter_is_named_with_those_there_are(tmp_path, capsys):
    teacher = stable_diffusion(tmp_path / "teacher")
    index = json.loads((teacher / "model_index.json").read_text())
    (teacher / "model_index.json").write_text(json.dumps(index | {"_class_name": "KandinskyPipeline"}))
    assert main(["distill", config(tmp_path, teacher), "--quiet"]) == 2
    said = capsys.readouterr().err
    assert "is a KandinskyPipeline" in said
    assert "StableDiffusionXLPipeline" in said
    assert "docs/text_to_image.md" in said


def test_prompts_from_a_file_need_no_images(tmp_path):
    teacher = stable_diffusion(tmp_path / "teacher")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "one"}\n{"prompt": "two"}\n')
    words = config(tmp_path, teacher, data={"prompts": str(tmp_path / "prompts.jsonl")}, method={"name": "sim"})
    assert main(["distill", words, "--quiet"]) == 0
    found = json.loads((tmp_path / "run" / "student" / "diffdistill.json").read_text())["data"]
    assert found["path"].endswith("prompts.jsonl")
