"""Parts of `scripts/gpu_check.py` on the device: where it would mix tensors of two, it fails here first."""

import json

import pytest


@pytest.mark.slow
def test_parts_that_need_no_kernels_of_their_own(there, tmp_path, monkeypatch, root):
    monkeypatch.syspath_prepend(str(root / "scripts"))
    import gpu_check
    import gpu_steps

    class OneMethod:
        names = staticmethod(lambda: ("sid",))

    monkeypatch.setattr(gpu_steps, "METHODS", OneMethod)
    parts = ["methods", "dit", "sampling", "features"]
    assert gpu_check.main(["--device", "standin", "--tiny", "--out", str(tmp_path), "--only", *parts]) == 0
    content = json.loads((tmp_path / "gpu_check.json").read_text())
    assert content["about"]["card"] == "standin"
    assert content["parts"]["methods"]["sid"]["gradients"] < 1e-3
    assert all(row["images_per_s"] > 0 for part in parts[1:] for row in content["parts"][part].values())
