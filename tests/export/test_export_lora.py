"""What `export` writes as a LoRA gives the student's images over its base, under the names that each program reads."""

import json
import shutil

import pytest
import torch

pytest.importorskip("transformers")

from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya
from export_world import call_of, drawn, export, over, stock
from safetensors import safe_open
from safetensors.torch import load_file

from diffdistill.export.low_rank import factors
from diffdistill.pipelines.folder import sealed


@pytest.mark.parametrize("kind", ["sd", "sdxl", "sd3"])
def test_the_kept_adapter_over_the_teacher_draws_the_students_images(made, tmp_path, ask, kind):
    folder, file = made / f"{kind}_lora", tmp_path / "mine.safetensors"
    said = export(ask, folder, "lora", file, "--base", made / kind)
    assert f"LoRA for {kind}, rank 2" in said
    call = call_of(folder)
    want = drawn(stock(folder), call)
    assert float((drawn(over(made / kind, folder), call) - want).abs().max()) > 1e-3
    pipe = over(made / kind, folder, file)
    assert float((drawn(pipe, call) - want).abs().max()) <= 1e-6
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    part = "transformer" if kind == "sd3" else "unet"
    own = load_file(folder / part / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(own[name], tensor) for name, tensor in getattr(pipe, part).state_dict().items())
    with safe_open(file, "pt") as opened:
        assert opened.metadata()["base_model"] == kind


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_kohyas_names_are_those_of_diffusers_converter_and_are_read_back(made, tmp_path, ask, kind):
    folder = made / f"{kind}_lora"
    kept = load_file(folder / "lora" / "pytorch_lora_weights.safetensors")
    want = convert_state_dict_to_kohya(dict(kept))
    for form, more in (("kohya", ()), ("comfyui", ("--rank", "kept"))):
        export(ask, folder, form, tmp_path / f"{form}.safetensors", *more)
        got = load_file(tmp_path / f"{form}.safetensors")
        assert got.keys() == want.keys()
        assert all(torch.equal(got[name], want[name]) for name in want)
    call = call_of(folder)
    pipe = over(made / kind, folder, tmp_path / "kohya.safetensors")
    assert float((drawn(pipe, call) - drawn(stock(folder), call)).abs().max()) <= 1e-6


def test_the_full_difference_of_merged_weights_is_the_student(made, tmp_path, ask):
    """Of a LoRA run whose adapter is lost: the rank is found again, but for layers whose change rounding hides."""
    folder, file = made / "sd_lora", tmp_path / "full.safetensors"
    said = export(ask, folder, "lora", file, "--rank", "full", "--base", made / "sd")
    tensors = load_file(file)
    assert {len(t) for name, t in tensors.items() if ".lora_A." in name} == {2}
    assert float(said.rpartition(" ")[2]) < 1e-5
    call = call_of(folder)
    assert float((drawn(over(made / "sd", folder, file), call) - drawn(stock(folder), call)).abs().max()) <= 1e-6


def test_ranks_that_differ_by_layer_are_read_back_from_kohyas_names(made, tmp_path, ask):
    """diffusers gives some layers the alpha of others where alphas differ; ComfyUI takes alpha / rank of each."""
    folder, file = made / "sd_whole", tmp_path / "whole.safetensors"
    export(ask, folder, "kohya", file, "--rank", "full", "--base", made / "sd")
    state = load_file(file)
    assert len({int(t) for name, t in state.items() if name.endswith(".alpha")}) == 1
    assert len({len(t) for name, t in state.items() if ".lora_down." in name}) > 1
    merged = over(made / "sd", folder, file)
    merged.fuse_lora()
    merged.unload_lora_weights()
    want = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    got = merged.unet.state_dict()
    assert all(torch.allclose(got[n], t, rtol=0, atol=1e-6) for n, t in want.items() if t.dim() > 1)


def test_the_closest_lora_of_a_rank_has_the_error_that_is_told(made, tmp_path, ask):
    folder = made / "sd_whole"
    errors = []
    for rank in (1, 4):
        file = tmp_path / f"{rank}.safetensors"
        errors.append(float(export(ask, folder, "lora", file, "--rank", rank, "--base", made / "sd").split()[-1]))
        tensors = load_file(file)
        state, base = (
            load_file(made / n / "unet" / "diffusion_pytorch_model.safetensors") for n in ("sd_whole", "sd")
        )
        missed = total = 0.0
        for name, weight in state.items():
            difference, key = (weight - base[name]).double(), f"unet.{name.removesuffix('.weight')}.lora_A.weight"
            total += float(difference.square().sum())
            if key in tensors and weight.dim() > 1:
                up = tensors[key.replace("_A", "_B")].double().flatten(1)
                difference = difference.flatten(1) - up @ tensors[key].double().flatten(1)
            missed += float(difference.square().sum())
        assert errors[-1] == pytest.approx((missed / total) ** 0.5, rel=0.01)
    assert errors[0] > errors[1] > 0.05


def test_half_precision_is_no_other_base(made, tmp_path, ask):
    export(ask, made / "sd_lora", "diffusers", tmp_path / "half", "--dtype", "float16")
    said = export(
        ask, tmp_path / "half", "lora", tmp_path / "x.safetensors", "--base", made / "sd", "--dtype", "float16"
    )
    assert "rank 2" in said
    assert {t.dtype for t in load_file(tmp_path / "x.safetensors").values()} == {torch.float16}


def test_the_adapter_of_an_aligned_model_is_beside_it(made, tmp_path, ask):
    run = tmp_path / "run"
    shutil.copytree(made / "sd_lora", run / "model")
    (run / "model" / "lora").rename(run / "lora")
    record = json.loads((run / "model" / "diffdistill.json").read_text())
    digests = {name: digest for name, digest in record["sha256"].items() if not name.startswith("lora/")}
    mine = {"role": "aligned", "model": "you/base", "sha256": digests}
    (run / "model" / "diffdistill.json").write_text(json.dumps(sealed(record | mine | {"teacher": None})))
    assert "LoRA for you/base, rank 2" in export(ask, run / "model", "lora", tmp_path / "x.safetensors")
    kept = load_file(run / "lora" / "pytorch_lora_weights.safetensors")
    assert all(torch.equal(tensor, kept[name]) for name, tensor in load_file(tmp_path / "x.safetensors").items())


@pytest.mark.parametrize("shape", [(9, 5), (5, 9), (6, 6)])
def test_factors_are_the_singular_vectors(shape):
    matrix = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    for rank in (1, 3, 5):
        down, up = factors(matrix, rank)
        want = (u[:, :rank] * s[:rank]) @ v[:rank]
        torch.testing.assert_close(up.double() @ down.double(), want, rtol=0, atol=1e-6)
        torch.testing.assert_close(down.norm(dim=1), up.norm(dim=0), rtol=1e-5, atol=0)  # they share the size
    assert len(factors(matrix, None, least=float(s[3:].norm()) * 1.001)[0]) == 3
    assert len(factors(matrix, None, least=float(s[3:].norm()) * 0.999)[0]) == 4
