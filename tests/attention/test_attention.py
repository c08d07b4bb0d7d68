"""The attention policy: the kernel named is the kernel that runs, and nothing else changes."""

import copy

import pytest
import torch
from attending import FLASH, MATH, NETWORKS, Plain, PlainNetwork, flux, kernels, text_unet, uvit
from diffusers.models import attention_dispatch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from tiny import tiny_unet
from torch.profiler import ProfilerActivity, profile

from diffdistill.parts.attention.kernels import reset_attention, set_attention
from diffdistill.parts.attention.probe import example


@pytest.fixture(params=NETWORKS)
def network(request):
    return NETWORKS[request.param]()


def test_the_switch_of_diffusers_changes_nothing_on_a_unet():
    """Why the policy exists; when this fails, diffusers has mended it."""
    unet = tiny_unet().eval()
    with attention_dispatch.attention_backend("native"):  # it also changes a global, which this puts back
        unet.set_attention_backend("_native_math")
    assert kernels(example(unet)) == {FLASH}
    set_attention(unet, "_native_math")
    assert kernels(example(unet)) == {MATH}


@pytest.mark.parametrize(("policy", "kernel"), [("sdpa-math", MATH), ("sdpa-flash", FLASH), ("_native_math", MATH)])
def test_the_kernel_named_runs_and_agrees_with_math(network, policy, kernel):
    run = example(network)
    set_attention(network, "sdpa-math")
    exact = run()
    report = set_attention(network, policy)
    assert kernels(run) == {kernel}
    assert report.policy == policy
    assert report.kernels == ("math" if kernel == MATH else "flash",)
    assert report.layers > 0
    # Flash sums in another order: float32 rounding, through the whole network.
    torch.testing.assert_close(run(), exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("policy", ["sdpa", "sdpa-math", "_native_math", "auto"])
def test_a_reset_restores_every_bit(network, policy):
    run = example(network)
    before, state = run(), {name: value.clone() for name, value in network.state_dict().items()}
    classes = [type(module) for module in network.modules()]
    processors = [getattr(module, "processor", None) for module in network.modules()]
    set_attention(network, policy)
    reset_attention(network)
    assert [type(module) for module in network.modules()] == classes
    assert [getattr(module, "processor", None) for module in network.modules()] == processors
    assert torch.equal(run(), before)
    after = network.state_dict()
    assert list(after) == list(state)
    assert all(torch.equal(after[name], value) for name, value in state.items())


def test_the_default_changes_no_bit_no_class_and_no_random_number(network):
    run = example(network)
    before, classes = run(), [type(module) for module in network.modules()]
    network.train()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    report = set_attention(network, "auto")
    assert torch.equal(torch.rand(3), expected)
    assert all(module.training for module in network.modules())
    assert torch.equal(network.eval() and run(), before)
    assert [type(module) for module in network.modules()] == classes
    assert report.kernels == ("flash",)
    assert str(report) == "auto: flash"


def test_layers_of_no_library_are_found_by_their_calls():
    network = PlainNetwork()
    x = torch.randn(2, 5, 8)
    report = set_attention(network, "sdpa-math", run=lambda: network(x))
    assert report.layers == 2
    assert kernels(lambda: network(x)) == {MATH}
    assert type(network.layers[0]) is not Plain
    assert isinstance(network.layers[0], Plain)
    reset_attention(network)
    assert type(network.layers[0]) is Plain
    assert kernels(lambda: network(x)) == {FLASH}


def test_a_network_that_calls_attention_itself():
    network = Plain()
    x = torch.randn(2, 5, 8)
    set_attention(network, "sdpa-math", run=lambda: network(x))
    assert kernels(lambda: network(x)) == {MATH}
    copied = type(network)()
    assert kernels(lambda: copied(x)) == {MATH}


def test_transformers_that_dispatch_are_switched_and_the_process_is_not():
    network, run = flux()
    before, active = run(), attention_dispatch._AttentionBackendRegistry.get_active_backend()
    for policy, kernel in (("_native_math", MATH), ("_native_flash", FLASH), ("sdpa-math", MATH)):
        set_attention(network, policy, run=run)
        assert kernels(run) == {kernel}
    assert attention_dispatch._AttentionBackendRegistry.get_active_backend() == active
    assert kernels(flux()[1]) == {FLASH}
    reset_attention(network)
    assert torch.equal(run(), before)
    assert {module.processor._attention_backend for module in network.modules() if hasattr(module, "processor")} == {
        None
    }


def test_a_processor_with_its_own_softmax_is_replaced_and_comes_back():
    unet = text_unet()
    shared = AttnProcessor()
    unet.set_attn_processor(shared)
    run = example(unet)
    exact = run()
    assert kernels(run) == set()
    assert set_attention(unet, "auto").kernels == ()
    set_attention(unet, "sdpa-flash")
    assert {type(processor) for processor in unet.attn_processors.values()} == {AttnProcessor2_0}
    assert kernels(run) == {FLASH}
    torch.testing.assert_close(run(), exact, rtol=1e-4, atol=1e-5)
    reset_attention(unet)
    assert all(processor is shared for processor in unet.attn_processors.values())


def test_the_choice_is_copied_with_the_network_and_replaced_by_the_next():
    unet = tiny_unet().eval()
    set_attention(unet, "sdpa-math")
    average = copy.deepcopy(unet)
    reset_attention(unet)
    assert kernels(example(average)) == {MATH}
    assert kernels(example(unet)) == {FLASH}
    set_attention(average, "sdpa-flash")
    assert kernels(example(average)) == {FLASH}
    reset_attention(average)
    assert [type(a) for a in average.modules()] == [type(b) for b in unet.modules()]


def gradients(network, run):
    network.zero_grad()
    run().square().sum().backward()
    return [parameter.grad.clone() for parameter in network.parameters()]


def test_gradients_under_checkpointing_come_from_the_same_kernel():
    """The pass that checkpointing repeats happens in `backward`, outside any context around the network."""
    network = uvit().train()
    run = example(network)
    set_attention(network, "sdpa-math")
    expected = gradients(network, run)
    network.enable_gradient_checkpointing()
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        found = gradients(network, run)
    names = [event.name for event in seen.events() if event.name in (MATH, FLASH)]
    assert set(names) == {MATH}
    assert len(names) == 2 * 3  # three blocks, each run twice
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_compiled_network_keeps_its_kernel_without_a_graph_break():
    network = PlainNetwork()
    x = torch.randn(2, 5, 8)
    set_attention(network, "sdpa-math", run=lambda: network(x))
    expected = network(x)
    torch.compiler.reset()
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), expected)
    assert kernels(lambda: compiled(x)) == {MATH}
