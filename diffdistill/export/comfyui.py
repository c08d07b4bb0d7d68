"""The denoiser alone, as ComfyUI's `Load Diffusion Model` reads it from models/diffusion_models.

The names are those of the first release under `model.diffusion_model.`, which diffusers' `from_single_file` reads too;
a few transformers ComfyUI reads by the names of diffusers.
"""

from diffdistill.errors import ConfigError
from diffdistill.export import transformer, unet
from diffdistill.export.single_file import Convert, checked
from diffdistill.export.source import Source, State, cast, denoiser_weights

CONVERTERS: dict[str, tuple[Convert, Convert]] = {
    "UNet2DConditionModel": (unet.to_original, unet.read_back),
    "SD3Transformer2DModel": (lambda state, _: transformer.to_original(state, transformer.SD3), transformer.read_sd3),
    "FluxTransformer2DModel": (
        lambda state, _: transformer.to_original(state, transformer.FLUX),
        transformer.read_flux,
    ),
}
"""By the class of the denoiser: to the first release's layout, and diffusers' way back."""


def denoiser(source: Source, dtype: str | None) -> State:
    """The denoiser's tensors by the names of ComfyUI; ConfigError for a class that it does not know from others."""
    if source.network in transformer.AS_THEY_ARE:
        return cast(denoiser_weights(source), dtype, source.name)
    if source.network not in CONVERTERS:
        known = ", ".join(sorted((*CONVERTERS, *transformer.AS_THEY_ARE)))
        possible = "--format diffusers or lora" if source.draws_texts else "--format diffusers"
        raise ConfigError(
            f"'{source.name}' has a {source.network}, and for ComfyUI only these are converted: {known}; what is "
            f"possible: {possible}"
        )
    convert, read_back = CONVERTERS[source.network]
    state, config = denoiser_weights(source), source.config(source.part)
    original = checked(state, config, convert, read_back, source.part)
    return cast({unet.PREFIX + name: tensor for name, tensor in original.items()}, dtype, source.name)
