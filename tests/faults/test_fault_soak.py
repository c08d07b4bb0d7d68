"""Long runs: 20,000 updates and 50,000 images on a tiny network take no more memory, files or threads with time."""

import os
import time
from pathlib import Path

from counts import SCALE, counting, tries
from harness import spawn, wait

GROWTH = 0.01
NETWORK = {"network.block_out_channels": "[4]", "network.attention_levels": "[]", "train_batch_size": "2"}
LEAST = {"updates": 500, "images": 4000}  # of which anything can be seen
EVERY = 0.02  # seconds between two looks


def _look(pid: int) -> tuple[int, int, int] | None:
    """Resident bytes, open files and threads of a process; None when it is over."""
    home = Path(f"/proc/{pid}")
    try:
        lines = dict(line.split(":", 1) for line in (home / "status").read_text().splitlines() if ":" in line)
        return int(lines["VmRSS"].split()[0]) * 1024, len(os.listdir(home / "fd")), int(lines["Threads"])
    except (OSError, KeyError):
        return None


def _watched(shop, words: list[object], work: tuple[Path, str]) -> tuple[int, str, list[tuple[int, int, int]]]:
    """Looks from the first work on, a file of that pattern below that folder: what is loaded before is no growth."""
    log = shop.root / "soak.txt"
    pid, looks, begun = spawn(words, log), [], False
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        begun = begun or next(work[0].rglob(work[1]), None) is not None
        if begun and (look := _look(pid)) is not None:
            looks.append(look)
        time.sleep(EVERY)
    return wait(pid), log.read_text(errors="replace"), looks


def _middle(values: list[int]) -> float:
    return sorted(values)[len(values) // 2]


def _judge(shop, counts, words: list[object], count: int, work: tuple[Path, str]) -> None:
    code, text, looks = _watched(shop, words, work)
    if code or len(looks) < 20:
        counts.wrong(f"exit {code}, {len(looks)} looks: {text[-300:]}")
        return
    # Warming up and the end (a report, a picture) apart: a fifth of the time after the start, and the last but one.
    fifth = len(looks) // 10
    early, late = looks[2 * fifth : 4 * fifth], looks[-3 * fifth : -fifth]
    growth = _middle([look[0] for look in late]) / _middle([look[0] for look in early]) - 1
    # A picture is open for writing at one look and not at the next; what is never closed passes the most of before.
    files, threads = ((max(look[i] for look in early), min(look[i] for look in late)) for i in (1, 2))
    counts.facts |= {"growth in %": round(100 * growth, 3), "open files": files[1], "threads": threads[1]}
    wrong = []
    if growth >= GROWTH and SCALE == "full":  # of a short run the warming up is too large a part
        wrong.append(f"memory grew by {100 * growth:.2f} %")
    wrong += [f"{name} {a} -> {b}" for name, (a, b) in {"open files": files, "threads": threads}.items() if b > a]
    if wrong:
        counts.wrong(", ".join(wrong))
    else:
        counts.tried += count
        counts.outcomes["constant"] += count


RIGHT = "resident memory grows by less than 1 % from the first fifth on, open files and threads do not"


def test_updates(shop):
    least = LEAST["updates"]
    count, out = max(least, tries(20_000, least)), shop.folder("soak") / "run"
    settings = [f"{key}={value}" for key, value in NETWORK.items()]
    rare = [f"log_every={max(1, count // 200)}", f"checkpoint_every={max(1, count // 20)}"]
    with counting("soak", "updates of train", RIGHT) as counts:
        _judge(shop, counts, shop.words("train", out, count, *settings, *rare), count, (out.parent, "metrics.jsonl"))


def test_images(shop):
    least = LEAST["images"]
    count, out = max(least, tries(50_000, least)), shop.folder("soak-images") / "images"
    student = shop.root / "student" / "student"
    with counting("soak", "images of sample", RIGHT) as counts:
        _judge(shop, counts, ["sample", student, "--num-images", count, "--out", out], count, (out.parent, "*.png"))
