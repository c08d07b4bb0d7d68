"""The report of a stranger's run folder: nothing of it is markup, a program, another file, or more than fits."""

import json
import os
import struct
import subprocess
import zlib

import pytest

from diffdistill.reporting.forms import CONFIG, EVALUATIONS, formed
from diffdistill.reporting.report import write_report
from diffdistill.reporting.rundata import read_run

TAG = "<img src=x onerror=alert(1)>"
ODD = [
    TAG,
    None,
    3,
    -1,
    1e308,
    float("nan"),
    float("inf"),
    True,
    [],
    [TAG],
    {},
    {TAG: TAG},
    {"value": TAG},
    "9" * 9999,
]
EVALUATION = {
    "metrics": {"fid": {"value": 1.5, "standard_error": 0.1, "floor": {"value": 0.3, "n": 9}}, "new": {"value": 2}},
    "protocol": {
        "num_images": 5, "features": {"id": "a", "dim": 3, "sha256": "b"}, "seed": 0, "rewards": {"c": "d"},
        "reference": {"name": "e", "num_images": 6, "fingerprint": "f"}, "resize": "g", "texts": {"count": 2},
    },
    "warnings": ["h"], "sampling": {"evaluations": 1}, "figures": {"new": {"label": "i", "lower_is_better": True}},
}  # fmt: skip
FILES = {
    "evaluation.json": {"student": EVALUATION, "teacher": EVALUATION, "teacher at 5": EVALUATION},
    "environment.json": {"torch": "2", "threads": 1, "started": "now"},
    "student/diffdistill.json": {"levels": [2.5], "config_sha256": "ab"},
    "config.yaml": {
        "teacher": "t", "train_batch_size": 4, "data": {"path": "d"}, "student": {"steps": 2},
        "method": {"name": "m", "adversarial": {"optimizer": {"max_grad_norm": 1.0}}},
        "critic": {"optimizer": {"max_grad_norm": 1.0}}, "evaluation": {"stop": {"metric": "fid", "margin": 1}},
    },
    "metrics.jsonl": {"step": 3, "time": 2.5, "loss": 1.0, "critic/grad_norm": 2.0, "early_stop/kept": 2},
}  # fmt: skip


def places(value, path=()):
    """Every place in a record."""
    yield path
    for key, inner in value.items() if isinstance(value, dict) else ():
        yield from places(inner, (*path, key))


def replaced(value, path, odd):
    return odd if not path else value | {path[0]: replaced(value[path[0]], path[1:], odd)}


def folder_of(folder, files):
    (folder / "student").mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        text = json.dumps(content)
        lines = (json.dumps(replaced(FILES[name], ("step",), s)) + "\n" for s in range(1, 9))
        (folder / name).write_text("".join(lines) + text * 3 if name.endswith("jsonl") else text)
    return folder


PLACES = [(name, path) for name, content in FILES.items() for path in places(content)]


@pytest.mark.parametrize("odd", ODD, ids=range(len(ODD)))
def test_no_value_at_any_place_is_markup_or_a_crash(tmp_path, odd):
    """Places share a report, as many as can be replaced together: those of one depth."""
    for depth in range(5):
        files = FILES
        for name, path in PLACES:
            if len(path) == depth:
                files = files | {name: replaced(files[name], path, odd)}
        html = write_report(folder_of(tmp_path / "run", files)).read_text()
        assert TAG not in html
        assert html.endswith("</html>\n")


def test_names_are_escaped_too(tmp_path):
    files = FILES | {
        "evaluation.json": {TAG: {"metrics": {TAG: {"value": 1.0}}, "warnings": [TAG]}},
        "environment.json": {TAG: TAG},
        "metrics.jsonl": {"step": 3, "time": 1, TAG: 1.0, f"reward/{TAG}": 2.0},
    }
    folder = folder_of(tmp_path / "run", files)
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps(files["metrics.jsonl"] | {"step": s}) + "\n" for s in "123")
    )
    assert TAG not in write_report(folder).read_text()


def test_what_a_report_needs_is_kept():
    assert formed(FILES["config.yaml"], CONFIG) == FILES["config.yaml"]
    assert formed(FILES["evaluation.json"], EVALUATIONS) == FILES["evaluation.json"]


def test_laughs_and_depths_of_a_record_are_passed_over(tmp_path):
    folder = folder_of(tmp_path / "run", FILES)
    laughs = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30))
    (folder / "config.yaml").write_text(f"a0: &a0 [ha]\n{laughs}teacher: *a29\n")
    (folder / "environment.json").write_text("[" * 200_000)
    (folder / "metrics.jsonl").write_text('{"step": 1, "a": ' + "[" * 200_000 + "\n")
    run = read_run(folder)
    assert (run.config, run.environment, run.metrics) == ({}, {}, {})


def test_a_link_shows_no_other_file(tmp_path):
    (tmp_path / "secret").write_text("the key of the house")
    folder = folder_of(tmp_path / "run", FILES)
    (folder / "config.yaml").unlink()
    (folder / "config.yaml").symlink_to(tmp_path / "secret")
    assert "the key of the house" not in write_report(folder).read_text()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def one_bit_png(side):
    packer = zlib.compressobj(9)
    rows = b"".join([packer.compress(bytes(1 + (side + 7) // 8)) for _ in range(side)]) + packer.flush()
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"


@pytest.mark.parametrize(
    "picture", [EPS, one_bit_png(5000), one_bit_png(20_000), b"\x89PNG\r\n\x1a\n" + b"\0" * 99, b""]
)
def test_only_pictures_that_fit_are_shown(tmp_path, monkeypatch, picture):
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a program was started"))
    monkeypatch.setattr(os, "system", lambda *_: pytest.fail("a program was started"))
    folder = folder_of(tmp_path / "run", FILES)
    (folder / "samples").mkdir()
    (folder / "samples" / "step-000001.png").write_bytes(picture)
    (folder / "samples" / "step-\u00b2.png").write_bytes(picture)
    assert "<figcaption>Student, step" not in write_report(folder).read_text()
