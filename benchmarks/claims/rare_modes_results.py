"""What `rare_modes.py` makes of its lines of results: the rates it chooses, the tables, the figure of the masses."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean

import torch
from plane import MODES, ORDER, MixtureTeacher, measures, ring_weights
from report import Row, print_pairs, read, write_claim

PAIRS = (
    ("f-distill, Jensen-Shannon", "DMD2"),
    ("f-distill, forward KL", "DMD2"),
    ("f-distill, forward KL", "reverse KL"),
    ("f-distill, ratio only, Jensen-Shannon", "reverse KL"),
    ("f-distill, ratio only, forward KL", "reverse KL"),
    ("f-distill, forward KL", "f-distill, forward KL, E[r] free"),
    ("f-distill, Jensen-Shannon", "f-distill, Jensen-Shannon, E[r] free"),
    ("Uni-Instruct, forward KL", "SiD, alpha 1"),
    ("Uni-Instruct, forward KL", "SiDA, alpha 1"),
    ("Uni-Instruct, forward KL", "DMD2"),
    ("Uni-Instruct, forward KL", "Uni-Instruct, forward KL, ratio detached"),
)


SHOWN = ("reverse KL", "DMD2", "f-distill, Jensen-Shannon", "f-distill, forward KL", "SiD, alpha 1", "SiDA, alpha 1",
         "Uni-Instruct, Jensen-Shannon", "Uni-Instruct, forward KL")  # fmt: skip


def chosen_rates(
    results: list[Row], rivals: Iterable[str], rates: Sequence[float], seeds: Sequence[int]
) -> dict[str, float]:
    """Of each rival, the rate with the least mean total variation on the tuning seeds."""
    chosen = {}
    for name in rivals:
        scores = {}
        for rate in rates:
            runs = [r["total_variation"] for r in results if r["rival"] == name and r["rate"] == rate]
            if len(runs) == len(seeds):
                scores[rate] = mean(runs)
        if scores:
            chosen[name] = min(scores, key=lambda rate: scores[rate])
    return chosen


def reference(protocol: Row) -> dict[str, Row]:
    """What the measures say of the mixture's own points."""
    torch.manual_seed(0)
    return {"the mixture itself": measures(MixtureTeacher().sample(protocol["drawn"]).flatten(1))}


def table(folder: Path, figure: Path, rivals: Sequence[str], protocol: Row) -> None:
    """Write docs/claims.json and the figure, print the tables: one for every number of updates that was run."""
    rows, tuning = read(folder / "rare_modes.jsonl"), read(folder / "rare_modes_tune.jsonl")
    columns = {
        "found": "modes found", "rare_mass": "rare mass", "total_variation": "total variation", "off": "off all modes",
        "forward_kl": "KL(teacher, student)", "reverse_kl": "KL(student, teacher)",
    }  # fmt: skip
    for updates in sorted({row["updates"] for row in rows}):
        name = "rare_modes" if updates == protocol["updates"] else f"rare_modes_{updates}"
        these, about = [row for row in rows if row["updates"] == updates], protocol | {"updates": updates}
        write_claim(
            name, about, these, tuning if updates == protocol["updates"] else [], rivals, columns, reference(protocol)
        )
        print_pairs(these, PAIRS, columns)
    draw_masses([row for row in rows if row["updates"] == max(row["updates"] for row in rows)], figure)


def draw_masses(rows: list[Row], figure: Path) -> None:
    """Mass of each mode over its true mass, from the most frequent to the rarest: mean and range over the seeds."""
    from matplotlib.figure import Figure

    masses = {rival: [row["mass"] for row in rows if row["rival"] == rival] for rival in SHOWN}
    shown = [rival for rival in SHOWN if masses[rival]]
    columns = (len(shown) + 1) // 2
    sheet = Figure(figsize=(2.3 * columns, 4.2), layout="constrained")
    axes = sheet.subplots(2, columns, sharex=True, sharey=True, squeeze=False).flat
    ranked = torch.tensor(ORDER).argsort()
    shares = ring_weights()[ranked]
    for axis, rival in zip(axes, shown, strict=False):
        ratio = (torch.tensor(masses[rival], dtype=torch.float64)[:, ranked] / shares).clamp_min(0.01)
        middle, low, high = ratio.mean(0), ratio.amin(0), ratio.amax(0)
        axis.errorbar(range(MODES), middle, yerr=torch.stack([middle - low, high - middle]), fmt="o", ms=3, capsize=2)
        axis.axhline(1, color="gray", lw=0.8)
        axis.set(yscale="log", ylim=(0.008, 10))
        axis.set_title(rival, fontsize=8)
        axis.set_xticks(range(MODES), [f"{100 * w:.2g}" for w in shares], fontsize=6)
    sheet.supxlabel("true mass of the mode, %", fontsize=8)
    sheet.supylabel("student's mass / true mass", fontsize=8)
    sheet.savefig(figure, dpi=80)
