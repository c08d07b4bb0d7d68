"""Sets as people have them, written from a table of names and contents, and what the reader makes of them."""

import io
import logging
import re
import tarfile
import zipfile
from pathlib import Path

from PIL import Image

from diffdistill.data import load_images
from diffdistill.data.formats import known_place
from diffdistill.data.inspect import inspect_data
from diffdistill.errors import DataError

Files = dict[str, int | str | bytes]


def png(level: int = 0, mode: str = "L", size: tuple[int, int] = (8, 8)) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, level).save(file, "png")
    return file.getvalue()


def content(value: int | str | bytes) -> bytes:
    """A picture of one level of gray, a text in UTF-8, or bytes as they are."""
    return png(value) if isinstance(value, int) else value.encode() if isinstance(value, str) else value


def write(form: str, files: Files, place: str = "set") -> str:
    """The files in a folder, a zip or a tar; returns DATA."""
    if form == "folder":
        Path(place).mkdir(parents=True, exist_ok=True)
        for name, value in files.items():
            file = Path(place, name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content(value))
        return place
    if form == "zip":
        with zipfile.ZipFile(f"{place}.zip", "w") as archive:
            for name, value in files.items():
                archive.writestr(name, content(value))
    else:
        with tarfile.open(f"{place}.tar", "w") as archive:
            for name, value in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(content(value))
                archive.addfile(info, io.BytesIO(content(value)))
    return f"{place}.{form}"


def levels(found) -> list[int]:
    """The gray level of each picture."""
    return [int(image[0, 0, 0]) for image in found.images]


def outcome(data: str, caplog, **kwargs) -> tuple[object, str]:
    """`((levels, labels, names of classes, texts), what was warned)`; the sentence alone where DATA is refused.

    Looking at DATA must find the same, and say it in its report alone.
    """
    look_alike(data, caplog, **kwargs)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        try:
            found = load_images(data, **kwargs)
        except DataError as error:
            return str(error), caplog.text
    labels = None if found.labels is None else found.labels.tolist()
    return (levels(found), labels, found.class_names, found.texts), caplog.text


def known(data: str) -> bool:
    """Whether there is such a file or folder, without which there is nothing to look at."""
    try:
        known_place(data)
    except DataError:
        return False
    return True


def look_alike(data: str, caplog, channels: int | None = None, **kwargs) -> None:
    """What `inspect_data` says of training is what training says, and it warns of nothing beside."""
    try:
        found = load_images(data, **kwargs)
    except DataError as error:
        found = str(error)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        if not known(data):
            return
        report = inspect_data(data, **kwargs)
    assert caplog.text == ""
    training = report["training"]
    if isinstance(found, str):
        assert training["refused"], found
        assert training["refused"][0]["reason"] == found
        return
    assert training["refused"] == []
    assert (training["images"], training["shape"]) == (len(found), list(found.images.shape[1:]))
    assert (training["classes"], training["captions"]) == (found.num_classes, found.texts is not None)


def in_form(expected: object, form: str) -> object:
    """What is expected of a folder, in the words that are of an archive."""
    if form == "folder" or not isinstance(expected, str):
        return expected
    expected = re.sub(r"set/([a-z0-9]+\\\.[a-z]+)", rf"\1 in set\.{form}", expected)
    return re.sub(r"\bset (has|is a folder without)", rf"set\.{form} \1", expected).replace(
        "is a folder without images", "holds no images"
    )


def check(data: str, expected: object, caplog, **kwargs) -> None:
    """DATA is what is expected: a tuple that begins as the outcome does; or a pattern of its refusal; or, where it
    begins with "~", of a warning.
    """
    found, said = outcome(data, caplog, **kwargs)
    if isinstance(expected, str) and expected.startswith("~"):
        assert isinstance(found, tuple), found
        assert re.search(expected[1:], said), said
    elif isinstance(expected, str):
        assert isinstance(found, str), found
        assert "\n" not in found
        assert re.search(expected, found), found
    else:
        assert isinstance(expected, tuple)
        assert found[: len(expected)] == expected, found
