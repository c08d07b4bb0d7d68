"""DDO's rounds: what each begins with, what is kept, and that a run that was stopped goes on to the last bit."""

import math
import re
import shutil
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from runs import Watcher, data, go, lines, settings, without
from tiny import tiny_teacher, tiny_unet

from diffdistill import processes
from diffdistill.config.schema import Train
from diffdistill.data import ImageSet
from diffdistill.denoiser import Denoiser
from diffdistill.errors import ConfigError, DataError
from diffdistill.process import VP, Flow
from diffdistill.training.device import Device
from diffdistill.training.flat import tensors_of
from diffdistill.training.loop import TrainingRun
from diffdistill.training.randomness import mix
from diffdistill.training.rounds import BEGIN, Rounds
from diffdistill.training.store import CheckpointStore
from diffdistill.training.tasks.ddo import DDOTask

ROUND = 2
OBJECTIVE = {
    "name": "ddo", "alpha": 2.0, "beta": 0.05, "round_steps": ROUND, "reference_images": 9, "reference_steps": 2,
}  # fmt: skip


FIDS = 5.0, 3.0, 4.0, 6.0, 2.0, 9.0, 8.0, 2.0  # of the start, of six steps, of what is kept


class Figures(Watcher):
    """A monitor whose FIDs are given by step; it keeps what it has seen."""

    def __init__(self, *values):
        self.values, self.seen = list(values), []

    def evaluate(self, model):
        torch.randn(3)  # a real one draws, too
        self.seen.append(weights(model))
        if (value := self.values[len(self.seen) - 1]) is None:
            raise DataError("the reference is gone")
        return {"metrics": {"fid": {"value": value}}}


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


def test_a_round_without_a_better_model_ends_the_run(tmp_path):
    made, task = ddo(tmp_path)
    run = go(task, made, tmp_path, Figures(5.0, 6.0, 5.0, 0.0))
    assert (run.step, run.went_back) == (ROUND, 0)
    assert torch.equal(weights(task.averaged()), weights(tiny_teacher(seed=1)))


def test_a_round_whose_end_is_not_measured_ends_all_the_same(tmp_path):
    """Its best evaluation is what the next begins with, and what is published, though that is not measured again."""
    made, task = ddo(tmp_path, max_train_steps=2 * ROUND)
    figures = Figures(5.0, 3.0, None, 4.0, None, None)
    run = go(task, made, tmp_path, figures)
    assert (run.step, run.went_back, run.kept_step, run.evaluation) == (2 * ROUND, 1, 1, {})
    assert torch.equal(weights(task.averaged()), figures.seen[1])
    losses = [line["ddo/loss"] for line in lines(tmp_path) if "ddo/loss" in line]
    assert losses[ROUND] == pytest.approx(3 * math.log(2), rel=1e-6)  # the reference itself begins the round


class Table(Watcher):
    """A monitor that knows the FID of every model of a run, by its weights; the call number `broken` fails, as by a
    kill."""

    def __init__(self, table, broken=None):
        self.table, self.broken, self.seen = table, broken, 0

    def evaluate(self, model):
        self.seen += 1
        if self.seen == self.broken:
            raise KeyboardInterrupt
        torch.randn(3)
        return {"metrics": {"fid": {"value": self.table[weights(model).numpy().tobytes()]}}}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of three rounds that was never stopped: its parts, its log, its folder, what its models measure, and for
    the tests its monitor, the reference of each step, and the run.
    """
    folder = tmp_path_factory.mktemp("ddo") / "whole"
    made, task = ddo(folder)
    figures, references, update = Figures(*FIDS), [], task.update
    task.update = lambda step: references.append(weights(task.reference)) or update(step)
    begun, begin = [], task.begin
    processes.serve(BEGIN, lambda *words: begin(*words) or begun.append(state_of(task)))
    run = go(task, made, folder, figures)
    table = {model.numpy().tobytes(): value for model, value in reversed(list(zip(figures.seen, FIDS, strict=True)))}
    return parts(task), lines(folder), folder, table, (figures, references, begun, run)


def test_a_round_begins_with_the_best_model_so_far_and_the_best_of_all_is_kept(whole):
    figures, references, begun, run = whole[4]
    start, one, _, _, four, _, _, kept = figures.seen
    for step, reference in enumerate([start, start, one, one, four, four]):
        assert torch.equal(references[step], reference), step
    assert torch.equal(weights(run.task.averaged()), four)
    assert torch.equal(kept, four)
    assert (run.step, run.went_back, run.kept_step) == (6, 4, 4)
    assert whole[1][-1] == {"step": 6, "early_stop/kept": 4}
    assert begun == [(0, 0, True)] * 2
    steps = [line for line in whole[1] if "ddo/loss" in line]
    assert [line["ddo/round"] for line in steps] == [0, 0, 1, 1, 2, 2]
    rates = [line["network/learning_rate"] for line in steps]
    assert rates[:ROUND] == rates[ROUND : 2 * ROUND] == rates[2 * ROUND :]
    losses = [line["ddo/loss"] for line in steps]
    assert losses[::ROUND] == pytest.approx([3 * math.log(2)] * 3, rel=1e-6)  # the reference itself
    assert all(abs(loss - 3 * math.log(2)) > 1e-5 for loss in losses[1::ROUND])


def state_of(task):
    """Of a task: moments, updates of the average, and whether its three networks are one."""
    network, average, reference = (weights(task.denoisers[role]) for role in ("network", "average", "reference"))
    one = torch.equal(network, average) and torch.equal(network, reference)
    return len(tensors_of(task.updater.optimizer)), int(task.ema.updates), one


def goes_on_as(whole, folder):
    before, log, _, table, _ = whole
    made, task = ddo(folder, resume_from_checkpoint="latest")
    go(task, made, folder, Table(table))
    assert same(before, parts(task))
    assert lines(folder) == log


@pytest.mark.parametrize("step", [1, ROUND, ROUND + 1, 2 * ROUND])
def test_a_run_that_was_stopped_goes_on_to_the_last_bit(whole, tmp_path, step):
    shutil.copytree(whole[2], tmp_path / "run")
    without(tmp_path / "run", step)
    assert {file.name for file in (tmp_path / "run" / "reference").iterdir()} == {f"round-00{n}" for n in range(3)}
    goes_on_as(whole, tmp_path / "run")


@pytest.mark.parametrize("where", ["before its evaluation", "before the next round", "as the next round is saved"])
def test_a_kill_at_the_end_of_a_round_is_made_up_for(whole, tmp_path, where, monkeypatch):
    folder = tmp_path / "run"
    made, task = ddo(folder)
    with monkeypatch.context() as patch:
        if where == "before the next round":
            patch.setattr(Rounds, "begin", killed)
        elif where == "as the next round is saved":
            save = TrainingRun.save
            patch.setattr(TrainingRun, "save", lambda run, replace=False: killed() if replace else save(run))
        with pytest.raises(KeyboardInterrupt):
            go(task, made, folder, Table(whole[3], ROUND + 1 if where == "before its evaluation" else None))
    assert CheckpointStore(folder / "checkpoints", 10).folders()[-1].name == f"step-00000{ROUND}"
    goes_on_as(whole, folder)


def killed(*_args):
    raise KeyboardInterrupt


def test_negatives_that_are_kept_are_read_and_those_of_another_reference_are_not(tmp_path):
    made, task = ddo(tmp_path)
    first = task.negatives.of_round(0)
    assert first.images.dtype == torch.uint8
    assert len(first) == 8  # whole batches
    file = tmp_path / "reference" / "round-000" / "000001.safetensors"
    stamp = file.stat().st_mtime_ns
    again = ddo(tmp_path)[1].negatives
    again._draw = killed  # none is drawn
    assert torch.equal(again.of_round(0).images, first.images)
    other = DDOTask(made, data(), Device("no"), tiny_teacher(seed=2))
    other.keep(tmp_path, {})
    assert not torch.equal(other.negatives.of_round(0).images, first.images)
    assert file.stat().st_mtime_ns != stamp


def test_negatives_have_the_datas_proportions_of_classes_and_each_round_its_own(tmp_path):
    labels = torch.tensor([0] * 5 + [1] + [2] * 2)
    images = torch.zeros(8, 1, 8, 8, dtype=torch.uint8)
    made = config(tmp_path, objective={"reference_images": 16}, train_batch_size=8)
    task = DDOTask(made, ImageSet(images, labels, None, None, "few", ""), Device("no"), tiny_teacher(seed=1))
    rounds = [task.negatives.of_round(n) for n in (0, 1)]
    assert torch.bincount(rounds[0].labels, minlength=3).tolist() == [10, 2, 4]
    assert not torch.equal(rounds[0].images, rounds[1].images)


def vp():
    return VP(torch.linspace(0.999, 0.01, 50), "v_prediction")


@pytest.mark.parametrize("process", [None, vp(), Flow()], ids=["edm", "vp", "flow"])
def test_the_step_is_the_gradient_of_the_loss_in_units_of_the_networks_output(tmp_path, process, monkeypatch):
    """At the reference: beta / 2 (grad of the data's error - alpha grad of its own samples'), summed over C, H, W."""
    start = tiny_teacher(seed=1)
    start = start if process is None else Denoiser(tiny_unet(4, seed=1), process, null_class=3)
    made = config(tmp_path, class_dropout=0.5)
    task = DDOTask(made, data(), Device("no"), start)
    monkeypatch.setattr(task.updater, "step", lambda step: {})
    calls = []
    hook = task.model.register_forward_pre_hook(lambda _, inputs: calls.append(inputs))
    torch.manual_seed(0)
    metrics = task.update(0)
    hook.remove()
    assert metrics["ddo/loss"].item() == pytest.approx(3 * math.log(2), rel=1e-6)  # (1 + alpha) ln 2
    ((x_t, sigma, cond),) = calls
    assert (cond == 3).any()  # of some the label is dropped, for guidance
    real, _ = task.data.draw(4, 0, 0)
    own, _ = task.negatives.of_round(0).draw(4, mix(0, 5), 0)
    x0 = torch.cat([real, own])
    assert not torch.allclose(
        (x_t - x0)[:4] / sigma[:4, None, None, None], (x_t - x0)[4:] / sigma[4:, None, None, None]
    )
    got = torch.cat([p.grad.flatten() for p in task.model.parameters()])
    task.model.zero_grad()
    target = start.process.from_x0(x0, x_t, sigma)
    output = start.process.from_x0(task.model(x_t, sigma, cond), x_t, sigma)
    error = (output - target).square().flatten(1).sum(1)
    (0.05 / 2 * (error[:4].mean() - 2.0 * error[4:].mean())).backward()
    expected = torch.cat([p.grad.flatten() for p in task.model.parameters()])
    assert (got - expected).norm() < 2e-3 * expected.norm()


def test_nothing_of_the_network_is_dropped(tmp_path):
    task = ddo(tmp_path)[1]
    assert not any(part.training for model in task.denoisers.values() for part in model.modules())


FINE = {"output_dir": "x", "initialize_from": "tiny", "objective": OBJECTIVE, "train_batch_size": 4}
FINE |= {"max_train_steps": 6, "evaluation": {"every": 1}}


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"initialize_from": None}, "ddo makes a model better that is there; set initialize_from"),
        ({"mixed_precision": "bf16"}, "mixed_precision=bf16 rounds away; set mixed_precision=no"),
        ({"max_train_steps": 1}, "max_train_steps is 1, which is no multiple of objective.round_steps=2"),
        ({"max_train_steps": 5}, "max_train_steps is 5, which is no multiple of objective.round_steps=2"),
        ({"evaluation": {"every": 0}}, "evaluation.every is 0, and a round of objective.round_steps=2 is stopped at"),
        ({"evaluation": {"every": 4}}, "evaluation.every is 4, and a round"),
        ({"evaluation": {"every": 1, "metrics": ["kid"]}}, "objective.metric is 'fid', and what is measured is kid"),
        (
            {"evaluation": {"every": 1, "stop": {"metric": "fid", "margin": 1.0}}},
            "evaluation.stop ends a run, and objective.name=ddo stops each round",
        ),
        ({"train_batch_size": 10}, "objective.reference_images is 9 and train_batch_size 10"),
        ({"objective": OBJECTIVE | {"alpha": 0.0}}, "greater than 0"),
        ({"objective": OBJECTIVE | {"alpha": 101.0}}, "less than or equal to 100"),
        ({"objective": OBJECTIVE | {"beta": 0.0}}, "greater than 0"),
        ({"objective": OBJECTIVE | {"beta": -0.1}}, "greater than 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(more, sentence):
    assert Train.model_validate(FINE).objective.name == "ddo"
    with pytest.raises(ValidationError, match=re.escape(sentence)):
        Train.model_validate(FINE | more)


def test_data_without_some_classes_of_the_model_are_refused(tmp_path):
    some = replace(data(), labels=data().labels % 2)  # of three classes
    with pytest.raises(ConfigError, match=r"no image of 1 of the 3 classes of initialize_from \(class 2\)"):
        DDOTask(config(tmp_path), some, Device("no"), tiny_teacher())


def test_a_model_that_cannot_be_measured_is_told_at_once(tmp_path):
    class Unmeasured(Watcher):
        def evaluate(self, model):
            raise DataError("no features")

    made, task = ddo(tmp_path)
    with pytest.raises(DataError, match="could not be measured by fid"):
        go(task, made, tmp_path, Unmeasured())
