"""Inception v3 (1512.00567) up to its 2,048 pooled features, normalisation folded into the convolutions.

Average pools count the pixels of the image alone, not the border, as TensorFlow does. The names are those under which
PyTorch's files hold the weights: `Mixed_5b.branch5x5_1`.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CHANNELS = 2048

# A convolution: name, channels out, kernel (height, width). A step: convolutions side by side, their channels joined.
Convolution = tuple[str, int, tuple[int, int]]
Step = tuple[Convolution, ...]
Branch = tuple[Step, ...]


def _chain(name: str, *parts: tuple[str, int, int, int]) -> Branch:
    """Convolutions one after the other, `name` + suffix each."""
    return tuple(((name + suffix, out, (height, width)),) for suffix, out, height, width in parts)


def _fork(name: str, out: int, letter: str) -> Step:
    """A 1x3 and a 3x1 convolution of the same input."""
    return (f"{name}{letter}a", out, (1, 3)), (f"{name}{letter}b", out, (3, 1))


def _block_a() -> list[Branch]:
    return [
        _chain("branch1x1", ("", 64, 1, 1)),
        _chain("branch5x5", ("_1", 48, 1, 1), ("_2", 64, 5, 5)),
        _chain("branch3x3dbl", ("_1", 64, 1, 1), ("_2", 96, 3, 3), ("_3", 96, 3, 3)),
    ]


def _block_b() -> list[Branch]:
    return [
        _chain("branch3x3", ("", 384, 3, 3)),
        _chain("branch3x3dbl", ("_1", 64, 1, 1), ("_2", 96, 3, 3), ("_3", 96, 3, 3)),
    ]


def _block_c(n: int) -> list[Branch]:
    """7x7 convolutions in two factors; `n` channels between them."""
    double = (("_1", n, 1, 1), ("_2", n, 7, 1), ("_3", n, 1, 7), ("_4", n, 7, 1), ("_5", 192, 1, 7))
    return [
        _chain("branch1x1", ("", 192, 1, 1)),
        _chain("branch7x7", ("_1", n, 1, 1), ("_2", n, 1, 7), ("_3", 192, 7, 1)),
        _chain("branch7x7dbl", *double),
    ]


def _block_d() -> list[Branch]:
    return [
        _chain("branch3x3", ("_1", 192, 1, 1), ("_2", 320, 3, 3)),
        _chain("branch7x7x3", ("_1", 192, 1, 1), ("_2", 192, 1, 7), ("_3", 192, 7, 1), ("_4", 192, 3, 3)),
    ]


def _block_e() -> list[Branch]:
    return [
        _chain("branch1x1", ("", 320, 1, 1)),
        (*_chain("branch3x3", ("_1", 384, 1, 1)), _fork("branch3x3", 384, "_2")),
        (*_chain("branch3x3dbl", ("_1", 448, 1, 1), ("_2", 384, 3, 3)), _fork("branch3x3dbl", 384, "_3")),
    ]


class Block(nn.Module):
    """`(N, C, H, W)` -> branches and a pooled branch, joined: side by side in channels.

    pooled: channels of the convolution behind the pool, whose size stays; 0: a maximum of stride 2 without a
    convolution, and the last convolution of each branch has stride 2 and no border. largest: the pool before that
    convolution is a maximum instead of a mean.
    """

    def __init__(self, c_in: int, branches: Sequence[Branch], pooled: int, *, largest: bool = False) -> None:
        super().__init__()
        self.pooled, self.largest = pooled, largest
        self.branches = [[[name for name, *_ in step] for step in branch] for branch in branches]
        self.channels = 0 if pooled else c_in
        if pooled:
            branches = [*branches, ((("branch_pool", pooled, (1, 1)),),)]
        for branch in branches:
            width = c_in
            for step in branch:
                shrink = not pooled and step is branch[-1]
                for name, out, (height, wide) in step:
                    border = (0, 0) if shrink else (height // 2, wide // 2)
                    convolution = nn.Conv2d(width, out, (height, wide), 2 if shrink else 1, border)
                    self.add_module(name, convolution)
                width = sum(out for _, out, _ in step)
            self.channels += width

    def _step(self, x: Tensor, names: Sequence[str]) -> Tensor:
        parts = [F.relu(self.get_submodule(name)(x)) for name in names]
        return torch.cat(parts, 1) if len(parts) > 1 else parts[0]

    def _pool(self, x: Tensor) -> Tensor:
        if not self.pooled:
            return F.max_pool2d(x, 3, 2)
        pool = F.max_pool2d(x, 3, 1, 1) if self.largest else F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        return self._step(pool, ["branch_pool"])

    def forward(self, x: Tensor) -> Tensor:
        parts = []
        for branch in self.branches:
            y = x
            for names in branch:
                y = self._step(y, names)
            parts.append(y)
        return torch.cat([*parts, self._pool(x)], 1)


class InceptionNet(nn.Module):
    """Pixels `(N, 3, H, W)`, 299x299 when trained and 75x75 at least, -> `(N, 2048)`.

    largest: the pool of the last block is a maximum, as in the graph of 2015; a mean in the paper and in Keras.
    """

    def __init__(self, *, largest: bool) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = nn.Conv2d(3, 32, 3, 2)
        self.Conv2d_2a_3x3 = nn.Conv2d(32, 32, 3)
        self.Conv2d_2b_3x3 = nn.Conv2d(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = nn.Conv2d(64, 80, 1)
        self.Conv2d_4a_3x3 = nn.Conv2d(80, 192, 3)
        width, self.blocks = 192, []
        for name, branches, pooled in self._plan():
            block = Block(width, branches, pooled, largest=largest and name == "Mixed_7c")
            self.add_module(name, block)
            self.blocks.append(name)
            width = block.channels

    @staticmethod
    def _plan() -> Iterator[tuple[str, list[Branch], int]]:
        """Name, branches and channels behind the pool of each block."""
        yield from ((f"Mixed_5{x}", _block_a(), n) for x, n in (("b", 32), ("c", 64), ("d", 64)))
        yield "Mixed_6a", _block_b(), 0
        yield from ((f"Mixed_6{x}", _block_c(n), 192) for x, n in (("b", 128), ("c", 160), ("d", 160), ("e", 192)))
        yield "Mixed_7a", _block_d(), 0
        yield from ((f"Mixed_7{x}", _block_e(), 192) for x in "bc")

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.Conv2d_2a_3x3(F.relu(self.Conv2d_1a_3x3(x))))
        x = F.max_pool2d(F.relu(self.Conv2d_2b_3x3(x)), 3, 2)
        x = F.relu(self.Conv2d_4a_3x3(F.relu(self.Conv2d_3b_1x1(x))))
        x = F.max_pool2d(x, 3, 2)
        for name in self.blocks:
            x = self.get_submodule(name)(x)
        return x.mean((2, 3))
