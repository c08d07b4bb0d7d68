"""How far a central difference in ln sigma is from the exact derivative of a denoiser's output along its trajectory.

python benchmarks/consistency_derivative.py [--model builtin:fashion_mnist_teacher] [--images 32]
"""

import argparse
import time

import torch

from diffdistill import load_model
from diffdistill.consistency.continuous import along_by_difference, along_by_forward_mode, output_of
from diffdistill.consistency.objective import noised, spread_of
from diffdistill.data import load_images

STEPS = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="builtin:fashion_mnist_teacher")
    parser.add_argument("--data", default="builtin:fashion_mnist")
    parser.add_argument("--images", type=int, default=32)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(args.model).requires_grad_(False)
    x0, cond = load_images(args.data).draw(args.images, 0, 0)

    def output(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return output_of(model, x, sigma, cond, spread_of(model))

    print(f"{'sigma':>6} {'exact':>6} " + " ".join(f"{h:>6g}" for h in STEPS) + "   forward passes of the exact one")
    for level in (0.05, 0.2, 0.5, 1.0, 2.5, 5.0, 20.0, 80.0):
        torch.manual_seed(0)
        sigma = torch.full((len(x0),), level)
        x_t = noised(x0, sigma, torch.randn_like(x0))
        with torch.no_grad():
            way = x_t - model(x_t, sigma, cond)
            began = time.process_time()
            output(x_t, sigma)
            once = time.process_time() - began
            began = time.process_time()
            exact = along_by_forward_mode(output, x_t, sigma, way)
            cost = (time.process_time() - began) / once
            off = [(along_by_difference(output, x_t, sigma, way, h) - exact).norm() / exact.norm() for h in STEPS]
        size = exact.flatten(1).norm(dim=1).mean() / exact[0].numel() ** 0.5
        print(f"{level:>6g} {size:>6.2f} " + " ".join(f"{value:>6.2f}" for value in off) + f"   {cost:.1f}")


if __name__ == "__main__":
    main()
