"""The attention policy: the kernel named is the kernel that runs, and nothing else changes."""

import copy
import types

import pytest
import torch
from diffusers import DiTTransformer2DModel, FluxTransformer2DModel, UNet2DConditionModel
from diffusers.models import attention_dispatch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from tiny import tiny_unet
from torch import nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from diffdistill import attention_names
from diffdistill.errors import ConfigError
from diffdistill.models import UViT
from diffdistill.models.attention import reset_attention, set_attention
from diffdistill.models.attention_probe import example
from diffdistill.models.edm_song import SongUNet

MATH = "aten::_scaled_dot_product_attention_math"
FLASH = "aten::_scaled_dot_product_flash_attention_for_cpu"


def kernels(run):
    """The kernels that PyTorch's own profiler sees: not the observer under test."""
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU]) as seen:
        run()
    return {event.name for event in seen.events() if event.name.startswith("aten::_scaled_dot_product")}


def text_unet(**options):
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        attention_head_dim=2,
        cross_attention_dim=12,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        **options,
    ).eval()


def sdxl_unet():
    return text_unet(
        addition_embed_type="text_time", addition_time_embed_dim=4, projection_class_embeddings_input_dim=32
    )


def uvit():
    torch.manual_seed(0)
    return UViT(
        sample_size=8, in_channels=1, hidden_size=16, depth=2, num_attention_heads=2, num_class_embeds=4
    ).eval()


def moved(network):
    """With every weight away from zero, where the last layers of some networks start."""
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    return network.eval()


def edm():
    torch.manual_seed(0)
    return moved(
        SongUNet(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            num_class_embeds=4,
            label_dim=3,
            model_channels=8,
            channel_mult=(1, 2),
            num_blocks=1,
            attn_resolutions=(4,),
        )
    )


def dit():
    torch.manual_seed(0)
    network = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=1,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=5,
    )
    return moved(network)


NETWORKS = {
    **{"unet": lambda: tiny_unet().eval(), "text": text_unet, "sdxl": sdxl_unet},
    **{"uvit": uvit, "dit": dit},
}


@pytest.fixture(params=NETWORKS)
def network(request):
    return NETWORKS[request.param]()


class Plain(nn.Module):
    """A layer of no library that calls scaled_dot_product_attention."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, x):
        query, key, value = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


class PlainNetwork(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(Plain(), nn.Linear(8, 8), Plain())

    def forward(self, x):
        return self.layers(x)


def flux():
    torch.manual_seed(0)
    network = FluxTransformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        axes_dims_rope=(2, 2, 4),
    ).eval()
    noise = torch.Generator().manual_seed(1)
    tokens, text, pooled = (torch.randn(shape, generator=noise) for shape in ((1, 16, 4), (1, 6, 8), (1, 8)))
    return network, lambda: network(
        tokens,
        text,
        pooled,
        torch.ones(1),
        torch.zeros(16, 3),
        torch.zeros(6, 3),
        return_dict=False,
    )[0]


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


def test_networks_of_edm_take_part():
    network = edm()
    run = example(network)
    before = run()
    assert set_attention(network, "sdpa-math").layers > 0
    assert kernels(run) == {MATH}
    torch.testing.assert_close(run(), before, rtol=1e-4, atol=1e-5)
    reset_attention(network)
    assert torch.equal(run(), before)


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


@pytest.mark.parametrize("policy", ["sdpa-cudnn", "sdpa-efficient", "_native_cudnn"])
def test_a_kernel_the_device_lacks_is_refused_and_leaves_no_trace(policy):
    unet = tiny_unet().eval()
    before, run = [type(module) for module in unet.modules()], example(unet)
    output = run()
    with pytest.raises(ConfigError) as caught:
        set_attention(unet, policy)
    sentence = str(caught.value)
    assert sentence.startswith(f"attention '{policy}' does not run on this network here (cpu, float32): ")
    assert sentence.endswith("; use sdpa, sdpa-flash, sdpa-math")
    assert "\n" not in sentence
    assert [type(module) for module in unet.modules()] == before
    assert torch.equal(run(), output)


def test_xformers_that_is_not_installed_is_refused(monkeypatch):
    monkeypatch.setattr(attention_dispatch, "_CAN_USE_XFORMERS_ATTN", False)
    with pytest.raises(ConfigError, match="attention 'xformers' does not run on this network here"):
        set_attention(tiny_unet().eval(), "xformers")


def xformers_that(attend, monkeypatch):
    fake = types.SimpleNamespace(memory_efficient_attention=attend)
    monkeypatch.setattr(attention_dispatch, "_CAN_USE_XFORMERS_ATTN", True)
    monkeypatch.setattr(attention_dispatch, "xops", fake)


def by_hand(query, key, value, bias=None, dropout=0.0, scale=None):
    """xformers' contract: `(B, L, heads, D)`."""
    scores = torch.einsum("blhd,bmhd->bhlm", query, key) * (scale or query.shape[-1] ** -0.5)
    return torch.einsum("bhlm,bmhd->blhd", scores.softmax(-1), value)


def test_xformers_is_reached_on_unets_and_transformers(network, monkeypatch):
    calls = []
    xformers_that(lambda *args: calls.append(1) or by_hand(*args), monkeypatch)
    run = example(network)
    exact = run()
    report = set_attention(network, "xformers")
    calls.clear()
    output = run()
    assert (len(calls), report.kernels) == (report.layers, ("xformers",))
    assert kernels(run) == set()
    torch.testing.assert_close(output, exact, rtol=1e-4, atol=1e-5)


def test_a_backend_with_wrong_results_is_refused(monkeypatch):
    xformers_that(lambda query, key, value, *rest: value, monkeypatch)
    with pytest.raises(ConfigError, match="its results differ from those of the math kernel"):
        set_attention(tiny_unet().eval(), "xformers")


@pytest.mark.parametrize("policy", ["auto", "sdpa"])
def test_automatic_choices_fall_back_to_math_with_one_warning(policy, monkeypatch):
    unet, run = tiny_unet().eval(), None
    run = example(unet)
    real = F.scaled_dot_product_attention
    exact = run()

    def broken(query, key, value, **rest):
        good = torch._fused_sdp_choice(query, key, value) == 0  # math
        return real(query, key, value, **rest) * (1 if good else 3)

    monkeypatch.setattr(F, "scaled_dot_product_attention", broken)
    with pytest.warns(UserWarning, match=f"attention '{policy}' falls back to PyTorch's math kernel") as caught:
        report = set_attention(unet, policy)
    assert len(caught) == 1
    assert report.kernels == ("math",)
    torch.testing.assert_close(run(), exact, rtol=1e-4, atol=1e-5)


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


def test_a_network_without_attention():
    network = nn.Sequential(nn.Linear(3, 3))
    run = lambda: network(torch.ones(1, 3))  # noqa: E731
    assert str(set_attention(network, "auto", run=run)) == "auto: no attention layer"
    assert set_attention(network, "sdpa", run=run).layers == 0
    with pytest.raises(ConfigError, match="attention 'sdpa-flash' finds no attention layer in this network"):
        set_attention(network, "sdpa-flash", run=run)


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


def test_autocast_is_part_of_what_is_looked_at():
    unet = tiny_unet().eval()
    seen = []
    real = F.scaled_dot_product_attention

    def noted(query, *rest, **more):
        seen.append(query.dtype)
        return real(query, *rest, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", noted)
        set_attention(unet, "sdpa-flash", context=lambda: torch.autocast("cpu", torch.bfloat16))
    assert set(seen) == {torch.bfloat16}


def test_names_are_those_of_diffusers_less_what_fetches_code():
    theirs = {backend.value for backend in attention_dispatch.AttentionBackendName}
    assert set(attention_names.BACKENDS) == {name for name in theirs if not name.endswith("_hub")} - {"flex"}


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("sdpa-flsh", "attention 'sdpa-flsh' is unknown; did you mean 'sdpa-flash'?"),
        ("flash_hub", "attention 'flash_hub' would fetch code from the Hub and run it; use auto, sdpa,"),
        ("quick", "attention 'quick' is unknown; use auto, sdpa, sdpa-flash,"),
    ],
)
def test_other_names_are_refused(name, sentence, python):
    with pytest.raises(ConfigError, match="attention"):
        set_attention(nn.Linear(1, 1), name)
    done = python("-m", "diffdistill.cli", "sample", "m", "--num-images", "1", "--out", "o", "--attention", name)
    assert done.code == 2
    assert sentence in done.err
    done = python("-m", "diffdistill.cli", "train", "fashion_mnist/teacher", f"attention={name}")
    assert done.code == 2
    assert f"override 'attention={name}': {sentence}" in done.err


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("policy", ["sdpa-flash", "sdpa-efficient", "sdpa-cudnn", "sdpa-math", "xformers"])
@pytest.mark.parametrize("build", [text_unet, dit], ids=["text", "dit"])
def test_kernels_of_a_gpu(build, policy, dtype):
    if policy == "xformers":
        pytest.importorskip("xformers.ops")
    network = build().to("cuda", dtype)
    exact = example(network)
    set_attention(network, "sdpa-math")
    expected = exact()
    assert set_attention(network, policy).kernels == (policy.removeprefix("sdpa-"),)
    torch.testing.assert_close(exact(), expected, rtol=5e-2, atol=5e-2)


@pytest.mark.gpu
def test_flash_attention_needs_half_precision_on_a_gpu():
    network = tiny_unet().to("cuda")
    with pytest.raises(ConfigError, match=r"attention 'sdpa-flash' does not run on this network here \(cuda, float32"):
        set_attention(network, "sdpa-flash")
    context = lambda: torch.autocast("cuda", torch.bfloat16)  # noqa: E731
    assert set_attention(network, "sdpa-flash", context=context).kernels == ("flash",)
