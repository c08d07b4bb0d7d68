"""Frozen weights in few bits, which adapters are trained on (QLoRA, 2305.14314).

The linear layers of a network's blocks are packed, one after the other: `nf4`, 4.1 bits a weight, by bitsandbytes;
`int8`, a byte a weight and a scale a row, by torchao. What is beside the blocks, convolutions, norms, biases and the
layer that writes the output stay as they are. Computing unpacks a layer's weights, in the precision of its input.
diffusers' own configurations of both do the same while they load, but that of bitsandbytes refuses CPUs.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from diffdistill.explain import without_package
from diffdistill.last_layer import last_layer
from diffdistill.sharding import blocks_of

PACKAGES = {"nf4": "bitsandbytes", "int8": "torchao"}


def check_quantize(name: str | None) -> None:
    """ConfigError where the package that packs weights so is not installed, or has nothing for this machine."""
    if name is None:
        return
    try:
        _packer(name)
    except Exception as error:  # its libraries may not fit the machine, which comes as any kind
        begins = f"quantize={name} packs weights with {PACKAGES[name]}"
        raise without_package(begins, error, "quant", "set quantize=null") from error


@torch.no_grad()
def quantized(network: Any, name: str, device: torch.device | str) -> Any:
    """The frozen network on the device, its blocks' linear layers packed in place, each on its way there.

    network: in the precision that it computes in, which packed weights cannot be cast to later.
    """
    pack = _packer(name)
    for parent, child, layer in list(packed_layers(network)):
        setattr(parent, child, pack(layer.to(device)))
    return nn.Module.to(network.requires_grad_(False), device)


def packed_layers(network: Any) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """Linear layers within blocks, each once, by the module they are in and their name there."""
    last, seen = last_layer(network), set[int]()
    for block in blocks_of(network):
        for parent in block.modules():
            for child, layer in parent.named_children():
                if type(layer) is nn.Linear and layer is not last and id(layer) not in seen:
                    seen.add(id(layer))
                    yield parent, child, layer


def _packer(name: str) -> Callable[[nn.Linear], nn.Module]:
    return {"nf4": _nf4, "int8": _int8}[name]()


def _nf4() -> Callable[[nn.Linear], nn.Module]:
    from bitsandbytes.nn import Linear4bit, Params4bit

    def pack(layer: nn.Linear) -> nn.Module:
        weight = layer.weight
        made = Linear4bit(
            layer.in_features, layer.out_features, bias=False, compute_dtype=weight.dtype, quant_type="nf4",
            device="meta",
        )  # fmt: skip
        made.bias = layer.bias
        # Or passes without gradient would pack the weights anew on some CPUs, in a layout that not every width has.
        made.support_avx512bf16_for_cpu = False
        made.weight = Params4bit(weight.data, requires_grad=False, quant_type="nf4", module=made)
        packed: nn.Module = made.to(weight.device)  # which packs
        return packed

    return pack


def _int8() -> Callable[[nn.Linear], nn.Module]:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    def pack(layer: nn.Linear) -> nn.Module:
        quantize_(layer, Int8WeightOnlyConfig(version=2))
        return layer

    return pack
