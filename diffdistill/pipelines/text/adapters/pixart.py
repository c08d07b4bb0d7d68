"""`PixArtAlphaPipeline` and `PixArtSigmaPipeline`: T5 texts with a mask, a network that learned its variance too."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diffdistill.machine import send
from diffdistill.pipelines.text.adapter import AdapterFor, TransformerAdapter
from diffdistill.pipelines.text.kept import Condition
from diffdistill.pipelines.text.texts import Size


class PixArt(TransformerAdapter):
    def text(self, prompt: str) -> Condition:
        embeds, mask, _, _ = self.pipeline.encode_prompt(prompt, False, device=self.device, clean_caption=True)
        return {"encoder_hidden_states": embeds, "encoder_attention_mask": mask}

    def arguments(self, rows: Condition, sizes: Sequence[Size]) -> Condition:
        """Beside the text, height and width and their ratio, for networks made for 1024 pixels (2310.00426)."""
        added: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
        if self.network.use_additional_conditions:
            resolution = send(torch.tensor([size.target for size in sizes], dtype=torch.float32), self.device)
            added = {"resolution": resolution, "aspect_ratio": resolution[:, :1] / resolution[:, 1:]}
        return {**rows, "added_cond_kwargs": added}

    def predict(self, network: Any, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        return network(x_t, timestep=t, **cond, return_dict=False)[0]


ADAPTER = (AdapterFor("PixArtAlphaPipeline", PixArt), AdapterFor("PixArtSigmaPipeline", PixArt))
