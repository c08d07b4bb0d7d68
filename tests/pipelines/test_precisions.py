"""What a model is held and computed in: read so, float32 where it matters, recorded, refused where it cannot be."""

import json

import pytest
import torch
from edm_tiny import tiny_network
from tiny import tiny_teacher
from torch.overrides import TorchFunctionMode

import diffdistill
from diffdistill import devices
from diffdistill.denoiser import Denoiser
from diffdistill.errors import ConfigError
from diffdistill.evaluation.run import Request, check_outputs, evaluate
from diffdistill.loading import held_by, widest_dtype
from diffdistill.pipelines.load import load_model
from diffdistill.pipelines.network import clone_network, held_in
from diffdistill.precision import Precision, name_of
from diffdistill.sampling.generate import check_range
from diffdistill.training.device import Device
from diffdistill.training.run import precision_of_run

HALF = ("bfloat16", "float16")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("precisions") / "teacher"
    tiny_teacher().save_pretrained(place, role="teacher")
    return place


@pytest.mark.parametrize("dtype", HALF)
def test_weights_are_rounded_but_those_of_the_last_layer_are_not(folder, dtype):
    exact, half = load_model(folder), load_model(folder, dtype=dtype)
    states = exact.network.state_dict(), half.network.state_dict()
    for name, value in states[1].items():
        kept = "float32" if name.startswith("conv_out.") else dtype
        assert name_of(value.dtype) == kept
        assert torch.equal(value, states[0][name].to(value.dtype))
    assert half.dtypes == {"dtype": dtype}


def test_levels_and_what_comes_out_are_float32(folder):
    """At sigma 80 x0 = c_skip x + c_out F: an F of 8 bits moves it by a 256th, a c_skip of 8 bits by sigma / 256."""
    exact, half = load_model(folder), load_model(folder, dtype="bfloat16")
    x = 80 * torch.randn(4, *exact.image_shape, generator=torch.Generator().manual_seed(1))
    sigma, cond = torch.full((4,), 79.87), torch.arange(4) % exact.num_classes
    with torch.no_grad():
        x0, rounded = exact(x, sigma, cond), half(x, sigma, cond)
    assert rounded.dtype == torch.float32
    assert 1e-6 < (x0 - rounded).abs().max() < 0.02 * x0.std() + 0.01
    seen = []
    half.network.time_proj.register_forward_pre_hook(lambda _layer, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        half(x, sigma, cond)
    assert torch.equal(seen[0].float(), exact.process.to_network(x, sigma)[1])


def test_frequencies_of_the_level_are_not_rounded():
    network = tiny_network("ncsnpp")
    before = {name: value.clone() for name, value in network.state_dict().items() if "freqs" in name}
    held_in(network, torch.bfloat16)
    assert before
    for name, value in before.items():
        assert torch.equal(network.state_dict()[name], value)


def test_what_is_sampled_and_measured_says_its_precision(folder, tmp_path):
    found = diffdistill.sample(folder, num_images=4, steps=1, dtype="bfloat16", device="cpu")
    assert found.settings["dtype"] == "bfloat16"
    plain = diffdistill.sample(folder, num_images=4, steps=1, device="cpu")
    assert plain.settings["dtype"] == "float32"
    off = (found.images.int() - plain.images.int()).abs()
    assert 0 < off.max() <= 8

    request = {"model": str(folder), "num_images": 4, "steps": 1, "metrics": ["fid"], "reference": _images(tmp_path)}
    request |= {"features": "pixels", "json": str(tmp_path / "figures.json"), "device": "cpu"}
    result = evaluate(**request, dtype="bfloat16")
    assert result["protocol"]["dtype"] == result["request"]["dtype"] == "bfloat16"
    check_outputs(Request(**request, dtype="bfloat16"))
    with pytest.raises(ConfigError, match="holds something else"):
        check_outputs(Request(**request))  # of float32
    result["request"].pop("dtype")  # as they were before there was a choice: float32
    (tmp_path / "figures.json").write_text(json.dumps(result))
    check_outputs(Request(**request))
    with pytest.raises(ConfigError, match="holds something else"):
        check_outputs(Request(**request, dtype="bfloat16"))


def _images(folder):
    import numpy as np

    values = np.random.default_rng(0).integers(0, 255, (16, 8, 8), dtype=np.uint8)
    np.savez(folder / "images.npz", images=values)
    return str(folder / "images.npz")


def test_a_precision_that_cannot_be_is_a_sentence(folder, monkeypatch):
    with pytest.raises(ConfigError, match="dtype 'int4' is unknown; choose of auto, float32"):
        load_model(folder, dtype="int4")
    monkeypatch.setattr(torch.nn.functional, "group_norm", _lacks_half)
    with pytest.raises(ConfigError, match=r"dtype 'float16' is not computed by cpu here \(.*'Half'\); use float32"):
        load_model(folder, dtype="float16")
    assert load_model(folder, dtype="bfloat16").dtypes == {"dtype": "bfloat16"}
    with pytest.raises(ConfigError, match="this one is loaded already"):
        diffdistill.sample(tiny_teacher(), num_images=1, dtype="bfloat16")


def _lacks_half(x, *_):
    if x.dtype == torch.float16:
        raise RuntimeError("\"GroupNormKernelImpl\" not implemented for 'Half'")
    return x


def test_auto_follows_the_hardware(monkeypatch):
    for fast, dtype in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(devices, "fast_bf16", lambda _kind, fast=fast: fast)
        assert Precision.of("auto", "cpu").network == dtype


def test_images_beyond_the_range_of_float16_are_refused(folder):
    model = load_model(folder, dtype="float16")
    check_range(model, torch.zeros(1))
    with pytest.raises(ConfigError, match="leave the range of float16"):
        check_range(model, torch.tensor([0.0, float("nan")]))
    check_range(Denoiser.from_pretrained(folder), torch.tensor([float("nan")]))  # told by who trains it


def test_files_say_which_precision_holds_them(folder):
    assert widest_dtype(folder / "unet") == "float32"
    assert held_by({"BF16", "I64"}) == "bfloat16"
    assert held_by({"F16"}) == "float16"
    assert held_by({"F16", "BF16"}) == held_by(set()) == "float32"


@pytest.mark.parametrize("force", [True, False])
def test_a_vae_that_overflows_stays_float32_in_float16_alone(tmp_path, force):
    pytest.importorskip("transformers")
    folder = _emoji(tmp_path, force_upcast=force)
    half, brain = load_model(folder, dtype="float16"), load_model(folder, dtype="bfloat16")
    assert half.dtypes == {"dtype": "float16", "vae_dtype": "float32" if force else "float16"}
    assert brain.dtypes == {"dtype": "bfloat16", "vae_dtype": "bfloat16"}
    encoder = half.adapter.pipeline.text_encoder
    assert {weight.dtype for weight in encoder.parameters()} == {torch.float16}
    half.to("cpu")  # which moves, and casts nothing
    assert half.dtypes["vae_dtype"] == ("float32" if force else "float16")
    latents = torch.randn(1, *brain.image_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        images = [model.decode(latents) for model in (load_model(folder), brain, half)]
        encoded = [model.encode(images[0]) for model in (brain, half)]
    assert {value.dtype for value in (*images, *encoded)} == {torch.float32}
    assert all((image - images[0]).abs().mean() < 0.02 for image in images[1:])
    assert (images[1] - images[0]).abs().max() > 0


def _emoji(place, **settings):
    import shutil

    from diffdistill.assets import asset

    shutil.copytree(asset("emoji_teacher"), place / "model")
    (place / "model" / "diffdistill.json").unlink(missing_ok=True)
    index, config = place / "model" / "model_index.json", place / "model" / "vae" / "config.json"
    index.write_text(json.dumps({k: v for k, v in json.loads(index.read_text()).items() if k != "_diffdistill"}))
    config.write_text(json.dumps(json.loads(config.read_text()) | settings))
    return place / "model"


class Allocated(TorchFunctionMode):
    """Bytes of float32 that calls of torch make on the CPU beyond those of one tensor; views are not made."""

    largest = 0

    def __torch_function__(self, function, _types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.dtype == torch.float32 and out.device.type == "cpu":
            self.largest = max(self.largest, out.untyped_storage().nbytes())
        return out


def test_a_run_reads_frozen_parts_in_the_precision_it_needs(tmp_path):
    """bfloat16 files are never float32 on the way: Flux and its T5 would be 67 GB for a moment."""
    pytest.importorskip("transformers")
    folder = _emoji(tmp_path)
    _in_bfloat16(folder)
    run = precision_of_run(Device("bf16"))
    with Allocated() as seen:
        model = load_model(folder, dtype=run)
    parts = model.adapter.pipeline
    assert {p.dtype for p in (*parts.unet.parameters(), *parts.text_encoder.parameters())} == {torch.bfloat16}
    assert {p.dtype for p in parts.vae.parameters()} == {torch.float32}
    assert seen.largest <= max(p.nbytes for p in parts.vae.parameters())
    exact = precision_of_run(Device("no"))
    assert (exact.network, exact.encoders) == ("own", "float32")
    copy = clone_network(model.network, None)  # what is trained
    assert {p.dtype for p in copy.parameters()} == {torch.float32}
    assert torch.equal(copy.conv_in.weight, parts.unet.conv_in.weight.float())


def _in_bfloat16(folder):
    from safetensors.torch import load_file, save_file

    for file in folder.glob("*/*.safetensors"):
        tensors = {k: v.bfloat16() if v.is_floating_point() else v for k, v in load_file(file).items()}
        save_file(tensors, file, metadata={"format": "pt"})
