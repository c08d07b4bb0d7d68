"""Several processes and one set: one of them decodes it, and each reads its own rows."""

import pytest
import torch
from kept_world import COUNT, folder
from ranks import ranks

from diffdistill import processes
from diffdistill.data import decoder, keep, load_images

pytestmark = pytest.mark.dist


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFDISTILL_CACHE", str(tmp_path / "cache"))
    return str(folder(tmp_path / "set"))


@pytest.mark.parametrize("where", ["auto", "disk"])
def test_two_ranks_make_one_cache_and_have_the_images_of_one(path, tmp_path, monkeypatch, where):
    monkeypatch.setattr(keep, "SMALL", 0)
    real = decoder.decode

    def told(encoded, name, *more):
        with (tmp_path / "decoded").open("a") as file:
            file.write(f"{name}\n")
        return real(encoded, name, *more)

    monkeypatch.setattr(decoder, "decode", told)

    def work(rank):
        with processes.together():
            data = load_images(path, keep=where, workers=0)
            assert type(data.images).__name__ == "Stored"
            mine = [data.draw(4, 1, step, rows=processes.rows(4))[0][processes.rows(4)] for step in range(5)]
            return {"mine": torch.cat(mine), "all": data.images[:]}

    one, two = ranks(work, 2, tmp_path / "ranks")
    names = (tmp_path / "decoded").read_text().splitlines()
    assert len(names) == len(set(names)) == COUNT
    assert torch.equal(one["all"], two["all"])
    whole = load_images(path)
    for step in range(5):
        drawn, rows = whole.draw(4, 1, step)[0], slice(2 * step, 2 * step + 2)
        assert torch.equal(torch.cat([one["mine"][rows], two["mine"][rows]]), drawn)


def test_two_ranks_stream_one_set(path, tmp_path):
    def work(rank):
        with processes.together():
            data = load_images(path, keep="source", workers=1)
            processes.agree({"data": data.fingerprint})
            mine = [data.draw(4, 1, step, rows=processes.rows(4))[0][processes.rows(4)] for step in range(3)]
            return {"mine": torch.cat(mine)}

    one, two = ranks(work, 2, tmp_path / "ranks")
    drawn = torch.cat([load_images(path).draw(4, 1, step)[0] for step in range(3)])
    found = torch.stack([one["mine"].unflatten(0, (3, 2)), two["mine"].unflatten(0, (3, 2))], 1).flatten(0, 2)
    assert torch.equal(found, drawn)


def test_what_one_rank_meets_while_it_makes_a_cache_all_are_told(path, tmp_path, monkeypatch):
    monkeypatch.setattr(keep, "SMALL", 0)
    (tmp_path / "set" / "class 2" / "05.png").write_bytes(b"no picture")

    def work(rank):
        with processes.together():
            try:
                load_images(path, keep="auto", workers=0)
            except Exception as error:
                print(error)
                return {"code": torch.tensor(error.exit_code)}

    found = ranks(work, 2, tmp_path / "ranks")
    assert [int(answer["code"]) for answer in found] == [3, 3]
