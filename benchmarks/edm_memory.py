"""Memory of one distillation step on EDM's networks, counted on the meta device: nothing is allocated or downloaded.

Counted are the weights of teacher, student, critic and average, gradients and Adam's moments, all in float32, and what
autograd keeps of a part of the batch, in the precision of the recipe. A batch in parts holds no graph of the student
while the terms of its gradient are taken. What is held at once, at most, of `micro_batch_size` images: for a score gap
one graph (of student, critic, or teacher where heads read it), with heads on the critic its own and that of real and
student images, for a Fisher form that of the teacher and of the critic. Not counted: heads, what a single operation
needs and frees again, and the allocator's fragments, for which a quarter of the card is left. The meta device has
attention's math kernel only; another keeps less.

    python benchmarks/edm_memory.py [--card 80]
"""

import argparse
from typing import Any

import torch
from alignment_memory import kept

from diffdistill.models import DhariwalUNet, SongUNet

# The settings of EDM's two class-conditional networks (2206.00364, the appendix on network architectures).
CIFAR10: dict[str, Any] = {"label_dim": 10, "num_class_embeds": 10, "augment_dim": 9, "channel_mult": [2, 2, 2]}
IMAGENET: dict[str, Any] = {"label_dim": 1000, "num_class_embeds": 1000}
NETWORKS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "cifar10": (SongUNet, CIFAR10), "imagenet64": (DhariwalUNet, IMAGENET),
}  # fmt: skip
# Graphs held at once, by the form of the student's gradient.
GRAPHS = {"score gap, heads on the teacher or none": 1, "score gap, heads on the critic": 2, "Fisher form": 2}
GB = 1e9


def graph(network: Any, rows: int) -> int:
    """Bytes that autograd keeps of a pass over `rows` images."""
    weights = {p.untyped_storage()._cdata for p in network.parameters()}
    shape = rows, network.config.in_channels, *[network.config.sample_size] * 2
    with kept(weights) as found, torch.device("meta"):
        x = torch.empty(shape, dtype=network.dtype, requires_grad=True)
        network(x, torch.empty(rows), torch.empty(rows, dtype=torch.int64))
    return sum(found.values())


def count(name: str, dtype: torch.dtype) -> tuple[int, float, float]:
    """`(parameters, bytes of all that does not grow with the batch, bytes of the graph of an image)`."""
    cls, settings = NETWORKS[name]
    with torch.device("meta"):
        network = cls(**settings).to(dtype).eval()  # as autocast sees it
    parameters = sum(p.numel() for p in network.parameters())
    # Four copies, two of them with a gradient and two moments.
    return parameters, 4 * parameters * (4 + 2 * 3), float(graph(network, 2) - graph(network, 1))


def largest(free: float, image: float) -> int:
    """The largest power of two of images that fits."""
    rows = 1
    while 2 * rows * image <= free:
        rows *= 2
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--card", type=float, default=80.0, help="memory of the GPU in GB")
    card = parser.parse_args().card
    for name in NETWORKS:
        for dtype in (torch.float32, torch.bfloat16):
            parameters, fixed, image = count(name, dtype)
            print(f"{name}, {str(dtype)[6:]}: {parameters / 1e6:.1f} M parameters, weights, gradients and moments "
                  f"{fixed / GB:.1f} GB, a graph {image / GB:.3f} GB an image")  # fmt: skip
            for form, graphs in GRAPHS.items():
                rows = largest(0.75 * card * GB - fixed, graphs * image)
                print(f"  {form}: micro_batch_size={rows} on {card:g} GB")
