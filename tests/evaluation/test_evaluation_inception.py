"""Files of the weights of Inception v3: the features they give, the name they earn, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from inception_reference import State, features, made_up_state
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from diffdistill.cli import main
from diffdistill.errors import CheckpointError
from diffdistill.evaluation import load_features
from diffdistill.evaluation.extractors import inception, inception_weights
from diffdistill.evaluation.figures import label_of
from diffdistill.evaluation.resize import resize
from diffdistill.files import sha256


def pictures(n: int, size: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, size, size), generator=generator, dtype=torch.uint8)


@pytest.fixture(scope="module")
def state() -> State:
    return made_up_state()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, state: State) -> Path:
    """The forms of the file, with made-up weights."""
    folder = tmp_path_factory.mktemp("inception")
    torch.save(state, folder / "old.pth", _use_new_zipfile_serialization=False)  # noqa: TID251
    torch.save(state, folder / "zip.pth")  # noqa: TID251
    save_file(state, folder / "plain.safetensors")
    for name, pixels in (("signed", "-1..1"), ("unsigned", "0..1")):
        save_file(state, folder / f"{name}.safetensors", {"graph": "keras", "pixels": pixels})
    return folder


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).abs().max() / expected.abs().max())


def test_a_pth_file_gives_the_features_of_the_graph_of_2015(folder: Path, state: State):
    extractor = load_features(str(folder / "old.pth"))
    extractor.batch_size = 1
    images = pictures(1, 48)
    expected = features((resize(images.float(), (299, 299), "tf").double() - 128) / 128, state, largest=True)
    found = extractor(images)
    assert found.shape == (1, 2048)
    assert relative(found, expected) < 1e-5
    assert (extractor.id, extractor.sha256) == ("inception_v3_2015:old", sha256(folder / "old.pth"))
    assert [extractor.resize_used(side, side) for side in (32, 298, 299, 512)] == ["tf", "tf", "none", "clean"]


@pytest.mark.parametrize(
    ("file", "offset", "scale", "largest"),
    [
        ("zip.pth", 128, 128, True),
        ("plain.safetensors", 128, 128, True),
        ("signed.safetensors", 127.5, 127.5, False),
        ("unsigned.safetensors", 0, 255, False),
    ],
)
def test_each_form_gives_the_features_of_its_graph(
    folder: Path, state: State, file: str, offset: float, scale: float, largest: bool
):
    extractor: Any = load_features(str(folder / file))
    images = pictures(1, 107).float()  # the last block sees 2x2 places
    expected = features((images.double() - offset) / scale, state, largest=largest)
    other = features((images.double() - offset) / scale, state, largest=not largest)
    assert relative(extractor.embed(images), expected) < 1e-5
    assert relative(other, expected) > 1e-2
    with torch.no_grad():
        found = extractor.probabilities(expected)
    bias = state["fc.bias"].double() if file.endswith("signed.safetensors") else 0
    assert torch.allclose(found, (expected @ state["fc.weight"].double().T + bias).softmax(1), atol=1e-12)


def test_without_a_last_layer_there_are_features_and_no_classes(tmp_path: Path, state: State):
    file = tmp_path / "headless.safetensors"
    save_file(
        {name: value for name, value in state.items() if not name.startswith("fc.")},
        file,
        {"graph": "keras", "pixels": "0..1"},
    )
    assert load_features(str(file)).probabilities(torch.zeros(1, 2048)) is None


def test_only_the_published_file_earns_the_plain_name(folder: Path, monkeypatch: pytest.MonkeyPatch):
    file = folder / "old.pth"
    assert inception_weights.SHA256.startswith("6726825d")  # the part of it that is in the published name
    assert all(name.endswith(f"-{inception_weights.SHA256[:8]}.pth") for name in inception_weights.FILES)
    assert label_of("fid", load_features(str(file)).id) == "FID (inception_v3_2015:old)"
    with pytest.raises(CheckpointError, match=r"is not Inception of 2015: its SHA-256 is .* as --features FILE"):
        load_features(f"inception:{file}")
    monkeypatch.setattr(inception_weights, "SHA256", sha256(file))
    for name in (str(file), f"inception:{file}"):
        extractor = load_features(name)
        assert extractor.id == inception.InceptionFeatures.id
        assert [label_of(metric, extractor.id) for metric in ("fid", "kid")] == ["FID", "KID"]


class Named(torch.nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.float().mean((2, 3))


def test_a_network_of_the_users_does_not_earn_it_by_its_name(tmp_path: Path, consent: None):
    file = tmp_path / inception.FILE
    torch.jit.save(torch.jit.script(Named()), str(file))
    assert label_of("fid", load_features(str(file)).id) == "FID (torchscript:inception-2015-12-05)"


class Published(torch.nn.Module):
    """The published TorchScript, as far as it matters: called as a user's network is, it classifies."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Conv2d(3, 2048, 13, stride=13), torch.nn.AdaptiveAvgPool2d(1))
        self.output = torch.nn.Linear(2048, 1008)

    def forward(self, images: Tensor) -> Tensor:
        return self.output(self.layers(images.float()).flatten(1))


def test_the_published_torchscript_gives_features_and_not_classes_however_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "renamed.pt"
    torch.jit.save(torch.jit.script(Published()), str(file))
    monkeypatch.setattr(inception, "SHA256", sha256(file))
    extractor = load_features(str(file))
    assert (extractor.id, extractor.dim) == ("inception-2015-12-05", 2048)


NOT_INCEPTION = "is not Inception v3 by PyTorch's names, without a side classifier"


@pytest.mark.parametrize(
    ("change", "metadata", "sentence"),
    [
        ({"Mixed_7c.branch_pool.bn.bias": None}, {}, r"\(Mixed_7c.branch_pool.bn.bias is missing\)"),
        ({"AuxLogits.fc.bias": torch.ones(3), "x": torch.ones(1)}, {}, "AuxLogits.fc.bias is unknown, and 1 more"),
        ({"Conv2d_1a_3x3.bn.bias": torch.ones(31)}, {}, r"is torch.float32 \(31,\) and not floats \(32,\)"),
        ({"Conv2d_1a_3x3.bn.bias": torch.ones(32).int()}, {}, r"is torch.int32 \(32,\) and not floats \(32,\)"),
        ({"fc.bias": None}, {}, "fc.bias is missing"),
        ({"fc.weight": torch.tensor(1.0)}, {}, "and not floats"),
        (
            {"fc.weight": torch.ones(1000, 2048), "fc.bias": torch.ones(1000)},
            {},
            r"has 1000 classes \(fc\)",
        ),
        ({"fc.weight": None, "fc.bias": None}, {}, r"has no classes \(fc\)"),
        ({}, {"graph": "keras"}, r"without the range of the pixels \(pixels: None\); save it with one of -1..1, 0..1"),
        ({}, {"graph": "slim", "pixels": "0..1"}, "with the graph 'slim'; graphs are 2015 and keras"),
    ],
)
def test_other_weights_are_refused_in_a_sentence(
    tmp_path: Path, state: State, change: dict[str, Tensor | None], metadata: dict[str, str], sentence: str
):
    file = tmp_path / "x.safetensors"
    changed = {name: tensor for name, tensor in (state | change).items() if tensor is not None}
    save_file(changed, file, metadata)
    with pytest.raises(CheckpointError, match=sentence) as error:
        load_features(str(file))
    assert "\n" not in str(error.value)
    assert str(file) in str(error.value)


def test_a_file_that_is_no_features_is_exit_code_4(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    for folder in ("real", "fake"):
        Path(folder).mkdir()
        for k, picture in enumerate(pictures(4, 16)):
            Image.fromarray(picture.permute(1, 2, 0).numpy()).save(Path(folder) / f"{k}.png")
    torch.save({"conv1.weight": torch.ones(2, 3, 3, 3)}, "resnet.pth")  # noqa: TID251
    torch.save({"epoch": 3}, "state.pth")  # noqa: TID251
    Path("empty.pth").write_bytes(b"")
    Path("words.pth").write_text("these are no weights")
    Path("words.safetensors").write_text("these are no weights")
    for file, said in (
        ("resnet.pth", NOT_INCEPTION),
        ("state.pth", "holds epoch and not tensors by name"),
        ("empty.pth", "the file is empty"),
        ("words.pth", "the pickle is damaged"),
        ("words.safetensors", "is no readable safetensors file"),
    ):
        assert main(["evaluate", "--images", "fake", "--reference", "real", "--features", file]) == 4, file
        sentence = capsys.readouterr().err.strip().splitlines()[-1]
        assert said in sentence
        assert file in sentence
