"""How far an image moves as its noise does: step-wise variation, the path length of StyleGAN2.

For a generator x0 = G(z), J = d x0 / d z, and a random direction y ~ N(0, 1) of the images' shape, d = C H W,

    l = ||J^T y|| / sqrt(d),        E l^2 = ||J||_F^2 / d,        minimise E (l - a)^2,

a the running mean of l. Where l is the same for every z and y, steps of one size in z are steps of one size in the
image: J is a rotation times a. (1912.04958, section 3.2, on its latent; Smooth Diffusion, 2312.04410, on z.)

    >>> x = torch.randn(2, 1, 4, 4, requires_grad=True)
    >>> y = torch.ones(2, 1, 4, 4)
    >>> lengths = path_lengths(3 * x, x, y)  # J = 3, and ||y|| = sqrt(d)
    >>> lengths.tolist()
    [3.0, 3.0]
"""

import torch
from torch import Tensor, nn


def path_lengths(images: Tensor, x: Tensor, y: Tensor, scale: float = 1.0) -> Tensor:
    """l = scale ||(d images / d x)^T y|| / sqrt(C H W), `(B,)`, with a graph, so that weights can be moved by it.

    images `(B, C, H, W)`: made of x, each of its own row; x: a leaf; y `(B, C, H, W)`: directions; scale: of x = scale
    z, for the length on z. RuntimeError where an operator of the network has no second derivative.
    """
    (slope,) = torch.autograd.grad((images * y).sum(), x, create_graph=True)
    return scale * slope.flatten(1).norm(dim=1) / x[0].numel() ** 0.5


class PathLength(nn.Module):
    """a: the mean of the lengths so far, of which a new batch's counts the part `decay`; its buffers are its state.

    The first batch sets it. (StyleGAN2 and Smooth Diffusion begin with a = 0, and so ask for no variation at first.)

    >>> mean = PathLength(decay=0.01)
    >>> mean.count(torch.tensor(2.0)), mean.count(torch.tensor(4.0))
    (None, None)
    >>> round(mean.mean.item(), 2), mean.losses(torch.tensor([2.02, 3.02])).tolist()
    (2.02, [0.0, 1.0])
    """

    mean: Tensor
    batches: Tensor

    def __init__(self, decay: float = 0.01):
        super().__init__()
        self.decay = decay
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def losses(self, lengths: Tensor) -> Tensor:
        """(l - a)^2, `(B,)`, a that of the batches before; 0 for the first."""
        return (lengths - self.mean).square() * (self.batches > 0)

    @torch.no_grad()
    def count(self, mean: Tensor) -> None:
        """Take the mean length of a whole batch, over all processes, into a."""
        self.mean.lerp_(mean.to(self.mean), torch.where(self.batches > 0, self.decay, 1.0))
        self.batches += 1
