"""Distilling a teacher: student, critic and discriminator, each with its updater, around `DistributionMatching`."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from diffdistill import processes
from diffdistill.config.schema import Distill
from diffdistill.data import ImageSet
from diffdistill.denoiser import Denoiser
from diffdistill.errors import CheckpointError, ConfigError
from diffdistill.matching.micro_batches import Metrics, blank_like, mean_of, parts_of, rows_of
from diffdistill.matching.step import DistributionMatching
from diffdistill.methods.base import Method, Rewarded
from diffdistill.pipelines.one_encoder import OneEncoder
from diffdistill.pipelines.text.data import TextSet
from diffdistill.process import Level, LevelLaw
from diffdistill.rewards.term import RewardSettings, RewardTerm, reward_term
from diffdistill.section import plain
from diffdistill.training.device import Device
from diffdistill.training.flat import Parts
from diffdistill.training.kinds.base import names_model
from diffdistill.training.optim.beside_muon import updaters_of
from diffdistill.training.optim.updater import Updater
from diffdistill.training.signals import stoppable
from diffdistill.training.store import CheckpointStore, load_checkpoint, names_in
from diffdistill.training.tasks.consistency import ConsistencyPhase, ConsistencyTask, consistency_of
from diffdistill.training.tasks.one_encoder import NoiseTerm
from diffdistill.training.tasks.regression import TrajectoryPairs, TrajectoryRegression
from diffdistill.training.tasks.smooth import SmoothTerm
from diffdistill.training.tasks.student import StudentTask


def start_steps(config: Distill) -> int:
    """How many of the run's steps are its start: as many as asked for, but a shortened run keeps a step to match."""
    settings, total = config.student.regression or config.student.consistency, config.max_train_steps
    if settings is None:
        return 0
    if config.initialize_from is not None:
        raise ConfigError(
            f"initialize_from starts from a distilled student, which student.{started_by(config)} would undo; leave "
            f"one of them out"
        )
    return total if settings.steps == total else min(settings.steps, total - 1)


def started_by(config: Distill) -> str | None:
    """The section of `student` that asks for a start."""
    return next((name for name in ("regression", "consistency") if getattr(config.student, name) is not None), None)


def reward_of(config: Distill, teacher: Denoiser) -> RewardTerm | None:
    """The term of `method.reward`, where the method follows one."""
    if not isinstance(config.method, Rewarded) or config.method.reward is None:
        return None
    device = teacher.device
    return reward_term(
        plain(config.method.reward, RewardSettings), device, teacher.decode if teacher.draws_texts else None
    )


@dataclass(frozen=True)
class Turn:
    """What the images of one update are made of: the student's input x `(B, C, H, W)` and sigma `(B,)`, conditions.

    mine: which of the batch's `count` images, over all processes, are these; parts: rows that pass at a time.
    """

    x: Tensor
    sigma: Tensor
    cond: Tensor | None
    mine: slice
    count: int
    parts: list[slice]

    @property
    def whole(self) -> bool:
        return len(self.parts) == 1

    @property
    def blank(self) -> Tensor:
        """Of the batch's shape: what is drawn is drawn for the batch of all processes."""
        return blank_like(self.x, self.count)


def student_task(config: Distill, teacher: Denoiser, data: ImageSet | TextSet, device: Device) -> StudentTask:
    """The task that the settings mean."""
    kind = ConsistencyTask if config.matching is None else DistillTask
    return kind(config, teacher, data, device)


class DistillTask(StudentTask):
    """Distribution matching, after a start if there is one, and with a consistency loss beside it if there is one."""

    noise: NoiseTerm | None = None

    def __init__(self, config: Distill, teacher: Denoiser, data: ImageSet | TextSet, device: Device):
        super().__init__(config, teacher, data, device)
        matching, critic = config.matching, self.critic
        assert matching is not None  # a consistency model has a task of its own
        assert critic is not None
        self.adversarial = matching.adversarial
        self.reward = reward_of(config, teacher)
        bounds = teacher.sigma_min, teacher.sigma_max, teacher.process
        self.method = DistributionMatching(
            matching.choices(),
            teacher,
            critic,
            LevelLaw(plain(config.level, Level), *bounds),
            LevelLaw(plain(config.critic.level, Level), *bounds),
            device.autocast,
            matching.float32_gap,
            self.reward,
        )
        self.first, self.started = start_steps(config), started_by(config)
        settings = config.student.one_encoder
        if isinstance(self.student, OneEncoder) and settings is not None and settings.noise_weight > 0:
            self.noise = NoiseTerm(self.student, settings.noise_weight)
        self._build_updaters(config, critic)
        self.regression = self._build_regression(config, teacher)
        self.consistency = self._build_consistency(config, matching)
        self.smooth = self._build_smooth(config, matching)

    def images(self, x: Tensor, sigma: Tensor, cond: Tensor | None) -> Tensor:
        if self.noise is None:
            return super().images(x, sigma, cond)
        with self.device.autocast():
            return self.noise.images(x, sigma, cond)

    def _build_consistency(self, config: Distill, matching: Method) -> ConsistencyPhase | None:
        """The start by consistency distillation; the term beside matching is `self.beside`."""
        start, term = config.student.consistency, matching.consistency
        self.beside, self.weight_beside = None, 0.0
        if term is not None:
            self.beside = consistency_of(self, term.objective, config.max_train_steps - self.first)
            self.weight_beside = term.weight
            self.parts |= self.beside.objective.modules()
        if start is None:
            return None
        updaters = updaters_of("consistency", self.student, start.optimizer, start.muon, start.steps)
        phase = ConsistencyPhase(self, start.objective, updaters, start.steps)
        self.parts |= phase.parts
        return phase

    def _build_smooth(self, config: Distill, matching: Method) -> SmoothTerm | None:
        if matching.smoothness is None:
            return None
        level = self.levels[0]
        term = SmoothTerm(matching.smoothness, self.student, self.images, level, config.micro_batch_size)
        term.check(self.student, level)
        self.parts["smoothness"] = term.lengths
        return term

    def _build_regression(self, config: Distill, teacher: Denoiser) -> TrajectoryRegression | None:
        settings = config.student.regression
        if settings is None:
            return None
        pairs = TrajectoryPairs(
            settings, teacher, self.levels, self.data, self.device, config.train_batch_size, config.seed,
            config.method.guidance_scale,
        )  # fmt: skip
        regression = TrajectoryRegression(
            settings, self.student, self.ema, pairs, self.device, config.micro_batch_size
        )
        self.parts |= {f"{updater.name}_optimizer": updater.optimizer for updater in regression.updaters}
        return regression

    def _build_updaters(self, config: Distill, critic: Denoiser) -> None:
        total = config.max_train_steps - self.first
        self.student_updater = Updater("student", self.student.parameters(), config.student.optimizer, total)
        self.critic_updaters = [Updater("critic", critic.parameters(), config.critic.optimizer, total)]
        self.parts: Parts = {
            "student": self.student,
            "student_ema": self.ema,
            "critic": critic,
            **self.method.modules(),
        }
        term, settings = self.method.adversarial, self.adversarial
        if term is not None and settings is not None:
            self.critic_updaters.append(
                Updater("discriminator", term.discriminator.parameters(), settings.optimizer, total)
            )
        if config.initialize_from is not None and not names_model(config.initialize_from):
            self.start_from(Path(config.initialize_from))
        for updater in (self.student_updater, *self.critic_updaters):
            self.parts[f"{updater.name}_optimizer"] = updater.optimizer

    def start_from(self, run: Path) -> None:
        """Take the averaged student, the critic and the discriminator of another run's last checkpoint; moments start
        anew.
        """
        folder, _ = CheckpointStore(run / "checkpoints", keep=1).find("latest")
        if folder is None:
            raise CheckpointError(
                f"initialize_from '{run}' has no checkpoints and no model_index.json; give the run folder of a first "
                f"stage, or a student's model folder"
            )
        # A first stage without a discriminator may be followed by one with it: that part then starts as built.
        here: Parts = {name: part for name, part in self.parts.items() if name in names_in(folder)}
        if "student" in here and "critic" not in here:
            raise CheckpointError(
                f"initialize_from '{run}' is the run of a consistency model, which has no critic; give its student/ "
                f"folder"
            )
        if not {"student", "student_ema", "critic"} <= here.keys():
            raise CheckpointError(
                f"initialize_from '{run}' is not the run of a distillation; give the run folder of a first stage"
            )
        try:
            load_checkpoint(folder, here)
        except RuntimeError as error:
            raise CheckpointError(
                f"the networks of initialize_from '{run}' have other parts than this run's; take the same teacher, "
                f"student.lora and critic.lora"
            ) from error
        self.student.load_state_dict(self.ema.module.state_dict())

    def update(self, step: int) -> Metrics:
        start = self.regression or self.consistency
        if start is not None and step < self.first:
            return start.update(step)
        return self.match(step, step - self.first)

    def match(self, batch: int, step: int) -> Metrics:
        """One update of distribution matching, the `step`-th, on data batch number `batch`.

        The student moves first: the graph of its images is gone when the critic's is made.
        """
        config = self.config
        progress = step / (config.max_train_steps - self.first)
        count = config.train_batch_size
        mine = processes.rows(count)
        real, cond = self.drawn(batch, mine)
        real, labels = (rows_of(value, mine) for value in (real, cond))
        texts = None if labels is None else self.texts(labels)
        (real, _), cond = self.device.put(real, None), self.student.placed(labels)
        x, sigma = self.student_input(real, cond)
        turn = Turn(x, sigma, cond, mine, count, parts_of(len(x), config.micro_batch_size))
        # Before its first update the critic is the teacher: of their gap, which is rounding, Adam would make a step.
        moves = step > 0 and progress >= self.method.choices.critic_warmup
        # In parts, the graph of each is made again when its turn comes.
        with torch.set_grad_enabled(moves and turn.whole):
            x0 = torch.cat([self.images(x[rows], sigma[rows], rows_of(cond, rows)) for rows in turn.parts])
        metrics = self._move_student(step, turn, x0, real, progress, texts) if moves else {}
        return metrics | self._train_critic(step, turn, x0.detach(), real)

    def _move_student(
        self, step: int, turn: Turn, x0: Tensor, real: Tensor | None, progress: float, texts: list[str] | None
    ) -> Metrics:
        """x0: the student's images, with their graph where the turn is taken whole; real: the data's, for `beside`."""
        gradient, metrics = self.method.student_gradient(
            x0, turn.cond, progress, texts, self.config.micro_batch_size,
            self.method.student_noise(turn.blank).part(turn.mine), turn.count,
        )  # fmt: skip
        # The mean over C, H, W too, so that clipping thresholds mean what they mean in the papers.
        gradient = gradient / turn.blank.numel()
        kl: list[Tensor] = []
        for rows in turn.parts:
            images = x0 if turn.whole else self.images(turn.x[rows], turn.sigma[rows], rows_of(turn.cond, rows))
            if self.noise is None:
                images.backward(gradient[rows])
            else:
                kl.append(self.noise.backward(images, gradient[rows], turn.count))
        if kl:
            metrics |= processes.mean({"noise/kl": torch.cat(kl).mean()}, len(x0), turn.count)
        if self.beside is not None:
            assert real is not None  # prompts alone are refused
            metrics |= self.beside.backward(real, turn.cond, turn.mine, turn.count, step, self.weight_beside)
        if self.smooth is not None:
            metrics |= self.smooth.backward(turn.x, turn.sigma, turn.cond, turn.mine, turn.count, step)
        metrics |= self.student_updater.step(step)
        self.ema.update(self.student)
        return metrics

    def _train_critic(self, step: int, turn: Turn, x0: Tensor, real: Tensor | None) -> Metrics:
        """Its updates, and the discriminator's, on the student's images x0 and as many real ones."""
        metrics: Metrics = {}
        for _ in range(self.config.critic.updates_per_step):
            of_parts: list[Metrics] = []
            noise = self.method.critic_noise(turn.blank, real is not None).part(turn.mine)
            for rows in turn.parts:
                batch = x0[rows], rows_of(turn.cond, rows), rows_of(real, rows)
                figures: Metrics = {}
                for loss, values in self.method.critic_losses(*batch, noise.part(rows)):
                    (len(batch[0]) / turn.count * loss).backward()
                    figures |= values
                of_parts.append(figures)
            for updater in self.critic_updaters:
                metrics |= updater.step(step)
            metrics |= processes.mean(mean_of(of_parts, turn.parts), len(x0), turn.count)
        return metrics

    def drawn(self, batch: int, mine: slice) -> tuple[Tensor | None, Tensor | None]:
        """Images and conditions of a whole batch, of which these rows are taken: the data's, or the teacher's own of
        `method.adversarial.reals`, with the conditions they were made for.
        """
        config, adversarial = self.config, self.adversarial
        if adversarial is not None and adversarial.reals == "teacher":
            assert self.regression is not None  # the settings have refused it
            with stoppable():  # making pairs may take minutes, and moves no weight
                _, _, real, cond = self.regression.pairs[batch]
            return real, cond
        return self.data.draw(config.train_batch_size, config.seed, batch, config.data.horizontal_flip, mine)

    def texts(self, cond: Tensor) -> list[str] | None:
        """The prompts of the images, for a reward; None where the condition is no text. cond: still on the CPU."""
        if self.reward is None:
            return None
        return self.student.captions(cond) or self.reward.named(cond)

    @torch.no_grad()
    def student_input(self, real: Tensor | None, cond: Tensor | None) -> tuple[Tensor, Tensor]:
        """`(x, sigma)` for one of the student's K steps, drawn for the whole batch, of which these rows are taken.

        Step 1 sees pure noise. A later step sees what it will see when sampling, the student's own previous image
        noised again (backward simulation, 2405.14867, section 4.5), or, cheaper and mismatched, a noised real image.
        """
        k = int(torch.randint(len(self.levels), ()))
        shape = (self.config.train_batch_size, *self.student.image_shape)
        mine = processes.rows(shape[0])

        def draw() -> Tensor:
            return torch.randn(shape, device=self.device.name)[mine]

        x = self.student.process.start_scale(self.levels[0]) * draw()
        if k and real is not None and self.config.student.training_input == "noised_data":
            x = real + self.levels[k] * draw()
        elif k:
            for level, below in zip(self.levels[:k], self.levels[1:], strict=False):
                sigma = x.new_full((len(x),), level)
                parts = parts_of(len(x), self.config.micro_batch_size)
                x0 = torch.cat([self.images(x[rows], sigma[rows], rows_of(cond, rows)) for rows in parts])
                x = self.student.clip(x0) + below * draw()
        return x, x.new_full((len(x),), self.levels[k])
