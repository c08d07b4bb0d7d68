"""The spread and the mean of brightness and colour: by numpy, on hand-made images, and what a start without signal
costs."""

import math
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image

from diffdistill.cli import main
from diffdistill.data import ImageSet
from diffdistill.errors import ConfigError, DataError
from diffdistill.evaluation import Evaluator, evaluate
from diffdistill.evaluation.brightness import mean_colours, tone
from diffdistill.evaluation.moments import Gaussian
from diffdistill.evaluation.statistics import Statistics

FIGURES = ["brightness_spread", "brightness_shift", "colour_spread", "colour_shift"]


def pictures(folder: Path, seed: int, count: int, low: int, channels: int = 3) -> Path:
    """Images of several sizes that are brighter than `low`."""
    folder.mkdir()
    random = np.random.default_rng(seed)
    for i in range(count):
        tint = random.integers(low, 256, channels)
        pixels = random.integers(tint // 2, tint + 1, (8 + i % 2, 8, channels)).astype(np.uint8)
        Image.fromarray(pixels.squeeze()).save(folder / f"{i:02d}.png")
    return folder


def by_numpy(real: Path, fake: Path) -> list[float]:
    def parts(folder):
        pictures = [np.asarray(Image.open(file).convert("RGB"), float) for file in sorted(folder.iterdir())]
        rgb = np.stack([one.mean((0, 1)) for one in pictures]) / 127.5 - 1
        return rgb.mean(1), rgb - rgb.mean(1)[:, None]

    (light, colour), (other_light, other_colour) = parts(real), parts(fake)
    widths = [np.sqrt(np.trace(np.cov(c.T))) for c in (colour, other_colour)]
    return [
        np.std(other_light, ddof=1) / np.std(light, ddof=1),
        other_light.mean() - light.mean(),
        widths[1] / widths[0],
        np.linalg.norm(other_colour.mean(0) - colour.mean(0)),
    ]


def test_folders_are_measured_as_numpy_measures_them_and_no_features_are_asked_for(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("DIFFDISTILL_CACHE", str(tmp_path / "cache"))  # where there is no Inception
    fake = pictures(tmp_path / "fake", 1, 21, 60)
    real = tmp_path / "real.npz"
    random = np.random.default_rng(0)
    images = random.integers(0, random.integers(20, 256, (30, 1, 1, 3)), (30, 8, 8, 3)).astype(np.uint8)
    np.savez(real, images=images)
    (tmp_path / "real").mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "real" / f"{i:02d}.png")
    result = evaluate(images=fake, reference=str(real), metrics=["brightness"], fid_mode=None)
    entry = result["metrics"]["brightness"]
    assert [entry[name] for name in FIGURES] == pytest.approx(by_numpy(tmp_path / "real", fake), rel=1e-12)
    assert (entry["n"], entry["n_reference"], entry["units"]) == (21, 30, "black -1, white 1")
    assert entry["floor"]["n"] == 15
    assert entry["floor"]["n_reference"] == 15
    assert 0.5 < entry["floor"]["value"]["brightness_spread"] != 1 < 2  # two halves, which are not one
    assert "features" not in result["protocol"]
    flags = ["evaluate", "--images", str(fake), "--metrics", "brightness"]
    assert main([*flags, "--reference", str(real)]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("Spread of brightness"))
    error = entry["standard_errors"]["brightness_spread"]
    assert line.split()[3:6] == [f"{entry['brightness_spread']:.4g}", "±", f"{error:.2g}"]
    assert main(flags) == 2
    assert "brightness needs images to compare with" in capsys.readouterr().err


def test_darker_images_have_a_negative_shift():
    assert float(tone(torch.rand(9, 3) + 1, torch.rand(9, 3))["brightness_shift"]) < 0


def test_a_model_is_measured_too():
    result = evaluate(
        model="builtin:fashion_mnist_teacher", reference="builtin:fashion_mnist", split="test", steps=1,
        num_images=4, metrics=["brightness"],
    )  # fmt: skip
    entry = result["metrics"]["brightness"]
    assert 0 < entry["brightness_spread"] < 1  # one step of Heun makes the mean picture
    assert not {"colour_spread", "colour_shift"} & entry.keys()  # gray: there is no colour to compare
    assert entry["n_reference"] == 10_000


def test_standard_errors_are_the_spread_over_draws():
    g = torch.Generator().manual_seed(0)
    scale = torch.tensor([0.3, 0.2, 0.1])
    drawn = []
    for _ in range(300):
        real, fake = (torch.randn(n, 3, generator=g) * scale + shift for n, shift in ((400, 0.0), (200, 0.15)))
        drawn.append(tone(real, fake * torch.tensor([1.5, 1, 1])))
    for name in FIGURES:
        values = torch.tensor([float(figures[name]) for figures in drawn])
        error = torch.tensor([figures[name].standard_error for figures in drawn]).mean()
        assert float(values.std() / error) == pytest.approx(1, abs=0.13), name  # of 300: 4 %
    shifts = torch.tensor([float(figures["brightness_shift"]) for figures in drawn])
    assert float(shifts.mean()) == pytest.approx(0.175, abs=0.005)


def test_what_cannot_be_compared_is_told():
    one = torch.zeros(3, 3)
    with pytest.raises(DataError, match=r"the 3 real images are all equally bright.*leave brightness out"):
        tone(one, torch.rand(4, 3))
    with pytest.raises(DataError, match="hold 1 images: at least 2"):
        tone(torch.rand(4, 3), one[:1])
    known = Statistics(Gaussian(torch.zeros(2), torch.eye(2), 10), source="stats.npz")
    with pytest.raises(ConfigError, match=r"stats.npz holds statistics only.*give the images"):
        Evaluator(known, metrics=["brightness"])
    assert float(tone(torch.rand(9, 3), torch.ones(2, 3))["brightness_spread"]) == 0


SIDE, SPREAD = 128, 0.25  # of the images' mean brightness: the constant wave has the spread 128 x 0.25 = 32


@pytest.mark.parametrize(("steps", "kept"), [(4, 0.131), (50, 0.379)])
def test_without_a_signal_leak_few_steps_lose_the_spread_of_brightness(steps, kept):
    """Stock DDIM with Stable Diffusion's table and the exact noise prediction for that wave (docs/further.md)."""
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1, timestep_spacing="leading",
    )  # fmt: skip
    normal = torch.tensor([NormalDist().inv_cdf((i + 0.5) / 2000) for i in range(2000)], dtype=torch.float64)
    scheduler.set_timesteps(steps)
    x = normal
    for t in scheduler.timesteps:
        a = float(scheduler.alphas_cumprod[int(t)])
        x = scheduler.step((1 - a) ** 0.5 * x / (a * (SIDE * SPREAD) ** 2 + 1 - a), t, x).prev_sample
    fake, real = (as_images(one) for one in (x / SIDE, normal * SPREAD))
    reference = ImageSet(real, None, None, None, "real", "0" * 64)
    found = Evaluator(reference, metrics=["brightness"])(fake)["metrics"]["brightness"]
    assert found["brightness_spread"] == pytest.approx(kept, abs=2e-3)
    assert found["brightness_shift"] == pytest.approx(0, abs=1e-3)
    assert math.isclose(found["standard_errors"]["brightness_spread"], kept / 2000**0.5, rel_tol=0.05)


def as_images(brightness: torch.Tensor) -> torch.Tensor:
    """Images of 4x4 of that mean: dithered, as a grey level is as wide as some of what is measured."""
    levels = (brightness[:, None] + 1) * 127.5 + (torch.arange(16) + 0.5) / 16
    return levels.clamp(0, 255).floor().to(torch.uint8).reshape(-1, 1, 4, 4)


def test_mean_colours_are_exact():
    images = torch.randint(0, 256, (3, 3, 5, 7), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    expected = images.numpy().astype(np.float64).mean((2, 3)) / 127.5 - 1
    np.testing.assert_allclose(mean_colours(images).numpy(), expected, atol=1e-15)
    assert mean_colours(images[:, :1]).shape == (3, 3)
