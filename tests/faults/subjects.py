"""Folders that hold something, how each is read, and what reading it gives: attacks on files change one and read it.

A try is silent where a changed folder is read to something else without a word. What is read is compared whole:
images drawn, every tensor, settings, labels. So a changed card (README.md) reads the same, and a changed level of a
student does not.
"""

import contextlib
import hashlib
import io
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import Workshop

REFUSALS = (2, 3, 4, 6)


@dataclass
class Subject:
    """read: returns a digest of all that is read, or raises. renews: reading may make a damaged file anew."""

    name: str
    folder: Path
    read: Callable[[], str]
    renews: bool = False

    def __post_init__(self) -> None:
        self.want = self.read()
        assert self.read() == self.want, f"{self.name} is not read twice to the same"
        self.files = sorted(path for path in self.folder.rglob("*") if path.is_file())

    def outcome(self) -> tuple[str | None, str]:
        """Reads the folder as it is: (what is wrong or None, what came of it)."""
        from diffdistill.cli.front import explained

        said: list[str] = []
        try:
            with listening("diffdistill.pipelines.folder", said):
                got = quietly(self.read)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            known = explained(error)
            refused = known.exit_code in REFUSALS
            return (None, f"refused, exit {known.exit_code}") if refused else (f"{type(error).__name__}: {known}", "")
        if got != self.want and any("has lost its diffdistill.json" in words for words in said):
            return None, "read as a foreign model, with a warning"
        if got != self.want:
            return "silent: read to something else", ""
        return None, "recomputed" if self.renews else "reads the same"


@contextlib.contextmanager
def listening(name: str, said: list[str]) -> Iterator[None]:
    """What the logger `name` says meanwhile is put into `said`, and shown nowhere."""
    logger, handler = logging.getLogger(name), logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = True


def quietly(function: Callable[[], Any]) -> Any:
    """Its result, with what it prints thrown away."""
    nowhere = io.StringIO()
    with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function()


def digest(*parts: Any) -> str:
    """SHA-256 of tensors, bytes and whatever prints itself."""
    whole = hashlib.sha256()
    for part in parts:
        data = part.contiguous().numpy().tobytes() if isinstance(part, torch.Tensor) else part
        whole.update(data if isinstance(data, bytes) else repr(data).encode())
    return whole.hexdigest()


def read_model(model: str, **request: Any) -> str:
    """A model as it draws: its images, tensors, the settings of its network, its noise process."""
    from diffdistill import load_model, sample

    denoiser = load_model(model)
    state = denoiser.network.state_dict()
    images = sample(denoiser, num_images=2, batch_size=2, **request).images
    # Without its record a teacher is a foreign model, and the same one.
    usual = {"role": "teacher", "levels": [], "guidance_scale": None}
    told = {key: denoiser.metadata.get(key, value) for key, value in usual.items()}
    config = sorted((key, value) for key, value in dict(denoiser.network.config).items() if not key.startswith("_"))
    process = vars(denoiser.process)
    return digest(images, *state.values(), list(state), config, told, denoiser.null_class, process)


def checkpoint(shop: Workshop) -> Subject:
    """The last checkpoint of a run of distill, read by the command that says whether it is whole."""
    from diffdistill.cli import main
    from diffdistill.errors import CheckpointError

    run = shop.folder("subject-checkpoint") / "run"
    source = shop.root / "student" / "checkpoints" / "step-000003"
    folder = Path(shutil.copytree(source, run / "checkpoints" / source.name))

    def read() -> str:
        code = main(["checkpoint", "verify", str(run)])
        if code == 4:
            raise CheckpointError("not whole")
        files = sorted(file for file in folder.iterdir() if file.name != "MANIFEST.json")
        return digest(code, [file.name for file in files], *(file.read_bytes() for file in files))

    return Subject("checkpoint", folder, lambda: quietly(read))


def student(shop: Workshop) -> Subject:
    folder = Path(shutil.copytree(shop.root / "student" / "student", shop.folder("subject-student") / "student"))
    return Subject("student", folder, lambda: read_model(str(folder)))


def teacher(shop: Workshop) -> Subject:
    folder = Path(shutil.copytree(shop.root / "teacher" / "model", shop.folder("subject-teacher") / "model"))
    return Subject("teacher", folder, lambda: read_model(str(folder), steps=2))


def aligned(shop: Workshop) -> Subject:
    """A pipeline that `align` published."""
    run = shop.folder("subject-aligned") / "run"
    shop.must(shop.words("align", run, 2))
    return Subject("aligned pipeline", run / "model", lambda: read_model(str(run / "model"), steps=1, prompts=["a"]))


def reference(shop: Workshop) -> Subject:
    """The cache of a reference's features and statistics."""
    from diffdistill.data import load_images
    from diffdistill.evaluation.extractors.bundled import PixelFeatures
    from diffdistill.evaluation.reference import cache_file, load_reference

    images, extractor = load_images(str(shop.root / "data.npz")), PixelFeatures((8, 8))

    def read() -> str:
        found, _ = load_reference(images, extractor)
        return digest(found.gaussian.mean, found.gaussian.covariance, found.n, found.features, found.index)

    read()
    file = cache_file(images, extractor, extractor.resize_used(8, 8))
    return Subject("reference cache", file.parent, read, renews=True)


def statistics(shop: Workshop) -> Subject:
    """A statistics file, as `--reference FILE.npz` takes it."""
    from diffdistill.evaluation.moments import Moments
    from diffdistill.evaluation.statistics import Statistics, load_statistics, save_statistics

    file = shop.folder("subject-statistics") / "statistics.npz"
    moments = Moments(6)
    moments.update(torch.randn(40, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    save_statistics(file, Statistics(moments.gaussian(), "an extractor", "0" * 64, "none"))

    def read() -> str:
        s = load_statistics(file)
        told = (s.gaussian.n, s.extractor_id, s.extractor_sha256, s.resize)
        return digest(s.gaussian.mean, s.gaussian.covariance, told)

    return Subject("statistics file", file.parent, read)


BUNDLED = {
    "bundled teacher": "fashion_mnist_teacher", "bundled features": "fashion_mnist_features", "bundled data": "emoji",
}  # fmt: skip


def bundled(shop: Workshop, name: str, patch: pytest.MonkeyPatch) -> Subject:
    """A private copy of a bundled folder, with the list of digests beside it, put in the place of the package's."""
    from diffdistill import assets
    from diffdistill.data import load_images
    from diffdistill.evaluation.features import load_features

    home = shop.folder(f"subject-{name.replace(' ', '-')}")
    source = assets.asset(BUNDLED[name])
    folder = Path(shutil.copytree(source, home / source.name))
    if (source.parent / "SHA256SUMS").is_file():
        shutil.copy(source.parent / "SHA256SUMS", home)
    patch.setattr(assets, "ROOTS", (home,))

    def read_data() -> str:
        found = load_images(f"builtin:{source.name}", limit=64)
        return digest(found.images, found.labels, found.texts, found.class_names)

    def read_features() -> str:
        extractor = load_features("fashion_mnist")
        images = torch.arange(2 * 784, dtype=torch.int64).reshape(2, 1, 28, 28).remainder(256).to(torch.uint8)
        return digest(extractor(images), extractor.id, extractor.sha256)

    readers = {
        "bundled teacher": lambda: read_model(f"builtin:{source.name}", steps=1),
        "bundled features": read_features,
        "bundled data": read_data,
    }

    def read() -> str:
        assets._checked.cache_clear()  # a process looks once, and each of these stands for one
        return readers[name]()

    return Subject(name, folder, read)


MAKERS: dict[str, Callable[[Workshop], Subject]] = {
    "checkpoint": checkpoint, "student": student, "teacher": teacher, "aligned pipeline": aligned,
    "reference cache": reference, "statistics file": statistics,
}  # fmt: skip
NAMES = (*MAKERS, *BUNDLED)


def subject(shop: Workshop, name: str, patch: pytest.MonkeyPatch) -> Subject:
    if name == "aligned pipeline":
        pytest.importorskip("transformers")
    return bundled(shop, name, patch) if name in BUNDLED else MAKERS[name](shop)
