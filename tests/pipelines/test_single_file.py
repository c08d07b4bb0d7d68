"""Models in one file, as other programs keep them: Stable Diffusion's own names, and a network alone."""

import importlib.util
import json
import re

import pytest
import torch

pytest.importorskip("transformers")

from diffusers import StableDiffusion3Pipeline, StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from tiny_text import stable_diffusion, stable_diffusion_3

from diffdistill import Denoiser
from diffdistill.cli import main
from diffdistill.errors import CheckpointError, ConfigError
from diffdistill.pipelines.text.single_file import convert_single

# Of this tiny UNet: where its blocks stand among those of the original, which are counted through.
UNET = {
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "down_blocks.0.resnets.0": "input_blocks.1.0", "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    "down_blocks.1.resnets.0": "input_blocks.3.0", "down_blocks.1.attentions.0": "input_blocks.3.1",
    "mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "up_blocks.0.resnets.0": "output_blocks.0.0", "up_blocks.0.attentions.0": "output_blocks.0.1",
    "up_blocks.0.resnets.1": "output_blocks.1.0", "up_blocks.0.attentions.1": "output_blocks.1.1",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.1.2.conv",
    "up_blocks.1.resnets.0": "output_blocks.2.0", "up_blocks.1.resnets.1": "output_blocks.3.0",
}  # fmt: skip
RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
          "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}  # fmt: skip
VAE = [
    (r"encoder\.down_blocks\.(\d)\.resnets\.(\d)", r"encoder.down.\1.block.\2"),
    (r"encoder\.down_blocks\.(\d)\.downsamplers\.0", r"encoder.down.\1.downsample"),
    (r"decoder\.up_blocks\.0\.resnets\.(\d)", r"decoder.up.1.block.\1"),
    (r"decoder\.up_blocks\.1\.resnets\.(\d)", r"decoder.up.0.block.\1"),
    (r"decoder\.up_blocks\.0\.upsamplers\.0", "decoder.up.1.upsample"),
    (r"mid_block\.resnets\.0", "mid.block_1"), (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
    (r"mid_block\.attentions\.0\.to_(q|k|v)", r"mid.attn_1.\1"),
    (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
    ("conv_norm_out", "norm_out"), ("conv_shortcut", "nin_shortcut"),
]  # fmt: skip


def original(pipeline):
    """The tensors of a tiny pipeline by the names of the original repository."""
    tensors = {}
    for name, value in pipeline.unet.state_dict().items():
        place = max((place for place in UNET if name.startswith(f"{place}.")), key=len)
        rest = name.removeprefix(f"{place}.")
        if ".resnets." in name:
            rest = ".".join((RESNET[rest.split(".")[0]], *rest.split(".")[1:]))
        tensors[f"model.diffusion_model.{UNET[place]}.{rest}"] = value
    for name, value in pipeline.vae.state_dict().items():
        for pattern, other in VAE:
            name = re.sub(pattern, other, name)
        image = "attn_1" in name and value.ndim == 2  # a 1x1 convolution there
        tensors[f"first_stage_model.{name}"] = value[:, :, None, None] if image else value
    for name, value in pipeline.text_encoder.state_dict().items():
        inside = name if name.startswith("text_model.") else f"text_model.{name}"
        tensors[f"cond_stage_model.transformer.{inside}"] = value
    return {name: value.clone().contiguous() for name, value in tensors.items()}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A pipeline, its file, and settings of its architecture without any weights."""
    folder = tmp_path_factory.mktemp("single")
    pipeline = StableDiffusionPipeline.from_pretrained(stable_diffusion(folder / "sd"), safety_checker=None)
    save_file(original(pipeline), folder / "model.safetensors")
    stable_diffusion(folder / "config", seed=1)
    for weights in (folder / "config").rglob("*.safetensors"):
        weights.unlink()
    return folder


def test_one_file_becomes_the_pipeline_it_was_made_from(made, capsys):
    out = made / "out"
    words = ["convert", str(made / "model.safetensors"), "--config", str(made / "config"), "--out", str(out)]
    assert main(words) == 0
    assert "StableDiffusionPipeline" in capsys.readouterr().out
    one, other = Denoiser.from_pretrained(made / "sd"), Denoiser.from_pretrained(out)
    x, sigma = torch.randn(2, *one.image_shape), torch.tensor([0.5, 9.0])
    for model in (one, other):
        assert model.prompts.ids(["thing", "other"]).tolist() == [1, 2]
    with torch.no_grad():
        assert torch.equal(other(x, sigma, torch.tensor([1, 2])), one(x, sigma, torch.tensor([1, 2])))
        assert torch.equal(other.decode(x), one.decode(x))
    record = json.loads((out / "diffdistill.json").read_text())
    assert (record["role"], record["source"]["file"]) == ("teacher", "model.safetensors")
    assert not any(str(made) in file.read_text() for file in out.rglob("*.json"))
    assert main(words) == 2  # nothing is overwritten
    assert "already exists" in capsys.readouterr().err


def test_a_network_alone_takes_the_rest_from_the_pipeline(tmp_path):
    """In half precision, which stays."""
    folder = stable_diffusion_3(tmp_path / "sd3")
    other = StableDiffusion3Pipeline.from_pretrained(stable_diffusion_3(tmp_path / "tuned", seed=4))
    state = {name: value.half() for name, value in other.transformer.state_dict().items()}
    save_file(state, tmp_path / "tuned.safetensors")
    convert_single(tmp_path / "tuned.safetensors", str(folder), tmp_path / "out")
    written = load_file(tmp_path / "out" / "transformer" / "diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in written.values()} == {torch.float16}
    assert all(torch.equal(value, state[name]) for name, value in written.items())
    base = StableDiffusion3Pipeline.from_pretrained(folder)
    kept = StableDiffusion3Pipeline.from_pretrained(tmp_path / "out")
    for part in ("vae", "text_encoder", "text_encoder_3"):
        mine, theirs = getattr(kept, part).state_dict(), getattr(base, part).state_dict()
        assert all(torch.equal(value, theirs[name]) for name, value in mine.items())


def test_what_is_no_such_file_is_one_sentence(made, tmp_path, monkeypatch):
    whole = original(StableDiffusionPipeline.from_pretrained(made / "sd", safety_checker=None))
    files = {
        "lacks": {name: value for name, value in whole.items() if "middle_block.0.in_layers.2" not in name},
        "wide": whole | {"model.diffusion_model.out.2.weight": torch.ones(4, 9, 3, 3)},
        "nan": whole | {"model.diffusion_model.out.2.bias": torch.full((4,), torch.nan)},
        "other": {"double_blocks.0.img_attn.qkv.weight": torch.ones(2, 2)},
    }
    for name, tensors in files.items():
        save_file(tensors, tmp_path / f"{name}.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((made / "model.safetensors").read_bytes()[:5000])
    (tmp_path / "old.ckpt").write_bytes(b"pickle")
    (tmp_path / "q.gguf").write_bytes(b"GGUF")
    sentences = {
        "lacks.safetensors": "it lacks some of its weights",
        "wide.safetensors": "is damaged or no model of the architecture",
        "nan.safetensors": "are NaN or infinite",
        "cut.safetensors": "is no whole safetensors file",
        "other.safetensors": "holds no safetensors weights|could not be loaded",
        "old.ckpt": "is a pickle",
        "absent.safetensors": "is not there",
    }
    for name, sentence in sentences.items():
        with pytest.raises(CheckpointError, match=sentence) as caught:
            convert_single(tmp_path / name, str(made / "config"), tmp_path / "out")
        assert "\n" not in str(caught.value)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match="is read with the package gguf; pip install gguf"):
        convert_single(tmp_path / "q.gguf", str(made / "sd"), tmp_path / "out")
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="reads from no single file"):
        convert_single(made / "model.safetensors", "builtin:fashion_mnist_teacher", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(CheckpointError, match="is one file of weights, and a model is a folder; make one of it: diff"):
        Denoiser.from_pretrained(made / "model.safetensors")
