"""The parts of a run, modules and optimisers, as tensors under flat names, and back."""

import torch
from torch import Tensor, nn

from diffdistill import processes
from diffdistill.sharding import is_sharded, local

Part = nn.Module | torch.optim.Optimizer
Parts = dict[str, Part]


def tensors_of(part: Part) -> dict[str, Tensor]:
    """All tensors of a module or an optimiser under flat names."""
    if isinstance(part, nn.Module):
        return {name: value.detach().contiguous() for name, value in part.state_dict().items()}
    state = part.state_dict()["state"]
    return {f"{index}.{key}": torch.as_tensor(value) for index, slots in state.items() for key, value in slots.items()}


def checksum(parts: Parts) -> int:
    """A number that differs, but for chance, where any tensor does; the same on every machine, however it is sharded.

    All processes must ask for it at once.
    """
    tensors = [value for part in parts.values() for value in tensors_of(part).values()]
    sums = {True: torch.zeros((), dtype=torch.int64), False: torch.zeros((), dtype=torch.int64)}
    for value in tensors:
        held = local(value).contiguous().reshape(-1).view(torch.uint8)
        sums[is_sharded(value)] += held.sum(dtype=torch.int64).cpu()
    pieces = processes.total(sums[True]) if any(map(is_sharded, tensors)) else sums[True]
    return int(pieces + sums[False])


def fused_in(parts: Parts) -> list[str]:
    """Names of the optimisers that step in one fused pass: it rounds otherwise than torch's other ways."""
    optimisers = {name: part for name, part in parts.items() if isinstance(part, torch.optim.Optimizer)}
    return sorted(name for name, part in optimisers.items() if any(group.get("fused") for group in part.param_groups))


def restore(part: Part, tensors: dict[str, Tensor]) -> None:
    """Inverse of `tensors_of`, in place."""
    if isinstance(part, nn.Module):
        part.load_state_dict(tensors)
        return
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    part.load_state_dict({"state": state, "param_groups": part.state_dict()["param_groups"]})
