"""Pairs from parquet and folders: their order, ties, what is refused, and what SDXL is told of each image."""

import json

import pytest
import torch

from diffdistill.data.pairs import Picture, load_pairs, picture, split_by_caption
from diffdistill.errors import DataError

pytest.importorskip("pyarrow")
pytest.importorskip("transformers")

from tiny_text import pair_folder, pair_parquet, pair_rows, png


def changed(tmp_path, **cells):
    """The pairs with some cells of row 3 replaced."""
    rows = pair_rows(6)
    for column, value in cells.items():
        rows[column][3] = value
    return pair_parquet(tmp_path / "pairs.parquet", rows)


def brightness(encoded):
    return picture(encoded, 16).pixels.float().mean().item()


@pytest.mark.parametrize("make", [lambda p: pair_parquet(p / "pairs.parquet"), lambda p: pair_folder(p / "pairs")])
def test_the_wanted_image_is_the_dark_one_in_every_pair(tmp_path, make):
    pairs = load_pairs(str(make(tmp_path)))
    assert len(pairs) == 24
    assert all(brightness(pair.win) < 100 < brightness(pair.lose) for pair in pairs.pairs)
    assert [pair.text for pair in pairs.pairs[:3]] == ["thing 0", "thing 0", "thing 1"]


def test_ties_are_dropped_or_kept(tmp_path):
    file = str(changed(tmp_path, label_0=0.5, label_1=0.5))
    dropped, kept = load_pairs(file), load_pairs(file, ties="keep")
    assert len(dropped) == 5
    assert dropped.counts == {"ties": 1}
    assert [pair.tie for pair in kept.pairs] == [i == 3 for i in range(6)]
    assert dropped.fingerprint != kept.fingerprint


def test_unlabelled_rows_and_pairs_of_one_image_are_left_out(tmp_path):
    rows = pair_rows(6)
    rows["has_label"] = [True, False, True, True, True, True]
    rows["jpg_0"][4] = rows["jpg_1"][4]
    pairs = load_pairs(str(pair_parquet(tmp_path / "pairs.parquet", rows)))
    assert len(pairs) == 4
    assert pairs.counts == {"without label": 1, "of one image": 1}


@pytest.mark.parametrize(
    ("cells", "sentence"),
    [
        ({"label_0": 1.0, "label_1": 1.0}, "row 3 of .*: label_0 and label_1 are both 1.0: one must be 1"),
        ({"label_0": 0.0, "label_1": 0.0}, "are both 0.0"),
        ({"label_0": None, "label_1": None}, "are both None"),
        ({"label_0": 0.7, "label_1": 0.3}, "are 0.7 and 0.3"),
        ({"jpg_1": None}, "row 3 of .* has no image in 'jpg_1': a pair needs both"),
        ({"jpg_0": b""}, "has no image in 'jpg_0'"),
        ({"caption": " "}, "row 3 of .* has no caption"),
        ({"caption": None}, "has no caption"),
    ],
)
def test_a_row_that_is_no_pair(tmp_path, cells, sentence):
    with pytest.raises(DataError, match=sentence):
        load_pairs(str(changed(tmp_path, **cells)))


def test_a_set_without_a_pair_and_without_a_column(tmp_path):
    rows = pair_rows(2)
    rows["label_0"] = rows["label_1"] = [0.5, 0.5]
    with pytest.raises(DataError, match=r"no pair to learn from \(2 ties\)"):
        load_pairs(str(pair_parquet(tmp_path / "ties.parquet", rows)))
    del rows["label_1"]
    with pytest.raises(DataError, match="has no column 'label_1', only jpg_0"):
        load_pairs(str(pair_parquet(tmp_path / "short.parquet", rows)))
    with pytest.raises(DataError, match="there is no file or folder"):
        load_pairs(str(tmp_path / "absent"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no pairs: give builtin:NAME, a folder with a metadata\.jsonl .*jpg_0"):
        load_pairs(str(tmp_path / "empty"))


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ({"win": "win0.png", "lose": "gone.png", "text": "a"}, "line 25 of .*: there is no image .*gone.png"),
        ({"win": "win0.png", "text": "a"}, "line 25 of .* has no 'lose'"),
        ({"win": "win0.png", "lose": "win0.png", "text": "a"}, "are both 'win0.png'"),
        ({"win": "win0.png", "lose": "../lose0.png", "text": "a"}, "lies outside"),
        ({"win": "win0.png", "lose": "lose0.png"}, "line 25 of .* has no caption"),
    ],
)
def test_a_line_that_is_no_pair(tmp_path, line, sentence):
    folder = pair_folder(tmp_path / "pairs")
    with (folder / "metadata.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    with pytest.raises(DataError, match=sentence):
        load_pairs(str(folder))


def test_a_damaged_image_is_named(tmp_path):
    pairs = load_pairs(str(changed(tmp_path, jpg_0=b"no image")))
    with pytest.raises(DataError, match=r"jpg_0 in row 3 of .* is damaged"):
        picture(pairs.pairs[3].lose, 16)


def test_a_caption_is_on_one_side_with_all_its_pairs_and_stays_there(tmp_path):
    pairs = load_pairs(str(pair_parquet(tmp_path / "pairs.parquet", pair_rows(60))))
    training, held_out = split_by_caption(pairs, 0.3)
    captions = [{pair.text for pair in side.pairs} for side in (training, held_out)]
    assert not captions[0] & captions[1]
    assert len(captions[0]) + len(captions[1]) == 30
    assert 3 <= len(captions[1]) <= 15
    fewer = load_pairs(str(tmp_path / "pairs.parquet"), limit=40)
    assert {pair.text for pair in split_by_caption(fewer, 0.3)[1].pairs} <= captions[1]
    with pytest.raises(DataError, match="leaves one side empty"):
        split_by_caption(pairs, 0.0)


def test_what_a_network_is_told_of_an_image():
    # 40 x 16 (height x width) to 8: resized to 20 x 8, of which rows 6 to 14 are taken.
    tall = picture(("tall", png(60, (40, 16))), 8)
    assert (tall.original, tall.crop, tuple(tall.pixels.shape)) == ((40, 16), (6, 0), (3, 8, 8))
    wide = picture(("wide", png(60, (16, 44))), 8)
    assert (wide.original, wide.crop) == ((16, 44), (0, 7))


def test_a_mirrored_image_has_the_other_margin():
    one = Picture(torch.arange(12).reshape(3, 2, 2), (4, 10), (0, 1))  # resized 2 x 5: one column left, two right
    mirrored = one.mirrored()
    assert mirrored.crop == (0, 2)
    assert mirrored.pixels[0].tolist() == [[1, 0], [3, 2]]
    assert mirrored.mirrored().crop == one.crop


def test_a_pair_of_copies_is_of_one_image(tmp_path):
    for name, colour in (("a", 1), ("b", 1), ("c", 9)):
        (tmp_path / f"{name}.png").write_bytes(png(colour))
    rows = [{"win": "a.png", "lose": "b.png", "text": "t"}, {"win": "c.png", "lose": "a.png", "text": "t"}]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = load_pairs(str(tmp_path))
    assert [pair.win[1].name for pair in pairs.pairs] == ["c.png"]
    assert pairs.counts == {"of one image": 1}
