"""Attention in runs and samples: recorded, applied to every network, and by default without a trace."""

import json
from types import SimpleNamespace

import pytest
import torch
from runs import data, settings, task
from tiny import tiny_teacher

from diffdistill.config.schema import Distill, Evaluation
from diffdistill.denoiser import Denoiser
from diffdistill.errors import ConfigError
from diffdistill.parts.attention.kernels import set_attention
from diffdistill.sampling.generate import generate
from diffdistill.training import run
from diffdistill.training.attention import choose_attention
from diffdistill.training.loop import run_loop
from diffdistill.training.store import tensors_of
from diffdistill.training.tasks import by_objective


def images(model, **more):
    return torch.cat([batch for batch, _ in generate(model, num_images=4, steps=2, **more)])


def test_by_default_the_bundled_teacher_makes_the_same_images_to_the_last_bit():
    model = Denoiser.from_pretrained("builtin:fashion_mnist_teacher")
    x, labels = 2.5 * torch.randn(16, 1, 28, 28), torch.arange(16) % 10
    with torch.inference_mode():
        before = model(x, torch.full((16,), 2.5), labels)
    pixels = images(model)
    assert set_attention(model.network).kernels == ("flash",)
    with torch.inference_mode():
        assert torch.equal(model(x, torch.full((16,), 2.5), labels), before)
    assert torch.equal(images(model), pixels)


@pytest.mark.parametrize("kind", ["train", "dmd2"])
def test_by_default_a_run_trains_the_same_weights_to_the_last_bit(kind, tmp_path):
    states = []
    for chosen in (False, True):
        config = settings(kind, tmp_path / str(chosen), max_train_steps=2, sample_every=0, attention="auto")
        (tmp_path / str(chosen)).mkdir()
        done = task(config)
        if chosen:
            assert choose_attention(done.networks(), config.attention, done.device.autocast) == "auto: flash"
        run_loop(done, config, tmp_path / str(chosen))
        states.append({f"{n}.{k}": v.clone() for n, part in done.parts.items() for k, v in tensors_of(part).items()})
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], value) for name, value in states[1].items())


@pytest.mark.parametrize("kind", ["train", "sid"])
def test_every_network_of_a_run_gets_the_kernel(kind, tmp_path):
    config = settings(kind, tmp_path, attention="sdpa-math")
    done = task(config)
    assert choose_attention(done.networks(), config.attention, done.device.autocast) == "sdpa-math: math"
    roles = {"teacher", "student", "critic", "average"} if isinstance(config, Distill) else {"network", "average"}
    assert done.denoisers.keys() == roles
    for model in done.denoisers.values():
        chosen = [module for module in model.network.modules() if hasattr(module, "_choice")]
        assert len(chosen) == sum(hasattr(module, "set_processor") for module in model.network.modules()) > 0


def test_a_run_records_its_kernels(tmp_path, monkeypatch):
    monkeypatch.setattr(by_objective, "training_data", lambda *_, **__: data())
    config = settings(
        "train", tmp_path / "run", max_train_steps=1, sample_every=0, attention="sdpa-flash",
        evaluation=Evaluation(at_end=False),
    )  # fmt: skip
    done = run.train(SimpleNamespace(config=config, text_yaml="{}\n", sha256="0" * 64))
    assert (done.folder, done.metrics) == (tmp_path / "run", {})
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["attention"] == "sdpa-flash: flash"


def test_a_kernel_that_does_not_run_stops_a_run_before_its_folder_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(by_objective, "training_data", lambda *_, **__: data())
    config = settings("train", tmp_path / "run", attention="sdpa-cudnn")
    with pytest.raises(ConfigError, match="attention 'sdpa-cudnn' does not run on this network here"):
        run.train(SimpleNamespace(config=config, text_yaml="{}\n", sha256="0" * 64))
    assert not (tmp_path / "run").exists()


def test_samples_record_their_kernels(tmp_path, ask):
    tiny_teacher().save_pretrained(tmp_path / "model", role="teacher")
    command = ["sample", str(tmp_path / "model"), "--num-images", "3", "--steps", "1"]
    for policy, recorded in ((), "auto: flash"), (("--attention", "sdpa-math"), "sdpa-math: math"):
        out = tmp_path / recorded[:4]
        code, _, _ = ask(*command, "--out", str(out), *policy)
        assert code == 0
        assert json.loads((out / "samples.json").read_text())["attention"] == recorded


def test_evaluate_takes_the_flag_with_a_model_only(ask):
    words = "evaluate --images builtin:emoji --reference builtin:emoji --attention sdpa"
    code, _, err = ask(*words.split())
    assert code == 2
    assert "--attention goes with --model" in err
