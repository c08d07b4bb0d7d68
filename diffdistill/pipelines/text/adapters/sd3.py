"""`StableDiffusion3Pipeline`: a transformer that predicts the velocity of a flow."""

from typing import Any

from torch import Tensor

from diffdistill.pipelines.text.adapter import AdapterFor, TransformerAdapter
from diffdistill.pipelines.text.kept import Condition


class StableDiffusion3(TransformerAdapter):
    def text(self, prompt: str) -> Condition:
        embeds, _, pooled, _ = self.pipeline.encode_prompt(
            prompt, None, None, device=self.device, do_classifier_free_guidance=False
        )
        return {"encoder_hidden_states": embeds, "pooled_projections": pooled}

    def predict(self, network: Any, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        return network(hidden_states=x_t, timestep=t, **cond, return_dict=False)[0]


ADAPTER = AdapterFor("StableDiffusion3Pipeline", StableDiffusion3)
