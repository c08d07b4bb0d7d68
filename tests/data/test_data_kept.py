"""Images in memory, in a cache on disk, or decoded as they are drawn: the same, and never others than those wanted."""

import errno
import os
import shutil
import signal
import threading
import time

import numpy as np
import pytest
import torch
from kept_world import COUNT, KINDS, encoded, folder, kept, pictures

from diffdistill.data import cached, decoder, keep, stored, wanted
from diffdistill.errors import DataError, DiskError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFDISTILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "images"


def decoding(monkeypatch):
    """Counts images that are decoded in this process."""
    count = []
    for module in (decoder, wanted):
        real = module.decode
        monkeypatch.setattr(module, "decode", lambda *given, real=real: count.append(1) or real(*given))
    return count


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_batches_from_memory_disk_and_source(tmp_path, kind, monkeypatch):
    path = KINDS[kind](tmp_path / "set")
    for settings in ({}, {"image_size": 8, "limit": 17}):
        memory, disk = (kept(path, where, **settings) for where in ("memory", "disk"))
        source = kept(path, "source", workers=1, **settings)
        count = decoding(monkeypatch)
        again = kept(path, "disk", **settings)
        assert not count  # nothing is decoded anew, and the set is not even opened
        assert not again.origin.is_open
        assert disk.fingerprint == again.fingerprint == memory.fingerprint
        assert source.fingerprint.startswith("files-")
        for other in (disk, source, again):
            assert other.images.shape == memory.images.shape
            assert (other.texts, other.class_names) == (memory.texts, memory.class_names)
            assert other.num_classes == memory.num_classes
            for step in (4, 0, 7):  # in any order: a resumed run asks for later ones first
                for mine, theirs in zip(memory.draw(5, 3, step), other.draw(5, 3, step), strict=True):
                    assert torch.equal(mine, theirs)
            assert torch.equal(torch.cat(list(other.images.split(4))), memory.images)
            chosen = torch.tensor([3, -1, 3])
            assert torch.equal(other.images[chosen], memory.images[chosen])
            assert torch.equal(other.images[2], memory.images[2])
            assert torch.equal(other.images[torch.arange(len(memory)) % 2 == 1], memory.images[1::2])


def test_no_image_comes_twice_an_epoch_over_two_ranks(tmp_path):
    data = kept(folder(tmp_path / "set"), "disk", limit=20)
    for other in (data, kept(tmp_path / "set", "source", limit=20, workers=1)):
        seen = []
        for step in range(5):
            whole, _ = data.draw(4, 0, step)
            for rows in (slice(0, 2), slice(2, 4)):
                mine, _ = other.draw(4, 0, step, rows=rows)
                assert torch.equal(mine[rows], whole[rows])
                others = [i for i in range(4) if not rows.start <= i < rows.stop]
                assert (mine[others] == -1).all()  # not read
                seen += [image.numpy().tobytes() for image in mine[rows]]
        assert len(set(seen)) == len(seen) == 20


def test_a_second_set_is_not_taken_for_the_first(tmp_path):
    path = folder(tmp_path / "set")
    first = kept(path, "disk")
    assert kept(path, "disk", limit=7).images.shape[0] == 7
    assert kept(path, "disk", image_size=6).images.shape[2:] == (6, 6)
    file = path / "class 0" / "00.png"
    before = file.stat()
    file.write_bytes(encoded(pictures()[1]))
    os.utime(file, ns=(before.st_mtime_ns, before.st_mtime_ns + 1))  # changed within the same second
    second = kept(path, "disk")
    assert not torch.equal(second.images[0], first.images[0])
    assert second.fingerprint == kept(path, "memory").fingerprint != first.fingerprint
    (path / "class 0" / "00.png").unlink()
    assert len(kept(path, "disk")) == COUNT - 1


def test_a_file_of_another_content_and_the_same_time_is_no_cached_one(tmp_path):
    """Written in place and its time set back, put in its place, or behind a link that leads elsewhere now."""
    arrays = np.random.default_rng(0).integers(0, 256, (4, 2, 8, 8, 3), dtype=np.uint8)
    places = [tmp_path / "1", tmp_path / "2"]
    for place, array in zip(places, arrays[:2], strict=True):
        place.mkdir()
        np.save(place / "x.npy", array)
        os.utime(place / "x.npy", (10**9, 10**9))
    link = tmp_path / "now"
    link.symlink_to("1")

    def is_told(array):
        assert torch.equal(
            kept(link / "x.npy", "disk").images[:], torch.from_numpy(array.transpose(0, 3, 1, 2).copy())
        )

    is_told(arrays[0])
    link.unlink()
    link.symlink_to("2")
    is_told(arrays[1])
    for array, in_place in ((arrays[2], True), (arrays[3], False)):
        np.save(target := places[1] / ("x.npy" if in_place else "y.npy"), array)
        os.utime(target, (10**9, 10**9))
        target.replace(places[1] / "x.npy")
        is_told(array)


def test_a_set_that_changes_while_it_is_read_makes_no_cache(tmp_path, cache, monkeypatch):
    path = folder(tmp_path / "set")
    real = decoder.decode

    def changing(*given):
        (path / "class 1" / "01.png").touch()
        return real(*given)

    monkeypatch.setattr(decoder, "decode", changing)
    with pytest.raises(DataError, match="was changed while it was read"):
        kept(path, "disk")
    assert [file.suffix for file in cache.iterdir()] == [".lock"]


@pytest.mark.parametrize("where", ["disk", "source"])
def test_damage_is_told_as_memory_tells_it(tmp_path, where, cache):
    path = folder(tmp_path / "set")
    file = path / "class 2" / "05.png"
    file.write_bytes(file.read_bytes()[:80])
    with pytest.raises(DataError) as in_memory:
        kept(path, "memory")
    with pytest.raises(DataError) as other:
        kept(path, where, workers=1).draw(COUNT, 0, 0)
    assert str(other.value) == str(in_memory.value)
    assert "05.png is damaged or not an image" in str(other.value)
    assert where == "source" or [left.suffix for left in cache.iterdir()] == [".lock"]


def test_pictures_of_several_sizes_are_told_wherever_they_are_kept(tmp_path):
    path = folder(tmp_path / "set")
    (path / "class 2" / "05.png").write_bytes(encoded(pictures()[5].resize((9, 12))))
    said = set()
    for where in ("memory", "disk", "source"):
        with pytest.raises(DataError, match="images of several sizes") as error:
            kept(path, where, workers=1).draw(COUNT, 0, 0)
        said.add(str(error.value))
    assert len(said) == 1


def row_file(cache):
    return next(file for file in cache.rglob(stored.ROWS))


def test_a_damaged_row_is_an_error_when_it_is_drawn_and_not_before(tmp_path, cache):
    path = folder(tmp_path / "set")
    kept(path, "disk")
    with row_file(cache).open("r+b") as file:
        file.seek(7 * 3 * 12 * 12 + 5)
        file.write(b"\x00\x01\x02\x03")
    data = kept(path, "disk")
    assert data.images[:7].shape[0] == 7
    with pytest.raises(DataError, match=r"row 7 of the cache '.*' is damaged: remove that folder") as error:
        data.images[5:9]
    assert error.value.exit_code == 3


@pytest.mark.parametrize("name", [stored.ROWS, stored.SUMS, stored.ABOUT, "labels"])
def test_a_cache_that_is_not_whole_is_made_again(tmp_path, cache, name):
    path = folder(tmp_path / "set")
    wanted_of = kept(path, "disk")
    file = next(cache.rglob(name))
    file.write_bytes(file.read_bytes()[:-3])
    again = kept(path, "disk")
    assert again.fingerprint == wanted_of.fingerprint
    assert torch.equal(again.images[:], kept(path, "memory").images)
    assert len([one for one in cache.iterdir() if one.is_dir()]) == 1


def test_a_full_disk_is_an_error_of_the_disk_and_leaves_nothing(tmp_path, cache, monkeypatch):
    path = folder(tmp_path / "set")
    rows = []

    def full(file, row):
        rows.append(row)
        if len(rows) > 9:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        file.write(row.tobytes())

    monkeypatch.setattr(decoder, "write_whole", full)
    with pytest.raises(DiskError, match=r"could not keep the images of .*No space left.*free space") as error:
        kept(path, "disk")
    assert error.value.exit_code == 6
    assert [left.suffix for left in cache.iterdir()] == [".lock"]
    monkeypatch.undo()


def test_a_disk_without_room_is_not_begun_with(tmp_path, monkeypatch):
    path = folder(tmp_path / "set")
    with pytest.raises(DiskError, match=r"it takes .* GB and data\.disk_cache_gb is 1e-09; raise it"):
        kept(path, "disk", disk_gb=1e-9)
    monkeypatch.setattr(cached.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(DiskError, match=r"has 0\.0 GB free; free some"):
        kept(path, "disk")


def test_caches_take_half_of_what_would_be_free_unless_more_is_allowed(tmp_path, cache, monkeypatch):
    one, other = (folder(tmp_path / name) for name in "ab")
    first = kept(one, "disk").images.folder
    taken = stored.folder_size(first)
    most = 2 * COUNT * 3 * 12 * 12 - taken  # what must be free beside the first for half to do
    free = [most - 2]
    monkeypatch.setattr(cached, "FREE", -taken)

    def usage(_):
        return shutil._ntuple_diskusage(10, 10, free[0] + (0 if first.exists() else taken))

    monkeypatch.setattr(cached.shutil, "disk_usage", usage)
    with pytest.raises(DiskError, match=r"caches have 0\.0 GB, half of what would be free without them, or 500"):
        kept(other, "disk")
    assert first.exists()  # nothing is removed for what does not fit then
    free[0] = most + 2
    kept(other, "disk")
    assert not first.exists()
    free[0] = 10**6
    kept(one, "disk", disk_gb=1.0)
    assert len([left for left in cache.iterdir() if left.is_dir()]) == 2


def test_a_second_start_does_not_read_the_files_to_know_the_set(tmp_path, monkeypatch):
    path = folder(tmp_path / "set")
    before = kept(path, "disk")
    told = before.origin.content(before.labels.numpy(), before.texts)
    with monkeypatch.context() as patch:
        patch.setattr(wanted, "content_of", None)
        again = kept(path, "disk")
        assert again.origin.content(again.labels.numpy(), again.texts) == told
    assert kept(path, "source").fingerprint == told


def test_the_longest_unused_cache_makes_room(tmp_path, cache):
    sets = [folder(tmp_path / name) for name in "abc"]
    room = 2.5 * (COUNT * 3 * 12 * 12 + 2000)
    for path in sets[:2]:
        kept(path, "disk", disk_gb=room / 1e9)
    old = kept(sets[0], "disk")
    os.utime(old.images.folder / stored.ABOUT, (1, 1))
    kept(sets[2], "disk", disk_gb=room / 1e9)
    assert not old.images.folder.exists()
    assert old.images[:].shape[0] == COUNT  # who reads it reads on
    assert len([one for one in cache.iterdir() if one.is_dir()]) == 2


def test_a_cache_folder_that_cannot_be_written(tmp_path, monkeypatch, caplog):
    path = folder(tmp_path / "set")
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("DIFFDISTILL_CACHE", str(tmp_path / "file"))
    with pytest.raises(DiskError, match="could not keep the images of"):
        kept(path, "disk")
    monkeypatch.setattr(keep, "SMALL", 0)
    assert isinstance(kept(path, "auto").images, torch.Tensor)
    assert "are decoded at every start, for" in caplog.text
    assert "cannot be written to; set DIFFDISTILL_CACHE" in caplog.text


def test_auto_is_memory_then_disk_then_source(tmp_path, monkeypatch, caplog):
    path = folder(tmp_path / "set")
    assert isinstance(kept(path, "auto").images, torch.Tensor)
    monkeypatch.setattr(keep, "SMALL", 1000)
    monkeypatch.setattr(keep, "total_memory", lambda: 10_000)
    assert type(kept(path, "auto", disk_gb=1e-9).images).__name__ == "Streamed"
    assert "are decoded anew whenever they are drawn, for it takes 0.0 GB and data.disk_cache_gb" in caplog.text
    assert isinstance(kept(path, "auto").images, stored.Stored)
    monkeypatch.setattr(keep, "SMALL", 1 << 29)
    monkeypatch.setattr(keep, "total_memory", lambda: 1 << 40)
    assert isinstance(kept(path, "auto").images, stored.Stored)  # it is there


def test_two_builders_at_once_make_one_cache(tmp_path, cache, monkeypatch):
    path = folder(tmp_path / "set")
    count, real = [], decoder.decode

    def slow(*given):
        count.append(1)
        time.sleep(0.005)
        return real(*given)

    monkeypatch.setattr(decoder, "decode", slow)
    found = []
    threads = [threading.Thread(target=lambda: found.append(kept(path, "disk"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(count) == COUNT
    assert torch.equal(found[0].images[:], found[1].images[:])
    assert len([one for one in cache.iterdir() if one.is_dir()]) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_builder_leaves_nothing_that_is_taken_for_a_cache(tmp_path, cache, monkeypatch):
    path = folder(tmp_path / "set")
    count, real = [], decoder.decode

    def killed(*given):
        count.append(1)
        if len(count) > 9:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*given)

    if (builder := os.fork()) == 0:
        decoder.decode = killed
        try:
            kept(path, "disk")
        finally:
            os._exit(1)
    _, status = os.waitpid(builder, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert next(cache.glob(".*/rows")).stat().st_size == 9 * 3 * 12 * 12
    data = kept(path, "disk")
    assert torch.equal(data.images[:], kept(path, "memory").images)
    assert sorted(one.name for one in cache.iterdir()) == sorted(
        [data.images.folder.name, f"{data.images.folder.name}.lock"]
    )


def test_workers_write_what_this_process_would(tmp_path, cache):
    path = folder(tmp_path / "set", gray=0)  # which no worker knows of: the others are RGB
    alone = kept(path, "disk")
    content = row_file(cache).read_bytes()
    shutil.rmtree(alone.images.folder)
    kept(path, "disk", workers=2)
    assert row_file(cache).read_bytes() == content


def test_the_same_distances_through_memory_and_disk(tmp_path, monkeypatch):
    from diffdistill.evaluation import Evaluator

    path = folder(tmp_path / "set")
    images = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (COUNT, 3, 12, 12), dtype=np.uint8))
    results = []
    for where in ("memory", "disk", "source"):
        monkeypatch.setenv("DIFFDISTILL_CACHE", str(tmp_path / where))  # else the features of the first are taken
        evaluator = Evaluator(kept(path, where), "pixels", ("fid", "prdc", "neighbours", "per_class_fid"))
        result = evaluator(images, labels=torch.arange(COUNT) % 3, picture=tmp_path / f"{where}.png")
        results.append({name: {**entry, "picture": None} for name, entry in result["metrics"].items()})
    assert results[0] == results[1] == results[2]
    assert (tmp_path / "memory.png").read_bytes() == (tmp_path / "disk.png").read_bytes()
