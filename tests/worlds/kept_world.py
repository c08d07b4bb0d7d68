"""A few small pictures in every container, with labels and, where it has them, texts."""

import io
import tarfile
import zipfile

import numpy as np
from PIL import Image

from diffdistill.data import load_images

COUNT = 23


def pictures(size=12, gray=5):
    """Pictures of noise; the one of that number is gray among RGB ones, and none is where it is None."""
    random = np.random.default_rng(0)
    found = [Image.fromarray(random.integers(0, 256, (size, size, 3), dtype=np.uint8)) for _ in range(COUNT)]
    if gray is not None:
        found[gray] = found[gray].convert("L")
    return found


def encoded(picture, kind="PNG"):
    stream = io.BytesIO()
    picture.save(stream, kind)
    return stream.getvalue()


def folder(path, **settings):
    for i, picture in enumerate(pictures(**settings)):
        file = path / f"class {i % 3}" / f"{i:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded(picture))
    return path


def archive(path, compression=zipfile.ZIP_STORED, **settings):
    path = path.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", compression) as opened:
        for i, picture in enumerate(pictures(**settings)):
            opened.writestr(f"class {i % 3}/{i:02d}.png", encoded(picture))
    return path


def packed(path, **settings):
    return archive(path, zipfile.ZIP_DEFLATED, **settings)


def webdataset(path, **settings):
    path.mkdir(exist_ok=True)
    for shard in range(2):
        with tarfile.open(path / f"{shard}.tar", "w") as opened:
            for i, picture in list(enumerate(pictures(**settings)))[shard::2]:
                for ending, content in (
                    ("png", encoded(picture)),
                    ("cls", str(i % 3).encode()),
                    ("txt", f"picture {i}".encode()),
                ):
                    member = tarfile.TarInfo(f"{i:02d}.{ending}")
                    member.size = len(content)
                    opened.addfile(member, io.BytesIO(content))
    return path


def parquet(path, **settings):
    import pyarrow as pa
    import pyarrow.parquet

    path.mkdir(exist_ok=True)
    for shard in range(2):
        chosen = list(enumerate(pictures(**settings)))[shard::2]
        rows = {
            "image": [{"bytes": encoded(picture), "path": None} for _, picture in chosen],
            "label": [i % 3 for i, _ in chosen],
            "text": [f"picture {i}" for i, _ in chosen],
        }
        pa.parquet.write_table(pa.table(rows), path / f"{shard}.parquet", row_group_size=4)
    return path


def array(path, **settings):
    path = path.with_suffix(".npz")
    images = np.stack([np.asarray(picture.convert("RGB")) for picture in pictures(**settings)])
    np.savez(path, images=images, labels=[i % 3 for i in range(COUNT)])
    return path


KINDS = {
    "folder": folder,
    "zip": archive,
    "packed zip": packed,
    "webdataset": webdataset,
    "parquet": parquet,
    "npz": array,
}


def kept(path, where, **settings):
    return load_images(str(path), keep=where, **{"workers": 0, **settings})
