"""`push`: what is shown is what is uploaded, by one commit; nothing of somebody's is written over."""

import json
import shutil

import huggingface_hub
import pytest
import yaml
from tiny import tiny_teacher

from diffdistill.pipelines.pixel.schedule import stock_levels
from diffdistill.reporting.model_card import model_card

FIGURES = {
    "metrics": {"fid": {"value": 1.5, "standard_error": 0.1}},
    "protocol": {"reference": {"name": "builtin:emoji", "num_images": 5, "fingerprint": "ab"}},
}


class Hub:
    """A stand-in for the Hub's client, which keeps what it is asked for."""

    holds: dict[str, list[str]] = {}  # noqa: RUF012
    broken = False

    def __init__(self):
        self.calls = []
        Hub.last = self

    def repo_exists(self, repo_id, **_):
        if Hub.broken:
            raise ConnectionError("no route\nto host")
        return repo_id in Hub.holds

    def list_repo_files(self, repo_id, **_):
        return Hub.holds[repo_id]

    def create_repo(self, repo_id, **more):
        self.calls.append(("create", repo_id, more))

    def upload_folder(self, *, repo_id, folder_path, **more):
        files = {p.relative_to(folder_path).as_posix(): p.read_bytes() for p in folder_path.rglob("*") if p.is_file()}
        self.calls.append(("upload", repo_id, more))
        self.files = files


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_x")
    monkeypatch.setattr(Hub, "holds", {})
    monkeypatch.setattr(Hub, "broken", False)
    monkeypatch.setattr(Hub, "last", None, raising=False)
    return Hub


@pytest.fixture
def model(tmp_path):
    """A student in its run."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("seed: 0\n")
    (run / "evaluation.json").write_text(json.dumps({"student": FIGURES}))
    tiny_teacher().save_pretrained(
        run / "student", role="student", levels=stock_levels(1, 2.5), teacher="builtin:emoji_teacher",
        card=lambda metadata: model_card(metadata=metadata),
    )  # fmt: skip
    (run / "student" / ".unet.partial-1-00000000").write_text("left by a kill")
    (run / "student" / "unet" / "other.bin").write_text("a pickle")
    return run / "student"


def front(card):
    return yaml.safe_load(card.split("---")[1])


def test_a_dry_run_shows_every_file_and_the_card_and_asks_nobody(ask, model, hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", None)
    before = (model / "README.md").read_bytes()
    code, said, _ = ask("push", str(model), "--repo", "me/mine", "--dry-run", "--base-model", "you/teacher")
    assert code == 0
    files = {line.split()[-1] for line in said.splitlines() if line.startswith("  ") and "B  " in line}
    assert files == {
        "README.md", "diffdistill.json", "model_index.json", "scheduler/scheduler_config.json", "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    }  # fmt: skip
    assert "me/mine: 6 files" in said
    assert "base_model: you/teacher" in said
    assert "license: apache-2.0" in said
    assert "model-index: FID 1.5" in said
    assert (model / "README.md").read_bytes() == before


def test_what_is_pushed_is_the_model_and_a_card_that_the_hub_reads(ask, model, hub):
    code, said, complaint = ask("push", str(model), "--repo", "me/mine", "--private", "--license", "mit")
    assert code == 0, complaint
    (made, uploaded) = hub.last.calls
    assert made == ("create", "me/mine", {"private": True, "exist_ok": True})
    assert uploaded[:2] == ("upload", "me/mine")
    assert uploaded[2]["delete_patterns"] is None
    sizes = {line.split()[-1] for line in said.splitlines() if line.startswith("  ") and "B  " in line}
    assert hub.last.files.keys() == sizes
    for name, content in hub.last.files.items():
        if name != "README.md":
            assert content == (model / name).read_bytes()
    facts = front(hub.last.files["README.md"].decode())
    assert facts["license"] == "mit"
    assert facts["model-index"][0]["results"][0]["metrics"] == [{"type": "fid", "value": 1.5, "name": "FID"}]
    assert "base_model" not in facts  # a folder of this machine is nothing to the Hub
    text = (model / "README.md").read_text().split("---", 2)[2].strip()
    assert hub.last.files["README.md"].decode().split("---", 2)[2].strip() == text


def test_a_base_on_the_hub_is_on_the_card_from_the_beginning(tmp_path):
    card = model_card(metadata={"role": "student", "levels": [2.5], "teacher": "you/teacher"}, evaluation=FIGURES)
    assert front(card)["base_model"] == "you/teacher"
    assert front(card)["model-index"][0]["results"][0]["dataset"]["name"] == "builtin:emoji"


def test_a_model_of_others_gets_a_card(ask, model, hub, tmp_path):
    shutil.copytree(model, tmp_path / "plain", ignore=shutil.ignore_patterns("README.md", "diffdistill.json", ".*"))
    index = json.loads((tmp_path / "plain" / "model_index.json").read_text())
    index.pop("_diffdistill")
    (tmp_path / "plain" / "model_index.json").write_text(json.dumps(index))
    code, said, _ = ask("push", str(tmp_path / "plain"), "--repo", "me/mine")
    assert code == 0
    assert "license: other: name that of its base with --license" in said
    assert "DiffusionPipeline.from_pretrained" in hub.last.files["README.md"].decode()


def refused(ask, hub, *words):
    code, _, complaint = ask("push", *map(str, words))
    assert code in (2, 4)
    assert complaint.count("\n") == 1
    assert hub.last is None or not hub.last.calls  # nothing was made, nothing uploaded
    return code, complaint


def test_what_cannot_be_pushed_is_told_in_a_sentence(ask, model, hub, monkeypatch):
    hub.holds["me/mine"] = [".gitattributes", "README.md", "theirs.txt"]
    assert "holds 1 files (theirs.txt)" in refused(ask, hub, model, "--repo", "me/mine")[1]
    assert ask("push", str(model), "--repo", "me/mine", "--overwrite")[0] == 0
    assert hub.last.calls[-1][2]["delete_patterns"] == ["*"]
    hub.last = None
    assert "no repository of the Hub" in refused(ask, hub, model, "--repo", "mine")[1]
    assert "no repository of the Hub" in refused(ask, hub, model, "--repo", "me/mi--ne")[1]
    hub.broken = True
    assert (
        "nothing was pushed to 'me/new' (ConnectionError: no route to host)"
        in refused(ask, hub, model, "--repo", "me/new")[1]
    )
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert "there is no token for the Hub" in refused(ask, hub, model, "--repo", "me/new")[1]
    (model / "unet" / "config.json").write_text("{}")
    code, complaint = refused(ask, hub, model, "--repo", "me/new", "--dry-run")
    assert (code, "is damaged" in complaint) == (4, True)
