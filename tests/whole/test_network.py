"""What reaches the network: nothing but Hub ids, and published weights that are named. Sockets are watched."""

import json
import socket

import pytest

from diffdistill.cli import main
from diffdistill.errors import DiffDistillError
from diffdistill.evaluation.features import load_features
from diffdistill.files import is_hub_id
from diffdistill.pipelines.folder import locate
from diffdistill.rewards import load_reward
from tests.worlds.tiny import tiny_teacher
from tests.worlds.tiny_commands import png_folder


@pytest.fixture(autouse=True)
def calls(monkeypatch):
    """Every address that was asked for; none is reached."""
    asked = []

    def refuse(*given, **_):
        asked.append(given[-1] if isinstance(given[0], socket.socket) else given[0])
        raise OSError("no network in this test")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    return asked


@pytest.fixture
def models(tmp_path, monkeypatch):
    """A folder `models/teacher`, seen from beside `models`."""
    tiny_teacher().save_pretrained(tmp_path / "models" / "teacher", role="teacher")
    monkeypatch.chdir(tmp_path)
    return tmp_path


MISTYPED = ["./modle", "modle", "models/taecher", "/no/where", "../modle", "~/modle", "a/b/c", "owner/weights.pt",
            "owner/model.safetensors", "owner\\model", " owner/name", "o wner/name"]  # fmt: skip


@pytest.mark.parametrize("name", MISTYPED)
def test_a_mistyped_path_asks_nobody(models, calls, name):
    for read in (locate, load_features, lambda n: load_features(f"clip:{n}"), lambda n: load_reward(f"clip:{n}")):
        with pytest.raises(DiffDistillError):
            read(name)
    assert calls == []


def test_owner_and_name_ask_the_hub(models, calls):
    assert is_hub_id("owner/name")
    with pytest.raises(DiffDistillError, match="could not be fetched from the Hub"):
        locate("owner/name")
    assert calls


def test_a_hub_that_does_not_answer_is_one_line(models, capfd):
    """Its client and diffusers would add lines of their own."""
    assert main(["sample", "m2/stok", "--num-images", "1", "--out", "out"]) == 4
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("diffdistill: error: model 'm2/stok' is no local folder and could not be fetched")


def test_local_inputs_ask_nobody(models, calls, capsys):
    png_folder(models / "pictures")
    network = {"block_out_channels": [8, 16], "layers_per_block": 1, "attention_levels": [], "norm_num_groups": 4}
    settings = {
        "output_dir": "run", "max_train_steps": 1, "train_batch_size": 2, "num_threads": 1, "sample_every": 0,
        "data": {"path": "pictures"}, "network": network | {"attention_head_dim": 8},
        "evaluation": {"every": 0, "at_end": False},
    }  # fmt: skip
    (models / "tiny.yaml").write_text(json.dumps(settings))
    commands = (
        "sample models/teacher --num-images 1 --steps 1 --out out",
        "evaluate --images pictures --reference pictures --features pixels --metrics fid",
        "train tiny.yaml",
        "sample run/model --num-images 1 --steps 1 --out out2",
        "report run",
        "checkpoint ls run",
        "config show train tiny.yaml",
        "convert models/teacher/unet/diffusion_pytorch_model.safetensors --out converted",
    )
    codes = {command: main(command.split()) for command in commands}
    assert calls == []
    assert codes["sample models/teacher --num-images 1 --steps 1 --out out"] == 0, capsys.readouterr().err
    assert codes["evaluate --images pictures --reference pictures --features pixels --metrics fid"] == 0
    assert codes["train tiny.yaml"] == codes["report run"] == 0, capsys.readouterr().err
