"""`speed`: the same numbers faster, and nothing else of a network changes."""

import copy

import pytest
import torch
from runs import data, settings
from standin_runs import smallest

from diffdistill.config.parts import Speed
from diffdistill.errors import ConfigError
from diffdistill.training import speed
from diffdistill.training.device import Device
from diffdistill.training.randomness import seed_step
from diffdistill.training.tasks.distill import DistillTask


@pytest.fixture(autouse=True)
def captured(monkeypatch):
    """Blocks are captured as graphs, which run as they are: no C++ compiler is asked. Gives the graphs."""
    graphs = []
    monkeypatch.setattr(speed, "BACKEND", lambda graph, _: (graphs.append(graph), graph.forward)[1])
    monkeypatch.setattr(speed, "_SUBCLASSES", {})
    return graphs


CPU = torch.device("cpu")
REGIONAL = Speed(compile="regional")


def updated(kind, chosen, **more):
    task = DistillTask(settings(kind, "unused", train_batch_size=2, **more), smallest(), data(), Device("no"))
    before = list(task.student.state_dict())
    said = speed.speed_up(chosen, CPU, [(role, net) for role, (net, _) in task.networks().items()])
    seed_step(0, 0)
    metrics = task.update(0)
    assert list(task.student.state_dict()) == before
    return said, {name: task.parts[name].state_dict() for name in ("student", "critic")}, metrics


# dmd2 reads features inside of the networks, uni_instruct goes back through them a second time.
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dmd2", "uni_instruct"])
def test_a_step_of_compiled_blocks_is_the_step(kind, monkeypatch):
    monkeypatch.setattr(speed, "BACKEND", "aot_eager")
    more = {"student": {"steps": 1}, "critic": {"updates_per_step": 1}, "gradient_checkpointing": kind == "dmd2"}
    said, parts, metrics = updated(kind, REGIONAL, **more)
    assert said == "compiled blocks 15"
    _, plain, others = updated(kind, Speed(), **more)
    assert metrics.keys() == others.keys()
    for name, weights in plain.items():
        for key, value in weights.items():
            assert torch.allclose(parts[name][key], value, atol=1e-5), (name, key)


def test_a_copy_is_a_network_of_its_own_and_hooks_run(captured):
    network = smallest().network
    x, t, labels = torch.randn(2, 1, 8, 8), torch.ones(2), torch.tensor([0, 1])
    before = network(x, t, labels, return_dict=False)[0]
    speed.compile_blocks(network)
    copied, seen = copy.deepcopy(network), []
    network.mid_block.resnets[0].register_forward_hook(lambda *_: seen.append(1))
    assert torch.allclose(network(x, t, labels, return_dict=False)[0], before, atol=1e-6)
    assert seen == [1]
    assert captured
    with torch.no_grad():
        copied.mid_block.resnets[0].conv1.weight.zero_()
    assert not torch.allclose(copied(x, t, labels, return_dict=False)[0], before, atol=1e-4)
    assert torch.allclose(network(x, t, labels, return_dict=False)[0], before, atol=1e-6)


@pytest.mark.slow
def test_adapters_in_turn_on_compiled_blocks(monkeypatch):
    from diffusers import UNet2DConditionModel

    from diffdistill.pipelines.text.lora import SharedWeights

    monkeypatch.setattr(speed, "BACKEND", "aot_eager")
    torch.manual_seed(0)
    network = UNet2DConditionModel(
        sample_size=8, layers_per_block=1, block_out_channels=(8,), norm_num_groups=4, attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",), cross_attention_dim=8,
    )  # fmt: skip
    shared = SharedWeights(network)
    roles = [shared.adapted(2, None, ("to_q", "to_v"), std=0.5) for _ in range(2)]
    for role in roles:
        for up in role.low_rank.up.values():
            torch.nn.init.normal_(up)
    network.enable_gradient_checkpointing(shared.checkpointed)
    x, t, texts = torch.randn(2, 4, 8, 8), torch.ones(2), torch.randn(2, 3, 8)

    def answers():
        found = []
        for role in (*roles, network, roles[0]):
            out = role(x, t, texts, return_dict=False)[0]
            weights = list(getattr(role, "low_rank", torch.nn.Module()).parameters())
            found += [out.detach(), *(torch.autograd.grad(out.sum(), weights) if weights else ())]
        return found

    before = answers()
    assert speed.compile_blocks(network) > 3
    assert all(torch.allclose(one, other, atol=1e-4) for one, other in zip(answers(), before, strict=True))


def test_a_network_without_blocks_that_repeat():
    with pytest.raises(ConfigError, match="finds no blocks that repeat in a Linear; set it to none"):
        speed.compile_blocks(torch.nn.Linear(2, 2))


def test_images_keep_their_channels_side_by_side():
    model, seen = smallest(), []
    x, sigma, labels = torch.randn(2, 1, 8, 8), torch.ones(2), torch.tensor([0, 1])
    before = model(x, sigma, labels)
    assert speed.speed_up(Speed(channels_last=True), CPU, [("network", model.network)] * 2) == "channels_last"
    assert len(model.network.conv_in._forward_pre_hooks) == 1
    model.network.mid_block.resnets[0].conv2.register_forward_hook(lambda _m, _x, y: seen.append(y))
    assert torch.allclose(model(x, sigma, labels), before, atol=1e-5)
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    assert not seen[0].is_contiguous()
    assert all(weight.is_contiguous() for weight in model.parameters())


def test_auto_on_a_cpu_changes_nothing():
    model = smallest()
    assert speed.speed_up(Speed(), CPU, [("network", model.network)]) == "-"
    assert not model.network.conv_in._forward_pre_hooks


def test_what_is_set_on_a_card_is_set_back(monkeypatch):
    def now():
        return (
            torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
        )  # fmt: skip

    before, card = now(), torch.device("cuda")
    capability = [8, 0]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: tuple(capability))
    with speed.kept_math():
        assert speed.speed_up(Speed(), card, []) == "channels_last, tf32, cudnn.benchmark"
        assert now() == ("high", True, True)
        speed.speed_up(Speed(cudnn_benchmark=False), card, [], exact=True)  # method.float32_gap
        assert now() == ("highest", False, False)
        capability[0] = 7
        speed.speed_up(Speed(), card, [])
        assert now() == ("highest", False, True)
        speed.speed_up(Speed(tf32=True), card, [], exact=True)  # said by name
        assert now()[:2] == ("high", True)
    assert now() == before


@pytest.mark.slow
def test_a_compilers_blocks_give_the_same_images(monkeypatch):
    monkeypatch.setattr(speed, "BACKEND", "inductor")
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        pytest.skip(f"no C++ compiler: {error}")
    model = smallest()
    x, sigma, labels = torch.randn(2, 1, 8, 8), torch.ones(2), torch.tensor([0, 1])
    before = model(x, sigma, labels)
    speed.compile_blocks(model.network)
    after = model(x, sigma, labels)
    assert torch.allclose(after, before, atol=1e-5)
    after.sum().backward()
