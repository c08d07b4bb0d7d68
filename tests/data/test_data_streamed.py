"""Images that are decoded as they are drawn: damage, files that change, and the processes that decode."""

import gc
import io
import tarfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from kept_world import COUNT, KINDS, encoded, folder, kept, pictures, webdataset
from PIL import Image

from diffdistill.data import decoder, wanted, workers
from diffdistill.errors import DataError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFDISTILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "images"


def test_what_is_drawn_next_is_decoded_before(tmp_path):
    data = kept(folder(tmp_path / "set"), "source", workers=1)
    data.draw(4, 0, 0)
    asked = set(data.images._asked)
    for step in (1, 2):
        data.draw(4, 0, step)
    assert len(asked) == 2
    assert not asked & data.images._asked.keys()  # taken by the steps they were for
    data.draw(4, 0, 90)  # another place of the run: what was begun is dropped, not handed out
    assert torch.equal(data.draw(4, 0, 90)[0], kept(tmp_path / "set", "memory").draw(4, 0, 90)[0])


def test_features_of_a_streamed_set_are_not_those_of_another(tmp_path):
    """Two tar files of one name and size, which differ between the places that samples were taken of."""
    from diffdistill.evaluation import Evaluator

    def packed(place, dark):
        place.mkdir()
        random = np.random.default_rng(1)
        with tarfile.open(place / "set.tar", "w") as opened:
            for i in range(60):
                pixels = random.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                content = encoded(
                    Image.fromarray(pixels // 3 if dark and (5 <= i < 25 or 35 <= i < 55) else pixels), "PPM"
                )
                member = tarfile.TarInfo(f"{i}.ppm")
                member.size = len(content)
                opened.addfile(member, io.BytesIO(content))
        return place / "set.tar"

    one, other = packed(tmp_path / "one", False), packed(tmp_path / "other", True)
    assert one.stat().st_size == other.stat().st_size
    drawn = kept(one, "memory").images

    def fid(path, where):
        return Evaluator(kept(path, where), "pixels", ("fid",))([drawn])["metrics"]["fid"]["value"]

    assert fid(one, "source") < 1e-6
    assert fid(other, "source") == fid(other, "memory") > 1


def test_a_shard_that_goes_or_is_cut_is_named_in_a_sentence(tmp_path):
    path = webdataset(tmp_path / "set")
    data = kept(path, "source", workers=1)
    shard = path / "1.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:2048])
    with pytest.raises(DataError, match=r"1\.tar has become shorter since it was opened") as error:
        data.draw(COUNT, 0, 0)
    assert error.value.exit_code == 3
    shard.unlink()
    with pytest.raises(DataError, match=r"1\.tar has gone since it was opened: put it back"):
        data.draw(COUNT, 0, 5)
    shard.write_bytes(whole)
    with pytest.raises(DataError, match=r"1\.tar has been changed since it was opened: start anew"):
        data.draw(COUNT, 0, 5)
    assert torch.equal(kept(path, "source").draw(COUNT, 0, 5)[0], kept(path, "memory").draw(COUNT, 0, 5)[0])


@pytest.mark.parametrize("placed", [False, True])
def test_an_image_file_that_changes_or_goes_gives_no_picture_for_the_label_that_was_read(tmp_path, placed):
    path, other = folder(tmp_path / "set"), folder(tmp_path / "other", gray=3)
    data = kept(path, "source", workers=1)
    file, now = (one / "class 2" / "05.png" for one in (path, other))
    if placed:
        now.replace(file)
    else:
        file.write_bytes(now.read_bytes())
    with pytest.raises(DataError, match=r"05\.png has been changed since it was opened: start anew") as error:
        data.draw(COUNT, 0, 0)
    assert error.value.exit_code == 3
    file.unlink()
    with pytest.raises(DataError, match=r"05\.png has gone since it was opened: put it back"):
        data.draw(COUNT, 0, 5)
    assert torch.equal(data.images[0], kept(path, "memory").images[0])


@pytest.mark.parametrize("kind", ["webdataset", "parquet"])
@pytest.mark.parametrize("placed", [False, True])
@pytest.mark.parametrize("where", ["source", "once"])
def test_a_shard_that_is_rewritten_gives_no_pictures_for_the_labels_that_were_read(tmp_path, kind, placed, where):
    """In place or by another put there; drawn, or read from the start to the end."""
    path, other = KINDS[kind](tmp_path / "set"), KINDS[kind](tmp_path / "other", gray=3)
    data = kept(path, "source", workers=1)
    shard = sorted(path.iterdir())[1]
    now = other / shard.name
    if placed:
        now.replace(shard)
    else:
        shard.write_bytes(now.read_bytes())
    with pytest.raises(DataError, match=rf"{shard.name} has been changed since it was opened") as error:
        data.images[:] if where == "source" else [
            decoder.decode(entry, name, None) for name, entry in data.images.entries
        ]
    assert error.value.exit_code == 3


def test_a_damaged_parquet_file_is_named(tmp_path):
    path = KINDS["parquet"](tmp_path / "set")
    file = path / "1.parquet"
    content = bytearray(file.read_bytes())
    content[4:-2000] = bytes(len(content) - 2004)
    with file.open("r+b") as opened:
        opened.write(content)
    with pytest.raises(DataError, match=r"1\.parquet is damaged, or not a parquet file"):
        kept(path, "source", workers=0).draw(COUNT, 0, 0)


def test_a_damaged_member_of_a_zip_is_no_picture(tmp_path):
    path = KINDS["zip"](tmp_path / "set")
    data = kept(path, "source", workers=1)
    content = bytearray(path.read_bytes())
    content[60] ^= 1  # within the first picture
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"set\.zip is damaged at byte \d+ \(bad checksum\)"):
        data.images[0]


def test_the_collector_of_garbage_waits_for_no_thread(monkeypatch):
    """It may run in a thread that is just starting, which holds what the ends of all threads wait for."""
    waits, shutdown = [], ThreadPoolExecutor.shutdown

    def noted(self, wait=True, **more):
        waits.append(wait)
        shutdown(self, wait, **more)

    pool = workers.Workers(1)
    assert len(pool.submit([("one", encoded(pictures()[0]))], None).result().images) == 1
    process, pool.itself = pool._started[0], pool
    monkeypatch.setattr(ThreadPoolExecutor, "shutdown", noted)
    del pool
    gc.collect()
    assert waits
    assert not any(waits)
    assert process.poll() is not None


def test_an_rgb_picture_that_streaming_did_not_foresee_is_refused(tmp_path, monkeypatch):
    path = folder(tmp_path / "set", gray=None)
    monkeypatch.setattr(wanted, "LOOKED_AT", 1)
    first = path / "class 0" / "00.png"
    first.write_bytes(encoded(pictures(gray=0)[0]))
    with pytest.raises(DataError, match=r"is RGB \(3 channels\) in a set that looked grayscale"):
        kept(path, "source", workers=1).draw(COUNT, 0, 0)
    assert kept(path, "source", channels=3, workers=1).images.shape[1] == 3
    assert kept(path, "disk").fingerprint == kept(path, "memory").fingerprint  # gray first, RGB after it


def test_a_worker_that_ends_is_told(tmp_path):
    data = kept(folder(tmp_path / "set"), "source", workers=1)
    data.images[:2]
    data.images._asked.clear()
    for process in data.images.workers._started:
        process.kill()
        process.wait()
    with pytest.raises(DataError, match=r"the process that decodes images has ended \(-9\) at one from .*memory"):
        data.images[5]
