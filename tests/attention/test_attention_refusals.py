"""Kernels that are missing, wrong, of another package, or not known: what is refused and what is fallen back from."""

import types

import pytest
import torch
from attending import FLASH, NETWORKS, dit, flux, kernels, text_unet
from diffusers.models import attention_dispatch
from tiny import tiny_teacher, tiny_unet
from torch import nn
from torch.nn import functional as F

from diffdistill.errors import ConfigError
from diffdistill.parts.attention import names as attention_names
from diffdistill.parts.attention.kernels import set_attention
from diffdistill.parts.attention.probe import example


@pytest.fixture(params=NETWORKS)
def network(request):
    return NETWORKS[request.param]()


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
    unet = tiny_unet().eval()
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


def test_a_network_without_attention():
    network = nn.Sequential(nn.Linear(3, 3))
    run = lambda: network(torch.ones(1, 3))  # noqa: E731
    assert str(set_attention(network, "auto", run=run)) == "auto: no attention layer"
    assert set_attention(network, "sdpa", run=run).layers == 0
    with pytest.raises(ConfigError, match="attention 'sdpa-flash' finds no attention layer in this network"):
        set_attention(network, "sdpa-flash", run=run)


def test_a_network_that_is_called_in_another_way():
    network, run = flux()
    before = run()
    assert str(set_attention(network)) == "auto: unknown"  # a UNet's call does not fit it
    with pytest.raises(ConfigError, match=r"attention 'sdpa-flash' cannot be tried on this network \(.+\); leave it"):
        set_attention(network, "sdpa-flash")
    assert torch.equal(run(), before)


def test_a_network_that_overflows_is_left_to_whoever_uses_it():
    unet = tiny_unet().eval()
    nn.init.constant_(unet.conv_in.weight, float("inf"))
    assert set_attention(unet).kernels == ("flash",)


def test_a_pass_that_ends_inside_leaves_no_kernel_behind():
    model = tiny_teacher()
    x, sigma, labels = torch.randn(2, 1, 8, 8), torch.ones(2), torch.tensor([0, 1])
    set_attention(model.network, "sdpa-math")
    model.features(x, sigma, labels, ("mid_block.attentions.0",))
    assert kernels(lambda: F.scaled_dot_product_attention(*torch.randn(3, 1, 2, 4, 8))) == {FLASH}


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
    assert set(attention_names.BACKENDS) <= {name for name in theirs if not name.endswith("_hub")} - {"flex"}


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
    done = python("-m", "diffdistill", "sample", "m", "--num-images", "1", "--out", "o", "--attention", name)
    assert done.code == 2
    assert sentence in done.err
    done = python("-m", "diffdistill", "train", "fashion_mnist/teacher", f"attention={name}")
    assert done.code == 2
    assert f"override 'attention={name}': {sentence}" in done.err


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("policy", ["sdpa-flash", "sdpa-efficient", "sdpa-cudnn", "sdpa-math", "xformers"])
@pytest.mark.parametrize("build", [lambda: text_unet((32, 64)), dit], ids=["text", "dit"])
def test_kernels_of_a_gpu(build, policy, dtype):
    if policy == "xformers":
        pytest.importorskip("xformers.ops")
    network = build().to("cuda", dtype)
    run = example(network)
    set_attention(network, "sdpa-math")
    expected = run()
    assert set_attention(network, policy).kernels == (policy.removeprefix("sdpa-"),)
    torch.testing.assert_close(run(), expected, rtol=5e-2, atol=5e-2)


@pytest.mark.gpu
def test_flash_attention_needs_half_precision_on_a_gpu():
    network = tiny_unet().to("cuda")
    with pytest.raises(ConfigError, match=r"attention 'sdpa-flash' does not run on this network here \(cuda, float32"):
        set_attention(network, "sdpa-flash")
    context = lambda: torch.autocast("cuda", torch.bfloat16)  # noqa: E731
    assert set_attention(network, "sdpa-flash", context=context).kernels == ("flash",)
