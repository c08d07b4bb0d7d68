"""Encoded prompts on disk: what comes back is what was put, or nothing; a second start encodes none."""

import os

import pytest
import torch

pytest.importorskip("transformers")

from diffdistill.pipelines.text.shelf import HEAD, Shelf, shelf_of


def value(seed):
    generator = torch.Generator().manual_seed(seed)
    words = torch.randn(1, 7, 4, generator=generator).to(torch.bfloat16)
    return {
        "words": words[:, 1:],
        "more": {"pooled": torch.randn(1, 3, generator=generator), "ids": torch.tensor([4])},
    }


def same(one, other):
    return (
        one is not None
        and torch.equal(one["words"], other["words"])
        and one["words"].dtype == other["words"].dtype
        and one["more"].keys() == other["more"].keys()
        and all(torch.equal(one["more"][name], other["more"][name]) for name in other["more"])
    )


def test_what_was_put_is_read_by_others_and_later(tmp_path):
    one, other = Shelf(tmp_path, 1e9), Shelf(tmp_path, 1e9)
    for number in range(6):  # in turns, as processes do
        (one, other)[number % 2].put(["a text", number], value(number))
    for shelf in (one, other, Shelf(tmp_path, 1e9)):
        assert all(same(shelf.get(["a text", number]), value(number)) for number in range(6))
        assert shelf.get(["a text", 6]) is None
        assert shelf.get(["a text", "1"]) is None
        assert len(shelf) == 6


def test_a_record_that_a_killed_process_left_is_cut_off(tmp_path):
    shelf = Shelf(tmp_path, 1e9)
    for number in range(2):
        shelf.put(number, value(number))
    file = tmp_path / "records"
    content = file.read_bytes()
    for left in (1, HEAD.size, HEAD.size + 5, len(content) // 2 - 1):
        file.write_bytes(content + content[: len(content) // 2][:left])
        shelf = Shelf(tmp_path, 1e9)
        shelf.put(2, value(2))
        assert all(same(Shelf(tmp_path, 1e9).get(number), value(number)) for number in range(3))
        assert file.stat().st_size == len(content) * 3 // 2


def test_a_damaged_value_is_none(tmp_path):
    Shelf(tmp_path, 1e9).put(0, value(0))
    file = tmp_path / "records"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    shelf = Shelf(tmp_path, 1e9)
    assert shelf.get(0) is None
    shelf.put(0, value(0))  # made anew, and the newer counts
    assert same(Shelf(tmp_path, 1e9).get(0), value(0))
    file.unlink()
    assert shelf.get(0) is None
    shelf.put(1, value(1))
    assert same(shelf.get(1), value(1))


def test_no_more_bytes_than_allowed_are_kept(tmp_path):
    Shelf(tmp_path / "one", 1e9).put(0, value(0))
    size = (tmp_path / "one" / "records").stat().st_size
    shelf = Shelf(tmp_path / "other", 2.5 * size)
    for number in range(4):
        shelf.put(number, value(number))
    assert (tmp_path / "other" / "records").stat().st_size == 2 * size
    assert [shelf.get(number) is not None for number in range(4)] == [True, True, False, False]


def test_where_nothing_can_be_written_that_is_said_once(tmp_path, caplog):
    (tmp_path / "file").write_text("no folder")
    shelf = Shelf(tmp_path / "file", 1e9)
    for number in range(3):
        shelf.put(number, value(number))
    assert caplog.text.count("encoded prompts are not kept in") == 1


def test_prompts_of_models_that_were_long_not_used_leave(tmp_path, monkeypatch):
    from tiny_text import stable_diffusion

    monkeypatch.setenv("DIFFDISTILL_CACHE", str(tmp_path / "cache"))
    stable_diffusion(tmp_path / "sd")
    assert shelf_of(str(tmp_path / "sd"), 0) is None
    place = tmp_path / "cache" / "prompts"
    for name in "ab":
        Shelf(place / name, 1e9).put(0, value(0))
    size = (place / "a" / "records").stat().st_size
    os.utime(place / "a" / "records", (1, 1))
    shelf = shelf_of(str(tmp_path / "sd"), 2.5 * size / 1e9)
    assert not (place / "a").exists()
    assert (place / "b").exists()
    assert shelf.most == pytest.approx(1.5 * size)


def test_a_second_start_encodes_no_prompt_and_trains_the_same(tmp_path, monkeypatch):
    import text_world
    from tiny_text import stable_diffusion

    monkeypatch.setenv("DIFFDISTILL_CACHE", str(tmp_path / "cache"))
    stable_diffusion(tmp_path / "sd")
    (tmp_path / "prompts.txt").write_text("".join(f"thing {i}\n" for i in range(4)))
    students, calls = [], []
    for gigabytes in (20.0, 20.0, 0.0):
        made: list[str] = []
        config = text_world.settings(tmp_path)
        data = config.data.model_copy(update={"prompt_disk_gb": gigabytes})
        task = text_world.task(config.model_copy(update={"data": data}))
        adapter = task.student.adapter
        original = adapter.text
        monkeypatch.setattr(
            adapter, "text", lambda text, original=original, made=made: made.append(text) or original(text)
        )
        for step in range(2):
            task.update(step)
        students.append(torch.cat([p.detach().flatten() for p in task.student.parameters()]))
        calls.append(len(made))
    assert torch.equal(students[0], students[1])
    assert torch.equal(students[0], students[2])
    assert calls[0] == calls[2] > 0
    assert calls[1] == 0
