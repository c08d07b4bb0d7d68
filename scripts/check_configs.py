"""Run every file in configs/ for two steps.

A config whose teacher or data are not on this machine gets a tiny stand-in: an untrained network of the same shape and
classes, and random images; for pipelines, an untrained one of the same kind, and random pairs or captioned images.
Everything else, the method, the levels, the optimisers, is the file's own. Configs of pipelines are passed over
without the extra `text`.

    python scripts/check_configs.py [FILE ...]
"""

import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DModel

from diffdistill.cli import main
from diffdistill.config import load_config
from diffdistill.config.align import Align
from diffdistill.config.schema import Distill, Run, Train
from diffdistill.denoiser import Denoiser
from diffdistill.errors import DiffDistillError
from diffdistill.models.folder import locate
from diffdistill.process import EDM

SETTINGS: dict[str, type[Run]] = {"distill": Distill, "train": Train, "align": Align}
CONFIGS = Path(__file__).resolve().parents[1] / "configs"
TWO_STEPS = [
    "max_train_steps=2",
    "train_batch_size=4",
    "log_every=1",
    "sample_every=0",
    "evaluation.at_end=false",
    "evaluation.every=0",
]


def verb_of(file: Path) -> str:
    """Configs with a teacher distil, with a network train, with a model align."""
    for verb, model in SETTINGS.items():
        try:
            load_config(model, file)
            return verb
        except DiffDistillError as error:
            problem = error
    raise SystemExit(f"{file} is a config of no verb: {problem}")


def is_here(model: str) -> bool:
    """Whether a teacher is on this machine; never asks the network."""
    return (model.startswith("builtin:") or Path(model).is_dir()) and bool(locate(model))


def stand_in(folder: Path, shape: tuple[int, int, int], classes: int) -> list[str]:
    """A tiny teacher and eight images a class; the overrides that put them in place."""
    channels, size, _ = shape
    network = UNet2DModel(
        sample_size=size, in_channels=channels, out_channels=channels, layers_per_block=1, block_out_channels=(8, 16),
        norm_num_groups=4, attention_head_dim=8, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), num_class_embeds=classes + 1,
    )  # fmt: skip
    Denoiser(network, EDM(), null_class=classes).save_pretrained(folder / "teacher", role="teacher")
    images = np.random.default_rng(0).integers(0, 256, (8 * classes, size, size, channels), dtype=np.uint8)
    np.savez(folder / "images.npz", images=images, labels=np.arange(8 * classes) % classes)
    return [f"teacher={folder / 'teacher'}", f"data.path={folder / 'images.npz'}"]


def tiny_pipelines() -> Any:
    """The tests' tiny pipelines."""
    sys.path.append(str(CONFIGS.parent / "tests"))
    import tiny_text  # type: ignore[import-not-found]

    return tiny_text


def tiny_pipeline(folder: Path, name: str) -> Path:
    """An untrained pipeline of the kind that `name` holds; transformers with as many blocks as the taps ask for."""
    tiny = tiny_pipelines()
    if "sd3" in name:
        return tiny.stable_diffusion_3(folder, layers=13)
    kinds = {"sdxl": tiny.stable_diffusion_xl, "flux": tiny.flux}
    return next((kinds[kind] for kind in kinds if kind in name), tiny.stable_diffusion)(folder)


def pairs_stand_in(folder: Path, name: str) -> list[str]:
    """A pipeline and pairs for it."""
    pairs = tiny_pipelines().pair_folder(folder / "pairs")
    return [f"model={tiny_pipeline(folder / 'pipeline', name)}", f"data.path={pairs}", "data.image_size=null"]


def text_stand_in(folder: Path, name: str, config: Distill) -> list[str]:
    """A pipeline, captioned images or prompts for it, and a reward where the config has one."""
    (folder / "prompts.txt").write_text("a thing\nanother thing\n")
    (folder / "reward.py").write_text("def bright(images, prompts):\n    return images.flatten(1).mean(1)\n")
    images = tiny_pipelines().captioned_folder(folder / "images")
    data = f"data.path={images}" if config.data.prompts is None else f"data.prompts={folder / 'prompts.txt'}"
    reward = getattr(config.method, "reward", None)
    rewards = [] if reward is None else [f"method.reward.name={folder / 'reward.py'}:bright"]
    more = [] if config.student.regression is None else ["student.regression.steps=1", "student.regression.pairs=4"]
    return [
        f"teacher={tiny_pipeline(folder / 'pipeline', name)}",
        data,
        "data.image_size=16",
        "train_batch_size=2",
        *rewards,
        *more,
    ]


def draws_texts(file: Path) -> bool:
    return file.parent.name in TEXT_FOLDERS


def runs_here(file: Path, verb: str) -> bool:
    """Whether what the config needs is installed."""
    draws = draws_texts(file) or file.parent.name == "emoji"
    needed = ["transformers", "peft"] if verb == "align" else ["transformers"] if draws else []
    return all(map(find_spec, needed))


# Folders of recipes whose teachers are text-to-image pipelines, and not shipped.
TEXT_FOLDERS = ("sd15", "sdxl", "sd3", "flux")
# Sets that the recipes are written for and that are not shipped: image shape and number of classes.
ABSENT: dict[str, tuple[tuple[int, int, int], int]] = {"cifar10": ((3, 32, 32), 10), "imagenet64": ((3, 64, 64), 20)}


def overrides_of(file: Path, verb: str, folder: Path) -> list[str]:
    config: Any = load_config(SETTINGS[verb], file).config
    if verb == "align":
        return [] if is_here(config.model) else pairs_stand_in(folder, file.stem)
    if verb == "distill" and draws_texts(file):
        return text_stand_in(folder, file.parent.name, config)
    absent = next((shape for name, shape in ABSENT.items() if name in str(file)), None)
    if absent is None or (verb == "distill" and is_here(config.teacher) and Path(config.data.path).exists()):
        return []
    made = stand_in(folder, *absent)
    return made if verb == "distill" else made[1:]


def check(file: Path) -> None:
    verb = verb_of(file)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = [
            verb,
            str(file),
            f"output_dir={folder / 'run'}",
            *TWO_STEPS,
            *overrides_of(file, verb, folder),
            "--quiet",
        ]
        code = main(words)
        if code:
            raise SystemExit(f"{file}: diffdistill {verb} exited with {code}")
        if not (folder / "run" / ("student" if verb == "distill" else "model") / "model_index.json").is_file():
            raise SystemExit(f"{file}: no model was written")


if __name__ == "__main__":
    torch.set_num_threads(1)  # two steps of tiny batches: more threads only wait for each other
    files = [Path(name) for name in sys.argv[1:]] or sorted(CONFIGS.rglob("*.yaml"))
    for config_file in files:
        if runs_here(config_file, verb_of(config_file)):
            check(config_file)
            print(f"ok {config_file}", flush=True)
        else:
            print(f"passed over {config_file}: pip install 'diffdistill[text]'", flush=True)
