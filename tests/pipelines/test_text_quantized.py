"""Adapters on frozen weights in few bits: packed, trained on, merged into the unpacked ones, and what is refused."""

import sys

import pytest
import torch

pytest.importorskip("transformers")

from pydantic import ValidationError
from runs import go, without
from text_world import LORA, settings, task, world
from torch import nn

from diffdistill.errors import ConfigError
from diffdistill.loading import load_whole
from diffdistill.pipelines.text.lora import SharedWeights
from diffdistill.pipelines.text.quantize import PACKAGES, check_quantize, quantized
from diffdistill.training.store import tensors_of
from tests.worlds.attending import text_unet

BITS = sorted(PACKAGES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return world(tmp_path_factory.mktemp("packed"))


@pytest.fixture
def packer(request):
    pytest.importorskip(PACKAGES[request.param])
    return request.param


def called(network):
    g = torch.Generator().manual_seed(1)
    x, text = torch.randn(2, 3, 8, 8, generator=g), torch.randn(2, 5, 12, generator=g)
    return network(x, torch.tensor([10.0, 500.0]), text, return_dict=False)[0]


@pytest.mark.parametrize("packer", BITS, indirect=True)
def test_linear_layers_of_blocks_are_packed_and_nothing_else(packer):
    network = text_unet((32, 64)).requires_grad_(False)
    exact, before = called(network), network.state_dict()
    weights = {name: layer.weight for name, layer in network.named_modules() if isinstance(layer, nn.Linear)}
    quantized(network, packer, "cpu")
    after = dict(network.named_modules())
    packed = {name for name, weight in weights.items() if after[name].weight is not weight}
    assert packed == {name for name in weights if not name.startswith("time_embedding")}
    others = [name for name in before if name.removesuffix(".weight") not in packed]
    assert all(torch.equal(network.get_parameter(name), before[name]) for name in others)
    off = (called(network) - exact).abs().max()
    assert 0 < off < (0.02 if packer == "int8" else 0.3) * exact.abs().max()


@pytest.mark.parametrize("packer", BITS, indirect=True)
def test_gradients_pass_packed_weights_to_an_adapter_of_the_layers_shape(packer):
    network = quantized(text_unet((32, 64)), packer, "cpu")
    adapted = SharedWeights(network).adapted(2, None, ("to_q", "to_out.0"))
    called(adapted).square().sum().backward()
    assert adapted.low_rank.layers
    assert all(up.grad.abs().sum() > 0 for up in adapted.low_rank.up.values())
    name = adapted.low_rank.layers[0]
    layer = network.get_submodule(name)
    assert adapted.low_rank.change(name).shape == (layer.out_features, layer.in_features)


@pytest.mark.parametrize("packer", BITS, indirect=True)
def test_a_student_learns_on_them_resumes_bit_equal_and_is_merged_into_the_unpacked_ones(packer, folder, tmp_path):
    def run(place, **more):
        place.mkdir(exist_ok=True)
        config = settings(folder, "sd3", output_dir=str(place), quantize=packer, checkpoint_every=1, **LORA | more)
        made = task(config)
        go(made, config, place)
        return made, {name: {k: v.clone() for k, v in tensors_of(p).items()} for name, p in made.parts.items()}

    made, whole = run(tmp_path / "whole", max_train_steps=3)
    run(tmp_path / "parts", max_train_steps=3)
    without(tmp_path / "parts", 1)
    _, resumed = run(tmp_path / "parts", max_train_steps=3, resume_from_checkpoint="latest")
    assert all(torch.equal(v, resumed[name][k]) for name, part in whole.items() for k, v in part.items())
    assert not any("weight" in k and v.dtype == torch.uint8 for part in whole.values() for k, v in part.items())

    made.averaged().save_pretrained(tmp_path / "student", role="student", levels=made.levels)
    kind = type(made.student.network.shared.network)
    source = load_whole(kind, made.student.adapter.source / "transformer").state_dict()
    merged = load_whole(kind, tmp_path / "student" / "transformer").state_dict()
    low_rank = made.averaged().network.low_rank
    for name, value in merged.items():
        layer = name.removesuffix(".weight")
        change = low_rank.change(layer) if layer in low_rank.layers else 0
        torch.testing.assert_close(value, source[name] + change)


def test_what_trains_or_must_be_exact_is_not_packed(folder):
    with pytest.raises(ValidationError, match=r"quantize=nf4 packs .* set student.lora and critic.lora, or quantize"):
        settings(folder, "sd", quantize="nf4", student={"lora": {"rank": 2}})
    with pytest.raises(ValidationError, match="float32_gap wants teacher and critic exact"):
        settings(folder, "sd", quantize="int8", **LORA, options={"float32_gap": True})


@pytest.mark.parametrize("name", BITS)
def test_without_the_package_a_sentence_says_what_to_install(name, monkeypatch):
    for module in [key for key in sys.modules if key.split(".")[0] == PACKAGES[name]] + [PACKAGES[name]]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        ConfigError, match=rf"quantize={name} packs weights with {PACKAGES[name]}.*diffdistill\[quant\]"
    ):
        check_quantize(name)
    check_quantize(None)
