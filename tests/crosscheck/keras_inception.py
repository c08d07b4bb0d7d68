"""npm's nsfwjs as a file of features: the Inception v3 of its Keras model under PyTorch's names."""

from pathlib import Path

import torch
from downloads import npm_package
from keras_graph import KerasModel, read_model
from safetensors.torch import save_file
from torch import Tensor

PACKAGE, VERSION = "nsfwjs", "4.4.0"
NORMALISATION = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}


def packaged_model(folder: Path) -> KerasModel:
    """The model that the package brings, fetched into `folder`."""
    return read_model(npm_package(PACKAGE, VERSION, folder) / "dist" / "models" / "inception_v3")


def save_features(model: KerasModel, names: list[str], file: Path) -> Path:
    """What a user gives as `--features FILE`; names: of the 94 convolutions, `Mixed_5b.branch5x5_1`, in any order.

    Keras numbers convolutions as it makes them: in the order of the alphabet, but for the 5x5 branch, which comes
    before the 3x3 ones. It has no gain in the normalisation.
    """
    state: dict[str, Tensor] = {}
    for number, name in enumerate(sorted(names, key=lambda name: name.replace("branch5x5", "branch2")), 1):
        kernel = model.weights[f"conv2d_{number}/kernel"].permute(3, 2, 0, 1)
        state[f"{name}.conv.weight"] = kernel.float().contiguous()
        for part, theirs in NORMALISATION.items():
            value = model.weights.get(f"batch_normalization_{number}/{theirs}", torch.ones(len(kernel)))
            state[f"{name}.bn.{part}"] = value.float()
    save_file(state, file, {"graph": "keras", "pixels": "0..1"})
    return file
