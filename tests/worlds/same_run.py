"""What some updates of a task leave, so that runs of one and of several processes can be compared."""

from contextlib import contextmanager

import torch

from diffdistill import processes
from diffdistill.training.optim.updater import Updater
from diffdistill.training.randomness import seed_step
from diffdistill.training.store import tensors_of

UNSEEN = ("to_k.bias", "heads.0.0.bias")  # their gradient is nought, and Adam makes whole steps of its rounding


SINGLE = torch.get_default_dtype(), torch.float32, torch.Tensor.float
DOUBLE = torch.float64, torch.float64, torch.Tensor.double


@contextmanager
def precision(of):
    before = torch.get_default_dtype(), torch.float32, torch.Tensor.float
    for default, torch.float32, torch.Tensor.float in (of,):
        torch.set_default_dtype(default)
    try:
        yield
    finally:
        for default, torch.float32, torch.Tensor.float in (before,):
            torch.set_default_dtype(default)


def in_double():
    """Within, everything is float64, whatever the code asks for: what is left between two runs is no rounding."""
    return precision(DOUBLE)


def doubled(load):
    """A function that reads a network, for use within `in_double`: files hold float32 and are read as such."""

    def loading(*given, **settings):
        with precision(SINGLE):
            network = load(*given, **settings)
        return network.double()

    return loading


DRAWS = ("uniform_", "normal_", "rand", "randn", "rand_like", "randn_like")


@contextmanager
def single_draws():
    """Within, what is drawn for float64 are float32's numbers: those of the same run in float32."""
    from torch.utils._python_dispatch import TorchDispatchMode

    def narrow(value):
        wide = isinstance(value, torch.Tensor) and value.dtype == torch.double
        return value.to(SINGLE[1]) if wide else SINGLE[1] if value is torch.double else value

    class Draws(TorchDispatchMode):
        def __torch_dispatch__(self, function, _types, given=(), named=None):
            name = function.overloadpacket.__name__
            if name not in DRAWS:
                return function(*given, **(named or {}))
            named = {key: narrow(value) for key, value in (named or {}).items()}
            if name in ("rand", "randn"):
                named["dtype"] = SINGLE[1]
            drawn = function(*map(narrow, given), **named)
            return given[0].copy_(drawn) if name.endswith("_") else drawn.double()

    with Draws():
        yield


@contextmanager
def before_clipping(look):
    """Within, `look(updater, norm)` sees every update: the gradient of the whole batch, before it is clipped."""
    require = Updater.require_finite

    def looked_at(self, norm, step):
        look(self, norm)
        require(self, norm, step)

    Updater.require_finite = looked_at
    try:
        yield
    finally:
        Updater.require_finite = require


def gradients_seen(found):
    """Within, `gradient NUMBER NAME` of every update."""
    numbers = iter(range(10**9))

    def look(updater, norm):
        grads = [p.grad.flatten() for p in updater.parameters if p.grad is not None]
        if grads:  # weights that move in the backward pass are seen one by one, and have none at its end
            found[f"gradient {next(numbers)} {updater.name}"] = torch.cat(grads).clone()

    return before_clipping(look)


def trained(make, steps):
    """Tensors by name after `steps` updates of the task that `make()` gives: `start`, `end` of its weights and states,
    `gradient` of each update of each network, `figure` of the last update."""
    found = {}
    with gradients_seen(found), processes.together():
        task = make()
        found |= {f"start {name}": value for name, value in tensors(task).items()}
        for step in range(steps):
            seed_step(3, step)
            metrics = task.update(step)
        found |= {f"end {name}": value for name, value in tensors(task).items()}
        found |= {f"figure {name}": torch.as_tensor(value).double() for name, value in metrics.items()}
    return found


def tensors(task):
    """A vector for each part, of its numbers, and another of its counters.

    Without those that nothing sees: the biases of keys, for a softmax takes them away, and of a discriminator's first
    layer, whose channels are normalised each by itself. Their gradient is nought, and Adam makes whole steps of its
    rounding.
    """
    found = {}
    for name, part in task.parts.items():
        values = [v.detach().flatten() for key, v in tensors_of(part).items() if not key.endswith(UNSEEN)]
        numbers = [value.double() for value in values if value.is_floating_point()]
        counters = [value for value in values if not value.is_floating_point()]
        found |= {kind: torch.cat(some) for kind, some in ((name, numbers), (f"{name} counters", counters)) if some}
    return found


def distances(one, other):
    """The largest of each kind: `first`, of each network's first gradient, and `gradient`, of all, parts of its norm;
    `weights`, absolute; `moved`, part of the movement; `figures`, relative. Asserts that both have the same things."""
    assert one.keys() == other.keys(), one.keys() ^ other.keys()
    worst = {"first": 0.0, "gradient": 0.0, "weights": 0.0, "moved": 0.0, "figures": 0.0}
    seen = set()
    for name, value in one.items():
        kind, _, what = name.partition(" ")
        gap = (value.double() - other[name].double()).norm()
        assert torch.isfinite(value).all(), name
        if kind == "gradient":
            part = float(gap / value.double().norm().clamp_min(1e-12))
            network = what.partition(" ")[2]
            worst["first"] = max(worst["first"], 0.0 if network in seen else part)
            worst["gradient"] = max(worst["gradient"], part)
            seen.add(network)
        elif kind == "figure":
            worst["figures"] = max(worst["figures"], float(gap / value.abs().clamp_min(1e-3)))
        elif kind == "start" or what.endswith("counters"):
            assert torch.equal(value, other[name]), name
        elif kind == "end" and not what.endswith("optimizer"):
            movement = (value - one[f"start {what}"]).norm()
            worst["weights"] = max(worst["weights"], float((value - other[name]).abs().max()))
            worst["moved"] = max(worst["moved"], float(gap / movement.clamp_min(1e-12)))
    return worst
