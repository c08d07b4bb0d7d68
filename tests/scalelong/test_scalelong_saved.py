"""ScaleLong in model folders, in training and in distillation."""

import json
import warnings

import pytest
import torch
from diffusers import UNet2DModel
from runs import data, go, settings
from tiny import tiny_unet, tiny_uvit

from diffdistill.cli import main
from diffdistill.denoiser import Denoiser
from diffdistill.errors import CheckpointError
from diffdistill.models import UViT, apply_scalelong, load_scaled, remove_scalelong
from diffdistill.pipelines.network import clone_network
from diffdistill.process import EDM
from diffdistill.training.device import Device
from diffdistill.training.tasks.teacher import TeacherTask

VARIANTS = [
    {"mode": "cs", "kappa": 0.6},
    {"mode": "rsqrt2"},
    {"mode": "ls"},
    {"mode": "ls", "start": "reference", "position": "post_norm"},
    {"mode": "cs", "kappa": 0.6, "position": "post_norm"},
]


def scaled(network, seed=3, **more):
    """The network with ScaleLong, its gates as if they had learned."""
    apply_scalelong(network, **more)
    for parameter in network.skip_scale.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(seed))
    return network


CASES = [
    pytest.param(make, variant, id="-".join(map(str, (make.__name__, *variant.values()))))
    for variant in VARIANTS
    for make in ((tiny_unet,) if variant.get("position") == "post_norm" else (tiny_unet, tiny_uvit))
]


@pytest.fixture
def batch():
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return x, torch.tensor([0.1, 1.0, 40.0]), torch.tensor([0, 1, 2])


def test_a_folder_without_it_is_read_as_any_other(tmp_path):
    tiny_uvit().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"no ScaleLong in its config.json; read it with from_pretrained"):
        load_scaled(UViT, tmp_path)


@pytest.mark.parametrize(("make", "variant"), CASES)
def test_a_model_folder_keeps_it(tmp_path, batch, make, variant):
    model = Denoiser(scaled(make(), **variant), EDM(), null_class=3).eval()
    model.save_pretrained(tmp_path / "m", role="teacher")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        back = Denoiser.from_pretrained(str(tmp_path / "m"))
    assert torch.equal(back(*batch), model(*batch))
    assert back.network.config.scalelong == model.network.config.scalelong
    state, restored = model.network.state_dict(), back.network.state_dict()
    assert state.keys() == restored.keys()
    assert all(torch.equal(state[key], restored[key]) for key in state)
    assert any(key.startswith("skip_scale.") for key in state) is (variant["mode"] == "ls")


@pytest.mark.parametrize(("make", "variant"), CASES)
def test_student_and_critic_begin_with_it(batch, make, variant):
    model = Denoiser(scaled(make(), **variant), EDM(), null_class=3).eval()
    copy = Denoiser(clone_network(model.network, 3), EDM()).eval()
    assert torch.equal(copy(*batch), model(*batch))


def test_a_damaged_gate_is_found(tmp_path):
    Denoiser(scaled(tiny_uvit(), mode="ls"), EDM(), null_class=3).save_pretrained(tmp_path / "m", role="teacher")
    file = tmp_path / "m" / "unet" / "diffusion_pytorch_model.safetensors"
    content = bytearray(file.read_bytes())
    start, end = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["skip_scale.excite.weight"][
        "data_offsets"
    ]
    content[8 + int.from_bytes(content[:8], "little") + (start + end) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged: its SHA-256"):
        Denoiser.from_pretrained(str(tmp_path / "m"))


def test_plain_diffusers_folders_too(tmp_path, batch):
    network = scaled(tiny_unet().eval(), mode="ls")
    network.save_pretrained(tmp_path, max_shard_size="5KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    back = load_scaled(UNet2DModel, tmp_path)
    assert torch.equal(back(*batch).sample, network(*batch).sample)


def test_folded_it_is_a_stock_model(tmp_path, batch):
    network = scaled(tiny_unet().eval(), kappa=0.6, position="post_norm")
    before = network(*batch).sample
    remove_scalelong(network, fold=True)
    network.save_pretrained(tmp_path)
    assert torch.allclose(UNet2DModel.from_pretrained(tmp_path)(*batch).sample, before, atol=1e-5)


@pytest.mark.parametrize("mode", ["cs", "ls"])
def test_train_scales_and_averages(tmp_path, mode):
    config = settings("train", tmp_path)
    network = type(config.network).model_validate(config.network.model_dump() | {"scalelong": {"mode": mode}})
    task = TeacherTask(config.model_copy(update={"network": network}), data(), Device("no"))
    start = {key: value.clone() for key, value in task.model.state_dict().items()}
    go(task, config, tmp_path)
    average = task.averaged()
    assert average.network.config.scalelong["mode"] == mode
    x, sigma, labels = torch.randn(2, 1, 8, 8), torch.tensor([0.3, 3.0]), torch.tensor([0, 1])
    with torch.no_grad():
        before = average(x, sigma, labels)
        for parameter in task.model.parameters():
            parameter.zero_()
        assert torch.equal(average(x, sigma, labels), before)  # it looks at nothing of the network it averages
        remove_scalelong(average.network)
        assert not torch.equal(average(x, sigma, labels), before)
    moved = {key for key, value in average.state_dict().items() if not torch.equal(start[key], value)}
    assert len(moved) > 0
    gates = [key for key in start if "skip_scale" in key]
    assert bool(gates) is (mode == "ls")


def test_with_and_without_begin_with_the_same_weights(tmp_path):
    config = settings("train", tmp_path)
    plain = TeacherTask(config, data(), Device("no")).model.state_dict()
    network = type(config.network).model_validate(config.network.model_dump() | {"scalelong": {"mode": "ls"}})
    with_gates = TeacherTask(config.model_copy(update={"network": network}), data(), Device("no")).model.state_dict()
    assert all(torch.equal(plain[key], with_gates[key]) for key in plain)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("network.scalelong={kappa: 1.5}", "'network.scalelong.kappa' is 1.5; it must be a number <= 1"),
        (
            "network.scalelong={mode: linear}",
            "'network.scalelong.mode' is 'linear'; it must be one of 'cs', 'ls' or 'rsqrt2'",
        ),
    ],
)
def test_the_config_refuses_with_a_sentence(capsys, override, sentence):
    assert main(["train", "fashion_mnist/teacher", override, "output_dir=x"]) == 2
    assert sentence in capsys.readouterr().err


def test_naming_the_models_loads_nothing(python):
    script = "import sys, diffdistill.models as m; print('apply_scalelong' in dir(m), 'torch' in sys.modules)"
    assert python("-c", script).out == "True False\n"
