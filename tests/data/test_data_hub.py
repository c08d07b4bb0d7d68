"""Sets of the package `datasets`: the package itself on a folder of this machine where it is installed, else what its
documentation says of it (`load_dataset`, `DatasetDict`, `Dataset`, `Column`, `Image(decode=False)`)."""

import importlib.util
import sys
import types

import numpy as np
import pytest
import torch
from kept_world import encoded
from PIL import Image

from diffdistill.data import load_images
from diffdistill.data.formats import hub
from diffdistill.errors import DataError

ROWS = 6
NAMES = ["cat", "dog"]
INSTALLED = importlib.util.find_spec("datasets") is not None


def picture(number):
    return encoded(Image.new("L", (8, 8), 10 * number))


def columns(split_of):
    return {
        "image": [{"bytes": picture(i), "path": None} for i in range(ROWS)],
        "label": [i % 2 for i in range(ROWS)],
        "text": [f"text {i}" for i in range(ROWS)],
        "split": [split_of(i) for i in range(ROWS)],
    }


class Column:
    """Values that are read as they are asked for: a sequence, and no list."""

    def __init__(self, values):
        self.values = values

    def __iter__(self):
        return iter(self.values)

    def __len__(self):
        return len(self.values)

    def __getitem__(self, place):
        return self.values[place]


class Dataset:
    def __init__(self, columns, splits, decoded=True):
        self.columns, self.info, self.decoded = columns, types.SimpleNamespace(splits=splits), decoded
        self.features = {"label": types.SimpleNamespace(names=NAMES)}
        self._fingerprint = "0123456789abcdef"

    @property
    def column_names(self):
        return list(self.columns)

    def __len__(self):
        return ROWS

    def __iter__(self):
        return (self[row] for row in range(ROWS))

    def __getitem__(self, key):
        if isinstance(key, str):
            return Column(self.columns[key])
        assert not self.decoded, "pictures are asked for as they are stored"
        return {name: values[key] for name, values in self.columns.items()}

    def cast_column(self, column, feature):
        assert column == "image"
        return Dataset(self.columns, self.info.splits, feature.decode)

    def select_columns(self, names):
        return Dataset({name: self.columns[name] for name in names}, self.info.splits, self.decoded)


def fake(sets):
    def load_dataset(name, split=None):
        if name not in sets:
            raise FileNotFoundError(f"Dataset '{name}' doesn't exist on the Hub or cannot be accessed.")
        tables = {part: Dataset(columns, dict.fromkeys(sets[name])) for part, columns in sets[name].items()}
        if split is None:
            return tables
        if split not in tables:
            raise ValueError(f'Unknown split "{split}". Should be one of {list(tables)}.')
        return tables[split]

    return types.SimpleNamespace(load_dataset=load_dataset, Image=lambda decode: types.SimpleNamespace(decode=decode))


def published(folder, sets, monkeypatch):
    """Sets as files, which `datasets` reads from a folder as from the Hub."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)}
    features = datasets.Features(kinds | dict.fromkeys(("text", "split"), datasets.Value("string")))
    for name, parts in sets.items():
        (folder / name).mkdir(parents=True)
        for part, values in parts.items():
            table = datasets.Dataset.from_dict(values, features=features)
            table.to_parquet(folder / name / f"{part}-00000-of-00001.parquet")
    load = datasets.load_dataset

    def load_dataset(name, split=None):
        return load(str(folder / name), split=split, cache_dir=str(folder / "cache"))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)


SETS = {
    "one/split": {"train": columns(lambda row: "train" if row % 3 else "test")},
    "two/splits": {"train": columns(lambda row: "kept"), "test": columns(lambda row: "too")},
}


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.skipif(not INSTALLED, reason="no datasets"))])
def sets(request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIFFDISTILL_CACHE", str(tmp_path / "own"))
    if request.param == "fake":
        monkeypatch.setitem(sys.modules, "datasets", fake(SETS))
    else:
        published(tmp_path / "hub", SETS, monkeypatch)


def holds(data, rows):
    expected = np.stack([np.full((1, 8, 8), 10 * row, np.uint8) for row in rows])
    assert torch.equal(data.images[:], torch.from_numpy(expected))
    assert data.labels.tolist() == [row % 2 for row in rows]
    assert data.texts == tuple(f"text {row}" for row in rows)
    assert data.class_names == tuple(NAMES)


@pytest.mark.parametrize("keep", ["memory", "disk", "source"])
@pytest.mark.usefixtures("sets")
def test_a_column_says_the_splits_of_a_set_that_has_one(keep):
    holds(load_images("one/split", keep=keep), [1, 2, 4, 5])
    test = load_images("one/split", split="test", keep=keep)
    holds(test, [0, 3])
    assert torch.equal(test.images[torch.tensor([1, 0])], test.images[:].flip(0))
    holds(load_images("two/splits", split="test", keep=keep), range(ROWS))


@pytest.mark.usefixtures("sets")
def test_what_the_hub_does_not_give_is_a_sentence():
    with pytest.raises(DataError, match=r"^one/split has no split 'validation': choose one of test, train$"):
        load_images("one/split", split="validation")
    with pytest.raises(DataError, match=r"'two/splits', and the Hub did not give it \(Unknown split \"validation\""):
        load_images("two/splits", split="validation")
    with pytest.raises(DataError, match=r"there is no file or folder 'no/such', and the Hub did not give it"):
        load_images("no/such")


def test_rows_are_named_by_their_place_in_the_table():
    encoded = SETS["two/splits"]["train"]["image"]
    table = hub.Rows([{"image": one} for one in encoded], "image", "two/splits", [4])
    assert list(table) == list(table.at([0])) == [("row 4 of two/splits", picture(4))]
