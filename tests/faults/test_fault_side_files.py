"""A run folder whose side files a power loss emptied, tore or filled with zeros: resumed, or refused in a sentence."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

from counts import chosen, counting
from harness import Workshop

LAST = "checkpoints/step-000002"
Damage = Callable[[Path], object]


def _text(name: str, data: bytes) -> Damage:
    def damage(run: Path) -> None:
        (run / name).write_bytes(data)

    return damage


def _becomes_folder(name: str) -> Damage:
    def damage(run: Path) -> None:
        (run / name).unlink(missing_ok=True)
        (run / name).mkdir()

    return damage


def _becomes_file(name: str) -> Damage:
    def damage(run: Path) -> None:
        shutil.rmtree(run / name, ignore_errors=True)
        (run / name).write_text("x")

    return damage


def _state(text: str) -> Damage:
    """Another state.json, and a manifest that fits it: whole by its digests, wrong by its words."""

    def damage(run: Path) -> None:
        folder, data = run / LAST, text.encode()
        (folder / "state.json").write_bytes(data)
        manifest = json.loads((folder / "MANIFEST.json").read_text())
        manifest["files"]["state.json"] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        (folder / "MANIFEST.json").write_text(json.dumps(manifest))

    return damage


def _all_manifests_empty(run: Path) -> None:
    for folder in (run / "checkpoints").iterdir():
        (folder / "MANIFEST.json").write_text("")


def _manifest(text: bytes) -> Damage:
    return _text(f"{LAST}/MANIFEST.json", text)


CASES: dict[str, Damage] = {
    **{
        f"{name}: {what}": _text(name, data)
        for name in ("environment.json", "metrics.jsonl", "config.yaml", f"{LAST}/MANIFEST.json")
        for what, data in {
            "empty": b"", "zeros": bytes(4096), "no text": b"\xff\xfe\x00" * 50, "a list": b"[1]\n",
            "a number": b"3\n4\n", "null": b"null\n", "deep": b"[" * 100_000, "cut": b'{"step": 1, "ti',
        }.items()
    },
    "metrics.jsonl: a step that is text": _text("metrics.jsonl", b'{"step": "x"}\n'),
    "metrics.jsonl: an infinite step": _text("metrics.jsonl", b'{"step": Infinity}\n'),
    **{f"{name} is a folder": _becomes_folder(name)
       for name in ("metrics.jsonl", "environment.json", "config.yaml", "report.html")},
    **{f"{name} is a file": _becomes_file(name) for name in ("samples", "checkpoints", LAST, "model")},
    "config.yaml is gone": lambda run: (run / "config.yaml").unlink(),
    "environment.json is gone": lambda run: (run / "environment.json").unlink(),
    "metrics.jsonl is gone": lambda run: (run / "metrics.jsonl").unlink(),
    "every MANIFEST.json is empty": _all_manifests_empty,
    "a folder step-abc": lambda run: (run / "checkpoints/step-abc").mkdir(),
    "a manifest of files elsewhere": _manifest(b'{"files": {"../../config.yaml": {"size": 1, "sha256": "x"}}}'),
    "a manifest of no files": _manifest(b'{"files": {}}'),
    "an empty model folder": lambda run: (shutil.rmtree(run / "model"), (run / "model").mkdir()),
    "state.json of an older version": _state('{"step": 2, "seconds": 1}'),
    "state.json of another step": _state('{"step": 7, "seconds": 1, "threads": 1}'),
    "state.json whose step is text": _state('{"step": "x", "seconds": 1, "threads": 1}'),
    "state.json that is a list": _state("[]"),
}  # fmt: skip


def test_damaged_side_files(shop: Workshop):
    """Checkpoints are whole, or some are: what lies beside them is lost. Exit 0, or 2 to 6 with a sentence."""
    base = shop.folder("sides") / "base"
    run = base.with_name("run")
    shop.must(shop.words("train", base, 2))
    right = "resumed to the end, or refused with a sentence"
    with counting("damage", "side files of a run emptied, torn, gone or exchanged", right) as counts:
        for name in chosen(list(CASES), 6):
            shutil.rmtree(run, ignore_errors=True)
            shutil.copytree(base, run)
            CASES[name](run)
            done = shop.run(shop.words("train", run, 3, "resume_from_checkpoint=latest"))
            good = done.clean and done.code in (0, 2, 3, 4, 6)
            outcome = "resumed" if done.code == 0 else f"refused, exit {done.code}"
            if done.code == 0 and not (run / "model" / "model_index.json").is_file():
                good, done = False, done.__class__(0, "ended well, and published no model")
            counts.judge(None if good else str(done), outcome, name)
