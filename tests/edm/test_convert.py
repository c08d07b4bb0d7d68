"""`diffdistill convert`: EDM's files become model folders that give the same numbers."""

import json
import re

import numpy as np
import pytest
import torch
from edm_pickles import fake_modules, snapshot, write
from edm_tiny import LAYOUTS, tiny_network
from PIL import Image
from safetensors.torch import save_file

from diffdistill.cli import main
from diffdistill.denoiser import Denoiser
from diffdistill.files import sha256
from diffdistill.parts.edm.convert import build, read_source
from diffdistill.pickle_reader.source import read_pickle, read_tensors
from diffdistill.process import EDM

KINDS = {"EDMPrecond": "edm", "VPPrecond": "vp", "VEPrecond": "ve", "iDDPMPrecond": "iddpm"}


@pytest.fixture(autouse=True)
def original_modules(monkeypatch):
    fake_modules(monkeypatch)


def numbers(model, classes=4):
    sigma = torch.tensor([0.3, 4.0])
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * (1 + sigma[:, None, None, None])
    with torch.no_grad():
        return model(x, sigma, torch.tensor([2, 0]) if classes else None)


def error_of(capsys, *words):
    code = main(["convert", *map(str, words)])
    (line,) = capsys.readouterr().err.splitlines()
    return code, line


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_snapshot_becomes_a_folder_with_the_same_numbers(layout, protocol, tmp_path, capsys):
    network = tiny_network(layout)
    file = write(snapshot(network, tmp_path / "ran"), tmp_path / "net.pkl", protocol)
    assert main(["convert", str(file), "--out", str(tmp_path / "model")]) == 0
    assert "8x8, 4 classes" in capsys.readouterr().out
    model = Denoiser.from_pretrained(str(tmp_path / "model"))
    assert torch.equal(numbers(model), numbers(Denoiser(network, EDM())))
    assert model.network.config.dropout == 0.13
    assert (model.sigma_min, model.sigma_max) == (0.002, 80.0)
    assert model.metadata["source"] == {"file": "net.pkl", "sha256": sha256(file)}
    assert "license: other" in (tmp_path / "model" / "README.md").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "net.pkl"]  # the file's source never ran


@pytest.mark.parametrize(
    ("precond", "attributes", "sigma_max"),
    [
        ("VPPrecond", {"beta_d": 19.9, "beta_min": 0.1, "M": 1000, "epsilon_t": 1e-5}, 80.0),
        ("VEPrecond", {"sigma_min": 0.02, "sigma_max": 50}, 50.0),
        ("iDDPMPrecond", {"C_1": 0.001, "C_2": 0.008, "M": 1000}, 80.0),
    ],
)
def test_the_other_preconditioners_are_read(precond, attributes, sigma_max, tmp_path):
    network = tiny_network("adm", KINDS[precond])
    file = write(snapshot(network, tmp_path / "ran", precond, **attributes), tmp_path / "net.pkl")
    assert main(["convert", str(file), "--out", str(tmp_path / "model")]) == 0
    model = Denoiser.from_pretrained(str(tmp_path / "model"))
    assert torch.equal(numbers(model), numbers(Denoiser(network, EDM())))
    assert model.network.config.preconditioning["kind"] == KINDS[precond]
    assert model.sigma_max == sigma_max


def test_a_network_keeps_the_sigma_data_it_was_trained_with(tmp_path):
    """D = c_skip x + c_out F(c_in x) with the file's sigma_data, 0.8 (2206.00364, Table 1), also from the folder."""
    network = tiny_network("ddpmpp")
    file = write(snapshot(network, tmp_path / "ran", sigma_data=0.8), tmp_path / "net.pkl")
    assert main(["convert", str(file), "--out", str(tmp_path / "model")]) == 0
    model = Denoiser.from_pretrained(str(tmp_path / "model"))
    sigma, labels = torch.tensor([0.3, 4.0]), torch.tensor([2, 0])
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    s = sigma[:, None, None, None]
    with torch.no_grad():
        raw = network(x / (s**2 + 0.64).sqrt(), 250 * sigma.log(), labels).sample
        got = model(x, sigma, labels)
    torch.testing.assert_close(got, 0.64 / (s**2 + 0.64) * x + 0.8 * s / (s**2 + 0.64).sqrt() * raw)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_network_from_a_file_drops_nothing_out(layout, tmp_path):
    """Before any folder is written: the file asks for dropout 0.13 in training."""
    network = tiny_network(layout)
    model = build(read_source(write(snapshot(network, tmp_path / "ran"), tmp_path / "net.pkl")))
    assert model.network.config.dropout == 0.13
    assert [name for name, module in model.named_modules() if module.training] == []
    assert torch.equal(numbers(model), numbers(Denoiser(network, EDM())))


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_arrays_are_read_in_the_order_they_lie_in(protocol, tmp_path):
    """numpy writes transposed arrays column by column."""
    given = {
        "rows": np.arange(6.0).reshape(2, 3),
        "columns": np.arange(6.0).reshape(2, 3).T,
        "more": np.asfortranarray(np.arange(24, dtype=np.int32).reshape(2, 3, 4)),
        "exchanged": np.arange(24.0).reshape(2, 3, 4).transpose(1, 0, 2),
    }
    found = read_tensors(write(given, tmp_path / "arrays.pkl", protocol))
    assert {name: tensor.tolist() for name, tensor in found.items()} == {k: v.tolist() for k, v in given.items()}
    file = write(snapshot(tiny_network("ddpmpp"), tmp_path / "ran"), tmp_path / "net.pkl", protocol)
    array = read_pickle(file)["augment_pipe"].attributes["Hz"].tensor
    assert array.tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]


def test_label_dropout_means_a_null_class(tmp_path):
    content = snapshot(tiny_network("ddpmpp"), tmp_path / "ran")
    content["ema"].meta["state"]["_modules"]["model"].meta["state"]["_init_kwargs"]["label_dropout"] = 0.1
    file = write(content, tmp_path / "net.pkl")
    assert main(["convert", str(file), "--out", str(tmp_path / "model")]) == 0
    model = Denoiser.from_pretrained(str(tmp_path / "model"))
    assert (model.null_class, model.num_classes) == (4, 4)


def test_a_file_of_torch_save_is_read(tmp_path):
    network = tiny_network("ddpmpp")
    file = tmp_path / "training-state.pt"
    torch.save({"net": snapshot(network, tmp_path / "ran")["ema"], "optimizer_state": {}}, file)  # noqa: TID251
    assert main(["convert", str(file), "--out", str(tmp_path / "model")]) == 0
    assert torch.equal(numbers(Denoiser.from_pretrained(str(tmp_path / "model"))), numbers(Denoiser(network, EDM())))


@pytest.mark.parametrize("form", ["safetensors", "pt"])
def test_tensors_with_a_description_are_read(form, tmp_path, capsys):
    """As `state_dict` of EDM's preconditioned network and its training_options.json give them."""
    network = tiny_network("ncsnpp", "ve", classes=0)
    state = {f"model.{name}": tensor.clone() for name, tensor in network.state_dict().items()}
    file = tmp_path / f"weights.{form}"
    save_file(state, file) if form == "safetensors" else torch.save(state, file)  # noqa: TID251
    code, line = error_of(capsys, file, "--out", tmp_path / "model")
    assert code == 2
    assert "holds tensors and no description of the network; give one with --config" in line
    names = ("model_channels", "channel_mult", "num_blocks", "attn_resolutions", "embedding_type", "encoder_type")
    options = {name: network.config[name] for name in (*names, "channel_mult_noise", "resample_filter")}
    options |= {"class_name": "training.networks.VEPrecond", "model_type": "SongUNet"}
    (tmp_path / "options.json").write_text(json.dumps({"network_kwargs": options, "seed": 1}))
    words = [str(file), "--config", str(tmp_path / "options.json"), "--out", str(tmp_path / "model")]
    assert main(["convert", *words]) == 0
    model = Denoiser.from_pretrained(str(tmp_path / "model"))
    assert torch.equal(numbers(model, 0), numbers(Denoiser(network, EDM()), 0))
    assert (model.sigma_min, model.sigma_max) == (0.02, 80.0)


def test_a_converted_teacher_samples_and_is_distilled(tmp_path, capsys):
    file = write(snapshot(tiny_network("ddpmpp"), tmp_path / "ran"), tmp_path / "net.pkl")
    model = tmp_path / "model"
    assert main(["convert", str(file), "--out", str(model)]) == 0
    assert main(["sample", str(model), "--num-images", "2", "--steps", "2", "--out", str(tmp_path / "images")]) == 0
    for label in range(4):
        folder = tmp_path / "data" / str(label)
        folder.mkdir(parents=True)
        pixels = np.random.default_rng(label).integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "0.png")
    words = [f"teacher={model}", f"data.path={tmp_path / 'data'}", f"output_dir={tmp_path / 'run'}", "num_threads=1"]
    words += ["max_train_steps=3", "train_batch_size=2", "evaluation.at_end=false", "sample_every=0"]
    assert main(["distill", "fashion_mnist/dmd2", *words]) == 0
    student = Denoiser.from_pretrained(str(tmp_path / "run" / "student"))
    assert student.role == "student"
    assert not torch.equal(numbers(student), numbers(Denoiser.from_pretrained(str(model))))
    card = (tmp_path / "run" / "student" / "README.md").read_text()
    assert "import diffdistill.models" in card
    assert "loads in diffusers where diffdistill is installed" in card
    assert "license: other" in card


def test_nothing_is_overwritten(tmp_path, capsys):
    file = write(snapshot(tiny_network("ddpmpp"), tmp_path / "ran"), tmp_path / "net.pkl")
    (tmp_path / "model").mkdir()
    code, line = error_of(capsys, file, "--out", tmp_path / "model")
    assert code == 2
    assert line.endswith("already exists; name a new folder, nothing is overwritten")
    assert list((tmp_path / "model").iterdir()) == []


def changed(settings):
    def change(content):
        content["ema"].meta["state"]["_modules"]["model"].meta["state"]["_init_kwargs"] |= settings

    return change


def other_class(content):
    content["ema"].meta["class_name"] = "StyleGAN"


def no_network(content):
    del content["ema"]


def other_filter(content):
    enc = content["ema"].meta["state"]["_modules"]["model"].meta["state"]["_modules"]["enc"]
    down = enc._modules["4x4_down"].meta["state"]["_modules"]["conv0"].meta["state"]
    down["_buffers"]["resample_filter"] = torch.tensor([[[[0.0, 0.0], [0.0, 1.0]]]])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (changed({"num_blocks": 2}), "the file lacks '.*block.*', so it is not the network it describes"),
        (changed({"model_channels": 32}), r"tensor '.*' is \(.*\) where the description wants"),
        (changed({"model_channels": 10**9}), "model_channels is no number from 1 to 65536"),
        (changed({"channel_mult": [1] * 10**4}), "channel_mult is no short list of whole numbers"),
        (changed({"encoder_type": "skip"}), "encoder_type is 'skip', and convert knows standard, residual"),
        (changed({"dropout": "much"}), "dropout is no number from 0 to 1"),
        (other_class, "class_name is 'StyleGAN', and convert knows EDMPrecond, VPPrecond, VEPrecond, iDDPMPrecond"),
        (other_filter, "resample_filter' is not the filter of the description"),
        (no_network, r"holds no network \(augment_pipe, dataset_kwargs\); a snapshot with 'ema' or 'net' is read"),
    ],
)
def test_what_does_not_fit_is_a_sentence(change, sentence, tmp_path, capsys):
    content = snapshot(tiny_network("ddpmpp"), tmp_path / "ran")
    change(content)
    code, line = error_of(capsys, write(content, tmp_path / "net.pkl"), "--out", tmp_path / "model")
    assert code == 4
    assert re.search(sentence, line)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(("name", "sentence"), [("absent.pkl", "is missing"), ("", "is a folder")])
def test_a_source_that_is_no_file_is_a_sentence(name, sentence, tmp_path, capsys):
    code, line = error_of(capsys, tmp_path / name, "--out", tmp_path / "model")
    assert code == 4
    assert sentence in line
