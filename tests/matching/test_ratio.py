"""The density ratio: self-normalisation per level bin, clipping, warnings, checkpoint, ranks."""

import logging
import math
import socket

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import multiprocessing

from diffdistill.losses import score_gap_gradient
from diffdistill.matching.level_mean import LevelMean
from diffdistill.matching.ratio import RatioTracker


def counted(tracker, logit, u):
    """As a step uses it: calibrated by what was counted before, then counted."""
    calibrated = tracker(logit, u)
    tracker.update(logit, u)
    return calibrated


def gaussian_ratio(count, seed):
    """Logits of N(0.5, 1) over N(0, 1) on samples of the latter: E[exp(logit)] = 1."""
    x = torch.randn(count, generator=torch.Generator().manual_seed(seed))
    return 0.5 * x - 0.125


def test_a_calibrated_discriminator_is_left_alone():
    tracker = RatioTracker()
    for step in range(50):
        u = torch.rand(512, generator=torch.Generator().manual_seed(1000 + step))
        logit = gaussian_ratio(512, seed=step)
        calibrated = counted(tracker, logit, u)
    assert (calibrated - logit).abs().max() < 0.05
    assert all(abs(tracker.metrics()[f"ratio_mean_{k}"] - 1) < 0.05 for k in range(10))
    assert tracker.metrics()["ratio_clipped"] == 0


def test_a_constant_error_of_each_level_bin_is_removed():
    tracker, offset = RatioTracker(bins=4), torch.tensor([2.0, -1.0, 0.5, -3.0])
    for step in range(60):
        u = torch.rand(512, generator=torch.Generator().manual_seed(1000 + step))
        logit = gaussian_ratio(512, seed=step)
        calibrated = counted(tracker, logit + offset[tracker.ratio.bin_of(u)], u)
    assert (calibrated - logit).abs().max() < 0.08
    means = [tracker.metrics()[f"ratio_mean_{k}"] for k in range(4)]
    assert means == pytest.approx(offset.exp().tolist(), rel=0.06)


def test_bins_are_those_of_the_uniform_variable():
    mean = LevelMean(bins=4, decay=0.9)
    assert mean.bin_of(torch.tensor([0.0, 0.24, 0.25, 0.999, 1.0])).tolist() == [0, 0, 1, 3, 3]


def test_an_empty_bin_keeps_its_mean():
    mean = LevelMean(bins=2, decay=0.5)
    mean.update(torch.tensor([3.0, 3.0]), torch.tensor([0.9, 0.8]))
    before = mean(torch.tensor([0.9]))
    for _ in range(20):
        mean.update(torch.tensor([7.0]), torch.tensor([0.1]))
    assert torch.equal(mean(torch.tensor([0.9])), before)
    torch.testing.assert_close(mean(torch.tensor([0.1])), torch.tensor([7.0]))


def test_the_mean_weighs_samples_not_batches():
    mean = LevelMean(bins=1, decay=1.0, prior_count=0.0)
    mean.update(torch.tensor([1.0, 1.0, 1.0]), torch.zeros(3))
    mean.update(torch.tensor([5.0]), torch.zeros(1))
    assert mean.means().item() == 2.0


def test_the_logit_stays_attached():
    tracker = RatioTracker(clip=(0.5, 2.0))
    logit = torch.tensor([0.1, -0.2, 5.0, -5.0, 30.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(tracker(logit, torch.zeros(5)).sum(), logit)
    assert gradient.tolist() == [1.0, 1.0, 0.0, 0.0, 0.0]


def test_clamp_and_clip():
    tracker = RatioTracker(clip=(0.01, 100))
    got = tracker(torch.tensor([-50.0, 0.3, 50.0]), torch.zeros(3))
    torch.testing.assert_close(got, torch.tensor([math.log(0.01), 0.3, math.log(100)]))


def test_a_saturated_discriminator_gives_equal_weights():
    tracker = RatioTracker(bins=1, decay=0.0)
    for _ in range(2):
        got = counted(tracker, torch.full((64,), -25.0), torch.zeros(64))
    assert got.abs().max() < 0.2
    assert tracker.metrics()["ratio_clipped"] == 1.0


def test_calibrating_counts_nothing():
    tracker = RatioTracker()
    before = {name: value.clone() for name, value in tracker.state_dict().items()}
    tracker(torch.full((8,), 9.0), torch.rand(8))
    assert all(torch.equal(before[name], value) for name, value in tracker.state_dict().items())


def test_the_averages_are_in_the_checkpoint():
    one, two = RatioTracker(), RatioTracker()
    for step in range(5):
        one.update(gaussian_ratio(64, step) + 1, torch.rand(64))
    two.load_state_dict(one.state_dict())
    logit, u = gaussian_ratio(64, 9), torch.rand(64)
    assert torch.equal(one(logit, u), two(logit, u))
    assert one.metrics() == two.metrics()


def test_clipping_more_than_a_thousandth_warns(caplog):
    tracker = RatioTracker(warn_every=5)
    logit = torch.zeros(500)
    logit[:5] = -8.0
    with caplog.at_level(logging.WARNING):
        for _ in range(4):
            tracker.update(logit, torch.rand(500))
        assert not caplog.records
        tracker.update(logit, torch.rand(500))
    assert len(caplog.records) == 1
    assert "1.0 % of the samples is clipped to [0.01, 100]" in caplog.text


def test_a_mean_ratio_far_from_one_warns_and_names_the_bins(caplog):
    tracker = RatioTracker(bins=2, decay=0.5, warn_every=10)
    with caplog.at_level(logging.WARNING):
        for _ in range(10):
            u = torch.rand(256)
            tracker.update(torch.where(u < 0.5, 0.1, 1.2), u)
    assert len(caplog.records) == 1
    assert "is 3.3 in bin 1 (right: 1, allowed: 0.5 to 2; 2 level bins)" in caplog.text


def test_warnings_become_rarer(caplog):
    tracker = RatioTracker(warn_every=5)
    with caplog.at_level(logging.WARNING):
        for _ in range(40):
            tracker.update(torch.full((16,), -9.0), torch.rand(16))
    # At calls 5, 10, 20 and 40: clipped, and out of range.
    assert len(caplog.records) == 8


@pytest.mark.parametrize(("logit", "u"), [((4, 1), (4,)), ((4,), (3,)), ((4, 2), (4, 2))])
def test_one_logit_a_sample(logit, u):
    with pytest.raises(ValueError, match=r"logit and u must both have shape \(B,\)"):
        RatioTracker()(torch.zeros(logit), torch.zeros(u))


def test_half_precision_logits_become_float32():
    assert RatioTracker()(torch.zeros(4, dtype=torch.bfloat16), torch.rand(4)).dtype == torch.float32


def _rank(rank, port, path):
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", world_size=2, rank=rank)
    logit, u = gaussian_ratio(32, seed=3), torch.rand(32, generator=torch.Generator().manual_seed(4))
    mine = slice(0, 20) if rank == 0 else slice(20, 32)
    tracker = RatioTracker(bins=3)
    tracker.update(logit[mine] + 1, u[mine])
    calibrated = tracker(logit[mine] + 1, u[mine])
    x0 = torch.arange(32.0).reshape(-1, 1, 1, 1)
    settings = {"divergence": "forward_kl", "normalize": True}
    gradient = score_gap_gradient(x0[mine], 0.5 * x0[mine], 0.4 * x0[mine], logit=calibrated, **settings)
    save_file({"calibrated": calibrated, "gradient": gradient.contiguous()}, f"{path}/{rank}.safetensors")
    torch.distributed.destroy_process_group()


@pytest.mark.dist
def test_two_ranks_with_unequal_shares_act_as_one(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    multiprocessing.spawn(_rank, args=(port, str(tmp_path)), nprocs=2)
    parts = [load_file(tmp_path / f"{rank}.safetensors") for rank in range(2)]
    logit, u = gaussian_ratio(32, seed=3), torch.rand(32, generator=torch.Generator().manual_seed(4))
    tracker = RatioTracker(bins=3)
    tracker.update(logit + 1, u)
    calibrated = tracker(logit + 1, u)
    x0 = torch.arange(32.0).reshape(-1, 1, 1, 1)
    gradient = score_gap_gradient(x0, 0.5 * x0, 0.4 * x0, logit=calibrated, divergence="forward_kl", normalize=True)
    torch.testing.assert_close(torch.cat([part["calibrated"] for part in parts]), calibrated)
    torch.testing.assert_close(torch.cat([part["gradient"] for part in parts]), gradient)
