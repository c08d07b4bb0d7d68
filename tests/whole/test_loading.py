"""Networks are loaded whole and finite, out of safetensors alone; anything else is a sentence before it is used."""

import json
import math
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DModel
from safetensors.torch import load_file, save_file

from diffdistill.errors import CheckpointError
from diffdistill.loading import check_finite, load_whole

WEIGHTS, FIRST = "diffusion_pytorch_model.safetensors", "conv_in.weight"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("network")
    UNet2DModel(
        sample_size=4,
        block_out_channels=(8,),
        layers_per_block=1,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=2,
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    for file in whole.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def rewritten(folder: Path, change) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def test_a_whole_one_is_loaded(folder):
    network = load_whole(UNet2DModel, folder)
    assert torch.equal(network.state_dict()[FIRST], load_file(folder / WEIGHTS)[FIRST])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors: tensors.pop(FIRST), f"lack {FIRST}"),
        (lambda tensors: tensors.update(extra=torch.ones(2)), "have too much extra"),
        (lambda tensors: tensors.update({FIRST: torch.ones(8, 3, 5, 5)}), FIRST),  # another shape
    ],
)
def test_tensors_of_another_network_are_named(folder, change, words):
    rewritten(folder, change)
    with pytest.raises(CheckpointError) as caught:
        load_whole(UNet2DModel, folder)
    assert words in str(caught.value)


def test_what_the_caller_never_uses_may_lack_or_be_too_much(folder):
    rewritten(folder, lambda tensors: (tensors.pop("conv_out.bias"), tensors.update(extra=torch.ones(2))))
    load_whole(UNet2DModel, folder, spare=r"^extra$|^conv_out\.bias$")
    with pytest.raises(CheckpointError, match=r"lack conv_out\.bias"):
        load_whole(UNet2DModel, folder, spare="^extra$")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_weight_that_is_no_number_is_enough(folder, value):
    rewritten(folder, lambda tensors: tensors[FIRST].view(-1)[7:8].fill_(value))
    with pytest.raises(CheckpointError, match=rf"are NaN or infinite \({FIRST}\)"):
        load_whole(UNet2DModel, folder)


def test_buffers_and_all_kinds_of_numbers_are_looked_at():
    network = torch.nn.Linear(2, 2).half()
    network.register_buffer("counts", torch.tensor([1, 2]))
    network.register_buffer("nothing", torch.zeros(0))
    check_finite(network, "it")
    network.register_buffer("scale", torch.tensor([1.0, math.inf], dtype=torch.bfloat16))
    with pytest.raises(CheckpointError, match=r"'it' are NaN or infinite \(scale\)"):
        check_finite(network, "it")


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("x.safetensors.index.json", {"weight_map": {"a": "x.bin"}}, "names 'x.bin' as a file of weights"),
        ("x.safetensors.index.json", {"weight_map": {"a": "../x.safetensors"}}, "as a file of weights"),
        ("x.safetensors.index.json", {"weight_map": {"a": "/x.safetensors"}}, "as a file of weights"),
        ("x.safetensors.index.json", {"weight_map": {"a": "c:x.safetensors"}}, "as a file of weights"),
        ("x.safetensors.index.json", {}, "names 'no' as a file of weights"),
        ("x.safetensors.index.json", [], "is no JSON object"),
        ("adapter_config.json", {}, "holds an adapter"),
        ("config.json", {"transformers_weights": "x.bin"}, "names 'x.bin' as its weights"),
        ("config.json", {"transformers_weights": "../x.safetensors"}, "as its weights"),
    ],
)
def test_side_doors_are_shut_before_anything_is_opened(folder, file, content, words):
    class Never:
        @staticmethod
        def from_pretrained(*args, **options):
            raise AssertionError("opened")

    (folder / file).write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(CheckpointError) as caught:
        load_whole(Never, folder)
    assert words in str(caught.value)


def test_a_pickle_alone_is_named(folder):
    (folder / WEIGHTS).rename(folder / "diffusion_pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"as a pickle \(diffusion_pytorch_model\.bin\)"):
        load_whole(UNet2DModel, folder)


def test_a_tensor_of_another_shape_is_named_where_the_package_only_reports_it(folder):
    class Reports:
        @staticmethod
        def from_pretrained(*args, **options):
            return torch.nn.Linear(2, 2), {"mismatched_keys": [("weight", (2, 2), (3, 2))]}

    with pytest.raises(CheckpointError, match="have in another shape weight, so they are not those"):
        load_whole(Reports, folder)
