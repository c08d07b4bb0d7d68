"""Captions in scripts that Pillow's own font lacks: which font they are drawn with, and what is said where none is."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from diffdistill.reporting import fonts
from diffdistill.reporting.captions import LINE, SIZE, caption_font, draw_caption, wrapped
from diffdistill.reporting.grid import image_grid

matplotlib = pytest.importorskip("matplotlib")
DEJAVU = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
ARABIC, SMILE, CHINESE = "\u0633", "\U0001f600", "\u6f22"


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """A machine with one font, and one file that is none."""
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    monkeypatch.setattr(fonts, "_of_fontconfig", lambda _character: [])
    monkeypatch.setattr(fonts, "_of_folders", lambda: (tmp_path / "broken.ttf", DEJAVU))
    found, said = fonts._font_with, fonts._say_lacking
    for cached in (found, said):
        cached.cache_clear()
    yield
    for cached in (found, said):
        cached.cache_clear()


def dark(font, text):
    canvas = Image.new("RGB", (60, LINE + 4), "white")
    draw_caption(ImageDraw.Draw(canvas), (2, 2), [text], font)
    return np.array(canvas)


def test_a_character_that_the_own_font_lacks_is_that_of_another(capsys):
    own, dejavu = ImageFont.load_default(SIZE), ImageFont.truetype(str(DEJAVU), SIZE)
    for character in (ARABIC, SMILE):
        font = caption_font([f"a {character}"])
        assert [run for _, run in font.runs(f"a {character}b")] == ["a ", character, "b"]
        assert font.getlength(f"a{character}b") == own.getlength("ab") + dejavu.getlength(character)
        box = dark(own, character)
        assert not np.array_equal(dark(font, character), box)
        picture = Image.new("RGB", (60, LINE + 4), "white")
        place = 2, 2 + own.getmetrics()[0]
        ImageDraw.Draw(picture).text(place, character, fill=(40, 40, 40), font=dejavu, anchor="ls")
        assert np.array_equal(dark(font, character), np.array(picture))
    assert capsys.readouterr().err == ""


def test_what_no_font_has_is_said_once_and_drawn(capsys):
    images = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    for _ in range(2):
        image_grid(images, 1, [f"{CHINESE} {ARABIC} {SMILE}\ufe0f word"])
    said = capsys.readouterr().err
    assert said.count("no font of this machine has") == said.count("\n") == 1


def test_plain_captions_ask_no_other_font(monkeypatch):
    monkeypatch.setattr(fonts, "_font_with", None)  # calling it would fail
    assert isinstance(caption_font(["a cow, 3 of them"]), ImageFont.FreeTypeFont)


def test_lines_of_mixed_scripts_are_no_wider_than_their_picture():
    text = f"{ARABIC * 30} {'w' * 20} {SMILE * 9}"
    font = caption_font([text])
    lines = wrapped(text, 112, font)
    assert len(lines) > 2
    assert all(font.getlength(line) <= 112 for line in lines)
    assert lines[0] == ARABIC * len(lines[0])


def test_fonts_of_many_scripts_come_before_narrow_and_slanted_ones():
    names = ["Zapf.ttf", "DejaVuSans-Bold.ttf", "DejaVuSans.ttf", "NotoSansCJK-Regular.ttc", "Arial.ttf"]
    ranked = sorted((Path(name) for name in names), key=fonts._rank)
    assert [path.name for path in ranked] == [names[3], names[2], names[1], names[4], names[0]]
