"""A fitted signal leak as a file, and for which model it may be used.

`diffdistill calibrate MODEL --data DATA --fit signal-leak --out FILE` writes it, `sample MODEL --signal-leak FILE`
reads it. JSON: what it was fitted to, what it was measured to do, and the law (`SignalLeak`), as base64 of little-
endian float32. It names the weights that it was made for: another model may have other latents, or another scale of
them.
"""

import base64
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffdistill.denoiser import Denoiser
from diffdistill.errors import CheckpointError, ConfigError
from diffdistill.files import read_json, reason_of, write_json
from diffdistill.pipelines.folder import SEAL, SIGNAL_LEAK, is_whole, locate, sealed, weights_digest
from diffdistill.sampling.signal_leak import SignalLeak

AUTO = "auto"
KIND = "diffdistill signal leak"
VERSION = 1
LAW = ("mean", "root", "rest_mean", "rest_std")
MOST = 1e6  # of pixels, latents and their waves: far beyond any


@dataclass(frozen=True, eq=False)
class LeakFile:
    """A law and where it is from.

    model, weights_sha256: what it was made for. data: name, split, fingerprint and number of the images. runs: for
    each sampler and number of steps the figures of brightness without and with it. source: the file it was read from.
    """

    law: SignalLeak
    model: str
    weights_sha256: str
    data: dict[str, Any]
    runs: tuple[dict[str, Any], ...] = ()
    source: str | None = None

    def record(self) -> dict[str, Any]:
        """Its entry in `samples.json`."""
        return {"source": self.source, "data": self.data}

    def save(self, path: Path) -> None:
        """Write the file at once or not at all, with a digest of itself."""
        law = {name: _written(getattr(self.law, name)) for name in LAW}
        about = {
            "model": self.model,
            "weights_sha256": self.weights_sha256,
            "data": self.data,
            "runs": list(self.runs),
        }
        write_json(path, sealed({"kind": KIND, "version": VERSION, **about, "law": law}))


def _written(values: Tensor) -> dict[str, Any]:
    array = values.float().numpy().astype("<f4")
    return {"shape": list(array.shape), "float32": base64.b64encode(array.tobytes()).decode()}


def _read(entry: dict[str, Any]) -> Tensor:
    array = np.frombuffer(base64.b64decode(entry["float32"], validate=True), "<f4").reshape(entry["shape"])
    values = torch.from_numpy(array.astype(np.float64))
    if not bool((values.abs() < MOST).all()):
        raise ValueError(f"it holds what is no number, or one of {MOST:g} or more")
    return values


def _check(law: SignalLeak) -> None:
    """ValueError unless a law can be drawn from."""
    channels, height, width = law.shape
    waves, rest = divmod(len(law.mean), channels) if channels else (0, 0)
    if rest or not 1 <= waves <= height * width or law.mean.ndim != 1:
        raise ValueError(f"its mean has the shape {tuple(law.mean.shape)}, which is no number of waves a channel")
    if law.root.shape != (len(law.mean),) * 2 or law.rest_std.shape != law.shape:
        raise ValueError("its parts are of different sizes")
    if bool((law.rest_std < 0).any()):
        raise ValueError("it holds a deviation below 0")


def read_leak(path: Path) -> LeakFile:
    """Read a file of a leak. CheckpointError if it is missing, damaged or something else."""
    try:
        content = read_json(path)
        if content["kind"] != KIND or content["version"] != VERSION:
            raise ValueError("it is something else, or of another version")
        if not is_whole(content):
            raise ValueError(f"it was changed, its {SEAL} is another")
        law = SignalLeak(**{name: _read(content["law"][name]) for name in LAW})
        _check(law)
        about = {name: content[name] for name in ("model", "weights_sha256", "data")}
        return LeakFile(law, **about, runs=tuple(content["runs"]), source=str(path))
    except FileNotFoundError:
        raise CheckpointError(
            f"there is no signal leak '{path}'; make one with 'diffdistill calibrate MODEL --data DATA --fit "
            f"signal-leak --out FILE'"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"'{path}' is not a signal leak that can be read ({reason_of(error)}); make it again"
        ) from error


def check_takes_leak(model: Denoiser) -> None:
    """ConfigError for a student: it was trained on noise alone, and a leak would be a start it has never seen."""
    if model.role == "student":
        raise ConfigError(
            "a student starts with noise alone, as it was trained, and a signal leak would be a start that it has "
            "never seen; leave --signal-leak out, or sample the teacher"
        )


def leak_for(model: Denoiser, flag: str) -> LeakFile:
    """The leak that `--signal-leak` names: a file, or `auto`, `signal_leak.json` in the model's folder.

    Raises ConfigError for a student and for a leak of other weights or another size of image, CheckpointError where
    there is none to read.
    """
    check_takes_leak(model)
    home = model.metadata.get("path")
    folder = None if home is None else locate(home)
    if flag == AUTO and folder is None:
        raise ConfigError(
            f"this model was not loaded from a folder that could hold a {SIGNAL_LEAK}; name the file of its leak"
        )
    leak = read_leak(folder / SIGNAL_LEAK if flag == AUTO and folder is not None else Path(flag))
    if folder is not None and leak.weights_sha256 != weights_digest(folder):
        raise ConfigError(
            f"'{leak.source}' was made for other weights ('{leak.model}') than those of '{home}'; fit one to this "
            f"model: diffdistill calibrate MODEL --data DATA --fit signal-leak --out FILE"
        )
    if leak.law.shape != model.image_shape:
        ours, theirs = ("x".join(map(str, shape)) for shape in (leak.law.shape, model.image_shape))
        raise ConfigError(
            f"'{leak.source}' is of {ours} (C x H x W), and the model works on {theirs} here; draw images of that "
            f"size, or fit one to images of this"
        )
    return replace(leak, source=SIGNAL_LEAK) if flag == AUTO else leak
