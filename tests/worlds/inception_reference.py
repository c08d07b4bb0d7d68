"""Inception v3 as its files name it, written once more: plain calls in float64, normalisation not folded.

`tests/crosscheck` compares it with torch-fidelity's and pytorch-fid's network; here it stands in for them.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

State = dict[str, Tensor]


class Layers:
    """Convolution, normalisation, ReLU by the names in `state`; a name that is not there is made up and kept."""

    def __init__(self, state: State, seed: int = 0) -> None:
        self.state, self.rng = state, np.random.default_rng(seed)

    def _make(self, name: str, shape: tuple[int, ...]) -> None:
        out, fan = shape[0], int(np.prod(shape[1:]))

        def numbers(low: float, high: float) -> Tensor:
            return torch.from_numpy(self.rng.uniform(low, high, out).astype(np.float32))

        # ReLU halves the energy; a root of six over the number of inputs keeps it.
        weight = self.rng.uniform(-((6 / fan) ** 0.5), (6 / fan) ** 0.5, shape).astype(np.float32)
        self.state[f"{name}.conv.weight"] = torch.from_numpy(weight)
        self.state[f"{name}.bn.weight"], self.state[f"{name}.bn.bias"] = numbers(0.8, 1.2), numbers(-0.2, 0.2)
        self.state[f"{name}.bn.running_mean"] = numbers(-0.2, 0.2)
        self.state[f"{name}.bn.running_var"] = numbers(0.5, 1.5)
        self.state[f"{name}.bn.num_batches_tracked"] = torch.tensor(0)

    def __call__(self, x: Tensor, name: str, out: int, kernel: tuple[int, int], **options: Any) -> Tensor:
        if f"{name}.conv.weight" not in self.state:
            self._make(name, (out, x.shape[1], *kernel))
        w = {key: value.double() for key, value in self.state.items() if key.startswith(f"{name}.")}
        y = F.conv2d(x, w[f"{name}.conv.weight"], **options)
        parts = (w[f"{name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.relu(F.batch_norm(y, *parts, eps=1e-3))


def mean_pool(x: Tensor) -> Tensor:
    """3x3 means, where only pixels of the image count."""
    ones = torch.ones_like(x[:1, :1])
    kernel = torch.ones(1, 1, 3, 3, dtype=x.dtype)
    total = F.conv2d(x.flatten(0, 1)[:, None], kernel, padding=1).unflatten(0, x.shape[:2])[:, :, 0]
    return total / F.conv2d(ones, kernel, padding=1)


def features(x: Tensor, state: State, *, largest: bool) -> Tensor:
    """Float64 pixels as the network takes them, `(N, 3, H, W)`, -> `(N, 2048)`; see `Layers` for an empty state."""
    conv = Layers(state)
    x = conv(x, "Conv2d_1a_3x3", 32, (3, 3), stride=2)
    x = conv(x, "Conv2d_2a_3x3", 32, (3, 3))
    x = F.max_pool2d(conv(x, "Conv2d_2b_3x3", 64, (3, 3), padding=1), 3, 2)
    x = conv(x, "Conv2d_3b_1x1", 80, (1, 1))
    x = F.max_pool2d(conv(x, "Conv2d_4a_3x3", 192, (3, 3)), 3, 2)
    for letter, pooled in (("b", 32), ("c", 64), ("d", 64)):
        p = f"Mixed_5{letter}.branch"
        five = conv(conv(x, f"{p}5x5_1", 48, (1, 1)), f"{p}5x5_2", 64, (5, 5), padding=2)
        three = conv(conv(x, f"{p}3x3dbl_1", 64, (1, 1)), f"{p}3x3dbl_2", 96, (3, 3), padding=1)
        three = conv(three, f"{p}3x3dbl_3", 96, (3, 3), padding=1)
        pool = conv(mean_pool(x), f"{p}_pool", pooled, (1, 1))
        x = torch.cat([conv(x, f"{p}1x1", 64, (1, 1)), five, three, pool], 1)
    p = "Mixed_6a.branch"
    three = conv(conv(x, f"{p}3x3dbl_1", 64, (1, 1)), f"{p}3x3dbl_2", 96, (3, 3), padding=1)
    three = conv(three, f"{p}3x3dbl_3", 96, (3, 3), stride=2)
    x = torch.cat([conv(x, f"{p}3x3", 384, (3, 3), stride=2), three, F.max_pool2d(x, 3, 2)], 1)
    for letter, n in (("b", 128), ("c", 160), ("d", 160), ("e", 192)):
        x = _seven(conv, x, f"Mixed_6{letter}.branch", n)
    p = "Mixed_7a.branch"
    seven = conv(conv(x, f"{p}7x7x3_1", 192, (1, 1)), f"{p}7x7x3_2", 192, (1, 7), padding=(0, 3))
    seven = conv(seven, f"{p}7x7x3_3", 192, (7, 1), padding=(3, 0))
    seven = conv(seven, f"{p}7x7x3_4", 192, (3, 3), stride=2)
    three = conv(conv(x, f"{p}3x3_1", 192, (1, 1)), f"{p}3x3_2", 320, (3, 3), stride=2)
    x = torch.cat([three, seven, F.max_pool2d(x, 3, 2)], 1)
    x = _wide(conv, x, "Mixed_7b.branch", mean_pool(x))
    x = _wide(conv, x, "Mixed_7c.branch", F.max_pool2d(x, 3, 1, 1) if largest else mean_pool(x))
    return x.flatten(2).mean(2)


def _seven(conv: Layers, x: Tensor, p: str, n: int) -> Tensor:
    one = conv(conv(x, f"{p}7x7_1", n, (1, 1)), f"{p}7x7_2", n, (1, 7), padding=(0, 3))
    one = conv(one, f"{p}7x7_3", 192, (7, 1), padding=(3, 0))
    two = conv(conv(x, f"{p}7x7dbl_1", n, (1, 1)), f"{p}7x7dbl_2", n, (7, 1), padding=(3, 0))
    two = conv(conv(two, f"{p}7x7dbl_3", n, (1, 7), padding=(0, 3)), f"{p}7x7dbl_4", n, (7, 1), padding=(3, 0))
    two = conv(two, f"{p}7x7dbl_5", 192, (1, 7), padding=(0, 3))
    pool = conv(mean_pool(x), f"{p}_pool", 192, (1, 1))
    return torch.cat([conv(x, f"{p}1x1", 192, (1, 1)), one, two, pool], 1)


def _wide(conv: Layers, x: Tensor, p: str, pool: Tensor) -> Tensor:
    three = conv(x, f"{p}3x3_1", 384, (1, 1))
    double = conv(conv(x, f"{p}3x3dbl_1", 448, (1, 1)), f"{p}3x3dbl_2", 384, (3, 3), padding=1)
    parts = [conv(x, f"{p}1x1", 320, (1, 1))]
    for y, name in ((three, f"{p}3x3_2"), (double, f"{p}3x3dbl_3")):
        parts += [conv(y, f"{name}a", 384, (1, 3), padding=(0, 1)), conv(y, f"{name}b", 384, (3, 1), padding=(1, 0))]
    return torch.cat([*parts, conv(pool, f"{p}_pool", 192, (1, 1))], 1)


def made_up_state(classes: int = 1008) -> State:
    """Weights of every layer, the same each time."""
    state: State = {}
    features(torch.zeros(1, 3, 75, 75, dtype=torch.float64), state, largest=True)
    rng = np.random.default_rng(1)
    state["fc.weight"] = torch.from_numpy(rng.uniform(-0.05, 0.05, (classes, 2048)).astype(np.float32))
    state["fc.bias"] = torch.from_numpy(rng.uniform(-1, 1, classes).astype(np.float32))
    return state


def convolutions() -> list[str]:
    """The names of the 94 convolutions: `Mixed_5b.branch5x5_1`."""
    return [name.removesuffix(".conv.weight") for name in made_up_state() if name.endswith(".conv.weight")]
