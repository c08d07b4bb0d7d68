"""`sample` and `evaluate` of a text-to-image model, from prompt files to figures with their protocol."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="needs transformers (extra `text`)")

from PIL import Image
from reward_models import tiny_clip
from tiny import tiny_teacher
from tiny_text import stable_diffusion

from diffdistill.cli import main
from diffdistill.data.prompts import Prompt, digest_of
from diffdistill.evaluation import clip_score
from diffdistill.evaluation.extractors.hub import weights_sha256
from diffdistill.sampling.generate import generate
from diffdistill.sampling.noise import image_seed

CAPTIONS = [f"thing {letter}" for letter in "abcdefghijklmnopqrst"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A text-to-image teacher, a teacher of classes, a CLIP."""
    folder = tmp_path_factory.mktemp("models")
    stable_diffusion(folder / "sd")
    tiny_teacher().save_pretrained(folder / "classes", role="teacher")
    (folder / "clip").mkdir()
    tiny_clip(folder / "clip")
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIFFDISTILL_CACHE", str(tmp_path / "cache"))
    return tmp_path


def pixels(file):
    return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)


def sample(model, *words):
    return main(["sample", str(model), "--quiet", "--steps", "2", "--device", "cpu", *words])


def refused(capsys):
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("diffdistill: error: ")]
    assert len(lines) == 1
    return lines[0].removeprefix("diffdistill: error: ")


# ---- sample


def test_a_file_of_prompts_becomes_one_image_of_each_with_what_made_it(models):
    rows = ["prompt,negative_prompt,seed", "a cat,blue,9", '"漢字, 👩\u200d🍳",,', "a very long text " * 20 + ",,"]
    Path("p.csv").write_text("\r\n".join(rows), "utf-16")
    assert sample(models / "sd", "--prompts", "p.csv", "--negative-prompt", "red", "--seed", "3", "--out", "o") == 0
    assert sorted(file.name for file in Path("o").glob("*.png")) == ["00000.png", "00001.png", "00002.png", "grid.png"]
    record = json.loads(Path("o/samples.json").read_text())
    found = [[image[key] for key in ("prompt", "negative_prompt", "seed", "torch_seed")] for image in record["images"]]
    assert found == [
        ["a cat", "blue", 9, image_seed(9, 0)],
        ["漢字, 👩\u200d🍳", "red", 3, image_seed(3, 1)],
        [" ".join(["a very long text"] * 20), "red", 3, image_seed(3, 2)],
    ]
    assert (record["sampler"], record["guidance_scale"], record["class_labels"]) == ("dpm_solver", 7.5, None)
    again, _ = next(
        generate(
            str(models / "sd"), num_images=1, first=2, seed=3, steps=2, prompts=[found[2][0]], negative_prompt="red",
            device="cpu",
        )
    )  # fmt: skip
    assert torch.equal(again[0], pixels("o/00002.png"))


def test_one_prompt_for_several_images_and_the_captions_under_them(models, capsys):
    assert sample(models / "sd", "--prompt", " a cat ", "--num-images", "3", "--guidance-scale=1", "--out", "o") == 0
    assert capsys.readouterr().out == "o: 3 images, dpm_solver, 2 evaluations each\n"
    images = json.loads(Path("o/samples.json").read_text())["images"]
    assert [(image["prompt"], image["negative_prompt"]) for image in images] == [("a cat", None)] * 3
    assert sample(models / "sd", "--prompt", "a cat", "--out", "p") == 0
    assert capsys.readouterr().out == "p: 1 image, dpm_solver, 2 evaluations each, guidance 7.5\n"
    with Image.open("p/grid.png") as grid:  # 16 pixels seven times as large, gaps of 4, one line of text
        assert grid.size == (112 + 8, 112 + 8 + 14)


@pytest.mark.parametrize(
    ("model", "words", "code", "sentence"),
    [
        ("sd", ("--num-images", "1"), 2, "this model draws texts; give --prompt TEXT or --prompts FILE"),
        ("sd", ("--num-images", "2", "--class-labels", "1"), 2, "this model draws texts and takes no class labels"),
        ("classes", ("--prompt", "a cat"), 2, "prompts need a text-to-image model, and this model has classes 0 to 2"),
        ("sd", ("--prompts", "broken.txt"), 3, "line 2 of 'broken.txt': the prompt is empty"),
        ("sd", ("--prompt", "a", "--negative-prompt", "b", "--guidance-scale", "1"), 2, "a negative prompt acts"),
    ],
)
def test_what_cannot_be_drawn_is_one_sentence_and_leaves_nothing(models, capsys, model, words, code, sentence):
    Path("broken.txt").write_text("a\n\nb\n")
    assert sample(models / model, *words, "--out", "o") == code
    assert refused(capsys).startswith(sentence)
    assert not Path("o").exists()


def test_calibrate_says_that_it_is_not_for_texts(models, capsys):
    assert (
        main(["calibrate", str(models / "sd"), "--data", "builtin:emoji", "--out", "c.json", "--device", "cpu"]) == 2
    )
    assert "draws texts, and calibrate compares states with images, not with latents" in refused(capsys)


# ---- evaluate


def reference(captions=CAPTIONS):
    Path("real").mkdir()
    draw = np.random.default_rng(0)
    for i, _ in enumerate(captions):
        Image.fromarray(draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(f"real/{i:02d}.png")
    lines = [json.dumps({"file_name": f"{i:02d}.png", "text": text}) for i, text in enumerate(captions)]
    Path("real/metadata.jsonl").write_text("\n".join(lines))
    Path("mean.py").write_text("def brightness(images, prompts):\n    return images.mean((1, 2, 3))\n")


def evaluate(models, *words):
    request = ["--reference", "real", "--features", "pixels", "--quiet", "--device", "cpu", "--json", "r.json"]
    clip = ["--metrics", "fid,clip", "--clip", str(models / "clip"), "--allow-code", "--rewards", "mean.py:brightness"]
    code = main(["evaluate", *request, *clip, *words])
    return code, json.loads(Path("r.json").read_text()) if code == 0 else None


def test_a_model_is_measured_on_the_captions_of_the_reference(models, capsys):
    reference()
    words = ("--model", str(models / "sd"), "--steps", "2", "--seed", "4")
    code, result = evaluate(models, *words)
    assert code == 0
    made = torch.cat(
        [batch for batch, _ in generate(str(models / "sd"), num_images=20, seed=4, steps=2, prompts=CAPTIONS)]
    )
    real = torch.stack([pixels(f"real/{i:02d}.png") for i in range(20)])
    metrics, protocol = result["metrics"], result["protocol"]
    assert metrics["clip"]["n"] == 20
    assert metrics["clip"]["value"] == pytest.approx(float(clip_score(made, CAPTIONS, models / "clip")), rel=1e-6)
    expected = float(clip_score(real, CAPTIONS, models / "clip"))
    assert metrics["clip"]["of_the_reference"] == pytest.approx(expected, rel=1e-6)
    bright = metrics["reward/brightness"]
    assert bright["value"] == pytest.approx(float(made.float().mean()) / 255, rel=1e-5)
    assert bright["of_the_reference"] == pytest.approx(float(real.float().mean()) / 255, rel=1e-5)
    digest = digest_of([Prompt(caption) for caption in CAPTIONS])
    assert protocol["texts"] == {"count": 20, "sha256": digest}
    assert protocol["clip_model"] == {"id": "clip:clip", "sha256": weights_sha256(models / "clip")}
    assert protocol["rewards"] == {"reward/brightness": None}
    assert result["subject"]["prompts"] == {"count": 20, "sha256": digest}
    printed = capsys.readouterr().out
    for part in ("CLIP score", "Reward brightness", f"texts      20, SHA-256 {digest[:12]}", "CLIP       clip:clip"):
        assert part in printed


def test_fewer_images_than_captions_take_captions_from_all_along(models):
    reference()
    code, result = evaluate(models, "--model", str(models / "sd"), "--steps", "1", "--num-images", "10")
    assert code == 0
    assert result["protocol"]["texts"] == {"count": 10, "sha256": digest_of([Prompt(c) for c in CAPTIONS[::2]])}


def test_sampled_images_are_scored_for_their_own_prompts(models):
    reference()
    Path("p.txt").write_text("\n".join(CAPTIONS))
    assert sample(models / "sd", "--prompts", "p.txt", "--seed", "4", "--out", "o") == 0
    code, on_disk = evaluate(models, "--images", "o")
    assert code == 0
    Path("r.json").unlink()
    code, drawn = evaluate(models, "--model", str(models / "sd"), "--steps", "2", "--seed", "4")
    assert code == 0
    for name in ("clip", "fid", "reward/brightness"):
        assert on_disk["metrics"][name]["value"] == pytest.approx(drawn["metrics"][name]["value"], rel=1e-6)
    assert on_disk["protocol"]["texts"] == drawn["protocol"]["texts"]


def test_prompts_of_a_file_come_before_the_captions(models):
    reference()
    Path("p.jsonl").write_text('{"prompt": "x", "seed": 1}\n{"prompt": "y"}\n')
    words = ("--model", str(models / "sd"), "--steps", "1", "--prompts", "p.jsonl", "--num-images", "8")
    code, result = evaluate(models, *words)
    assert code == 0
    assert result["protocol"]["texts"] == {"count": 2, "sha256": digest_of([Prompt("x"), Prompt("y")])}
    assert result["subject"]["prompts"]["sha256"] == digest_of([Prompt("x", None, 1), Prompt("y")])


def test_without_captions_a_text_model_asks_for_prompts_and_clip_for_texts(models, capsys):
    reference()
    Path("real/metadata.jsonl").unlink()
    assert evaluate(models, "--model", str(models / "sd"))[0] == 2
    assert "draws texts, and no captions of a reference are there; give --prompts FILE" in refused(capsys)
    assert evaluate(models, "--model", str(models / "sd"), "--prompt", "a")[0] == 2
    assert refused(capsys) == "one prompt makes one image, and metrics are of several; give --num-images N"
    assert evaluate(models, "--images", "real")[0] == 2
    assert "metric 'clip' needs a text for each image" in refused(capsys)
    assert evaluate(models, "--model", str(models / "classes"), "--num-images", "8", "--steps", "1")[0] == 2
    assert "metric 'clip' needs a text for each image" in refused(capsys)


# ---- without a reference


def alone(models, *words):
    code = main(["evaluate", "--quiet", "--device", "cpu", "--json", "r.json", *words])
    return code, json.loads(Path("r.json").read_text()) if code == 0 else None


def test_texts_alone_are_measured_as_they_are_beside_a_reference(models, capsys):
    reference()
    drawn = ("--model", str(models / "sd"), "--steps", "1", "--num-images", "10")
    _, whole = evaluate(models, *drawn)
    Path("r.json").unlink()
    Path("p.txt").write_text("\n".join(CAPTIONS[::2]))
    texts = ("--prompts", "p.txt", "--metrics", "clip", "--clip", str(models / "clip"))
    capsys.readouterr()
    code, result = alone(models, *drawn, *texts, "--allow-code", "--rewards", "mean.py:brightness")
    assert code == 0
    assert set(result["metrics"]) == {"clip", "reward/brightness"}
    for name, entry in result["metrics"].items():
        same = ("value", "standard_error", "n")
        assert [entry[key] for key in same] == [whole["metrics"][name][key] for key in same]
    for key in ("num_images", "texts", "clip_model", "rewards"):
        assert result["protocol"][key] == whole["protocol"][key]
    printed = capsys.readouterr().out
    assert "CLIP       clip:clip" in printed
    assert "reference" not in printed


def test_rewards_alone_and_several_models(models, capsys):
    reference()
    Path("p.txt").write_text("\n".join(CAPTIONS[:3]))
    models_ = ("--model", f"{models / 'sd'}@1", "--model", f"{models / 'sd'}@2")
    rewards = ("--prompts", "p.txt", "--rewards", "mean.py:brightness")
    assert alone(models, *models_, *rewards)[0] == 2
    assert "'mean.py:brightness' is code, which would be run: say --allow-code" in capsys.readouterr().err
    code, result = alone(models, *models_, *rewards, "--allow-code")
    assert code == 0
    assert [set(one["metrics"]) for one in result["models"]] == [{"reward/brightness"}] * 2
    assert "Reward brightness" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "--reference is missing, and fid needs images to compare with: give it, or measure --metrics clip and"),
        (("--metrics", "clip,kid"), "kid needs images to compare with"),
        (("--metrics", "clip", "--features", "pixels"), "--features needs images to compare with"),
        (("--metrics", "clip", "--neighbours", "n.png"), "--neighbours needs images to compare with"),
        (("--metrics", "clip", "--prompt", ""), "prompt"),
    ],
)
def test_what_needs_a_reference_says_so(models, capsys, words, sentence):
    reference()
    assert alone(models, "--images", "real", *words)[0] in (2, 3)
    assert sentence in refused(capsys)
