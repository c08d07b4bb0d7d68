"""A teacher's training: its labels, its loss, its images, its average."""

import pytest
import torch
from small_tasks import CPU, distilling, nothing, vector

from diffdistill.config.networks import Network
from diffdistill.config.schema import Train
from diffdistill.data import ImageSet
from diffdistill.denoiser import Denoiser
from diffdistill.errors import ConfigError
from diffdistill.matching.step import DistributionMatching
from diffdistill.training.tasks.teacher import TeacherTask, build_unet


def test_attention_is_at_the_same_resolutions_down_and_up():
    settings = Network(block_out_channels=(8, 16, 16), norm_num_groups=4, attention_head_dim=8, attention_levels=(0,))
    network = build_unet(settings, torch.Size((1, 8, 8)), None)
    assert network.config.down_block_types == ("AttnDownBlock2D", "DownBlock2D", "DownBlock2D")
    assert network.config.up_block_types == ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D")


def learning(monkeypatch, count=512, **more):
    """A `TeacherTask` whose network's calls are recorded: (task, [(x_t, sigma, labels), ...])."""
    settings = {
        "output_dir": "none", "max_train_steps": 10, "train_batch_size": count, "ema_decay": 0.9,
        "network": {"block_out_channels": (8, 16), "attention_head_dim": 8, "norm_num_groups": 4},
    }  # fmt: skip
    task = TeacherTask(Train.model_validate(settings | more), marked(), CPU)
    calls = []

    def forward(self, x_t, sigma, cond=None):
        calls.append((x_t, sigma, cond))
        s = sum(p.sum() for p in self.parameters())
        return (0.1 + s - s.detach()) * x_t

    monkeypatch.setattr(Denoiser, "forward", forward)
    return task, calls


def marked(count=600):
    """Images brighter at the left and at the top, of three classes; the class is written in the middle."""
    ramp = torch.linspace(200, 60, 8)
    images = (0.5 * ramp[None, :] + 0.5 * ramp[:, None]).repeat(count, 1, 1, 1)
    labels = torch.arange(count) % 3
    images[:, 0, 4, 3:5] = labels[:, None] * 50.0
    return ImageSet(images.byte(), labels, None, None, "marked", "0" * 64)


def test_labels_are_dropped_at_the_rate_asked_for_and_become_the_null_class(monkeypatch):
    task, calls = learning(monkeypatch, class_dropout=0.2)
    assert task.model.null_class == 3
    dropped = kept = 0
    for step in range(4):
        task.update(step)
        labels = task.data.draw(512, 0, step, False)[1]
        told = calls[-1][2]
        null = told == 3
        assert torch.equal(told[~null], labels[~null])
        dropped, kept = dropped + int(null.sum()), kept + int((~null).sum())
    assert dropped / (dropped + kept) == pytest.approx(0.2, abs=4 * (0.2 * 0.8 / 2048) ** 0.5)


def test_without_class_dropout_there_is_no_null_class_and_every_label_is_told(monkeypatch):
    task, calls = learning(monkeypatch, 64, class_dropout=0.0)
    task.update(0)
    assert task.model.null_class is None
    assert torch.equal(calls[-1][2], task.data.draw(64, 0, 0, False)[1])


@pytest.mark.parametrize("sigma_data", [0.25, 0.5, 1.7])
def test_a_teachers_loss_is_edms(monkeypatch, sigma_data):
    """lambda(sigma) (D - x0)^2, normal noise, ln sigma ~ N(-1.2, 1.2^2): from what the network was shown and said."""
    task, calls = learning(monkeypatch, sigma_data=sigma_data, class_dropout=0.0)
    assert task.model.process.sigma_data == sigma_data
    metrics = task.update(0)
    x_t, sigma, _ = calls[-1]
    x0, s = task.data.draw(512, 0, 0, False)[0], sigma.reshape(-1, 1, 1, 1)
    noise = ((x_t - x0) / s)[sigma > 0.05].double()
    assert noise.mean().item() == pytest.approx(0, abs=0.03)
    assert noise.var().item() == pytest.approx(1, abs=0.05)
    assert (noise**4).mean().item() == pytest.approx(3, abs=0.3)
    logs = sigma.log()
    assert logs.mean().item() == pytest.approx(-1.2, abs=0.05)
    assert logs.std().item() == pytest.approx(1.2, abs=0.05)
    weight = (s**2 + sigma_data**2) / (s * sigma_data) ** 2
    assert metrics["loss"].item() == pytest.approx((weight * (0.1 * x_t - x0) ** 2).mean().item(), rel=1e-4)


def test_a_teachers_loss_has_the_weight_that_is_asked_for(monkeypatch):
    task, calls = learning(monkeypatch, loss_weight="debiased", class_dropout=0.0)
    metrics = task.update(0)
    x_t, sigma, _ = calls[-1]
    x0, s = task.data.draw(512, 0, 0, False)[0], sigma.reshape(-1, 1, 1, 1)
    assert metrics["loss"].item() == pytest.approx(((0.1 * x_t - x0) ** 2 / s).mean().item(), rel=1e-4)
    with pytest.raises(ConfigError, match=r"set level\.law=loguniform"):
        learning(monkeypatch, loss_weight="elbo")


def test_a_teachers_average_is_of_the_weights_after_the_step(monkeypatch):
    task, _ = learning(monkeypatch, 8, optimizer={"learning_rate": 1e-2})
    average = vector(task.model)
    for n in range(3):
        task.update(n)
        decay = (1 + n) / (10 + n)
        average = decay * average + (1 - decay) * vector(task.model)
        torch.testing.assert_close(vector(task.averaged()), average, rtol=1e-5, atol=1e-7)
    assert not torch.allclose(average, vector(task.model), atol=1e-3)


def test_half_of_the_images_are_mirrored_left_to_right_and_keep_their_labels():
    data = marked()
    mirrored = 0
    for step in range(4):
        torch.manual_seed(step)
        x, labels = data.draw(300, 0, step, True)
        plain, same = data.draw(300, 0, step, False)
        assert torch.equal(labels, same)
        flipped = (x == plain.flip(-1)).flatten(1).all(1)
        assert bool((flipped | (x == plain).flatten(1).all(1)).all())
        mirrored += int(flipped.sum())
    assert mirrored / 1200 == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("kind", ["train", "distill"])
def test_a_run_mirrors_its_images_where_it_is_asked_to(monkeypatch, kind):
    """Images that grow darker to the right and downwards: mirrored ones grow brighter to the right, none upwards."""
    shown = []
    if kind == "train":
        task, calls = learning(
            monkeypatch,
            200,
            data={"horizontal_flip": True},
            level={"law": "uniform", "sigma_min": 1e-4, "sigma_max": 2e-4},
        )
        task.update(0)
        shown = calls[-1][0]
    else:

        def critic_losses(self, x0, cond, real, noise=None):
            shown.append(real)
            yield nothing(self.critic), {}

        monkeypatch.setattr(DistributionMatching, "critic_losses", critic_losses)
        task = distilling(data={"horizontal_flip": True}, train_batch_size=200)
        task.data = marked()
        task.update(0)
        shown = shown[0]
    right = shown[..., 7].mean((1, 2)) - shown[..., 0].mean((1, 2))
    down = shown[..., 7, :].mean((1, 2)) - shown[..., 0, :].mean((1, 2))
    assert bool((down < 0).all())
    assert (right > 0).float().mean().item() == pytest.approx(0.5, abs=0.15)
