"""Encoded prompts in memory: bounded in bytes, the longest unused leave first, and no result depends on it."""

import pytest
import torch

from diffdistill.pipelines.text.kept import Kept, size_of

BYTES = 4 * 25  # of a value below


def filled(kept: Kept, asked: str) -> list[str]:
    """Ask for prompts, a letter each; those that were made."""
    made: list[str] = []

    def make(prompt: str):
        made.append(prompt)
        return {"words": torch.zeros(20), "more": {"pooled": torch.zeros(5)}}

    for prompt in asked:
        value = kept.get(prompt, lambda prompt=prompt: make(prompt))
        assert value["words"].shape == (20,)
        assert kept.size == BYTES * len(kept) <= kept.limit
    return made


def test_all_that_fits_is_made_once():
    assert filled(Kept(3 * BYTES), "abcabcaabb") == ["a", "b", "c"]


def test_the_longest_unused_leaves_when_there_are_more_bytes():
    kept = Kept(3 * BYTES + 50)  # three values and a half
    assert filled(kept, "abcad") == ["a", "b", "c", "d"]
    assert [name in kept for name in "abcd"] == [True, False, True, True]  # a was used again after b
    assert filled(kept, "b") == ["b"]
    assert "c" not in kept


def test_what_is_too_large_by_itself_is_not_kept():
    kept = Kept(BYTES - 1)
    assert filled(kept, "aa") == ["a", "a"]
    assert len(kept) == kept.size == 0


def test_bytes_are_those_that_a_tensor_keeps_alive():
    whole = torch.zeros(1000, dtype=torch.bfloat16)
    assert size_of({"words": whole[:1]}) == 2000  # a view keeps all of it
    assert size_of({"words": whole[:1], "again": {"pooled": whole[5:]}}) == 2000  # once
    assert size_of({"words": whole, "mask": torch.zeros(3, dtype=torch.int64)}) == 2024


def test_a_run_that_keeps_no_prompt_has_the_results_of_one_that_keeps_all(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    import text_world
    from tiny_text import stable_diffusion

    stable_diffusion(tmp_path / "sd")
    (tmp_path / "prompts.txt").write_text("".join(f"thing {i}\n" for i in range(8)))
    students, calls = [], []
    for gigabytes in (4.0, 1e-6, 0.0):
        made: list[str] = []
        config = text_world.settings(tmp_path)
        task = text_world.task(
            config.model_copy(
                update={"data": config.data.model_copy(update={"prompt_cache_gb": gigabytes, "prompt_disk_gb": 0.0})}
            )
        )
        adapter = task.student.adapter
        original = adapter.text
        monkeypatch.setattr(
            adapter, "text", lambda prompt, original=original, made=made: made.append(prompt) or original(prompt)
        )
        for step in range(3):
            task.update(step)
        assert adapter.kept.size <= gigabytes * 1e9
        students.append(torch.cat([p.detach().flatten() for p in task.student.parameters()]))
        calls.append(len(made))
    assert torch.equal(students[0], students[1])
    assert torch.equal(students[0], students[2])
    assert calls[0] < calls[1] <= calls[2], calls
