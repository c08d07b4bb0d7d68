"""`diffdistill export`: a model as what other programs load."""

import json
import sys
from argparse import Namespace
from pathlib import Path

from diffdistill.errors import ConfigError
from diffdistill.export.comfyui import denoiser
from diffdistill.export.folder import check_parts, copy_folder
from diffdistill.export.formats import Wish, check
from diffdistill.export.lora import lora
from diffdistill.export.single_file import single_file
from diffdistill.export.source import open_source, refuse_decoders, refuse_scaled, sampling_of, write_tensors
from diffdistill.outputs import check_output

__all__ = ["export"]

ENDING = ".safetensors"


def run(args: Namespace) -> int:
    """Write `--out`, which appears whole or not at all."""
    print(export(args.model, args.out, Wish(args.format, args.dtype, args.rank, args.base)))
    return 0


def export(model: str, out: str | Path, wish: Wish) -> str:
    """Write a model as what another program loads; returns a line that says what was written.

    model: a folder, `builtin:NAME` or a Hub id. out: a new folder for `diffusers`, a new file .safetensors otherwise.

    >>> import tempfile
    >>> from diffdistill.export.formats import Wish
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     export("builtin:fashion_mnist_teacher", folder + "/half", Wish("diffusers", "float16")).split(": ")[1]
    'ConsistencyModelPipeline, float16, 3.0 MB'

    Raises ConfigError for what a format cannot hold and for a place that is taken, CheckpointError for a damaged
    model, DiskError where nothing can be written.
    """
    check(wish)
    target = Path(out)
    check_target(target, wish)
    if Path(model).is_dir() and target.resolve().is_relative_to(Path(model).resolve()):
        raise ConfigError(f"--out '{target}' lies in the model itself, whose files have digests; name another place")
    source = open_source(model)
    if wish.format == "diffusers":
        check_parts(source)
        copy_folder(source, target, wish.dtype)
        size = sum(file.stat().st_size for file in target.rglob("*.safetensors")) / 1e6
        return f"{target}: {source.kind}, {wish.dtype or 'as it is'}, {size:.1f} MB"
    refuse_scaled(source, wish.format)
    refuse_decoders(source, wish.format)
    if wish.is_lora:
        state, about, found = lora(source, wish)
        write_tensors(target, state, about)
        error = "" if found.error is None else f", relative error {found.error:.2g}"
        if found.left_out:
            print(f"note: {found.left_out} biases and norms differ too, which a LoRA cannot hold", file=sys.stderr)
        return f"{target}: LoRA for {about['base_model']}, rank {found.rank}, {len(found.layers)} layers{error}"
    state = single_file(source, wish.dtype) if wish.format == "single-file" else denoiser(source, wish.dtype)
    write_tensors(target, state, {"diffdistill": json.dumps({"sampling": sampling_of(source)}, sort_keys=True)})
    size = target.stat().st_size / 1e6
    return f"{target}: {source.kind if wish.format == 'single-file' else source.network}, {size:.1f} MB"


def check_target(target: Path, wish: Wish) -> None:
    """ConfigError for a place that is taken, or that is no place for this format."""
    if wish.format == "diffusers":
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise ConfigError(f"--out '{target}' already exists and is not an empty folder; name a new one")
        return
    if target.suffix != ENDING:
        raise ConfigError(
            f"--out '{target}' is to be one file of --format {wish.format}; let its name end in {ENDING}"
        )
    check_output(target, "--out")
