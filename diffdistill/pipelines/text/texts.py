"""Prompts to keyword arguments of the network: the text encoders of a pipeline."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from diffdistill.pipelines.text.kept import Away, Condition, Kept, Prompt
from diffdistill.pipelines.text.latents import Parts, Pixels
from diffdistill.pipelines.text.shelf import Shelf


class Size(NamedTuple):
    """The size conditions of SDXL and similar networks (2307.01952, section 2.2): pixels, height before width."""

    original: tuple[int, int]
    crop: tuple[int, int]
    target: tuple[int, int]


class Cutting(Pixels, Protocol):
    """An image that was cut out of a file, with the file's height and width and the cut's top and left."""

    @property
    def original(self) -> tuple[int, int]: ...
    @property
    def crop(self) -> tuple[int, int]: ...


class Texts(Parts):
    """What the network is called with for a prompt; encoded alone and kept while there is room."""

    image_size: int
    """Side in pixels of the images; that of the network's training unless it is set."""

    def __init__(self, pipeline: Any):
        super().__init__(pipeline)
        self.kept = Kept()
        self.shelf: Shelf | None = None

    def text(self, prompt: str) -> Condition:
        """The encoded prompt, each tensor with one row."""
        embeds, _ = self.pipeline.encode_prompt(prompt, self.device, 1, False)
        return {"encoder_hidden_states": embeds}

    def null(self) -> Condition:
        """The same of what the stock pipeline guides away from where it is given no negative prompt."""
        return self.text("")

    def away(self, negative: str) -> Condition:
        """The same of a negative prompt."""
        return self.text(negative)

    def arguments(self, rows: Condition, sizes: Sequence[Size]) -> Condition:
        """Keyword arguments of the network, from encoded texts and the sizes of the images, a row an image."""
        return rows

    def encoded(self, prompt: Prompt) -> Condition:
        """The encoded prompt, on the CPU; None is the null prompt of guidance.

        One prompt at a time, so that it does not depend on the batch it is in. The last used ones are `kept`; where
        there is a shelf, those that another run encoded are read from there.
        """

        def make() -> Condition:
            # A grid may ask first, in inference mode, whose tensors no later gradient may meet.
            with torch.inference_mode(False), torch.no_grad():
                if self.shelf is None:
                    return self._encode(prompt)
                what = self._what(prompt)
                value = self.shelf.get(what)
                if value is None:
                    value = self._encode(prompt)
                    self.shelf.put(what, value)
                return value

        return self.kept.get(prompt, make)

    def _encode(self, prompt: Prompt) -> Condition:
        if isinstance(prompt, Away):
            return rows_of(self.away(prompt.text), lambda rows: rows.cpu())
        return rows_of(self.null() if prompt is None else self.text(prompt), lambda rows: rows.cpu())

    def _what(self, prompt: Prompt) -> list[Any]:
        """All that the encoding of a prompt depends on, beside the files of the model."""
        parts = {
            name: str(next(part.parameters()).dtype)
            for name, part in self.pipeline.components.items()
            if isinstance(part, nn.Module) and name.startswith("text_encoder")
        }
        text = [type(prompt).__name__, prompt.text if isinstance(prompt, Away) else prompt]
        return [type(self).__name__, text, parts, self.device.type, self.image_size]

    def joined(
        self, prompts: Sequence[Prompt], sizes: Sequence[Size] | None = None, dtype: torch.dtype | None = None
    ) -> Condition:
        """`arguments` of some prompts, on the adapter's device.

        sizes: None is `image_size`, not cropped; dtype: of the texts, None leaves them as they were encoded.
        """
        texts = [self.encoded(prompt) for prompt in prompts]
        rows = {name: torch.cat([text[name] for text in texts]).to(self.device) for name in texts[0]}
        rows = {name: value.to(dtype) if value.is_floating_point() else value for name, value in rows.items()}
        if sizes is None:
            whole = self.image_size, self.image_size
            sizes = [Size(whole, (0, 0), whole)] * len(prompts)
        return self.arguments(rows, sizes)

    def conditions(self, prompts: Sequence[str], pictures: Sequence[Cutting]) -> Condition:
        """`arguments` of prompts and of the files that their images were cut from."""
        sizes = [Size(one.original, one.crop, (one.pixels.shape[-2], one.pixels.shape[-1])) for one in pictures]
        return self.joined(prompts, sizes)


def rows_of(cond: Condition, pick: Callable[[Tensor], Tensor]) -> Condition:
    """`pick` applied to every tensor of the conditions."""
    return {name: rows_of(value, pick) if isinstance(value, dict) else pick(value) for name, value in cond.items()}
