"""One pass of a UNet's encoder, and one of its decoder on K times at once (TiUE, 2505.21960).

    h, skips = encoder(x_1, t_1),        eps_k = decoder(h, skips, t_k)

Only the time differs from decoder to decoder. This file needs torch alone: it lies as `decoders.py` beside the
`pipeline.py` that imports it, also in folders of models.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


@contextmanager
def parallel_decoders(unet: Any, times: Tensor | Sequence[float] | Sequence[Tensor]) -> Iterator[None]:
    """Within, a call of a UNet of B rows returns K B: the outputs at `times`, each B, first time first.

    The encoder, that is all before the first block on the way up, runs at the time of the call. times: K numbers, or
    K of `(B,)`. unet: a `UNet2DModel` or `UNet2DConditionModel`; ValueError for one with Fourier times or skips that
    bypass its blocks.

    >>> from diffusers import UNet2DModel
    >>> blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (8,)}
    >>> unet = UNet2DModel(8, in_channels=3, out_channels=3, layers_per_block=1, norm_num_groups=4, **blocks)
    >>> with parallel_decoders(unet, [999, 749, 499, 249]):
    ...     outputs = unet(torch.randn(2, 3, 8, 8), 999).sample
    >>> outputs.shape
    torch.Size([8, 3, 8, 8])
    """
    check_cut(unet)
    count, given = len(times), {}

    def remember(_unet: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        names = ("sample", "timestep", "encoder_hidden_states" if _conditioned(unet) else "class_labels")
        given.update(dict(zip(names, args, strict=False)) | kwargs)

    def widen(_block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:  # of a UNet2DModel: hidden states, skips, the time's embedding
            hidden, skips, _ = args
            return (grown(hidden), grown(skips), given["embedding"]), kwargs
        return args, {name: grown(value) for name, value in kwargs.items()} | {"temb": given["embedding"]}

    def grown(value: Any) -> Any:
        """What has B rows, K times over; the rest, such as sizes and scales, as it is."""
        if isinstance(value, tuple):
            return tuple(grown(one) for one in value)
        rows = len(given["sample"])
        fits = isinstance(value, Tensor) and value.ndim > 0 and len(value) == rows and count > 1
        return value.repeat(count, *[1] * (value.ndim - 1)) if fits else value

    def begin(_block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given["embedding"] = torch.cat([_embedding(unet, time, given) for time in times])
        return widen(_block, args, kwargs)

    blocks = list(unet.up_blocks)
    handles = [unet.register_forward_pre_hook(remember, with_kwargs=True)]
    handles += [
        block.register_forward_pre_hook(begin if index == 0 else widen, with_kwargs=True)
        for index, block in enumerate(blocks)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _conditioned(unet: Any) -> bool:
    """Whether it is a `UNet2DConditionModel`, which also reads texts."""
    return hasattr(unet, "get_time_embed")


def check_cut(unet: Any) -> None:
    """ValueError for a network that is not cut in two here.

    >>> check_cut(torch.nn.Identity())
    Traceback (most recent call last):
    ValueError: Identity has no encoder and decoder of a UNet; give a UNet of diffusers
    """
    blocks = [*getattr(unet, "down_blocks", ()), *getattr(unet, "up_blocks", ())]
    if not blocks or getattr(unet, "mid_block", None) is None:
        raise ValueError(f"{type(unet).__name__} has no encoder and decoder of a UNet; give a UNet of diffusers")
    fourier = not _conditioned(unet) and getattr(unet.config, "time_embedding_type", "") == "fourier"
    if fourier or any(hasattr(block, "skip_conv") for block in blocks):
        raise ValueError("the UNet has Fourier times or skips that bypass its blocks; give one without")


def _embedding(unet: Any, time: Any, given: dict[str, Any]) -> Tensor:
    """Of a time, `(B, C)`, as the UNet's own forward makes it for the arguments of its call."""
    sample, labels = given["sample"], given.get("class_labels")
    time = torch.as_tensor(time, device=sample.device)
    if not _conditioned(unet):
        emb = unet.time_embedding(unet.time_proj(time.expand(len(sample))).to(unet.dtype))
        return emb if unet.class_embedding is None else emb + unet.class_embedding(labels).to(unet.dtype)
    emb = unet.time_embedding(unet.get_time_embed(sample, time), given.get("timestep_cond"))
    classes = unet.get_class_embed(sample, labels)
    if classes is not None:
        emb = torch.cat([emb, classes], -1) if unet.config.class_embeddings_concat else emb + classes
    more = unet.get_aug_embed(emb, given.get("encoder_hidden_states"), given.get("added_cond_kwargs"))
    emb = emb if more is None else emb + more
    return emb if unet.time_embed_act is None else unet.time_embed_act(emb)
