"""Distribution matching: one step for every method, usable in a training loop of one's own.

The step sees three denoisers: the teacher, frozen; the student, which makes an image of noise in one pass; the critic
(in papers also "fake score"), which learns what the student's images look like. `critic_loss` trains the critic,
`student_gradient` says where the student's images should move. Networks, optimisers and loop are yours:

    >>> import torch
    >>> from diffusers import UNet2DModel
    >>> from diffdistill import Denoiser
    >>> from diffdistill.matching.settings import Choices
    >>> from diffdistill.matching.step import DistributionMatching
    >>> from diffdistill.process import EDM, Level, LevelLaw

    >>> def network():  # yours would be trained; student and critic start as copies of the teacher
    ...     unet = UNet2DModel(8, 1, 1, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1,
    ...                        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)
    ...     return Denoiser(unet, EDM())
    >>> teacher, student, critic = network(), network(), network()
    >>> dmd = Choices("score_gap", divergence="reverse_kl", level_weight="dmd")
    >>> step = DistributionMatching(dmd, teacher, critic, LevelLaw(Level("karras")), LevelLaw(Level("lognormal")))
    >>> optimizers = [torch.optim.AdamW(one.parameters(), lr=1e-4) for one in (student, critic)]

    >>> for k in range(2):
    ...     x0 = student(80 * torch.randn(4, 1, 8, 8), torch.full((4,), 80.0), None)
    ...     loss, _ = step.critic_loss(x0, cond=None, real=None)
    ...     loss.backward()
    ...     gradient, metrics = step.student_gradient(x0, cond=None, progress=k / 2)
    ...     x0.backward(gradient / x0.numel())
    ...     for optimizer in optimizers:
    ...         optimizer.step()
    ...         optimizer.zero_grad()
    >>> min(metrics)
    'gradient/matching'

Another method is another row of `Choices`: `METHODS.get("sim")().choices()` of `diffdistill.methods` gives a paper's.
"""
