"""Rewards without any large network: pictures brought to size, the gradient at x0, pairs, pictures for a user."""

import numpy as np
import pytest
import torch
from PIL import Image

from diffdistill.rewards.combine import CallableReward, pictures
from diffdistill.rewards.preprocess import preprocess
from diffdistill.rewards.protocol import score_pairs
from diffdistill.rewards.term import RewardTerm


def brightness(images, prompts=None):
    return images.flatten(1).mean(1)


def test_pairs_have_the_margin_of_the_first_and_ties_count_half():
    a, b = (
        torch.tensor(values)[:, None, None, None].expand(4, 1, 2, 2)
        for values in ([0.9, 0.2, 0.5, 0.5], [0.1, 0.6, 0.5, 0.1])
    )
    margin, accuracy = score_pairs(CallableReward(brightness), a, b)
    torch.testing.assert_close(margin, torch.tensor([0.8, -0.4, 0.0, 0.4]))
    assert accuracy == pytest.approx((1 + 0 + 0.5 + 1) / 4)


@pytest.mark.parametrize("shape", [(24, 60), (60, 24)])
def test_a_picture_is_brought_to_size_as_pillow_does(shape):
    generator = torch.Generator().manual_seed(0)
    picture = torch.randint(0, 256, (*shape, 3), generator=generator, dtype=torch.uint8)
    height, width = (8 * side // min(shape) for side in shape)
    small = np.asarray(Image.fromarray(picture.numpy()).resize((width, height), Image.Resampling.BICUBIC))
    top, left = (height - 8) // 2, (width - 8) // 2
    expected = torch.from_numpy(small[top : top + 8, left : left + 8].copy()).permute(2, 0, 1) / 255
    found = preprocess(picture.permute(2, 0, 1)[None] / 255, 8, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))
    mean, std = torch.tensor([0.1, 0.2, 0.3])[:, None, None], torch.tensor([0.5, 0.25, 2.0])[:, None, None]
    torch.testing.assert_close(found[0] * std + mean, expected, atol=2 / 255, rtol=0)


def test_a_pixel_out_of_range_can_be_called_back():
    x = torch.full((1, 1, 4, 4), 3.0)  # far above white
    gradient, metrics = RewardTerm(CallableReward(brightness), weight=2.0).gradient(x)
    # R = mean((x + 1) / 2): dR/dx = 1 / (2 C H W) a pixel; the term is -a C H W of it. The score is that of white.
    torch.testing.assert_close(gradient, torch.full_like(x, -2.0 * 16 * 1 / (2 * 16)))
    assert float(metrics["reward/score"]) == pytest.approx(1.0)


def test_the_terms_gradient_is_autograds_in_parts_and_whole():
    weights = torch.linspace(-1, 1, 16).reshape(1, 4, 4)

    def score(images, prompts):
        return torch.stack(
            [float(p) * (image * weights).square().sum() for image, p in zip(images, prompts, strict=True)]
        )

    x = 0.8 * torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(1)) - 0.4
    prompts = ["1", "2", "3", "4", "5"]
    leaf = x.clone().requires_grad_()
    loss = -(0.3 * 16) * sum(
        float(p) * ((0.5 * image + 0.5) * weights).square().sum() for image, p in zip(leaf, prompts, strict=True)
    )
    (expected,) = torch.autograd.grad(loss, leaf)
    for size in (2, 16):
        gradient, _ = RewardTerm(CallableReward(score), weight=0.3, batch_size=size).gradient(x, prompts)
        torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-5)


def test_latents_are_decoded_before_they_are_judged():
    def decode(latents):
        return 0.1 * latents.repeat_interleave(2, dim=-1)

    z = torch.tensor([[[[1.0, 2.0]]]])
    gradient, metrics = RewardTerm(CallableReward(brightness), weight=1.0, decode=decode).gradient(z)
    assert float(metrics["reward/score"]) == pytest.approx(0.5 * 0.15 + 0.5)
    # Each latent is in two of four pixels: d mean / dz = 0.5 0.1 2 / 4, times -C H W = -2 of the latents.
    torch.testing.assert_close(gradient, torch.full_like(z, -2 * 0.5 * 0.1 * 2 / 4))


def test_pictures_for_a_user_are_rounded():
    (picture,) = pictures(torch.tensor([[[[0.499 / 255, 0.501 / 255, 254.6 / 255, 1.2]]]]))
    assert np.asarray(picture).tolist() == [[0, 1, 255, 255]]
