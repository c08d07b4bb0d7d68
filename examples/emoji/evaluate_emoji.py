"""Measure text-to-image models of the emoji: FID, CLIP score, and what the judge says of their style.

    python examples/emoji/evaluate_emoji.py builtin:emoji_teacher --guidance 1 2 4 --out runs/emoji_teacher.json

One image for each prompt (--repeat: more, of the two sets that the judge sees), from seed 1000:
- held_out: the captions of the split, concepts in a style that was kept from training. CLIP score; the share that the
  judge finds to be in the style asked for; the share that it recognises: the nearest real picture, by its features and
  of both splits and styles, shows the concept asked for.
- plain: the same concepts with no style asked for. The share that the judge calls Noto: a preference's win rate; the
  share that it recognises.
- train: evenly spaced captions. FID of the judge's features, against the whole split `train`; the rest as above.
Where several models are given, the shares of the later ones are compared with the first's caption by caption.
The grids lie beside OUT: one for each model, and one of the real pictures and all models for the same captions.
--guidance, --steps and --sampler are for teachers; a student has its own.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from emoji_data import STYLES, Emoji, emoji_rows
from torch import Tensor
from torch.nn.functional import normalize

from diffdistill.assets import resolve_builtin
from diffdistill.data import load_images
from diffdistill.data.prompts import spread
from diffdistill.denoiser import Denoiser
from diffdistill.evaluation import clip_score, frechet_distance
from diffdistill.evaluation.extractors.bundled import EmojiFeatures
from diffdistill.evaluation.extractors.hub import HubFeatures
from diffdistill.evaluation.features import load_features
from diffdistill.reporting.grid import image_grid
from diffdistill.sampling.generate import generate

SEED = 1000


class Measures:
    """The networks that judge and the reference, loaded once."""

    def __init__(self) -> None:
        judge = load_features("emoji")
        assert isinstance(judge, EmojiFeatures)
        self.judge, self.clip = judge, HubFeatures(str(resolve_builtin("builtin:emoji_clip")), torch.device("cpu"))
        splits = ("train", "held_out")
        self.reference, held_out = (judge(load_images("builtin:emoji", split=split).images) for split in splits)
        self.concepts = [row.codepoint for split in splits for row in emoji_rows(split)]
        self.centre = self.reference.mean(0)
        self.held_out = held_out
        self.real = self.directions(torch.cat([self.reference, held_out]))
        self.clip.batch_size = 256

    def clip_of(self, images: Tensor, texts: list[str]) -> float:
        return float(clip_score(images, texts, self.clip))

    def noto(self, images: Tensor) -> Tensor:
        """Whether the judge calls each image Noto, `(N,)` bool."""
        return self.judge.styles(self.judge(images)).argmax(1) == STYLES.index("noto")

    def directions(self, features: Tensor) -> Tensor:
        return normalize(features - self.centre, dim=1)

    def recognised(self, images: Tensor, rows: list[Emoji]) -> Tensor:
        """Whether the real picture nearest to each image, by the cosine, shows the concept of its row; `(N,)` bool."""
        nearest = (self.directions(self.judge(images)) @ self.real.T).argmax(1)
        found = [self.concepts[i] for i in nearest.tolist()]
        return torch.tensor([concept == row.codepoint for concept, row in zip(found, rows, strict=True)])

    def twins(self) -> float:
        """The share of real held-out pictures whose nearest other one is of their concept, in its other style."""
        likeness = self.directions(self.held_out) @ self.real.T
        own = len(self.reference) + torch.arange(len(likeness))
        likeness[torch.arange(len(likeness)), own] = -1
        pairs = zip(own.tolist(), likeness.argmax(1).tolist(), strict=True)
        return sum(self.concepts[i] == self.concepts[j] for i, j in pairs) / len(likeness)

    def fid(self, images: Tensor) -> float:
        return float(frechet_distance(self.reference, self.judge(images)))


def by_caption(hits: Tensor, repeat: int) -> Tensor:
    """The share of hits of each caption: its images are not independent, so errors are those over captions."""
    return hits.float().view(repeat, -1).mean(0)


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """The mean, and its standard error."""
    return round(float(values.mean()), 4), round(float(values.std() / len(values) ** 0.5), 4)


def asked_for_noto(rows: list[Emoji]) -> Tensor:
    return torch.tensor([row.style == "noto" for row in rows])


@dataclass(frozen=True)
class Measured:
    figures: dict[str, float]
    shares: dict[str, Tensor]  # of each caption, (N,), for comparisons
    images: Tensor  # one of each held-out caption


def measure(draw: Any, measures: Measures, of_train: int, repeat: int) -> Measured:
    """draw: from prompts to uint8 images, one each."""
    rows = emoji_rows("held_out")
    texts, plain = [row.text for row in rows] * repeat, [row.plain for row in rows] * repeat
    images, unasked = draw(texts), draw(plain)
    figures = {"held_out_clip": measures.clip_of(images, texts), "plain_clip": measures.clip_of(unasked, plain)}
    shares = {
        "held_out_style": by_caption(measures.noto(images) == asked_for_noto(rows).repeat(repeat), repeat),
        "held_out_recognised": by_caption(measures.recognised(images, rows * repeat), repeat),
        "plain_noto": by_caption(measures.noto(unasked), repeat),
        "plain_recognised": by_caption(measures.recognised(unasked, rows * repeat), repeat),
    }
    if of_train:
        chosen = spread(emoji_rows("train"), of_train)
        captions = [row.text for row in chosen]
        drawn = draw(captions)
        figures |= {"train_fid": measures.fid(drawn), "train_clip": measures.clip_of(drawn, captions)}
        shares["train_recognised"] = by_caption(measures.recognised(drawn, chosen), 1)
        shares["train_style"] = by_caption(measures.noto(drawn) == asked_for_noto(chosen), 1)
    figures = {name: round(value, 4) for name, value in figures.items()}
    for name, values in shares.items():
        figures[name], figures[f"{name}_error"] = mean_and_error(values)
    return Measured(figures, shares, images[: len(rows)])


def over(first: Measured, later: Measured) -> dict[str, float]:
    """By how much the shares of `later` are above those of `first`, paired by caption, with standard errors."""
    found = {}
    for name, values in later.shares.items():
        found[f"{name}_over_first"], found[f"{name}_over_first_error"] = mean_and_error(values - first.shares[name])
    return found


def drawer(model: Denoiser, guidance: float | None, steps: int | None, sampler: str | None, seed: int) -> Any:
    def draw(prompts: list[str]) -> Tensor:
        wishes: dict[str, Any] = {"prompts": prompts, "guidance_scale": guidance, "steps": steps, "sampler": sampler}
        return torch.cat([part for part, _ in generate(model, num_images=len(prompts), seed=seed, **wishes)])

    return draw


def data_figures(measures: Measures) -> dict[str, float]:
    """What real images of the held-out captions score: as good as it gets."""
    held = load_images("builtin:emoji", split="held_out")
    rows = emoji_rows("held_out")
    asked = torch.tensor([row.style == "noto" for row in rows])
    found = {
        "held_out_clip": measures.clip_of(held.images, [row.text for row in rows]),
        "held_out_style": float((measures.noto(held.images) == asked).float().mean()),
        "held_out_twins": measures.twins(),
    }
    return {name: round(value, 4) for name, value in found.items()}


def short(name: str) -> str:
    """`builtin:emoji_teacher` -> `emoji_teacher`, `runs/emoji_one_step/student` -> `emoji_one_step`."""
    path = Path(name.rpartition(":")[2])
    return path.parent.name if path.name in ("student", "model") else path.name


def grid(images: Tensor, place: Path) -> None:
    """The first 40 held-out captions."""
    captions = [f"{row.style}: {row.plain.removeprefix('an emoji of ')}" for row in emoji_rows("held_out")]
    image_grid(images[:40], 10, captions[:40]).save(place)


def side_by_side(drawn: dict[str, Tensor], place: Path) -> None:
    """A row a model, evenly spaced held-out captions; they stand under the real pictures, the names under the rest."""
    texts = [row.text for row in emoji_rows("held_out")]
    chosen = spread(range(len(texts)), 12)
    pictures = torch.stack([images[i] for images in drawn.values() for i in chosen])
    captions = [texts[i] if name == "real" else name for name in drawn for i in chosen]
    image_grid(pictures, len(chosen), captions).save(place)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="+", metavar="MODEL")
    parser.add_argument("--guidance", type=float, nargs="+", default=[None])
    parser.add_argument("--steps", type=int)
    parser.add_argument("--sampler")
    parser.add_argument("--train", type=int, default=1000, help="images for the FID; 0: no FID")
    parser.add_argument("--repeat", type=int, default=1, help="images for each prompt, held out and plain")
    parser.add_argument("--seed", type=int, default=SEED, help="of the images' noise")
    parser.add_argument("--out", type=Path, required=True, help="JSON; the grids lie beside it")
    args = parser.parse_args()
    torch.set_num_threads(1)
    measures = Measures()
    results: list[dict[str, Any]] = [{"model": "the data itself", **data_figures(measures)}]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    first: Measured | None = None
    drawn = {"real": load_images("builtin:emoji", split="held_out").images}
    for name in args.model:
        model = Denoiser.from_pretrained(name)
        student = bool(model.levels)
        for guidance in [None] if student else args.guidance:
            steps, sampler = (None, None) if student else (args.steps, args.sampler)
            found = measure(drawer(model, guidance, steps, sampler, args.seed), measures, args.train, args.repeat)
            figures = found.figures | (over(first, found) if first else {})
            first = first or found
            results.append({"model": name, "guidance": guidance, "steps": steps, **figures})
            print(json.dumps(results[-1]), flush=True)
            title = short(name) if guidance is None else f"{short(name)}-{guidance:g}"
            drawn[title] = found.images
            grid(found.images, args.out.with_name(f"{args.out.stem}-{title}.png"))
            side_by_side(drawn, args.out.with_suffix(".png"))
            protocol = {"seed": args.seed, "train": args.train, "repeat": args.repeat}
            args.out.write_text(json.dumps(protocol | {"results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
