"""The denoiser contract over real diffusers networks, and the folders they live in."""

import json

import pytest
import torch
from diffusers import (
    ConsistencyModelPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
)
from tiny import tiny_teacher, tiny_unet

from diffdistill.denoiser import Denoiser
from diffdistill.errors import CheckpointError, ConfigError
from diffdistill.last_layer import float32_output
from diffdistill.pipelines.network import clone_network
from diffdistill.pipelines.pixel.schedule import GRID, snap_levels, stock_levels
from diffdistill.pipelines.scheduler_config import process_of
from diffdistill.process import EDM, VP, Flow, per_sample


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(3, 1, 8, 8, generator=generator), torch.tensor([0.1, 1.0, 9.0]), torch.tensor([0, 1, 2])


def vp(kind):
    return VP(DDPMScheduler().alphas_cumprod, kind)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_vp_networks_are_called_at_their_own_input_and_time(batch, kind):
    x, sigma, cond = batch
    net = tiny_unet().eval()
    alpha = (1 + sigma**2).rsqrt()
    got = Denoiser(net, vp(kind))(x, sigma, cond)
    out = net(x * per_sample(alpha, x), vp(kind).time(sigma), class_labels=cond).sample
    a, s = per_sample(alpha, x), per_sample(sigma * alpha, x)
    x_t = a * x
    want = {"epsilon": (x_t - s * out) / a, "v_prediction": a * x_t - s * out, "sample": out}[kind]
    assert torch.allclose(got, want, atol=1e-5)


def test_flow_transformer(batch):
    x, sigma, cond = batch
    torch.manual_seed(0)
    net = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=1, num_layers=1, patch_size=2, sample_size=8,
        num_embeds_ada_norm=4, norm_num_groups=1,
    ).eval()  # fmt: skip
    t = sigma / (1 + sigma)
    velocity = net(x * per_sample(1 - t, x), 1000 * t, class_labels=cond).sample
    want = x * per_sample(1 - t, x) - per_sample(t, x) * velocity
    denoiser = Denoiser(net, Flow())
    assert torch.allclose(denoiser(x, sigma, cond), want, atol=1e-5)
    assert denoiser.num_classes == 4


def test_result_is_float32_under_autocast(batch):
    with torch.autocast("cpu", torch.bfloat16):
        assert tiny_teacher()(*batch).dtype == torch.float32


def test_guidance_extrapolates_from_the_null_class(batch):
    x, sigma, cond = batch
    model = tiny_teacher()
    null = model(x, sigma, torch.full_like(cond, 3))
    want = null + 2.5 * (model(x, sigma, cond) - null)
    assert torch.allclose(model.guided(x, sigma, cond, 2.5), want, atol=1e-5)
    assert torch.equal(model.guided(x, sigma, cond, 1.0), model(x, sigma, cond))


@pytest.mark.parametrize("scale", [0.0, 0.5, -1.0])
def test_guidance_below_one_goes_towards_the_null_class_and_past_it(batch, scale):
    """2207.12598: w = 0 is the prediction without a class, 1/2 the middle of the two."""
    x, sigma, cond = batch
    model = tiny_teacher()
    without, with_cond = model(x, sigma, torch.full((3,), 3)), model(x, sigma, cond)
    assert (with_cond - without).abs().max() > 1e-2
    got, (features,) = model.guided_tapped(x, sigma, cond, scale, ["mid_block"])
    torch.testing.assert_close(got, scale * with_cond + (1 - scale) * without, rtol=0, atol=1e-5)
    torch.testing.assert_close(features, model.features(x, sigma, cond, ["mid_block"])[0])


def test_guidance_without_a_null_class_is_a_sentence(batch):
    with pytest.raises(ConfigError, match="needs a model with a null class"):
        Denoiser(tiny_unet(), EDM()).guided(*batch, 2.0)


def test_taps_give_the_submodules_output_and_stop_early(batch):
    model = tiny_teacher()
    x0, (middle, last) = model.tapped(*batch, ("mid_block", "conv_out"))
    assert torch.equal(x0, model(*batch))
    assert middle.shape == (3, 16, 4, 4)
    assert last.shape == (3, 1, 8, 8)
    assert [tap.shape[1] for tap in model.tapped(*batch, ("conv_out", "mid_block"))[1]] == [1, 16]  # as asked for
    ran = []
    handle = model.network.conv_out.register_forward_hook(lambda *_: ran.append(1))
    (early,) = model.features(*batch, ("mid_block",))
    handle.remove()
    assert not ran
    assert torch.equal(early, middle)


def kept_for_backward(run):
    """What `run()` returns, and how many tensors its graph has saved."""
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(0) or tensor, lambda tensor: tensor):
        return run(), len(saved)


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_with_only_the_taps_wanted_there_is_no_graph_behind_them_nor_of_the_null_half(batch, scale):
    model = tiny_teacher().requires_grad_(False)
    x, sigma, cond = batch
    found, kept = [], []
    for only_taps in (False, True):
        leaf = x.clone().requires_grad_()
        (x0, (tap,)), count = kept_for_backward(
            lambda leaf=leaf, only_taps=only_taps: model.guided_tapped(
                leaf, sigma, cond, scale, ("mid_block",), only_taps=only_taps
            )
        )
        assert x0.requires_grad is not only_taps
        found.append((x0.detach(), tap.detach(), torch.autograd.grad(tap.square().sum(), leaf)[0]))
        kept.append(count)
    for whole, lean in zip(*found, strict=True):
        torch.testing.assert_close(lean, whole, rtol=1e-4, atol=1e-5)
    _, encoder = kept_for_backward(lambda: model.features(x.clone().requires_grad_(), sigma, cond, ("mid_block",)))
    assert kept[1] == encoder < kept[0]


def test_without_taps_and_without_a_graph_of_x0_nothing_is_kept(batch):
    model = tiny_teacher()
    (x0, taps), kept = kept_for_backward(lambda: model.tapped(*batch, (), only_taps=True))
    assert torch.equal(x0, model(*batch))
    assert (taps, kept, x0.requires_grad, torch.is_grad_enabled()) == ([], 0, False, True)


def test_autocast_is_on_again_after_the_last_layer():
    """What follows it, such as a loss of the caller's, computes in the precision that the caller has chosen."""
    network = tiny_unet()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), float32_output(network):
        output = network(torch.randn(1, 1, 8, 8), torch.tensor([1.0]), torch.tensor([0])).sample
        assert torch.is_autocast_enabled("cpu")
        assert (output.dtype, torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype) == (torch.float32, torch.bfloat16)


def test_a_tap_that_matches_nothing_names_the_layers():
    with pytest.raises(ConfigError, match=r"'middle' matches no layer .* mid_block"):
        tiny_teacher().check_taps(["middle"])


def test_a_clone_drops_the_null_class_and_nothing_else(batch):
    model = tiny_teacher()
    copy = Denoiser(clone_network(model.network, model.num_classes), model.process).eval()
    assert copy.network.config.num_class_embeds == 3
    assert torch.equal(copy(*batch), model(*batch))


def test_folder_round_trip(tmp_path, batch):
    model = tiny_teacher()
    model.save_pretrained(tmp_path / "m", role="teacher", data={"path": "x"})
    back = Denoiser.from_pretrained(str(tmp_path / "m"))
    assert torch.equal(back(*batch), model(*batch))
    assert (back.role, back.null_class, back.num_classes, back.metadata["data"]) == ("teacher", 3, 3, {"path": "x"})
    assert not list(tmp_path.rglob("*.bin"))


@pytest.mark.parametrize(
    "levels",
    [stock_levels(1, 2.5), stock_levels(2, 80.0), stock_levels(4, 2.5), snap_levels([2.5, 1.0, 0.3])[0]],
    ids=len,
)
@pytest.mark.parametrize("channels", [1, 3])
def test_stock_pipeline_draws_the_students_image(tmp_path, levels, channels):
    student = Denoiser(tiny_unet(3, channels), EDM()).eval()
    student.save_pretrained(tmp_path / "s", role="student", levels=levels)
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "s")
    assert type(pipe) is ConsistencyModelPipeline
    pipe.set_progress_bar_config(disable=True)
    call = json.loads((tmp_path / "s" / "diffdistill.json").read_text())["call"]

    def noise():
        return [torch.Generator().manual_seed(seed) for seed in (5, 6)]

    got = pipe(batch_size=2, class_labels=[0, 2], generator=noise(), **call, output_type="np").images
    generators = noise()
    x = 0
    for level in levels:
        x = x + level * torch.cat([torch.randn(1, channels, 8, 8, generator=g) for g in generators])
        with torch.no_grad():
            x = student(x, torch.full((2,), level), torch.tensor([0, 2])).clamp(-1, 1)
    assert torch.allclose(torch.from_numpy(got).permute(0, 3, 1, 2), x / 2 + 0.5, atol=1e-5)


def test_explicit_levels_are_on_the_stock_grid():
    from diffusers import CMStochasticIterativeScheduler

    levels, timesteps = snap_levels([2.5, 1.0, 0.3])
    assert levels == pytest.approx([2.5, 1.0, 0.3], rel=2e-3)
    stock = CMStochasticIterativeScheduler(num_train_timesteps=GRID, sigma_min=0.0, sigma_max=2.5, rho=2.0)
    stock.set_timesteps(timesteps=timesteps)
    assert stock.sigmas.tolist() == pytest.approx([*levels, 0.0], rel=1e-6)


def test_schedulers_tell_the_process():
    assert isinstance(process_of({"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}), VP)
    assert isinstance(
        process_of(dict(FlowMatchEulerDiscreteScheduler().config, _class_name="FlowMatchEulerDiscreteScheduler")), Flow
    )
    edm = {"_class_name": "EDMEulerScheduler", "sigma_data": 0.7, "sigma_min": 0.01, "sigma_max": 50.0}
    assert process_of(edm) == EDM(0.7, 1.0, 0.01, 50.0)


def break_weights(folder):
    file = next(folder.rglob("*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(bytes(data))


BREAKS = {
    "one flipped bit": (break_weights, "is damaged: its SHA-256"),
    "no weights": (lambda folder: next(folder.rglob("*.safetensors")).unlink(), "lacks 'unet"),
    "no index": (lambda folder: (folder / "model_index.json").unlink(), "has no model_index.json"),
    "no scheduler": (
        lambda folder: (folder / "scheduler" / "scheduler_config.json").unlink(),
        "lacks 'scheduler/scheduler_config.json",
    ),
    "broken index": (lambda folder: (folder / "model_index.json").write_text("{"), "not readable JSON"),
    "other pipeline": (
        lambda folder: (folder / "model_index.json").write_text(json.dumps({"vae": []})),
        "no unet and no transformer",
    ),
}


@pytest.mark.parametrize("case", BREAKS)
def test_broken_folders_are_a_sentence_and_exit_code_4(tmp_path, case):
    change, sentence = BREAKS[case]
    tiny_teacher().save_pretrained(tmp_path / "m", role="teacher")
    change(tmp_path / "m")
    with pytest.raises(CheckpointError, match=sentence) as error:
        Denoiser.from_pretrained(str(tmp_path / "m"))
    assert error.value.exit_code == 4


def test_a_pickle_is_never_opened(tmp_path):
    for name in ("model.pt", "model.pkl", "network.ckpt"):
        (tmp_path / name).write_bytes(b"\x80\x04.")
        with pytest.raises(CheckpointError, match="is a pickle"):
            Denoiser.from_pretrained(str(tmp_path / name))
    tiny_teacher().save_pretrained(tmp_path / "m", role="teacher")
    (tmp_path / "m" / "diffdistill.json").unlink()
    next((tmp_path / "m").rglob("*.safetensors")).rename(tmp_path / "m" / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pickled weights are never loaded"):
        Denoiser.from_pretrained(str(tmp_path / "m"))


def test_nothing_is_overwritten_and_nothing_half_written(tmp_path):
    tiny_teacher().save_pretrained(tmp_path / "m", role="teacher")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "m").rglob("*")}
    with pytest.raises(ConfigError, match="already holds files"):
        tiny_teacher(1).save_pretrained(tmp_path / "m", role="teacher")
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "m").rglob("*")}
    with pytest.raises(ConfigError, match="no stock pipeline samples"):
        Denoiser(tiny_unet(), Flow()).save_pretrained(tmp_path / "f", role="student")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m"]
