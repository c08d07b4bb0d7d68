"""Trackers of experiments (TensorBoard, W&B, Trackio, MLflow), each accelerate's own class, behind one small face.

Nothing is imported or begun unless a run asks for it. None of them asks a question: without a key W&B works offline.
"""

import contextlib
import netrc
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from diffdistill.registry import load

Ids = dict[str, Any]
"""What a tracker is found again by when its run goes on, as JSON."""

PROJECT = "diffdistill"
LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE",
            "MV2_COMM_WORLD_SIZE")  # fmt: skip


class Tracker:
    """One tracker of one run. ids: of the earlier sittings of this run, {} in the first.

    key: names the run for all time; step: the step that it goes on from; events of later ones are dropped where that
    can be.
    """

    def __init__(self, name: str, folder: Path, key: str, ids: Ids, step: int):
        self.name, self.folder = name, folder
        self.begin = BEGIN.get(name, _begin_own)
        self.inner, self.ids = self.begin(name, folder, key, ids, step)
        # Only the leader reports, so accelerate need not ask which process this is.
        self.inner.main_process_only = False
        self.inner.start()
        if name == "mlflow":
            self.ids = {"run_id": self.inner.tracker.info.run_id}

    def settings(self, values: Mapping[str, Any], text: str) -> None:
        """All settings of the run, once. TensorBoard's own table of them would be a second run beside this one."""
        if self.name == "tensorboard":
            self.inner.log({"settings": f"```yaml\n{text}\n```"}, step=0)
        else:
            self.inner.store_init_configuration(dict(values))

    def figures(self, values: Mapping[str, float], step: int) -> None:
        self.inner.log(dict(values), step=step)

    def picture(self, name: str, file: Path, step: int) -> None:
        if self.name == "mlflow":
            self.inner.log_artifact(str(file), "samples")
        elif self.name == "trackio":
            import trackio

            self.inner.log({name: trackio.Image(str(file))}, step=step)
        elif self.name == "tensorboard":
            import numpy

            self.inner.log_images({name: numpy.asarray(_opened(file))[None]}, step=step, dataformats="NHWC")
        elif hasattr(self.inner, "log_images"):
            self.inner.log_images({name: [_opened(file)]}, step=step)

    def finish(self) -> None:
        self.inner.finish()


def _opened(file: Path) -> Image.Image:
    with Image.open(file) as picture:
        return picture.convert("RGB")


def _class(name: str) -> Any:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    return LOGGER_TYPE_TO_CLASS[name]


def _begin_tensorboard(name: str, folder: Path, key: str, ids: Ids, step: int) -> tuple[Any, Ids]:
    """In the run's own folder; what was written of steps that were lost is hidden."""
    return _class(name)(run_name=name, logging_dir=folder, **({"purge_step": step + 1} if ids else {})), {"id": key}


def _begin_wandb(name: str, folder: Path, key: str, ids: Ids, step: int) -> tuple[Any, Ids]:
    mode = {} if os.environ.get("WANDB_MODE") or has_wandb_key() else {"mode": "offline"}
    project = os.environ.get("WANDB_PROJECT", PROJECT)
    found = _class(name)(project, id=key, name=folder.name, dir=str(folder), resume="allow", **mode)
    return found, {"id": key}


def _begin_trackio(name: str, folder: Path, key: str, ids: Ids, step: int) -> tuple[Any, Ids]:
    project = os.environ.get("TRACKIO_PROJECT", PROJECT)
    return _class(name)(project, name=f"{folder.name}-{key}", resume="allow"), {"id": key}


def _begin_mlflow(name: str, folder: Path, key: str, ids: Ids, step: int) -> tuple[Any, Ids]:
    return _class(name)(PROJECT, run_id=ids.get("run_id"), run_name=folder.name), ids


def _begin_own(name: str, folder: Path, key: str, ids: Ids, step: int) -> tuple[Any, Ids]:
    """A subclass of accelerate's `GeneralTracker` in a file of the user's."""
    kind = load(name)
    place = {"logging_dir": folder} if getattr(kind, "requires_logging_directory", False) else {}
    return kind(folder.name, **place), {"id": key}


BEGIN: dict[str, Callable[..., tuple[Any, Ids]]] = {
    "tensorboard": _begin_tensorboard,
    "wandb": _begin_wandb,
    "trackio": _begin_trackio,
    "mlflow": _begin_mlflow,
}


def takes_back(name: str) -> bool:
    """Whether a tracker hides what it was told of steps that the run then lost; the others are not told twice."""
    return name == "tensorboard"


def has_wandb_key() -> bool:
    """Whether W&B would ask nobody: a key is in the environment, or in the user's netrc."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    with contextlib.suppress(OSError, netrc.NetrcParseError):
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    return False


@contextlib.contextmanager
def alone_in_accelerate() -> Iterator[None]:
    """Within, accelerate knows which process this is, as its log wants to: one by itself, whatever a launcher said.

    Else its state would be made from the launcher's words, with a group of processes and threads of its own choice.
    """
    from accelerate import PartialState

    if PartialState._shared_state:
        yield
        return
    before = {word: os.environ.pop(word) for word in LAUNCHER if word in os.environ}
    try:
        PartialState(cpu=True)
    finally:
        os.environ.update(before)
    try:
        yield
    finally:
        PartialState._reset_state()
