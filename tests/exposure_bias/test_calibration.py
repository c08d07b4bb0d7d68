"""Calibration against closed forms for Gaussian data: the exposure measure, both searches, the transfer rule."""

import math
from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler

from diffdistill.data import ImageSet
from diffdistill.errors import CheckpointError, ConfigError, DataError
from diffdistill.parts.exposure_bias.calibration.fit import fit_scale, search_scale
from diffdistill.parts.exposure_bias.calibration.measure import BANDS, Moments, band_power, measure_exposure_bias
from diffdistill.parts.exposure_bias.corrections import BOTH, SCALE, SHIFT, Calibration, Entry, read_calibration
from diffdistill.sampling.noise import ImageNoise
from diffdistill.sampling.scheduled import solve_scheduled
from diffdistill.schedulers import epsilon_scaling

V = 0.25
SHAPE = (3, 32, 32)
COUNT = 32  # x 3072 entries: ln(variance) to 0.5 %, hence b to 4e-4 at the slope of 20 steps
REFERENCE = Moments(torch.zeros(SHAPE, dtype=torch.float64), V, torch.full((BANDS,), V, dtype=torch.float64))


def ddim():
    return DDIMScheduler(beta_start=1e-4, beta_end=0.02, timestep_spacing="leading", clip_sample=False)


def coordinates(steps):
    """(alpha, s) of every state of DDIM on the leading grid; the last is (1, 0)."""
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    times = [i * (1000 // steps) for i in range(steps)][::-1]
    return [(math.sqrt(alpha_bar[t]), math.sqrt(1 - alpha_bar[t])) for t in times] + [(1.0, 0.0)]


def variances(steps, gamma=1.0, b=1.0):
    """Variance of every state under D = gamma D*: V' = (A - c g / b)^2 V (section 8.1, eta = 0), from s^2."""
    path = coordinates(steps)
    found = [path[0][1] ** 2]
    for (alpha, s), (following, after) in pairwise(path):
        g = (1 - alpha * gamma * alpha * V / (alpha**2 * V + s**2)) / s
        gain = following / alpha - (following * s / alpha - after) * g / b
        found.append(gain**2 * found[-1])
    return found


def exact_b(steps, gamma=1.0):
    """Where the final variance is V, by bisection of the closed form."""
    low, high = 0.9, 1.3
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if variances(steps, gamma, middle)[-1] < V else (low, middle)
    return middle


def measured(steps, b=1.0, gamma=1.0, count=COUNT):
    scheduler = epsilon_scaling(ddim(), b=b)
    scheduler.set_timesteps(steps)

    def sample(indices, observe):
        noise = ImageNoise(7, indices, SHAPE)
        return solve_scheduled(lambda x, sigma: gamma * x * (V / (V + sigma**2)), noise, [scheduler], observe)

    return measure_exposure_bias(sample, REFERENCE, num_images=count, batch_size=16)


# ---- the measure ----


@pytest.mark.parametrize("b", [1.0, 1.02])
def test_the_measure_is_the_closed_form_at_every_state(b):
    found = measured(10, b=b)
    path = coordinates(10)
    expected = [math.log(v / (a * a * V + s * s)) for v, (a, s) in zip(variances(10, b=b), path, strict=True)]
    spread = 4 * math.sqrt(2 / (COUNT * math.prod(SHAPE)))
    assert found.log_ratio.tolist() == pytest.approx(expected, abs=spread)
    assert found.levels == pytest.approx([s / a for a, s in path], rel=1e-4)
    # White data: every octave says the same as the whole.
    assert found.bands[-1].tolist() == pytest.approx([expected[-1]] * BANDS, abs=0.05)


def test_its_standard_error_is_that_of_a_mean_square():
    found = measured(5)
    usual = math.sqrt(2 / (COUNT * math.prod(SHAPE)))
    assert 0.6 * usual < float(found.standard_error[0]) < 1.5 * usual
    assert len(found.report()["log_ratio"]) == 6


def test_the_paper_measure_has_no_sign_and_ours_has():
    tame, wild = measured(20).report(), measured(20, b=1.05).report()
    assert tame["log_ratio"][-1] < -0.2 < 0.2 < wild["log_ratio"][-1]
    assert min(tame["delta"][-1], wild["delta"][-1]) > 1
    d = math.prod(SHAPE)
    assert tame["delta"][-1] == pytest.approx(d * (math.sqrt(variances(20)[-1]) - math.sqrt(V)) ** 2, rel=0.02)


def test_the_norm_ratio_would_choose_the_wrong_side():
    """An exact denoiser's noise is smaller in norm along the sampler's states than along training states, eps being
    g x with the same g: a divisor made of that ratio is below 1, and what repairs the images is above.
    """
    found = measured(20)
    ratios = (found.log_ratio / 2).exp()
    assert ratios[9:].max() < 0.9995
    assert ratios[-1] < 0.9
    assert fit_scale(lambda b: measured(20, b=b)).b > 1.02


def test_a_sampler_that_visits_the_training_states_has_no_bias():
    """States alpha x0 + s eps of the images that the moments are of, each with eps and -eps: r is 0 exactly, of the
    whole and of every octave, however bright the mean image is. eps is a peak, white with one realisation.
    """
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8, generator=draw)
    images[:, :, :, :16] //= 4  # a mean image with an edge
    x0 = (images.double() / 127.5 - 1).repeat_interleave(2, 0)
    eps = torch.zeros_like(x0)
    eps[0::2, :, 5, 9], eps[1::2, :, 5, 9] = 32.0, -32.0
    path = [(0.3, 0.9), (0.8, 0.4), (1.0, 0.0)]

    def sample(indices, observe):
        for i, (alpha, s) in enumerate(path):
            part = slice(indices[0], indices[-1] + 1)
            state = alpha * x0[part] + s * eps[part]
            observe(i, state, *(torch.full((len(state), 1, 1, 1), value, dtype=torch.float64) for value in (alpha, s)))
        return state.float()

    moments = Moments.of(ImageSet(images, None, None, None, "x", "f"))
    found = measure_exposure_bias(sample, moments, num_images=12, batch_size=5)
    assert found.log_ratio.tolist() == pytest.approx([0.0] * 3, abs=1e-9)
    torch.testing.assert_close(found.bands, torch.zeros(3, BANDS, dtype=torch.float64), rtol=0, atol=1e-9)
    assert found.levels == pytest.approx([s / alpha for alpha, s in path])


@pytest.mark.parametrize(
    ("horizontal", "vertical", "octave"),
    [(1, 0, 0), (0, 1, 0), (2, 0, 1), (3, 0, 1), (0, 3, 1), (4, 0, 2), (7, 0, 2), (5, 5, 2), (8, 0, 3), (6, 6, 3)],
)
def test_a_wave_lies_in_its_octave(horizontal, vertical, octave):
    """Waves per 32 pixels: octaves begin at 2, 4 and 8 of them, in whatever direction they run."""
    place = torch.arange(32, dtype=torch.float64)
    wave = torch.cos(2 * math.pi * (horizontal * place + vertical * place[:, None]) / 32)
    power = band_power(wave.expand(2, 3, 32, 32))
    assert power[:, octave].min() > 0.5
    assert float(power.sum() - power[:, octave].sum()) == pytest.approx(0, abs=1e-12)


def test_power_by_octave():
    noise = torch.randn(256, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert band_power(noise).mean(0).tolist() == pytest.approx([1.0] * BANDS, abs=0.05)
    finest = (-1.0) ** (torch.arange(16)[:, None] + torch.arange(16))
    power = band_power(finest.expand(1, 1, 16, 16))[0]
    assert power[-1] > 1
    assert power[:-1].abs().max() < 1e-12


def test_moments_of_images():
    images = torch.randint(0, 256, (50, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = Moments.of(ImageSet(images, None, None, None, "x", "f"))
    x = images.double() / 127.5 - 1
    torch.testing.assert_close(found.mean, x.mean(0))
    assert found.variance == pytest.approx(float(x.var(0, unbiased=False).mean()))
    assert found.statistics["corrected"] == pytest.approx(float(x.flatten(1).var(1).mean()), rel=1e-5)
    same = ImageSet(images[:1].expand(5, 1, 8, 8), None, None, None, "flat", "f")
    with pytest.raises(DataError, match="all images of flat are the same"):
        Moments.of(same)


# ---- the fits ----


@pytest.mark.parametrize(
    ("steps", "gamma", "published"), [(10, 1.0, 1.0437), (20, 1.0, 1.0230), (20, 0.98, 1.0320), (50, 1.0, 1.0095)]
)
def test_calibration_finds_the_analytic_b(steps, gamma, published):
    """Section 8.2's table, whose values are of the whole population, to a thousandth and within five runs."""
    fit = fit_scale(lambda b: measured(steps, b=b, gamma=gamma))
    assert fit.b == pytest.approx(exact_b(steps, gamma), abs=0.001)
    assert fit.b == pytest.approx(published, abs=0.001)
    assert len(fit.runs) <= 5
    assert 0 < fit.standard_error < 0.001


def test_a_network_that_expands_is_divided_by_less_than_one():
    """The sign test: with D = 1.01 D* at 100 steps the images are too wild, and b must fall below 1."""
    fit = fit_scale(lambda b: measured(100, b=b, gamma=1.01, count=16))
    assert fit.b == pytest.approx(0.9982, abs=0.001)


def test_the_drift_falls_by_more_than_twenty():
    for gamma in (1.0, 0.99, 0.98):
        before = abs(math.log(variances(20, gamma)[-1] / V))
        fit = fit_scale(lambda b, gamma=gamma: measured(20, b=b, gamma=gamma))
        assert abs(math.log(variances(20, gamma, fit.b)[-1] / V)) < 0.05 * before


def test_the_standard_error_is_the_spread_over_noises():
    """Bootstrap over the images against fits on other noise."""

    def fit(seed):
        def measure(b):
            scheduler = epsilon_scaling(ddim(), b=b)
            scheduler.set_timesteps(5)
            draw = torch.Generator().manual_seed(seed)
            # Images of unequal contrast, so that the number of images and not of pixels decides the error.
            contrast = torch.rand(64, 1, 1, 1, generator=draw) + 0.5
            x = contrast * torch.randn(64, 1, 8, 8, generator=draw)

            class Noise:
                generators = [None] * 64

                def draw(self):
                    return x

            def sample(indices, observe):
                return solve_scheduled(lambda x, sigma: x * (V / (V + sigma**2)), Noise(), [scheduler], observe)

            moments = Moments(torch.zeros(1, 8, 8, dtype=torch.float64), V, torch.full((BANDS,), V))
            return measure_exposure_bias(sample, moments, num_images=64)

        return fit_scale(measure)

    fits = [fit(seed) for seed in range(24)]
    spread = torch.tensor([f.b for f in fits]).std()
    claimed = torch.tensor([f.standard_error for f in fits]).mean()
    assert 0.6 < float(claimed / spread) < 1.6


@pytest.mark.parametrize("best", [0.99, 1.0, 1.004, 1.02, 1.06])
def test_the_search_over_quality_finds_the_minimum_of_a_parabola(best):
    tried = search_scale(lambda b: 3 + 1e4 * (b - best) ** 2)
    assert min(tried, key=lambda b: tried[b]) == pytest.approx(best, abs=0.001)
    assert len(tried) <= 8


# ---- the file ----


def calibration(fits, **changed):
    entries = tuple(
        Entry("euler", steps, {name: {"b": b, "window": 80, "cutoff": 300} for name in (SCALE, SHIFT, BOTH)})
        for steps, b in fits
    )
    given = {"model": "m", "weights_sha256": "0", "data": {}, "data_variance": 0.3, "settings": {}, "entries": entries}
    return Calibration(**given | changed)


def test_the_file_comes_back_as_it_was(tmp_path):
    held = calibration([(10, 1.02), (20, 1.01)])
    held.save(tmp_path / "c.json")
    assert read_calibration(tmp_path / "c.json") == held
    assert [path.name for path in tmp_path.iterdir()] == ["c.json"]


def test_between_fits_b_is_linear_in_one_over_steps():
    """The paper's values for LSUN are 1.011, 1.007 and 1.006 at 20, 50 and 100 steps; two of them give the third."""
    held = calibration([(20, 1.011), (100, 1.006)])
    assert held.lookup("euler", 50, SCALE)["b"] == pytest.approx(1.00725, abs=1e-5)
    assert held.lookup("euler", 20, SCALE)["b"] == 1.011
    exact = calibration([(n, exact_b(n)) for n in (10, 20)])
    assert exact.lookup("euler", 50, SCALE)["b"] == pytest.approx(exact_b(50), abs=0.001)


def test_beyond_the_most_steps_a_correction_does_not_grow():
    """Heun's fits at 5 and 10 steps lie on both sides of 1; along their line 20 steps have twice the plain FID."""
    held = calibration([(5, 1.017), (10, 0.99)])
    assert held.lookup("euler", 20, SCALE)["b"] == pytest.approx(0.99)
    assert held.lookup("euler", 4, SCALE)["b"] == pytest.approx(1.017 + 0.027 / (1 / 5 - 1 / 10) * (1 / 4 - 1 / 5))


def test_one_fit_grows_towards_fewer_steps_and_stays_towards_more():
    held = calibration([(20, 1.01)])
    assert held.lookup("euler", 10, SCALE)["b"] == pytest.approx(1.02)
    assert held.lookup("euler", 40, SCALE)["b"] == pytest.approx(1.01)
    with pytest.raises(ConfigError, match="no fit for sampler 'heun'; it has euler"):
        held.lookup("heun", 20, SCALE)


def test_a_window_keeps_its_size_in_steps_and_is_not_carried_beyond_the_fits():
    """Heun's window, fitted at 10 steps, raised FID by 1 at 20 steps and by 2 at 50."""
    held = calibration([(10, 1.02), (20, 1.01)])
    assert held.lookup("euler", 20, SHIFT)["window"] == held.lookup("euler", 20, BOTH)["window"] == 80
    assert held.lookup("euler", 5, SHIFT)["window"] == 160
    assert held.lookup("euler", 40, SHIFT)["window"] == 0
    assert held.lookup("euler", 40, BOTH) == held.lookup("euler", 40, SCALE) | {"window": 0}


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"kind": "x", "version": 1}', '{"kind": "diffdistill calibration"}']
)
def test_another_file_is_refused(tmp_path, text):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(CheckpointError, match="is not a calibration that can be read"):
        read_calibration(tmp_path / "c.json")
