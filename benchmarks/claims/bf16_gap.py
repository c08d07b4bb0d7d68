"""The score gap's own noise under bfloat16 autocast, with the last layer in bfloat16 and in float32.

    python benchmarks/claims/bf16_gap.py [--device cuda]

The critic is the bundled teacher with normal noise on every weight, `change` times its tensor's mean magnitude. Noise
is ||gap in bf16 - gap in float32|| / ||gap in float32|| over 64 images; the relative gap is mean|D_F - D_T| over
mean|x0 - D_T|, as `score_gap/relative` is in the log.
"""

import argparse
from contextlib import nullcontext
from unittest import mock

import torch

from diffdistill import denoiser
from diffdistill.data import load_images, to_model_range
from diffdistill.denoiser import Denoiser
from diffdistill.pipelines.network import clone_network

SIGMAS = (0.01, 0.1, 0.5, 2.0, 10.0)


@torch.no_grad()
def main(device: str, count: int) -> None:
    teacher = Denoiser.from_pretrained("builtin:fashion_mnist_teacher", device)
    data = load_images("builtin:fashion_mnist", split="train")
    assert data.labels is not None
    x0, labels = to_model_range(data.images[:count]).to(device), data.labels[:count].to(device)
    print(f"{'change':>7} {'sigma':>6} {'relative gap':>13} {'noise, bf16':>12} {'last layer float32':>19}")
    for change in (0.003, 0.01, 0.03):
        torch.manual_seed(0)
        critic = Denoiser(clone_network(teacher.network, teacher.num_classes), teacher.process).eval()
        for weight in critic.parameters():
            weight.add_(change * weight.abs().mean() * torch.randn(weight.shape).to(device))
        for level in SIGMAS:
            sigma = torch.full((count,), level, device=device)
            torch.manual_seed(1)
            x_t = x0 + level * torch.randn(x0.shape).to(device)
            exact = critic(x_t, sigma, labels) - teacher(x_t, sigma, labels)
            relative = exact.abs().mean() / (x0 - teacher(x_t, sigma, labels)).abs().mean()
            noise = []
            for last_in_half in (True, False):
                plain = mock.patch.object(denoiser, "float32_output", return_value=nullcontext())
                with plain if last_in_half else nullcontext(), torch.autocast(device, torch.bfloat16):
                    gap = critic(x_t, sigma, labels) - teacher(x_t, sigma, labels)
                noise.append(float((gap - exact).norm() / exact.norm()))
            print(f"{change:7g} {level:6g} {relative:13.3f} {noise[0]:12.2f} {noise[1]:19.2f}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--count", type=int, default=64)
    asked = parser.parse_args()
    main(asked.device, asked.count)
