"""WebDataset: samples of tar files by their names up to the first dot; damage and links in a tar are refused."""

import contextlib
import io
import random
import tarfile
import tracemalloc
from pathlib import Path

import pytest
from files_of_data import check, content, png, write

from diffdistill.data import load_images
from diffdistill.data.formats.webdataset import members_of
from diffdistill.errors import DataError


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


SAMPLES = {
    "labels": ({"a.png": 1, "a.cls": "5\n", "b.png": 2, "b.cls": "3"}, ([1, 2], [5, 3], None, None)),
    "names": ({"a.png": 1, "a.cls": "dog", "b.png": 2, "b.cls": "cat"}, ([1, 2], [1, 0], ("cat", "dog"), None)),
    "captions": ({"a.png": 1, "a.txt": "größer\n", "b.png": 2, "b.txt": "b"}, ([1, 2], None, None, ("größer", "b"))),
    "both, not side by side": (
        {"b.png": 2, "a.png": 1, "a.cls": "0", "b.txt": "y", "a.txt": "x", "b.cls": "1"},
        ([2, 1], [1, 0], None, ("y", "x")),
    ),
    "records": (
        {"a.png": 1, "a.json": '{"label": 4, "caption": "x"}', "b.png": 2, "b.json": '{"cls": 2, "text": "y"}'},
        ([1, 2], [4, 2], None, ("x", "y")),
    ),
    "records that say less than members": (
        {"a.png": 1, "a.json": '{"caption": "short", "width": 8}', "a.txt": "long"},
        ([1], None, None, ("long",)),
    ),
    "capital endings": ({"a.PNG": 1, "a.CLS": "1"}, ([1], [1], None, None)),
    "names with dots": ({"a.in.png": 1, "a.cls": "1"}, ([1], [1], None, None)),
    "folders as part of the name": ({"x/0.png": 1, "x/0.cls": "0", "y/0.png": 2, "y/0.cls": "1"}, ([1, 2], [0, 1])),
    "two images": (
        {"a.left.png": 1, "a.right.png": 2, "a.cls": "1"},
        r"a in set\.tar has the images left\.png and right\.png: a sample has one",
    ),
    "an image and a mask": ({"a.png": 1, "a.seg.png": 2, "a.cls": "1"}, ([1], [1], None, None)),
    "jpg and png": ({"a.png": 1, "a.jpg": 2}, r"a in set\.tar has the images png and jpg"),
    "a label too few": (
        {"a.png": 1, "a.cls": "1", "b.png": 2},
        r"set\.tar has no label for b in set\.tar: give every image one, or none",
    ),
    "a caption too few": ({"a.png": 1, "b.png": 2, "b.txt": "x"}, r"set\.tar has no text for a in set\.tar"),
    "an empty label": ({"a.png": 1, "a.cls": ""}, r"has no label for a in set\.tar"),
    "a label of no class": ({"a.png": 1, "a.cls": "-1"}, r"has the label -1 for a in set\.tar"),
    "a fraction": ({"a.png": 1, "a.cls": "1.0"}, r"the label '1\.0' for a in set\.tar"),
    "a key twice": (
        {"a.png": 1, "a.json": '{"label": 4, "label": 5}'},
        r"a in set\.tar: its json has the key 'label' t",
    ),
    "two labels": (
        {"a.png": 1, "a.cls": "3", "a.json": '{"label": 4}'},
        r"a in set\.tar has the label 3 in its cls and 4",
    ),
    "a label and its name": ({"a.png": 1, "a.cls": "3", "a.json": '{"label": "cat"}'}, ([1], [3], None, None)),
    "numbers behind dots": (
        {"a.0.png": 1, "a.1.png": 2},
        r"has the images 0\.png and 1\.png: .* its name ends at the first",
    ),
    "a record that is none": ({"a.png": 1, "a.json": "{"}, r"a in set\.tar: its json is damaged \("),
    "a caption in Latin-1": ({"a.png": 1, "a.txt": "größer".encode("latin-1")}, r"'a\.txt in set\.tar' is not UTF-8"),
    "samples without an image": (
        {"a.png": 1, "a.cls": "1", "b.cls": "2", "c.json": "{}"},
        r"~set\.tar has 2 samples without an image, left out \(b in set\.tar\)",
    ),
    "members that are not read": ({"a.png": 1, "a.cls": "1", "a.npy": "x"}, r"~members that are not read \(1 \.npy\)"),
    "hidden members": ({"a.png": 1, "a.cls": "1", "._a.png": 2, "__MACOSX/a.png": 3}, ([1], [1], None, None)),
    "damaged": ({"a.png": b"rubbish", "a.cls": "1"}, r"a\.png in set\.tar is damaged or not an image"),
    "no image": ({"a.cls": "1"}, r"set\.tar holds no images"),
    "a list of labels": ({"a.png": 1, "dataset.json": '{"labels": [["a.png", 3]]}'}, ([1], [3], None, None)),
    "a table": ({"a.png": 1, "metadata.csv": "file_name,label\na.png,3"}, ([1], [3], None, None)),
    "splits": ({"train/a.png": 1, "train/a.cls": "0", "test/b.png": 9, "test/b.cls": "1"}, ([1], [0], None, None)),
    "a path out of it": ({"../a.png": 1, "../a.cls": "0"}, r"names the file '\.\./a\.png', which lies outside of it"),
}


IN_RECORDS = {
    "a.png": 1, "a.json": '{"split": "train", "label": 4}', "b.png": 2, "b.json": '{"split": "test", "label": 2}',
    "c.json": "{}",
}  # fmt: skip


def test_splits_in_records(caplog):
    """As in the columns of other tables; a sample without an image needs none."""
    write("tar", IN_RECORDS)
    check("set.tar", ([1], [4], None, None), caplog)
    check("set.tar", ([2], [2], None, None), caplog, split="test")
    with pytest.raises(DataError, match=r"set\.tar has no split 'validation': choose one of test, train"):
        load_images("set.tar", split="validation")
    write("tar", IN_RECORDS | {"b.json": '{"label": 2}'}, "part")
    with pytest.raises(DataError, match=r"part\.tar has no 'split' for b in part\.tar: give every row one, or none"):
        load_images("part.tar")
    Path("set").mkdir()
    write("tar", IN_RECORDS, "set/train-0")  # the name of the file says it
    check("set", ([1, 2], [4, 2], None, None), caplog)


@pytest.mark.parametrize("kind", SAMPLES)
def test_samples(kind, caplog):
    files, expected = SAMPLES[kind]
    check(write("tar", files), expected, caplog)


SHARDS = {
    "one after another": (["a-000000", "a-000001"], ([1, 2],)),
    "of splits": (["set-train-0", "set-val-0"], ([1],)),
    "with a gap": (["a-0", "a-2"], r"~2 files numbered 0 to 2, without number 1"),
    "of N": (["a-0-of-3", "a-1-of-3"], r"2 of 3 files a-\*-of-3, number 2 is missing"),
    "in folders of splits": (["train/0", "test/0"], ([1],)),
    "below a folder": (["data/train-0", "data/test-0"], ([1],)),
}


@pytest.mark.parametrize("kind", SHARDS)
def test_shards(kind, caplog):
    names, expected = SHARDS[kind]
    for value, name in enumerate(names, start=1):
        Path("set", name).parent.mkdir(parents=True, exist_ok=True)
        write("tar", {"0.png": value, "0.cls": "1"}, f"set/{name}")
    check("set", expected, caplog)


def test_shards_by_their_numbers(caplog):
    for i in range(3):
        write("tar", {"0.png": i + 1, "0.cls": str(i)}, f"set-{i:04d}")
    check("set-{0000..0002}.tar", ([1, 2, 3], [0, 1, 2]), caplog)
    check("set-{0000..0003}.tar", r"names 4 files and 1 are missing \(set-0003\.tar\): fetch them", caplog)


def test_an_archive_beside_what_was_unpacked_is_said(caplog):
    write("folder", {"a.png": 1})
    write("tar", {"a.png": 2, "a.cls": "1"}, "set/all")
    check("set", ([1], None), caplog)
    check("set", r"~set has all\.tar beside its images, which is not read", caplog)


@pytest.mark.parametrize("name", ["set.tar.gz", "set.tgz", "set.tar.bz2"])
def test_packed_tar_files_are_refused(name, caplog):
    with tarfile.open(name, f"w:{'bz2' if name.endswith('bz2') else 'gz'}"):
        pass
    check(name, r"is packed as a whole, so no image can be read alone: unpack it to a \.tar", caplog)


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [(tarfile.SYMTYPE, "is a link"), (tarfile.LNKTYPE, "is a link"), (tarfile.CHRTYPE, "is a device, a pipe or"),
     (tarfile.FIFOTYPE, "is a device, a pipe"), (tarfile.GNUTYPE_SPARSE, "is a device, a pipe or a sparse file")],
)  # fmt: skip
def test_what_is_no_plain_file_is_refused(kind, sentence, caplog):
    with tarfile.open("set.tar", "w") as archive:
        info = tarfile.TarInfo("a.png")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    check("set.tar", rf"set\.tar has the member 'a\.png', which {sentence}", caplog)


def test_damage_is_not_taken_for_the_end(caplog):
    write("tar", {f"{i}.png": i for i in range(1, 9)} | {f"{i}.cls": str(i) for i in range(1, 9)})
    whole = Path("set.tar").read_bytes()
    starts = [place for place in range(0, len(whole), 512) if whole[place + 257 : place + 262] == b"ustar"]
    assert len(starts) == 16
    for place in starts[1:6]:
        damaged = bytearray(whole)
        damaged[place : place + 100] = b"\xff" * 100  # a header in the middle
        Path("set.tar").write_bytes(damaged)
        check("set.tar", r"set\.tar is damaged or (cut short at byte|not a tar file)", caplog)
        Path("set.tar").write_bytes(whole[:place])
        check("set.tar", r"set\.tar is damaged or (cut short at byte|not a tar file)", caplog)
        Path("set.tar").write_bytes(whole[: place + 600])
        check("set.tar", r"set\.tar (is damaged or|ends inside of)", caplog)
    Path("set.tar").write_bytes(whole + whole)
    check("set.tar", r"set\.tar goes on behind its end, as several tar files joined to one do", caplog)
    for rubbish in (b"", b"rubbish", b"\0" * 100):
        Path("set.tar").write_bytes(rubbish)
        check("set.tar", r"set\.tar is damaged or", caplog)
    write("tar", {})
    check("set.tar", r"set\.tar holds no images", caplog)


def test_a_header_that_announces_more_than_there_is(caplog):
    for size in (10**6, 2**40, 2**62):
        info = tarfile.TarInfo("a.png")
        info.size = size
        Path("set.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
        tracemalloc.start()
        check("set.tar", r"set\.tar (ends inside of a\.png|has the file a\.png, of more than|is damaged or)", caplog)
        assert tracemalloc.get_traced_memory()[1] < 50 << 20
        tracemalloc.stop()


def test_random_damage_is_a_sentence_or_read():
    write("tar", {"0.png": 1, "0.cls": "1", "1.png": 2, "1.cls": "0"})
    whole = Path("set.tar").read_bytes()
    chance = random.Random(0)
    for _ in range(60):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 20)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        Path("set.tar").write_bytes(damaged)
        with contextlib.suppress(DataError):
            assert len(load_images("set.tar", image_size=8)) <= 2


def test_a_member_is_listed_where_it_lies():
    long = "x" * 150 + ".png"  # its name takes blocks of its own
    write("tar", {long: 7, "b.cls": "1"})
    found = {member.path: member for member in members_of(Path("set.tar"))}
    assert list(found) == [long, "b.cls"]
    assert found[long].read() == content(7) == png(7)
    assert found[long].read(4) == content(7)[:4]
    assert found["b.cls"].read() == b"1"
    with tarfile.open("set.tar", "a", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("größer.png")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))
    assert {member.path: member for member in members_of(Path("set.tar"))}["größer.png"].read() == b"abc"
