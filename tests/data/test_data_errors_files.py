"""Array, parquet, zip and IDX files that do not fit: one sentence each."""

import gzip
import json
import os
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from wrong_data import ALLOWED, PIXELS, Trap, begins, says


def test_object_arrays_are_refused(here):
    objects = np.empty(4, dtype=object)
    objects[:] = [Trap() for _ in objects]
    np.savez("set.npz", images=PIXELS, labels=objects)
    says("labels.npy in set.npz holds Python objects, and opening those can run code: save plain numbers", "set.npz")
    np.save("set.npy", objects, allow_pickle=True)
    says("set.npy holds Python objects, and opening those can run code: save plain numbers", "set.npy")


def test_npz_that_does_not_fit(here):
    np.savez("a.npz", pixels=PIXELS, labels=np.arange(4))
    says("a.npz has the arrays pixels, labels, but no 'images': rename the one with the images", "a.npz")
    np.savez("a.npz", images=PIXELS.astype(np.float32) * 2)
    begins("images in a.npz is of type float32, with values from 0 to ", "a.npz")
    np.savez("a.npz", images=np.zeros((2, 5, 7, 4), np.uint8))
    says("images in a.npz has the shape (2, 5, 7, 4): images are (N, H, W), (N, H, W, 3) or (N, 3, H, W)", "a.npz")
    np.savez("a.npz", images=PIXELS, labels=np.arange(3))
    says("a.npz has 4 images, but labels of shape (3,): one label an image", "a.npz")
    np.savez("a.npz", images=PIXELS[:0])
    says("a.npz holds no images", "a.npz")
    data = bytearray(Path("a.npz").read_bytes())
    Path("a.npz").write_bytes(data[: len(data) // 2])
    begins("a.npz is damaged or not an npz file", "a.npz")


@pytest.mark.parametrize(("label", "shown"), [(-1, "-1"), (0.5, "0.5"), (True, "True")])
def test_labels_out_of_range(here, label, shown):
    values = np.array([0, 1, 2, 3]).astype(type(label))
    values[2] = label
    np.savez("a.npz", images=PIXELS, labels=values)
    first = shown if isinstance(label, int) and not isinstance(label, bool) else repr(values[0].item())
    at = 2 if first == "-1" else 0
    says(f"a.npz has the label {first} for image {at}: labels are whole numbers from 0 up", "a.npz")


def test_labels_beyond_the_named_classes(here):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    info = json.dumps({"info": {"features": {"label": {"names": ["cat", "dog"]}}}})
    for labels, shown, at in (([0, 1, 2], "2", 2), (["dog", "cow", "cat"], "'cow'", 1), ([0, None, 1], None, 1)):
        table = pa.table({"image": [b"", b"", b""], "label": labels})
        pq.write_table(table.replace_schema_metadata({"huggingface": info}), "a.parquet")
        if shown is None:
            says("a.parquet has no label for row 1 of a.parquet: give every image one, or none", "a.parquet")
        else:
            allowed = "labels are whole numbers from 0 to 1, one of 2 classes"
            says(f"a.parquet has the label {shown} for row {at} of a.parquet: {allowed}", "a.parquet")


def test_parquet_that_does_not_fit(here, monkeypatch):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    Path("a.parquet").write_bytes(b"PAR1 rubbish PAR1")
    says("a.parquet is damaged, or not a parquet file: fetch it again", "a.parquet")
    pq.write_table(pa.table({"pixels": [b""], "label": [1]}), "a.parquet")
    says("a.parquet has no column 'image', only pixels, label: rename the one with the images", "a.parquet")
    pq.write_table(pa.table({"image": [{"bytes": None, "path": "x.png"}]}), "a.parquet")
    says("a.parquet has no image bytes in row 0: keep the images in the file itself", "a.parquet")
    pq.write_table(pa.table({"image": [b"rubbish"]}), "a.parquet")
    says("row 0 of a.parquet is damaged or not an image: mend it or take it out", "a.parquet")
    pq.write_table(pa.table({"image": [b"", b""], "text": ["a", None]}), "a.parquet")
    says("a.parquet has no text for row 1 of a.parquet: give every image one, or none", "a.parquet")
    says(
        "a.parquet has no split 'test': it is one set; leave the split at 'train' to use all of it",
        "a.parquet",
        split="test",
    )
    Path("set").mkdir()
    pq.write_table(pa.table({"image": [b""]}), "set/train-0.parquet")
    pq.write_table(pa.table({"image": [b""], "label": [0]}), "set/train-1.parquet")
    says(
        "set has files with different columns: train-0.parquet has image, train-1.parquet image, label; make them "
        "alike",
        "set",
    )
    says("set has no split 'test': choose one of train", "set", split="test")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    says("reading a.parquet needs pyarrow: pip install 'diffdistill[data]'", "a.parquet")


def test_damaged_parquet_pages(here):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    blocks = [os.urandom(5000) for _ in range(8)]
    pq.write_table(pa.table({"image": blocks}), "a.parquet", compression="zstd", use_dictionary=False)
    data = bytearray(Path("a.parquet").read_bytes())
    data[4:200] = bytes(196)
    Path("a.parquet").write_bytes(data)
    says("a.parquet is damaged, or not a parquet file: fetch it again", "a.parquet")


def zipped(name: str, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(name, "w") as archive:
        for member, data in members.items():
            archive.writestr(member, data)


def test_zip_that_does_not_fit(here, monkeypatch):
    Image.new("L", (7, 5)).save("0.png")
    png = Path("0.png").read_bytes()
    Path("a.zip").write_bytes(b"PK rubbish")
    begins("a.zip is damaged or not a zip file (", "a.zip")
    zipped("a.zip", {})
    says("a.zip holds no images", "a.zip")
    for escape in ("../0.png", "/0.png", "a/../../0.png"):
        zipped("a.zip", {escape: png})
        says(f"a.zip names the file {escape!r}, which lies outside of it: use paths inside the set", "a.zip")
    for listing in (b"[]", b'{"labels": [1]}', b'{"labels": 3}', b"{", b'{"labels": [["0.png"]]}', b"\xff"):
        zipped("a.zip", {"0.png": png, "dataset.json": listing})
        says('dataset.json in a.zip is not of the form {"labels": [[file, label], ...]}: write it so', "a.zip")
    zipped("a.zip", {"0.png": png, "1.png": png, "dataset.json": b'{"labels": [["0.png", 3]]}'})
    says("dataset.json in a.zip has no label for 1.png: give every image one, or none", "a.zip")
    zipped("a.zip", {"0.png": png, "dataset.json": b'{"labels": [["0.png", [0.5, 1.5]]]}'})
    says("a.zip has the label [0.5, 1.5] for image 0 (0.png): labels are whole numbers from 0 up", "a.zip")
    zipped("a.zip", {"0.png": b"rubbish"})
    says("0.png in a.zip is damaged or not an image: mend it or take it out", "a.zip")
    zipped("a.zip", {"0.png": png})
    damaged = bytearray(Path("a.zip").read_bytes())
    damaged[60] ^= 1
    Path("a.zip").write_bytes(damaged)
    begins("0.png in a.zip is damaged (Bad CRC-32 for file '0.png'): make the zip again", "a.zip")
    locked = bytearray(Path("a.zip").read_bytes())
    locked[locked.index(b"PK\1\2") + 8] |= 1
    Path("a.zip").write_bytes(locked)
    says("a.zip is encrypted: give a zip without a password", "a.zip")
    monkeypatch.setattr("diffdistill.data.formats.archive.MAX_MEMBER", 10)
    zipped("a.zip", {"0.png": png})
    says("a.zip has the file 0.png, which unpacks to more than 256 MB: take it out", "a.zip")


def idx(values: np.ndarray, kind: int = 8) -> bytes:
    return struct.pack(f">4B{values.ndim}I", 0, 0, kind, values.ndim, *values.shape) + values.tobytes()


def test_idx_that_does_not_fit(here):
    images, labels = Path("train-images-idx3-ubyte"), Path("train-labels-idx1-ubyte")
    whole = idx(PIXELS)
    for data in (whole[:-1], whole + b"\0"):
        images.write_bytes(data)
        begins(f"{images} is damaged: its header announces (4, 5, 7) values", str(images))
    for header in (struct.pack(">4B3I", 0, 0, 8, 3, *[2**32 - 1] * 3), whole[:6]):
        images.write_bytes(header)
        begins(f"{images} is damaged", str(images))
    images.write_bytes(idx(PIXELS, kind=13))
    says(f"{images} is in no format that is known: give {ALLOWED}", str(images))
    begins("train-images-idx3-ubyte is not an IDX file of uint8 values: its first bytes are 00 00 0d 03", ".")
    images.write_bytes(whole)
    labels.write_bytes(idx(np.arange(3, dtype=np.uint8)))
    says(f"{labels} has 3 labels, {images} has 4 images: they must be as many", str(images))
    says(f"{images} has no split 'test': there is no file t10k-images-idx3-ubyte beside it", str(images), split="test")
    says(". has no split 'test': choose one of train", ".", split="test")
    packed = Path("more-images-idx3-ubyte.gz")
    packed.write_bytes(gzip.compress(whole)[:-20])
    begins(f"{packed} is damaged or cannot be read (", str(packed))
    packed.write_bytes(gzip.compress(whole))
    says(
        f"{packed} has no split 'test': it is one set; leave the split at 'train' to use all of it",
        str(packed),
        split="test",
    )


def test_images_without_pixels_are_refused(here):
    np.savez("set.npz", images=np.zeros((12, 0, 0), np.uint8))
    says("images in set.npz holds images of 0x0 pixels: give some with pixels", "set.npz")
    np.save("set.npy", np.zeros((2, 3, 4, 0), np.uint8))
    says("set.npy holds images of 0x4 pixels: give some with pixels", "set.npy")
    Path("train-images-idx3-ubyte").write_bytes(struct.pack(">4B3I", 0, 0, 8, 3, 5, 0, 28))
    says("train-images-idx3-ubyte holds images of 28x0 pixels: give some with pixels", "train-images-idx3-ubyte")
