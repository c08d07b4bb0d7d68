"""The tests of the stand-in device, in a process of their own: torch has to know it before its first backward pass."""

import os
import subprocess
import sys

import pytest


def ran(root, *words):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *words]
    environment = {**os.environ, "DIFFDISTILL_STANDIN": "1", "PYTHONPATH": str(root)}
    environment = {name: value for name, value in environment.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_on_the_stand_in_device_runs_what_runs_on_the_cpu(root):
    ran(root, "tests/standin", "--ignore=tests/standin/test_texts.py")


def test_on_the_stand_in_device_texts_are_drawn_and_trained(root):
    pytest.importorskip("transformers")
    ran(root, "tests/standin/test_texts.py")
