"""The examples in the docstrings of the metrics run as they stand."""

import doctest
from importlib import import_module

import pytest

MODULES = ("frechet", "kernel", "precision_recall", "entropy", "clip_mmd", "clip_similarity")


@pytest.mark.parametrize("name", MODULES)
def test_an_example_gives_what_it_says(name: str):
    result = doctest.testmod(import_module(f"diffdistill.evaluation.{name}"))
    assert (result.failed, result.attempted > 0) == (0, True)
