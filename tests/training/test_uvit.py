"""U-ViT: the paper's network in numbers, its tokens and skips, and a teacher like any other."""

import json

import pytest
import torch
from diffusers import ConsistencyModelPipeline, DiffusionPipeline
from runs import data, go, settings
from tiny import tiny_uvit

from diffdistill.config.schema import Distill
from diffdistill.denoiser import Denoiser
from diffdistill.errors import ConfigError
from diffdistill.models import UViT
from diffdistill.pipelines.network import clone_network
from diffdistill.process import EDM, VP
from diffdistill.training.device import Device
from diffdistill.training.store import tensors_of
from diffdistill.training.tasks.distill import DistillTask
from diffdistill.training.tasks.teacher import TeacherTask, build_network


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 1, 8, 8, generator=generator)
    return x, torch.tensor([0.1, 1.0, 40.0]), torch.tensor([0, 1, 2])


@pytest.mark.parametrize(
    ("size", "millions"),
    [
        ({"hidden_size": 512, "depth": 12, "num_attention_heads": 8}, 44),
        ({"hidden_size": 512, "depth": 16, "num_attention_heads": 8}, 58),
        (
            {
                "hidden_size": 768,
                "depth": 16,
                "num_attention_heads": 12,
                "patch_size": 4,
                "sample_size": 64,
                "num_class_embeds": 1001,
            },
            131,
        ),
        (
            {"hidden_size": 1024, "depth": 20, "num_attention_heads": 16, "in_channels": 4, "num_class_embeds": 1001},
            287,
        ),
        (
            {"hidden_size": 1152, "depth": 28, "num_attention_heads": 16, "in_channels": 4, "num_class_embeds": 1001},
            501,
        ),
    ],
    ids=["small", "small-deep", "mid", "large", "huge"],
)
def test_sizes_are_the_papers(size, millions):
    """2209.12152, table 1; the larger three are of ImageNet, with a null class."""
    with torch.device("meta"):
        network = UViT(**size)
    assert round(sum(p.numel() for p in network.parameters()) / 1e6) == millions


def test_the_first_block_made_is_the_last_that_is_joined():
    network = tiny_uvit()
    made, taken = [], []
    for block in network.in_blocks:
        block.register_forward_hook(lambda _, a, output: made.append(output))
    for block in network.out_blocks:
        block.skip_linear.register_forward_pre_hook(lambda _, a: taken.append(a[0][..., 16:]))
    network(torch.randn(1, 1, 8, 8), 3.0, torch.tensor([0]))
    assert all(torch.equal(a, b) for a, b in zip(made, reversed(taken), strict=True))
    assert len(made) == 2


def test_time_class_and_patches_are_tokens():
    network = tiny_uvit()
    x = torch.randn(2, 1, 8, 8)
    tokens = network._tokens(x, torch.tensor([3.0, 5.0]), torch.tensor([0, 1])) - network.position_embedding
    assert tokens.shape == (2, 2 + 16, 16)
    assert torch.allclose(tokens[:, 1], network.class_embedding.weight[:2], atol=1e-6)
    first = network.patch_embedding(x[:, :, :2, 2:4])[:, :, 0, 0]  # second patch of the first row
    assert torch.allclose(tokens[:, 3], first, atol=1e-6)


def test_patches_return_to_their_places():
    """With the last maps made identities, an image goes through as it came."""
    network = tiny_uvit(None, channels=3)
    patches = torch.arange(3 * 64.0).reshape(1, 3, 8, 8)
    flat = patches.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 4, 5, 1).reshape(1, 16, 12)
    assert torch.equal(network._image(flat), patches)
    assert network.feature_map(torch.randn(1, 17, 16)).shape == (1, 16, 4, 4)


@pytest.mark.parametrize("classes", [None, 4])
@torch.no_grad()
def test_a_patch_that_changes_in_the_input_changes_at_its_place(classes):
    """With nothing passed between tokens: no attention, and a last convolution that looks at its own pixel."""
    network = tiny_uvit(classes)
    for block in (*network.in_blocks, network.mid_block, *network.out_blocks):
        block.attn.to_out[0].weight.zero_()
        block.attn.to_out[0].bias.zero_()
    network.conv_out.weight.zero_()[..., 1, 1] = 1
    labels = None if classes is None else torch.tensor([2])
    x = torch.randn(1, 1, 8, 8)
    plain = network(x, 3.0, labels).sample
    for row, column in ((0, 0), (0, 3), (1, 2), (3, 3)):
        changed, place = x.clone(), torch.zeros(4, 4, dtype=torch.bool)
        changed[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] += 1
        place[row, column] = True
        moved = (network(changed, 3.0, labels).sample - plain).abs()[0, 0].unfold(0, 2, 2).unfold(1, 2, 2).amax((2, 3))
        assert torch.equal(moved > 1e-4, place)


def test_every_parameter_has_a_gradient(batch):
    network = tiny_uvit().train()
    network(*batch).sample.square().mean().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in network.parameters())


def test_gradients_are_the_same_under_checkpointing(batch):
    def gradients(checkpointing):
        network = tiny_uvit().train()
        if checkpointing:
            network.enable_gradient_checkpointing()
        network(*batch).sample.square().mean().backward()
        return [parameter.grad for parameter in network.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(gradients(False), gradients(True), strict=True))


@pytest.mark.parametrize(
    ("size", "sentence"),
    [
        ({"patch_size": 3}, "images of 8x8 do not split into patches of 3"),
        ({"depth": 3}, "depth 3 must be even"),
        ({"num_attention_heads": 3}, "hidden_size 16 must be a multiple of num_attention_heads 3"),
    ],
)
def test_sizes_that_do_not_divide_are_sentences(size, sentence):
    with pytest.raises(ConfigError, match=sentence):
        tiny_uvit(**size)


def test_wrong_input_is_a_sentence(batch):
    x, time, labels = batch
    with pytest.raises(ConfigError, match="takes 8x8, its position embedding is fixed"):
        tiny_uvit()(torch.zeros(1, 1, 16, 16), 1.0, labels[:1])
    for network, given in ((tiny_uvit(), None), (tiny_uvit(None), labels)):
        with pytest.raises(ConfigError, match="class_labels must be given to a U-ViT with num_class_embeds, and only"):
            network(x, time, given)


@pytest.mark.parametrize("channels", [1, 4], ids=["pixels", "latents"])
def test_the_denoiser_wraps_it(channels):
    model = Denoiser(tiny_uvit(channels=channels), EDM(), null_class=3)
    x, sigma, labels = torch.randn(2, channels, 8, 8), torch.tensor([0.5, 5.0]), torch.tensor([0, 2])
    assert (model.image_shape, model.num_classes) == ((channels, 8, 8), 3)
    s, d = sigma.reshape(-1, 1, 1, 1), 0.5
    raw = model.network(x / (s**2 + d**2).sqrt(), 250 * sigma.log(), labels).sample
    want = d**2 / (s**2 + d**2) * x + s * d / (s**2 + d**2).sqrt() * raw
    assert torch.allclose(model(x, sigma, labels), want, atol=1e-5)
    (features,) = model.features(x, sigma, labels, ("mid_block",))
    assert features.shape == (2, 16, 4, 4)


def test_learned_variance_is_cut_off():
    alphas = torch.linspace(0.999, 0.01, 100)
    model = Denoiser(tiny_uvit(None, channels=2, out_channels=4), VP(alphas, "epsilon"))
    assert model(torch.randn(1, 2, 8, 8), torch.tensor([1.0])).shape == (1, 2, 8, 8)


def test_a_clone_drops_the_null_class_and_nothing_else(batch):
    model = Denoiser(tiny_uvit(), EDM(), null_class=3)
    copy = Denoiser(clone_network(model.network, 3), EDM()).eval()
    assert copy.network.config.num_class_embeds == 3
    assert torch.equal(copy(*batch), model(*batch))


def test_folder_round_trip_and_stock_pipeline(tmp_path, batch):
    model = Denoiser(tiny_uvit(3), EDM()).eval()
    model.save_pretrained(tmp_path / "s", role="student", levels=(2.5,))
    assert torch.equal(Denoiser.from_pretrained(str(tmp_path / "s"))(*batch), model(*batch))
    assert json.loads((tmp_path / "s" / "model_index.json").read_text())["unet"] == ["diffdistill.models.uvit", "UViT"]
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "s")
    assert type(pipe) is ConsistencyModelPipeline
    pipe.set_progress_bar_config(disable=True)
    noise = 2.5 * torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    got = pipe(class_labels=1, generator=torch.Generator().manual_seed(5), num_inference_steps=1, output_type="np")
    with torch.no_grad():
        want = model(noise, torch.tensor([2.5]), torch.tensor([1])).clamp(-1, 1) / 2 + 0.5
    assert torch.allclose(torch.from_numpy(got.images).permute(0, 3, 1, 2), want, atol=1e-5)


def test_it_trains_and_is_distilled_with_a_discriminator(tmp_path):
    small = {"kind": "uvit", "uvit": {"hidden_size": 16, "depth": 2, "num_attention_heads": 2}}
    config = settings("train", tmp_path).model_copy(update={"max_train_steps": 2, "train_batch_size": 4})
    network = type(config.network)(**small)
    task = TeacherTask(config.model_copy(update={"network": network}), data(), Device("no"))
    before = {key: value.clone() for key, value in tensors_of(task.model).items()}
    go(task, config, tmp_path)
    after = tensors_of(task.model)
    assert isinstance(task.model.network, UViT)
    assert all(not torch.equal(before[key], after[key]) for key in before if "class_embedding" not in key)
    student = Distill(
        output_dir=str(tmp_path), teacher="tiny", method={"name": "dmd2"}, max_train_steps=2, train_batch_size=4
    )
    distilled = DistillTask(student, task.averaged(), data(), Device("no"))
    metrics = distilled.update(0)
    assert float(metrics["discriminator/loss"]) > 0


def test_images_that_are_not_square_are_fine_for_it():
    config = settings("train", "x").network
    network = build_network(type(config)(kind="uvit"), torch.Size([1, 8, 12]), None)
    assert network(torch.zeros(1, 1, 8, 12), 1.0).sample.shape == (1, 1, 8, 12)
