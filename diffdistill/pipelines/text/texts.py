"""Prompts to keyword arguments of the network: the text encoders of a pipeline."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from diffdistill import processes
from diffdistill.machine import send
from diffdistill.pipelines.text.kept import THERE_GB, Away, Condition, Kept, Prompt
from diffdistill.pipelines.text.latents import Parts, Pixels
from diffdistill.pipelines.text.shelf import Shelf
from diffdistill.sharding import how


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


# Calls without a text that is new, after which the encoders of texts may leave the device.
QUIET = 50


class Texts(Parts):
    """What the network is called with for a prompt; encoded alone and kept while there is room."""

    # Height and width in pixels of the images; those of the network's training unless they are set.
    sides: tuple[int, int]

    def __init__(self, pipeline: Any):
        super().__init__(pipeline)
        self.kept = Kept()
        self.there = Kept(THERE_GB * 1e9)  # the same on the device, where that is not the CPU
        self._quiet = 0
        self.shelf: Shelf | None = None

    @property
    def image_size(self) -> int:
        """Side of the images that are trained on, which are square: set, it is both sides."""
        return self.sides[0]

    @image_size.setter
    def image_size(self, size: int) -> None:
        self.sides = size, size

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
        return self.kept.get(prompt, lambda: self._shelved(prompt))

    def _shelved(self, prompt: Prompt) -> Condition:
        if self.shelf is None or self._sharded():  # or one would encode what others read
            return self._made(prompt)
        what = self._what(prompt)
        value = self.shelf.get(what)
        if value is None:
            value = self._made(prompt)
            self.shelf.put(what, value)
        return value

    def _sharded(self) -> bool:
        return processes.size() > 1 and any(how(part) is not None for part in self.encoders.values())

    def _made(self, prompt: Prompt) -> Condition:
        self._quiet = 0
        self.wake()  # all: pipelines ask the first of their parts where to compute
        # A grid may ask first, in inference mode, whose tensors no later gradient may meet.
        with torch.inference_mode(False), torch.no_grad():
            if isinstance(prompt, Away):
                return rows_of(self.away(prompt.text), lambda rows: rows.cpu())
            return rows_of(self.null() if prompt is None else self.text(prompt), lambda rows: rows.cpu())

    def encoded_together(self, prompts: Sequence[Prompt]) -> list[Condition]:
        """`encoded` of each; where the encoders are sharded each process needs all for each prompt that it has not.

        So what any of them lacks is encoded by all, in one order.
        """
        if not self._sharded():
            return [self.encoded(prompt) for prompt in prompts]
        own = {_word(prompt): prompt for prompt in prompts}
        have = {word: self.encoded(prompt) for word, prompt in own.items() if prompt in self.kept}
        lacking = [word for word in own if word not in have]
        wanted = [word for source in range(processes.size()) for word in processes.share(lacking, source)]
        for word in dict.fromkeys(wanted):
            if word in lacking:
                have[word] = self.encoded(own[word])
            else:
                self._made(_prompt(word))  # for the sake of its weights here
        return [have[_word(prompt)] for prompt in prompts]

    def _what(self, prompt: Prompt) -> list[Any]:
        """All that the encoding of a prompt depends on, beside the files of the model."""
        parts = {
            name: str(next(part.parameters()).dtype)
            for name, part in self.pipeline.components.items()
            if isinstance(part, nn.Module) and name.startswith("text_encoder")
        }
        text = [type(prompt).__name__, prompt.text if isinstance(prompt, Away) else prompt]
        return [type(self).__name__, text, parts, self.device.type, list(self.sides)]

    def joined(
        self, prompts: Sequence[Prompt], sizes: Sequence[Size] | None = None, dtype: torch.dtype | None = None
    ) -> Condition:
        """`arguments` of some prompts, on the adapter's device.

        sizes: None is `sides`, not cropped; dtype: of the texts, None leaves them as they were encoded.
        """
        texts = self.on_device(prompts, dtype)
        rows = {name: torch.cat([text[name] for text in texts]) for name in texts[0]}
        if sizes is None:
            sizes = [Size(self.sides, (0, 0), self.sides)] * len(prompts)
        return self.arguments(rows, sizes)

    def on_device(self, prompts: Sequence[Prompt], dtype: torch.dtype | None) -> list[Condition]:
        """The encoded prompts on the adapter's device, in a precision: those used last are there already."""
        self._quiet += 1
        if self.device.type == "cpu" or self._sharded():
            texts = [self._sent(text, dtype) for text in self.encoded_together(prompts)]
        else:
            texts = [self.there.get((prompt, dtype), partial(self._fetched, prompt, dtype)) for prompt in prompts]
        if self._quiet == QUIET:
            self.rest("text_encoder")
        return texts

    def _fetched(self, prompt: Prompt, dtype: torch.dtype | None) -> Condition:
        with torch.inference_mode(False), torch.no_grad():  # as in `_made`
            return self._sent(self.encoded(prompt), dtype)

    def _sent(self, text: Condition, dtype: torch.dtype | None) -> Condition:
        return rows_of(text, lambda rows: send(rows, self.device).to(dtype if rows.is_floating_point() else None))

    def conditions(self, prompts: Sequence[str], pictures: Sequence[Cutting]) -> Condition:
        """`arguments` of prompts and of the files that their images were cut from."""
        sizes = [Size(one.original, one.crop, (one.pixels.shape[-2], one.pixels.shape[-1])) for one in pictures]
        return self.joined(prompts, sizes)


def _word(prompt: Prompt) -> str:
    """A prompt as a word that tells kinds apart."""
    return "n" if prompt is None else f"a{prompt.text}" if isinstance(prompt, Away) else f"t{prompt}"


def _prompt(word: str) -> Prompt:
    """The inverse of `_word`."""
    return None if word == "n" else Away(word[1:]) if word[0] == "a" else word[1:]


def rows_of(cond: Condition, pick: Callable[[Tensor], Tensor]) -> Condition:
    """`pick` applied to every tensor of the conditions."""
    return {name: rows_of(value, pick) if isinstance(value, dict) else pick(value) for name, value in cond.items()}
