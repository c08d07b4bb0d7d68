"""What K decoders over one encoder pass (TiUE, 2505.21960) cost against K full steps and one.

    python benchmarks/one_encoder.py                        the bundled emoji teacher; seconds
    python benchmarks/one_encoder.py --network sd15         Stable Diffusion 1.5's UNet with random weights: 3.4 GB
    python benchmarks/one_encoder.py --decoders 4 --images 4 --repeats 5 --json one_encoder.json

CPU seconds of all threads, so that what else the machine does counts little; in turns, the least of each. Passes of
the UNet alone: schedulers and VAE take as long in all.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from diffdistill import load_model
from diffdistill.parts.one_encoder.decoders import parallel_decoders


def network(name: str) -> Any:
    """A UNet of texts, in evaluation mode."""
    if name == "emoji":
        return load_model("builtin:emoji_teacher").network.eval()
    return UNet2DConditionModel(sample_size=64, cross_attention_dim=768).eval()  # diffusers' defaults are SD 1.5's


@torch.no_grad()
def measured(unet: Any, images: int, size: int, count: int, repeats: int) -> dict[str, float]:
    """CPU seconds of K full steps, of K decoders over one encoder pass, and of one step."""
    torch.manual_seed(0)
    x = torch.randn(images, unet.config.in_channels, size, size)
    words = torch.randn(images, 16, unet.config.cross_attention_dim)
    times = torch.linspace(999, 999 / count, count).long()

    def full() -> None:
        for each in times:
            unet(x, each, encoder_hidden_states=words)

    def shared() -> None:
        with parallel_decoders(unet, times):
            unet(x, times[0], encoder_hidden_states=words)

    def one() -> None:
        unet(x, times[0], encoder_hidden_states=words)

    kinds = {"steps": full, "shared": shared, "one": one}
    found: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(repeats + 1):
        for name, call in kinds.items():
            start = time.process_time()
            call()
            found[name].append(time.process_time() - start)
    return {name: min(seconds[1:]) for name, seconds in found.items()}  # the first is a warm-up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=("emoji", "sd15"), default="emoji")
    parser.add_argument("--decoders", type=int, default=4)
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--size", type=int, help="side of the latents; the network's own without it")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    unet = network(args.network)
    size = args.size or unet.config.sample_size
    found = measured(unet, args.images, size, args.decoders, args.repeats)
    over = {"over_steps": found["shared"] / found["steps"], "over_one": found["shared"] / found["one"]}
    row = vars(args) | {"size": size, "cpu_seconds": found, "threads": torch.get_num_threads()} | over
    print(
        f"{args.network}, {args.images} of {size}x{size}: {args.decoders} steps {found['steps'] * 1e3:.1f} ms, "
        f"{args.decoders} decoders over one encoder {found['shared'] * 1e3:.1f} ms ({over['over_steps']:.2f} of it), "
        f"one step {found['one'] * 1e3:.1f} ms"
    )
    if args.json is not None:
        args.json.write_text(json.dumps(row, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main()
