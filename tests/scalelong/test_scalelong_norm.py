"""What a GroupNorm leaves of a skip's scale, where the scale can be put instead, and what folds into the weights."""

import pytest
import torch
from diffusers import UNet2DModel
from diffusers.models.resnet import ResnetBlock2D
from long_skips import call, stable_diffusion, uvit
from tiny import tiny_unet

from diffdistill.errors import ConfigError
from diffdistill.models import apply_scalelong, remove_scalelong


def unet(seed=0):
    torch.manual_seed(seed)
    return UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(32, 32),
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    ).eval()


def straddling():
    """8 + 16 channels in four groups of six: one holds hidden and skip channels."""
    return tiny_unet(None).eval()


def moved(resnet, hidden, skip, kappa):
    """Relative change of the main branch and of the shortcut when the skip is scaled before the block."""

    def branches(factor):
        x = torch.cat([hidden, factor * skip], dim=1)
        return resnet.conv1(resnet.nonlinearity(resnet.norm1(x))), resnet.conv_shortcut(x)

    with torch.no_grad():
        pairs = list(zip(branches(1.0), branches(kappa), strict=True))
    return [float((after - before).norm() / before.norm()) for before, after in pairs]


@pytest.mark.parametrize("kappa", [0.9, 0.5, 0.1, 0.01])
def test_a_group_norm_leaves_of_a_scale_what_its_epsilon_leaves(kappa):
    """y = s / sqrt(v + e) becomes kappa s / sqrt(kappa^2 v + e), v the variance of the group."""
    norm = torch.nn.GroupNorm(32, 256, eps=1e-6).double()
    torch.manual_seed(0)
    hidden, skip = torch.randn(2, 2, 128, 8, 8, dtype=torch.float64)
    before = norm(torch.cat([hidden, skip], dim=1))
    after = norm(torch.cat([hidden, kappa * skip], dim=1))
    variance = skip.unflatten(1, (16, 8)).flatten(2).var(2, unbiased=False).repeat_interleave(8, 1)[..., None, None]
    factor = ((kappa**2 * (variance + 1e-6)) / (kappa**2 * variance + 1e-6)).sqrt()
    assert torch.equal(after[:, :128], before[:, :128])
    assert torch.allclose(after[:, 128:], factor * before[:, 128:], rtol=1e-10)


@pytest.mark.parametrize(
    ("kappa", "main", "shortcut"),
    [(0.9, 1.02e-7, 0.0698), (0.5, 1.31e-6, 0.349), (0.1, 4.31e-5, 0.629), (0.01, 4.32e-3, 0.691)],
)
def test_the_main_branch_does_not_see_the_scale_and_the_shortcut_does(kappa, main, shortcut):
    """The figures of the module's docstring: inputs of variance 1, random weights; float32 would add its rounding."""
    torch.manual_seed(0)
    resnet = ResnetBlock2D(in_channels=256, out_channels=128, temb_channels=None, groups=32).double()
    hidden, skip = torch.randn(2, 2, 128, 8, 8).double()
    in_main, in_shortcut = moved(resnet, hidden, skip, kappa)
    assert in_main == pytest.approx(main, rel=0.02)
    assert in_shortcut == pytest.approx(shortcut, rel=0.02)


def test_a_group_that_holds_both_does_not_cancel_it():
    """192 = 128 + 64 channels in 32 groups of six: one group has two hidden and four skip channels."""
    torch.manual_seed(0)
    resnet = ResnetBlock2D(in_channels=192, out_channels=128, temb_channels=None, groups=32)
    in_main, _ = moved(resnet, torch.randn(2, 128, 8, 8), torch.randn(2, 64, 8, 8), 0.5)
    assert in_main > 1e-2


def read_by_the_first_block(network):
    """What the deepest decoder block's norm gives its main branch, and what its shortcut reads."""
    resnet, seen = network.up_blocks[0].resnets[0], []
    handles = [
        resnet.norm1.register_forward_hook(lambda _, a, output: seen.append(output)),
        resnet.conv_shortcut.register_forward_hook(lambda _, a, output: seen.append(a[0])),
    ]
    with torch.no_grad():
        call(network)
    for handle in handles:
        handle.remove()
    return seen


def test_post_norm_reaches_both_branches_exactly():
    network = unet()
    plain = read_by_the_first_block(network)
    apply_scalelong(network, kappa=0.5, position="post_norm")
    factor = 0.5**3  # the deepest of four
    for before, after in zip(plain, read_by_the_first_block(network), strict=True):
        hidden = before.shape[1] - 32
        assert torch.equal(after[:, :hidden], before[:, :hidden])
        assert torch.equal(after[:, hidden:], factor * before[:, hidden:])


@pytest.mark.parametrize("make", [unet, straddling, stable_diffusion], ids=["unet", "straddling", "sd"])
@torch.no_grad()
def test_post_norm_scales_the_channels_that_the_encoder_made(make):
    """As many as the skip has that the encoder hands over, however wide the others are."""
    network, widths, seen = make(), [], []
    network.conv_in.register_forward_hook(lambda _, a, output: widths.append(output.shape[1]))
    for block in network.down_blocks:
        block.register_forward_hook(lambda _, a, output: widths.extend(skip.shape[1] for skip in output[1]))
    apply_scalelong(network, kappa=0.5, position="post_norm")
    for block in network.up_blocks:
        for resnet in block.resnets:
            resnet.norm1.register_forward_hook(lambda norm, a, output: seen.append((norm.forward(a[0]), output, a[0])))
            resnet.conv_shortcut.register_forward_hook(lambda _, a, output: seen.append(a[0]))
    call(network)
    assert len(seen) == 2 * len(widths)
    for j, ((normed, scaled, read), shortcut) in enumerate(zip(seen[::2], seen[1::2], strict=True)):
        number = len(widths) - j
        factors = torch.ones(read.shape[1])
        factors[-widths[number - 1] :] = 0.5 ** (number - 1)
        assert torch.equal(scaled, normed * factors[:, None, None])
        assert torch.equal(shortcut, read * factors[:, None, None])


def test_pre_norm_reaches_the_shortcut_only():
    network = unet()
    norm, shortcut = read_by_the_first_block(network)
    apply_scalelong(network, kappa=0.5)
    norm_after, shortcut_after = read_by_the_first_block(network)
    assert float((norm_after - norm).norm() / norm.norm()) < 5e-3
    assert float((shortcut_after - shortcut).norm() / shortcut.norm()) > 0.3


@pytest.mark.parametrize(
    ("make", "position"),
    [(unet, "post_norm"), (straddling, "post_norm"), (stable_diffusion, "post_norm"), (uvit, "pre_norm")],
    ids=["unet", "straddling", "sd", "uvit"],
)
@pytest.mark.parametrize("mode", ["cs", "rsqrt2"])
def test_constants_fold_into_the_weights(make, position, mode):
    network = make()
    with torch.no_grad():  # trained: no norm is where it began, at weight 1 and bias 0
        for parameter in network.parameters():
            if parameter.dim() == 1:
                parameter += 0.3 * torch.randn_like(parameter)
    plain = call(network)
    apply_scalelong(network, mode, kappa=0.7, position=position)
    scaled = call(network)
    remove_scalelong(network, fold=True)
    assert torch.allclose(call(network), scaled, atol=1e-5)
    assert (scaled - plain).abs().max() > 1e-3
    assert "scalelong" not in network.config


@pytest.mark.parametrize(("mode", "position"), [("ls", "post_norm"), ("cs", "pre_norm"), ("ls", "pre_norm")])
def test_what_does_not_fold_is_a_sentence_and_stays(mode, position):
    network = unet()
    apply_scalelong(network, mode, kappa=0.7, position=position)
    before = call(network)
    with pytest.raises(
        ConfigError, match=f"'{mode}' at '{position}' cannot be folded into the weights of UNet2DModel"
    ):
        remove_scalelong(network, fold=True)
    assert torch.equal(call(network), before)


def test_post_norm_without_a_norm_is_a_sentence():
    network = uvit()
    with pytest.raises(ConfigError, match=r"position post_norm is for UNets .* UViT has not; use position pre_norm"):
        apply_scalelong(network, position="post_norm")
    assert not network.out_blocks[0]._forward_pre_hooks


def test_a_perturbation_of_the_input_reaches_the_output_less_the_smaller_kappa_is():
    """The gain O(sum_i kappa_i M^i) of the paper's theorem 3.3, for a linear map of concat(h, skip)."""
    network = uvit(depth=24).double()
    with torch.no_grad():  # larger maps than at the start of training, so that the gain is not that of the shortcuts
        for parameter in network.parameters():
            parameter.mul_(3 if parameter.dim() > 1 else 1)
    x = torch.randn(4, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    step = 1e-4 * torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    gains = []
    for kappa in (1.0, 0.9, 0.7, 0.5):
        apply_scalelong(network, kappa=kappa)
        with torch.no_grad():
            change = network(x + step, 3.0, return_dict=False)[0] - network(x, 3.0, return_dict=False)[0]
        gains.append(float(change.norm() / step.norm()))
        remove_scalelong(network)
    assert gains == sorted(gains, reverse=True)
    assert gains[-1] < 0.95 * gains[0]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_hidden_features_of_a_deep_uvit_swing_less(root, monkeypatch, seed):
    """Theorem 3.1, measured by the script as its documentation says."""
    monkeypatch.syspath_prepend(root / "benchmarks" / "claims")
    from scalelong_oscillation import train

    from diffdistill.data import load_images

    images = load_images("builtin:fashion_mnist", split="train", image_size=8, limit=2000).images
    plain, with_scale = train(images, None, seed), train(images, {"mode": "cs", "kappa": 0.7}, seed)
    assert with_scale["swing"] < 0.7 * plain["swing"]
