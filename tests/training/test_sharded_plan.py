"""What is sharded, what cannot be, and when `auto` does it: decided before anything is loaded."""

import pytest
import torch
from runs import settings
from tiny import tiny_unet, tiny_uvit

from diffdistill import processes, sharding
from diffdistill.config.align import Align
from diffdistill.errors import ConfigError
from diffdistill.training.device import Device
from diffdistill.training.sharded import plan
from diffdistill.training.sharded.passes import packed, unpacked

FSDP = {"strategy": "fsdp"}


def aligning(**more):
    common = {"output_dir": "x", "model": "x", "data": {"path": "x"}, "method": {"name": "mapo"}, "parallel": FSDP}
    return Align(**common | more)


@pytest.fixture
def two(monkeypatch):
    monkeypatch.setattr(processes, "size", lambda: 2)
    monkeypatch.setattr(processes, "most", lambda word: word)
    return Device("no")


REFUSED = {
    "train_batch_size=5 is no multiple of the 2 processes": {"train_batch_size": 5},
    "critic.optimizer is adafactor, which sees whole weights": {
        "critic": {"optimizer": {"name": "adafactor", "betas": (0.0, 0.9)}}
    },
    "student.regression.muon is muon, which sees whole weights": {"student": {"regression": {"muon": {}}}},
    "gradient_checkpointing and parallel.activation_checkpointing do the same": {
        "gradient_checkpointing": True, "parallel": {**FSDP, "activation_checkpointing": True},
    },
    "parallel.param_dtype=bfloat16 is of passes in bfloat16": {"parallel": {**FSDP, "param_dtype": "bfloat16"}},
}  # fmt: skip


@pytest.mark.parametrize("sentence", REFUSED)
def test_what_cannot_be_sharded_is_refused(tmp_path, two, sentence):
    config = settings("sid", tmp_path, **{"parallel": FSDP} | REFUSED[sentence])
    with pytest.raises(ConfigError, match=f"parallel.strategy=fsdp cannot be: {sentence}.* or set parallel.strategy="):
        plan.check_parallel(config, two)
    auto = config.model_copy(update={"parallel": config.parallel.model_copy(update={"strategy": "auto"})})
    plan.check_parallel(auto, two)
    assert not plan.may_shard(auto, two)


def test_what_aligning_cannot_shard(two):
    clipped = {"optimizer": {"max_grad_norm": None}}
    with pytest.raises(ConfigError, match="update_in_backward moves whole weights"):
        plan.check_parallel(aligning(update_in_backward=True, **clipped), two)
    both = {"lora": {"rank": 2}, "parallel": {**FSDP, "activation_checkpointing": True}}
    with pytest.raises(ConfigError, match="forgets the role of an adapter; use gradient_checkpointing"):
        plan.check_parallel(aligning(**both), two)
    plan.check_parallel(aligning(), two)


@pytest.mark.parametrize(("memory", "strategy"), [(1.0, "fsdp"), (1.4, "ddp")])
def test_auto_shards_what_would_fill_three_quarters_of_the_memory(tmp_path, two, monkeypatch, memory, strategy):
    """Per trained weight itself, its gradient and two moments; a frozen one is just itself."""
    trained, frozen = torch.nn.Linear(10, 10), torch.nn.Linear(10, 10).requires_grad_(False)
    assert plan.state_bytes([trained, frozen, trained]) == 110 * (16 + 4)
    monkeypatch.setattr(plan, "memory_of", lambda device: memory * 110 * 20)
    config = settings("sid", tmp_path)
    assert plan.Plan(config, two, {"student": trained, "teacher": frozen}).strategy == strategy


def test_one_process_shards_nothing(tmp_path):
    config = settings("sid", tmp_path, parallel=FSDP, train_batch_size=5)
    assert plan.Plan(config, Device("no"), {"student": torch.nn.Linear(2, 2)}).strategy == "ddp"


def test_every_weight_of_a_block_is_gathered_with_a_block():
    """Of a UNet the levels and the middle, of a U-ViT its blocks; what remains, a small part, is the root's."""
    for network, least in ((tiny_unet(), 5), (tiny_uvit(), 5)):
        blocks = sharding.blocks_of(network)
        assert len(blocks) >= least
        inside = {id(weight): weight.numel() for block in blocks for weight in block.parameters()}
        assert sum(inside.values()) > 0.6 * sum(weight.numel() for weight in network.parameters())


def test_inputs_of_a_pass_go_as_words_and_tensors():
    tensors = {}
    given = [torch.ones(2), {"cond": {"text": torch.zeros(1)}, "size": (1, 2.5), "none": None}, [torch.eye(2), "a"]]
    back = unpacked(packed(given, tensors), tensors)
    assert len(tensors) == 3
    assert torch.equal(back[0], given[0])
    assert back[1]["size"] == (1, 2.5)
    assert back[1]["none"] is None
    assert torch.equal(back[1]["cond"]["text"], given[1]["cond"]["text"])
    assert back[2][1] == "a"
