"""What pipelines with a transformer share: latents cut into patches, features that are tokens."""

from typing import Any

from torch import Tensor

from diffdistill.pipelines.text.adapter import Adapter


class TransformerAdapter(Adapter):
    part = "transformer"

    @property
    def patch(self) -> int:
        """Side in latents of what one token stands for."""
        return self.network.config.patch_size

    @property
    def size_multiple(self) -> int:
        return self.pipeline.vae_scale_factor * self.patch

    def feature(self, output: Any) -> Tensor:
        """The tokens of the image, `(B, h w, C)`, as a map `(B, C, h, w)`; blocks may return the text's too."""
        _, height, width = self.latent_shape
        height, width = height // self.patch, width // self.patch
        outputs = output if isinstance(output, tuple) else (output,)
        # The image's come last; a text may happen to be as long.
        tokens = next(value for value in reversed(outputs) if value.shape[1] == height * width)
        return tokens.transpose(1, 2).unflatten(2, (height, width))
