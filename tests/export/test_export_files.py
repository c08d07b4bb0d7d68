"""What `export` writes is what stock programs read: the same images, the same names, and nothing half-made."""

import json
import shutil

import pytest
import torch

pytest.importorskip("transformers")

from comfyui_models import teacher
from diffusers import (
    DiffusionPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from export_world import TEACHERS, call_of, drawn, export, stock
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_text import WIDTH, text_config, unet
from transformers import CLIPTextModel

from diffdistill import Denoiser
from diffdistill.export import transformer
from diffdistill.export.comfyui import CONVERTERS
from diffdistill.export.single_file import checked
from diffdistill.export.unet import renamed

CLASSES = {"sd": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}


# ---- whole files


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_a_single_file_draws_the_images_of_the_folder(made, tmp_path, ask, kind):
    folder, file = made / f"{kind}_lora", tmp_path / "one.safetensors"
    assert f"{CLASSES[kind].__name__}" in export(ask, folder, "single-file", file)
    pipe = CLASSES[kind].from_single_file(str(file), config=str(folder), local_files_only=True)
    call = call_of(folder)
    want = drawn(stock(folder), call)
    assert float(want.std()) > 0.01
    assert float((drawn(pipe, call) - want).abs().max()) <= 3e-7
    with safe_open(file, "pt") as opened:
        said = json.loads(opened.metadata()["diffdistill"])["sampling"]
        assert (said["call"], said["prediction_type"]) == (call, "epsilon")
        # Convolutions of one pixel, as in published files; diffusers would read matrices too.
        assert opened.get_tensor("first_stage_model.encoder.mid.attn_1.q.weight").shape == (8, 8, 1, 1)


def test_a_single_file_of_sdxl_is_converted_back_to_the_last_bit(made, tmp_path, ask):
    folder, file = made / "sdxl_lora", tmp_path / "one.safetensors"
    export(ask, folder, "single-file", file)
    code, _, complaint = ask("convert", str(file), "--config", str(made / "sdxl"), "--out", str(tmp_path / "back"))
    assert code == 0, complaint
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        _the_same_tensors(tmp_path / "back" / part, folder / part)


def _the_same_tensors(mine, theirs):
    mine, theirs = (
        {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
        for folder in (mine, theirs)
    )
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())


@pytest.mark.slow
def test_a_file_of_flux_is_converted_back_to_the_last_bit(tmp_path, ask):
    """Of its published width, half a billion weights: diffusers splits a file's matrices at that width."""
    folder, file = teacher("flux", tmp_path), tmp_path / "one.safetensors"
    export(ask, folder, "comfyui", file)
    code, _, complaint = ask("convert", str(file), "--config", str(folder), "--out", str(tmp_path / "back"))
    assert code == 0, complaint
    _the_same_tensors(tmp_path / "back" / "transformer", folder / "transformer")


def test_an_encoder_of_open_clip_has_its_layout(made, tmp_path, ask):
    """SD 2's: one matrix of query, key and value, GELU; diffusers reads the images of the folder from it."""
    folder = tmp_path / "sd2"
    shutil.copytree(made / "sd", folder)
    config = text_config()
    config.hidden_act = "gelu"
    pipe = stock(folder)
    pipe.register_modules(text_encoder=CLIPTextModel(config))
    pipe.save_pretrained(folder)
    export(ask, folder, "single-file", tmp_path / "two.safetensors")
    names = set(load_file(tmp_path / "two.safetensors"))
    assert "cond_stage_model.model.transformer.resblocks.1.attn.in_proj_weight" in names
    assert not any(name.startswith("cond_stage_model.transformer.") for name in names)
    again = StableDiffusionPipeline.from_single_file(
        str(tmp_path / "two.safetensors"), config=str(folder), local_files_only=True
    )
    call = {"num_inference_steps": 2}
    assert float((drawn(again, call) - drawn(stock(folder), call)).abs().max()) <= 3e-7


@pytest.mark.parametrize(("kind", "cls"), [("sdxl", UNet2DConditionModel), ("sd3", SD3Transformer2DModel)])
def test_the_denoiser_for_comfyui_is_read_by_diffusers_too(made, tmp_path, ask, kind, cls):
    folder, file = made / f"{kind}_lora", tmp_path / "denoiser.safetensors"
    export(ask, folder, "comfyui", file)
    part = "unet" if kind == "sdxl" else "transformer"
    network = cls.from_single_file(str(file), config=str(folder), subfolder=part, local_files_only=True)
    want = cls.from_pretrained(folder, subfolder=part).state_dict()
    assert all(torch.equal(want[name], tensor) for name, tensor in network.state_dict().items())
    assert all(name.startswith("model.diffusion_model.") for name in load_file(file))


def test_pixart_keeps_the_names_that_comfyui_reads(made, tmp_path, ask):
    export(ask, made / "pixart", "comfyui", tmp_path / "denoiser.safetensors")
    want = load_file(made / "pixart" / "transformer" / "diffusion_pytorch_model.safetensors")
    got = load_file(tmp_path / "denoiser.safetensors")
    assert got.keys() == want.keys()
    assert {"adaln_single.emb.timestep_embedder.linear_1.bias", "pos_embed.proj.bias"} <= got.keys()  # its own marks


def test_flux_of_any_width_has_the_first_releases_names(made, tmp_path, ask):
    export(ask, made / "flux", "comfyui", tmp_path / "flux.safetensors")
    state = load_file(tmp_path / "flux.safetensors")
    config = json.loads((made / "flux" / "transformer" / "config.json").read_text())
    width = config["num_attention_heads"] * config["attention_head_dim"]
    prefix = "model.diffusion_model."
    assert state[f"{prefix}single_blocks.0.linear1.weight"].shape == (7 * width, width)
    given = load_file(made / "flux" / "transformer" / "diffusion_pytorch_model.safetensors")
    shift = given["norm_out.linear.weight"].chunk(2)[1]
    assert torch.equal(state[f"{prefix}final_layer.adaLN_modulation.1.weight"][:width], shift)


def test_flux_of_the_published_width_is_read_by_diffusers():
    """Matrices of one column: their rows are all that is cut and joined."""
    with torch.device("meta"):
        network = FluxTransformer2DModel(num_layers=1, num_single_layers=1, guidance_embeds=True)
    state = {name: torch.randn(tensor.shape[0], 1) for name, tensor in network.state_dict().items()}
    convert, read_back = CONVERTERS["FluxTransformer2DModel"]
    joined = checked(state, dict(network.config), convert, read_back, "transformer")
    assert len(joined["single_blocks.0.linear1.weight"]) == 7 * transformer.FLUX_WIDTH


def test_a_copy_in_half_precision_is_a_whole_model(made, tmp_path, ask):
    dtype = "float16"
    export(ask, made / "sd_lora", "diffusers", tmp_path / "half", "--dtype", dtype)
    kinds = {t.dtype for file in (tmp_path / "half").rglob("*.safetensors") for t in load_file(file).values()}
    assert kinds == {getattr(torch, dtype)}
    model = Denoiser.from_pretrained(str(tmp_path / "half"))  # its digests are those of the new files
    assert model.role == "student"
    assert model.metadata["exported"] == {"dtype": dtype}
    assert (tmp_path / "half" / "README.md").is_file()
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "half")
    want = drawn(stock(made / "sd_lora"), call_of(made / "sd_lora"))
    assert 0 < float((drawn(pipe, call_of(tmp_path / "half")) - want).abs().max()) < 0.1


def test_weights_in_shards_are_read_and_their_index_has_the_new_size(made, tmp_path, ask):
    shutil.copytree(made / "sd", tmp_path / "sd")
    network = UNet2DConditionModel.from_pretrained(tmp_path / "sd" / "unet")
    shutil.rmtree(tmp_path / "sd" / "unet")
    network.save_pretrained(tmp_path / "sd" / "unet", max_shard_size="100KB")
    index = "unet/diffusion_pytorch_model.safetensors.index.json"
    export(ask, tmp_path / "sd", "diffusers", tmp_path / "half", "--dtype", "bfloat16")
    sizes = [json.loads((tmp_path / n / index).read_text())["metadata"]["total_size"] for n in ("sd", "half")]
    assert sizes[0] == 2 * sizes[1]
    again = UNet2DConditionModel.from_pretrained(tmp_path / "half" / "unet")
    want = {name: tensor.bfloat16().float() for name, tensor in network.state_dict().items()}
    assert all(torch.equal(want[name], tensor) for name, tensor in again.state_dict().items())
    export(ask, tmp_path / "sd", "comfyui", tmp_path / "one.safetensors")
    assert len(load_file(tmp_path / "one.safetensors")) == len(want)


def test_a_copy_without_a_precision_is_the_same_to_the_byte(made, tmp_path, ask):
    export(ask, made / "sd_lora", "diffusers", tmp_path / "copy")
    files = {file.relative_to(made / "sd_lora"): file for file in (made / "sd_lora").rglob("*") if file.is_file()}
    assert files.keys() == {f.relative_to(tmp_path / "copy") for f in (tmp_path / "copy").rglob("*") if f.is_file()}
    changed = [name for name, file in files.items() if file.read_bytes() != (tmp_path / "copy" / name).read_bytes()]
    assert changed == []


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("up_blocks.0.upsamplers.0.conv.weight", "output_blocks.2.1.conv.weight"),
        ("up_blocks.1.upsamplers.0.conv.weight", "output_blocks.5.2.conv.weight"),
        ("down_blocks.2.downsamplers.0.conv.bias", "input_blocks.9.0.op.bias"),
        ("mid_block.resnets.1.time_emb_proj.bias", "middle_block.2.emb_layers.1.bias"),
    ],
)
def test_names_are_those_of_the_published_stable_diffusion(name, published):
    """An upsampler comes after the attention of its block where it has one; diffusers would read either place."""
    attended = {"up_blocks.1.attentions.2.norm.weight": torch.zeros(1)}
    assert renamed(name, attended, {"layers_per_block": 2}) == published


# ---- what cannot be


def refused(ask, code, *words):
    got, said, complaint = ask("export", *map(str, words))
    assert (got, said) == (code, "")
    told = [
        line for line in complaint.splitlines() if line and "it/s]" not in line
    ]  # progress of the test's own pipelines
    assert len(told) == 1
    return told[0]


def test_what_a_format_cannot_hold_is_told_in_a_sentence(made, tmp_path, ask):
    out = tmp_path / "x.safetensors"
    pixels = "builtin:fashion_mnist_teacher"
    cases = [
        (2, (made / "sd3", "--format", "single-file"), "comfyui, which writes the denoiser alone"),
        (2, (pixels, "--format", "single-file"), "a pixel model goes to others as it is: --format diffusers"),
        (2, (pixels, "--format", "lora"), "no program loads a LoRA; export --format diffusers"),
        (2, (pixels, "--format", "comfyui"), "what is possible: --format diffusers"),
        (2, (made / "sd3_lora", "--format", "kohya"), "kohya's names for UNets alone; export --format lora"),
        (2, (made / "sd_whole", "--format", "lora"), "kept no adapter"),
        (2, (made / "sd_whole", "--format", "lora", "--rank", "4"), "its base 'sd' is not here; give --base MODEL"),
        (2, (made / "sd_whole", "--format", "lora", "--rank", "4", "--base", made / "sdxl"), "is not built as"),
        (2, (made / "sd_whole", "--format", "lora", "--rank", "4", "--base", made / "sd3"), "SD3Transformer2DModel"),
        (2, (made / "sd", "--format", "lora", "--rank", "4", "--base", made / "sd"), "no layer of"),
        (2, (made / "sd_lora", "--format", "lora", "--rank", "0"), "'0' is no rank"),
        (2, (made / "sd_lora", "--format", "single-file", "--rank", "4"), "--rank goes with a LoRA"),
        (2, (made / "sd_lora", "--format", "comfyui", "--base", made / "sd"), "--base goes with a LoRA"),
    ]
    for code, words, sentence in cases:
        assert sentence in refused(ask, code, *words, "--out", out)
        assert list(tmp_path.iterdir()) == []
    assert "let its name end in .safetensors" in refused(
        ask, 2, made / "sd", "--format", "single-file", "--out", tmp_path / "x.ckpt"
    )


def test_a_lora_of_another_base_is_refused(made, tmp_path, ask):
    """One of the same build with other text encoders, and one whose denoiser is another."""
    TEACHERS["sd"](tmp_path / "other", seed=9)
    words = (made / "sd_lora", "--format", "lora", "--base", tmp_path / "other", "--out", tmp_path / "x.safetensors")
    assert "so it is not its base" in refused(ask, 2, *words)
    for part in ("vae", "text_encoder"):
        shutil.rmtree(tmp_path / "other" / part)
        shutil.copytree(made / "sd" / part, tmp_path / "other" / part)
    assert "with its adapter" in refused(ask, 2, *words)
    assert not (tmp_path / "x.safetensors").exists()


def test_nothing_is_written_over_and_nothing_is_left_half(made, tmp_path, ask, monkeypatch):
    taken = tmp_path / "taken.safetensors"
    taken.write_text("mine")
    assert "exists and holds something else" in refused(ask, 2, made / "sd", "--format", "single-file", "--out", taken)
    assert taken.read_text() == "mine"
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine.txt").write_text("mine")
    assert "not an empty folder" in refused(ask, 2, made / "sd", "--format", "diffusers", "--out", tmp_path / "folder")
    copy = tmp_path / "broken"
    shutil.copytree(made / "sd", copy)
    state = load_file(copy / "vae" / "diffusion_pytorch_model.safetensors")
    state["encoder.conv_in.weight"][0, 0, 0, 0] = 1e6  # above float16's highest
    save_file(state, copy / "vae" / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    for form, out in (("diffusers", "half"), ("single-file", "half.safetensors")):
        words = (copy, "--format", form, "--dtype", "float16", "--out", tmp_path / out)
        assert "not finite in float16" in refused(ask, 4, *words)
        assert not (tmp_path / out).exists()
    assert {path.name for path in tmp_path.iterdir()} == {"taken.safetensors", "folder", "broken"}


def test_damaged_models_are_not_exported(made, tmp_path, ask):
    copy = tmp_path / "copy"
    shutil.copytree(made / "sd_lora", copy)
    (copy / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"\0" * 100)
    out = ("--out", tmp_path / "x.safetensors")
    assert "is damaged" in refused(ask, 4, copy, "--format", "single-file", *out)
    shutil.rmtree(copy)
    shutil.copytree(made / "sd", copy)
    state = load_file(copy / "unet" / "diffusion_pytorch_model.safetensors")
    state.pop("conv_in.bias")
    save_file(state, copy / "unet" / "diffusion_pytorch_model.safetensors")
    assert "are not those of its config.json (conv_in.bias)" in refused(ask, 4, copy, "--format", "comfyui", *out)


def test_a_network_that_no_checkpoint_has_is_refused(made, tmp_path, ask):
    """Blocks with a part that the layout has no name for: diffusers would not read it back."""
    copy = tmp_path / "copy"
    shutil.copytree(made / "sd", copy)
    pipe = stock(copy)
    pipe.register_modules(
        unet=unet(cross_attention_dim=WIDTH, encoder_hid_dim=WIDTH, encoder_hid_dim_type="text_proj")
    )
    pipe.save_pretrained(copy)
    complaint = refused(ask, 2, copy, "--format", "single-file", "--out", tmp_path / "x.safetensors")
    assert "diffusers would not read it back (encoder_hid_proj" in complaint


def test_nothing_is_written_into_the_model_itself(made, ask):
    code, _, err = ask("export", str(made / "sd"), "--format", "diffusers", "--out", str(made / "sd" / "inner"))
    assert code == 2
    assert "lies in the model itself" in err
    assert not (made / "sd" / "inner").exists()
