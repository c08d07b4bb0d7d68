"""Feature extractors by name, path or Hub id, and which of them fits a reference. No torch before one is loaded.

A row of the registry is `FEATURES` in a file beside this one. There is no default but a rule, `choose_features`: what
measures images must have been made for images of their kind.
"""

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffdistill.assets import is_builtin, resolve_builtin
from diffdistill.errors import CheckpointError, ConfigError, FeaturesMissing
from diffdistill.files import expanded, is_hub_id, read_json, reading, reason_of
from diffdistill.registry import Registry, is_plugin, load

if TYPE_CHECKING:
    import torch

    from diffdistill.data import ImageSet
    from diffdistill.evaluation.extractors.base import FeatureExtractor
    from diffdistill.evaluation.statistics import Statistics


SMALL = 32  # pixels: gray images of at most so many are measured by the bundled classifier of such images


@dataclass(frozen=True)
class Features:
    """A row: `load(detail, device)` makes the extractor of `NAME` or, where it takes a detail, of `NAME:DETAIL`.

    >>> import torch
    >>> from diffdistill.evaluation.extractors.bundled import PixelFeatures
    >>> FEATURES = Features("thumbnails", lambda detail, device: PixelFeatures(size=(4, 4)))
    >>> FEATURES.load(None, torch.device("cpu")).dim  # 3 x 4 x 4
    48
    """

    name: str
    load: "Callable[[str | None, torch.device], FeatureExtractor]"
    takes_detail: bool = False


FEATURES: Registry[Features] = Registry("feature extractor", Features, "diffdistill.evaluation.features", "FEATURES")


def load_features(name: str, *, mode: str | None = None, device: "str | torch.device" = "cpu") -> "FeatureExtractor":
    """The extractor that `name` means.

    Args:
        name: `fashion_mnist` and `emoji` (bundled, 128 features), `pixels`, `inception[:FILE]` (the 2015 graph,
            2048 features, as TorchScript or `.pth`, from FILE, the cache or the network), `dinov2[:MODEL]`,
            `clip[:MODEL]` (transformers, folder or Hub id), a file of TorchScript or of the weights of Inception v3,
            a folder with config.json and safetensors, a Hub id `owner/name`, or `FILE.py:NAME` of a `Features`.
        mode: resize where image sizes differ, `tf` or `clean`; None: the extractor's own (see resize.py).
        device: where the network runs; features come back as float64 on the CPU.

    Raises:
        ConfigError: an unknown name or mode. CheckpointError: weights that are missing or damaged.

    >>> import torch
    >>> white = torch.full((2, 3, 32, 32), 255, dtype=torch.uint8)
    >>> load_features("pixels")(white).unique()  # gray values
    tensor([1.], dtype=torch.float64)
    >>> load_features("emoji")(white).shape
    torch.Size([2, 128])
    """
    import torch

    from diffdistill.evaluation.resize import check_mode

    if mode is not None:
        check_mode(mode)
    extractor = _load(name, torch.device(device))
    extractor.mode = mode or extractor.mode
    return extractor


def _load(name: str, device: "torch.device") -> "FeatureExtractor":
    check_features(name)
    kind, _, detail = name.partition(":")
    known = FEATURES.rows()
    if kind in known and (not detail or known[kind].takes_detail):
        return known[kind].load(detail or None, device)
    if is_plugin(name):
        return FEATURES.get(name).load(None, device)
    path = expanded(name)
    if path.is_dir():
        return _of_folder(path, device)
    if path.is_file():
        from diffdistill.evaluation.extractors.files import features_of_file

        return features_of_file(path, device)
    from diffdistill.evaluation.extractors.hub import HubFeatures

    return HubFeatures(name, device)


def check_features(name: str) -> None:
    """ConfigError for what can name no extractor; what is in a file or on the Hub only loading tells.

    >>> check_features("facebook/dinov2-small")
    >>> check_features("fashion-mnist")
    Traceback (most recent call last):
    diffdistill.errors.ConfigError: no feature extractor 'fashion-mnist', did you mean ...
    """
    kind, _, detail = name.partition(":")
    known = FEATURES.rows()
    if (kind in known and (not detail or known[kind].takes_detail)) or is_plugin(name):
        return
    if name.strip():
        with reading(name, ConfigError):
            path = expanded(name)
            if path.is_dir() or path.is_file():
                return
    if is_hub_id(name):
        return
    near = get_close_matches(name, known, n=1)
    hint = f", did you mean '{near[0]}'?" if near else ""
    raise ConfigError(
        f"no feature extractor '{name}'{hint}: give one of {', '.join(known)}, an existing file or folder, a Hub id, "
        "or FILE.py:NAME"
    )


def _of_folder(folder: Path, device: "torch.device") -> "FeatureExtractor":
    """The extractor of a folder, by the `architecture` in its config.json: one of ours, or `FILE.py:CLASS` beside it,
    called with the folder and the device; any other folder is a model of transformers.
    """
    try:
        architecture = read_json(folder / "config.json").get("architecture")
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder} has no readable config.json ({reason_of(error)}): features lie in config.json and "
            "model.safetensors"
        ) from error
    if isinstance(architecture, str) and is_plugin(architecture):
        return load(str(folder / architecture))(folder, device)
    from diffdistill.evaluation.extractors.bundled import ARCHITECTURES

    if architecture in ARCHITECTURES:
        return ARCHITECTURES[architecture](folder, device)
    from diffdistill.evaluation.extractors.hub import HubFeatures

    return HubFeatures(str(folder), device)


def choose_features(
    name: "str | FeatureExtractor | None", reference: "ImageSet | Statistics", device: "str | torch.device" = "cpu"
) -> "FeatureExtractor":
    """The named extractor, else the one that fits the reference, which never is one made for other pictures.

    A bundled set names its extractor in its manifest; small gray images are measured by the bundled classifier of such
    images, all others by Inception.

    Raises what `load_features` raises; FeaturesMissing where Inception is what fits and its weights are missing.

    >>> from diffdistill.data import load_images
    >>> choose_features(None, load_images("builtin:emoji", split="held_out")).dim
    128
    """
    if name is not None:
        return load_features(name, device=device) if isinstance(name, str) else name
    fitting = _fitting(reference)
    try:
        return load_features(fitting, device=device)
    except CheckpointError as error:
        if fitting != "inception":
            raise
        what = _kind(reference) if hasattr(reference, "images") else "the reference is"
        raise FeaturesMissing(
            f"{what} measured by Inception where no features are named, and {error}; or name others (--features, "
            f"evaluation.features): pixels, which need no weights, dinov2, clip, a file or a folder"
        ) from error


def _kind(reference: Any) -> str:
    channels, height, width = reference.images.shape[1:]
    return f"'{reference.name}' is {'colour' if channels == 3 else 'gray'} pictures of {height}x{width},"


def _fitting(reference: "ImageSet | Statistics") -> str:
    images = getattr(reference, "images", None)
    if images is None:
        return "inception"
    if (own := _of_bundled(reference.name)) is not None:  # type: ignore[union-attr]
        return own
    return "fashion_mnist" if images.shape[1] == 1 and max(images.shape[2:]) <= SMALL else "inception"


def _of_bundled(name: str) -> str | None:
    """The extractor that a bundled set names, `features` in its manifest.json."""
    manifest = resolve_builtin(name) / "manifest.json" if is_builtin(name) else None
    return read_json(manifest).get("features") if manifest is not None and manifest.is_file() else None
