"""The stand-in for an accelerator (`tests/worlds/standin.py`), and runs on it.

Torch has to know a device before the first backward pass of a process, so these tests are of one of their own, which
`tests/whole/test_standin.py` starts; by hand: `DIFFDISTILL_STANDIN=1 python -m pytest tests/standin`.
"""

import os

import pytest
import torch

from diffdistill import devices, machine

if os.environ.get("DIFFDISTILL_STANDIN") != "1":
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture
def there(monkeypatch):
    """The device, which commands and runs then find as they would find a GPU; it takes copies as CUDA does."""
    import standin

    monkeypatch.setattr(machine, "TAKES_COPIES", {"cuda", "standin"})
    monkeypatch.setattr(devices, "KNOWN", ("standin",))
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda *_: None)  # all is done already
    with standin.in_use() as device:
        yield device
