"""DDO: direct discriminative optimization, a likelihood model as the discriminator of its own samples (2503.01103)."""

from typing import NamedTuple

from torch import Tensor
from torch.nn.functional import softplus

from diffdistill.alignment.mapo import accuracy, single


class DDOOutput(NamedTuple):
    """What the loss gives. loss: scalar with a graph; the others are for the log: D of both kinds of images `(B,)`,
    and acc, the part of them that the discriminator tells right, a tie for a half.

    >>> import torch
    >>> from diffdistill.alignment import ddo_loss
    >>> output: DDOOutput = ddo_loss(*torch.tensor([[1.0], [1.5], [3.0], [1.0]]), alpha=1.0, beta=1.0)
    >>> output.ratio_data, output.ratio_reference, output.acc
    (tensor([0.5000]), tensor([-2.]), tensor(1.))
    """

    loss: Tensor
    ratio_data: Tensor
    ratio_reference: Tensor
    acc: Tensor


def ddo_loss(
    data: Tensor, data_reference: Tensor, own: Tensor, own_reference: Tensor, *, alpha: float, beta: float
) -> DDOOutput:
    """The logistic loss of the discriminator sigmoid(beta D), D = log p_theta - log p_ref (2503.01103):

        L = -mean_data log sigmoid(beta D) - alpha mean_own log sigmoid(-beta D),
        D = -(l_theta - l_ref),

    l a negative log likelihood, or the error that bounds it: of a denoiser ||F_theta - F||^2, F the target of the
    network's own output, summed over C, H, W, at one noise and level an image, the same in both networks.

    For exact likelihoods and alpha = beta = 1 the minimum is p_theta = p_data; for another beta it is not
    p_ref^(1 - 1/beta) p_data^(1/beta), which is not normalised. At theta = reference the gradient is beta / 2 that of
    mean_data l_theta, plus alpha beta / 2 times that of -mean_own l_theta, which is 0 for an exact reference. With one
    noise an image the minimum lies past the data's denoiser: it is to be stopped early (docs/training.md).

    data, own: `(B,)`, l_theta of images of the data, and of samples of the reference; data_reference, own_reference:
    `(B,)`, l_ref of the same. Half precision is computed, and returned, in float32.

    >>> import torch
    >>> p_data, p_reference = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.3, 0.3, 0.4])
    >>> seen, drawn = torch.tensor([0] * 5 + [1] * 3 + [2] * 2), torch.tensor([0] * 3 + [1] * 3 + [2] * 4)
    >>> z = p_reference.log().requires_grad_()
    >>> l, l_ref = -z.log_softmax(0), -p_reference.log()
    >>> ddo_loss(l[seen], l_ref[seen], l[drawn], l_ref[drawn], alpha=1.0, beta=1.0).loss.backward()
    >>> (z.grad + 1).round(decimals=4)  # 1 + beta / 2 (p_reference - p_data), which moves the model towards the data
    tensor([0.9000, 1.0000, 1.1000])
    """
    ratio_data, ratio_own = single(data_reference) - single(data), single(own_reference) - single(own)
    loss = softplus(-beta * ratio_data).mean() + alpha * softplus(beta * ratio_own).mean()
    right = 0.5 * (accuracy(ratio_data.detach()) + accuracy(-ratio_own.detach()))
    return DDOOutput(loss, ratio_data.detach(), ratio_own.detach(), right)
