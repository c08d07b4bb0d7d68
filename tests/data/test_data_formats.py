"""Every format gives back the same twelve pictures, labels and texts."""

import gzip
import io
import json
import lzma
import os
import struct
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffdistill.data import fingerprint, load_images
from diffdistill.data.formats import idx as reader
from diffdistill.errors import DataError

COLOUR = np.random.default_rng(0).integers(0, 256, (12, 5, 7, 3), dtype=np.uint8)
GRAY = COLOUR[..., 0]
LABELS = np.arange(12) % 3
NAMES = ("ankle boot", "bag", "coat")
TEXTS = [f"picture {i}, “größer”" for i in range(12)]


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def same(data, pixels=COLOUR, labels=LABELS, texts=None, class_names=None, **kwargs):
    """Loads, and compares with what was written; gray pixels are (N, H, W)."""
    got = load_images(str(data), **kwargs)
    pixels = pixels[..., None] if pixels.ndim == 3 else pixels
    assert got.images.dtype == torch.uint8
    assert got.images.is_contiguous()
    assert np.array_equal(got.images.numpy(), pixels.transpose(0, 3, 1, 2))
    assert (got.labels is None) == (labels is None)
    if labels is not None:
        assert got.labels.dtype == torch.int64
        assert got.labels.tolist() == list(labels)
    assert got.texts == (None if texts is None else tuple(texts))
    assert got.class_names == class_names
    assert got.name == str(data)
    assert got.fingerprint == fingerprint(pixels.transpose(0, 3, 1, 2), labels, got.texts)
    return got


def write_flat(folder: Path, pixels=COLOUR) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, picture in enumerate(pixels):
        (folder / f"{i:05d}.png").write_bytes(png(picture))


def write_classes(folder: Path) -> np.ndarray:
    """Class subfolders; returns the order in which they are read: by class, then by name."""
    for i, picture in enumerate(COLOUR):
        path = folder / NAMES[LABELS[i]] / f"{i:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(picture))
    return np.argsort(LABELS, kind="stable")


def idx(values: np.ndarray) -> bytes:
    return struct.pack(f">4B{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()


def test_flat_folder_reads_pictures_by_name_without_labels(tmp_path):
    write_flat(tmp_path)
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / ".hidden.png").write_bytes(b"not a picture either")
    (tmp_path / "empty").mkdir()
    got = same(tmp_path, labels=None)
    assert len(got) == 12
    assert got.num_classes is None


def test_the_grid_beside_samples_is_not_a_sample(tmp_path):
    write_flat(tmp_path)
    Image.new("RGB", (70, 50)).save(tmp_path / "grid.png")
    (tmp_path / "samples.json").write_text("{}")
    same(tmp_path, labels=None)


def test_class_subfolders_are_labels_in_the_order_of_their_names(tmp_path):
    order = write_classes(tmp_path)
    got = same(tmp_path, COLOUR[order], LABELS[order], class_names=NAMES)
    assert got.num_classes == 3


def test_split_subfolders(tmp_path):
    order = write_classes(tmp_path / "train")
    write_flat(tmp_path / "test", GRAY)
    same(tmp_path, COLOUR[order], LABELS[order], class_names=NAMES)
    same(tmp_path, GRAY, None, split="test")
    with pytest.raises(DataError, match=r"no split 'validation': choose one of test, train$"):
        load_images(str(tmp_path), split="validation")


def test_a_class_named_train_among_others_is_a_class(tmp_path):
    for name in ("bus", "train"):
        write_flat(tmp_path / name)
    assert load_images(str(tmp_path)).class_names == ("bus", "train")


@pytest.mark.parametrize("kind", ["label", "text", "both", "names"])
@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_folder_with_metadata(tmp_path, kind, form):
    write_flat(tmp_path / "pictures")
    order = list(range(11, -1, -1))  # the order of the rows, not of the names
    rows = [{"file_name": f"pictures/{i:05d}.png"} for i in order]
    for row, i in zip(rows, order, strict=True):
        if kind in ("label", "both"):
            row["label"] = int(LABELS[i])
        if kind == "names":
            row["label"] = NAMES[LABELS[i]]
        if kind in ("text", "both"):
            row["text"] = TEXTS[i]
    if form == "jsonl":
        text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n"
    else:
        quoted = [",".join(f'"{value}"' for value in row.values()) for row in rows]
        text = "\r\n".join([",".join(rows[0]), *quoted])
    (tmp_path / f"metadata.{form}").write_text("\ufeff" + text, encoding="utf-8")  # a byte order mark does no harm
    same(
        tmp_path,
        COLOUR[order],
        None if kind == "text" else LABELS[order],
        [TEXTS[i] for i in order] if kind in ("text", "both") else None,
        NAMES if kind == "names" else None,
    )


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("zipped", [True, False])
def test_edm_layout(tmp_path, zipped, labelled):
    files = [f"{i // 5:05d}/img{i:08d}.png" for i in range(12)]
    listing = [[file, int(label)] for file, label in zip(files, LABELS, strict=True)]
    contents = {file: png(picture) for file, picture in zip(files, COLOUR, strict=True)}
    contents["dataset.json"] = json.dumps({"labels": listing[::-1] if labelled else None}).encode()
    target = tmp_path / ("set.zip" if zipped else "set")
    if zipped:
        with zipfile.ZipFile(target, "w") as archive:
            for name in reversed(contents):  # read by name, not by place
                archive.writestr(name, contents[name])
            archive.writestr("__MACOSX/._img.png", b"rubbish")
    else:
        for name, data in contents.items():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes(data)
    same(target, labels=LABELS if labelled else None)


@pytest.mark.parametrize(
    ("images", "labels"), [("images", "labels"), ("x", "y"), ("arr_0", "arr_1"), ("x_train", "y_train")]
)
@pytest.mark.parametrize("layout", ["NHWC", "NCHW", "NHW"])
def test_npz(tmp_path, layout, images, labels):
    pixels = {"NHWC": COLOUR, "NCHW": COLOUR.transpose(0, 3, 1, 2), "NHW": GRAY}[layout]
    save = np.savez if layout == "NHW" else np.savez_compressed
    save(tmp_path / "set.npz", **{images: pixels, labels: LABELS.astype(np.uint8)[:, None]})
    same(tmp_path / "set.npz", GRAY if layout == "NHW" else COLOUR)


def test_npz_splits_and_npy(tmp_path):
    np.savez(tmp_path / "a.npz", train_images=COLOUR, train_labels=LABELS, test_images=GRAY)
    same(tmp_path / "a.npz")
    same(tmp_path / "a.npz", GRAY, None, split="test")
    np.save(tmp_path / "b.npy", GRAY[..., None])
    same(tmp_path / "b.npy", GRAY, None)


def test_a_packed_array_is_unpacked_once_and_anew_where_its_file_is_another(tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "_kept", {})
    file = tmp_path / "train-images-idx3-ubyte.gz"
    file.write_bytes(gzip.compress(idx(GRAY)))
    first = reader.read_array(file)
    assert reader.read_array(file) is first
    assert not first.flags.writeable
    os.utime(file, ns=(0, 0))
    assert reader.read_array(file) is not first
    monkeypatch.setattr(reader, "KEPT", GRAY.size - 1)
    os.utime(file, ns=(1, 1))
    assert reader.read_array(file) is not reader.read_array(file)  # as a large one


@pytest.mark.parametrize("ending", ["", ".gz", ".xz"])
@pytest.mark.parametrize("joint", ["-", "."])
def test_idx_pair(tmp_path, ending, joint):
    pack = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}[ending]
    for prefix, part in (("train", slice(0, 8)), ("t10k", slice(8, 12))):
        (tmp_path / f"{prefix}-images{joint}idx3-ubyte{ending}").write_bytes(pack(idx(GRAY[part])))
        (tmp_path / f"{prefix}-labels{joint}idx1-ubyte").write_bytes(idx(LABELS[part].astype(np.uint8)))
    train = tmp_path / f"train-images{joint}idx3-ubyte{ending}"
    test = tmp_path / f"t10k-images{joint}idx3-ubyte{ending}"
    same(train, GRAY[:8], LABELS[:8])
    same(train, GRAY[8:], LABELS[8:], split="test")
    same(test, GRAY[8:], LABELS[8:])
    same(test, GRAY[8:], LABELS[8:], split="test")
    same(tmp_path, GRAY[:8], LABELS[:8])
    same(tmp_path, GRAY[8:], LABELS[8:], split="test")
    (tmp_path / f"t10k-labels{joint}idx1-ubyte").unlink()
    same(test, GRAY[8:], None)


@pytest.mark.parametrize("column", ["struct", "bytes"])
def test_parquet(tmp_path, column):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")

    def write(path: Path, part: slice, **columns) -> None:
        pictures = [png(picture) for picture in COLOUR[part]]
        images = [{"bytes": data, "path": None} for data in pictures] if column == "struct" else pictures
        path.parent.mkdir(parents=True, exist_ok=True)
        table = pa.table({"image": images} | columns)
        features = {"label": {"names": list(NAMES), "_type": "ClassLabel"}} if "label" in columns else {}
        info = json.dumps({"info": {"features": features}})
        pq.write_table(table.replace_schema_metadata({"huggingface": info}), path, row_group_size=3)

    write(tmp_path / "one.parquet", slice(None), label=LABELS, text=TEXTS)
    same(tmp_path / "one.parquet", texts=TEXTS, class_names=NAMES)
    for part in range(3):
        rows = slice(4 * part, 4 * part + 4)
        write(tmp_path / "set" / "data" / f"train-{part:05d}-of-00003.parquet", rows, label=LABELS[rows])
    write(tmp_path / "set" / "data" / "test-00000-of-00001.parquet", slice(0, 2), text=TEXTS[:2])
    same(tmp_path / "set", class_names=NAMES)
    same(tmp_path / "set", COLOUR[:2], None, TEXTS[:2], split="test")
    write(tmp_path / "plain" / "0000.parquet", slice(None), label=[NAMES[label] for label in LABELS])
    same(tmp_path / "plain", class_names=NAMES)


def test_hub_set_through_datasets(monkeypatch):
    class Table:
        column_names = ("img", "label")
        features = {"label": types.SimpleNamespace(names=list(NAMES))}  # noqa: RUF012
        cast_column = select_columns = lambda self, *_: self

        def __len__(self):
            return 12

        def __getitem__(self, column):
            return LABELS.tolist()

        def __iter__(self):
            return ({"img": {"bytes": png(picture), "path": None}} for picture in COLOUR)

    def load_dataset(name, split):
        if (name, split) != ("owner/name", "train"):
            raise FileNotFoundError("no such set\nand a long tail")
        return Table()

    fake = types.SimpleNamespace(load_dataset=load_dataset, Image=lambda decode: None)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    same("owner/name", class_names=NAMES)
    with pytest.raises(DataError, match=r"^there is no file or folder 'owner/other', and the Hub .* \(no such set\)$"):
        load_images("owner/other")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"check the path, or pip install datasets$"):
        load_images("owner/name")


def test_limit_takes_the_first_and_decodes_no_more(tmp_path):
    write_flat(tmp_path)
    (tmp_path / "00007.png").write_bytes(b"rubbish")
    same(tmp_path, COLOUR[:7], None, limit=7)


def test_gray_among_colour_is_spread_over_three_channels(tmp_path):
    for gray_at in (0, 5, 11):
        folder = tmp_path / str(gray_at)
        write_flat(folder)
        (folder / f"{gray_at:05d}.png").write_bytes(png(GRAY[gray_at]))
        expected = COLOUR.copy()
        expected[gray_at] = GRAY[gray_at][..., None]
        same(folder, expected, None, channels=3)
    write_flat(tmp_path / "gray", GRAY)
    (tmp_path / "gray" / "00011.png").write_bytes(png(COLOUR[11]))
    expected = np.repeat(GRAY[..., None], 3, axis=3)
    expected[11] = COLOUR[11]
    same(tmp_path / "gray", expected, None)


def test_fingerprint_depends_on_shape_pixels_labels_and_texts():
    pixels = COLOUR.transpose(0, 3, 1, 2)
    other = pixels.copy()
    other[3, 1, 2, 4] ^= 1
    shifted = np.roll(LABELS, 1)
    variants = [
        (pixels, None),
        (pixels.reshape(12, 3, 7, 5), None),
        (other, None),
        (pixels, LABELS),
        (pixels, shifted),
        (pixels, None, tuple(TEXTS)),
        (pixels, None, tuple(TEXTS[::-1])),
    ]
    assert len({fingerprint(*variant) for variant in variants}) == len(variants)
    assert fingerprint(pixels, LABELS) == fingerprint(pixels.copy(), LABELS.astype(np.int32))


def test_a_format_of_the_users_own(tmp_path, monkeypatch):
    """A file in DIFFDISTILL_PLUGINS adds one; it is asked in its turn, and named where formats are listed."""
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "from diffdistill.data.formats import Format\n"
        "from diffdistill.data.source import Source\n"
        "def read(name, path, split):\n"
        "    return Source(2, np.full((2, 4, 4, 1), int(path.read_text()), np.uint8), np.arange(2))\n"
        "def matches(data, path):\n    return path.is_file() and path.suffix == '.gray'\n"
        "FORMAT = Format('gray', 5, 'a gray file', matches, read)\n"
    )
    (tmp_path / "a.gray").write_text("7")
    with pytest.raises(DataError, match="in no format that is known"):
        load_images(str(tmp_path / "a.gray"))
    monkeypatch.setenv("DIFFDISTILL_PLUGINS", str(tmp_path / "mine.py"))
    found = load_images(str(tmp_path / "a.gray"))
    assert found.images.unique().tolist() == [7]
    assert found.labels.tolist() == [0, 1]
    with pytest.raises(DataError, match="give builtin:NAME, a gray file, a folder with metadata"):
        load_images(str(tmp_path / "b.gray"))
