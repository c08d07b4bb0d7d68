"""Two models as two halves: were they trained on disjoint images, and do they agree on held-out ones?"""

import hashlib
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from diffdistill.data import ImageSet, load_images
from diffdistill.data.pixels import to_model_range
from diffdistill.data.prompts import spread
from diffdistill.data.rows import Images
from diffdistill.denoiser import Denoiser
from diffdistill.errors import ConfigError, DataError
from diffdistill.evaluation.probe import Probe
from diffdistill.evaluation.two_halves import HELD_OUT, LEVELS, SAYS, telling, two_halves

AT_ONCE = 16  # images that are encoded together
MOST_COMPARED = 200_000  # images of a set that are looked at one by one


def compare(probe: Probe) -> dict[str, Any]:
    """The agreement of a probe's two models on images of its reference: the entry of the metric `two_halves`.

    Raises ConfigError for a student, for models of different images and for halves, or held-out images, that overlap.
    """
    first, second, reference = probe.model, probe.other, probe.reference
    if second is None or reference is None or probe.other_name is None:
        raise ConfigError(
            "metric 'two_halves' compares two models on held-out images: give --other-half MODEL and --reference DATA"
        )
    names = (probe.name, probe.other_name)
    if names[0] == names[1]:
        raise ConfigError(
            f"'{names[0]}' is given as both halves: give two models, trained on images of their own each"
        )
    for name, model in zip(names, (first, second), strict=True):
        check_denoises(name, model)
    if first.image_shape != second.image_shape or first.picture_shape != reference.images.shape[1:]:
        shapes = [first.image_shape, second.image_shape, tuple(reference.images.shape[1:])]
        told = ", ".join("x".join(map(str, shape)) for shape in shapes)
        raise ConfigError(f"the two models and the held-out images are of {told} (C x H x W); give what fits together")
    probe.warnings += check_disjoint(dict(zip(names, (first, second), strict=True)), reference)
    places = spread(range(len(reference)), probe.num_images or HELD_OUT)
    parts = (reference.images[places[i : i + AT_ONCE]] for i in range(0, len(places), AT_ONCE))
    images = torch.cat([first.encode(to_model_range(part).to(first.device)) for part in parts])
    rows = min(probe.batch_size, first.network_rows(first.device), second.network_rows(first.device))
    levels = [level for level in LEVELS if within(level, first) and within(level, second)]
    one, other = (with_conditions(model, reference, places) for model in (first, second))
    found = two_halves(one, other, images, levels, seed=probe.seed, batch_size=rows)
    if not (counted := telling(found)):
        raise DataError(
            f"'{probe.name}' and '{probe.other_name}' say less than {SAYS:.0%} of what the held-out images show "
            f"beyond their mean, at every level: there is nothing to agree about; train them longer"
        )
    agreements = [one.agreement for one in counted]
    mean = float(sum(agreements) / len(agreements))
    return {
        "two_halves": mean,
        "two_halves_least": float(min(agreements)),
        "standard_errors": {"two_halves": sum(one.standard_error for one in agreements) / len(agreements)},
        "levels": [
            {
                "sigma": one.sigma, "agreement": float(one.agreement), "standard_error": one.agreement.standard_error,
                "residuals": float(one.residuals), "says": list(one.says),
            }
            for one in found
        ],
        "n": len(places),
    }  # fmt: skip


def check_denoises(name: str, model: Denoiser) -> None:
    """ConfigError for a model that is no denoiser of Gaussian noise, under which the two are compared."""
    if model.noise.heavy:
        raise ConfigError(
            f"'{name}' was trained under Student's t noise (PFGM++), and metric 'two_halves' compares what models say "
            f"under Gaussian noise; give models of noise.law=gaussian"
        )
    if model.role == "student":
        raise ConfigError(
            f"'{name}' is {model.described_as}, which makes images and does not denoise, and metric 'two_halves' "
            f"compares denoisers; give the diffusion models that were trained on the halves"
        )


def within(level: float, model: Denoiser) -> bool:
    return model.sigma_min <= level <= model.sigma_max


def with_conditions(model: Any, reference: ImageSet, places: list[int]) -> Callable[[Tensor, Tensor, slice], Tensor]:
    """A denoiser that is told what each held-out image shows: its label, or its caption, where the model takes one."""
    cond: Tensor | None = None
    model.eval()
    if model.draws_texts:
        if reference.texts is None:
            raise ConfigError(
                f"{reference.name} has no captions, and a model was trained with them: give images with captions"
            )
        cond = model.prompts.ids([reference.texts[place] for place in places])
    elif model.num_classes is not None and reference.labels is not None:
        if int(reference.labels.max()) >= model.num_classes:
            raise ConfigError(
                f"the held-out images have labels up to {int(reference.labels.max())}, and a model knows "
                f"{model.num_classes} classes; give images of its classes"
            )
        cond = model.placed(reference.labels[places])
    elif model.num_classes is not None:
        raise ConfigError(
            f"{reference.name} has no labels, and a model was trained with them: give images with labels"
        )
    return lambda x, sigma, rows: model(x, sigma, None if cond is None else cond[rows])


def check_disjoint(models: dict[str, Denoiser], reference: ImageSet) -> list[str]:
    """Warnings where it is not known; ConfigError where the halves have images in common, or the held-out ones are of
    either.

    What a model was trained on is in its record, and where that is in the settings of its run, if it lies there yet.
    Where the set can still be read and is the same, its images are compared one by one.
    """
    prints = {name: (model.metadata.get("data") or {}).get("fingerprint") for name, model in models.items()}
    (one, first), (other, second) = prints.items()
    if first is not None and first == second:
        raise ConfigError(
            f"'{one}' and '{other}' were trained on the same images: two halves have none in common; train each on "
            f"another half"
        )
    for name, fingerprint in prints.items():
        if fingerprint == reference.fingerprint:
            raise ConfigError(f"'{name}' was trained on {reference.name}: give images that neither half has")
    sets = {name: training_images(model) for name, model in models.items()}
    hashes = {name: hashes_of(images) for name, images in sets.items() if images is not None}
    hashes |= {reference.name: hashes_of(reference.images)} if hashes else {}
    for name, later in combinations(hashes, 2):
        if common := len(hashes[name] & hashes[later]):
            raise ConfigError(
                f"{common} images of '{name}' are of '{later}' too: two halves, and the held-out images, have none in "
                f"common"
            )
    return [
        f"whether '{name}' has images of the other half, or the held-out ones, is not known: what it was trained on "
        f"cannot be read here"
        for name, images in sets.items()
        if images is None
    ]


def training_images(model: Denoiser) -> Images | None:
    """The images that a model was trained on; None where they cannot be found, are others by now, or are very many."""
    record = model.metadata.get("data") or {}
    for settings in (of_run(model.metadata.get("path")), {"path": record.get("path")}):
        named: Any = {key: settings.get(key) for key in ("split", "limit", "image_size")}
        known = {key: value for key, value in named.items() if value is not None}
        try:
            found = load_images(str(settings["path"]), keep="auto", **known)
        except (DataError, KeyError, TypeError):
            continue
        if found.fingerprint == record.get("fingerprint") and len(found) <= MOST_COMPARED:
            return found.images
    return None


def of_run(model: str | None) -> dict[str, Any]:
    """`data` of the settings of the run whose folder holds a model's; nothing where there is none.

    The record beside a model, which may be given away, has the last name of a path alone.
    """
    try:
        content = yaml.safe_load((Path(str(model)).absolute().parent / "config.yaml").read_text("utf-8"))
        data = content["data"]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return {}
    return data if isinstance(data, dict) else {}


def hashes_of(images: Images) -> set[bytes]:
    """A digest of the pixels of each image.

    >>> len(hashes_of(torch.tensor([[[[1]]], [[[2]]], [[[1]]]], dtype=torch.uint8)))
    2
    """
    return {
        hashlib.blake2b(image.numpy().tobytes(), digest_size=16).digest()
        for part in images.split(1000)
        for image in part
    }
