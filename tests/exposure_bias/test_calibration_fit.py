"""What calibration runs and chooses, on samplers that are formulas: nothing is sampled, and the optimum is known.

`r(b)`, the logarithm of the images' variance over that of the data, is given, and so is the quality of every setting.
"""

import math

import pytest
import torch

from diffdistill.parts.exposure_bias.calibration.fit import Trials, calibrate_sampler, fit_scale
from diffdistill.parts.exposure_bias.calibration.measure import BANDS, Exposure
from diffdistill.parts.exposure_bias.corrections import BOTH, SCALE, SHIFT

V = 0.25


def exposure(energy):
    """One state, the images, with these energies `(n,)`; the data have the variance V."""
    images = torch.zeros(len(energy), 1, 1, 1, dtype=torch.uint8)
    return Exposure((0.0,), energy[None], torch.full((1, len(energy)), V), torch.zeros(1, BANDS), 1, images)


def images_of(log_ratio):
    return exposure(torch.full((4,), V * math.exp(log_ratio), dtype=torch.float64))


# ---- the root of r ----


@pytest.mark.parametrize("root", [0.97, 1.03, 1.08])
def test_a_sampler_of_the_usual_slope_takes_two_runs(root):
    """r = 10 (b - root): tame images need a b above 1, wild ones a b below 1, and the first guess is the answer."""
    fit = fit_scale(lambda b: images_of(10 * (b - root)))
    assert list(fit.runs) == [1.0, root]
    assert fit.b == root


@pytest.mark.parametrize("root", [0.96, 1.02, 1.06, 1.15])
def test_a_curved_ratio_is_followed_by_its_nearest_runs(root):
    """The variance is quadratic in b: the line through far runs misses the root, that through the nearest does not."""
    fit = fit_scale(lambda b: images_of(2 * math.log((b - 0.8) / (root - 0.8))))
    assert fit.b == pytest.approx(root, abs=2e-4)
    assert len(fit.runs) <= 5


def test_the_standard_error_is_that_of_the_jackknife():
    """Images that answer to b each in its own way, and a root beyond the largest divisor, so that both runs count."""
    draw = torch.Generator().manual_seed(0)
    count = 100
    contrast, answer = torch.rand(2, count, generator=draw, dtype=torch.float64)

    def measure(b):
        energy = 1 + contrast + 3 * (b - 1) * answer
        return exposure(V * math.exp(2 * (b - 1.4)) * energy / energy.mean())

    fit = fit_scale(measure)
    assert fit.b == 1.3
    near, far = sorted(fit.runs, key=lambda b: abs(b - 1.4))[:2]
    roots = []
    for left_out in range(count):
        kept = torch.arange(count) != left_out
        r_near, r_far = (float((fit.runs[b].energy[-1][kept].mean() / V).log()) for b in (near, far))
        roots.append(near - r_near * (far - near) / (r_far - r_near))
    jackknife = math.sqrt((count - 1) * torch.tensor(roots, dtype=torch.float64).var(unbiased=False))
    assert fit.standard_error == pytest.approx(jackknife, rel=0.2)


# ---- the choice by quality ----

STAR = 1.04  # where the variance of the images is that of the data


class Formula:
    """A sampler with r = 10 (b - STAR), whose images are as good as `quality(b, window)` says; lower is better."""

    def __init__(self, quality):
        self.quality, self.asked = quality, []

    def measure(self, corrections):
        self.asked.append(corrections)
        return images_of(10 * (corrections.b - STAR))

    def judge(self, exposure):
        return self.quality(self.asked[-1].b, self.asked[-1].window)

    def calibrate(self, steps=10, method="variance"):
        trials = Trials(self.measure, self.judge, {})
        return calibrate_sampler("euler", steps, trials, {"corrected": 0.2, "haar": 0.1}, method)


def off(fit):
    return (fit["b"], fit["window"]) == (1.0, 0)


@pytest.mark.parametrize("best", [1.0, 1.004, 1.01, 1.02, 1.04])
def test_quality_decides_how_far_to_go_towards_the_b_of_the_variance(best):
    """Nothing, a tenth, a quarter, half or all of the way from 1 to STAR."""
    entry = Formula(lambda b, window: abs(b - best) + window).calibrate()
    assert entry.fits[SCALE]["b"] == pytest.approx(best, abs=1e-6)
    assert entry.fits[SCALE]["window"] == 0
    assert entry.report["variance_fit"]["b"] == pytest.approx(STAR)


def test_the_search_over_quality_needs_no_variance():
    entry = Formula(lambda b, window: 1e4 * (b - 1.013) ** 2 + window).calibrate(method="fid")
    assert entry.fits[SCALE]["b"] == pytest.approx(1.013, abs=0.001)
    assert "variance_fit" not in entry.report


@pytest.mark.parametrize("steps", [4, 20, 50])
def test_windows_are_half_a_stride_and_a_stride_of_the_sampler(steps):
    stride = 1000 // steps
    for best in (stride // 2, stride):
        entry = Formula(lambda b, window, best=best: abs(b - 1) + abs(window - best)).calibrate(steps)
        assert {trial["window"] for trial in entry.report["trials"]} == {0, stride // 2, stride}
        assert entry.fits[SHIFT]["window"] == best
        assert entry.fits[SHIFT]["b"] == 1.0


@pytest.mark.parametrize("steps", [1, 10])
def test_what_does_harm_is_left_out(steps):
    entry = Formula(lambda b, window: abs(b - 1) + window).calibrate(steps)
    assert all(off(entry.fits[name]) for name in (SCALE, SHIFT, BOTH))


@pytest.mark.parametrize(
    ("together", "expected"),
    [
        ({1.0: 3, 1.02: 1, 1.04: 2}, (1.02, 50)),  # both add variance: half the divisor
        ({1.0: 3, 1.02: 2, 1.04: 1}, (1.04, 50)),  # or the divisor as it is
        ({1.0: 3, 1.02: 7, 1.04: 7}, (1.0, 50)),  # or no divisor
        ({1.0: 6, 1.02: 7, 1.04: 7}, (1.04, 0)),  # or no shift
    ],
)
def test_together_the_best_of_each_alone_and_two_divisors_with_the_shift(together, expected):
    """Alone, the whole divisor has quality 4 and no correction 10; with a window of half a stride it is as given."""
    alone = {1.0: 10, 1.04: 4}

    def quality(b, window):
        return alone.get(b, 9) if window == 0 else together[b] if window == 50 else 20

    entry = Formula(quality).calibrate()
    assert (entry.fits[SCALE]["b"], entry.fits[SHIFT]["window"]) == (1.04, 50)
    assert (entry.fits[BOTH]["b"], entry.fits[BOTH]["window"]) == expected


def test_a_setting_is_run_once():
    """Runs are what calibration costs: two of the secant, three parts of the way, four windows, two together."""
    sampler = Formula(lambda b, window: abs(b - STAR) - (window == 100))
    entry = sampler.calibrate()
    assert len(sampler.asked) == len(set(sampler.asked)) == len(entry.report["trials"]) == 2 + 3 + 4 + 2
