"""DDO's rounds: what each begins with, what is kept, and that a run that was stopped goes on to the last bit."""

import torch
from runs import Watcher, data, go, lines, settings
from tiny import tiny_teacher

from diffdistill.training.device import Device
from diffdistill.training.flat import tensors_of
from diffdistill.training.tasks.ddo import DDOTask

ROUND = 2
OBJECTIVE = {
    "name": "ddo", "alpha": 2.0, "beta": 0.05, "round_steps": ROUND, "reference_images": 9, "reference_steps": 2,
}  # fmt: skip


class Figures(Watcher):
    """A monitor whose FIDs are given by step; it keeps what it has seen."""

    def __init__(self, *values):
        self.values, self.seen = list(values), []

    def evaluate(self, model):
        torch.randn(3)  # a real one draws, too
        self.seen.append(weights(model))
        return {"metrics": {"fid": {"value": self.values[len(self.seen) - 1]}}}


def weights(model):
    return torch.cat([value.detach().flatten() for value in model.network.state_dict().values()])


def config(folder, **more):
    objective = OBJECTIVE | more.pop("objective", {})
    evaluation = {"every": 1, "at_end": False}
    common = {"initialize_from": "tiny", "objective": objective, "evaluation": evaluation, "sample_every": 0}
    made = settings("train", folder, **common | {"max_train_steps": 3 * ROUND, "checkpoint_every": 1} | more)
    return made


def ddo(folder, **more):
    folder.mkdir(exist_ok=True)
    made = config(folder, **more)
    task = DDOTask(made, data(), Device("no"), tiny_teacher(seed=1))
    task.keep(folder, {})
    return made, task


def parts(task):
    return {f"{name}.{key}": v.clone() for name, part in task.parts.items() for key, v in tensors_of(part).items()}


def same(before, after):
    return before.keys() == after.keys() and all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_round_begins_with_the_best_model_so_far_and_the_best_of_all_is_kept(tmp_path, monkeypatch):
    made, task = ddo(tmp_path)
    references = []
    update = task.update
    monkeypatch.setattr(task, "update", lambda step: references.append(weights(task.reference)) or update(step))
    figures = Figures(5.0, 3.0, 4.0, 6.0, 2.0, 9.0, 8.0, 0.0)  # of the start, of six steps, of what is kept
    run = go(task, made, tmp_path, figures)
    start, one, _, _, four, _, _, kept = figures.seen
    for step, reference in enumerate([start, start, one, one, four, four]):
        assert torch.equal(references[step], reference), step
    assert torch.equal(weights(run.task.averaged()), four)
    assert torch.equal(kept, four)
    assert (run.step, run.went_back, run.kept_step) == (6, 4, 4)
    assert lines(tmp_path)[-1] == {"step": 6, "early_stop/kept": 4}


def test_a_round_without_a_better_model_ends_the_run(tmp_path):
    made, task = ddo(tmp_path)
    run = go(task, made, tmp_path, Figures(5.0, 6.0, 5.0, 0.0))
    assert (run.step, run.went_back) == (ROUND, 0)
    assert torch.equal(weights(task.averaged()), weights(tiny_teacher(seed=1)))
