"""`diffdistill convert`: foreign weights into a model folder."""

from argparse import Namespace
from pathlib import Path

from diffdistill import __version__
from diffdistill.errors import ConfigError
from diffdistill.files import sha256
from diffdistill.parts.edm.convert import build, read_source
from diffdistill.pipelines.text.single_file import convert_single
from diffdistill.reporting.model_card import model_card


def run(args: Namespace) -> int:
    """Write `--out`, which appears whole or not at all."""
    source, out = Path(args.source), Path(args.out)
    if out.exists():
        raise ConfigError(f"--out '{out}' already exists; name a new folder, nothing is overwritten")
    if source.suffix == ".gguf" and args.config is None:
        raise ConfigError(f"'{source}' holds a network alone; name its pipeline with --config")
    if args.config is not None and not Path(args.config).is_file():
        print(f"{out}: {convert_single(source, args.config, out)}")
        return 0
    denoiser = build(read_source(source, None if args.config is None else Path(args.config)))
    # The name, not the path, which is private to this machine.
    origin = {"file": source.name, "sha256": sha256(source)}
    denoiser.save_pretrained(
        out,
        role="teacher",
        source=origin,
        diffdistill=__version__,
        card=lambda metadata: model_card(metadata=metadata),
    )
    config = denoiser.network.config
    count = sum(parameter.numel() for parameter in denoiser.parameters()) / 1e6
    kind, size = config.preconditioning["kind"], config.sample_size
    labels = f"{denoiser.num_classes} classes" if denoiser.num_classes else "no classes"
    print(f"{out}: {type(denoiser.network).__name__} ({kind}), {count:.1f} M parameters, {size}x{size}, {labels}")
    return 0
