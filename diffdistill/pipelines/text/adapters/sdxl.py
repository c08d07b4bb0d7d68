"""`StableDiffusionXLPipeline`: two text encoders, and for each image its own size and crop."""

from collections.abc import Sequence

import torch

from diffdistill.machine import send
from diffdistill.pipelines.text.adapter import Adapter, AdapterFor
from diffdistill.pipelines.text.kept import Condition
from diffdistill.pipelines.text.texts import Size, rows_of


class StableDiffusionXL(Adapter):
    def text(self, prompt: str) -> Condition:
        embeds, _, pooled, _ = self.pipeline.encode_prompt(
            prompt=prompt, device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return {"encoder_hidden_states": embeds, "text_embeds": pooled}

    def null(self) -> Condition:
        """Zeros, where the pipeline was trained with them (`force_zeros_for_empty_prompt`), else the empty text."""
        empty = self.text("")
        return rows_of(empty, torch.zeros_like) if self.pipeline.config.force_zeros_for_empty_prompt else empty

    def arguments(self, rows: Condition, sizes: Sequence[Size]) -> Condition:
        """Beside the text: `(original height, width, crop top, left, target height, width)` (2307.01952, 2.2).

        In alignment it is of each image, not of the pair: the two files of a pair may differ in size.
        """
        # In float32 whatever the text's precision: bfloat16 would make 1365 pixels 1368.
        ids = [(*size.original, *size.crop, *size.target) for size in sizes]
        time_ids = send(torch.tensor(ids, dtype=torch.float32), self.device)
        return {
            "encoder_hidden_states": rows["encoder_hidden_states"],
            "added_cond_kwargs": {"text_embeds": rows["text_embeds"], "time_ids": time_ids},
        }


ADAPTER = AdapterFor("StableDiffusionXLPipeline", StableDiffusionXL)
