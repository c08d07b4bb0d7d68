"""Text-to-image: distilling with adapters, sampling and aligning on the device."""

import pytest
import torch
from standin import WAITS
from standin_runs import near, numbers, placed, updated
from text_world import MAKERS, settings
from tiny_text import pair_folder

from diffdistill import Denoiser
from diffdistill.config.align import Align
from diffdistill.data.pairs import load_pairs
from diffdistill.pipelines.text.adapter import load_pipeline
from diffdistill.pipelines.text.data import text_data
from diffdistill.sampling.generate import generate
from diffdistill.training.tasks.align import AlignTask
from diffdistill.training.tasks.distill import DistillTask

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    for name, make in MAKERS.items():
        make(folder / name)
    (folder / "prompts.txt").write_text("".join(f"thing {i}\n" for i in range(2)))
    return folder


def distilling(made, device, kind="sd"):
    config = settings(made, kind, student={"steps": 2, "lora": {"rank": 2}}, critic={"updates_per_step": 1})
    teacher = Denoiser.from_pretrained(config.teacher).to(device)
    return DistillTask(config, teacher, text_data(config, teacher), placed(device))


def test_a_step_of_distilling_is_the_cpus_and_reads_nothing(made, there):
    task, cpu = distilling(made, there), distilling(made, "cpu")
    updated(task)  # the prompts are encoded then
    assert (dict(WAITS.read), dict(WAITS.sent)) == ({}, {})
    updated(cpu)
    assert near(numbers(task), numbers(cpu))


@pytest.mark.parametrize("kind", ["sdxl", "sd3", "flux", "pixart"])
def test_a_step_of_other_pipelines_waits_for_nothing(kind, made, there):
    updated(distilling(made, there, kind))
    assert (dict(WAITS.read), dict(WAITS.sent)) == ({}, {})


@pytest.mark.parametrize("kind", ["sd", "sd3"])  # the others draw large pictures
def test_prompts_are_drawn_with_one_wait(kind, made, there):
    model = Denoiser.from_pretrained(made / kind).to(there)
    request = {"num_images": 2, "batch_size": 2, "prompts": ("thing", "thing 1"), "steps": 2, "guidance_scale": 2.0}
    list(generate(model, **request))
    WAITS.clear()
    ((images, _),) = generate(model, **request)
    assert (images.shape, WAITS.count) == ((2, 3, 16, 16), 1), (WAITS.read, WAITS.sent)


@pytest.mark.parametrize("method", ["mapo", "diffusion_dpo"])
def test_a_step_of_aligning_waits_for_nothing(method, made, there, tmp_path):
    pair_folder(tmp_path / "pairs", 2)
    config = Align(
        model=str(made / "sd"), output_dir="unused", max_train_steps=3, train_batch_size=2, method={"name": method},
        data={"path": str(tmp_path / "pairs"), "image_size": 16}, lora={"rank": 2},
    )  # fmt: skip

    def task(device):
        torch.manual_seed(0)
        return AlignTask(config, load_pipeline(config.model), load_pairs(config.data.path), placed(device))

    mine, cpu = task(there), task("cpu")
    updated(mine)
    assert (dict(WAITS.read), dict(WAITS.sent)) == ({}, {})
    updated(cpu)
    assert near(numbers(mine), numbers(cpu))
