"""A LoRA of a style for the emoji teacher, and what it does to its students.

    python examples/emoji/style_lora.py train --out runs/noto.safetensors
    python examples/emoji/style_lora.py guide runs/emoji_one_step/student
    python examples/emoji/style_lora.py measure runs/noto.safetensors builtin:emoji_teacher runs/emoji_one_step/student
    python examples/emoji/style_lora.py look runs/emoji_one_step/student runs/noto_student/student

train: the teacher's denoising loss on the Noto pictures alone, with captions that ask for no style; adapters of rank 4
on the attention layers. Minutes of one thread. With `--model STUDENT` the same on a student's network. measure: 190
held-out captions without style, the same noise with and without the LoRA: the share that the judge calls Noto, the
CLIP score, and how far the pictures moved. look: share and score of models as they are. guide: the same captions by
stock diffusers, whose guidance a student can be given too, and a negative prompt.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from emoji_data import emoji_rows
from evaluate_emoji import Measures, drawer
from safetensors.torch import save_file

from diffdistill import Denoiser
from diffdistill.data import load_images, to_model_range
from diffdistill.losses import denoising_loss, native_weight
from diffdistill.pipelines.text.lora import SharedWeights
from diffdistill.pipelines.text.task_lora import load_task_lora
from diffdistill.process import Level, LevelLaw, per_sample

TEACHER, TARGETS, RANK, BATCH = "builtin:emoji_teacher", ("to_q", "to_k", "to_v", "to_out.0"), 4, 32
ASKED, PLAIN = "a noto style emoji", "an emoji"


def train(name: str, out: Path, steps: int, rate: float) -> None:
    torch.manual_seed(0)
    model: Any = Denoiser.from_pretrained(name)
    data = load_images("builtin:emoji")
    rows = [i for i, text in enumerate(data.texts or ()) if text.startswith(ASKED)]
    latents = torch.cat([model.encode(to_model_range(data.images[rows[i : i + 64]])) for i in range(0, len(rows), 64)])
    texts = model.prompts.ids([data.texts[i].replace(ASKED, PLAIN) for i in rows])  # type: ignore[index]
    network = SharedWeights(model.network).adapted(RANK, None, TARGETS)
    adapted = model.with_network(network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=0.0)
    law = LevelLaw(Level("timestep"), model.sigma_min, model.sigma_max, model.process)
    for step in range(steps):
        chosen = torch.randint(len(rows), (BATCH,))
        x0, (_, sigma) = latents[chosen], law.draw(BATCH)
        x_t = x0 + per_sample(sigma, x0) * torch.randn_like(x0)
        weight = native_weight(model.process, sigma)
        loss = denoising_loss(adapted(x_t, sigma, texts[chosen]), x0, sigma, weight=weight).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step}: loss {float(loss):.4f}", flush=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file({f"unet.{name}": value for name, value in network.tensors().items()}, out)


def pictures(name: str, prompts: list[str], lora: str | None, scale: float) -> torch.Tensor:
    model: Any = Denoiser.from_pretrained(name)
    if lora is not None:
        load_task_lora(model.adapter, lora, scale)
    student = model.role == "student"
    return drawer(model, None if student else 2.0, None if student else 12, None, 1000)(prompts)


def measured(lora: str, models: list[str], scale: float) -> Iterator[str]:
    measures = Measures()
    prompts = sorted({row.plain for row in emoji_rows("held_out")})
    for name in models:
        plain, styled = (pictures(name, prompts, given, scale) for given in (None, lora))
        noto = [float(measures.noto(images).float().mean()) for images in (plain, styled)]
        clip = [measures.clip_of(images, prompts) for images in (plain, styled)]
        moved = float((plain.float() - styled.float()).abs().mean() / 255)
        yield (
            f"{name}: Noto {noto[0]:.1%} -> {noto[1]:.1%}, CLIP score {clip[0]:.1f} -> {clip[1]:.1f}, "
            f"mean difference {moved:.3f}, {len(prompts)} captions"
        )


def looked_at(models: list[str]) -> Iterator[str]:
    measures, prompts = Measures(), sorted({row.plain for row in emoji_rows("held_out")})
    for name in models:
        images = pictures(name, prompts, None, 1.0)
        noto = float(measures.noto(images).float().mean())
        yield f"{name}: Noto {noto:.1%}, CLIP score {measures.clip_of(images, prompts):.1f}, {len(prompts)} captions"


def guided(name: str) -> Iterator[str]:
    """CLIP score of a student's pipeline, called with its own `call` but for guidance."""
    from diffusers import DiffusionPipeline

    measures, prompts = Measures(), sorted({row.plain for row in emoji_rows("held_out")})
    pipeline = DiffusionPipeline.from_pretrained(name)
    pipeline.set_progress_bar_config(disable=True)
    call = json.loads((Path(name) / "diffdistill.json").read_text())["call"]
    drawn: list[torch.Tensor] = []
    for scale, negative in ((1.0, None), (1.0, "a twemoji style emoji"), (1.5, None), (2.0, None), (4.0, None)):
        noise = [torch.Generator().manual_seed(i) for i in range(len(prompts))]
        more: dict[str, Any] = {} if negative is None else {"negative_prompt": [negative] * len(prompts)}
        images = pipeline(prompts, generator=noise, output_type="pt", **call | {"guidance_scale": scale} | more).images
        drawn.append((255 * images).round().to(torch.uint8))
        moved = float((drawn[0].float() - drawn[-1].float()).abs().mean() / 255)
        score = measures.clip_of(drawn[-1], prompts)
        yield f"guidance {scale:g}, negative prompt {negative}: CLIP score {score:.1f}, mean difference {moved:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    one, other = verbs.add_parser("train"), verbs.add_parser("measure")
    verbs.add_parser("guide").add_argument("student")
    verbs.add_parser("look").add_argument("models", nargs="+")
    one.add_argument("--model", default=TEACHER)
    one.add_argument("--out", type=Path, required=True)
    one.add_argument("--steps", type=int, default=300)
    one.add_argument("--rate", type=float, default=1e-3)
    other.add_argument("lora")
    other.add_argument("models", nargs="+")
    other.add_argument("--scale", type=float, default=1.0)
    given = parser.parse_args()
    if given.verb == "train":
        train(given.model, given.out, given.steps, given.rate)
        return
    if given.verb == "look":
        lines = looked_at(given.models)
    elif given.verb == "guide":
        lines = guided(given.student)
    else:
        lines = measured(given.lora, given.models, given.scale)
    for line in lines:
        print(line, flush=True)


if __name__ == "__main__":
    main()
