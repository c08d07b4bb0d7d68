"""AdamW in one fused pass, and with moments of 8 bits: the same updates, checkpoints that go from one to the other."""

import sys

import pytest
import torch
from runs import run, without
from torch import nn

from diffdistill.errors import ConfigError
from diffdistill.optimizers import Optimizer
from diffdistill.training.optim import adamw
from diffdistill.training.optim.updater import Updater
from diffdistill.training.resume import _say_fused

EIGHT_BIT = {"name": "adamw8bit"}


def moved(count=5, **settings):
    """Weights after some steps, and their moments."""
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(shape)) for shape in ((70, 90), (33,), (5, 3, 3, 3))]
    updater = Updater("student", weights, Optimizer(betas=(0.5, 0.9), weight_decay=0.1, **settings), 10)
    for step in range(count):
        for weight in weights:
            weight.grad = torch.randn_like(weight)
        updater.step(step)
    return weights, updater.optimizer


def test_one_pass_moves_weights_as_a_pass_a_tensor_but_for_rounding(monkeypatch):
    fused, optimizer = moved()
    assert [group["fused"] for group in optimizer.param_groups] == [True]
    monkeypatch.setattr(adamw, "can_fuse", lambda _: False)
    plain, other = moved()
    assert not any(group["fused"] for group in other.param_groups)
    for mine, theirs in zip(fused, plain, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-6, atol=1e-7)
        for name, value in optimizer.state[mine].items():
            assert torch.allclose(value, other.state[theirs][name], rtol=1e-5, atol=1e-8)


def test_meta_and_sharded_weights_are_not_fused(monkeypatch):
    weight = nn.Parameter(torch.zeros(2))
    assert adamw.can_fuse([weight])
    assert not adamw.can_fuse([weight, nn.Parameter(torch.zeros(2, device="meta"))])
    monkeypatch.setattr(adamw, "is_sharded", lambda p: p is weight)
    assert not adamw.can_fuse([weight])


def test_what_is_sharded_from_here_on_is_said_to_be_fused_no_more(capsys):
    """A discriminator's head stays whole, and is stepped as before."""
    _say_fused({"critic_optimizer", "discriminator_optimizer"}, {"discriminator_optimizer"})
    said = "resuming with no fused AdamW what ran with it: results will differ in the last digits\n"
    assert capsys.readouterr().out == said
    _say_fused({"critic_optimizer"}, {"critic_optimizer"})
    assert capsys.readouterr().out == ""


def test_a_run_of_before_goes_on_and_says_that_last_digits_change(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(adamw, "can_fuse", lambda _: False)
        whole = run("train", tmp_path / "whole")
        run("train", tmp_path / "parts", checkpoint_every=1)
    without(tmp_path / "parts", 3)
    capsys.readouterr()
    resumed = run("train", tmp_path / "parts", checkpoint_every=1, resume_from_checkpoint="latest")
    said = "resuming with the fused AdamW what ran without it: results will differ in the last digits"
    assert said in capsys.readouterr().out
    assert all(torch.allclose(value.double(), resumed[name].double(), atol=1e-4) for name, value in whole.items())
    without(tmp_path / "parts", 5)
    run("train", tmp_path / "parts", checkpoint_every=1, resume_from_checkpoint="latest")
    assert said not in capsys.readouterr().out


def test_8_bits_without_bitsandbytes_is_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(ConfigError, match=r"adamw8bit is bitsandbytes'.*pip install 'diffdistill\[quant\]', or use"):
        moved(**EIGHT_BIT)


def test_8_bits_take_a_byte_a_moment_and_move_weights_alike():
    pytest.importorskip("bitsandbytes")
    weights, optimizer = moved(**EIGHT_BIT)
    exact, _ = moved()
    state = optimizer.state_dict()["state"]
    assert {name: value.dtype for name, value in state[0].items() if name != "step"} == {
        "state1": torch.uint8, "state2": torch.uint8, "absmax1": torch.float32, "absmax2": torch.float32,
    }  # fmt: skip
    assert state[1]["state1"].dtype == torch.float32  # of few numbers
    assert torch.allclose(weights[0], exact[0], atol=3e-4)
    assert not torch.equal(weights[0], exact[0])


@pytest.mark.parametrize("kind", ["train", "dmd2"])
def test_a_run_with_8_bits_resumes_bit_equal(tmp_path, kind):
    pytest.importorskip("bitsandbytes")
    settings = {"optimizer": EIGHT_BIT} if kind == "train" else {"critic": {"optimizer": EIGHT_BIT}}
    whole = run(kind, tmp_path / "whole", **settings)
    run(kind, tmp_path / "parts", checkpoint_every=1, **settings)
    without(tmp_path / "parts", 3)
    resumed = run(kind, tmp_path / "parts", checkpoint_every=1, resume_from_checkpoint="latest", **settings)
    assert any(value.dtype == torch.uint8 for value in whole.values())
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
