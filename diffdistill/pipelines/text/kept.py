"""Encoded prompts that stay in memory: the last used ones, as many as fit in a number of bytes."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Condition = dict[str, Any]


@dataclass(frozen=True)
class Away:
    """A text that guidance leads away from: some pipelines encode it otherwise than a prompt."""

    text: str


# None: what guidance leads away from where no negative prompt is given.
Prompt = str | Away | None

KEPT_GB = 4.0  # 13,000 prompts of SDXL in bfloat16, of 0.3 MB each; 950 of Flux, of 4.2 MB


THERE_GB = 1.0  # of them on the device


class Kept:
    """A least-recently-used cache of values by prompt, or prompt and precision, of `limit` bytes at most.

    A value that was dropped is computed again when it is needed; one that is larger than `limit` is not kept.
    """

    def __init__(self, limit: float = KEPT_GB * 1e9):
        self.limit = limit
        self.size = 0
        self._values: OrderedDict[Hashable, tuple[Condition, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, prompt: Hashable) -> bool:
        return prompt in self._values

    def get(self, prompt: Hashable, make: Callable[[], Condition]) -> Condition:
        """The value of `prompt`, from memory or made."""
        if prompt in self._values:
            self._values.move_to_end(prompt)
            return self._values[prompt][0]
        value = make()
        size = size_of(value)
        while self._values and self.size + size > self.limit:
            self.size -= self._values.popitem(last=False)[1][1]
        if size <= self.limit:
            self._values[prompt] = value, size
            self.size += size
        return value


def size_of(value: Condition) -> int:
    """Bytes of memory that the tensors of a value keep: of a view, those of all it is a view of."""
    storages = (tensor.untyped_storage() for tensor in tensors_of(value))
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def tensors_of(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for entry in value.values():
            yield from tensors_of(entry)
