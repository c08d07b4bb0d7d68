"""Sets of images to look at: sound ones in several formats, and one with every kind of dirt."""

import io
import json
import os
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

RNG = np.random.default_rng(0)


def pixels(*shape):
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def png(array, file_format="png", **options):
    file = io.BytesIO()
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.save(file, file_format, **options)
    return file.getvalue()


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def numbered(count, prefix="", size=8):
    return {f"{prefix}{i}.png": png(pixels(size, size, 3)) for i in range(count)}


def filthy_set(tmp_path):
    """A folder of classes with every kind of dirt."""
    turned = Image.Exif()
    turned[0x0112] = 6
    colour, gray = pixels(8, 8, 3), pixels(8, 8)
    first, second = (Image.fromarray(pixels(8, 8, 3)).quantize(16) for _ in range(2))
    files = {
        "cat/0.png": png(colour),
        "cat/1.bmp": png(colour, "bmp"),
        "cat/2.png": png(np.stack([gray] * 3, -1)),
        "cat/3.png": png(pixels(8, 12, 3)),
        "cat/4.png": png(pixels(8, 8, 4)),
        "cat/5.png": png(pixels(8, 8).astype(np.uint16) * 257),
        "cat/6.jpg": png(pixels(8, 8, 3), "jpeg", exif=turned),
        "cat/7.gif": png(first, "gif", save_all=True, append_images=[second]),
        "cat/8.jpg": png(Image.fromarray(pixels(8, 8, 3)).convert("CMYK"), "jpeg"),
        "cat/9.png": png(np.full((8, 8), 9, np.uint8)),
        "cat/10.png": png(colour)[:60],
        "cat/11.png": b"text",
        "cat/12.jpg": b"",
        "dog/0.png": png(colour),
        "dog/1.png": png(gray),
        "dog/old/2.png": png(pixels(8, 8, 3)),
        "dog/phone.heic": b"x",
        "loose.png": png(pixels(8, 8, 3)),
        ".hidden.png": b"x",
        "__MACOSX/._0.png": b"x",
        "notes.txt": b"x",
    }
    folder = write(tmp_path / "set", files)
    (folder / "empty").mkdir()
    (folder / "cat" / "nowhere.png").symlink_to(tmp_path / "nowhere.png")
    (folder / "cat" / "linked").symlink_to(folder / "dog")
    os.mkfifo(folder / "cat" / "pipe.png")
    return folder


def csv_with_a_comma(folder):
    return write(folder, numbered(2) | {"metadata.csv": b"file_name,text\n0.png,a, b\n1.png,c\n"})


def lines(folder, *rows):
    return write(folder, numbered(3) | {"metadata.jsonl": "\n".join(rows).encode()})


def row(index, **more):
    return json.dumps({"file_name": f"{index}.png"} | more)


def zipped(folder, files):
    with zipfile.ZipFile(folder.with_suffix(".zip"), "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return folder.with_suffix(".zip")


def zip_with_a_damaged_member(folder):
    file = zipped(folder, numbered(2))
    data = bytearray(file.read_bytes())
    data[data.index(b"IDAT") + 20] ^= 255
    file.write_bytes(data)
    return file


def zip_cut_at_its_beginning(folder):
    file = zipped(folder, numbered(2))
    file.write_bytes(file.read_bytes()[20:])
    return file


def idx(values):
    return struct.pack(f">4B{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()


def npz(folder, **arrays):
    np.savez(folder.with_suffix(".npz"), **arrays)
    return folder.with_suffix(".npz")


def parquet(folder, **columns):
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as writer

    writer.write_table(pyarrow.table(columns), folder.with_suffix(".parquet"))
    return folder.with_suffix(".parquet")


PICTURES = list(numbered(3).values())
IDX = {"train-images-idx3-ubyte": idx(pixels(3, 8, 8)), "train-labels-idx1-ubyte": idx(np.arange(2, dtype=np.uint8))}
