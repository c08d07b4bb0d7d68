"""Headers that lie, by every door: refused with a sentence within 10 s and 1 GB, or read to what the file says."""

import io
import json
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import lies
import numpy as np
import pytest
import torch
from counts import counting, tries
from guarded import attempts, refused_or, tally, told

RIGHT = "refused with a sentence in 10 s and 1 GB, or read to what the file says"
Attempt = Callable[[int], tuple[str | None, str]]


def _attack(shop, name: str, attempt: Attempt, full: int, ci: int) -> None:
    with counting("lies", name, RIGHT) as counts:
        tally(counts, attempts(attempt, tries(full, ci), shop.folder("lies-results")))


def _same_as_file(state: dict[str, torch.Tensor], file: Path) -> None:
    """AssertionError unless every tensor is the file's own."""
    from safetensors.torch import load_file

    written = load_file(file)
    assert written.keys() <= state.keys(), f"{sorted(written.keys() - state.keys())[:3]} of the file were left out"
    for name, value in state.items():
        assert name in written, f"{name} is not in the file, and was drawn at random"
        there = written[name]
        equal = there.shape == value.shape and torch.equal(value, there.to(value.dtype))
        assert equal or (there.isnan().any() and value.isnan().any()), f"{name} is not what the file says"


def test_the_network_of_a_model_folder(shop):
    """A foreign folder, without digests."""
    from diffdistill import load_model

    folder = Path(shutil.copytree(shop.root / "teacher" / "model", shop.folder("lies-model") / "model"))
    (folder / "diffdistill.json").unlink()
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    whole = lies.Tensors(file.read_bytes())

    def attempt(seed: int) -> tuple[str | None, str]:
        file.write_bytes(whole.lie(random.Random(f"model {seed}")))

        def read() -> str:
            _same_as_file(load_model(str(folder)).network.state_dict(), file)
            return "what the file says"

        return refused_or(read)

    _attack(shop, "safetensors, network of a model folder", attempt, 1200, 30)


EDM_WORDS = {
    "class_name": "EDMPrecond", "model_type": "SongUNet", "model_channels": 16, "channel_mult": [1, 2],
    "num_blocks": 1, "attn_resolutions": [4], "label_dropout": 0,
}  # fmt: skip


def _edm(home: Path) -> dict[str, torch.Tensor]:
    """Tensors of an EDM network, and its description beside where they will lie."""
    from edm_tiny import tiny_network

    (home / "net.json").write_text(json.dumps(EDM_WORDS))
    return {f"model.{name}": value for name, value in tiny_network("ddpmpp").state_dict().items()}


def test_the_source_of_convert(shop):
    from safetensors.torch import load_file, save

    home = shop.folder("lies-convert")
    file, out = home / "net.safetensors", home / "out"
    whole = lies.Tensors(save(_edm(home)))

    def attempt(seed: int) -> tuple[str | None, str]:
        file.write_bytes(whole.data if seed < 0 else whole.lie(random.Random(f"convert {seed}")))
        shutil.rmtree(out, ignore_errors=True)

        def read() -> str:
            outcome = told(["convert", file, "--out", out])()
            made = {f"model.{name}": value for name, value in load_file(*out.rglob("*.safetensors")).items()}
            for name, value in load_file(file).items():
                assert torch.equal(made[name], value.to(made[name].dtype)), f"{name} is not what the file says"
            return outcome

        return refused_or(read)

    assert attempt(-1) == (None, "accepted")
    _attack(shop, "safetensors, SOURCE of convert", attempt, 1400, 30)


def test_a_part_of_a_checkpoint(shop):
    """The manifest fits the lie: what was damaged before its digest was taken, or forged."""
    from diffdistill.files import sha256
    from diffdistill.training.store import CheckpointStore, load_checkpoint

    store = CheckpointStore(shop.folder("lies-checkpoint") / "checkpoints", 2)
    network = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.Linear(6, 6))
    store.save(1, {"network": network}, {"seconds": 0.0, "threads": 1})
    folder, _ = store.find("latest")
    assert folder is not None
    file = folder / "network.safetensors"
    whole, manifest = lies.Tensors(file.read_bytes()), json.loads((folder / "MANIFEST.json").read_text())

    def attempt(seed: int) -> tuple[str | None, str]:
        file.write_bytes(whole.lie(random.Random(f"checkpoint {seed}")))
        manifest["files"][file.name] = {"size": file.stat().st_size, "sha256": sha256(file)}
        (folder / "MANIFEST.json").write_text(json.dumps(manifest))

        def read() -> str:
            load_checkpoint(folder, {"network": network})
            _same_as_file(network.state_dict(), file)
            return "what the file says"

        return refused_or(read)

    _attack(shop, "safetensors, part of a checkpoint", attempt, 800, 30)


# ---- data


def _arrays(suffix: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8), dtype=np.uint8)
    stream = io.BytesIO()
    if suffix == ".npz":
        np.savez_compressed(stream, images=pixels, labels=np.arange(4))
    elif suffix == "":
        stream.write(b"\0\0\x08\x03" + np.array(pixels.shape, ">u4").tobytes() + pixels.tobytes())
    elif suffix == ".zip":
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            for i, image in enumerate(pixels):
                archive.writestr(f"{i}.png", _png(image))
            archive.writestr("dataset.json", json.dumps({"labels": [[f"{i}.png", i] for i in range(4)]}))
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.table({"image": [_png(image) for image in pixels], "label": [0, 1, 2, 3]})
        pq.write_table(table, stream)
    return stream.getvalue()


def _png(image: np.ndarray) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def _read_images(path: Path) -> str:
    from diffdistill.data import load_images

    found = load_images(str(path))
    assert found.images.ndim == 4, "not (N, C, H, W)"
    assert found.labels is None or len(found.labels) == len(found.images), "another number of labels"
    return "read to images"


DATA: dict[str, tuple[str, Callable[[bytes, random.Random], bytes]]] = {
    "npy": (".npy", lambda _data, random_: lies.array(random_)),
    "npz": (".npz", lies.zipped),
    "zip of pictures": (".zip", lies.zipped),
    "IDX": ("", lies.idx),
    "parquet": (".parquet", lies.tail),
}


@pytest.mark.parametrize("name", DATA)
def test_data(shop, name):
    suffix, lie = DATA[name]
    if name == "parquet":
        pytest.importorskip("pyarrow")
    home = shop.folder(f"lies-{name.replace(' ', '-')}")
    file = home / f"images-idx3-ubyte{suffix}"
    whole = b"" if name == "npy" else _arrays(suffix)
    if whole:
        file.write_bytes(whole)
        assert refused_or(lambda: _read_images(file)) == (None, "read to images")

    def attempt(seed: int) -> tuple[str | None, str]:
        (home / "opened").unlink(missing_ok=True)
        file.write_bytes(lie(whole, random.Random(f"{name} {seed}")))
        problem, outcome = refused_or(lambda: _read_images(file))
        return ("code of the file ran", "") if (home / "opened").exists() else (problem, outcome)

    _attack(shop, f"{name}, DATA", attempt, 350, 20)


@pytest.mark.parametrize("door", ["convert", "features", "statistics"])
def test_archives_of_numbers(shop, door):
    """torch.save's zip as SOURCE of convert and as features, and a statistics file."""
    from diffdistill.evaluation.features import load_features
    from diffdistill.evaluation.statistics import load_statistics

    home = shop.folder(f"lies-archive-{door}")
    stream = io.BytesIO()
    if door == "statistics":
        np.savez(stream, mu=np.zeros(6), sigma=np.eye(6), n=np.int64(40))
    else:
        torch.save(_edm(home), stream)  # noqa: TID251
    whole = stream.getvalue()
    file = home / ("statistics.npz" if door == "statistics" else "net.pt")

    def read() -> str:
        if door == "convert":
            shutil.rmtree(home / "out", ignore_errors=True)
            return told(["convert", file, "--out", home / "out"])()
        if door == "features":
            return f"read as {load_features(str(file)).id}"
        found = load_statistics(file)
        assert found.gaussian.covariance.shape == (len(found.gaussian.mean),) * 2, "sizes do not fit"
        return "read to statistics"

    def attempt(seed: int) -> tuple[str | None, str]:
        file.write_bytes(lies.zipped(whole, random.Random(f"{door} {seed}")))
        return refused_or(read)

    where = {"convert": "SOURCE of convert", "features": "--features", "statistics": "statistics"}[door]
    _attack(shop, f"{'npz' if door == 'statistics' else 'torch.save'}, {where}", attempt, 250, 15)
