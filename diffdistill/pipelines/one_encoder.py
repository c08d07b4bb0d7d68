"""Students whose one draw is made by K decoders over one encoder pass (TiUE, 2505.21960), of pixels and of texts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffdistill.denoiser import Condition, Denoiser
from diffdistill.errors import ConfigError
from diffdistill.last_layer import float32_output
from diffdistill.parts.one_encoder.decoders import check_cut, parallel_decoders
from diffdistill.parts.one_encoder.publish import pipeline_files
from diffdistill.pipelines.pixel.save import save_pixels
from diffdistill.pipelines.pixel.schedule import pixel_schedule
from diffdistill.pipelines.record import DECODERS
from diffdistill.pipelines.text.denoiser import TextDenoiser
from diffdistill.pipelines.text.save import save_text
from diffdistill.pipelines.text.schedule import ddim_schedule
from diffdistill.process import per_sample

PIPELINE = "StableDiffusionPipeline"


class OneEncoder(Denoiser):
    """A student of one step whose x0 is made of the K outputs of one pass:

        h, skips = encoder(x_1, t_1),    F_k = decoder(h, skips, t_k),    x0_k = D of F_k and x_k at sigma_k,
        eps_k = (x_k - x0_k) / sigma_k,    x_{k+1} = x0_k + sigma_{k+1} eps_k,    sigma_{K+1} = 0

    DDIM (2010.02502) in the coordinates x = x0 + sigma eps. All else takes it for a generator of a single step, and
    gradients go through all K. `metadata["decoders"]` has the levels sigma_1 > ... > sigma_K, the first of them its
    own. `one_encoder` makes one.
    """

    @property
    def decoders(self) -> tuple[float, ...]:
        return tuple(self.metadata[DECODERS])

    def forward(self, x_t: Tensor, sigma: Tensor, cond: Condition = None) -> Tensor:
        return self.decoded(x_t, sigma, cond)[0]

    def decoded(self, x_t: Tensor, sigma: Tensor, cond: Condition = None) -> tuple[Tensor, Tensor]:
        """x0 `(B, C, H, W)`, and every decoder's predicted noise `(K, B, C, H, W)`; sigma: that of the encoder."""
        x, first = x_t.float(), sigma.float()
        levels = [first, *(torch.full_like(first, level) for level in self.decoders[1:])]
        x_in, time = self.process.to_network(x, first)
        times = [time, *(self.process.to_network(x, level)[1] for level in levels[1:])]
        with parallel_decoders(self.network, times), float32_output(self.layers):
            outputs = self._call(x_in, time, cond).float().chunk(len(times))
        noises: list[Tensor] = []
        for output, level, following in zip(outputs, levels, [*levels[1:], torch.zeros_like(first)], strict=True):
            x0 = self.process.to_x0(output, x, level)
            noises.append((x - x0) / per_sample(level, x))
            x = x0 + per_sample(following, x) * noises[-1]
        return x, torch.stack(noises)


class OneEncoderPixels(OneEncoder):
    def save_pretrained(
        self, folder: str | Path, *, role: str, levels: Sequence[float] = (), **provenance: Any
    ) -> None:
        """The folder of a student, with the scheduler of its decoders' levels and the pipeline that samples it."""
        save_pixels(
            self, Path(folder), role=role, levels=levels or self.levels,
            schedule=pixel_schedule(self.process, self.decoders), beside=pipeline_files(of_texts=False),
            **{DECODERS: list(self.decoders)} | provenance,
        )  # fmt: skip


class OneEncoderTexts(OneEncoder, TextDenoiser):
    def save_pretrained(
        self, folder: str | Path, *, role: str, levels: Sequence[float] = (), **provenance: Any
    ) -> None:
        """The teacher's pipeline with this network and a DDIM scheduler, and the pipeline that samples it."""
        save_text(
            self, self.adapter, Path(folder), role=role, levels=levels or self.levels,
            schedule=ddim_schedule(self.adapter, self.process, self.decoders), beside=pipeline_files(of_texts=True),
            **{DECODERS: list(self.decoders)} | provenance,
        )  # fmt: skip


def one_encoder(model: Denoiser, levels: Sequence[float]) -> OneEncoder:
    """A student of one step with this model's network, and decoders at these levels, which fall from its own.

    ConfigError for a network that is not cut in two (`decoders.check_cut`), for a text-to-image pipeline other than
    Stable Diffusion's, and for a number of decoders whose times its DDIM does not visit.

    >>> from diffdistill import load_model
    >>> student = one_encoder(load_model("builtin:fashion_mnist_teacher"), [2.5, 1.4, 0.6, 0.2])
    >>> x0, noises = student.decoded(2.5 * torch.randn(2, 1, 28, 28), torch.full((2,), 2.5), torch.tensor([0, 9]))
    >>> x0.shape, noises.shape
    (torch.Size([2, 1, 28, 28]), torch.Size([4, 2, 1, 28, 28]))
    """
    try:
        check_cut(model.network)
    except ValueError as error:
        raise ConfigError(f"one encoder pass wants a network that is cut in two: {error}") from error
    about = model.metadata | {DECODERS: list(levels)}
    if not isinstance(model, TextDenoiser):
        made: OneEncoder = OneEncoderPixels(model.network, model.process, null_class=model.null_class, metadata=about)
        return made.train(model.training)
    kind = type(model.adapter.pipeline).__name__
    if kind != PIPELINE:
        raise ConfigError(
            f"one encoder pass has a pipeline for the {PIPELINE} alone among those that draw texts, and this is a "
            f"{kind}; give one of these"
        )
    ddim_schedule(model.adapter, model.process, levels)
    made = OneEncoderTexts(model.adapter, model.process, network=model.network, prompts=model.prompts, metadata=about)
    return made.train(model.training)
