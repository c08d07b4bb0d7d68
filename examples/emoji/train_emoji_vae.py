"""The VAE of the emoji teacher: an `AutoencoderKL`, 32x32 pixels to 8x8 latents of 8 channels; minutes on a core.

    OMP_NUM_THREADS=1 python examples/emoji/train_emoji_vae.py --out assets/emoji_vae

8x8 and not 16x16: a step of the UNet costs about half, for the teacher and all that is distilled from it; 8 channels
keep enough. Writes a diffusers folder; `config.json` has `scaling_factor` = 1 / std of the latents of `train`.
"""

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from emoji_training import Log, images_of, rate, set_rate, sha256, write_json
from torch import Tensor
from torch.nn import functional as F

CHANNELS, LATENTS, KL_WEIGHT, PEAK_RATE, WARMUP, DECAY = (32, 64, 96), 8, 1e-4, 2e-3, 100, 0.995


def build() -> AutoencoderKL:
    """No attention: at 8x8 the convolutions of the middle see everything."""
    levels = len(CHANNELS)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=CHANNELS,
        layers_per_block=1,
        latent_channels=LATENTS,
        norm_num_groups=16,
        sample_size=32,
        mid_block_add_attention=False,
    )


def loss_of(vae: AutoencoderKL, x: Tensor) -> tuple[Tensor, float]:
    """|x' - x| + 2 (x' - x)^2 + KL_WEIGHT KL(q(z | x) || N(0, 1)), the KL in nats a latent value."""
    posterior = vae.encode(x).latent_dist
    found = vae.decode(posterior.sample()).sample.float()
    kl = posterior.kl().float().mean() / (LATENTS * 64)
    return F.l1_loss(found, x) + 2 * F.mse_loss(found, x) + KL_WEIGHT * kl, float(kl.detach())


@torch.no_grad()
def psnr(vae: AutoencoderKL, images: Tensor) -> float:
    """10 log10(255^2 / mean squared error of an image), the mean over images; the latent is the posterior's mean."""
    x = images.float() / 127.5 - 1
    parts = [vae.decode(vae.encode(part).latent_dist.mean).sample.clamp(-1, 1) for part in x.split(64)]
    error = (torch.cat(parts) - x).mul(127.5).square().flatten(1).mean(1)
    return float((10 * (255**2 / error).log10()).mean())


@torch.no_grad()
def latents_of(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Means of the posterior, not scaled."""
    return torch.cat([vae.encode(x.float() / 127.5 - 1).latent_dist.mean for x in images.split(64)])


@torch.no_grad()
def fix_unit(vae: AutoencoderKL, latents: Tensor) -> None:
    """Each channel of the latents to mean 0, variance 1 over `latents`: the 1x1 convolutions on either side take it.

    z' = (z - m) / s. A diffusion model begins at N(0, 1) in each channel, and the VAE's own channels differ threefold.
    """
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    inner, outer = vae.quant_conv, vae.post_quant_conv
    inner.weight[:LATENTS] /= std[:, None, None, None]
    inner.bias[:LATENTS] = (inner.bias[:LATENTS] - mean) / std
    inner.bias[LATENTS:] -= 2 * std.log()
    outer.bias += outer.weight[:, :, 0, 0] @ mean
    outer.weight *= std[None, :, None, None]


def train(steps: int, batch: int, seed: int, log: Log) -> AutoencoderKL:
    torch.manual_seed(seed)
    images, held = images_of("train"), images_of("test")[::4]
    vae, average = build(), build()
    average.load_state_dict(vae.state_dict())
    average.requires_grad_(False)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=1e-3)
    for step in range(steps):
        set_rate(optimizer, rate(step, steps, PEAK_RATE, WARMUP))
        x = images[torch.randint(len(images), (batch,))].float() / 127.5 - 1
        with torch.autocast("cpu", torch.bfloat16):
            loss, kl = loss_of(vae, x)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        weight = 1 - min(DECAY, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(vae.parameters()), weight)
        if (step + 1) % 100 == 0:
            log(step=step + 1, loss=loss.item(), kl=kl, gradient=float(norm), test_psnr=psnr(average, held))
    return average.eval().requires_grad_(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("assets/emoji_vae"))
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    log = Log(args.out / "training.jsonl")
    vae = train(args.steps, args.batch, args.seed, log)
    fix_unit(vae, latents_of(vae, images_of("train")))
    vae.register_to_config(scaling_factor=1 / float(latents_of(vae, images_of("train")).std()))
    vae.save_pretrained(args.out, safe_serialization=True)
    figures = {f"psnr_{split}": psnr(vae, images_of(split)) for split in ("train", "held_out", "test")}
    log(**figures)
    digest = sha256(args.out / "diffusion_pytorch_model.safetensors")
    settings = {key: value for key, value in vars(args).items() if key != "out"}
    write_json(args.out / "diffdistill.json", {"sha256": digest, **figures, "training": settings})


if __name__ == "__main__":
    main()
