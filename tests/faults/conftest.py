"""One workshop a process, with everything imported; every test here is a `fault`."""

import importlib.util
import os
from pathlib import Path

import pytest

os.environ["TQDM_DISABLE"] = "1"
HERE = Path(__file__).parent
TEXTS = importlib.util.find_spec("transformers") is not None


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("fault")
    items.sort(key=lambda item: item.path.name != "test_fault_soak.py")  # the longest first


@pytest.fixture(scope="session")
def shop(tmp_path_factory):
    from harness import imported, workshop

    root = tmp_path_factory.mktemp("faults")
    os.environ["DIFFDISTILL_CACHE"] = str(root / "cache")
    imported()
    return workshop(root, TEXTS)


@pytest.fixture(params=["train", "distill", "distill_text", "align"])
def kind(request):
    """Every kind of run; the last two need transformers."""
    if request.param in ("distill_text", "align"):
        pytest.importorskip("transformers")
    return request.param
