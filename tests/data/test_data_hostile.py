"""Files whose headers lie, or that unpack to more than any picture: refused in a sentence, before memory is taken."""

import io
import json
import os
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from PIL import Image

from diffdistill.config import load_config
from diffdistill.config.schema import Train
from diffdistill.config.yaml import read as read_config
from diffdistill.data import load_images
from diffdistill.data.pixels import stack
from diffdistill.data.prompts import LONGEST, read_prompts
from diffdistill.data.source import Source
from diffdistill.data.text import MOST_TEXT
from diffdistill.errors import ConfigError, DataError
from diffdistill.evaluation.statistics import load_statistics

MOST = 100 << 20  # bytes that a refusal may take


def npy_header(shape, kind="|u1"):
    head = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    head += b" " * (-(10 + len(head) + 1) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head


def zipped(file, members):
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file


def zeros(header, megabytes):
    return header + bytes(megabytes << 20)


def npy(folder):
    (folder / "a.npy").write_bytes(npy_header((10**12, 8, 8)) + bytes(100))
    return folder / "a.npy"


def negative_npy(folder):
    (folder / "a.npy").write_bytes(npy_header((-5, 8, 8)) + bytes(100))
    return folder / "a.npy"


def npz(folder):
    return zipped(folder / "a.npz", {"images.npy": npy_header((10**12, 8, 8)) + bytes(100)})


def npz_of_python(folder):
    return zipped(folder / "a.npz", {"images.npy": npy_header((3,), "|O") + b"cos\nsystem\n."})


def packed_npz(folder):
    return zipped(folder / "a.npz", {"images.npy": zeros(npy_header((5 << 10, 32, 32)), 5)})


def packed_zip(folder):
    return zipped(folder / "a.zip", {f"{i}.png": bytes(5 << 20) for i in range(3)})


def lists_in_a_zip(folder):
    return zipped(folder / "a.zip", {"0.png": b"x", "dataset.json": b'{"labels": [' + b"[]," * 5_000_000 + b"[]]}"})


def deep_labels(folder):
    return zipped(folder / "a.zip", {"0.png": b"x", "dataset.json": b"[" * 200_000})


def idx(folder):
    (folder / "a-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + struct.pack(">III", 2**31, 2**10, 2**10) + bytes(99))
    return folder / "a-idx3-ubyte"


def idx_of_4_gb(folder):
    (folder / "a-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + struct.pack(">III", 2**12, 2**10, 2**10) + bytes(99))
    return folder / "a-idx3-ubyte"


def packed_idx(folder):
    import gzip

    with gzip.open(folder / "a-idx3-ubyte.gz", "wb", compresslevel=1) as file:
        file.write(b"\0\0\x08\x03" + struct.pack(">III", 2**12, 2**10, 2**10))
    return folder / "a-idx3-ubyte.gz"


def large_png(folder):
    head = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    (folder / "set").mkdir()
    (folder / "set" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + head + bytes(40))
    return folder / "set"


def pipe(folder):
    (folder / "set" / "class").mkdir(parents=True)
    os.mkfifo(folder / "set" / "class" / "a.png")
    return folder / "set"


def parquet(folder):
    pytest.importorskip("pyarrow")
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"image": pyarrow.array([b"x"] * 200_000), "label": pyarrow.array([0] * 200_000)})
    pyarrow.parquet.write_table(table, folder / "a.parquet")
    return folder / "a.parquet"


def packed_parquet(folder):
    pytest.importorskip("pyarrow")
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"image": pyarrow.array([bytes(5 << 20)])})
    pyarrow.parquet.write_table(table, folder / "a.parquet", compression="zstd", use_dictionary=False)
    return folder / "a.parquet"


HOSTILE = [
    npy, negative_npy, npz, npz_of_python, packed_npz, packed_zip, lists_in_a_zip, deep_labels, idx, idx_of_4_gb,
    packed_idx, large_png, pipe, parquet, packed_parquet,
]  # fmt: skip


@pytest.mark.parametrize("make", HOSTILE)
def test_hostile_data_are_refused_before_memory_is_taken(tmp_path, monkeypatch, make):
    monkeypatch.setattr("diffdistill.data.bounds.FREE", 4 << 20)  # small bombs, for the time it takes to pack them
    monkeypatch.setattr("diffdistill.data.formats.archive.MAX_PACKED_WELL", 4 << 20)
    file = make(tmp_path)
    tracemalloc.start()
    try:
        with pytest.raises(DataError) as error:
            load_images(str(file))
        assert tracemalloc.get_traced_memory()[1] < MOST
    finally:
        tracemalloc.stop()
    assert "\n" not in str(error.value)


def test_of_an_npz_only_what_is_needed_is_read(tmp_path):
    good = io.BytesIO()
    np.save(good, np.zeros((2, 4, 4), np.uint8))
    file = zipped(tmp_path / "a.npz", {"images.npy": good.getvalue(), "more.npy": npy_header((10**12,))})
    assert load_images(str(file)).images.shape == (2, 1, 4, 4)


def test_statistics_with_a_lying_header_are_refused(tmp_path):
    file = zipped(
        tmp_path / "a.npz", {"mu.npy": npy_header((4,), "<f8"), "sigma.npy": npy_header((10**6, 10**6), "<f8")}
    )
    with pytest.raises(DataError, match="no statistics file"):
        load_statistics(file)


@pytest.mark.parametrize("name", ["p.txt", "p.csv", "p.jsonl"])
def test_a_prompt_of_a_megabyte_is_no_prompt(tmp_path, name):
    line = "a" * (1 << 20)
    text = {"p.txt": line, "p.csv": f"prompt\n{line}", "p.jsonl": json.dumps({"prompt": line})}[name]
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=r"characters|CSV|line"):
        read_prompts(tmp_path / name)
    (tmp_path / "good.txt").write_text("a" * LONGEST)
    assert len(read_prompts(tmp_path / "good.txt")) == 1


def test_a_file_of_gigabytes_is_no_list_of_prompts(tmp_path):
    with (tmp_path / "p.txt").open("wb") as file:
        file.truncate(MOST_TEXT + 1)
    with pytest.raises(DataError, match="larger than"):
        read_prompts(tmp_path / "p.txt")


def test_a_long_or_growing_chain_of_bases_ends(tmp_path):
    for i in range(3000):
        (tmp_path / f"{i}.yaml").write_text(f"base: {i + 1}.yaml\n")
    for i in range(30):
        (tmp_path / f"twice{i}.yaml").write_text(f"base: [twice{i + 1}.yaml, twice{i + 1}.yaml]\n")
    (tmp_path / "twice30.yaml").write_text("seed: 1\n")
    for first in ("0.yaml", "twice0.yaml"):
        with pytest.raises(ConfigError, match="leads to more than"):
            load_config(Train, tmp_path / first)


def test_an_endless_file_is_left_after_a_while(tmp_path, monkeypatch):
    from diffdistill.files import read_json

    if not os.path.exists("/dev/zero"):
        pytest.skip("no endless file here")
    monkeypatch.setattr("diffdistill.data.text.MOST_TEXT", 1 << 20)
    monkeypatch.setattr("diffdistill.files.MOST_JSON", 1 << 20)
    for name in ("p.txt", "c.yaml", "j.json"):
        (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(DataError, match="larger than"):
        read_prompts(tmp_path / "p.txt")
    with pytest.raises(ConfigError, match="larger than"):
        read_config(tmp_path / "c.yaml", "c.yaml")
    with pytest.raises(ValueError, match="larger than"):
        read_json(tmp_path / "j.json")


@pytest.mark.parametrize("field", ["labels", "texts"])
def test_labels_and_texts_are_one_an_image(field):
    with pytest.raises(DataError, match=f"has 3 images and 2 {field}"):
        Source(3, np.zeros((3, 2, 2, 1), np.uint8), **{field: ["a", "b"]})


def test_fewer_images_than_announced_are_no_empty_memory():
    one = io.BytesIO()
    Image.new("L", (2, 2)).save(one, "PNG")
    with pytest.raises(DataError, match="announces 3 images and has 2"):
        stack(iter([("a", one.getvalue()), ("b", one.getvalue())]), 3, None, "a set")


def test_a_header_that_does_not_end_is_a_sentence(tmp_path):
    words = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1,2,2"
    (tmp_path / "x.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(words).to_bytes(2, "little") + words + b"\0" * 4)
    with pytest.raises(DataError, match="damaged or not a numpy file"):
        load_images(str(tmp_path / "x.npy"))


@pytest.mark.parametrize(
    ("column", "sentence"), [("image", "damaged or not an image"), ("text", "no pictures pack so well")]
)
def test_a_value_that_a_page_says_many_times_is_not_unpacked_at_once(tmp_path, column, sentence):
    """A dictionary page of a kilobyte: 600 times the same megabyte, which nothing in the file's header announces."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {"image": [b"0"] * 600, "text": ["a"] * 600}
    value = pa.array([(b"0" if column == "image" else "0") * (1 << 20)])
    columns[column] = pa.DictionaryArray.from_arrays(pa.array([0] * 600), value)
    file = tmp_path / "bomb.parquet"
    pq.write_table(pa.table(columns), file, compression="zstd")
    assert file.stat().st_size < 1 << 20
    pool = pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(pool)
    try:
        with pytest.raises(DataError, match=sentence):
            load_images(str(file))
    finally:
        pa.set_memory_pool(pa.system_memory_pool())
    assert pool.max_memory() < MOST
