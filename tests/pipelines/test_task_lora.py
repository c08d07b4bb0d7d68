"""A LoRA on the teacher: what diffusers would make of it, and the one adapter in which base and student differ."""

import pytest
import torch
import yaml

pytest.importorskip("transformers")
pytest.importorskip("peft")

from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from text_world import settings
from tiny_text import stable_diffusion

import diffdistill
from diffdistill import Denoiser
from diffdistill.errors import CheckpointError, ConfigError
from diffdistill.pipelines.text.task_lora import load_task_lora

LAYERS = {"down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q": (16, 16), "conv_in": (4, 8)}


def style(file, rank=2, kohya=False, **changed):
    """A random LoRA of two layers, a linear one and a convolution: peft's names, or kohya's with alpha 1."""
    torch.manual_seed(5)
    tensors = {}
    for name, (inside, out) in LAYERS.items():
        kernel = (3, 3) if name == "conv_in" else ()
        down, up = torch.randn(rank, inside, *kernel), torch.randn(out, rank, *(1 for _ in kernel))
        if kohya:
            key = f"lora_unet_{name.replace('.', '_')}"
            tensors |= {
                f"{key}.lora_down.weight": down,
                f"{key}.lora_up.weight": up,
                f"{key}.alpha": torch.tensor(1.0),
            }
        else:
            tensors |= {f"unet.{name}.lora_A.weight": down, f"unet.{name}.lora_B.weight": up}
    file.parent.mkdir(exist_ok=True)
    save_file(tensors | changed, file)
    return file


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return stable_diffusion(tmp_path_factory.mktemp("task") / "sd")


@pytest.mark.parametrize("kohya", [False, True])
def test_the_teacher_is_what_diffusers_fuses(teacher, tmp_path, kohya):
    file = style(tmp_path / "lora" / "style.safetensors", kohya=kohya)
    stock = StableDiffusionPipeline.from_pretrained(teacher, safety_checker=None)
    stock.load_lora_weights(str(file.parent), weight_name=file.name)
    stock.fuse_lora(lora_scale=0.5)
    stock.unload_lora_weights()
    ours = Denoiser.from_pretrained(teacher)
    before = {name: value.clone() for name, value in ours.network.state_dict().items()}
    task = load_task_lora(ours.adapter, str(file.parent), 0.5)
    assert set(task.factors) == set(LAYERS)
    after = ours.network.state_dict()
    for name, value in stock.unet.state_dict().items():
        torch.testing.assert_close(after[name], value)
        changed = name.removesuffix(".weight") in LAYERS
        assert torch.equal(after[name], before[name]) != changed


def test_the_published_adapter_makes_the_student_of_the_base(teacher, tmp_path):
    """Base + lora/ in stock diffusers draws the student's own images, of a student that has learned something."""
    folder = teacher.parent
    (folder / "prompts.txt").write_text("thing 0\nthing 1\n")
    file = style(tmp_path / "style.safetensors", kohya=True)
    lora = {"rank": 2, "targets": ["to_q", "to_v"]}  # one of the layers has both adapters
    config = settings(
        folder, student={"steps": 1, "lora": lora, "optimizer": {"learning_rate": 0.05}}, critic={"lora": lora},
        teacher_lora=str(file), teacher_lora_scale=0.7,
        output_dir=str(tmp_path / "run"), sample_every=0,
    ).model_dump(mode="json", exclude_unset=True)  # fmt: skip
    del config["data"]["keep"]
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    result = diffdistill.distill(tmp_path / "c.yaml")
    record = result.model.metadata["teacher_lora"]
    assert (record["file"], record["scale"]) == ("style.safetensors", 0.7)
    student = StableDiffusionPipeline.from_pretrained(result.model_folder)
    base = StableDiffusionPipeline.from_pretrained(folder / "sd").unet
    joined = StableDiffusionPipeline.from_pretrained(folder / "sd", unet=base, scheduler=student.scheduler)
    joined.load_lora_weights(str(result.model_folder / "lora"))

    def drawn(pipeline):
        noise, call = torch.Generator().manual_seed(0), result.model.metadata["call"]
        return pipeline("thing 1", generator=noise, output_type="pt", height=16, width=16, **call).images

    images = drawn(student)
    torch.testing.assert_close(drawn(joined), images, rtol=0, atol=1e-4)
    joined.disable_lora()
    assert (drawn(joined) - images).abs().max() > 1e-2
    tensors = load_file(result.model_folder / "lora" / "pytorch_lora_weights.safetensors")
    assert {tensor.shape[0] for name, tensor in tensors.items() if "lora_A" in name} == {2, 4}
    assert "LoRA on the teacher: `style.safetensors`, scale 0.7" in (result.model_folder / "README.md").read_text()
    student.load_lora_weights(str(style(tmp_path / "more.safetensors")))  # stock students take their teacher's LoRAs
    assert (drawn(student) - images).abs().max() > 1e-2
    # The same path with another LoRA in it is another run.
    style(file, rank=3)
    with pytest.raises(ConfigError, match=r"the content of teacher_lora .* is not what"):
        diffdistill.distill(tmp_path / "c.yaml", resume_from_checkpoint="latest")


def test_what_is_no_lora_of_the_teacher_is_one_sentence(teacher, tmp_path):
    adapter = Denoiser.from_pretrained(teacher).adapter
    before = {name: value.clone() for name, value in adapter.network.state_dict().items()}
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    (tmp_path / "old.ckpt").write_bytes(b"pickle")
    wrong = {
        "cut.safetensors": (CheckpointError, "is no whole safetensors file"),
        "old.ckpt": (CheckpointError, "is a pickle"),
        "absent.safetensors": (CheckpointError, "is not there"),
        ".": (CheckpointError, "and one is read; name the file"),
    }
    one = torch.ones(2, 16)
    for name, error, sentence, changed in [
        ("te", ConfigError, "text encoders too", {"text_encoder.q_proj.lora_A.weight": one}),
        ("dora", ConfigError, "is a DoRA", {"unet.conv_in.lora_magnitude_vector": one}),
        ("nan", CheckpointError, "NaN or infinite", {"unet.conv_in.more": one * torch.nan}),
        ("wide", CheckpointError, "does not fit", {"unet.conv_in.lora_A.weight": torch.ones(2, 9, 3, 3)}),
        ("more", CheckpointError, "of its 3 layers 2 are there",
         {"unet.nowhere.to_q.lora_A.weight": one, "unet.nowhere.to_q.lora_B.weight": one.T.contiguous()}),
    ]:  # fmt: skip
        style(tmp_path / f"{name}.safetensors", **changed)
        wrong[f"{name}.safetensors"] = error, sentence
    for name, (error, sentence) in wrong.items():
        with pytest.raises(error, match=sentence):
            load_task_lora(adapter, str(tmp_path / name), 1.0)
    after = adapter.network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
