"""What updates of a task leave, whole, however its networks are sharded; and runs that look at their model."""

import json
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

# Imported once, before processes are forked: each would import them for itself.
import torch
import torch._dynamo
import torch.distributed.checkpoint
import torch.distributed.fsdp
from runs import data, settings, task
from same_run import UNSEEN, before_clipping, in_double

from diffdistill import processes
from diffdistill.pipelines.text import adapter
from diffdistill.sampling.generate import generate
from diffdistill.sharding import is_sharded, whole
from diffdistill.training.flat import checksum, tensors_of
from diffdistill.training.loop import run_loop
from diffdistill.training.observers import usual_observers
from diffdistill.training.publish import DenoiserPublisher, publish
from diffdistill.training.randomness import seed_step
from diffdistill.training.signals import led

FSDP, DDP = {"parallel": {"strategy": "fsdp"}}, {"parallel": {"strategy": "ddp"}}


def gradients_seen(found):
    """Within, `gradient NAME` and `norm NAME` of the first update of each updater."""
    seen = set()

    def look(updater, norm):
        if updater.name not in seen:
            seen.add(updater.name)
            grads = [whole(p.grad).flatten() for p in updater.parameters if p.grad is not None]
            found[f"gradient {updater.name}"] = torch.cat(grads).clone()
            found[f"norm {updater.name}"] = norm.clone()

    return before_clipping(look)


@contextmanager
def pipelines_in_double():
    """Within, everything is float64, and so are the parts of pipelines, which are read as they were saved."""
    load, single = adapter.load_whole, torch.float32

    def loaded(*args, **more):
        double, torch.float32 = torch.float32, single
        torch.set_default_dtype(single)
        try:
            return load(*args, **more).double()
        finally:
            torch.float32 = double
            torch.set_default_dtype(double)

    adapter.load_whole = loaded
    try:
        with in_double():
            yield
    finally:
        adapter.load_whole = load


def whole_tensors(parts):
    """`PART.NAME` -> tensor, all of it; all processes must ask."""
    return {
        f"{name}.{key}": whole(value).clone()
        for name, part in parts.items()
        for key, value in tensors_of(part).items()
    }


def trained(make, steps):
    """After `steps` updates of `make()`: `end PART.NAME`, `gradient NAME`, `norm NAME`, `figure NAME`; and how many
    tensors are `sharded`."""
    found = {}
    with gradients_seen(found), processes.together():
        made = make()
        for step in range(steps):
            seed_step(3, step)
            metrics = made.update(step)
        ends = whole_tensors(made.parts)
        bytes_of_all = sum(v.contiguous().reshape(-1).view(torch.uint8).sum(dtype=torch.int64) for v in ends.values())
        assert checksum(made.parts) == int(bytes_of_all)
        found |= {f"end {name}": value for name, value in ends.items()}
        found |= {f"figure {name}": torch.as_tensor(value).double() for name, value in metrics.items()}
        sharded = sum(is_sharded(value) for part in made.parts.values() for value in tensors_of(part).values())
        found["sharded"] = torch.tensor(sharded)
    return found


def distances(one, other):
    """The largest of each kind: `gradient` and `norm`, relative to the norm; `weights`, absolute; `figures`,
    relative. Asserts that both have the same things, and numbers."""
    worst = {"gradient": 0.0, "norm": 0.0, "weights": 0.0, "figures": 0.0}
    assert one.keys() == other.keys(), one.keys() ^ other.keys()
    for name, value in one.items():
        kind, _, what = name.partition(" ")
        if kind == "sharded" or name.endswith(UNSEEN):
            continue
        assert torch.isfinite(value).all(), name
        gap, size = (value.double() - other[name].double()), value.double().norm()
        if kind in ("gradient", "norm"):
            worst[kind] = max(worst[kind], float(gap.norm() / size.clamp_min(1e-12)))
        elif kind == "figure":
            worst["figures"] = max(worst["figures"], float(gap.abs() / value.abs().clamp_min(1e-3)))
        elif not value.is_floating_point():
            assert torch.equal(value, other[name]), name
        elif "optimizer" not in what and value.numel():
            worst["weights"] = max(worst["weights"], float(gap.abs().max()))
    return worst


class Looking:
    """A monitor that draws with the model, as that of a run does, and keeps a figure of what it drew."""

    scores = ()

    def begin(self, folder):
        pass

    def grid(self, model, file):
        self.evaluate(model)

    def evaluate(self, model):
        images = torch.cat([batch.float() for batch, _ in generate(model, num_images=3, batch_size=2, seed=5)])
        return {"metrics": {"fid": {"value": float(images.double().square().mean())}}}


def whole_run(kind, folder, **more):
    """A run with the observers of every run and its published model; its tensors."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    with processes.together():
        config = settings(kind, folder, **more)
        made = task(config)
        observers = []
        led(lambda: observers.extend(usual_observers(config, Looking())))
        done = run_loop(made, config, Path(folder), observers)
        resolved = SimpleNamespace(config=config, text_yaml="{}\n", sha256="0" * 64)
        publisher = DenoiserPublisher(resolved, data(), "model", "teacher" if kind == "train" else "student")
        led(lambda: publish(publisher, made.averaged(), Path(folder) / "model", done.evaluation))
        return whole_tensors(made.parts)


def figures(folder):
    """What the run measured, by its step."""
    rows = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["evaluation/fid"] for row in rows if "evaluation/fid" in row}
