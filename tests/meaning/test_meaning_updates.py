"""An update of the weights, its rate and its average; noise and figures of a run."""

import math

import pytest
import torch
from small_tasks import distilling, vector

from diffdistill.config.schema import Distill, Optimizer
from diffdistill.errors import NonFiniteError
from diffdistill.training.loop import run_loop
from diffdistill.training.observers import finite
from diffdistill.training.optim.updater import Ema, Updater


def test_an_update_is_adams_with_its_own_betas_decay_and_rate():
    """Three gradients of one weight, by hand: linear decay of the rate over four steps, decoupled weight decay."""
    weight = torch.nn.Parameter(torch.tensor(1.0))
    settings = Optimizer(learning_rate=0.1, betas=(0.3, 0.9), weight_decay=0.2, schedule="linear")
    updater = Updater("x", [weight], settings, 4)
    theta, first, second = 1.0, 0.0, 0.0
    for step, slope in enumerate((0.5, -0.2, 0.7)):
        (slope * weight).backward()
        updater.step(step)
        rate = 0.1 * (1 - step / 4)
        first, second = 0.3 * first + 0.7 * slope, 0.9 * second + 0.1 * slope**2
        unbiased = first / (1 - 0.3 ** (step + 1)), second / (1 - 0.9 ** (step + 1))
        theta = theta * (1 - rate * 0.2) - rate * unbiased[0] / (math.sqrt(unbiased[1]) + 1e-8)
        assert weight.item() == pytest.approx(theta, rel=1e-5)


def test_every_step_of_a_run_draws_noise_of_its_own(tmp_path):
    """And the same ones from the middle on, and in no other run."""

    class Drawing:
        parts, denoisers = {}, {}

        def update(self, step):
            drawn.append(float(torch.rand(())))
            return {"loss": 0.0}

        def averaged(self):
            return None

    def run(seed, folder):
        drawn.clear()
        folder.mkdir()
        settings = {"output_dir": str(folder), "seed": seed, "max_train_steps": 5, "evaluation": {"at_end": False}}
        more = {"sample_every": 0, "teacher": "none", "method": {"name": "sid"}}
        run_loop(Drawing(), Distill.model_validate(settings | more), folder)
        return list(drawn)

    drawn = []
    one, two = run(0, tmp_path / "a"), run(1, tmp_path / "b")
    assert len(set(one + two)) == 10
    assert run(0, tmp_path / "c") == one


def test_infinite_figures_stop_a_run():
    for bad in (float("inf"), -float("inf"), float("nan")):
        with pytest.raises(NonFiniteError, match="x not finite at step 3"):
            finite({"x": torch.tensor(bad), "y": 1.0}, 3)


@pytest.mark.parametrize("phase", ["matching", "regression"])
def test_the_average_is_of_the_weights_after_the_step(phase):
    more = {"optimizer": {"learning_rate": 1e-2}, "ema_decay": 0.6}
    if phase == "regression":
        more |= {"regression": {"steps": 6, "pairs": 4, "solver_steps": 2, "optimizer": more["optimizer"]}}
    task = distilling(student=more)
    average = vector(task.student)
    assert torch.equal(vector(task.averaged()), average)
    first = phase == "matching"  # a step that moves the critic alone
    for n in range(5):
        task.update(n + first)
        # (1 + n) / (10 + n) until it reaches the decay: 0.1, 0.18, 0.25, ...
        decay = min(0.6, (1 + n) / (10 + n))
        average = decay * average + (1 - decay) * vector(task.student)
        torch.testing.assert_close(vector(task.averaged()), average, rtol=1e-5, atol=1e-7)
    assert not torch.allclose(average, vector(task.student), atol=1e-3)


def test_rates_hold_until_they_decay_and_end_at_zero():
    half = Optimizer(learning_rate=1.0, schedule="linear", decay_from=0.5, warmup_steps=4)
    rates = [Updater("x", [torch.nn.Parameter(torch.zeros(1))], half, 20).rate(step) for step in range(21)]
    want = [(k + 1) / 4 if k < 4 else 1.0 if k <= 10 else (20 - k) / 10 for k in range(21)]
    assert rates == pytest.approx(want)
    cosine = Updater("x", [torch.nn.Parameter(torch.zeros(1))], half.model_copy(update={"schedule": "cosine"}), 20)
    assert [cosine.rate(k) for k in (10, 15, 20)] == pytest.approx([1.0, 0.5, 0.0], abs=1e-12)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_nothing_decays_while_the_rate_warms_up(schedule):
    """So a run that is made longer afterwards, or shorter, has begun as it would have."""
    made = Optimizer(learning_rate=1.0, schedule=schedule, warmup_steps=8)
    short, long = (Updater("x", [torch.nn.Parameter(torch.zeros(1))], made, total) for total in (24, 4000))
    assert [short.rate(k) for k in range(8)] == [long.rate(k) for k in range(8)] == [(k + 1) / 8 for k in range(8)]
    assert [short.rate(k) for k in (8, 16, 24)] == pytest.approx([1.0, 0.5, 0.0], abs=1e-12)
    within = Updater("x", [torch.nn.Parameter(torch.zeros(1))], made, 4)  # ends before it is warm
    assert within.rate(3) == 0.5


def test_an_average_takes_buffers_as_they_are():
    network = torch.nn.BatchNorm1d(2)
    ema = Ema(network, 0.9)
    network.running_mean.fill_(3.0)
    ema.update(network)
    assert ema.module.running_mean.tolist() == [3.0, 3.0]


def test_a_gradient_is_clipped_to_its_bound_over_all_weights():
    weights = [torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1))]
    updater = Updater("x", weights, Optimizer(max_grad_norm=1.0), 10)
    seen = []
    right = updater.optimizer.step
    updater.optimizer.step = lambda: (seen.extend(p.grad.clone() for p in weights), right())[1]
    (3 * weights[0][0] + 4 * weights[1][0]).backward()
    metrics = updater.step(0)
    assert float(metrics["x/grad_norm"]) == pytest.approx(5)
    assert torch.cat(seen).tolist() == pytest.approx([0.6, 0.0, 0.8], abs=1e-6)
