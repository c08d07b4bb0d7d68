"""AdamW (1711.05101), torch's own."""

import torch
from torch import nn

from diffdistill.optimizers import Optimizer


def build(parameters: list[nn.Parameter], settings: Optimizer) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        parameters, lr=settings.learning_rate, betas=settings.betas, eps=1e-8, weight_decay=settings.weight_decay
    )
