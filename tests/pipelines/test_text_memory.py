"""What the memory of an SDXL recipe is said to be: the counted parts against known sizes, and against a card."""

import runpy
import sys

import pytest

pytest.importorskip("transformers")
pytest.importorskip("peft")

CARD = 24 * 2**30 / 1e9  # GB of a card of 24 GiB
SDXL_UNET = 2_567_463_684  # parameters, as published


@pytest.mark.slow
def test_the_sdxl_lora_recipe_fits_a_card_of_24_gib(root, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(root / "benchmarks"), *sys.path])
    script = runpy.run_path(str(root / "benchmarks" / "distillation_memory.py"))
    found = script["lora_step"](1024, 64, heads=False, fisher=False)
    assert found["weights"] == pytest.approx((2 * SDXL_UNET + script["BESIDE"]) / 1e9, rel=1e-9)
    # Student, critic and average are alike; the first two have gradients and two moments.
    adapter = found["adapters, average and heads"] / 3
    assert found["gradients"] == pytest.approx(2 * adapter)
    assert found["moments"] == pytest.approx(4 * adapter)
    # A quarter is left for what single operations need.
    assert sum(found.values()) < 0.75 * CARD
