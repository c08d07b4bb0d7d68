"""A Hub id: which files of a repository are fetched. The Hub is a folder here; what chooses is diffusers' own code."""

import fnmatch
import shutil
from types import SimpleNamespace

import diffusers.pipelines.pipeline_utils as pipeline_utils
import huggingface_hub
import pytest

from diffdistill.denoiser import Denoiser
from diffdistill.errors import CheckpointError
from diffdistill.pipelines.folder import locate
from diffdistill.pipelines.text.task_lora import lora_file
from tests.worlds.tiny import tiny_teacher

EXTRA = ("unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.bin", "notes.ckpt", "a.png")
asked = []  # models and revisions of every question


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The repository `me/teacher`, in two precisions and a pickle; returns where its files arrive."""
    asked.clear()
    repository, cache = tmp_path / "hub", tmp_path / "cache"
    tiny_teacher().save_pretrained(repository, role="teacher")
    for name in EXTRA:
        (repository / name).write_bytes(b"unwanted")

    def files():
        return [str(file.relative_to(repository)) for file in repository.rglob("*") if file.is_file()]

    def fetch(name):
        (cache / name).parent.mkdir(parents=True, exist_ok=True)
        return shutil.copyfile(repository / name, cache / name)

    def snapshot(model, *, allow_patterns, ignore_patterns=(), **settings):
        asked.append((model, settings.get("revision")))

        def matches(name, patterns):
            return any(fnmatch.fnmatch(name, pattern) for pattern in patterns or ())

        for name in files():
            if matches(name, allow_patterns) and not matches(name, ignore_patterns):
                fetch(name)
        return str(cache)

    def info(model, revision=None, **_settings):
        asked.append((model, revision))
        return known

    known = SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in files()])
    monkeypatch.setattr(pipeline_utils, "model_info", info)
    monkeypatch.setattr(pipeline_utils, "hf_hub_download", lambda _model, name, **_settings: str(fetch(name)))
    monkeypatch.setattr(pipeline_utils, "snapshot_download", snapshot)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    return cache


def test_one_precision_is_fetched_no_pickle_and_our_own_metadata(hub):
    assert Denoiser.from_pretrained("me/teacher").null_class == 3  # which diffdistill.json alone tells
    names = {str(file.relative_to(hub)) for file in hub.rglob("*") if file.is_file()}
    assert "unet/diffusion_pytorch_model.safetensors" in names
    assert not names & set(EXTRA)


def test_a_repository_of_pickles_is_refused(hub):
    (hub.parent / "hub" / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    siblings = [name for name in pipeline_utils.model_info("me/teacher").siblings if "model.saf" not in name.rfilename]
    pipeline_utils.model_info("me/teacher").siblings = [s for s in siblings if "fp16" not in s.rfilename]
    with pytest.raises(CheckpointError, match="that it is a pipeline with safetensors weights"):
        Denoiser.from_pretrained("me/teacher")
    assert not list(hub.rglob("*.bin"))


def test_a_pinned_revision_and_a_variant_are_those_that_are_asked_for(hub):
    (hub.parent / "hub" / "diffdistill.json").unlink()
    folder = locate("me/teacher@refs/pr/3:fp16")
    assert set(asked) == {("me/teacher", "refs/pr/3")}
    weights = {file.relative_to(folder).as_posix() for file in folder.rglob("*.safetensors")}
    assert weights == {"unet/diffusion_pytorch_model.fp16.safetensors"}
    with pytest.raises(CheckpointError, match=r"give a folder with model_index.json, .* OWNER/NAME\[@REVISION\]"):
        locate("me/teacher@v1:fp16:twice")


def test_of_a_lora_the_files_at_the_top_are_fetched(hub):
    repository = hub.parent / "hub"
    for name in ("style.safetensors", "checkpoint-100/style.safetensors", "style.bin"):
        (repository / name).parent.mkdir(exist_ok=True)
        (repository / name).write_bytes(b"x")
    assert lora_file("me/teacher@v2") == hub / "style.safetensors"
    assert set(asked) == {("me/teacher", "v2")}
    assert [file.name for file in hub.rglob("*") if file.is_file()] == ["style.safetensors"]
