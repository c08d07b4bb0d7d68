"""Two processes, sharded, within the default suite: two updates, a checkpoint, a look, a published model, a resume."""

import pytest
import torch
from ranks import pair
from runs import lines
from safetensors.torch import load_file
from sharded_runs import FSDP, distances, figures, whole_run


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What one process and two leave of a run whose gradients are clipped, and where."""
    folder = tmp_path_factory.mktemp("both")
    clipped = {
        "student": {"optimizer": {"max_grad_norm": 0.01}},
        "critic": {"updates_per_step": 1, "optimizer": {"max_grad_norm": 0.01}},
    }
    more = {"max_train_steps": 2, "sample_every": 0, "evaluation": {"features": "pixels"}, **clipped, **FSDP}
    one = whole_run("dmd2", folder / "one", **more)
    two = pair(lambda rank: whole_run("dmd2", folder / "two", **more), folder / "ranks")
    resumed = whole_run("dmd2", folder / "two", resume_from_checkpoint="latest", **more)
    return one, two, resumed, folder


def test_two_sharded_processes_do_as_one(both):
    one, two, _, folder = both
    assert all(torch.equal(value, two[1][name]) for name, value in two[0].items())
    worst = distances({f"end {n}": v for n, v in one.items()}, {f"end {n}": v for n, v in two[0].items()})
    assert worst["weights"] <= 1e-5
    logs = [lines(folder / name) for name in ("one", "two")]
    for line, other in zip(*logs, strict=True):  # clipped, and by Adam, weights do not tell how long a gradient is
        norms = {name: value for name, value in line.items() if name.endswith("grad_norm")}
        assert {name: other[name] for name in norms} == pytest.approx(norms, rel=1e-4)
    assert "student/grad_norm" in logs[0][1]
    for part in ("student_optimizer.", "critic_optimizer."):
        squares = [name for name in one if name.startswith(part) and name.endswith("exp_avg_sq")]
        moments = [torch.cat([tensors[name].flatten() for name in squares]) for tensors in (one, two[0])]
        assert float((moments[0] - moments[1]).norm()) <= 1e-3 * float(moments[0].norm()), part
    assert figures(folder / "two")[2] == pytest.approx(figures(folder / "one")[2], rel=1e-5)


def test_their_checkpoint_is_in_two_pieces_that_one_process_reads(both):
    _, two, resumed, folder = both
    assert len(list((folder / "two" / "checkpoints" / "step-000002").glob("shard-*.safetensors"))) == 2
    assert resumed.keys() == two[0].keys()
    assert all(torch.equal(value, resumed[name]) for name, value in two[0].items())


def test_what_they_publish_is_the_whole_average(both):
    _, two, _, folder = both
    published = load_file(folder / "two" / "model" / "unet" / "diffusion_pytorch_model.safetensors")
    average = {n.removeprefix("student_ema.module.network."): v for n, v in two[0].items() if "ema.module" in n}
    assert published.keys() == average.keys()
    assert all(torch.equal(value, average[name]) for name, value in published.items())
