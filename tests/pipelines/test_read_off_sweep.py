"""Every class without an adapter, tiny, with its real code: drawn, distilled, saved, drawn by stock diffusers."""

import json

import pytest
import torch

pytest.importorskip("transformers")

from diffusers import DiffusionPipeline
from tiny_text import captioned_folder
from tiny_unadapted import SIDE, UNADAPTED

from diffdistill import Denoiser
from diffdistill.cli import main
from diffdistill.sampling.generate import sample_batch
from diffdistill.sampling.noise import image_seed
from diffdistill.sampling.plan import plan_sampling

pytestmark = pytest.mark.slow
PROMPTS = ["a cat", "two red dogs"]
SEED = 5


def pictures(model, **wishes):
    """Images in [0, 1] as stock pipelines return them."""
    plan = plan_sampling(model, prompts=PROMPTS, **wishes)
    return (sample_batch(model, plan, SEED, range(2), 64) / 2 + 0.5).clamp(0, 1)


def stock(folder, **call):
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    torch.manual_seed(image_seed(SEED, 0))  # from which a flow's scheduler draws, whatever generator there is
    return pipe(output_type="pt", **call).images


@pytest.fixture(scope="module", params=UNADAPTED)
def teacher(request, tmp_path_factory):
    torch.manual_seed(0)
    return UNADAPTED[request.param](tmp_path_factory.mktemp(request.param) / "teacher")


@pytest.mark.parametrize(
    ("scale", "negative", "width"), [(1.0, None, SIDE), (4.0, None, 2 * SIDE), (4.0, "blue", SIDE)]
)
def test_the_teacher_draws_the_images_of_its_stock_pipeline(teacher, scale, negative, width):
    model = Denoiser.from_pretrained(str(teacher))
    model.adapter.sides = SIDE, width
    guidance = model.adapter.reading.guidance
    more = guidance.arguments(scale, len(PROMPTS), negative) if scale != 1 else {}
    if negative is not None and "negative_prompt" not in model.adapter.reading.stage.parameters:  # Flux.2 klein
        del more["negative_prompt"]
        more["negative_prompt_embeds"] = model.adapter.pipeline.encode_prompt(prompt=[negative] * 2)[0]
    more["generator"] = [torch.Generator().manual_seed(image_seed(SEED, i)) for i in range(2)]
    theirs = stock(teacher, prompt=list(PROMPTS), num_inference_steps=3, **model.adapter.student_call() | more)
    mine = pictures(model, steps=3, guidance_scale=scale, negative_prompt=negative)
    assert float(theirs.std()) > 0.03
    assert float((mine - theirs).abs().max()) < 1e-4


@pytest.mark.parametrize("lora", [True, False])
def test_it_is_distilled_and_stock_diffusers_draws_the_students_images(teacher, tmp_path, lora):
    adapted = {"rank": 2, "targets": ["to_q"]} if lora else None
    settings = {
        "teacher": str(teacher), "output_dir": str(tmp_path / "run"), "max_train_steps": 2, "train_batch_size": 2,
        "log_every": 1, "num_threads": 1, "evaluation": {"at_end": False},
        "data": {"path": str(captioned_folder(tmp_path / "images")), "image_size": SIDE},
        "method": {"name": "dmd2", "guidance_scale": 2.0, "adversarial": None},
        "student": {"steps": 2, "lora": adapted, "optimizer": {"learning_rate": 0.01}, "ema_decay": 0.0},
        "critic": {"lora": adapted},
    }  # fmt: skip
    (tmp_path / "config.yaml").write_text(json.dumps(settings))
    assert main(["distill", str(tmp_path / "config.yaml"), "--quiet"]) == 0
    folder = tmp_path / "run" / "student"
    call = json.loads((folder / "diffdistill.json").read_text())["call"]
    theirs = stock(folder, prompt=PROMPTS[0], **call)[0]
    assert float(theirs.std()) > 0.03
    assert float((pictures(Denoiser.from_pretrained(str(folder)))[0] - theirs).abs().max()) < 1e-4
