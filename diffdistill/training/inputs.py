"""What a run is made from, as digests: the same path may hold something else when it is resumed."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from diffdistill.assets import example, is_builtin, resolve_builtin
from diffdistill.config.schema import Distill, Train
from diffdistill.data import ImageSet
from diffdistill.data.pairs import Pair
from diffdistill.files import expanded, sha256
from diffdistill.methods.base import Rewarded
from diffdistill.objectives.raft import RAFT
from diffdistill.pipelines.folder import locate
from diffdistill.registry import is_plugin
from diffdistill.training.kinds.base import names_model
from diffdistill.training.resume import FILES
from diffdistill.training.store import MANIFEST, CheckpointStore

SAMPLE = 4096  # bytes at the start, in the middle and at the end of an image that is told by a part of it


def model_digest(model: str) -> str:
    """SHA-256 over the weights of a model and the settings of its parts; its card and figures do not matter."""
    folder = locate(model)
    return _digest_of(folder, {*folder.rglob("*.safetensors"), *folder.glob("*/*config.json")})


def lora_digest(record: dict[str, Any]) -> dict[str, str]:
    """Of the LoRA on the teacher, by its record; nothing without one."""
    return {} if not record else {"teacher_lora": record["teacher_lora"]["sha256"]}


def data_digests(data: Any) -> dict[str, str]:
    """What a set of images is known by: their pixels, labels and texts, and what its files hold; where images are
    decoded as they are drawn, without the pixels.
    """
    images = data if isinstance(data, ImageSet) else getattr(data, "images", None)
    files = {}
    if isinstance(images, ImageSet) and images.origin is not None:
        labels = None if images.labels is None else images.labels.numpy()
        files = {FILES: images.origin.content(labels, images.texts)}
    return files if data.fingerprint in files.values() else {"data": data.fingerprint, **files}


def start_digest(path: str | None) -> dict[str, str]:
    """Of what a distillation begins with: a model's, or the manifest of a run's last checkpoint; nothing without."""
    if path is None:
        return {}
    if names_model(path):
        return {"initialize_from": model_digest(path)}
    folder, _ = CheckpointStore(Path(path) / "checkpoints", keep=1).find("latest")
    return {} if folder is None else {"initialize_from": sha256(folder / MANIFEST)}


def reward_digests(config: Distill | Train) -> dict[str, str | None]:
    """Of each reward by name: the SHA-256 of the folder or file it is read from; None for one of the Hub."""
    return {f"reward {name}": _reward_digest(name) for name in _rewards(config) if name is not None}


def _rewards(config: Any) -> list[str | None]:
    if isinstance(objective := getattr(config, "objective", None), RAFT):
        return [objective.reward]
    method = getattr(config, "method", None)
    if not isinstance(method, Rewarded) or method.reward is None:
        return []
    return [method.reward.name] if method.reward.sum is None else list(method.reward.sum)


def _reward_digest(name: str) -> str | None:
    if is_plugin(name):
        place = name.rpartition(":")[0]
        file = example(place) or expanded(place)
        return sha256(file) if file.is_file() else None
    for place in (name, name.partition(":")[2]):
        folder = resolve_builtin(place) if is_builtin(place) else Path(place).expanduser()
        if place and folder.is_dir():
            return _digest_of(folder, (file for file in folder.rglob("*") if file.is_file()))
    return None


def _digest_of(folder: Path, files: Iterable[Path]) -> str:
    named = sorted((file.relative_to(folder).as_posix(), sha256(file)) for file in files)
    return hashlib.sha256("".join(f"{name}\0{digest}\0" for name, digest in named).encode()).hexdigest()


def pairs_digest(pairs: Sequence[Pair]) -> str:
    """SHA-256 over captions, ties and images: of files their sizes and three samples of their bytes, which is quicker.

    The fingerprint in records tells files by name and size alone.
    """
    digest = hashlib.sha256()
    for pair in pairs:
        digest.update(f"{pair.text}\0{int(pair.tie)}\0".encode())
        for _, image in (pair.win, pair.lose):
            digest.update(hashlib.sha256(image if isinstance(image, bytes) else _sampled(image)).digest())
    return digest.hexdigest()


def _sampled(file: Path) -> bytes:
    size = file.stat().st_size
    with file.open("rb") as stream:
        parts = []
        for start in (0, max(0, size // 2 - SAMPLE // 2), max(0, size - SAMPLE)):
            stream.seek(start)
            parts.append(stream.read(SAMPLE))
    return b"".join([str(size).encode(), *parts])
