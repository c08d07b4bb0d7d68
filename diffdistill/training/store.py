"""Training checkpoints: staged, hashed, renamed, verified, and only then the old ones pruned.

A checkpoint is `checkpoints/step-NNNNNN/`: one safetensors file a module or optimiser, or where networks are sharded
one a process (`training.sharded.checkpoint`), `state.json` (step, elapsed seconds, threads, versions), and
`MANIFEST.json` with the size and SHA-256 of each, written last. A folder without a manifest that verifies is not a
checkpoint.
"""

import json
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from diffdistill import processes
from diffdistill.errors import CheckpointError, DiskError, NonFiniteError
from diffdistill.files import beside, discard, read_json, reason_of, replacing_folder, sha256, share
from diffdistill.training.flat import Part, Parts, restore, tensors_of
from diffdistill.training.lock import locked, remove_leftovers
from diffdistill.training.sharded import checkpoint as sharded

MANIFEST, STATE = "MANIFEST.json", "state.json"
KEPT = "kept_step"  # in the state: the step that the run may go back to
PARTS = "parts"  # in the state of a checkpoint that is cut: the names of what it holds
LOOK, WRITE, READ = "look at the parts", "write the parts", "read the parts"


def problem_of(folder: Path, hashes: bool = True) -> str | None:
    """What is wrong with a checkpoint folder, or None if every file is as its manifest says.

    hashes: whether to read the files; without, only their sizes are looked at.
    """
    try:
        entries = read_json(folder / MANIFEST)["files"]
        if STATE not in entries:
            return f"{MANIFEST} names no {STATE}"
        for name, entry in entries.items():
            file = folder / name
            if Path(name).name != name:
                return f"{MANIFEST} names {name!r}, which lies elsewhere"
            if not file.is_file() or file.stat().st_size != entry["size"]:
                return f"{name} is missing or has another size"
            if hashes and sha256(file) != entry["sha256"]:
                return f"{name} has another SHA-256"
    except FileNotFoundError:
        return f"it has no {MANIFEST}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"{MANIFEST} is damaged ({type(error).__name__})"
    return None


def step_of(folder: Path) -> int | None:
    """The step of a checkpoint by the name of its folder; None for another folder."""
    match = re.fullmatch(r"step-([0-9]{6,})", folder.name)
    return int(match[1]) if match and folder.name == name_of(int(match[1])) else None


def name_of(step: int) -> str:
    return f"step-{step:06d}"


class CheckpointStore:
    """The checkpoints of one run, in the order of their steps.

    A checkpoint that this store has written or verified is not read again, but for the sizes of its files.
    """

    def __init__(self, folder: Path, keep: int):
        self.folder = folder
        self.keep = keep
        self._verified: dict[Path, int] = {}  # when its manifest was written
        self._stuck: set[Path] = set()

    def folders(self) -> list[Path]:
        by_step = {step: path for path in self.folder.glob("step-*") if (step := step_of(path)) is not None}
        return [by_step[step] for step in sorted(by_step) if by_step[step].is_dir()]

    def of(self, step: int) -> Path:
        return self.folder / name_of(step)

    def problem(self, folder: Path) -> str | None:
        """`problem_of`, whose files are read once."""
        known = folder in self._verified and self._verified[folder] == _written(folder)
        problem = problem_of(folder, hashes=not known)
        if problem is None:
            self._verified[folder] = _written(folder)
        return problem

    def save(
        self, step: int, parts: Parts, state: dict[str, Any], spare: int | None = None, replace: bool = False
    ) -> Path:
        """Publish a checkpoint and prune the old ones, but not that of step `spare`.

        One that is there and whole stays, unless it is to be replaced. NonFiniteError (nothing written) for non-finite
        tensors, DiskError if there is no room.
        """
        target = self.of(step)
        if not replace and target.is_dir() and self.problem(target) is None:
            return target
        cut = sharded.holds_shards(parts)
        looked_at = processes.call(LOOK) if cut else _looked_at(parts)
        if looked_at["broken"] is not None:
            raise NonFiniteError(
                f"the {looked_at['broken']} holds NaN or infinity at step {step}; no checkpoint was written, resume "
                f"an older one"
            )
        try:
            self._check_room(looked_at["bytes"])
            with replacing_folder(target) as staged:
                _write(staged, parts, cut, {"step": step, **state})
        except (OSError, SafetensorError) as error:  # the latter is how safetensors reports what the system says
            raise DiskError(
                f"could not write checkpoint '{target}' ({getattr(error, 'strerror', None) or error}); free space and "
                f"resume"
            ) from error
        self._verified[target] = _written(target)
        self.prune(self.keep, spare)
        return target

    def _check_room(self, size: int) -> None:
        """One checkpoint more than there are is on the disk while one is saved: the old ones go after it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        free, needed = shutil.disk_usage(self.folder).free, 1.01 * size
        if free < needed:
            raise DiskError(
                f"a checkpoint needs {needed / 1e6:.1f} MB and '{self.folder}' has {free / 1e6:.1f} MB; free "
                f"space and resume"
            )

    def prune(self, keep: int, spare: int | None = None) -> list[Path]:
        """Remove all that is older than the newest `keep` whole checkpoints (at least one stays), but step `spare`.

        One that cannot be removed is a warning: it takes room, and no run should end for it.
        """
        whole, removed = 0, []
        for folder in reversed(self.folders()):
            if whole < max(keep, 1):
                whole += self.problem(folder) is None
            elif (spare is None or folder != self.of(spare)) and self._remove(folder):
                removed.append(folder)
        return removed[::-1]

    def _remove(self, folder: Path) -> bool:
        """Under another name first, so that a kill leaves no half of a checkpoint."""
        gone = beside(folder, "gone")
        try:
            folder.rename(gone)
            discard(gone)
        except OSError as error:
            if folder not in self._stuck:
                tqdm.write(
                    f"warning: could not remove old checkpoint '{folder}' ({error.strerror}); remove it by hand"
                )
            self._stuck.add(folder)
        return not folder.exists()

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
            if (problem := self.problem(folder)) is None:
                return folder, skipped
            skipped.append(f"{folder.name}: {problem}")
        if skipped:
            raise CheckpointError(
                f"no checkpoint in '{self.folder}' is whole ({'; '.join(skipped)}); start in a new folder or "
                f"restore one"
            )
        return None, []

    def after(self, step: int) -> list[Path]:
        """Checkpoints of later steps, whole or not."""
        return [folder for folder in self.folders() if (step_of(folder) or 0) > step]


def _written(folder: Path) -> int:
    return (folder / MANIFEST).stat().st_mtime_ns


def _looked_at(parts: Parts) -> dict[str, Any]:
    """`bytes` to write, and the first part that is `broken`, not finite; None: all are."""
    tensors = {name: tensors_of(part).values() for name, part in parts.items()}
    broken = [
        name
        for name, values in tensors.items()
        if not all(bool(torch.isfinite(value).all()) for value in values if value.is_floating_point())
    ]
    return {
        "bytes": sum(value.nbytes for values in tensors.values() for value in values),
        "broken": broken[0] if broken else None,
    }


def _write(folder: Path, parts: Parts, cut: bool, state: dict[str, Any]) -> None:
    """Fill a checkpoint's folder, which nobody sees yet. Each file is read once, for its hash.

    cut: whether every process writes the tensors that it holds.
    """
    folder.mkdir(parents=True)
    entries: dict[str, Any] = {}
    if cut:
        written = processes.call(WRITE, str(folder.absolute()))
        if written["failed"]:
            raise OSError(None, written["failed"])
        entries = written["files"]
    else:
        for name, part in parts.items():
            tensors: dict[str, Tensor] = tensors_of(part)
            save_file(tensors, folder / f"{name}.safetensors")
    state = {**state, PARTS: list(parts)} if cut else state
    (folder / STATE).write_text(json.dumps(state, indent=2, allow_nan=False), "utf-8")
    share(folder)
    for file in sorted(folder.iterdir()):
        entries.setdefault(file.name, {})
        if not entries[file.name]:
            entries[file.name] = {"size": file.stat().st_size, "sha256": sha256(file)}
    (folder / MANIFEST).write_text(json.dumps({"files": entries}, indent=2), "utf-8")


def serve(parts: Parts) -> None:
    """What the leader of several processes calls all for, where it saves these parts or goes back to former ones."""
    processes.serve(LOOK, lambda: sharded.looked_at(parts))
    processes.serve(WRITE, lambda folder: sharded.write(folder, parts))
    processes.serve(READ, lambda folder: load_checkpoint(Path(folder), parts))


def names_in(folder: Path) -> set[str]:
    """Names of the parts that a checkpoint holds."""
    if sharded.is_cut(folder):
        return set(read_state(folder).get(PARTS, ()))
    return {file.stem for file in folder.glob("*.safetensors")}


def load_checkpoint(folder: Path, parts: Parts) -> dict[str, Any]:
    """Fill `parts` from a verified checkpoint; returns `state.json`."""
    state = read_state(folder)
    check_parts(folder, parts)
    for name, part in parts.items():
        try:
            _read(folder, name, part)
        except (RuntimeError, KeyError, ValueError, IndexError, SafetensorError) as error:
            raise CheckpointError(
                f"'{folder}' does not hold the {name} of this run ({reason_of(error)}); resume from another "
                f"checkpoint, or with the config it was made with"
            ) from error
    return state


def _read(folder: Path, name: str, part: Part) -> None:
    if sharded.is_cut(folder):
        sharded.read(folder, name, part)
    elif sharded.holds_shards({name: part}):
        sharded.read_whole(folder / f"{name}.safetensors", part)
    else:
        restore(part, load_file(folder / f"{name}.safetensors"))


def check_parts(folder: Path, parts: Parts) -> None:
    """CheckpointError where a part is not in the checkpoint."""
    if missing := parts.keys() - names_in(folder):
        raise CheckpointError(
            f"checkpoint '{folder}' has no {min(missing)}.safetensors: it is of another method; resume with the "
            f"config it was made with"
        )


def read_state(folder: Path) -> dict[str, Any]:
    """`state.json` of a verified checkpoint; CheckpointError unless it is of the folder's own step."""
    try:
        state = read_json(folder / STATE)
        if state["step"] == step_of(folder) and isinstance(state.get("seconds", 0.0), int | float):
            return state
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    raise CheckpointError(
        f"checkpoint '{folder}' has a {STATE} that does not say where it stands; resume an older one, by "
        f"resume_from_checkpoint=STEP"
    )


def spared(store: CheckpointStore) -> int | None:
    """The step that the run may go back to, the best so far where evaluations decide; None where there is none."""
    with suppress(CheckpointError):
        folder, _ = store.find("latest")
        kept = None if folder is None else read_state(folder).get(KEPT)
        return kept if isinstance(kept, int) else None
    return None


def command(args: Any) -> int:
    """`diffdistill checkpoint ls|verify|prune RUN`."""
    store = CheckpointStore(Path(args.run) / "checkpoints", keep=1)
    folders = store.folders()
    if not folders:
        raise CheckpointError(f"'{args.run}' has no checkpoints; give a run folder of train or distill")
    if args.action == "prune":
        with locked(Path(args.run)):
            remove_leftovers(store.folder)
            for folder in store.prune(args.keep or 1, spared(store)):
                print(f"removed {folder.name}")
        return 0
    broken = False
    for folder in folders:
        size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file()) / 1e6
        problem = problem_of(folder) if args.action == "verify" else None
        broken |= problem is not None
        print(f"{folder.name}  {size:8.1f} MB" + ("" if args.action == "ls" else f"  {problem or 'ok'}"))
    return CheckpointError.exit_code if broken else 0
