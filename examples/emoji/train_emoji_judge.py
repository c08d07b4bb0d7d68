"""Train the judge of the emoji world, whose features also measure FID (`--features emoji`); minutes on a core.

    OMP_NUM_THREADS=1 python examples/emoji/train_emoji_judge.py --out assets/emoji_features

A convolution network that shares nothing with the CLIP. It learns style, category and, so that its features tell
images apart and not only kinds, the concept (a head that is not kept), on the split `train`.
"""

import argparse
from pathlib import Path

import torch
from emoji_data import STYLES, emoji_rows
from emoji_training import Log, images_of, moved, rate, set_rate, sha256, write_json
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from diffdistill.evaluation.extractors.bundled import CATEGORIES, EmojiNet

CHANNELS, DIM, PEAK_RATE, WARMUP, WEIGHT_DECAY, NOISE, BLUR = (32, 64, 128), 128, 3e-3, 100, 1e-2, 0.15, 0.8


def labels_of(split: str) -> tuple[Tensor, Tensor, Tensor]:
    """Category, style and concept of each image, int64."""
    rows = emoji_rows(split)
    concepts = {code: place for place, code in enumerate(dict.fromkeys(row.codepoint for row in rows))}
    values = [(CATEGORIES.index(row.category), STYLES.index(row.style), concepts[row.codepoint]) for row in rows]
    category, style, concept = torch.tensor(values).unbind(1)
    return category, style, concept


def blurred(x: Tensor) -> Tensor:
    """Each image mixed with its mean over 3x3 pixels, by a random part up to `BLUR`."""
    smooth = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return torch.lerp(x, smooth, BLUR * torch.rand(len(x), 1, 1, 1))


def seen(images: Tensor) -> Tensor:
    """uint8 -> moved, half of them blurred, with noise of a random strength; mirrored too, which changes no label."""
    x = moved(images.float() / 127.5 - 1)
    x = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(-1), x)
    x = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, blurred(x), x)
    return x + NOISE * torch.rand(len(x), 1, 1, 1) * torch.randn_like(x)


@torch.no_grad()
def accuracies(net: EmojiNet, split: str) -> dict[str, float]:
    net.eval()
    images, (category, style, _) = images_of(split), labels_of(split)
    kinds, styles = net.logits(images.float() / 127.5 - 1)
    net.train()
    right = {"category": kinds.argmax(1) == category, "style": styles.argmax(1) == style}
    return {f"{split}_{name}": float(found.float().mean()) for name, found in right.items()}


@torch.no_grad()
def fix_unit(net: EmojiNet, images: Tensor) -> None:
    """Scale the features so that their mean variance over `train` is 1; the heads undo it, for ReLU is homogeneous."""
    net.eval()
    features = torch.cat([net.features(x.float() / 127.5 - 1) for x in images.split(500)])
    scale = features.double().var(0).mean().sqrt().float()
    net.embed.weight.div_(scale)
    net.embed.bias.div_(scale)
    net.head.weight.mul_(scale)
    net.style.weight.mul_(scale)


def train(steps: int, batch: int, seed: int, log: Log) -> EmojiNet:
    torch.manual_seed(seed)
    images, (category, style, concept) = images_of("train"), labels_of("train")
    net, which = EmojiNet(CHANNELS, DIM), nn.Linear(DIM, int(concept.max()) + 1)
    parameters = [*net.parameters(), *which.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=PEAK_RATE, weight_decay=WEIGHT_DECAY)
    for step in range(steps):
        set_rate(optimizer, rate(step, steps, PEAK_RATE, WARMUP))
        index = torch.randint(len(images), (batch,))
        with torch.autocast("cpu", torch.bfloat16):
            found = F.dropout(torch.relu(net.features(seen(images[index]))), 0.2)
            logits = [head(found).float() for head in (net.head, net.style, which)]
        wanted = (category[index], style[index], concept[index])
        losses = [F.cross_entropy(*pair) for pair in zip(logits, wanted, strict=True)]
        optimizer.zero_grad()
        (losses[0] + losses[1] + 0.5 * losses[2]).backward()
        optimizer.step()
        if (step + 1) % 200 == 0:
            names = ("category_loss", "style_loss", "concept_loss")
            values = dict(zip(names, (loss.item() for loss in losses), strict=True))
            log(step=step + 1, **values, **accuracies(net, "test"))
    fix_unit(net, images)
    return net


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("assets/emoji_features"))
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    log = Log(args.out / "training.jsonl")
    net = train(args.steps, args.batch, args.seed, log)
    results = accuracies(net, "held_out") | accuracies(net, "test")
    log(**results)
    weights = args.out / "model.safetensors"
    net.half()  # half the room; read back into float32
    save_file({name: tensor.contiguous() for name, tensor in net.state_dict().items()}, weights)
    shape = {"id": "emoji", "architecture": "EmojiNet", "channels": CHANNELS, "dim": DIM}
    shape |= {"image_channels": 3, "image_size": 32}
    settings = {key: value for key, value in vars(args).items() if key != "out"}
    write_json(args.out / "config.json", shape | {"sha256": sha256(weights), **results, "training": settings})


if __name__ == "__main__":
    main()
