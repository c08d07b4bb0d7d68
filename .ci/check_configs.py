"""Run every file in configs/ for two steps, on a network of its own teacher's class.

A recipe whose teacher or data are not shipped gets small ones: an untrained network of the same class and layout, made
narrow, as `convert` would have made it or as the stock pipeline holds it, and random images, pairs or captions.
Everything else, the method, its layers, the levels, the optimisers, is the file's own; one that cuts its batches into
parts runs in two. Where a network is not tiny, bf16 is left to CPUs that have it. The network that was trained must be
of the class that the recipe is for. Recipes of pipelines are passed over without the extra `text`.

    python .ci/check_configs.py [FILE ...]
"""

import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from diffdistill.cli import main
from diffdistill.config import load_config
from diffdistill.config.align import Align
from diffdistill.config.schema import Distill, Run, Train
from diffdistill.errors import DiffDistillError
from diffdistill.models import DhariwalUNet, SongUNet
from diffdistill.parts.edm.convert import Source, build

SETTINGS: dict[str, type[Run]] = {"distill": Distill, "train": Train, "align": Align}
CONFIGS = Path(__file__).resolve().parents[1] / "configs"
STEPS, BATCH, PART = 2, 4, 2
SMALL = [
    f"train_batch_size={BATCH}",
    "num_threads=1",
    "log_every=1",
    "sample_every=0",
    "evaluation.at_end=false",
    "evaluation.every=0",
]

# EDM's public networks in EDM's words (2206.00364, the appendix on network architectures), a sixteenth (CIFAR-10) or a
# twelfth (ImageNet-64) as wide: the latter has heads of 64 channels, and so attention at its lowest resolution only.
DDPMPP: dict[str, Any] = {
    "class_name": "training.networks.EDMPrecond", "model_type": "SongUNet", "embedding_type": "positional",
    "encoder_type": "standard", "decoder_type": "standard", "channel_mult_noise": 1, "resample_filter": [1, 1],
    "model_channels": 8, "channel_mult": [2, 2, 2], "dropout": 0.13,
}  # fmt: skip
ADM: dict[str, Any] = {
    "class_name": "training.networks.EDMPrecond", "model_type": "DhariwalUNet", "model_channels": 16,
    "channel_mult": [1, 2, 3, 4], "dropout": 0.10,
}  # fmt: skip


def edm_cifar10(folder: Path) -> Path:
    size: dict[str, Any] = {name: DDPMPP[name] for name in ("model_channels", "channel_mult")}
    return converted(folder, DDPMPP, SongUNet(sample_size=32, label_dim=10, augment_dim=9, **size))


def edm_imagenet64(folder: Path) -> Path:
    size: dict[str, Any] = {name: ADM[name] for name in ("model_channels", "channel_mult")}
    return converted(folder, ADM, DhariwalUNet(sample_size=64, label_dim=1000, **size))


def converted(folder: Path, description: dict[str, Any], network: nn.Module) -> Path:
    """The folder that `convert` writes of such a file. Its weights are random throughout: as EDM starts them, the
    residual branches say nothing, and with or without dropout the network would be the same.
    """
    torch.manual_seed(0)
    tensors = {
        f"model.{name}": value if value.ndim < 2 else torch.randn_like(value) / value[0].numel() ** 0.5
        for name, value in network.state_dict().items()
    }
    build(Source(description, tensors)).save_pretrained(folder, role="teacher")
    return folder


def tiny_pipelines() -> Any:
    """The tests' tiny pipelines."""
    sys.path.append(str(CONFIGS.parent / "tests" / "worlds"))
    import tiny_text  # type: ignore[import-not-found]

    return tiny_text


@dataclass(frozen=True)
class Teacher:
    """What a recipe starts from: the class of its network; how a small one is made, if it is not shipped; its images,
    `(shape, classes)`, if it draws no texts.
    """

    network: str
    make: Callable[[Path], Path] | None = None
    images: tuple[tuple[int, int, int], int] | None = None


TEACHERS = {
    "builtin:fashion_mnist_teacher": Teacher("UNet2DModel"),
    "builtin:emoji_teacher": Teacher("UNet2DConditionModel"),
    "models/edm-cifar10-32x32-cond-vp": Teacher("SongUNet", edm_cifar10, ((32, 32, 3), 10)),
    "models/edm-imagenet-64x64-cond-adm": Teacher("DhariwalUNet", edm_imagenet64, ((64, 64, 3), 1000)),
    "stable-diffusion-v1-5/stable-diffusion-v1-5": Teacher(
        "UNet2DConditionModel", lambda folder: tiny_pipelines().stable_diffusion(folder)
    ),
    "stabilityai/stable-diffusion-xl-base-1.0": Teacher(
        "UNet2DConditionModel", lambda folder: tiny_pipelines().stable_diffusion_xl(folder)
    ),
    "stabilityai/stable-diffusion-3-medium-diffusers": Teacher(
        "SD3Transformer2DModel", lambda folder: tiny_pipelines().stable_diffusion_3(folder, layers=13)
    ),
    "black-forest-labs/FLUX.1-dev": Teacher("FluxTransformer2DModel", lambda folder: tiny_pipelines().flux(folder)),
}
TRAINED = Teacher("UNet2DModel", images=((32, 32, 3), 10))  # of `train`: a network from scratch


def verb_of(file: Path) -> str:
    """Configs with a teacher distil, with a network train, with a model align."""
    for verb, model in SETTINGS.items():
        try:
            load_config(model, file)
            return verb
        except DiffDistillError as error:
            problem = error
    raise SystemExit(f"{file} is a config of no verb: {problem}")


START = {"distill": "teacher", "align": "model", "train": "initialize_from"}  # the setting that names it


def start_of(verb: str, config: Any) -> str | None:
    """The name of the model that a recipe starts from; None: from scratch."""
    return getattr(config, START[verb])


def teacher_of(file: Path, verb: str, config: Any) -> Teacher:
    name = start_of(verb, config)
    if name is None:
        return TRAINED
    if name not in TEACHERS:
        raise SystemExit(f"{file} starts from '{name}', and of that no small one is known; add it to TEACHERS")
    return TEACHERS[name]


def runs_here(verb: str, config: Any) -> bool:
    """Whether what the recipe needs is installed."""
    name = start_of(verb, config)
    draws = name is not None and name != "builtin:fashion_mnist_teacher" and not name.startswith("models/edm")
    return all(map(find_spec, ["transformers", "peft"] if verb == "align" else ["transformers"] if draws else []))


def image_set(folder: Path, shape: tuple[int, int, int], classes: int, whole: bool) -> str:
    """Random images, of labels spread over all classes; whole: at least one of each."""
    count = max(80, classes) if whole else 80
    images = np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)
    np.savez(folder / "images.npz", images=images, labels=np.arange(count) * (classes - 1) // (count - 1))
    return f"data.path={folder / 'images.npz'}"


def texts(folder: Path, config: Distill) -> list[str]:
    """Captioned images or prompts, and a reward where the recipe has one."""
    (folder / "prompts.txt").write_text("a thing\nanother thing\n")
    (folder / "reward.py").write_text("def bright(images, prompts):\n    return images.flatten(1).mean(1)\n")
    images = tiny_pipelines().captioned_folder(folder / "images")
    data = f"data.path={images}" if config.data.prompts is None else f"data.prompts={folder / 'prompts.txt'}"
    reward = getattr(config.method, "reward", None)
    return [data, "data.image_size=16", *([] if reward is None else [f"method.reward.name={folder}/reward.py:bright"])]


def overrides_of(verb: str, config: Any, teacher: Teacher, folder: Path) -> list[str]:
    """What puts the small teacher and the small data in place, and makes the run short."""
    words = [*SMALL, f"output_dir={folder / 'run'}"]
    steps = STEPS
    if verb == "train" and config.objective.in_rounds:  # is chosen by what is measured
        words += ["evaluation.every=1", "evaluation.num_images=4", "evaluation.features=pixels", "evaluation.steps=2"]
        words += [f"objective.round_steps={STEPS}", f"objective.reference_images={BATCH}"]
        words += ["objective.reference_steps=2", "evaluation.metrics=[fid]"]
    if verb != "train" and config.micro_batch_size is not None:
        words.append(f"micro_batch_size={PART}")
    if verb == "train" and config.objective.name == "raft":
        words += [f"objective.images={BATCH}", "objective.candidates=2", "objective.steps=2"]
    for section in ("method", "objective"):
        if getattr(getattr(config, section, None), "intervals", None) is not None:
            words.append(f"{section}.intervals=[2,4]")  # a stage a step
    if verb == "distill" and config.student.regression is not None and config.matching is not None:
        steps += 1  # a step of regression, and then as many as the others
        words += ["student.regression.steps=1", "student.regression.pairs=4"]
    exact = verb == "train" and config.exact
    if (teacher.make is None or teacher.images is not None) and not exact:  # no tiny pipeline
        words.append("mixed_precision=auto")  # at this size bf16 takes minutes on CPUs without it
    words.append(f"max_train_steps={steps}")
    if teacher.make is not None:
        words.append(f"{START[verb]}={teacher.make(folder / 'teacher')}")
    if teacher.images is not None and not config.data.path.startswith("builtin:"):
        words.append(image_set(folder, *teacher.images, whole=verb == "train" and config.objective.name == "ddo"))
    elif teacher.make is not None and verb == "align":
        words += [f"data.path={tiny_pipelines().pair_folder(folder / 'pairs')}", "data.image_size=null"]
    elif teacher.make is not None:
        words += texts(folder, config)
    else:
        words.append("data.limit=64")
    return words


def network_in(folder: Path) -> str:
    """The class of the network in a pipeline's folder."""
    index = json.loads((folder / "model_index.json").read_text())
    part = next(name for name in ("unet", "transformer") if name in index)
    return json.loads((folder / part / "config.json").read_text())["_class_name"]


def check(file: Path) -> str:
    """Run a recipe; its line of the table. SystemExit, with a sentence, if something is wrong with it."""
    start, verb = time.process_time(), verb_of(file)
    config: Any = load_config(SETTINGS[verb], file).config
    name, teacher = file.relative_to(CONFIGS) if file.is_relative_to(CONFIGS) else file, teacher_of(file, verb, config)
    if not runs_here(verb, config):
        return f"{name!s:38} {verb:8} passed over: pip install 'diffdistill[text]'"
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        words = overrides_of(verb, config, teacher, folder)
        code = main([verb, str(file), *words, "--quiet", "--allow-code"])
        if code:
            raise SystemExit(f"{file}: diffdistill {verb} exited with {code}")
        model = folder / "run" / ("student" if verb == "distill" else "model")
        if not (model / "model_index.json").is_file():
            raise SystemExit(f"{file}: no model was written")
        found = network_in(model)
        if found != teacher.network:
            raise SystemExit(f"{file} is for a {teacher.network}, and a {found} was trained")
    parts = BATCH // PART if f"micro_batch_size={PART}" in words else 1
    return f"{name!s:38} {verb:8} {found:24} {parts:5} {time.process_time() - start:8.1f}"


def prepare() -> None:
    torch.set_num_threads(1)  # two steps of tiny batches: more threads only wait for each other


def run(files: list[Path]) -> None:
    """Check them, as many at once as there are cores; the table, a line as each is done."""
    print(f"{'recipe':38} {'verb':8} {'network':24} {'parts':>5} {'CPU s':>8}", flush=True)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=spawn, initializer=prepare) as pool:
        for line in pool.map(check, files):
            print(line, flush=True)


if __name__ == "__main__":
    run([Path(name).resolve() for name in sys.argv[1:]] or sorted(CONFIGS.rglob("*.yaml")))
