"""MODEL as a denoiser: a folder, `builtin:NAME` or a Hub id in diffusers format, of pixels or of texts."""

from pathlib import Path

import torch

from diffdistill.denoiser import Denoiser, Storage
from diffdistill.errors import CheckpointError, ConfigError
from diffdistill.pipelines.folder import locate, read_json, read_metadata
from diffdistill.pipelines.network import network_name
from diffdistill.pipelines.one_encoder import one_encoder
from diffdistill.pipelines.pixel.consistency import described
from diffdistill.pipelines.pixel.denoiser import load_pixels
from diffdistill.pipelines.pixel.save import save_pixels
from diffdistill.pipelines.record import DECODERS, check_record
from diffdistill.pipelines.scheduler_config import process_of
from diffdistill.pipelines.scheduler_values import read_scheduler
from diffdistill.pipelines.text.denoiser import load_text_denoiser
from diffdistill.precision import Precision


def load_model(
    model: str | Path,
    device: str | torch.device = "cpu",
    adapter: str | None = None,
    dtype: str | Precision | None = None,
) -> Denoiser:
    """Read a model; `Denoiser.from_pretrained` is this function.

    adapter: `FILE.py:NAME` of an `AdapterFor` of one's own, for a text-to-image pipeline, which
    `registry.allow_code` lets run.
    dtype: what its networks are held and computed in, of `precision.PRECISIONS`; None: float32. Levels, the layer that
    writes the network's output, samplers and images are float32 always, and so is, in float16, a VAE whose config says
    `force_upcast`.

    >>> teacher = load_model("builtin:fashion_mnist_teacher")
    >>> teacher.image_shape, teacher.num_classes, teacher.role
    ((1, 28, 28), 10, 'teacher')
    >>> load_model("builtin:fashion_mnist_teacher", dtype="bfloat16").dtypes
    {'dtype': 'bfloat16'}

    Raises CheckpointError for what is no model folder, or a damaged one, or a network that is not read; ConfigError
    for a text-to-image pipeline without an adapter, and for a precision that the device does not compute.
    """
    precision = Precision.of(dtype, device)
    folder = locate(str(model))
    index = read_json(folder / "model_index.json")
    try:
        network_name(index)
    except CheckpointError as error:
        raise CheckpointError(f"'{folder}': {error}") from error
    metadata = read_metadata(folder)
    scheduler = read_scheduler(folder)
    try:
        check_record(metadata)
        metadata = described(scheduler, metadata)
        process = process_of(scheduler, metadata.get("role", "teacher"))
    except CheckpointError as error:
        raise CheckpointError(f"'{folder}': {error}") from error
    metadata.setdefault("path", str(model))
    if any(name.startswith("text_encoder") for name in index):
        kind = str(index.get("_class_name"))
        denoiser: Denoiser = load_text_denoiser(folder, kind, str(model), process, metadata, adapter, precision)
    else:
        denoiser = load_pixels(folder, index, process, metadata, precision.network)
    if DECODERS in metadata:
        try:
            denoiser = one_encoder(denoiser, metadata[DECODERS])
        except ConfigError as error:
            raise CheckpointError(
                f"'{folder}' has a record of decoders that do not fit its network: {error}"
            ) from error
    return denoiser.to(device)


STORAGE = Storage("diffusers", load_model, save_pixels)
