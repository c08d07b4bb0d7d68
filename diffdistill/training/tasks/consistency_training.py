"""Training a consistency model on data alone: `train` with the objectives `consistency` and `scm`."""

from diffdistill import processes
from diffdistill.config.schema import Train
from diffdistill.consistency.objective import Noise
from diffdistill.coupling import check_coupling, coupled
from diffdistill.data import ImageSet
from diffdistill.denoiser import Denoiser
from diffdistill.errors import ConfigError
from diffdistill.matching.micro_batches import Metrics, rows_of
from diffdistill.objectives.few_steps import FewSteps
from diffdistill.pipelines.network import clone_network
from diffdistill.pipelines.pixel.schedule import near_levels
from diffdistill.training.device import Device
from diffdistill.training.flat import Parts
from diffdistill.training.kinds.base import check_noise_alone
from diffdistill.training.tasks.consistency import ConsistencyLoss, objective_of
from diffdistill.training.tasks.teacher import TeacherTask, from_scratch


class ConsistencyTraining(TeacherTask):
    """The model is its own target, without a null class, and is published as a student is."""

    dropout = False  # two passes of one network are compared

    def __init__(self, config: Train, data: ImageSet, device: Device, start: Denoiser | None = None):
        settings = config.objective
        assert isinstance(settings, FewSteps)
        self.coupling = settings.coupling
        check_coupling(self.coupling, data.num_classes is not None, len(data), config.train_batch_size)
        super().__init__(config, data, device, start)
        objective = objective_of(config.objective, self.model, self.levels[0], config.max_train_steps, device)
        self.loss = ConsistencyLoss(objective, self.model, device)
        self.parts: Parts = {**self.parts, **objective.modules()}

    def begun(self, config: Train, data: ImageSet, start: Denoiser | None) -> Denoiser:
        found = from_scratch(config.model_copy(update={"class_dropout": 0.0}), data) if start is None else start
        settings = config.objective
        assert isinstance(settings, FewSteps)
        first = settings.levels[0] if settings.levels else found.sigma_max
        check_noise_alone(first, found, "set objective.levels to begin with LEAST or more, at most MOST")
        if first > found.sigma_max:
            raise ConfigError(
                f"the first of objective.levels, {first:g}, is above the network's highest, {found.sigma_max:g}; "
                f"lower it"
            )
        levels = near_levels(found.process, settings.steps, found.sigma_max, settings.levels)
        network = clone_network(found.network, found.num_classes)
        return Denoiser(network, found.process, metadata={"role": "student", "levels": list(levels)})

    def update(self, step: int) -> Metrics:
        config = self.config
        count, mine = config.train_batch_size, processes.rows(config.train_batch_size)
        # Noise is coupled with the images of all processes.
        looked_at = mine if self.coupling == "independent" else slice(0, count)
        images, labels = self.data.draw(count, config.seed, step, config.data.horizontal_flip, looked_at)

        def in_pairs(noise: Noise) -> Noise:
            if self.coupling == "independent":
                return noise
            assert images is not None
            return noise._replace(eps=noise.eps[coupled(noise.eps, images.to(noise.eps), labels, self.coupling)])

        x0, cond = self.device.put(*(rows_of(value, mine) for value in (images, labels)))
        assert x0 is not None
        metrics = self.loss.backward(x0, cond, mine, count, step, coupled=in_pairs) | self.updater.step(step)
        self.ema.update(self.model)
        return metrics
