"""`scripts/gpu_check.py`: rows that fail, are absent or take too long; the whole of it, tiny, on the CPU."""

import json
import sys
import time
from pathlib import Path

import pytest
import torch

SCRIPTS = str(Path(__file__).resolve().parents[2] / "scripts")


@pytest.fixture
def check(monkeypatch, tmp_path):
    """`main` with parts of the test's own; the content of its JSON, its table and what it returned."""
    monkeypatch.syspath_prepend(SCRIPTS)
    import gpu_check

    def run(*words, **parts):
        if parts:
            monkeypatch.setattr(gpu_check, "PARTS", parts)
        code = gpu_check.main(["--device", "cpu", "--tiny", "--out", str(tmp_path / "out"), *words])
        content = json.loads((tmp_path / "out" / "gpu_check.json").read_text())
        return content["parts"], (tmp_path / "out" / "gpu_check.md").read_text(), code

    yield run
    for name in ("gpu_check", "gpu_parts", "gpu_steps", "gpu_networks"):
        sys.modules.pop(name, None)


def test_a_row_that_fails_is_kept_and_the_rest_goes_on(check):
    from gpu_networks import Absent

    def broken():
        raise RuntimeError("no kernel\nfor this")

    def absent():
        raise Absent("nothing is there")

    def rows(look):
        yield "bad", broken
        yield "gone", absent
        yield "good", lambda: {"ms": 1.5, "mfu": 0.25, "kernel": "a|b"}
        raise ValueError("half of the part")

    parts, table, code = check(one=rows, two=lambda look: iter([("fine", lambda: {"ms": 2.0})]))
    assert parts["one"]["bad"]["error"] == "RuntimeError: no kernel for this"
    assert parts["one"]["gone"]["left out"] == "nothing is there"
    assert parts["one"]["the part"]["error"] == "ValueError: half of the part"
    assert parts["two"]["fine"]["ms"] == 2.0
    assert "| one | good | 1.5 |  |  |  | 0.25 | kernel a/b," in table
    assert code == 1


def test_the_budget_ends_a_row_and_those_after_it(check):
    def slow():
        try:
            time.sleep(20)
        except Exception:  # as a handler of errors within
            return {"ms": 0.0}

    rows = [("slow", slow), ("later", lambda: {"ms": 1.0})]
    parts, _, code = check("--budget", "0.005", one=lambda look: iter(rows))
    assert parts["one"]["slow"]["left out"] == "it took what was left of the budget"
    assert parts["one"]["later"]["left out"] == "the budget is spent"
    assert code == 0


def test_a_card_is_known_by_the_whole_of_its_name(check):
    from gpu_networks import peak_of

    assert peak_of("NVIDIA H100 80GB HBM3", "bfloat16") == 989.5e12
    assert peak_of("NVIDIA H100 PCIe", "tf32") == 378e12
    assert peak_of("NVIDIA A100-SXM4-80GB", "float32") == 19.5e12
    assert peak_of("NVIDIA A10", "bfloat16") == 125e12
    assert peak_of("NVIDIA A10G", "bfloat16") is None
    assert peak_of("NVIDIA L40", "bfloat16") is None


def test_noise_is_the_cpus_on_any_device(check):
    from gpu_steps import DrawnOnCpu

    def drawn(device):
        torch.manual_seed(0)
        like = torch.empty(2, device=device)
        with DrawnOnCpu():
            return torch.randn(2, device=device), torch.randn_like(like), torch.randint(0, 9, (2,), device=device)

    assert all(torch.equal(one, other) for one, other in zip(drawn("cpu"), drawn("cpu"), strict=True))
    assert {one.device.type for one in drawn("meta")} == {"meta"}


def test_a_part_of_it_tiny(check):
    parts, table, code = check("--only", "dit", "features")
    assert code == 0, table
    assert {row.partition(",")[0] for row in parts["dit"]} == {"forward", "whole", "LoRA"}
    forward, whole = (parts["dit"][f"{name}, bfloat16"]["tflop"] for name in ("forward", "whole"))
    assert 2.5 < whole / forward < 3.2  # what checkpointing computes again is not counted
    assert all(row["images_per_s"] > 0 for row in (parts["dit"] | parts["features"]).values())


@pytest.mark.slow
def test_all_of_it_tiny(check):
    parts, table, code = check()
    assert code == 0, table
    assert {name for name, rows in parts.items() if all("left out" in row for row in rows.values())} <= {
        "tests", "waits", "xformers",
    }  # fmt: skip
    assert all(row["gradients"] < 1e-6 for row in parts["methods"].values())
