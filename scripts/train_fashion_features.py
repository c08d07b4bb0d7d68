"""Train the bundled Fashion-MNIST classifier whose features measure FID: minutes on one CPU thread.

    python scripts/train_fashion_features.py --out assets/fashion_mnist_features

Writes `model.safetensors`, `config.json` (id, SHA-256, test accuracy, settings), `training.jsonl` (a line an epoch).
"""

import argparse
import hashlib
import json
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from diffdistill.data import load_images
from diffdistill.evaluation.extractors.fashion_net import FashionNet

CHANNELS, DIM, BATCH, PEAK_RATE, WEIGHT_DECAY, SHIFT = (24, 48, 96), 128, 128, 4e-3, 1e-2, 2


def read(split: str) -> tuple[Tensor, Tensor]:
    data = load_images("builtin:fashion_mnist", split=split)
    assert data.labels is not None
    return data.images, data.labels


def scaled(images: Tensor) -> Tensor:
    """uint8 `(N, 1, 28, 28)` -> [-1, 1]."""
    return images.float() / 127.5 - 1


def augmented(images: Tensor) -> Tensor:
    """Mirror half of the images, and shift the batch by up to two pixels."""
    mirrored = torch.rand(len(images)) < 0.5
    images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
    top, left = torch.randint(0, 2 * SHIFT + 1, (2,)).tolist()
    return F.pad(images, (SHIFT,) * 4, value=-1)[..., top : top + 28, left : left + 28]


@torch.no_grad()
def accuracy(net: FashionNet, images: Tensor, labels: Tensor) -> float:
    net.eval()
    right = sum(
        (net(scaled(x)).argmax(1) == y).sum().item() for x, y in zip(images.split(500), labels.split(500), strict=True)
    )
    net.train()
    return right / len(labels)


@torch.no_grad()
def fix_unit(net: FashionNet, images: Tensor) -> None:
    """Scale the features by one constant so that their mean variance over the training set is 1.

    ReLU is positively homogeneous, so the inverse factor in the head leaves every logit as it was.
    """
    net.eval()
    features = torch.cat([net.features(scaled(x)) for x in images.split(500)])
    scale = features.double().var(0).mean().sqrt().float()
    net.embed.weight.div_(scale)
    net.embed.bias.div_(scale)
    net.head.weight.mul_(scale)


def train(epochs: int, seed: int) -> tuple[FashionNet, list[dict], float]:
    torch.manual_seed(seed)
    images, labels = read("train")
    test_images, test_labels = read("test")
    net = FashionNet(CHANNELS, DIM)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(net.parameters(), lr=PEAK_RATE, weight_decay=WEIGHT_DECAY)
    steps = epochs * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=steps)
    log, start = [], time.time()
    for epoch in range(epochs):
        total = 0.0
        batches = torch.randperm(len(images))[: steps // epochs * BATCH].split(BATCH)
        for index in batches:
            loss = F.cross_entropy(net(augmented(scaled(images[index]))), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        right = accuracy(net, test_images, test_labels)
        seconds = round(time.time() - start, 1)
        log.append({"epoch": epoch + 1, "loss": total / len(batches), "test_accuracy": right, "seconds": seconds})
        print(json.dumps(log[-1]), flush=True)
    fix_unit(net, images)
    return net, log, accuracy(net, test_images, test_labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("assets/fashion_mnist_features"))
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    net, log, test_accuracy = train(args.epochs, args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    weights = args.out / "model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in net.state_dict().items()}, weights)
    config = {
        "id": "fashion_mnist",
        "architecture": "FashionNet",
        "channels": CHANNELS,
        "dim": DIM,
        "image_size": 28,
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "test_accuracy": test_accuracy,
        "training": {
            "data": "builtin:fashion_mnist",
            "epochs": args.epochs,
            "batch_size": BATCH,
            "learning_rate": PEAK_RATE,
            "weight_decay": WEIGHT_DECAY,
            "seed": args.seed,
            "torch": torch.__version__,
        },
    }
    (args.out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (args.out / "training.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))


if __name__ == "__main__":
    main()
