"""The stand-in for an accelerator (`tests/worlds/standin.py`), and runs on it."""

from types import SimpleNamespace

import pytest
import standin

from diffdistill import machine


@pytest.fixture
def there(monkeypatch):
    """The device, which commands and runs then find as they would find a GPU; it takes copies as CUDA does."""
    monkeypatch.setattr(machine, "TAKES_COPIES", {"cuda", "standin"})
    found = SimpleNamespace(device=standin.device())
    monkeypatch.setattr("diffdistill.training.device.PartialState", lambda: found)
    for module in ("sampling.run", "sampling.generate", "training.monitors.images", "training.monitors.texts"):
        name = f"diffdistill.{module}.pick_device"
        monkeypatch.setattr(name, lambda name: standin.device(), raising=False)
    with standin.in_use() as device:
        yield device
