"""Command lines of runs that take a second, and images for them."""

import numpy as np
from PIL import Image

TINY = [
    "max_train_steps=2", "train_batch_size=4", "log_every=1", "sample_every=0", "evaluation.features=pixels",
    "evaluation.num_images=12", "evaluation.metrics=[fid]", "num_threads=1",
]  # fmt: skip
NETWORK = ["network.block_out_channels=[8,16]", "network.norm_num_groups=4", "network.attention_head_dim=8"]
COUNT, CLASSES, SIZE = 24, 3, 8


def pictures(channels):
    shape = (COUNT, SIZE, SIZE) if channels == 1 else (COUNT, SIZE, SIZE, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8), np.arange(COUNT) % CLASSES


def png_folder(folder):
    images, labels = pictures(3)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        (folder / f"class{label}").mkdir(exist_ok=True, parents=True)
        Image.fromarray(image).save(folder / f"class{label}" / f"{i}.png")
    return folder, 3
