"""The arguments of one call of a network, by their paths, and the rows that each image has in them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

Path = tuple[str, ...]
Leaves = dict[Path, Any]


def leaves(arguments: dict[str, Any], at: Path = ()) -> Leaves:
    """Arguments of a call, those within dicts by their own paths.

    >>> leaves({"t": 1, "added": {"size": 2}})
    {('t',): 1, ('added', 'size'): 2}
    """
    found: Leaves = {}
    for name, value in arguments.items():
        found |= leaves(value, (*at, name)) if isinstance(value, dict) and value else {(*at, name): value}
    return found


def name_of(path: Path) -> str:
    """`added_cond_kwargs.text_embeds`"""
    return ".".join(path)


def nested(found: Leaves) -> dict[str, Any]:
    """The inverse of `leaves`."""
    arguments: dict[str, Any] = {}
    for path, value in found.items():
        here = arguments
        for name in path[:-1]:
            here = here.setdefault(name, {})
        here[path[-1]] = value
    return arguments


def count(value: Any) -> int | None:
    """Of how many rows a value is; None for one that has none."""
    if isinstance(value, Tensor):
        return value.shape[0] if value.dim() else None
    return len(value) if isinstance(value, list) else None


def row(value: Any, number: int) -> Any:
    """A tensor keeps its first axis, a list gives the entry."""
    return value[number : number + 1] if isinstance(value, Tensor) else value[number]


def together(rows: Sequence[Any], listed: bool) -> Any:
    """Rows as a call has them: in a list, or in a tensor, those that are shorter filled with zeros."""
    if listed:
        return list(rows)
    longest = max(one.shape[1] if one.dim() > 1 else 0 for one in rows)
    return torch.cat([one if one.dim() < 2 or one.shape[1] == longest else filled(one, longest) for one in rows])


def filled(one: Tensor, length: int) -> Tensor:
    """Zeros along axis 1, up to a length."""
    return pad(one, (0, 0) * (one.dim() - 2) + (0, length - one.shape[1]))


def same(one: Any, other: Any) -> bool:
    """Equal in every number, and in shape."""
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        alike = isinstance(one, Tensor) and isinstance(other, Tensor) and one.shape == other.shape
        return alike and bool(torch.equal(one, other.to(one)))
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)
