"""`calibrate --fit signal-leak` and what `sample --signal-leak` makes of its file, on pixels and on latents."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_teacher

from diffdistill import Denoiser
from diffdistill.cli import main
from diffdistill.errors import CheckpointError, ConfigError
from diffdistill.pipelines.folder import weights_digest
from diffdistill.process import VP
from diffdistill.sampling.generate import generate, sample_batch
from diffdistill.sampling.leak_file import LeakFile, leak_for, read_leak
from diffdistill.sampling.plan import plan_sampling
from diffdistill.sampling.signal_leak import SignalLeak, fit_leak, spread_kept

STABLE_DIFFUSION = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()


def with_leak(plan, law):
    return replace(plan, leak=LeakFile(law, "it", "0" * 64, {}))


class Bright(Denoiser):
    """Exact for images of one brightness each, N(mean, spread^2), in all pixels: D is what the mean pixel says."""

    mean, spread = 1.0, 4.0  # of the constant wave 32

    def __init__(self, process):
        super().__init__(tiny_teacher().network, process)

    def forward(self, x_t, sigma, cond=None):
        s2, v = sigma.square()[:, None, None, None] / x_t[0].numel(), self.spread**2
        middle = x_t.mean((1, 2, 3), keepdim=True)
        return (self.mean + v / (v + s2) * (middle - self.mean)).expand_as(x_t)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A teacher of 8 x 8, one of other weights, and images of that size of which some are bright and some dark."""
    folder = tmp_path_factory.mktemp("leak")
    for name, seed in (("teacher", 0), ("other", 1)):
        tiny_teacher(seed).save_pretrained(folder / name, role="teacher")
    tiny_teacher().save_pretrained(folder / "student", role="student", levels=(2.5,))
    (folder / "data").mkdir()
    draw = np.random.default_rng(0)
    for i in range(60):
        pixels = (draw.normal(128, 5, (8, 8)) + draw.normal(0, 40)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "data" / f"{i}.png")
    return folder


def calibrate(place, model, out, *more):
    words = ("calibrate", place / model, "--data", place / "data", "--fit", "signal-leak", "--out", out)
    return main([str(word) for word in (*words, "--num-images", "8", "--device", "cpu", *more)])


@pytest.fixture(scope="module")
def fitted(place):
    assert calibrate(place, "teacher", place / "leak.json", "--sampler", "euler,vp_ddim", "--steps", "2") == 0
    return place / "leak.json"


def test_the_file_has_the_law_of_the_data_and_what_it_changes(place, fitted):
    leak = read_leak(fitted)
    images = torch.stack([torch.from_numpy(np.array(Image.open(file))) for file in (place / "data").iterdir()])
    direct = fit_leak(images[:, None] / 127.5 - 1)
    for name in ("mean", "rest_mean", "rest_std"):
        torch.testing.assert_close(getattr(leak.law, name), getattr(direct, name), atol=1e-6, rtol=1e-6)
    cov = leak.law.root @ leak.law.root.T
    torch.testing.assert_close(cov, direct.root @ direct.root.T, atol=1e-5, rtol=1e-5)
    assert leak.data["num_images"] == 60
    assert [(run["sampler"], run["steps"]) for run in leak.runs] == [("euler", 2), ("vp_ddim", 2)]
    assert leak.runs[0]["with"]["n"] == 8
    assert leak.runs[0]["with"] != leak.runs[0]["without"]


def sampled(place, out, model, *more):
    words = ("sample", place / model, "--num-images", "3", "--steps", "2", "--device", "cpu", "--out", out)
    return main([str(word) for word in (*words, *more)])


def test_auto_is_the_file_beside_the_model(place, fitted, tmp_path, capsys):
    assert sampled(place, tmp_path / "none", "teacher", "--signal-leak", "auto") == 4
    told = capsys.readouterr().err
    assert "there is no signal leak" in told
    assert "teacher/signal_leak.json" in told
    model = tmp_path / "teacher"
    shutil.copytree(place / "teacher", model)
    shutil.copy(fitted, model / "signal_leak.json")
    assert sampled(tmp_path, tmp_path / "auto", "teacher", "--signal-leak", "auto") == 0
    assert sampled(place, tmp_path / "file", "teacher", "--signal-leak", str(fitted)) == 0
    assert sampled(place, tmp_path / "plain", "teacher") == 0
    pictures = [(tmp_path / name / "00002.png").read_bytes() for name in ("auto", "file", "plain")]
    assert pictures[0] == pictures[1] != pictures[2]
    record = json.loads((tmp_path / "auto" / "samples.json").read_text())["signal_leak"]
    assert record == {"source": "signal_leak.json", "data": read_leak(fitted).data}


def test_a_leak_of_another_model_or_size_or_for_a_student_is_refused(place, fitted, tmp_path, capsys):
    assert sampled(place, tmp_path / "x", "other", "--signal-leak", str(fitted)) == 2
    assert "was made for other weights" in capsys.readouterr().err
    assert sampled(place, tmp_path / "x", "student", "--steps", "1", "--signal-leak", str(fitted)) == 2
    assert "a student starts with noise alone, as it was trained" in capsys.readouterr().err
    assert calibrate(place, "student", tmp_path / "x.json") == 2
    assert "a student starts with noise alone" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    large = tiny_teacher()
    large.network.register_to_config(sample_size=16)
    with pytest.raises(ConfigError, match=r"is of 1x8x8 \(C x H x W\), and the model works on 1x16x16 here"):
        leak_for(large, str(fitted))
    with pytest.raises(ConfigError, match=r"was not loaded from a folder that could hold a signal_leak.json"):
        leak_for(tiny_teacher(), "auto")


def test_what_is_no_leak_is_told(place, fitted, tmp_path, capsys):
    content = json.loads(fitted.read_text())
    content["data"]["num_images"] = 61
    (tmp_path / "changed.json").write_text(json.dumps(content))
    (tmp_path / "other.json").write_text("{}")
    for name, why in (("changed", "it was changed, its own_sha256 is another"), ("other", "KeyError|kind")):
        with pytest.raises(CheckpointError, match=f"is not a signal leak that can be read .*({why})"):
            read_leak(tmp_path / f"{name}.json")
    zeros = torch.zeros
    laws = {
        "which is no number of waves": (zeros(0), zeros(0, 0), zeros(1, 8, 8), zeros(1, 8, 8)),
        "of waves": (zeros(100), zeros(100, 100), zeros(1, 8, 8), zeros(1, 8, 8)),  # of 64 there are
        "number": (zeros(3, 1), zeros(3, 3), zeros(1, 8, 8), zeros(1, 8, 8)),
        "0,": (zeros(0), zeros(0, 0), zeros(0, 8, 8), zeros(0, 8, 8)),
        "or one of 1e.06": (zeros(3) + 1e30, zeros(3, 3), zeros(1, 8, 8), zeros(1, 8, 8)),
        "below 0": (zeros(3), zeros(3, 3), zeros(1, 8, 8), zeros(1, 8, 8) - 1),
    }
    for why, law in laws.items():
        LeakFile(SignalLeak(*law), "it", "0" * 64, {}).save(tmp_path / "law.json")
        with pytest.raises(CheckpointError, match=rf"is not a signal leak that can be read \(.*{why}"):
            read_leak(tmp_path / "law.json")
    assert calibrate(place, "teacher", tmp_path / "other.json") == 2
    assert "exists and holds something else" in capsys.readouterr().err
    assert calibrate(place, "teacher", tmp_path / "new.json", "--metric", "kid") == 2
    assert "--metric is of --fit exposure" in capsys.readouterr().err
    assert not (tmp_path / "new.json").exists()


@pytest.mark.parametrize("sampler", ["euler", "vp_ddim"])
def test_with_it_the_spread_and_the_mean_of_brightness_are_the_datas(sampler):
    """Natively and by a scheduler; without it as `spread_kept` says, where the solver's own error is small."""
    model = Bright(VP((1 - STABLE_DIFFUSION).cumprod(0), "epsilon"))
    data = 1 + 4 * torch.randn(4000, 1, 1, 1, generator=torch.Generator().manual_seed(1))
    law = fit_leak(data.expand(-1, 1, 8, 8))
    assert law.spread == pytest.approx(32, rel=0.03)
    plain = plan_sampling(model, sampler=sampler, steps=8)
    plan = with_leak(plain, law)
    drawn = sample_batch(model, plan, 0, range(400), 400)
    brightness = drawn.mean((1, 2, 3))
    assert float(brightness.mean()) == pytest.approx(1, abs=0.4)  # of 400: 0.2
    assert float(brightness.std()) == pytest.approx(4, rel=0.08)
    kept = float(sample_batch(model, plain, 0, range(400), 400).mean((1, 2, 3)).std()) / 4
    assert kept == pytest.approx(spread_kept(32, 1 / (1 + plan.levels[0] ** 2)), rel=0.1)
    again = sample_batch(model, plan, 0, [7, 300], 64)
    torch.testing.assert_close(again, drawn[[7, 300]])  # an image's leak is its own


@pytest.mark.parametrize("sampler", ["euler", "vp_ddim"])
def test_the_first_state_is_that_of_training(sampler):
    """leak + sigma z, with the noise z that the image has without a leak."""
    model = tiny_teacher()
    plan = plan_sampling(model, sampler=sampler, steps=2)
    states = []

    def observe(index, x, alpha, s):
        if index == 0:
            states.append((x / alpha).clone())

    law = fit_leak(torch.randn(50, 1, 8, 8) + 3)
    sample_batch(model, plan, 5, range(4), 4, observe)
    sample_batch(model, with_leak(plan, law), 5, range(4), 4, observe)
    gap = states[1] - states[0]
    assert float(gap.mean()) == pytest.approx(3, abs=0.5)
    assert len({round(float(one), 4) for one in gap.mean((1, 2, 3))}) == 4  # each image its own


def test_latents_of_a_text_model_have_a_leak_too(tmp_path, capsys):
    pytest.importorskip("transformers")
    from tiny_text import stable_diffusion

    model = stable_diffusion(tmp_path / "sd")
    (tmp_path / "data").mkdir()
    draw = np.random.default_rng(0)
    rows = []
    for i in range(6):
        colour = draw.integers(0, 256, 3)
        Image.fromarray(np.tile(colour, (20, 24, 1)).astype(np.uint8)).save(tmp_path / "data" / f"{i}.png")
        rows.append(json.dumps({"file_name": f"{i}.png", "text": f"colour {i}"}))
    (tmp_path / "data" / "metadata.jsonl").write_text("\n".join(rows))
    out = model / "signal_leak.json"
    words = (
        "calibrate",
        model,
        "--data",
        tmp_path / "data",
        "--fit",
        "signal-leak",
        "--out",
        out,
        "--num-images",
        "2",
    )
    assert main([str(word) for word in (*words, "--steps", "1", "--device", "cpu")]) == 0
    told = capsys.readouterr().out
    assert "6 are few, give 1000 or more" in told
    assert "euler 1: spread of brightness" in told
    leak = read_leak(out)
    assert leak.law.shape == (4, 8, 8)
    assert leak.weights_sha256 == weights_digest(model)  # which the file beside them has not changed
    (images, _), *_ = generate(model, num_images=1, prompts=["a dog"], steps=1, signal_leak="auto", device="cpu")
    assert images.shape == (1, 3, 16, 16)
