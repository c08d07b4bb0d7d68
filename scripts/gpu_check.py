"""One command for a GPU that this package has never seen: what runs there, is it right, how fast is it.

    python scripts/gpu_check.py                                   about 8 minutes on one card of 80 GB
    python scripts/gpu_check.py --only methods steps --budget 3
    python scripts/gpu_check.py --device cpu --tiny               the same code on any machine, in seconds

Rows are printed as they come and `gpu_check.json` is written after each; `gpu_check.md` is the table. A row that
fails is kept with its error in one line, and the rest goes on; rows for which the budget leaves no time say so.
Networks have random weights, and nothing is fetched.
"""

import argparse
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from gpu_networks import Absent, Figures, Look, forget
from gpu_parts import PARTS

from diffdistill import devices
from diffdistill.errors import ConfigError
from diffdistill.files import reason_of, write_json, write_text
from diffdistill.training.run_folder import environment

COLUMNS = {  # of the table: what is shown of a row, in this order
    "ms": ".4g", "images_per_s": ".4g", "peak_gb": ".3g", "tflop_per_s": ".4g", "mfu": ".2f",
}  # fmt: skip


class OutOfTime(BaseException):
    """A row took what was left of the budget; nothing that handles errors may take it for one."""


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """OutOfTime in the midst of work that takes longer, where the system has such a clock."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def ring(*_: Any) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.01))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Check:
    """Parts in their order, their rows written as they come."""

    def __init__(self, device: torch.device, tiny: bool, minutes: float, out: Path):
        self.until = time.monotonic() + 60 * minutes
        self.out = out
        self.look = Look(device, tiny, self.left)
        kind = devices.name_of(device) if device.type in devices.KNOWN else "CPU"
        about = {"card": kind, "device": str(device), "tiny": tiny, "budget_minutes": minutes}
        if device.type in devices.KNOWN:
            about["memory_gb"] = devices.total_memory(device) / 1e9
        self.content: dict[str, Any] = {"about": about | environment(), "parts": {}}

    def left(self) -> float:
        return self.until - time.monotonic()

    def run(self, names: list[str]) -> bool:
        """Whether no row failed."""
        whole = True
        for name in names:
            rows = self.content["parts"].setdefault(name, {})
            print(f"\n{name}", flush=True)
            for row, work in self._rows(name):
                forget(self.look.device)
                began = time.monotonic()
                figures = self._of(work)
                rows[row] = figures | {"seconds": round(time.monotonic() - began, 2)}
                whole = whole and "error" not in figures
                print(f"  {row:<34} {said(figures)}", flush=True)
                self.write()
        return whole

    def _rows(self, name: str) -> Iterator[tuple[str, Callable[[], Figures]]]:
        try:
            yield from PARTS[name](self.look)
        except Absent as why:
            left_out = {"left out": str(why)}
            yield "the part", lambda: left_out
        except Exception as error:
            broken = {"error": in_a_line(error)}
            yield "the part", lambda: broken

    def _of(self, work: Callable[[], Figures]) -> Figures:
        if self.left() <= 0:
            return {"left out": "the budget is spent"}
        try:
            with within(self.left()):
                return work()
        except Absent as why:
            return {"left out": str(why)}
        except OutOfTime:
            return {"left out": "it took what was left of the budget"}
        except Exception as error:
            return {"error": in_a_line(error)}

    def write(self) -> None:
        write_json(self.out / "gpu_check.json", self.content)
        write_text(self.out / "gpu_check.md", table(self.content))


def in_a_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {reason_of(error)}"[:300]


def said(figures: Figures) -> str:
    return ", ".join(f"{name} {short(value)}" for name, value in figures.items())


def short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def table(content: dict[str, Any]) -> str:
    """The results in Markdown."""
    about = content["about"]
    lines = [f"{about['card']}, torch {about['torch']}, diffusers {about['diffusers']}, {about['started']}", ""]
    lines += [f"| part | row | {' | '.join(COLUMNS)} | more |", f"|{'---|' * (len(COLUMNS) + 3)}"]
    for part, rows in content["parts"].items():
        for row, figures in rows.items():
            shown = [cell(figures.get(name), form) for name, form in COLUMNS.items()]
            more = {name: value for name, value in figures.items() if name not in (*COLUMNS, "ms_least", "tflop")}
            lines.append(" | ".join([f"| {part}", row, *shown, f"{said(more).replace('|', '/')} |"]))
    return "\n".join(lines) + "\n"


def cell(value: Any, form: str) -> str:
    return "" if value is None else value if isinstance(value, str) else format(value, form)


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", help="auto, cuda, cuda:N, xpu, mps or cpu (default: auto)")
    parser.add_argument("--budget", type=float, default=8.0, metavar="MINUTES")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--out", type=Path, default=Path("gpu_check"), metavar="FOLDER")
    parser.add_argument("--tiny", action="store_true", help="small networks, to try this script itself")
    options = parser.parse_args(words)
    try:
        device = devices.pick_device(options.device)
    except ConfigError as error:
        parser.error(str(error))
    options.out.mkdir(parents=True, exist_ok=True)
    check = Check(device, options.tiny, options.budget, options.out)
    print(json.dumps(check.content["about"], indent=1))
    whole = check.run(options.only or list(PARTS))
    print(f"\n{table(check.content)}\n{options.out / 'gpu_check.json'}")
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())
