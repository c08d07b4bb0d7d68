"""Files that touch a marker when they are opened without care: pickles of every form, YAML, TorchScript."""

import io
import os
import pickle  # noqa: TID251 - to write what must not be opened with it
import struct
import subprocess
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch


class Bomb:
    """Its pickle calls a function."""

    def __init__(self, function: Callable[..., Any], *args: Any):
        self.call = function, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def bombs(marker: Path) -> dict[str, Bomb]:
    """Each touches the marker when it is opened."""
    code = f"open({str(marker)!r}, 'w').close()"
    return {
        "os.system": Bomb(os.system, f"touch {marker}"),
        "exec": Bomb(exec, code),
        "Path.touch": Bomb(Path.touch, marker),
        "Popen": Bomb(subprocess.Popen, ["touch", str(marker)]),
    }


def pickled(bomb: Bomb, protocol: int) -> bytes:
    """As one of the tensors of a state_dict."""
    return pickle.dumps({"conv_in.weight": torch.zeros(2).numpy(), "bomb": bomb}, protocol)


def torch_zip(bomb: Bomb) -> bytes:
    """`torch.save` of today."""
    stream = io.BytesIO()
    torch.save({"weight": torch.zeros(2), "bomb": bomb}, stream)  # noqa: TID251
    return stream.getvalue()


def torch_legacy(bomb: Bomb) -> bytes:
    """`torch.save` from before its zip files."""
    stream = io.BytesIO()
    content = {"weight": torch.zeros(2), "bomb": bomb}
    torch.save(content, stream, _use_new_zipfile_serialization=False)  # noqa: TID251
    return stream.getvalue()


def harmless(weights: Path) -> bytes:
    """The same tensors as a pickle that would do nothing but give them."""
    from safetensors.torch import load_file

    stream = io.BytesIO()
    torch.save(load_file(weights), stream)  # noqa: TID251
    return stream.getvalue()


def npy(bomb: Bomb) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array([bomb, None], dtype=object), allow_pickle=True)
    return stream.getvalue()


def npz(bomb: Bomb, name: str = "images") -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **{name: np.array([bomb, None], dtype=object), "labels": np.arange(2)})
    return stream.getvalue()


def masked(bomb: Bomb) -> bytes:
    """A pickle behind a header that looks like safetensors."""
    return struct.pack("<Q", 2) + b"{}" + pickled(bomb, 2)


def of_every_format(marker: Path) -> dict[str, bytes]:
    """Name of a form -> bytes."""
    every = bombs(marker)
    found = {f"pickle 2, {name}": pickled(bomb, 2) for name, bomb in every.items()}
    one = every["os.system"]
    found |= {f"pickle {protocol}": pickled(one, protocol) for protocol in (0, 3, 4, 5)}
    found |= {f"torch.save, {name}": torch_zip(every[name]) for name in ("os.system", "exec")}
    found |= {
        "old torch.save": torch_legacy(one), "npy": npy(one), "npz": npz(one), "npz of statistics": npz(one, "mu"),
        "masked": masked(one),
    }  # fmt: skip
    return found


def torchscript(marker: Path) -> bytes:
    """A module whose call writes a file, as TorchScript's own functions can."""
    text = list(b"ran")
    source = f"""
def forward(self, x: Tensor) -> Tensor:
    y = torch.from_file("{marker}", True, {len(text)}, dtype=torch.uint8)
    y.copy_(torch.tensor({text}, dtype=torch.uint8))
    torch.save(x, "{marker}.second")
    return x.float().flatten(1)[:, :8] + y.sum().float()
"""
    module = torch.jit.ScriptModule()
    module.define(source)
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the format is deprecated, and strangers use it
        torch.jit.save(module, stream)
    return stream.getvalue()


def script_with_bomb(marker: Path) -> bytes:
    """An archive that looks like TorchScript, whose data.pkl is a bomb."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in ("data.pkl", "constants.pkl"):
            archive.writestr(f"net/{name}", pickled(bombs(marker)["os.system"], 2))
        archive.writestr("net/code/__torch__.py", f"import os\nos.system('touch {marker}')\n")
        archive.writestr("net/version", "3\n")
    return stream.getvalue()


def yaml_tags(marker: Path) -> list[str]:
    return [
        f"seed: !!python/object/apply:os.system ['touch {marker}']\n",
        f"seed: !!python/object/new:os.system ['touch {marker}']\n",
        f"a: !!python/object/apply:subprocess.Popen [['touch', '{marker}']]\n",
        "seed: !!python/name:os.system\n",
        f"!!python/object/apply:builtins.exec [\"open('{marker}', 'w').close()\"]\n",
    ]
