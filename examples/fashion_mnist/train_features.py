"""Train a small classifier of your own labelled images whose features measure FID: minutes on one CPU thread.

    python examples/fashion_mnist/train_features.py --out assets/fashion_mnist_features      the bundled one
    python examples/fashion_mnist/train_features.py DATA --out runs/my_features --convs 2    for --features

DATA is what every verb reads, with class labels. Writes `model.safetensors`, `config.json` (SHA-256, accuracy on
images that were not trained on, settings), `training.jsonl` (a line an epoch). Those images are the split `test` where
DATA has one, else every tenth image. Features of other weights give other FIDs: compare within one SHA-256 only.
"""

import argparse
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from diffdistill.data import ImageSet, load_images
from diffdistill.errors import DataError
from diffdistill.models.conv_net import ConvNet

BATCH, PEAK_RATE, WEIGHT_DECAY, SHIFT = 128, 4e-3, 1e-2, 2
Labelled = tuple[Tensor, Tensor]


def read(data: str) -> tuple[Labelled, Labelled]:
    """Images and labels to train on, and those to test on."""
    images, labels = labelled(load_images(data), data)
    try:
        return (images, labels), labelled(load_images(data, split="test"), data)
    except DataError:
        tenth = torch.arange(len(images)) % 10 == 9
        return (images[~tenth], labels[~tenth]), (images[tenth], labels[tenth])


def labelled(found: ImageSet, data: str) -> Labelled:
    if found.labels is None:
        raise SystemExit(f"{data} has no class labels, and a classifier needs them")
    return found.images, found.labels


def scaled(images: Tensor) -> Tensor:
    """uint8 -> [-1, 1]."""
    return images.float() / 127.5 - 1


def augmented(images: Tensor, mirror: bool) -> Tensor:
    """Mirror half of the images, and shift the batch by up to two pixels."""
    if mirror:
        mirrored = torch.rand(len(images)) < 0.5
        images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
    side = images.shape[-1]
    top, left = torch.randint(0, 2 * SHIFT + 1, (2,)).tolist()
    return F.pad(images, (SHIFT,) * 4, value=-1)[..., top : top + side, left : left + side]


@torch.no_grad()
def accuracy(net: ConvNet, images: Tensor, labels: Tensor) -> float:
    net.eval()
    right = sum(
        (net(scaled(x)).argmax(1) == y).sum().item() for x, y in zip(images.split(500), labels.split(500), strict=True)
    )
    net.train()
    return right / len(labels)


@torch.no_grad()
def fix_unit(net: ConvNet, images: Tensor) -> None:
    """Scale the features by one constant so that their mean variance over the training set is 1.

    ReLU is positively homogeneous, so the inverse factor in the head leaves every logit as it was.
    """
    net.eval()
    features = torch.cat([net.features(scaled(x)) for x in images.split(500)])
    scale = features.double().var(0).mean().sqrt().float()
    net.embed.weight.div_(scale)
    net.embed.bias.div_(scale)
    net.head.weight.mul_(scale)


def train(
    shape: dict[str, Any], training: Labelled, test: Labelled, epochs: int, seed: int, mirror: bool
) -> tuple[ConvNet, list[dict[str, float]]]:
    torch.manual_seed(seed)
    images, labels = training
    net = ConvNet(**shape)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(net.parameters(), lr=PEAK_RATE, weight_decay=WEIGHT_DECAY)
    steps = epochs * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=steps)
    log, start = [], time.time()
    for epoch in range(epochs):
        total = 0.0
        batches = torch.randperm(len(images))[: steps // epochs * BATCH].split(BATCH)
        for index in batches:
            loss = F.cross_entropy(net(augmented(scaled(images[index]), mirror)), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        seconds = round(time.time() - start, 1)
        right = accuracy(net, *test)
        log.append({"epoch": epoch + 1, "loss": total / len(batches), "test_accuracy": right, "seconds": seconds})
        print(json.dumps(log[-1]), flush=True)
    fix_unit(net, images)
    return net, log


def save(
    out: Path, net: ConvNet, shape: dict[str, Any], settings: dict[str, Any], log: list[dict[str, float]]
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    weights = out / "model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in net.state_dict().items()}, weights)
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    config = {"id": out.name.removesuffix("_features"), "architecture": "ConvNet", **shape, "sha256": digest}
    config |= {"test_accuracy": log[-1]["test_accuracy"], "training": settings}
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (out / "training.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", default="builtin:fashion_mnist")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--channels", type=int, nargs="+", default=[24, 48, 96], help="of each block")
    parser.add_argument("--convs", type=int, default=1, help="convolutions in a block")
    parser.add_argument("--dim", type=int, default=128, help="number of features")
    parser.add_argument("--no-mirror", action="store_true", help="left and right differ, as in digits")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    training, test = read(args.data)
    shape = {
        "channels": args.channels,
        "dim": args.dim,
        "image_channels": training[0].shape[1],
        "image_size": training[0].shape[-1],
        "num_classes": int(training[1].max()) + 1,
        "convs_per_block": args.convs,
    }
    settings = {
        "data": args.data if args.data.startswith("builtin:") else Path(args.data).name,
        "images": len(training[0]),
        "epochs": args.epochs,
        "batch_size": BATCH,
        "learning_rate": PEAK_RATE,
        "weight_decay": WEIGHT_DECAY,
        "mirror": not args.no_mirror,
        "seed": args.seed,
        "torch": torch.__version__,
    }
    net, log = train(shape, training, test, args.epochs, args.seed, not args.no_mirror)
    save(args.out, net, shape, settings, log)


if __name__ == "__main__":
    main()
