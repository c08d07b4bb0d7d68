"""What every distillation has: a student that begins as its teacher, its levels, and the average that is kept."""

import torch
from torch import Tensor, nn

from diffdistill.borrowed import own
from diffdistill.config.schema import Distill
from diffdistill.data import ImageSet
from diffdistill.denoiser import Denoiser
from diffdistill.matching.micro_batches import Metrics
from diffdistill.pipelines.text.data import TextSet
from diffdistill.rewards.term import RewardTerm
from diffdistill.sharding import how
from diffdistill.training.attention import Networks, layers_of
from diffdistill.training.device import Device
from diffdistill.training.flat import Parts
from diffdistill.training.kinds import kind_of
from diffdistill.training.optim.updater import Ema
from diffdistill.training.sharded.plan import Plan, copying
from diffdistill.training.tasks.one_encoder import with_decoders


class StudentTask:
    """The student begins as a copy of the teacher, without its null class, and so does the critic, if there is one.

    first: how many of the run's steps are a start, and `started`, the section of `student` that asks for it.
    """

    parts: Parts
    first = 0
    started: str | None = None
    reward: RewardTerm | None = None

    def __init__(self, config: Distill, teacher: Denoiser, data: ImageSet | TextSet, device: Device):
        self.config, self.teacher, self.data, self.device = config, teacher, data, device
        kind = kind_of(teacher)
        teacher.guidance_rescale = config.method.guidance_rescale
        start = kind.start(config, teacher)
        self.levels = kind.levels(config, teacher, start)
        torch.manual_seed(config.seed)
        about: dict[str, object] = {"role": "student", "levels": list(self.levels)}
        student, self.critic = kind.roles(config, teacher, about, device, start)
        self.student = with_decoders(config, student, kind, teacher, start)
        decay = config.student.ema_decay_for(config.train_batch_size)
        self.ema = Ema(self.student, decay, copying(config, device))
        self.plan = self._planned()

    @property
    def denoisers(self) -> dict[str, Denoiser]:
        """Those of the run, by role."""
        roles = {"teacher": self.teacher, "student": self.student, "critic": self.critic, "average": self.ema.module}
        return {role: denoiser for role, denoiser in roles.items() if denoiser is not None}

    def _planned(self) -> Plan:
        """Networks that are sharded are so from here on; those on the device that are not."""
        self.teacher.requires_grad_(False)
        encoders = getattr(getattr(self.teacher, "adapter", None), "encoders", None)
        plan = Plan(self.config, self.device, {role: each.layers for role, each in self.denoisers.items()}, encoders)
        exact = self.config.exact
        plan.shard(exact=lambda role: exact and role in ("teacher", "critic"))
        for denoiser in self.denoisers.values():
            if how(denoiser.network) is None:  # adapters on a network that is
                nn.Module.to(own(denoiser), self.device.name)
        return plan

    def update(self, step: int) -> Metrics:
        raise NotImplementedError

    def images(self, x: Tensor, sigma: Tensor, cond: Tensor | None) -> Tensor:
        with self.device.autocast():
            return self.student(x, sigma, cond)

    def networks(self) -> Networks:
        return layers_of(self.denoisers)

    def averaged(self) -> Denoiser:
        return self.ema.module
