"""Signal leak: what a start without signal costs, exactly and through a stock scheduler; the law that is fitted."""

import pytest
import torch
from diffusers import DDIMScheduler

from diffdistill.errors import DataError
from diffdistill.sampling.signal_leak import LeakFit, cosines, fit_leak, leaked, lowest_waves, spread_kept

STABLE_DIFFUSION = {
    "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("alpha_bar", "kept"), [(0.00466, (0.879, 0.676, 0.416, 0.223)), (1 / 6401, (0.995, 0.981, 0.929, 0.781))]
)
def test_the_spread_that_is_kept_without_it(alpha_bar, kept):
    assert [round(spread_kept(s, alpha_bar), 3) for s in (8.0, 16.0, 32.0, 64.0)] == list(kept)
    assert spread_kept(1.0, alpha_bar) == pytest.approx(1)


def drawn(spacing, steps, mean, spread, with_leak):
    """Mean and standard deviation of what DDIM makes of N(mean, spread^2) with the exact noise prediction.

    Each step is affine in x, so three starts say all: no noise, a unit of noise, a unit of the leak's own spread.
    """
    scheduler = DDIMScheduler(**STABLE_DIFFUSION, timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    noise, signal = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    first = float(scheduler.alphas_cumprod[int(scheduler.timesteps[0])])
    x = leaked(noise, mean + spread * signal, first) if with_leak else noise
    for t in scheduler.timesteps:
        a = float(scheduler.alphas_cumprod[int(t)])
        eps = (1 - a) ** 0.5 * (x - a**0.5 * mean) / (a * spread**2 + 1 - a)
        x = scheduler.step(eps, t, x).prev_sample
    middle, of_noise, of_signal = x.tolist()
    return middle, ((of_noise - middle) ** 2 + (of_signal - middle) ** 2) ** 0.5 / spread


@pytest.mark.parametrize(
    ("spacing", "steps", "spread", "mean", "with_leak"),
    [("leading", 4, 0.131, 1.220, 0.953), ("leading", 20, 0.325, 3.477, 0.962), ("leading", 50, 0.379, 3.905, 0.982),
     ("trailing", 4, 0.396, 4.971, 0.788), ("trailing", 50, 0.414, 4.228, 0.981)],
)  # fmt: skip
def test_the_fewer_the_steps_the_more_is_lost_and_the_leak_mends_it(spacing, steps, spread, mean, with_leak):
    """Of a spread of 32 the part that is kept, and of a mean of 8 what comes out; what is left is Euler's error."""
    assert drawn(spacing, steps, 0.0, 32.0, False)[1] == pytest.approx(spread, abs=6e-4)
    assert drawn(spacing, steps, 8.0, 8.0, False)[0] == pytest.approx(mean, abs=6e-4)
    mended = drawn(spacing, steps, 8.0, 8.0, True)
    assert mended[0] == pytest.approx(8, abs=0.01)
    assert mended[1] == pytest.approx(with_leak, abs=6e-4)
    assert drawn(spacing, steps, 0.0, 32.0, True)[1] > 0.95


def test_the_waves_are_orthonormal_and_the_lowest():
    size = 6
    torch.testing.assert_close(cosines(size) @ cosines(size).T, torch.eye(size, dtype=torch.float64))
    waves = lowest_waves(4, 6, 24).flatten(1)
    torch.testing.assert_close(waves @ waves.T, torch.eye(24, dtype=torch.float64))
    first = lowest_waves(4, 6, 3)
    assert torch.allclose(first[0], torch.full((4, 6), 24**-0.5, dtype=torch.float64))
    assert torch.allclose(first[1], first[1][:1].expand(4, 6))  # across, then down
    assert torch.allclose(first[2], first[2][:, :1].expand(4, 6))


def test_the_fitted_law_is_the_datas_in_its_lowest_frequencies_and_a_pixel():
    g = torch.Generator().manual_seed(0)
    waves = lowest_waves(8, 8, 3)
    mixing = torch.randn(6, 6, generator=g, dtype=torch.float64)
    low = 5 + torch.randn(2000, 6, generator=g, dtype=torch.float64) @ mixing.T
    pattern = torch.rand(2, 8, 8, generator=g, dtype=torch.float64)
    rest = 3 * pattern.flip(2) + pattern * torch.randn(2000, 2, 8, 8, generator=g, dtype=torch.float64)
    data = torch.einsum("bcn,nhw->bchw", low.reshape(-1, 2, 3), waves) + rest
    leak = fit_leak(data)
    again = leak.draw(5000, torch.Generator().manual_seed(1)).double()

    def coefficients(images):
        return torch.einsum("bchw,nhw->bcn", images, waves).flatten(1)

    ours, theirs = coefficients(again), coefficients(data)
    torch.testing.assert_close(ours.mean(0), theirs.mean(0), atol=0.2, rtol=0)
    torch.testing.assert_close(ours.T.cov(), theirs.T.cov(), atol=0.9, rtol=0)
    torch.testing.assert_close(leak.root @ leak.root.T, theirs.T.cov())
    kept = data - torch.einsum("bcn,nhw->bchw", theirs.reshape(-1, 2, 3), waves)
    torch.testing.assert_close(leak.rest_std, kept.std(0))
    mine = again - torch.einsum("bcn,nhw->bchw", ours.reshape(-1, 2, 3), waves)
    torch.testing.assert_close(mine.std(0), kept.std(0), atol=0.06, rtol=0)
    torch.testing.assert_close(mine.mean(0), kept.mean(0), atol=0.15, rtol=0)


def test_parts_make_the_law_of_the_whole_and_its_spread_is_that_of_the_constant_wave():
    g = torch.Generator().manual_seed(0)
    data = torch.randn(30, 2, 4, 4, generator=g, dtype=torch.float64) * torch.linspace(1, 5, 4, dtype=torch.float64)
    data = data.sort(0).values  # so that parts differ, in every pixel
    whole, fit = fit_leak(data), LeakFit()
    for part in data.split(7):
        fit.add(part)
    law = fit.law()
    for name in ("mean", "rest_mean", "rest_std"):
        torch.testing.assert_close(getattr(law, name), getattr(whole, name))
    torch.testing.assert_close(law.root @ law.root.T, whole.root @ whole.root.T)
    constant = data.mean((2, 3)) * 4
    assert law.spread == pytest.approx(float(torch.linalg.eigvalsh(constant.T.cov())[-1]) ** 0.5)


def test_few_images_make_a_law_and_one_does_not():
    assert fit_leak(torch.randn(3, 4, 8, 8)).draw(2).isfinite().all()
    with pytest.raises(DataError, match="was to be fitted to 1 images; give two or more"):
        fit_leak(torch.zeros(1, 1, 8, 8))
