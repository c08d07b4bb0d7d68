"""Two processes, sharded, within the default suite: two updates, a checkpoint, a look and a published model."""

import pytest
import torch
from ranks import pair
from sharded_runs import FSDP, distances, figures, whole_run


@pytest.fixture
def both(tmp_path):
    more = {"max_train_steps": 2, "sample_every": 0, "evaluation": {"features": "pixels"}, **FSDP}
    one = whole_run("dmd2", tmp_path / "one", **more)
    two = pair(lambda rank: whole_run("dmd2", tmp_path / "two", **more), tmp_path / "ranks")
    return one, two, tmp_path


def test_two_sharded_processes_do_as_one(both):
    one, two, folder = both
    assert all(torch.equal(value, two[1][name]) for name, value in two[0].items())
    worst = distances({f"end {n}": v for n, v in one.items()}, {f"end {n}": v for n, v in two[0].items()})
    assert worst["weights"] <= 1e-5
    assert figures(folder / "two")[2] == pytest.approx(figures(folder / "one")[2], rel=1e-5)
    last = folder / "two" / "checkpoints" / "step-000002"
    assert len(list(last.glob("shard-*.safetensors"))) == 2
    from safetensors.torch import load_file

    published = load_file(folder / "two" / "model" / "unet" / "diffusion_pytorch_model.safetensors")
    average = {n.removeprefix("student_ema.module.network."): v for n, v in two[0].items() if "ema.module" in n}
    assert published.keys() == average.keys()
    assert all(torch.equal(value, average[name]) for name, value in published.items())
