"""One set is one set: written in every format it is read back the same, and measures the same to the last digit."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from writers_of_data import WRITERS, Set

from diffdistill.data import load_images
from diffdistill.evaluation import frechet_distance

pytest.importorskip("pyarrow")

# Names as folders, tables and tar files can all hold them; classes are in the order that they are sorted in.
LETTERS = st.characters(codec="utf-8", categories=["L", "N", "Zs", "Po"], exclude_characters="./\\")
NAME = st.text(LETTERS, min_size=1, max_size=8).map(lambda word: f"k{word}z")
TEXT = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp", "Nd"]), min_size=1, max_size=20
)


@st.composite
def sets(draw) -> Set:
    from diffdistill.data.labels import classes_of, whole_name

    counts = draw(st.lists(st.integers(1, 2), min_size=2, max_size=11))
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    shape = (draw(st.integers(5, 9)), draw(st.integers(5, 9)), *draw(st.sampled_from([(), (3,)])))
    pixels = np.random.default_rng(draw(st.integers(0, 2**32))).integers(0, 256, (len(labels), *shape), dtype=np.uint8)
    names = None
    if draw(st.booleans()):
        keys = st.lists(NAME.map(whole_name), min_size=len(counts), max_size=len(counts), unique_by=str.casefold)
        names = classes_of(draw(keys), "the set")
    texts = draw(st.none() | st.lists(TEXT, min_size=len(labels), max_size=len(labels)))
    return Set(pixels, labels, names, texts)


@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
@given(sets())
def test_every_format_reads_back_what_was_written(given):
    expected = given.images if given.images.ndim == 4 else given.images[..., None]
    prints = {}
    for kind, (write, holds_names, holds_texts) in WRITERS.items():
        with tempfile.TemporaryDirectory() as folder:
            found = load_images(str(write(given, Path(folder))))
        assert np.array_equal(found.images.numpy(), expected.transpose(0, 3, 1, 2)), kind
        assert found.labels is not None, kind
        assert found.labels.tolist() == given.labels, kind
        assert found.class_names == (given.names if holds_names else None), kind
        assert found.texts == (None if given.texts is None or not holds_texts else tuple(given.texts)), kind
        assert found.num_classes == max(given.labels) + 1, kind
        prints[kind] = (found.texts is not None, found.fingerprint)
    assert len(set(prints.values())) == (1 if given.texts is None else 2), prints


def features(images: torch.Tensor) -> torch.Tensor:
    """A few numbers of each image: means of its quarters."""
    return torch.nn.functional.adaptive_avg_pool2d(images.double(), 2).flatten(1)


def test_every_format_has_one_fid(tmp_path):
    chance = np.random.default_rng(0)
    labels = [0] * 9 + [1] * 8 + [2] * 7
    pixels = chance.integers(0, 256, (24, 8, 8, 3), dtype=np.uint8)
    made = Set(pixels, labels, ("a", "b9", "b10"), None)
    generated = features(torch.from_numpy(chance.integers(0, 256, (24, 3, 8, 8), dtype=np.uint8)))
    figures = {}
    for kind, (write, _, _) in WRITERS.items():
        real = load_images(str(write(made, tmp_path)))
        figures[kind] = frechet_distance(features(real.images), generated)
    assert next(iter(figures.values())) > 0
    assert len(set(figures.values())) == 1, figures
