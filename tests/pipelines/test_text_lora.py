"""Adapters as hooks: what they add, whose they are, and that merging them is the same network."""

import pytest
import torch

pytest.importorskip("transformers")

from tiny_text import unet

from diffdistill.errors import ConfigError
from diffdistill.pipelines.text.lora import SharedWeights

TARGETS = ("to_q", "to_out.0", "conv1", "downsamplers.0.conv", "conv_shortcut", "time_emb_proj")


@pytest.fixture
def shared():
    torch.manual_seed(0)
    return SharedWeights(unet(cross_attention_dim=8).eval())


def call(network, seed=1):
    torch.manual_seed(seed)
    with torch.no_grad():
        return network(torch.randn(2, 4, 8, 8), torch.tensor([10.0, 500.0]), torch.randn(2, 5, 8), return_dict=False)[
            0
        ]


def shaken(network, size=0.3):
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(size * torch.randn_like(parameter))
    return network


def test_an_adapter_begins_as_nothing_and_acts_in_its_own_role_only(shared):
    plain = call(shared.network)
    first, second = shared.adapted(2, None, TARGETS), shared.adapted(3, 6.0, ("to_k",))
    assert torch.equal(call(first), plain)
    shaken(first)
    assert not torch.allclose(call(first), plain, atol=1e-3)
    assert torch.equal(call(second), plain)
    assert torch.equal(call(shared.network), plain)
    assert not any(p.requires_grad for p in shared.network.parameters())


@pytest.mark.parametrize("alpha", [None, 8.0])
def test_merged_it_is_the_same_network(shared, tmp_path, alpha):
    shared.network.save_pretrained(tmp_path / "unet")
    adapted = shaken(shared.adapted(2, alpha, TARGETS))
    merged = adapted.merged(tmp_path / "unet")
    torch.testing.assert_close(call(merged), call(adapted), rtol=1e-4, atol=1e-5)
    assert merged.state_dict().keys() == shared.network.state_dict().keys()


def test_the_product_is_scaled_by_alpha_over_rank(shared):
    """Doubling alpha doubles what is added, here to one linear layer."""
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    layer, x = shared.network.get_submodule(name), torch.randn(3, 16)
    one, two = (shaken(shared.adapted(2, alpha, (name,))) for alpha in (2.0, 4.0))
    two.load_state_dict(one.state_dict())
    with torch.no_grad():
        plain = layer(x)
        added = [network.low_rank.output(name, layer, x) for network in (one, two)]
        with shared.using(one.low_rank):
            torch.testing.assert_close(layer(x), plain + added[0])
    torch.testing.assert_close(added[1], 2 * added[0])
    down, up = one.low_rank.down[name.replace(".", "/")], one.low_rank.up[name.replace(".", "/")]
    torch.testing.assert_close(added[0], x @ down.T @ up.T)


def test_a_gradient_reaches_the_adapter_that_was_in_use_and_no_other(shared):
    first, second = shaken(shared.adapted(2, None, TARGETS)), shaken(shared.adapted(2, None, TARGETS))
    x, t, text = torch.randn(1, 4, 8, 8), torch.tensor([10.0]), torch.randn(1, 5, 8)
    output = first(x, t, text, return_dict=False)[0]
    second(x, t, text, return_dict=False)  # a later role must not take the gradient of an earlier pass
    output.sum().backward()
    assert all(p.grad is not None for p in first.parameters())
    assert all(p.grad is None for p in (*second.parameters(), *shared.network.parameters()))


def test_half_precision_weights_take_a_float32_adapter(shared):
    adapted = shaken(shared.adapted(2, None, TARGETS), 0.05)
    exact = call(adapted)
    shared.network.to(torch.bfloat16)
    assert {p.dtype for p in adapted.parameters()} == {torch.float32}
    torch.manual_seed(1)
    inputs = torch.randn(2, 4, 8, 8).bfloat16(), torch.tensor([10.0, 500.0]), torch.randn(2, 5, 8).bfloat16()
    with torch.no_grad():
        half = adapted(*inputs, return_dict=False)[0]
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), exact, rtol=0.1, atol=0.1)


def test_a_target_that_matches_nothing_is_named(shared):
    with pytest.raises(ConfigError, match="LoRA target 'to_quack' matches no linear or convolutional layer"):
        shared.adapted(2, None, ("to_q", "to_quack"))
