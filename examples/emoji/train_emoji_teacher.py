"""Train `builtin:emoji_teacher`, a stock `StableDiffusionPipeline`, on the emoji: under an hour on one core.

    OMP_NUM_THREADS=1 python examples/emoji/train_emoji_teacher.py --vae VAE --out assets/emoji_teacher

v-prediction (2202.00512) on the latents' means; a tenth of the captions empty, for guidance (2207.12598); some without
their style. Latents and texts are encoded once. Every `--save` steps the average is written to OUT, a whole pipeline.

--swap: the text encoder is causal, so what it makes of a name depends on the style's word before it, and a name after
a style that was held out is nothing that the network has seen. With this chance the states of the name are those that
it has after the other style's word, and those of the words before it stay: style is then read there, and content here.
"""

import argparse
import dataclasses
import json
import os
import shutil
import tempfile
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from emoji_data import STYLES, Emoji, emoji_rows
from emoji_training import Log, images_of, rate, say_float32, set_rate, sha256, write_json
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from train_emoji_clip import CHANCES, tokens_of, variants
from train_emoji_vae import latents_of

from diffdistill.training.optim.muon import Muon, split_weights

CHANNELS, EMPTY, WARMUP, DECAY, WEIGHT_DECAY, GUIDANCE = (96, 128), 0.1, 200, 0.998, 1e-3, 2.0
MOMENTUM = 0.95
NAME = 6  # the place of the name's first token: start, a, STYLE, style, emoji, of
# t = 1000 u^TIME_POWER: the schedule is made for latents of 64x64, and 8x8 lose their content at less noise.
TIME_POWER = 1.5


def build(latents: int, width: int) -> UNet2DConditionModel:
    """Attention to the caption at 4x4 and in the middle: at 8x8 it would double the cost of a step."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=latents,
        out_channels=latents,
        block_out_channels=CHANNELS,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=width,
        attention_head_dim=tuple(channels // 32 for channels in CHANNELS),
        norm_num_groups=16,
    )


def scheduler() -> DDIMScheduler:
    """Stable Diffusion's betas; steps end at the clean image and begin at the last level."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        steps_offset=1,
        timestep_spacing="trailing",
    )


@torch.no_grad()
def encoded_texts(pipeline: StableDiffusionPipeline, texts: list[str]) -> tuple[Tensor, Tensor]:
    """Hidden states `(U, L, width)` in bfloat16 of the different texts, the empty one first, and each text's place."""
    places: dict[str, int] = {"": 0}
    index = [places.setdefault(text, len(places)) for text in texts]
    tokens = tokens_of(pipeline.tokenizer, list(places))
    states = [pipeline.text_encoder(part)[0].to(torch.bfloat16) for part in tokens.split(256)]
    return torch.cat(states), torch.tensor(index)


def in_other_style(row: Emoji) -> Emoji:
    """The same concept asked for in the other style, whether there is such a picture or not."""
    other = STYLES[1 - STYLES.index(row.style)]
    return dataclasses.replace(row, style=other, text=row.text.replace(f"a {row.style} ", f"a {other} "))


class Captions:
    """The states of all captions of `train`, from which those of a batch are drawn."""

    def __init__(self, pipeline: StableDiffusionPipeline, rows: list[Emoji]) -> None:
        both = [variants(asked) for row in rows for asked in (row, in_other_style(row))]
        self.states, place = encoded_texts(pipeline, [text for texts in both for text in texts])
        self.place = place.view(len(rows), 2, len(CHANCES))

    def draw(self, index: Tensor, swap: float) -> Tensor:
        """States `(B, L, width)` for the pictures `index`: a variant of the caption, or the empty one."""
        count = len(index)
        chosen = self.place[index, :, torch.multinomial(torch.tensor(CHANCES), count, replacement=True)]
        text, other = torch.where(torch.rand(count, 1) < EMPTY, 0, chosen).unbind(1)
        if not swap:
            return self.states[text]
        name = torch.where(torch.rand(count) < swap, other, text)
        return torch.cat([self.states[text][:, :NAME], self.states[name][:, NAME:]], 1)


def train(pipeline: StableDiffusionPipeline, args: argparse.Namespace, log: Log) -> UNet2DConditionModel:
    torch.manual_seed(args.seed)
    rows = emoji_rows("train")
    latents = latents_of(pipeline.vae, images_of("train")) * pipeline.vae.config.scaling_factor
    captions = Captions(pipeline, rows)
    alphas = pipeline.scheduler.alphas_cumprod.sqrt()[:, None, None, None]
    sigmas = (1 - alphas**2).sqrt()
    unet, average, running = pipeline.unet, deepcopy(pipeline.unet).requires_grad_(False), 0.0
    inner, rest = split_weights(unet) if args.muon else ([], list(unet.parameters()))
    adamw = torch.optim.AdamW(rest, lr=args.rate, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY, fused=True)
    optimizers = [(adamw, args.rate)] + ([(Muon(inner, args.muon, MOMENTUM), args.muon)] if args.muon else [])
    for step in range(args.steps):
        index = torch.randint(len(rows), (args.batch,))
        states = captions.draw(index, args.swap)
        time = (1000 * torch.rand(args.batch) ** TIME_POWER).long()
        x0, alpha, sigma = latents[index], alphas[time], sigmas[time]
        noise = torch.randn_like(x0)
        # Flash attention's backward is slow on a CPU.
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            found = unet(alpha * x0 + sigma * noise, time, states, return_dict=False)[0]
        loss = F.mse_loss(found.float(), alpha * noise - sigma * x0)
        unet.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        for optimizer, peak in optimizers:
            set_rate(optimizer, rate(step, args.steps, peak, WARMUP))
            optimizer.step()
        weight = 1 - min(DECAY, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(unet.parameters()), weight)
        running = running + (loss.item() - running) * max(0.02, 1 / (step + 1))
        if (step + 1) % 100 == 0:
            log(step=step + 1, loss=running)
        if (step + 1) % args.save == 0 and step + 1 < args.steps:
            write(pipeline, average, args, step + 1)
    return average


def write(pipeline: StableDiffusionPipeline, unet: Any, args: argparse.Namespace, steps: int) -> None:
    """The pipeline with this network, in float16 to spare room, made beside OUT and put in its place."""
    out: Path = args.out
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=out.parent))
    parts = {name: deepcopy(part).half() for name, part in {**modules(pipeline), "unet": unet}.items()}
    shared = {"tokenizer": pipeline.tokenizer, "scheduler": pipeline.scheduler}
    blank = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    StableDiffusionPipeline(**parts, **shared, **blank).save_pretrained(work, safe_serialization=True)
    say_float32(work / "text_encoder" / "config.json")
    for config in work.glob("*/config.json"):  # where a part was read from is nobody's business
        values = json.loads(config.read_text())
        write_json(config, {key: value for key, value in values.items() if key != "_name_or_path"})
    digests = {file.relative_to(work).as_posix(): sha256(file) for file in sorted(work.rglob("*.safetensors"))}
    done = {
        "steps": steps,
        "of": args.steps,
        "batch": args.batch,
        "learning_rate": args.rate,
        "muon": args.muon,
        "swap": args.swap,
        "seed": args.seed,
    }
    record = {"role": "teacher", "guidance_scale": GUIDANCE, "sha256": digests, "training": [*earlier(args), done]}
    write_json(work / "diffdistill.json", record)
    shutil.copy(args.log, work / "training.jsonl")
    shutil.copy(args.vae / "training.jsonl", work / "vae" / "training.jsonl")
    if out.exists():
        if (out / "README.md").is_file():
            shutil.copy(out / "README.md", work)
        shutil.rmtree(out)
    work.chmod(0o755)
    work.rename(out)


def earlier(args: argparse.Namespace) -> list[Any]:
    """The phases of training before this one."""
    return [] if args.start is None else json.loads((args.start / "diffdistill.json").read_text())["training"]


def modules(pipeline: StableDiffusionPipeline) -> dict[str, Any]:
    return {"vae": pipeline.vae, "text_encoder": pipeline.text_encoder, "unet": pipeline.unet}


def main() -> None:
    from transformers import CLIPTextModel, CLIPTokenizer

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--clip", type=Path, default=Path("assets/emoji_clip"))
    parser.add_argument("--out", type=Path, default=Path("assets/emoji_teacher"))
    parser.add_argument("--log", type=Path, default=Path("runs/emoji_teacher.jsonl"))
    parser.add_argument("--steps", type=int, default=3600)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=1e-3, help="the highest learning rate")
    parser.add_argument("--muon", type=float, help="highest rate of Muon for inner weights; without: AdamW for all")
    parser.add_argument("--swap", type=float, default=0.0, help="chance of the name as after the other style")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--start", type=Path, help="go on from the network of this teacher, with its text encoder")
    parser.add_argument("--save", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    vae = AutoencoderKL.from_pretrained(args.vae).requires_grad_(False)
    text_encoder = CLIPTextModel.from_pretrained(args.clip, dtype=torch.float32).requires_grad_(False)
    if args.start is None:
        unet = build(vae.config.latent_channels, text_encoder.config.hidden_size)
    else:
        unet = UNet2DConditionModel.from_pretrained(args.start, subfolder="unet")
    pipeline = StableDiffusionPipeline(
        vae, text_encoder, CLIPTokenizer.from_pretrained(args.clip), unet, scheduler(), None, None,
        requires_safety_checker=False,
    )  # fmt: skip
    log = Log(args.log, (args.start / "training.jsonl").read_text() if args.start else "")
    log(parameters=sum(parameter.numel() for parameter in unet.parameters()))
    write(pipeline, train(pipeline, args, log), args, args.steps)


if __name__ == "__main__":
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    main()
