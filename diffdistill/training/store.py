"""Training checkpoints: staged, hashed, renamed, verified, and only then the old ones pruned.

A checkpoint is `checkpoints/step-NNNNNN/`: one safetensors file a module or optimiser, `state.json` (step, elapsed
seconds, threads, versions), and `MANIFEST.json` with the size and SHA-256 of each, written last. A folder without a
manifest that verifies is not a checkpoint.
"""

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diffdistill.errors import CheckpointError, DiskError, NonFiniteError
from diffdistill.files import read_json, sha256, share, write_json

MANIFEST = "MANIFEST.json"


Part = nn.Module | torch.optim.Optimizer
Parts = dict[str, Part]


def tensors_of(part: Part) -> dict[str, Tensor]:
    """All tensors of a module or an optimiser under flat names."""
    if isinstance(part, nn.Module):
        return {name: value.detach().contiguous() for name, value in part.state_dict().items()}
    state = part.state_dict()["state"]
    return {f"{index}.{key}": torch.as_tensor(value) for index, slots in state.items() for key, value in slots.items()}


def restore(part: Part, tensors: dict[str, Tensor]) -> None:
    """Inverse of `tensors_of`, in place."""
    if isinstance(part, nn.Module):
        part.load_state_dict(tensors)
        return
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    part.load_state_dict({"state": state, "param_groups": part.state_dict()["param_groups"]})


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def problem_of(folder: Path) -> str | None:
    """What is wrong with a checkpoint folder, or None if every file is as its manifest says."""
    try:
        manifest = read_json(folder / MANIFEST)
        for name, entry in manifest["files"].items():
            file = folder / name
            if not file.is_file() or file.stat().st_size != entry["size"]:
                return f"{name} is missing or has another size"
            if sha256(file) != entry["sha256"]:
                return f"{name} has another SHA-256"
    except FileNotFoundError:
        return f"it has no {MANIFEST}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} is damaged ({type(error).__name__})"
    return None


class CheckpointStore:
    """The checkpoints of one run, newest last."""

    def __init__(self, folder: Path, keep: int):
        self.folder = folder
        self.keep = keep

    def folders(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("step-*") if path.is_dir())

    def of(self, step: int) -> Path:
        return self.folder / f"step-{step:06d}"

    def save(self, step: int, parts: Parts, state: dict[str, Any], spare: int | None = None) -> Path:
        """Publish a checkpoint and prune the old ones, but not that of step `spare`.

        NonFiniteError (nothing written) for non-finite tensors, DiskError if there is no room.
        """
        target = self.of(step)
        if target.exists() and problem_of(target) is None:
            return target
        flat = {name: tensors_of(part) for name, part in parts.items()}
        for name, tensors in flat.items():
            if not all(bool(torch.isfinite(t).all()) for t in tensors.values() if t.is_floating_point()):
                raise NonFiniteError(
                    f"the {name} holds NaN or infinity at step {step}; no checkpoint was written, resume an older one"
                )
        self._check_room(sum(t.nbytes for tensors in flat.values() for t in tensors.values()))
        staged = self.folder / f".{target.name}.partial-{os.getpid()}"
        try:
            staged.mkdir(parents=True)
            for name, tensors in flat.items():
                save_file(tensors, staged / f"{name}.safetensors")
            write_json(staged / "state.json", {"step": step, **state})
            share(staged)
            files = sorted(staged.iterdir())
            entries = {file.name: {"size": file.stat().st_size, "sha256": sha256(file)} for file in files}
            write_json(staged / MANIFEST, {"files": entries})
            for file in (*files, staged / MANIFEST, staged):
                _sync(file)
            shutil.rmtree(target, ignore_errors=True)
            staged.rename(target)
            _sync(self.folder)
        except OSError as error:
            raise DiskError(
                f"could not write checkpoint '{target}' ({error.strerror or error}); free space and resume"
            ) from error
        finally:
            shutil.rmtree(staged, ignore_errors=True)
        if problem := problem_of(target):
            raise DiskError(f"checkpoint '{target}' does not read back as written: {problem}; check the disk")
        self.prune(self.keep, spare)
        return target

    def _check_room(self, size: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if free < 2.5 * size:
            raise DiskError(
                f"a checkpoint needs {2.5 * size / 1e6:.0f} MB and '{self.folder}' has {free / 1e6:.0f} MB; free "
                f"space and resume"
            )

    def prune(self, keep: int, spare: int | None = None) -> list[Path]:
        """Remove all but the newest `keep` verified checkpoints (at least one stays) and that of step `spare`."""
        good = [folder for folder in self.folders() if problem_of(folder) is None]
        removed = [folder for folder in good[: -max(keep, 1)] if spare is None or folder != self.of(spare)]
        for folder in removed:
            shutil.rmtree(folder)
        return removed

    def find(self, wanted: int | str) -> tuple[Path | None, list[str]]:
        """`latest` or a step number -> the newest checkpoint that verifies, and what was skipped and why.

        None when there is no checkpoint at all; CheckpointError when there are some and none is whole.
        """
        folders = self.folders()
        if wanted != "latest":
            folders = [folder for folder in folders if folder == self.of(int(wanted))]
            if not folders:
                have = ", ".join(f.name for f in self.folders()) or "none"
                raise CheckpointError(f"there is no checkpoint of step {wanted} in '{self.folder}'; there are {have}")
        skipped: list[str] = []
        for folder in reversed(folders):
            if (problem := problem_of(folder)) is None:
                return folder, skipped
            skipped.append(f"{folder.name}: {problem}")
        if skipped:
            raise CheckpointError(
                f"no checkpoint in '{self.folder}' is whole ({'; '.join(skipped)}); start in a new folder or "
                f"restore one"
            )
        return None, []


def load_checkpoint(folder: Path, parts: Parts) -> dict[str, Any]:
    """Fill `parts` from a verified checkpoint; returns `state.json`."""
    for name, part in parts.items():
        file = folder / f"{name}.safetensors"
        if not file.is_file():
            raise CheckpointError(
                f"checkpoint '{folder}' has no {file.name}: it is of another method; resume with the config it "
                f"was made with"
            )
        restore(part, load_file(file))
    return read_json(folder / "state.json")


def command(args: Any) -> int:
    """`diffdistill checkpoint ls|verify|prune RUN`."""
    store = CheckpointStore(Path(args.run) / "checkpoints", keep=1)
    folders = store.folders()
    if not folders:
        raise CheckpointError(f"'{args.run}' has no checkpoints; give a run folder of train or distill")
    if args.action == "prune":
        for folder in store.prune(args.keep):
            print(f"removed {folder.name}")
        return 0
    broken = False
    for folder in folders:
        size = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
        problem = problem_of(folder) if args.action == "verify" else None
        broken |= problem is not None
        print(f"{folder.name}  {size:8.1f} MB" + ("" if args.action == "ls" else f"  {problem or 'ok'}"))
    return CheckpointError.exit_code if broken else 0
