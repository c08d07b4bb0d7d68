"""A model folder is read whole or refused: missing, surplus and broken tensors, pickles by side doors, impossible
schedules, changed settings.
"""

import json
import shutil

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

from diffdistill.cli import main
from diffdistill.denoiser import Denoiser
from diffdistill.errors import CheckpointError
from diffdistill.pipelines.scheduler_values import problem_of
from tests.worlds.tiny import tiny_teacher

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "ours"
    tiny_teacher().save_pretrained(folder, role="teacher")
    return folder


@pytest.fixture
def copy(ours, tmp_path):
    return shutil.copytree(ours, tmp_path / "model")


@pytest.fixture
def foreign(copy):
    """As any diffusers folder: without digests."""
    (copy / "diffdistill.json").unlink()
    return copy


@pytest.fixture(scope="module")
def text_pipeline(tmp_path_factory):
    pytest.importorskip("transformers")
    from tests.worlds.tiny_text import stable_diffusion

    return stable_diffusion(tmp_path_factory.mktemp("texts") / "sd")


@pytest.fixture
def texts(text_pipeline, tmp_path):
    return shutil.copytree(text_pipeline, tmp_path / "sd")


@pytest.fixture
def loads(monkeypatch):
    """What `torch.load` was asked for."""
    asked, real = [], torch.load  # noqa: TID251
    monkeypatch.setattr(torch, "load", lambda *given, **more: (asked.append(given), real(*given, **more))[1])
    return asked


def change(file, alter):
    tensors = load_file(file)
    alter(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def weights_of(part):
    (file,) = part.glob("*.safetensors")
    return file


def lacks_one(tensors):
    tensors.pop(sorted(tensors)[0])


def has_one_more(tensors):
    tensors["extra.weight"] = torch.zeros(3)


def renamed(tensors):
    for name in list(tensors):
        tensors[f"unet.{name}"] = tensors.pop(name)


def misshapen(tensors):
    name = sorted(tensors)[0]
    tensors[name] = torch.cat([tensors[name], tensors[name]])


def not_a_number(tensors):
    tensors[sorted(tensors)[0]].view(-1)[-1] = float("nan")


def infinite(tensors):
    tensors[sorted(tensors)[-1]].view(-1)[0] = float("-inf")


DAMAGES = [lacks_one, has_one_more, renamed, misshapen, not_a_number, infinite]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_pixel_network_that_is_not_whole_is_refused(foreign, damage):
    names = sorted(load_file(foreign / WEIGHTS))
    change(foreign / WEIGHTS, damage)
    with pytest.raises(CheckpointError) as error:
        Denoiser.from_pretrained(foreign)
    expected = {has_one_more: "extra.weight", renamed: names[0], infinite: names[-1]}.get(damage, names[0])
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_part_of_a_text_pipeline_that_is_not_whole_is_refused(texts, part, damage):
    change(weights_of(texts / part), damage)
    with pytest.raises(CheckpointError, match=part):
        Denoiser.from_pretrained(texts)


def test_the_refusal_is_the_one_line_that_is_said(foreign, capfd):
    change(foreign / WEIGHTS, lacks_one)
    assert main(["sample", str(foreign), "--num-images", "1", "--out", str(foreign.parent / "out")]) == 4
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("diffdistill: error: the weights in ")


def test_what_is_harmless_is_read(texts):
    change(
        weights_of(texts / "text_encoder"),
        lambda tensors: tensors.update({"text_model.embeddings.position_ids": torch.arange(16)[None]}),
    )
    (texts / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"a pickle beside safetensors, which nobody opens")
    assert Denoiser.from_pretrained(texts).draws_texts


def test_an_index_of_shards_may_not_name_a_pickle(foreign, loads):
    tensors = load_file(foreign / WEIGHTS)
    (foreign / WEIGHTS).rename(foreign / "unet" / "decoy.safetensors")
    torch.save(tensors, foreign / "unet" / "part.bin")  # noqa: TID251
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(tensors, "part.bin")}
    (foreign / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"part\.bin"):
        Denoiser.from_pretrained(foreign)
    assert not loads


def shards(part, tensors):
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(tensors, "../text_encoder/part.bin")}
    (part / "model.safetensors.index.json").write_text(json.dumps(index))
    torch.save(tensors, part / "part.bin")  # noqa: TID251
    save_file(tensors, part / "decoy.safetensors")


def plain_pickle(part, tensors):
    torch.save(tensors, part / "pytorch_model.bin")  # noqa: TID251


def beside_a_variant(part, tensors):
    plain_pickle(part, tensors)
    save_file(tensors, part / "model.fp16.safetensors")


def named_in_the_config(part, tensors):
    torch.save(tensors, part / "adapter_model.bin")  # noqa: TID251
    save_file(tensors, part / "decoy.safetensors")
    config = json.loads((part / "config.json").read_text())
    (part / "config.json").write_text(json.dumps(config | {"transformers_weights": "adapter_model.bin"}))


def adapter(part, tensors):
    save_file(tensors, part / "model.safetensors", metadata={"format": "pt"})
    torch.save(tensors, part / "adapter_model.bin")  # noqa: TID251
    about = {"peft_type": "LORA", "base_model_name_or_path": str(part), "r": 1, "target_modules": ["q_proj"]}
    (part / "adapter_config.json").write_text(json.dumps(about))


@pytest.mark.parametrize("door", [shards, plain_pickle, named_in_the_config, adapter])
def test_no_door_of_a_text_encoder_leads_to_a_pickle(texts, loads, door):
    file = weights_of(texts / "text_encoder")
    tensors = load_file(file)
    file.unlink()
    door(texts / "text_encoder", tensors)
    with pytest.raises(CheckpointError):
        Denoiser.from_pretrained(texts)
    assert not loads


def test_of_a_pickle_beside_a_variant_the_variant_is_read(texts, loads):
    file = weights_of(texts / "text_encoder")
    tensors = load_file(file)
    file.unlink()
    beside_a_variant(texts / "text_encoder", {name: tensor.half() for name, tensor in tensors.items()})
    encoder = Denoiser.from_pretrained(texts).adapter.pipeline.text_encoder
    assert encoder.dtype == torch.float32
    assert not loads


@pytest.mark.parametrize("library", ["strangers_module", "mine"])
def test_a_part_of_an_unknown_package_is_not_imported(texts, tmp_path, monkeypatch, library):
    marker = tmp_path / "ran"
    code = f"open({str(marker)!r}, 'w').close()\nclass DDIMScheduler: pass\n"
    place = {"strangers_module": tmp_path, "mine": texts / "scheduler"}[library]
    (place / f"{library}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    index = json.loads((texts / "model_index.json").read_text())
    (texts / "model_index.json").write_text(json.dumps(index | {"scheduler": [library, "DDIMScheduler"]}))
    with pytest.raises(CheckpointError):
        Denoiser.from_pretrained(texts)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"beta_start": -0.1}, "beta_start"),
        ({"beta_end": float("nan")}, "beta_end"),
        ({"beta_end": "0.02"}, "beta_end"),
        ({"num_train_timesteps": 0}, "num_train_timesteps"),
        ({"num_train_timesteps": None}, "num_train_timesteps"),
        ({"num_train_timesteps": 10**12}, "num_train_timesteps"),
        ({"sigma_data": 0}, "sigma_data"),
        ({"rho": 0}, "rho"),
        ({"rho": float("inf")}, "rho"),
        ({"shift": -3.0}, "shift"),
        ({"sigma_min": 80.0, "sigma_max": 0.002}, "sigma_min"),
        ({"trained_betas": [0.1, 2.0]}, "trained_betas"),
        ({"trained_betas": []}, "trained_betas"),
        ({"trained_betas": [0.1] * 5, "num_train_timesteps": 1000}, "trained_betas"),
        ({"trained_betas": [0.1] * 5}, "trained_betas"),
        ({"some_new_setting": float("nan")}, "some_new_setting"),
    ],
)
def test_impossible_values_of_a_scheduler_are_named(settings, word):
    assert word in problem_of(settings)


def test_possible_ones_are_not():
    assert problem_of({"sigma_min": None, "sigma_max": None, "lambda_min_clipped": float("-inf"), "shift": 3}) is None
    assert problem_of({"trained_betas": [0.1] * 5, "num_train_timesteps": 5}) is None
    assert problem_of({"sigma_min": 0.0, "sigma_max": 80.0, "rho": 2.0, "num_train_timesteps": 1000}) is None


@pytest.mark.parametrize("settings", [{"sigma_data": 0.0}, {"rho": float("nan")}, {"num_train_timesteps": 0}])
def test_a_folder_with_an_impossible_scheduler_is_refused(foreign, settings):
    file = foreign / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    with pytest.raises(CheckpointError, match=next(iter(settings))):
        Denoiser.from_pretrained(foreign)


def test_betas_that_make_no_schedule_are_refused(texts):
    file = texts / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"trained_betas": [0.0] * 1000}))
    with pytest.raises(CheckpointError, match="make no schedule"):
        Denoiser.from_pretrained(texts)


@pytest.mark.parametrize("name", ["unet/config.json", "scheduler/scheduler_config.json", "model_index.json"])
def test_a_setting_that_was_lost_is_noticed_in_a_folder_of_ours(copy, name):
    settings = json.loads((copy / name).read_text())
    settings.pop(next(key for key in settings if not key.startswith("_")))
    (copy / name).write_text(json.dumps(settings))
    with pytest.raises(CheckpointError):
        Denoiser.from_pretrained(copy)


def test_the_record_of_a_folder_of_ours_has_a_digest_of_itself(copy):
    record = json.loads((copy / "diffdistill.json").read_text())
    (copy / "diffdistill.json").write_text(json.dumps(record | {"null_class": 1}))
    with pytest.raises(CheckpointError, match="own_sha256"):
        Denoiser.from_pretrained(copy)
    record.pop("own_sha256")
    (copy / "diffdistill.json").write_text(json.dumps(record | {"null_class": 1}))
    assert Denoiser.from_pretrained(copy).null_class == 1


@pytest.mark.parametrize("record", ["[]", '{"sha256": []}', '{"sha256": {"unet/config.json": 3}}', "[" * 100_000])
def test_a_record_of_another_form_is_refused(copy, record):
    (copy / "diffdistill.json").write_text(record)
    with pytest.raises(CheckpointError):
        Denoiser.from_pretrained(copy)


@pytest.mark.parametrize("levels", [(80.0,), (80.0, 2.5)])
def test_a_student_that_lost_its_record_is_no_foreign_model(tmp_path, levels, caplog):
    """Read as one it would be drawn in one step: stock schedulers do not know how many a student takes."""
    tiny_teacher().save_pretrained(tmp_path / "s", role="student", levels=levels)
    Denoiser.from_pretrained(tmp_path / "s")
    DiffusionPipeline.from_pretrained(tmp_path / "s")
    assert "_diffdistill" not in caplog.text  # diffusers says which settings it does not know
    (tmp_path / "s" / "diffdistill.json").unlink()
    with pytest.raises(CheckpointError, match=r"has lost its diffdistill\.json, which model_index\.json says it had"):
        Denoiser.from_pretrained(tmp_path / "s")
    index = json.loads((tmp_path / "s" / "model_index.json").read_text())
    del index["_diffdistill"]
    (tmp_path / "s" / "model_index.json").write_text(json.dumps(index))
    assert Denoiser.from_pretrained(tmp_path / "s").role == "student"


def test_a_teacher_that_lost_its_record_is_read_with_a_word(tmp_path, caplog):
    """It was drawn without its null class, silently: guidance then pushes away from the last class."""
    folder = tmp_path / "t"
    tiny_teacher().save_pretrained(folder, role="teacher")
    assert Denoiser.from_pretrained(folder).null_class == 3
    assert not caplog.records
    (folder / "diffdistill.json").unlink()
    assert Denoiser.from_pretrained(folder).null_class is None
    assert "has lost its diffdistill.json" in caplog.text
    assert "without its null class" in caplog.text
