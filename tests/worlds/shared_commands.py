"""Command lines that several processes run together: forked, each with the launcher's words of its rank."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from ranks import ended, start

from diffdistill import processes
from diffdistill.cli import main
from diffdistill.training.store import problem_of

LIMIT = 90.0
RUN = {
    "train_batch_size": 5, "log_every": 1, "sample_every": 0, "num_threads": 1, "checkpoint_every": 1,
    "keep_checkpoints": 10, "evaluation": {"at_end": False}, "max_train_steps": 6,
}  # fmt: skip
NETWORK = {"block_out_channels": [4], "norm_num_groups": 2, "attention_head_dim": 4, "attention_levels": []}


@dataclass(frozen=True)
class Ended:
    """Exit codes by rank, and what each said."""

    codes: list[int]
    said: list[str]

    def errors(self) -> list[tuple[int, str]]:
        """(rank, line) of every sentence of an error; nobody may show a traceback."""
        assert "Traceback" not in "".join(self.said), "".join(self.said)
        lines = [(rank, line) for rank, text in enumerate(self.said) for line in text.splitlines()]
        return [(rank, line) for rank, line in lines if line.startswith("diffdistill: error:")]


def world(folder: Path, name: str = "config") -> Path:
    """The config of a tiny run, with its data, in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (24, 8, 8), dtype=np.uint8)
    np.savez(folder / "data.npz", images=pixels, labels=np.arange(24) % 3)
    settings = {**RUN, "output_dir": "unused", "data": {"path": str(folder / "data.npz")}, "network": NETWORK}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(settings))
    return folder / f"{name}.yaml"


def words(config: Path, run: Path | str, *more: str) -> list[str]:
    return ["train", str(config), f"output_dir={run}", *more]


def together(argv, size, folder, within=None, limit=LIMIT) -> Ended:
    """A command line, or that of each rank where it is a function, on `size` processes; `within(rank)` goes before."""
    pids = launched(argv, size, folder, within)
    codes = ended(pids, limit)
    return Ended(codes, [(folder / f"{rank}.log").read_text(errors="replace") for rank in range(size)])


def launched(argv, size, folder, within=None) -> list[int]:
    """The pids of the processes, on their way."""

    def work(rank):
        os.environ["TQDM_DISABLE"] = "1"
        if within is not None:
            within(rank)
        return main(argv(rank) if callable(argv) else argv)

    return start(lambda rank: leaving(work, rank), size, folder)


def leaving(work, rank):
    """What ends an interpreter: the group is left, or not, as the package has it."""
    code = work(rank)
    processes._leave()
    return code


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by its name."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def weights(run: Path, step: int) -> dict[str, str]:
    """Digests of the tensors of a checkpoint."""
    return {n: d for n, d in digests(run / "checkpoints" / f"step-{step:06d}").items() if n.endswith(".safetensors")}


def whole(run: Path) -> list[str]:
    """The names of the checkpoints, all of which must be whole; nothing half-written lies in the run."""
    folders = sorted((run / "checkpoints").glob("step-*"))
    assert [folder.name for folder in folders if problem_of(folder) is not None] == []
    assert not list(run.rglob("*partial*")), list(run.rglob("*partial*"))
    return [folder.name for folder in folders]
