"""A network is the same in training, in use and when published: modes, heads, precision."""

import copy
import math

import pytest
import torch
from by_hand import process_named
from diffusers import DDPMScheduler
from small_tasks import CPU
from tiny import tiny_teacher
from worlds import gaussian_data, small_network

from diffdistill.config.align import Align
from diffdistill.config.schema import Distill
from diffdistill.data.pairs import Pair, PairSet
from diffdistill.denoiser import Denoiser
from diffdistill.training.device import Device
from diffdistill.training.store import CheckpointStore, load_checkpoint
from diffdistill.training.tasks import align as alignment
from diffdistill.training.tasks.distill import DistillTask


def test_a_student_is_the_same_network_in_training_in_use_and_when_published(tmp_path):
    """EDM's networks carry dropout 0.13: student and critic that equal the teacher show a gap of 0, and no pass
    differs from the one before; not when the run is resumed either, and not from the folder.
    """
    from diffdistill.models import SongUNet

    torch.manual_seed(0)
    network = SongUNet(
        sample_size=8, in_channels=1, out_channels=1, model_channels=16, channel_mult=[1, 2], num_blocks=1,
        attn_resolutions=[4], dropout=0.13, preconditioning={"kind": "edm"},
    )  # fmt: skip
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.05 * torch.randn_like(p))
    teacher = Denoiser(network, process_named("edm")).eval()
    settings = {
        "output_dir": "none", "teacher": "edm", "max_train_steps": 4, "train_batch_size": 4,
        "method": {"name": "sid"}, "critic": {"updates_per_step": 1},
    }  # fmt: skip
    task = DistillTask(Distill.model_validate(settings), teacher, gaussian_data((0.0,), 0.3), CPU)
    x0 = 0.4 * torch.randn(4, 1, 8, 8)
    sigma = torch.full((4,), 2.5)

    def passes(task):
        critic = task.method.critic
        return [model(x0, sigma) for model in (task.student, task.student, critic, critic, task.averaged())]

    def equal(first, *others):
        return all(torch.equal(first, other) for other in others)

    with torch.no_grad():
        assert equal(teacher(x0, sigma), *passes(task))
    _, metrics = task.method.student_gradient(x0, None, 0.9)
    assert metrics["score_gap/relative"] == 0
    task.update(0)
    after = DistillTask(Distill.model_validate(settings), teacher, gaussian_data((0.0,), 0.3), CPU)
    store = CheckpointStore(tmp_path / "checkpoints", 1)
    store.save(1, task.parts, {})
    load_checkpoint(store.find("latest")[0], after.parts)
    with torch.no_grad():
        for run in (task, after):
            assert equal(*passes(run)[:2])
            assert equal(*passes(run)[2:4])
        assert equal(task.student(x0, sigma), after.student(x0, sigma))
        after.averaged().save_pretrained(tmp_path / "student", role="student", levels=(2.5,))
        published = Denoiser.from_pretrained(tmp_path / "student")
        assert equal(published(x0, sigma), published(x0, sigma), after.averaged()(x0, sigma))


@pytest.mark.parametrize("features", ["teacher", "critic"])
def test_heads_say_the_same_in_training_and_in_use_under_bf16(monkeypatch, features):
    """What the heads are given may be rounded; what they make of it is float32 in both, to the last bit."""
    from diffdistill.matching.discriminators import Discriminator

    seen = []
    right = Discriminator.forward

    def forward(self, features):
        logits = right(self, features)
        seen.append(([f.detach().clone() for f in features], logits.detach().clone()))
        return logits

    monkeypatch.setattr(Discriminator, "forward", forward)
    bf16 = Device("bf16")
    teacher = tiny_teacher()
    settings = {
        "output_dir": "none", "teacher": "tiny", "max_train_steps": 4, "train_batch_size": 4,
        "critic": {"updates_per_step": 1},
        "method": {"name": "dmd2", "adversarial": {"features": features, "r1": 0.1}},
    }  # fmt: skip
    task = DistillTask(Distill.model_validate(settings), teacher, gaussian_data((0.1, 0.0, -0.2), 0.3), bf16)
    heads = [head.double() for head in copy.deepcopy(task.method.adversarial.discriminator).heads]
    seen.clear()
    x0, cond = 0.4 * torch.randn(4, 1, 8, 8), torch.arange(4) % 3
    task.method.critic_loss(x0, cond, x0.flip(0))
    task.method.student_gradient(x0, cond, 0.9)
    assert len(seen) == 3  # training, its penalty, use
    for given, logits in seen:
        assert logits.dtype == torch.float32
        want = torch.stack([head(f.double()) for head, f in zip(heads, given, strict=True)], 1)
        torch.testing.assert_close(logits.double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["edm", "epsilon", "v_prediction", "flow"])
def test_under_bf16_the_networks_own_output_is_float32_in_every_role(kind):
    """The last layer is not rounded: its outputs are no multiples of bfloat16's steps."""
    network = small_network(None)
    found = {}
    network.conv_out.register_forward_hook(lambda _m, inputs, out: found.update(given=inputs[0], out=out))
    model = Denoiser(network, process_named(kind))
    with torch.no_grad(), Device("bf16").autocast():
        model(torch.randn(2, 1, 8, 8), torch.full((2,), 0.7))
    assert found["given"].dtype == found["out"].dtype == torch.float32
    assert (found["out"] != found["out"].bfloat16().float()).float().mean() > 0.9
    with torch.no_grad():
        want = torch.nn.functional.conv2d(found["given"], network.conv_out.weight, network.conv_out.bias, padding=1)
    torch.testing.assert_close(found["out"], want)


class StubPipeline:
    """What `AlignTask` asks of an adapter, around a network with dropout."""

    image_size = 8
    encoders: dict = {}  # noqa: RUF012

    def __init__(self):
        torch.manual_seed(0)
        self.network = torch.nn.Sequential(
            torch.nn.Conv2d(1, 8, 3, padding=1), torch.nn.Dropout(0.3), torch.nn.Conv2d(8, 1, 1)
        )
        self.scheduler = DDPMScheduler()

    def place(self, device, dtype):
        pass

    def moments(self, pictures):
        return torch.randn(8, 2, 8, 8)

    def latents(self, moments, noise):
        return moments[:, :1]

    def conditions(self, texts, pictures):
        return {}

    def predict(self, network, x_t, t, cond):
        return network(x_t)


@pytest.mark.parametrize("method", ["diffusion_dpo", "mapo"])
def test_alignment_compares_networks_of_one_mode(monkeypatch, method):
    """At the start the network is its reference: every margin over it is 0 and Diffusion-DPO's loss log 2, at each
    update; and the log's figures are those of the network as it is used.
    """
    monkeypatch.setattr(alignment, "pictures_of", lambda *_: [])
    pair = Pair(("a", b""), ("b", b""), "text")
    settings = {
        "output_dir": "none", "model": "stub", "data": {"path": "none"}, "train_batch_size": 4,
        "method": {"name": method}, "optimizer": {"learning_rate": 1e-12},
    }  # fmt: skip
    task = alignment.AlignTask(Align.model_validate(settings), StubPipeline(), PairSet((pair,) * 4, "x", {}, "0"), CPU)
    for step in range(2):
        torch.manual_seed(step)
        metrics = task.update(step)
        if method == "diffusion_dpo":
            assert float(metrics["margin"]) == pytest.approx(0, abs=1e-6)
            assert float(metrics["loss"]) == pytest.approx(math.log(2), abs=1e-4)
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(task.network(x), task.network(x))
