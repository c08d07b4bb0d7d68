"""One set in every format: writers of images, labels, names of classes and captions, with what each can hold."""

import io
import json
import struct
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Set:
    """images: uint8 (N, H, W) or (N, H, W, 3). labels: in rising order, as class folders keep it. names: of all
    classes, sorted, or None. texts: captions, or None.
    """

    images: np.ndarray
    labels: Sequence[int]
    names: Sequence[str] | None
    texts: Sequence[str] | None

    def words(self) -> list[str] | list[int]:
        """The labels as a table has them: names where there are names."""
        return list(self.labels) if self.names is None else [self.names[label] for label in self.labels]

    def png(self, index: int) -> bytes:
        file = io.BytesIO()
        Image.fromarray(self.images[index]).save(file, "png")
        return file.getvalue()

    def files(self) -> dict[str, bytes]:
        return {f"{i:05d}.png": self.png(i) for i in range(len(self.images))}


def into(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def in_folders(given: Set) -> dict[str, bytes]:
    """Class folders, and captions beside the images."""
    files = {}
    for i, word in enumerate(given.words()):
        files[f"{word}/{i:05d}.png"] = given.png(i)
        if given.texts is not None:
            files[f"{word}/{i:05d}.txt"] = given.texts[i].encode()
    return files


def folders(given: Set, place: Path) -> Path:
    return into(place / "folders", in_folders(given))


def zip_of_folders(given: Set, place: Path) -> Path:
    return zipped(place / "folders.zip", in_folders(given))


def metadata(given: Set, place: Path) -> Path:
    rows = [{"file_name": name, "label": word} for name, word in zip(given.files(), given.words(), strict=True)]
    for row, text in zip(rows, given.texts or (), strict=False):
        row["text"] = text
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    return into(place / "metadata", given.files() | {"metadata.jsonl": lines})


def csv(given: Set, place: Path) -> Path:
    import csv

    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(["file_name", "label", *(["text"] if given.texts else [])])
    for i, (name, word) in enumerate(zip(given.files(), given.words(), strict=True)):
        writer.writerow([name, word, *([given.texts[i]] if given.texts else [])])
    return into(place / "csv", given.files() | {"metadata.csv": file.getvalue().encode()})


def edm(given: Set) -> dict[str, bytes]:
    listing = {"labels": [[name, word] for name, word in zip(given.files(), given.words(), strict=True)]}
    return given.files() | {"dataset.json": json.dumps(listing).encode()}


def edm_folder(given: Set, place: Path) -> Path:
    return into(place / "edm", edm(given))


def edm_zip(given: Set, place: Path) -> Path:
    return zipped(place / "edm.zip", edm(given))


def parquet(given: Set, place: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (place / "parquet").mkdir()
    for part, rows in enumerate(np.array_split(np.arange(len(given.images)), 2)):
        columns = {"image": [{"bytes": given.png(i), "path": None} for i in rows]}
        columns |= {"label": [given.labels[i] for i in rows]}
        columns |= {"text": [given.texts[i] for i in rows]} if given.texts is not None else {}
        table = pa.table(columns)
        if given.names is not None:
            label = {"names": list(given.names), "_type": "ClassLabel"}
            table = table.replace_schema_metadata(
                {"huggingface": json.dumps({"info": {"features": {"label": label}}})}
            )
        pq.write_table(table, place / "parquet" / f"train-{part:05d}-of-00002.parquet")
    return place / "parquet"


def npz(given: Set, place: Path) -> Path:
    np.savez(place / "set.npz", images=given.images, labels=np.array(given.words()))
    return place / "set.npz"


def idx(given: Set, place: Path) -> Path:
    for kind, values in (("images", given.images), ("labels", np.array(given.labels, np.uint8))):
        header = struct.pack(f">4B{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
        into(place / "idx", {f"train-{kind}-idx{values.ndim}-ubyte": header + values.tobytes()})
    return place / "idx"


def webdataset(given: Set, place: Path) -> Path:
    (place / "tar").mkdir()
    for part, rows in enumerate(np.array_split(np.arange(len(given.images)), 2)):
        with tarfile.open(place / "tar" / f"train-{part:06d}.tar", "w") as archive:
            for i in rows:
                members = {"png": given.png(i), "cls": str(given.words()[i]).encode()}
                members |= {"txt": given.texts[i].encode()} if given.texts is not None else {}
                for ending, data in members.items():
                    info = tarfile.TarInfo(f"{i:05d}.{ending}")
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
    return place / "tar"


Write = Callable[[Set, Path], Path]
WRITERS: dict[str, tuple[Write, bool, bool]] = {
    "class folders": (folders, True, True),
    "zip of class folders": (zip_of_folders, True, True),
    "metadata.jsonl": (metadata, True, True),
    "metadata.csv": (csv, True, True),
    "EDM's folder": (edm_folder, True, False),
    "EDM's zip": (edm_zip, True, False),
    "parquet": (parquet, True, True),
    "npz": (npz, True, False),
    "IDX": (idx, False, False),
    "WebDataset": (webdataset, True, True),
}
"""Of each format: how it is written, and whether it holds names of classes, and captions."""
