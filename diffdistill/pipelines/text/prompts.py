"""Prompts as numbers: the condition of a text-to-image model is a row of a table of texts."""

from collections.abc import Sequence

import torch
from torch import Tensor

from diffdistill.pipelines.text.adapter import Adapter
from diffdistill.pipelines.text.kept import Condition


class PromptTable:
    """Texts by number, so that every method can pass a condition `(B,)` about as it does class labels.

    Row 0 is the null prompt: what guidance sets a prompt against where no negative prompt is given. A text keeps its
    number; it is encoded when used, alone, and kept while there is room (`Adapter.encoded`).
    """

    null = 0

    def __init__(self, adapter: Adapter):
        self.adapter = adapter
        self._texts: list[str | None] = [None]
        self._rows: dict[str, int] = {}

    def __deepcopy__(self, _memo: object) -> "PromptTable":
        return self

    def __len__(self) -> int:
        return len(self._texts)

    def ids(self, texts: Sequence[str]) -> Tensor:
        """Their numbers, int64 `(B,)`; texts that are new are added."""
        for text in texts:
            if text not in self._rows:
                self._rows[text] = len(self._texts)
                self._texts.append(text)
        return torch.tensor([self._rows[text] for text in texts], dtype=torch.int64)

    def texts(self, ids: Tensor) -> list[str]:
        """The texts of numbers `(B,)`; of the null prompt, the empty one."""
        return [self._texts[row] or "" for row in ids.tolist()]

    def arguments(self, ids: Tensor, dtype: torch.dtype | None = None) -> Condition:
        """What the network is called with for prompts `(B,)`, a row an image, on the adapter's device."""
        return self.adapter.joined([self._texts[row] for row in ids.tolist()], dtype=dtype)
