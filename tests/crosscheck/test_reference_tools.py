"""Our distances against clean-fid, torchmetrics and torch-fidelity, on the same features and on the same images.

Runs where the extra `eval` is installed: `pytest -m crosscheck tests/crosscheck`. Elsewhere each test says what is
absent.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from diffdistill.data import ImageSet
from diffdistill.data.load import fingerprint
from diffdistill.evaluation import Evaluator, clip_score, frechet_distance, load_features
from diffdistill.evaluation.backends import BACKENDS
from diffdistill.evaluation.backends.clean_fid import sqrtm_with_disp
from diffdistill.evaluation.frechet import fit, frechet_terms
from diffdistill.evaluation.kernel import polynomial_mmd

pytestmark = pytest.mark.crosscheck
TOOLS = tuple(name for name, backend in BACKENDS.rows().items() if backend.module)


def need(name: str) -> Any:
    """The module, or a skip that says why: absent, or a torchvision that does not fit torch."""
    try:
        return __import__(name, fromlist=["_"])
    except (ImportError, RuntimeError, AttributeError) as error:
        pytest.skip(
            f"{name} cannot be imported ({error}): pip install 'diffdistill[eval]' and the torchvision of your torch"
        )


def features(n: int, d: int, seed: int, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d, d, generator=torch.Generator().manual_seed(99), dtype=torch.float64) / d**0.5
    return scale * torch.randn(n, d, generator=generator, dtype=torch.float64) @ mixing + 0.1 * scale


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize(("n", "d"), [(1000, 64), (1000, 192), (2048, 512)])
def test_frechet_distance_equals_the_tools_where_n_is_at_least_2d(tool: str, n: int, d: int):
    need(BACKENDS.get(tool).module)
    a, b = fit(features(n, d, 0)), fit(features(n, d, 1, 1.1))
    assert BACKENDS.get(tool).frechet(a, b) == pytest.approx(frechet_terms(a, b).value, rel=1e-9)


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize(("n", "d"), [(40, 64), (300, 512)])
def test_frechet_distance_is_close_where_n_is_less_than_d(tool: str, n: int, d: int):
    need(BACKENDS.get(tool).module)
    a, b = fit(features(n, d, 2)), fit(features(n, d, 3, 1.1))
    assert BACKENDS.get(tool).frechet(a, b) == pytest.approx(frechet_terms(a, b).value, rel=1e-4)


@pytest.mark.parametrize("tool", TOOLS)
def test_kernel_distance_equals_the_tools_on_one_subset(tool: str):
    need(BACKENDS.get(tool).module)
    x, y = features(200, 32, 4), features(200, 32, 5, 1.2)
    # A subset as large as the set leaves nothing to chance but the order.
    assert float(BACKENDS.get(tool).kernel(x, y, 2, 200, 0)) == pytest.approx(polynomial_mmd(x, y), rel=1e-9)


class Shared(nn.Module):
    """A network that all tools can call: uint8 or float images in [0, 255] to float64 features `(N, 32)`."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("weight", torch.randn(32, 3, 8, 8, generator=generator, dtype=torch.float64) / 192**0.5)

    def forward(self, images: Tensor) -> Tensor:
        x = images.to(torch.float64) / 127.5 - 1
        return torch.tanh(torch.conv2d(x, self.weight, stride=4)).mean((2, 3))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("network") / "shared.pt"
    torch.jit.save(torch.jit.script(Shared()), str(file))
    return file


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Tensor, Tensor]:
    """Two folders of PNGs, and the same images as tensors."""
    folder = tmp_path_factory.mktemp("pictures")
    sets = []
    for name, seed in (("real", 0), ("fake", 1)):
        (folder / name).mkdir()
        rng = np.random.default_rng(seed)
        waves = np.sin(np.linspace(0, 6, 32)[:, None, None] * rng.uniform(0.5, 2 + seed / 4, (200, 1, 1, 3)))
        pixels = np.clip(128 + 80 * waves + rng.normal(0, 20, (200, 32, 32, 3)), 0, 255).astype(np.uint8)
        for i, image in enumerate(pixels):
            Image.fromarray(image).save(folder / name / f"{i:04d}.png")
        sets.append(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous())
    return folder / "real", folder / "fake", sets[0], sets[1]


@pytest.fixture
def native(
    shared: Path, pictures: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, consent: None
) -> Callable[..., float]:
    """Our number, from images, with any backend."""
    monkeypatch.setenv("DIFFDISTILL_CACHE", str(tmp_path))
    _, _, real, fake = pictures
    reference = ImageSet(real, None, None, None, "real", fingerprint(real.numpy(), None))

    def fid(backend: str = "native") -> float:
        evaluator = Evaluator(reference, load_features(str(shared)), backend=backend, floor=False, resamples=0)
        return evaluator(fake)["metrics"]["fid"]["value"]

    return fid


@pytest.mark.parametrize("tool", TOOLS)
def test_every_backend_gives_our_number(tool: str, native: Callable[..., float]):
    need(BACKENDS.get(tool).module)
    assert native(tool) == pytest.approx(native(), rel=1e-9)


def test_clean_fids_public_function_gives_our_number(shared: Path, pictures: Any, native: Callable[..., float]):
    fid = need("cleanfid.fid")
    real, fake, *_ = pictures
    network = torch.jit.load(str(shared))
    with sqrtm_with_disp(fid):
        value = fid.compute_fid(
            str(real),
            str(fake),
            custom_feat_extractor=network,
            custom_fn_resize=lambda image: image.astype(np.float32),
            num_workers=0,
            device=torch.device("cpu"),
            use_dataparallel=False,
            verbose=False,
        )
    assert value == pytest.approx(native(), rel=1e-9)


def test_torchmetrics_public_metric_gives_our_number(shared: Path, pictures: Any, native: Callable[..., float]):
    module = need("torchmetrics.image.fid")
    *_, real, fake = pictures

    class Extractor(nn.Module):
        num_features = 32

        def __init__(self) -> None:
            super().__init__()
            self.network = torch.jit.load(str(shared))

        def forward(self, images: Tensor) -> Tensor:
            return self.network(images)

    metric = module.FrechetInceptionDistance(feature=Extractor())
    metric.update(real, real=True)
    metric.update(fake, real=False)
    assert float(metric.compute()) == pytest.approx(native(), rel=1e-9)


def test_torch_fidelitys_public_function_gives_our_number(shared: Path, pictures: Any, native: Callable[..., float]):
    need("torch_fidelity")
    import torch_fidelity
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase

    real, fake, *_ = pictures

    class Extractor(FeatureExtractorBase):
        def __init__(self, name: str, features_list: Any, **_: Any) -> None:
            super().__init__(name, features_list)
            self.network = torch.jit.load(str(shared))

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return ("shared",)

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "shared"

        @staticmethod
        def can_be_compiled() -> bool:
            return False

        @staticmethod
        def get_dummy_input_for_compile() -> Tensor:
            return torch.zeros(1, 3, 32, 32, dtype=torch.uint8)

        def forward(self, images: Tensor) -> tuple[Tensor, ...]:
            return (self.network(images),)

    torch_fidelity.register_feature_extractor("diffdistill-crosscheck", Extractor)
    found = torch_fidelity.calculate_metrics(
        input1=str(real),
        input2=str(fake),
        fid=True,
        cuda=False,
        cache=False,
        verbose=False,
        feature_extractor="diffdistill-crosscheck",
        feature_layer_fid="shared",
        samples_find_deep=False,
    )
    assert found["frechet_inception_distance"] == pytest.approx(native(), rel=1e-9)


def test_the_clean_resize_is_clean_fids(pictures: Any):
    resizer = need("cleanfid.resize").build_resizer("clean")
    from diffdistill.evaluation.resize import resize

    *_, real, _ = pictures
    ours = resize(real[:3].float(), (299, 299), "clean")
    theirs = torch.from_numpy(np.stack([resizer(image.permute(1, 2, 0).numpy()) for image in real[:3]])).permute(
        0, 3, 1, 2
    )
    assert torch.equal(ours, theirs.clamp(0, 255))


def test_the_tf_resize_is_torch_fidelitys(pictures: Any):
    need("torch_fidelity")
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

    from diffdistill.evaluation.resize import resize

    *_, real, _ = pictures
    ours = resize(real[:3].float(), (299, 299), "tf")
    theirs = interpolate_bilinear_2d_like_tensorflow1x(real[:3].float(), size=(299, 299), align_corners=False)
    assert (ours - theirs).abs().max() < 1e-3


def test_statistics_files_of_clean_fid_are_ours(tmp_path: Path):
    need("cleanfid.fid")
    from diffdistill.evaluation.statistics import Statistics, load_statistics, save_statistics

    x, y = features(300, 16, 6), features(300, 16, 7, 1.1)
    np.savez_compressed(tmp_path / "custom.npz", mu=x.numpy().mean(0), sigma=np.cov(x.numpy(), rowvar=False))
    read = load_statistics(tmp_path / "custom.npz")
    assert frechet_terms(read.gaussian, fit(y)).value == pytest.approx(frechet_distance(x, y), rel=1e-9)
    save_statistics(tmp_path / "ours.npz", Statistics(fit(x)))
    with np.load(tmp_path / "ours.npz") as file:  # noqa: TID251
        assert np.allclose(file["sigma"], np.cov(x.numpy(), rowvar=False))


def test_the_installed_versions_are_printed(capsys: pytest.CaptureFixture[str]):
    from importlib import metadata

    names = ("torch", "torchvision", "scipy", "clean-fid", "torchmetrics", "torch-fidelity")
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    with capsys.disabled():
        print(f"\ncrosscheck against {json.dumps(found)}", flush=True)
    assert clip_score(torch.eye(2), torch.eye(2)) == pytest.approx(100)
