"""ScaleLong: which skip gets which factor, on real diffusers networks; what removal leaves; what is refused."""

import copy
import math

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel, UVit2DModel
from long_skips import call, stable_diffusion, uvit
from tiny import tiny_unet

from diffdistill.errors import ConfigError
from diffdistill.models import UViT, apply_scalelong, remove_scalelong
from diffdistill.parts.scalelong import constant_factors


def sdxl():
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 3),
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 8,
        norm_num_groups=4,
        cross_attention_dim=8,
        attention_head_dim=4,
    ).eval()


def skips_seen(network, **extra):
    """What the decoder reads as its skips, in the order of the forward pass."""
    seen, handles = [], []
    if isinstance(network, UViT):
        for block in network.out_blocks:
            handles.append(block.skip_linear.register_forward_pre_hook(lambda _, a: seen.append(a[0][..., 32:])))
    else:
        widths = [network.conv_in.out_channels]
        for block in network.down_blocks:
            widths += [m.out_channels for m in [*block.resnets, *(block.downsamplers or [])]]
        for resnet in (r for block in network.up_blocks for r in block.resnets):
            width = widths.pop()
            handles.append(
                resnet.register_forward_pre_hook(lambda _, a, c=width: seen.append(a[0][:, a[0].shape[1] - c :]))
            )
    with torch.no_grad():
        call(network, **extra)
    for handle in handles:
        handle.remove()
    return seen


NETWORKS = {"unet": lambda: tiny_unet(None).eval(), "sd": stable_diffusion, "sdxl": sdxl, "uvit": uvit}
COUNTS = {"unet": 4, "sd": 12, "sdxl": 9, "uvit": 3}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("mode", ["cs", "rsqrt2"])
def test_the_deepest_skip_comes_first_and_gets_the_highest_power(name, mode):
    network, count = NETWORKS[name](), COUNTS[name]
    plain = skips_seen(network)
    apply_scalelong(network, mode, kappa=0.7)
    scaled = skips_seen(network)
    assert len(plain) == len(scaled) == count
    for number, before, after in zip(range(count, 0, -1), plain, scaled, strict=True):
        factor = 0.7 ** (number - 1) if mode == "cs" else math.sqrt(0.5)
        assert torch.equal(after, before * factor)
        assert before.abs().max() > 0


def test_the_sum_of_squares_is_bounded_as_the_theorem_needs():
    assert constant_factors("cs", 0.7, 3) == (1.0, 0.7, 0.7 * 0.7)
    assert sum(k * k for k in constant_factors("cs", 0.7, 200)) == pytest.approx(1 / (1 - 0.49), rel=1e-12)
    assert sum(k * k for k in constant_factors("cs", 1.0, 200)) == 200


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    "settings",
    [{"kappa": 0.5}, {"mode": "rsqrt2"}, {"mode": "ls"}, {"mode": "ls", "start": "reference"}],
    ids=lambda s: "-".join(map(str, s.values())),
)
def test_removal_leaves_no_trace(name, settings):
    network = NETWORKS[name]()
    output, state, config = call(network), copy.deepcopy(network.state_dict()), dict(network.config)
    apply_scalelong(network, **settings)
    identity = settings == {"mode": "ls"}
    assert torch.equal(call(network), output) is identity
    remove_scalelong(network)
    assert torch.equal(call(network), output)
    assert dict(network.config) == config
    assert state.keys() == network.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in network.state_dict().items())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in network.modules())


@pytest.mark.parametrize("name", NETWORKS)
def test_kappa_one_is_no_change(name):
    network = NETWORKS[name]()
    output = call(network)
    apply_scalelong(network, kappa=1.0)
    assert torch.equal(call(network), output)


@torch.no_grad()
def test_a_learned_gate_of_a_token_is_that_of_the_papers_network():
    """2310.13545, section 4.2: sigmoid(W2 relu(W1 z + b1) + b2), z_l the mean of token l over its channels."""
    network, made = uvit(), []
    apply_scalelong(network, "ls", start="reference")
    scale = network.skip_scale
    w1, b1 = torch.linspace(-2, 3, 17).reshape(1, 17), torch.tensor([1.0])  # 16 patches and the time
    w2, b2 = torch.linspace(4, -4, 17).reshape(17, 1), torch.linspace(-1, 1, 17)
    for layer, weight, bias in ((scale.squeeze, w1, b1), (scale.excite, w2, b2)):
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    for block in network.in_blocks:
        block.register_forward_hook(lambda _, a, output: made.append(output))
    seen = skips_seen(network)
    for before, after in zip(reversed(made), seen, strict=True):
        z = before.sum(2) / 32
        hidden = (z @ w1.T + b1).clamp(min=0)
        gate = 1 / (1 + (-(hidden @ w2.T) - b2).exp())
        assert float(gate.std(1).min()) > 0.03
        torch.testing.assert_close(after, gate[:, :, None] * before)


def test_controlnet_residuals_are_scaled_with_the_skips_they_join():
    network = stable_diffusion()
    residuals = [torch.randn_like(skip) for skip in reversed(skips_seen(network))]
    extra = {"down_block_additional_residuals": residuals, "mid_block_additional_residual": torch.zeros(())}
    before = skips_seen(network, **extra)
    apply_scalelong(network, kappa=0.9)
    after = skips_seen(network, **extra)
    assert all(torch.equal(y, x * 0.9 ** (11 - j)) for j, (x, y) in enumerate(zip(before, after, strict=True)))


@pytest.mark.parametrize("name", ["unet", "uvit"])
@pytest.mark.parametrize("mode", ["cs", "ls"])
def test_a_deep_copy_is_whole_and_its_own(name, mode):
    """The moving average of training is a deep copy."""
    network = NETWORKS[name]()
    apply_scalelong(network, mode, kappa=0.5, start="reference")
    output = call(network)
    twin = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert torch.equal(call(twin), output)
    remove_scalelong(twin)
    assert not torch.equal(call(twin), output)
    with pytest.raises(ConfigError, match="has ScaleLong already"):
        apply_scalelong(network)


@pytest.mark.parametrize(
    ("name", "position"),
    [("unet", "pre_norm"), ("unet", "post_norm"), ("sd", "pre_norm"), ("sd", "post_norm"), ("uvit", "pre_norm")],
)
@pytest.mark.parametrize("mode", ["cs", "ls"])
def test_gradients_are_the_same_under_checkpointing(name, position, mode):

    def gradients(checkpointing):
        network = NETWORKS[name]().train()
        apply_scalelong(network, mode, kappa=0.5, position=position, start="reference")
        for parameter in network.skip_scale.parameters():
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(2))
        if checkpointing:
            network.enable_gradient_checkpointing()
        # Two passes before one backward: what is computed again must belong to its own pass.
        (call(network, seed=1) * call(network, seed=2)).square().mean().backward()
        return {key: parameter.grad for key, parameter in network.named_parameters()}

    plain, checkpointed = gradients(False), gradients(True)
    assert all(torch.equal(plain[key], checkpointed[key]) for key in plain)
    gates = [key for key in plain if key.startswith("skip_scale.")]
    assert bool(gates) is (mode == "ls")
    assert all(plain[key].abs().max() > 0 for key in gates)


@pytest.mark.parametrize(
    ("name", "mode"),
    [("unet", "cs"), ("uvit", "ls"), pytest.param("unet", "ls", marks=pytest.mark.slow)],
)
def test_a_compiled_network_computes_the_same(name, mode):
    network = NETWORKS[name]()
    apply_scalelong(network, mode, kappa=0.5, start="reference")
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    assert torch.allclose(call(compiled), call(network), atol=1e-6)
    for action in (apply_scalelong, remove_scalelong):
        with pytest.raises(ConfigError, match=r"is compiled; .* before torch.compile"):
            action(compiled)
    torch._dynamo.reset()


def test_hooks_that_others_set_stay():
    network = tiny_unet(None).eval()
    ran = []
    network.up_blocks[0].register_forward_pre_hook(lambda *_: ran.append("other"))
    apply_scalelong(network)
    remove_scalelong(network)
    call(network)
    assert ran == ["other"]


@pytest.mark.parametrize("kappa", [0.0, -0.5, 1.01, float("nan")])
def test_kappa_outside_its_range_is_a_sentence(kappa):
    with pytest.raises(ConfigError, match=r"kappa must be in \(0, 1\], got"):
        apply_scalelong(tiny_unet(), kappa=kappa)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"mode": "linear"}, "mode 'linear' is unknown; choose cs, ls, rsqrt2"),
        ({"position": "after"}, "position 'after' is unknown; choose pre_norm, post_norm"),
        ({"start": "zero"}, "start 'zero' is unknown; choose identity, reference"),
    ],
)
def test_unknown_names_are_sentences(given, sentence):
    with pytest.raises(ConfigError, match=sentence):
        apply_scalelong(tiny_unet(), **given)


def test_twice_and_never_are_sentences():
    network = tiny_unet()
    with pytest.raises(ConfigError, match="has no ScaleLong to remove"):
        remove_scalelong(network)
    apply_scalelong(network)
    with pytest.raises(ConfigError, match="this UNet2DModel has ScaleLong already; call remove_scalelong first"):
        apply_scalelong(network)


def test_a_network_without_long_skips_is_a_sentence():
    amused = UVit2DModel(
        hidden_size=16, cond_embed_dim=8, micro_cond_encode_dim=4, micro_cond_embed_dim=20, encoder_hidden_size=8,
        vocab_size=9, codebook_size=8, in_channels=16, block_out_channels=16, num_res_blocks=1, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=16, block_num_heads=2,
    )  # fmt: skip
    with pytest.raises(
        ConfigError, match="UVit2DModel has no long skip connections that ScaleLong can reach; it is for"
    ):
        apply_scalelong(amused)
    assert "skip_scale" not in dict(amused.named_children())


def test_a_trained_network_that_nobody_trains_is_a_warning(tmp_path):
    tiny_unet().save_pretrained(tmp_path)
    network = UNet2DModel.from_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="'cs' changes what a trained UNet2DModel computes: train it with the scale"):
        apply_scalelong(network)
    remove_scalelong(network)


@pytest.mark.parametrize("settings", [{"kappa": 1.0}, {"mode": "ls"}, {"training": True}], ids=str)
def test_no_warning_where_nothing_changes_or_training_follows(tmp_path, settings, recwarn):
    tiny_unet().save_pretrained(tmp_path)
    network = UNet2DModel.from_pretrained(tmp_path).train(settings.pop("training", False))
    apply_scalelong(network, **settings)
    assert not [warning for warning in recwarn if "ScaleLong" in str(warning.message)]
