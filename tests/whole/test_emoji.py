"""The small text-to-image world: data, tokens, CLIP, judge and the teacher that stock diffusers draws with."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

from diffdistill.assets import asset, resolve_builtin
from diffdistill.data import load_images
from diffdistill.data.pairs import load_pairs
from diffdistill.data.pixels import decode
from diffdistill.errors import DataError
from diffdistill.evaluation.features import load_features

sys.path.append(str(Path(__file__).parents[2] / "examples" / "emoji"))
from emoji_data import STYLES, emoji_rows, held_out_style, without_style

SPLITS = ("train", "held_out", "test")


def test_the_data_is_what_its_manifest_says():
    manifest = json.loads(asset("emoji/manifest.json").read_text(encoding="utf-8"))
    for split, prefix in zip(SPLITS, ("train", "held_out", "t10k"), strict=True):
        got = load_images("builtin:emoji", split=split)
        assert got.fingerprint == manifest["splits"][prefix]["fingerprint"]
        assert got.fingerprint in asset("README.md").read_text(encoding="utf-8")
        assert got.images.shape == (manifest["splits"][prefix]["count"], 3, 32, 32)
        assert got.texts == tuple(row.text for row in emoji_rows(split))
        assert got.labels is None
    for licence in ("LICENSE.md", "LICENSE-APACHE-2.0"):
        assert asset(f"emoji/{licence}").is_file()


def test_splits_follow_the_rule():
    """A held-out picture is the one style that its concept's hash names; the other style is in train."""
    found = {split: {(row.codepoint, row.style) for row in emoji_rows(split)} for split in SPLITS}
    concepts = {split: {code for code, _ in rows} for split, rows in found.items()}
    assert all(len(found[split]) == len(emoji_rows(split)) for split in SPLITS)
    for code, style in found["held_out"]:
        assert held_out_style(code) == style
        assert (code, STYLES[1 - STYLES.index(style)]) in found["train"]
    for code, style in found["train"]:
        assert held_out_style(code) != style
    assert not concepts["test"] & concepts["train"]
    assert concepts["held_out"] <= concepts["train"]
    assert 150 < len(found["held_out"]) < 250


def test_captions_ask_for_the_style_in_words():
    for row in emoji_rows("test"):
        assert f"a {row.style} style emoji of" in row.text
        assert not any(style in row.plain for style in STYLES)
        assert row.plain == without_style(row.text, row.style)


def test_pairs_are_one_concept_in_two_styles():
    wanted, reverse = (load_pairs(f"builtin:{name}", split="test") for name in ("emoji_pairs", "emoji_pairs_twemoji"))
    images, rows = load_images("builtin:emoji", split="test").images, emoji_rows("test")
    assert len(wanted) == len(reverse) == len(rows) // 2
    place = {row.text: index for index, row in enumerate(rows)}
    for there, back in zip(wanted.pairs, reverse.pairs, strict=True):
        assert (there.win, there.lose, there.text) == (back.lose, back.win, back.text)
        (win, png), (lose, _) = there.win, there.lose
        assert (rows[place[win]].style, rows[place[lose]].style) == STYLES
        assert there.text == rows[place[win]].plain == rows[place[lose]].plain
        assert torch.equal(torch.tensor(decode(png, win)).permute(2, 0, 1), images[place[win]])
    held = load_pairs("builtin:emoji_pairs", split="held_out")
    assert len(held) == len(emoji_rows("held_out"))
    assert not {pair.text for pair in held.pairs} & {pair.text for pair in load_pairs("builtin:emoji_pairs").pairs}
    assert wanted.fingerprint != reverse.fingerprint


def test_pairs_that_are_not_there_are_refused():
    with pytest.raises(DataError, match=r"builtin:emoji holds no pairs: choose one of builtin:emoji_pairs"):
        load_pairs("builtin:emoji")
    with pytest.raises(DataError, match=r"has no split 'validation': choose one of held_out, t10k, train$"):
        load_pairs("builtin:emoji_pairs", split="validation")


def test_the_judge_tells_the_styles_of_unseen_concepts():
    config = json.loads(asset("emoji_features/config.json").read_text())
    judge = load_features("emoji")
    features = judge(load_images("builtin:emoji", split="test").images)
    found = judge.styles(features).argmax(1)
    right = (found == torch.tensor([STYLES.index(row.style) for row in emoji_rows("test")])).double().mean()
    assert right == pytest.approx(config["test_style"], abs=0.01)
    assert right > 0.9
    reference = judge(load_images("builtin:emoji").images)
    assert float(reference.var(0).mean()) == pytest.approx(1, abs=0.01)
    assert judge.probabilities(features).shape == (328, 8)


def test_tokens_round_trip():
    transformers = pytest.importorskip("transformers")
    folders = [resolve_builtin("builtin:emoji_clip"), resolve_builtin("builtin:emoji_teacher") / "tokenizer"]
    clip, teacher = (transformers.CLIPTokenizer.from_pretrained(folder) for folder in folders)
    assert clip.model_max_length == teacher.model_max_length
    texts = [row.text for row in emoji_rows("train")]
    for text, ids in zip(texts, clip(texts)["input_ids"], strict=True):
        found = clip.decode(ids, skip_special_tokens=True)
        assert found.replace(" ", "") == text.lower().replace(" ", "")
        assert len(ids) <= clip.model_max_length
    assert clip(texts)["input_ids"] == teacher(texts)["input_ids"]
    unseen = clip("zyzzyva Ω 42")["input_ids"]
    assert unseen.count(clip.unk_token_id) == 1  # the end of the text, which in CLIP has the same number
    assert clip.decode(unseen, skip_special_tokens=True).replace(" ", "") == "zyzzyvaω42"


# Shares of 190 pictures, of which chance is 0.5 with a standard error of 0.04. Measured: 0.93 and 0.70.
CONCEPT, STYLE = 0.85, 0.6


def test_clip_prefers_the_right_caption_of_held_out_pictures():
    pytest.importorskip("transformers")
    from diffdistill.rewards import load_reward

    reward = load_reward("builtin:emoji_clip", batch_size=190)
    rows, images = emoji_rows("held_out"), load_images("builtin:emoji", split="held_out").images.float() / 255
    own = reward(images, [row.text for row in rows])
    another = reward(images, [row.text for row in rows[1:] + rows[:1]])
    styles = [f"a {row.style} style" for row in rows]
    other = [f"a {STYLES[1 - STYLES.index(row.style)]} style" for row in rows]
    turned = reward(images, [row.text.replace(*pair) for row, *pair in zip(rows, styles, other, strict=True)])
    assert float((own > another).float().mean()) > CONCEPT
    assert float((own > turned).float().mean()) > STYLE


def test_stock_diffusers_draws_with_the_teacher():
    pytest.importorskip("transformers")
    from diffusers import StableDiffusionPipeline

    folder = resolve_builtin("builtin:emoji_teacher")
    pipeline = StableDiffusionPipeline.from_pretrained(folder, use_safetensors=True, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        assert {parameter.dtype for parameter in part.parameters()} == {torch.float32}
    prompts = [row.text for row in emoji_rows("train")[:64:4]]
    noise = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
    drawn = pipeline(prompts, num_inference_steps=12, guidance_scale=2.0, generator=noise, output_type="pt").images
    assert drawn.shape == (16, 3, 32, 32)
    from diffdistill.rewards import load_reward

    reward = load_reward("builtin:emoji_clip")
    own, another = reward(drawn, prompts), reward(drawn, prompts[1:] + prompts[:1])
    assert float((own > another).float().mean()) > 0.8


def test_shares_of_two_models_are_compared_caption_by_caption(root):
    """Two images each of three captions, drawn one set after the other: errors are those over captions."""
    script = runpy.run_path(str(root / "examples" / "emoji" / "evaluate_emoji.py"))
    first, later = [[1, 0, 0], [0, 0, 1]], [[1, 1, 0], [1, 0, 1]]
    shares = [script["by_caption"](torch.tensor(hits).flatten(), 2) for hits in (first, later)]
    assert [values.tolist() for values in shares] == [[0.5, 0.0, 0.5], [1.0, 0.5, 0.5]]
    before, after = (script["Measured"]({}, {"style": values}, torch.empty(0)) for values in shares)
    rise = script["over"](before, after)
    assert rise["style_over_first"] == pytest.approx(1 / 3, abs=1e-4)
    assert rise["style_over_first_error"] == pytest.approx((1 / 12) ** 0.5 / 3**0.5, abs=1e-4)


def test_a_name_is_told_apart_from_its_style(root, monkeypatch):
    """All swapped: the words up to the style's are the caption's own, from the name on they are the other style's."""
    transformers = pytest.importorskip("transformers")
    from types import SimpleNamespace

    from train_emoji_teacher import NAME, Captions, in_other_style

    folder = resolve_builtin("builtin:emoji_teacher")
    pipeline = SimpleNamespace(
        tokenizer=transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        text_encoder=transformers.CLIPTextModel.from_pretrained(folder / "text_encoder"),
    )
    rows = emoji_rows("train")[:6]
    captions = Captions(pipeline, rows)
    own, other = (captions.states[captions.place[:, style, 0]] for style in (0, 1))
    tokens = [pipeline.tokenizer([row.text, in_other_style(row).text])["input_ids"] for row in rows]
    assert all(a[NAME:] == b[NAME:] and a[: NAME - 1] != b[: NAME - 1] for a, b in tokens)
    assert (own[:, NAME:] != other[:, NAME:]).any(-1).all()
    monkeypatch.setattr("train_emoji_teacher.CHANCES", (1.0, 0.0, 0.0, 0.0))
    monkeypatch.setattr("train_emoji_teacher.EMPTY", 0.0)
    drawn = captions.draw(torch.arange(len(rows)), swap=1.0)
    assert drawn[:, :NAME].equal(own[:, :NAME])
    assert drawn[:, NAME:].equal(other[:, NAME:])
    assert captions.draw(torch.arange(len(rows)), swap=0.0).equal(own)
