"""A teacher's training that begins with a model: of any process, its classes kept, and published as what it was."""

import shutil

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from tiny import tiny_teacher, tiny_unet

from diffdistill.config import load_config
from diffdistill.config.schema import Train
from diffdistill.denoiser import Denoiser
from diffdistill.errors import ConfigError, DiffDistillError
from diffdistill.process import EDM, VP, Flow
from diffdistill.training.device import Device
from diffdistill.training.resume import check_same_run, settings_of
from diffdistill.training.run import train
from diffdistill.training.tasks.by_objective import task_of

WORDS = [
    "data.path=images.npz", "output_dir=run", "train_batch_size=4", "max_train_steps=2", "mixed_precision=no",
    "evaluation.at_end=false", "sample_every=0", "num_threads=1",
]  # fmt: skip


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (24, 8, 8), dtype=np.uint8)
    np.savez("images.npz", images=pixels, labels=np.arange(24) % 3)
    np.savez("plain.npz", images=pixels)
    return tmp_path


def saved(process):
    """The folder of a tiny model of that process."""
    if process == "edm":
        tiny_teacher(seed=1).save_pretrained("model", role="teacher")
    else:
        flow = FlowMatchEulerDiscreteScheduler(num_train_timesteps=500, shift=2.0)
        scheduler = flow if process == "flow" else DDPMScheduler(prediction_type="v_prediction", beta_end=0.015)
        pipeline = DDPMPipeline(tiny_unet(None, seed=1), DDPMScheduler())
        pipeline.register_modules(scheduler=scheduler)
        pipeline.save_pretrained("model")
    return Denoiser.from_pretrained("model")


def resolved(*words):
    return load_config(Train, "fashion_mnist/teacher", [*WORDS, "initialize_from=model", *words])


@pytest.mark.parametrize(("process", "kind"), [("edm", EDM), ("vp", VP), ("flow", Flow)])
def test_a_model_of_any_process_is_trained_on_and_published_as_what_it_was(process, kind):
    before = saved(process)
    data = [] if process == "edm" else ["data.path=plain.npz"]
    result = train(resolved(*data, "optimizer.learning_rate=1e-6", "optimizer.warmup_steps=0"))
    after = result.model
    assert isinstance(after.process, kind)
    assert (after.null_class, after.num_classes, after.role) == (before.null_class, before.num_classes, "teacher")
    x, sigma = torch.randn(4, 1, 8, 8), torch.tensor([0.1, 0.5, 1.0, 3.0])
    cond = before.example_condition(4, torch.device("cpu"))
    moved = (after(x, sigma, cond) - before(x, sigma, cond)).abs().max()
    assert 0 < moved < 1e-2  # begun with its weights, and trained
    classes = [type(DiffusionPipeline.from_pretrained(folder)) for folder in ("model", result.model_folder)]
    assert classes[0] is classes[1]
    assert DiffusionPipeline.from_pretrained(result.model_folder).scheduler.config == (
        DiffusionPipeline.from_pretrained("model").scheduler.config
    )
    assert "Started from: `model`" in (result.model_folder / "README.md").read_text()


@pytest.mark.parametrize("process", ["edm", "vp", "flow"])
def test_the_loss_is_the_error_of_the_networks_own_output(process):
    """The mean of ||F - F*||^2, whatever the process: EDM's F, v's or a flow's."""
    saved(process)
    data = [] if process == "edm" else ["data.path=plain.npz"]
    task, images, _ = task_of(resolved(*data, "train_batch_size=24", "level.law=karras").config, Device("no"))
    seen = []
    task.model.register_forward_pre_hook(lambda _, inputs: seen.extend(inputs))
    task.model.network.register_forward_hook(lambda _, inputs, output: seen.append(output[0]))
    x0 = images.draw(24, task.config.seed, 0)[0]
    loss = task.update(0)["loss"]
    x_t, sigma, output = seen[0], seen[1], seen[-1]
    highest = task.model.process.sigma_max  # of the karras law, whose bounds are the network's own
    assert 0.5 * highest < sigma.max() <= highest
    target = task.model.process.from_x0(x0, x_t, sigma)
    assert loss.item() == pytest.approx((output - target).square().mean().item(), rel=1e-3)


def test_training_goes_on_from_a_checkpoint_and_not_on_another_model():
    saved("edm")
    train(resolved())
    whole = train(resolved("output_dir=whole", "max_train_steps=3")).model
    parts = train(resolved("max_train_steps=3", "resume_from_checkpoint=latest")).model
    assert all(torch.equal(one, other) for one, other in zip(whole.parameters(), parts.parameters(), strict=True))
    shutil.rmtree("model")
    tiny_teacher(seed=2).save_pretrained("model", role="teacher")
    with pytest.raises(ConfigError, match="the content of initialize_from 'model' is not what"):
        train(resolved("max_train_steps=4", "resume_from_checkpoint=latest"))


def test_a_run_from_before_there_were_objectives_goes_on(here):
    config = Train(output_dir="run", max_train_steps=2)
    before = {key: value for key, value in settings_of(config).items() if key not in ("objective", "initialize_from")}
    check_same_run(here, {"step": 1, "settings": before, "inputs": {"data": "x"}}, config, {"data": "x"})
    changed = config.model_copy(update={"initialize_from": "model"})
    with pytest.raises(ConfigError, match="made with other initialize_from"):
        check_same_run(
            here, {"step": 1, "settings": settings_of(config), "inputs": {"data": "x"}}, changed, {"data": "x"}
        )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["data.path=big.npz"], "are 1x16x16 and the model of initialize_from makes 1x8x8; set data.image_size=8"),
        (["data.path=many.npz"], "has label 5 and the model of initialize_from knows 0 to 2"),
        (["data.path=plain.npz"], "the model of initialize_from has 3 classes and 'plain.npz' has no labels"),
        (["initialize_from=student"], "initialize_from 'student' is a student.*give the diffusion model it was made"),
        (["initialize_from=nowhere"], "model 'nowhere' is not a diffusers folder"),
        (["network.layers_per_block=2"], "'network.layers_per_block' is not used beside initialize_from"),
        (["sigma_data=0.4"], "'sigma_data' is not used beside initialize_from"),
    ],
)
def test_what_does_not_fit_the_model_is_refused_before_training(here, words, sentence):
    model = saved("edm")
    pixels = np.zeros((24, 16, 16), np.uint8)
    np.savez("big.npz", images=pixels, labels=np.arange(24) % 3)
    np.savez("many.npz", images=pixels[:, :8, :8], labels=np.arange(24) % 6)
    model.save_pretrained("student", role="student", levels=(2.5,))
    with pytest.raises(DiffDistillError, match=sentence):
        train(resolved(*words))
    assert not (here / "run").exists()
