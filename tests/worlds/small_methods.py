"""A distribution-matching step on tiny real networks."""

import torch
from tiny import tiny_teacher

from diffdistill.denoiser import Denoiser
from diffdistill.matching.settings import Choices
from diffdistill.matching.step import DistributionMatching
from diffdistill.pipelines.network import clone_network
from diffdistill.process import Level, LevelLaw
from diffdistill.rewards.term import RewardSettings, reward_term
from diffdistill.section import plain


def build(settings, teacher_seed=0, critic_seed=None):
    teacher = tiny_teacher(teacher_seed)
    source = teacher if critic_seed is None else tiny_teacher(critic_seed)
    critic = Denoiser(clone_network(source.network, 3), teacher.process)
    torch.manual_seed(7)
    law = LevelLaw(Level(law="karras", u_max=0.8))
    choices = settings if isinstance(settings, Choices) else settings.choices()
    reward = getattr(settings, "reward", None)
    term = None if reward is None else reward_term(plain(reward, RewardSettings))
    return DistributionMatching(choices, teacher, critic, law, LevelLaw(Level(law="lognormal")), reward=term)


def batch(seed=1, count=4):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 1, 8, 8, generator=generator), torch.arange(count) % 3


def gradients(module):
    return [] if module is None else [p.grad for p in module.parameters() if p.grad is not None]
