"""Hostile pickles, in every form, by every door: refused, and what they would run leaves no marker."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import bombs
import pytest
import yaml
from counts import chosen, counting
from harness import Workshop

SUFFIXES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt", ".npy", ".npz", ".safetensors", "")
RIGHT = "refused with a sentence; nothing of the file runs"
Case = tuple[str, list[object]]


def _doors(shop: Workshop, file: Path, out: Path) -> Iterator[Case]:
    """Command lines that are given one file, by the flag that takes it."""
    student, data = shop.root / "student" / "student", shop.root / "data.npz"
    drawn = shop.root / "sd" if "align" in shop.configs else student
    draw = ["sample", drawn, "--num-images", 1, "--steps", 1, "--out", out / "images"]
    weights = next((shop.root / "teacher" / "model").rglob("*.safetensors"))
    judge = ["evaluate", "--images", data, "--reference", data, "--metrics", "fid"]
    yield "sample MODEL", ["sample", file, "--num-images", 1, "--out", out / "images"]
    yield "convert SOURCE", ["convert", file, "--out", out / "model"]
    yield "convert --config", ["convert", weights, "--config", file, "--out", out / "model"]
    yield "data.path", ["train", shop.configs["train"], f"data.path={file}", f"output_dir={out}/run"]
    yield "CONFIG", ["train", file]
    yield "teacher", ["distill", shop.configs["distill"], f"teacher={file}", f"output_dir={out}/run"]
    yield "evaluate --images", ["evaluate", "--images", file, "--reference", data, "--features", "pixels"]
    yield "evaluate --reference", [*judge[:3], "--reference", file, "--features", "pixels"]
    yield "evaluate --features", [*judge, "--features", file]
    yield "evaluate --features inception", [*judge, "--features", f"inception:{file}"]
    yield "sample --prompts", [*draw, "--prompts", file]
    yield "sample --calibration", [*draw, "--epsilon-scaling", "auto", "--calibration", file]
    yield "calibrate --data", ["calibrate", shop.root / "teacher" / "model", "--data", file, "--out", out / "c.json"]
    yield "report RUN", ["report", file]
    if "align" in shop.configs:
        yield "align model", ["align", shop.configs["align"], f"model={file}", f"output_dir={out}/run"]
        yield "align data.path", ["align", shop.configs["align"], f"data.path={file}", f"output_dir={out}/run"]
        for reward in ("aesthetic", "imagereward", "clip", "hps_v2", "pickscore"):
            yield f"--rewards {reward}", [*judge[:3], "--rewards", f"{reward}:{file}"]


def _judge(shop, counts, words, marker: Path, which: str) -> None:
    done = shop.run(words)
    ran = [path.name for path in marker.parent.glob(f"{marker.name}*")]
    for name in ran:
        (marker.parent / name).unlink()
    problem = f"it ran: {ran}" if ran else None if done.clean and done.code in (2, 3, 4) else str(done)
    counts.judge(problem, f"refused, exit {done.code}", which)


def test_one_file_by_every_door(shop):
    home = shop.folder("bombs")
    marker, out = home / "opened", home / "out"
    forms = bombs.of_every_format(marker)
    files = {suffix: home / f"weights{suffix}" for suffix in SUFFIXES}
    cases = [
        (form, suffix, door, words)
        for number, (door, words) in enumerate(_doors(shop, home / "FILE", out))
        for place, form in enumerate(forms)
        for suffix in SUFFIXES
        # Every door sees every form, and every ending; not each with each.
        if (place + number) % len(SUFFIXES) == SUFFIXES.index(suffix)
    ]
    with counting("pickles", "a hostile file by every door", RIGHT) as counts:
        for form, suffix, door, words in chosen(cases, 40):
            file = files[suffix]
            file.write_bytes(forms[form])
            shutil.rmtree(out, ignore_errors=True)
            given = [str(word).replace(str(home / "FILE"), str(file)) for word in words]
            _judge(shop, counts, given, marker, f"{door}, {form}, named {file.name}")
            file.unlink()


def test_weights_inside_a_model_folder(shop):
    """A .bin in the place of safetensors, an index that names one; a harmless one is not opened either."""
    home = shop.folder("bombs-model")
    marker, model, out = home / "opened", home / "model", home / "out"
    sources = {"pixels": shop.root / "teacher" / "model"}
    if "align" in shop.configs:
        sources["texts"] = shop.root / "sd"
    every = bombs.of_every_format(marker)
    forms = {name: form for name, form in every.items() if "torch.save" in name or name == "pickle 4"}
    forms["harmless"] = b""
    cases = [
        (kind, part, how, form)
        for kind, source in sources.items()
        for part in sorted(path.parent.name for path in source.rglob("*.safetensors"))
        for how in ("bin instead", "index names a bin", "safetensors is a pickle")
        for form in forms
    ]
    with counting("pickles", "hostile weights inside a model folder", RIGHT) as counts:
        for kind, part, how, form in chosen(cases, 12):
            shutil.rmtree(model, ignore_errors=True)
            shutil.copytree(sources[kind], model)
            (model / "diffdistill.json").unlink(missing_ok=True)
            _arm(model / part, how, forms[form])
            shutil.rmtree(out, ignore_errors=True)
            words = ["sample", model, "--num-images", 1, "--steps", 1, "--out", out]
            words = words if kind == "pixels" else [*words, "--prompt", "a"]
            _judge(shop, counts, words, marker, f"{part}, {how}, {form}")


def _arm(part: Path, how: str, bomb: bytes) -> None:
    (weights,) = part.glob("*.safetensors")
    bomb = bomb or bombs.harmless(weights)
    pickle_name = "diffusion_pytorch_model.bin" if weights.stem.startswith("diffusion") else "pytorch_model.bin"
    if how == "safetensors is a pickle":
        weights.write_bytes(bomb)
        return
    (part / pickle_name).write_bytes(bomb)
    if how == "index names a bin":
        from safetensors import safe_open

        with safe_open(weights, "pt") as opened:
            names = dict.fromkeys(opened.keys(), pickle_name)
        index = {"metadata": {"total_size": 1}, "weight_map": names}
        (part / f"{weights.name}.index.json").write_text(json.dumps(index))
        weights.rename(part / "decoy.safetensors")
    else:
        weights.unlink()


def test_code_that_a_model_folder_brings(shop):
    """Classes by file, `auto_map`, a custom pipeline: named in JSON, never imported."""
    home = shop.folder("bombs-code")
    marker, model, out = home / "opened", home / "model", home / "out"
    code = f"open({str(marker)!r}, 'w').close()\nclass Net: pass\n"
    changes = [
        ("model_index.json", {"unet": ["mine", "Net"]}), ("model_index.json", {"_class_name": ["mine", "Net"]}),
        ("model_index.json", {"scheduler": ["mine", "Net"]}), ("unet/config.json", {"_class_name": "mine.Net"}),
        ("unet/config.json", {"auto_map": {"AutoModel": "mine.Net"}}),
        ("model_index.json", {"custom_pipeline": "mine"}),
        ("scheduler/scheduler_config.json", {"_class_name": "mine.Net"}),
        ("scheduler/scheduler_config.json", {"trained_betas": {"__reduce__": "os.system"}}),
        ("unet/config.json", {"act_fn": f"__import__('os').system('touch {marker}')"}),
    ]  # fmt: skip
    right = "it does not run; refused, or drawn without it"
    with counting("pickles", "code that a model folder brings", right) as counts:
        for name, change in chosen(changes, 4):
            shutil.rmtree(model, ignore_errors=True)
            shutil.copytree(shop.root / "teacher" / "model", model)
            (model / "diffdistill.json").unlink()
            for folder in (model, model / "unet", model / "scheduler"):
                (folder / "mine.py").write_text(code)
                (folder / "pipeline.py").write_text(code)
            file = model / name
            file.write_text(json.dumps(json.loads(file.read_text()) | change))
            shutil.rmtree(out, ignore_errors=True)
            done = shop.run(["sample", model, "--num-images", 1, "--steps", 1, "--out", out])
            problem = "it ran" if marker.exists() else None if done.clean and done.code in (0, 2, 4) else str(done)
            marker.unlink(missing_ok=True)
            counts.judge(problem, "drawn without it" if done.code == 0 else f"refused, exit {done.code}", str(change))


def test_torchscript_of_a_stranger(shop):
    """TorchScript can write files by itself: no file outside is made or changed."""
    home = shop.folder("bombs-script")
    marker = home / "opened"
    images = shop.root / "data.npz"
    files = {"writes a file": bombs.torchscript(marker), "an archive with a bomb": bombs.script_with_bomb(marker)}
    with counting("pickles", "TorchScript of a stranger as features", RIGHT) as counts:
        for name, content in files.items():
            for prefix in ("", "inception:"):
                file = home / "features.pt"
                file.write_bytes(content)
                words = ["evaluate", "--images", images, "--reference", images, "--features", f"{prefix}{file}"]
                _judge(shop, counts, words, marker, f"{prefix}{name}")


def test_tags_of_yaml(shop):
    home = shop.folder("bombs-yaml")
    marker, run = home / "opened", home / "run"
    with counting("pickles", "YAML tags that name functions", RIGHT) as counts:
        for text in bombs.yaml_tags(marker):
            file = home / "config.yaml"
            file.write_text(text)
            _judge(shop, counts, ["train", file], marker, f"CONFIG {text!r}")
            _judge(shop, counts, ["config", "show", "train", file], marker, f"config show {text!r}")
            file.write_text(yaml.safe_dump({"base": str(shop.configs["train"])}) + text)
            _judge(shop, counts, ["train", file], marker, f"laid over a config {text!r}")
            value = text.partition(": ")[2].strip()
            if value:
                words = ["train", shop.configs["train"], f"output_dir={run}", f"seed={value}"]
                _judge(shop, counts, words, marker, f"override {value!r}")


@pytest.mark.parametrize("part", ["network", "ema", "optimizer"])
def test_a_part_of_a_checkpoint_that_is_a_pickle(shop, part):
    """The manifest fits it."""
    from diffdistill.files import sha256

    home = shop.folder(f"bombs-checkpoint-{part}")
    marker, run = home / "opened", home / "run"
    shop.must(shop.words("train", home / "base", 1))
    with counting("pickles", f"a pickle as a part of a checkpoint, {part}", RIGHT) as counts:
        for form, content in chosen(list(bombs.of_every_format(marker).items()), 2):
            shutil.rmtree(run, ignore_errors=True)
            shutil.copytree(home / "base", run)
            (folder,) = (run / "checkpoints").glob("step-*")
            file = folder / f"{part}.safetensors"
            file.write_bytes(content)
            manifest = json.loads((folder / "MANIFEST.json").read_text())
            manifest["files"][file.name] = {"size": len(content), "sha256": sha256(file)}
            (folder / "MANIFEST.json").write_text(json.dumps(manifest))
            words = shop.words("train", run, 2, "resume_from_checkpoint=latest")
            _judge(shop, counts, words, marker, form)
