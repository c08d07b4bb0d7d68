"""Prompts as numbers: the condition of a text-to-image model is a row of a table of texts."""

from collections.abc import Sequence

import torch
from torch import Tensor

from diffdistill.pipelines.text.adapter import Adapter
from diffdistill.pipelines.text.kept import Away, Condition, Prompt


class PromptTable:
    """Texts by number, so that every method can pass a condition `(B,)` about as it does class labels.

    Row 0 is the null prompt: what guidance sets a prompt against where no negative prompt is given. A text keeps its
    number; it is encoded when used, alone, and kept while there is room (`Adapter.encoded`).
    """

    null = 0

    def __init__(self, adapter: Adapter):
        self.adapter = adapter
        self._texts: list[Prompt] = [None]
        self._rows: dict[Prompt, int] = {}

    def __deepcopy__(self, _memo: object) -> "PromptTable":
        return self

    def __len__(self) -> int:
        return len(self._texts)

    def ids(self, texts: Sequence[str], *, negative: bool = False) -> Tensor:
        """Their numbers, int64 `(B,)`; texts that are new are added. negative: as what guidance leads away from."""
        entries: list[Prompt] = [Away(text) if negative else text for text in texts]
        for text in entries:
            if text not in self._rows:
                self._rows[text] = len(self._texts)
                self._texts.append(text)
        return torch.tensor([self._rows[text] for text in entries], dtype=torch.int64)

    def texts(self, ids: Tensor) -> list[str]:
        """The texts of numbers `(B,)`; of the null prompt, the empty one."""
        entries = [self._texts[row] for row in ids.tolist()]
        return [entry.text if isinstance(entry, Away) else entry or "" for entry in entries]

    def arguments(self, ids: Tensor, dtype: torch.dtype | None = None) -> Condition:
        """What the network is called with for prompts `(B,)`, a row an image, on the adapter's device."""
        return self.adapter.joined([self._texts[row] for row in ids.tolist()], dtype=dtype)
