"""The stand-in itself: what it refuses, what it counts, and what it computes."""

import pytest
import standin
import torch
from standin import WAITS


def test_it_computes_what_the_cpu_does(there):
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(3, 2), torch.randn(4, 3)
    layer(x).square().sum().backward()
    theirs = torch.nn.Linear(3, 2)
    theirs.load_state_dict(layer.state_dict())
    theirs.to(there)(x.to(there)).square().sum().backward()
    assert theirs.weight.grad.device == there
    assert torch.equal(theirs.weight.grad.cpu(), layer.weight.grad)


def test_a_tensor_that_changes_its_shape_in_place_is_known_by_the_new_one(there):
    """As `sum` asks for on its way back, and so the second derivative of a group norm."""
    flat = torch.ones(2, 3, device=there)
    flat.unsqueeze_(-1)
    assert (flat.shape, flat.stride(), flat.cpu().shape) == ((2, 3, 1), (3, 1, 1), (2, 3, 1))


def test_tensors_of_both_devices_do_not_meet(there):
    x = torch.ones(2, device=there)
    for meet in (lambda: x + torch.ones(2), lambda: torch.stack([x[0], torch.ones(())]), lambda: torch.ones(2)[x > 0]):
        with pytest.raises(RuntimeError, match="Expected all tensors"):
            meet()
    assert (x + torch.tensor(1.0)).tolist() == [2, 2]  # a number, which CUDA takes too
    assert x[torch.tensor([0, 1])].device == there


def test_a_generator_of_the_cpu_draws_nothing_for_the_device(there):
    with pytest.raises(RuntimeError, match="device type for generator"):
        torch.randn(2, device=there, generator=torch.Generator())


def test_numbers_come_by_the_cpu_alone(there):
    with pytest.raises(TypeError, match="to numpy"):
        torch.ones(2, device=there).numpy()


READS = {
    "item": lambda x: x[0].item(), "float": lambda x: float(x[0]), "bool": lambda x: bool(x.any()),
    "if": lambda x: 1 if x[0] > 0 else 0, "tolist": lambda x: x.tolist(), "cpu": lambda x: x.cpu(),
    "mask": lambda x: x[x > 0], "nonzero": lambda x: x.nonzero(), "equal": lambda x: torch.equal(x, x),
    "copy": lambda x: torch.zeros(2).copy_(x),
}  # fmt: skip
SENDS = {
    "to": lambda x: torch.zeros(2).to(x.device), "tensor": lambda x: torch.tensor([1.0], device=x.device),
    "new_tensor": lambda x: x.new_tensor(1.0), "copy": lambda x: x.copy_(torch.zeros(2)),
    "index": lambda x: x[torch.tensor([0])],
}  # fmt: skip


@pytest.mark.parametrize("name", READS)
def test_a_number_that_is_read_is_a_wait(name, there):
    x = torch.ones(2, device=there)
    READS[name](x)
    assert (WAITS.read.total(), WAITS.sent.total()) == (1, 0)


@pytest.mark.parametrize("name", SENDS)
def test_a_tensor_that_is_sent_is_a_wait(name, there):
    x = torch.ones(2, device=there)
    SENDS[name](x)
    assert (WAITS.read.total(), WAITS.sent.total()) == (0, 1)


def test_what_goes_on_at_once_is_no_wait(there):
    x = torch.ones(2, device=there)
    x.new_zeros(3), torch.full((2,), 0.5, device=there), x.fill_(2.0), x.new_full((), 3)
    torch.zeros(2).to(there, non_blocking=True)
    torch.where(x > 0, x, 0).sum() / 2
    assert WAITS.count == 0


def test_it_may_lack_float64():
    with standin.in_use(float64=False) as device:
        x = torch.ones(2, device=device)
        with pytest.raises(TypeError, match="no float64"):
            x.double()
