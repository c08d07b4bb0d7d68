"""`diffdistill align` from end to end, on tiny real pipelines."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("transformers")
pytest.importorskip("pyarrow")
pytest.importorskip("peft")

from diffusers import DiffusionPipeline
from export_world import student
from tiny_text import pair_folder, pair_parquet, pair_rows, stable_diffusion, stable_diffusion_3, stable_diffusion_xl

from diffdistill.cli import main
from diffdistill.data.pairs import load_pairs, split_by_caption
from diffdistill.data.prompts import Prompt, spread
from diffdistill.denoiser import Denoiser
from diffdistill.sampling.noise import image_seed
from diffdistill.sampling.plan import plan_sampling

TINY = [
    "data.image_size=null", "max_train_steps=2", "train_batch_size=4", "micro_batch_size=null", "log_every=1",
    "mixed_precision=no", "gradient_checkpointing=false", "sample_every=0", "num_threads=1", "checkpoint_every=0",
    "evaluation.levels=2", "evaluation.sampling_steps=2", "data.held_out=0.3", "optimizer.learning_rate=1e-3",
]  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    stable_diffusion(folder / "sd")
    stable_diffusion_xl(folder / "sdxl")
    stable_diffusion_3(folder / "sd3")
    pair_parquet(folder / "pairs.parquet")
    pair_folder(folder / "pairs")
    return folder


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def align(world, out, *words, model="sd", data="pairs.parquet"):
    settings = [f"model={world / model}", f"data.path={world / data}", f"output_dir={out}", *TINY, *words]
    return main(["align", "align/mapo_sd15", "--allow-code", *settings])


def draw(folder):
    pipe = DiffusionPipeline.from_pretrained(folder, use_safetensors=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe("thing 1", num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="pt").images


def logged(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("model", ["sd", "sdxl", "sd3"])
@pytest.mark.parametrize("lora", ["lora.rank=2", "lora=null"])
@pytest.mark.parametrize("method", ["mapo", "diffusion_dpo"])
def test_the_aligned_pipeline_is_stock_and_differs_in_its_network_alone(tmp_path, world, model, lora, method):
    assert align(world, tmp_path / "run", lora, f"method.name={method}", model=model) == 0
    result = tmp_path / "run" / "model"
    assert not torch.equal(draw(result), draw(world / model))
    weights = {path.relative_to(result) for path in result.rglob("*.safetensors")}
    assert len(weights) == {"sd": 3, "sdxl": 4, "sd3": 5}[model]
    part = "transformer" if model == "sd3" else "unet"
    for name in weights:
        same = (result / name).read_bytes() == (world / model / name).read_bytes()
        assert same == (name.parts[0] != part)
    assert str(world) not in (result / part / "config.json").read_text()
    for name in ("report.html", "config.yaml", "environment.json", "model/README.md", "model/diffdistill.json"):
        assert (tmp_path / "run" / name).stat().st_size > 0
    metrics = json.loads((tmp_path / "run" / "evaluation.json").read_text())["aligned"]["metrics"]
    assert 0 <= metrics["win_rate"]["value"] <= 1
    first = logged(tmp_path / "run")[0]
    assert {"loss", "margin", "win_rate", "loss/win", "loss/lose"} <= first.keys()
    if method == "diffusion_dpo":
        assert first["loss"] == pytest.approx(0.6931472)  # at the start the network is its reference: ln 2
        assert first["margin"] == 0


def test_an_aligned_model_is_drawn_with_the_guidance_of_its_source(tmp_path, world):
    shutil.copytree(world / "sd", tmp_path / "sd")
    (tmp_path / "sd" / "diffdistill.json").write_text('{"role": "teacher", "guidance_scale": 2.5}')
    assert align(world, tmp_path / "run", model=tmp_path / "sd") == 0
    assert json.loads((tmp_path / "run" / "model" / "diffdistill.json").read_text())["guidance_scale"] == 2.5
    plan = plan_sampling(Denoiser.from_pretrained(tmp_path / "run" / "model"), prompts=[Prompt("thing 1")])
    assert plan.conditions.guidance_scale == 2.5


@pytest.mark.parametrize("model", ["sd", "sd3"])
def test_adapters_by_themselves_give_the_image_of_the_merged_pipeline(tmp_path, world, model):
    assert align(world, tmp_path / "run", "lora.rank=2", model=model) == 0
    pipe = DiffusionPipeline.from_pretrained(world / model)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(tmp_path / "run" / "lora")
    image = pipe("thing 1", num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="pt").images
    torch.testing.assert_close(image, draw(tmp_path / "run" / "model"), rtol=1e-4, atol=1e-4)


IN_BACKWARD = ["lora=null", "update_in_backward=true", "optimizer.max_grad_norm=null"]


@pytest.mark.parametrize("words", [["lora.rank=2"], ["lora=null", "method.name=diffusion_dpo"], IN_BACKWARD])
def test_a_resumed_run_is_the_run_that_was_never_stopped(tmp_path, world, words):
    words = [*words, "data.horizontal_flip=true", "max_train_steps=4", "checkpoint_every=2"]
    assert align(world, tmp_path / "whole", *words) == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for name in ("checkpoints/step-000004", "model"):
        shutil.rmtree(tmp_path / "cut" / name)
    (tmp_path / "cut" / "evaluation.json").unlink()
    assert align(world, tmp_path / "cut", *words, "resume_from_checkpoint=latest") == 0
    for name in ("model/unet/diffusion_pytorch_model.safetensors", "evaluation.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    untimed = [[{**line, "time": 0} for line in logged(tmp_path / name)] for name in ("cut", "whole")]
    assert untimed[0] == untimed[1]


def test_parts_of_a_batch_add_up_to_it(tmp_path, world):
    words = ["lora=null", "max_train_steps=1", "evaluation.at_end=false"]
    for name, size in (("whole", "null"), ("parts", "3")):
        assert align(world, tmp_path / name, *words, f"micro_batch_size={size}") == 0
    one, two = (logged(tmp_path / name)[0] for name in ("whole", "parts"))
    for key in ("loss", "margin", "loss/win", "network/grad_norm"):
        assert one[key] == pytest.approx(two[key], rel=1e-4)


@pytest.mark.parametrize("lora", ["lora.rank=2", "lora=null"])
def test_gradient_checkpointing_changes_nothing(tmp_path, world, lora):
    words = [lora, "max_train_steps=1", "evaluation.at_end=false"]
    for name in ("false", "true"):
        assert align(world, tmp_path / name, *words, f"gradient_checkpointing={name}") == 0
    one, two = (load_file(tmp_path / n / "model/unet/diffusion_pytorch_model.safetensors") for n in ("false", "true"))
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], rtol=1e-5, atol=1e-6)


def test_updates_in_the_backward_pass_change_nothing(tmp_path, world):
    for name in ("true", "false"):
        words = [*IN_BACKWARD, "gradient_checkpointing=true", f"update_in_backward={name}", "evaluation.at_end=false"]
        assert align(world, tmp_path / name, *words) == 0
    one, two = (tmp_path / name / "model/unet/diffusion_pytorch_model.safetensors" for name in ("true", "false"))
    assert one.read_bytes() == two.read_bytes()


def test_training_moves_the_margins_of_held_out_pairs(tmp_path, world):
    """Dark is wanted everywhere, so it carries over to captions never seen."""
    words = ["lora=null", "max_train_steps=40", "train_batch_size=8", "evaluation.levels=4", "log_every=40"]
    assert align(world, tmp_path / "run", *words, data="pairs") == 0
    metrics = json.loads((tmp_path / "run" / "evaluation.json").read_text())["aligned"]["metrics"]
    assert metrics["win_rate_at_start"]["value"] < 0.8
    assert metrics["win_rate_over_start"]["value"] == 1
    assert metrics["win_rate"]["value"] == 1


def test_ties_are_kept_when_asked(tmp_path, world):
    rows = pair_rows(8)
    rows["label_0"] = [0.5, *rows["label_0"][1:]]
    rows["label_1"] = [0.5, *rows["label_1"][1:]]
    pair_parquet(tmp_path / "ties.parquet", rows)
    assert align(world, tmp_path / "run", "data.ties=keep", data=tmp_path / "ties.parquet") == 0
    metadata = json.loads((tmp_path / "run" / "model" / "diffdistill.json").read_text())
    held = json.loads((tmp_path / "run" / "evaluation.json").read_text())["aligned"]["protocol"]["num_pairs"]
    assert metadata["data"]["pairs"] + held in (7, 8)  # a tie among the held-out pairs is not measured


JUDGE = "def red(images, prompts):\n    assert len(prompts) == len(images)\n    return images[:, 0].mean((1, 2))\n"


def test_judges_score_what_is_drawn_before_and_after_from_the_same_noise(tmp_path, world, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "judge.py").write_text(JUDGE)
    words = ["evaluation.judges=[judge.py:red]", "evaluation.judged_images=6", "evaluation.every=1", "sample_every=1"]
    assert align(world, tmp_path / "run", *words) == 0
    found = json.loads((tmp_path / "run" / "evaluation.json").read_text())["aligned"]
    score, rate = found["metrics"]["judge/red"], found["metrics"]["judge_win_rate/red"]

    def reds(model):
        pipe = DiffusionPipeline.from_pretrained(model)
        pipe.set_progress_bar_config(disable=True)
        held_out = split_by_caption(load_pairs(str(world / "pairs.parquet")), 0.3)[1].pairs
        captions = spread(list(dict.fromkeys(pair.text for pair in held_out)), 6)
        noise = [torch.Generator().manual_seed(image_seed(1000, i)) for i in range(6)]
        prompts = [captions[i % len(captions)] for i in range(6)]
        size = pipe.unet.config.sample_size * pipe.vae_scale_factor
        images = pipe(prompts, size, size, 2, guidance_scale=5.0, generator=noise, output_type="pt").images
        return images[:, 0].mean((1, 2)).double()

    before, after = reds(world / "sd"), reds(tmp_path / "run" / "model")
    assert score["value"] == pytest.approx(float(after.mean()), abs=1e-4)
    assert rate["value"] == float((after > before).double().mean())
    start = found["metrics"]["judge_at_start/red"]["value"]
    assert start == pytest.approx(float(before.mean()), abs=1e-4)
    assert not torch.equal(before, after)
    assert found["protocol"]["judges"] == {"judge/red": None}
    page = (tmp_path / "run" / "report.html").read_text()
    for part in (
        "</code> aligned with preferences, by <code>mapo</code>", "steps of 4 pairs",
        "Win rate over the start, judge red", "Judge red, of the start",
        "images preferred to the start", "<h3>Loss</h3>",
        "<figcaption>Start</figcaption>", "<dt>Judged images</dt><dd>6</dd>",
    ):  # fmt: skip
        assert part in page
    for part in ("denoising", "Denoising", "Real vs real"):
        assert part not in page
    lines = [line for line in logged(tmp_path / "run") if "evaluation/judge/red" in line]
    assert [line["step"] for line in lines] == [1, 2]
    assert align(world, tmp_path / "run", *words, "resume_from_checkpoint=latest", "max_train_steps=3") == 0
    again = logged(tmp_path / "run")[-1]
    assert 0 <= again["evaluation/judge_win_rate/red"] <= 1
    assert "evaluation/judge/red" in again


def test_an_aligning_run_ends_where_its_judge_says(tmp_path, world, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "judge.py").write_text(
        "calls = 0\ndef less(images, prompts):\n    global calls\n    calls += 1\n"
        "    return images[:, 0, 0, 0] * 0 - calls\n"
    )
    words = ["evaluation.judges=[judge.py:less]", "evaluation.judged_images=2", "evaluation.every=1"]
    stop = ["evaluation.stop.metric=judge/less", "evaluation.stop.margin=0.5", "max_train_steps=5"]
    assert align(world, tmp_path / "run", *words, *stop) == 0
    assert torch.equal(draw(tmp_path / "run" / "model"), draw(world / "sd"))  # worse from the first step on
    assert max(line["step"] for line in logged(tmp_path / "run")) == 1
    assert align(world, tmp_path / "two", *words, *stop, "evaluation.stop.metric=judge/more") == 2
    assert "judge/less, judge_win_rate/less; watch one" in capsys.readouterr().err
    assert align(world, tmp_path / "two", "evaluation.judges=[absent.py:f]") == 2
    assert "'absent.py' does not exist" in capsys.readouterr().err
    assert not (tmp_path / "two").exists()


def test_bf16_and_grids_run(tmp_path, world):
    assert align(world, tmp_path / "run", "mixed_precision=bf16", "sample_every=2", model="sdxl") == 0
    assert sorted(path.name for path in (tmp_path / "run" / "samples").iterdir()) == [
        "step-000000.png",
        "step-000002.png",
    ]
    merged = load_file(tmp_path / "run" / "model" / "unet" / "diffusion_pytorch_model.safetensors")
    start = load_file(world / "sdxl" / "unet" / "diffusion_pytorch_model.safetensors")
    assert torch.equal(merged["conv_in.weight"], start["conv_in.weight"])  # float32, never rounded to bf16


def broken(world, tmp_path, name):
    folder = tmp_path / "model"
    shutil.copytree(world / "sd", folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": name}))
    return folder


def test_a_student_is_refused(tmp_path, world, capsys):
    """It is no denoiser at the levels that pairs are noised to."""
    folder = student(world / "sd", tmp_path / "student")
    assert align(world, tmp_path / "run", model=folder) == 2
    assert "is a student, which is trained at its own levels alone" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_pipeline_without_adapter_is_refused_with_those_there_are(tmp_path, world, capsys):
    folder = broken(world, tmp_path, "KandinskyPipeline")
    assert align(world, tmp_path / "run", model=folder) == 2
    error = capsys.readouterr().err
    assert "is a KandinskyPipeline, and there are adapters for" in error
    assert "cannot be read off itself" in error
    assert "AdapterFor of your own" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["lora.targets=[to_q,to_z]"], 2, "LoRA target 'to_z' matches no linear or convolutional layer"),
        (["method.name=mapo", "method.link_mode=power"], 2, "needs beta"),
        (["method.name=dpo"], 2, "method.name"),
        (
            ["update_in_backward=true"],
            2,
            "before the norm of all gradients is known; set optimizer.max_grad_norm=null",
        ),
        (
            [*IN_BACKWARD, "micro_batch_size=2"],
            2,
            "micro_batch_size=2 cuts up train_batch_size=4; set both to the same",
        ),
        (["data.held_out=0"], 3, "leaves one side empty"),
        (["model=nowhere"], 4, "is not a diffusers folder"),
    ],
)
def test_what_cannot_work_is_said_before_training(tmp_path, world, capsys, words, code, sentence):
    assert align(world, tmp_path / "run", *words) == code
    error = capsys.readouterr().err
    assert sentence in error
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
