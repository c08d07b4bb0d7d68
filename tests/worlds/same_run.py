"""What some updates of a task leave, so that runs of one and of several processes can be compared."""

import torch

from diffdistill import processes
from diffdistill.training.optim.updater import Updater
from diffdistill.training.randomness import seed_step
from diffdistill.training.store import tensors_of


def trained(make, steps):
    """Tensors by name after `steps` updates of the task that `make()` gives: `start`, `end` and `moved` of its weights
    and states, `gradient` of each updater's first step, `figure` of the last update."""
    found, order = {}, []

    def note(self, step):
        order.append(self.name)
        grads = [p.grad.flatten() for p in self.parameters if p.grad is not None]
        if order.count(self.name) == 1 and grads:  # there are none where weights move within the backward pass
            found[f"gradient {self.name}"] = torch.cat(grads)
        return rate(self, step)

    rate, Updater.set_rate = Updater.set_rate, note
    try:
        with processes.together():
            task = make()
            found |= {f"start {name}": value for name, value in tensors(task).items()}
            for step in range(steps):
                seed_step(3, step)
                metrics = task.update(step)
            found |= {f"end {name}": value for name, value in tensors(task).items()}
            found |= {f"figure {name}": torch.as_tensor(value).float() for name, value in metrics.items()}
    finally:
        Updater.set_rate = rate
    return found


def tensors(task):
    """A vector for each part, of its numbers, and another of its counters.

    Without the biases of keys: their gradient is nought, for a softmax does not see them, and Adam makes whole steps
    of its rounding.
    """
    found = {}
    for name, part in task.parts.items():
        values = [v.detach().flatten() for key, v in tensors_of(part).items() if not key.endswith("to_k.bias")]
        numbers = [value.double() for value in values if value.is_floating_point()]
        counters = [value for value in values if not value.is_floating_point()]
        found |= {kind: torch.cat(some) for kind, some in ((name, numbers), (f"{name} counters", counters)) if some}
    return found


def distances(one, other):
    """The largest of each kind: `gradient`, part of its norm; `weights`, absolute; `moved`, part of the movement;
    `figures`, relative. Asserts that both have the same things."""
    assert one.keys() == other.keys(), one.keys() ^ other.keys()
    worst = {"gradient": 0.0, "weights": 0.0, "moved": 0.0, "figures": 0.0}
    for name, value in one.items():
        kind, _, what = name.partition(" ")
        gap = (value.double() - other[name].double()).norm()
        assert torch.isfinite(value).all(), name
        if kind == "gradient":
            worst[kind] = max(worst[kind], float(gap / value.double().norm().clamp_min(1e-12)))
        elif kind == "figure":
            worst["figures"] = max(worst["figures"], float(gap / value.abs().clamp_min(1e-3)))
        elif kind == "start" or what.endswith("counters"):
            assert torch.equal(value, other[name]), name
        elif kind == "end" and not what.endswith("optimizer"):
            movement = (value - one[f"start {what}"]).norm()
            worst["weights"] = max(worst["weights"], float((value - other[name]).abs().max()))
            worst["moved"] = max(worst["moved"], float(gap / movement.clamp_min(1e-12)))
    return worst
