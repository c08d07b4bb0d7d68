"""Health verdicts: what each sign looks like in the metrics, and that a healthy run is not accused."""

from pathlib import Path

import pytest

from diffdistill.reporting import health
from diffdistill.reporting.rundata import RunData, Series


def run_with(config=None, **metrics):
    series = {
        name.replace("__", "/"): Series([float(i) for i in range(len(v))], [float(i) for i in range(len(v))], list(v))
        for name, v in metrics.items()
    }
    return RunData(Path("run"), "", config or {}, series, [], {}, {}, {}, {})


def falling(start, end, count=40):
    return [start + (end - start) * i / (count - 1) for i in range(count)]


@pytest.mark.parametrize(
    ("values", "kind", "title"),
    [
        ([50, 9, 3, 2], "good", "FID improved to the end"),
        ([50, 9, 2, 2.5], "watch", "FID got worse again"),
        ([50, 9, 2, 8], "bad", "FID got worse again"),
    ],
)
def test_quality_compares_the_last_evaluation_with_the_best(values, kind, title):
    verdict = health.quality(run_with(evaluation__fid=values))
    assert (verdict.kind, verdict.title) == (kind, title)


@pytest.mark.parametrize(
    ("metric", "values", "kind", "said"),
    [
        ("fid", [5.0, 3.0, 4.0], "good", "5 at the start and 3 at best, at step 1,"),
        ("fid", [5.0, 6.0, 5.0], "watch", "5 at the start and 5 at best, at step 0,"),
        ("recall", [0.5, 0.7, 0.6], "good", "0.5 at the start and 0.7 at best, at step 1,"),
    ],
)
def test_a_run_of_rounds_is_compared_with_what_it_began_with(metric, values, kind, said):
    run = run_with({"objective": {"name": "ddo", "metric": metric}}, **{f"evaluation__{metric}": values})
    verdict = health.rounds(run)
    assert verdict.kind == kind
    assert said in verdict.text
    assert health.rounds(run_with({"objective": {"name": "denoising"}}, evaluation__fid=values)) is None


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([0.0] * 4 + falling(0.6, 0.05), "good"),  # the critic begins as the teacher: the gap starts at 0
        (falling(0.6, 0.05), "good"),
        (falling(0.1, 0.9), "watch"),
        ([0.5] * 20 + [0.49] * 20, "watch"),
        ([0.24] * 20 + [0.22] * 20, "good"),  # nothing to close: a critic's own noise
        (falling(0.6, 0.05, 30) + [0.4] * 10, "bad"),
    ],
)
def test_score_gap_is_judged_from_its_peak_on(values, kind):
    assert health.score_gap(run_with(score_gap__relative=values)).kind == kind


@pytest.mark.parametrize(
    ("config", "values", "kind"),
    [({"model": "m"}, falling(0.30, 0.32), "good"), ({"model": "m"}, falling(0.30, 0.40), "watch")],
)
def test_an_aligning_run_must_not_unlearn_what_is_wanted(config, values, kind):
    run = run_with(config, loss__win=values, loss=falling(0.5, 0.9))
    assert health.UNLEARNING(run).kind == kind
    assert [verdict.kind for verdict in health.verdicts(run)] == [kind]  # its loss is no denoising loss


@pytest.mark.parametrize(("pull", "kind"), [(falling(3.0, 0.3), "good"), (falling(0.3, 3.0), "watch")])
def test_a_reward_is_weighed_against_the_teacher(pull, kind):
    assert health.reward(run_with(gradient__reward=pull, gradient__matching=[1.0] * 40)).kind == kind


@pytest.mark.parametrize(
    ("name", "values", "kind"),
    [
        ("critic__loss", [0.3] * 20, "good"),
        ("critic__loss", [0.3] * 12 + [0.5] * 8, "watch"),
        ("critic__loss", [0.3] * 12 + [0.9] * 8, "bad"),
        ("discriminator__accuracy", [0.6] * 8, "good"),
        ("discriminator__accuracy", [0.6] * 4 + [0.9] * 4, "watch"),
        ("discriminator__accuracy", [0.6] * 4 + [0.99] * 4, "bad"),
        ("ratio__mean_3", [1.1] * 8, "good"),
        ("ratio__mean_3", [3.0] * 8, "watch"),
        ("ratio__mean_3", [0.1] * 8, "bad"),
        ("x0__std", [0.6] * 20, "good"),
        ("x0__std", falling(0.7, 0.3), "watch"),
        ("x0__saturation", [0.001] * 4, "good"),
        ("x0__saturation", [0.05] * 4, "watch"),
        ("x0__saturation", [0.3] * 4, "bad"),
        ("loss", [0.3] * 40, "good"),
        ("loss", falling(1.0, 0.2), "watch"),
        ("loss", falling(0.2, 1.0), "bad"),
    ],
)
def test_each_sign_is_recognised(name, values, kind):
    (verdict,) = health.verdicts(run_with(**{name: values}))
    assert verdict.kind == kind
    assert verdict.text.endswith(".")


def test_clipping_counts_steps_above_the_bound_of_the_settings():
    config = {"student": {"optimizer": {"max_grad_norm": 2.0}}, "critic": {"optimizer": {"max_grad_norm": None}}}
    held = health.clipping(run_with(config, student__grad_norm=[3.0] * 9 + [1.0]))
    assert (held.kind, "90%" in held.text) == ("good", True)
    assert health.clipping(run_with(config, student__grad_norm=[3.0] * 5 + [6.0] * 5)).kind == "watch"
    assert health.clipping(run_with(config, student__grad_norm=[1.0] * 10)).kind == "good"
    assert health.clipping(run_with({}, student__grad_norm=[9.0] * 10)) is None


def test_worst_come_first_and_what_was_not_logged_is_not_judged():
    found = health.verdicts(run_with(x0__std=[0.6] * 20, x0__saturation=[0.5] * 4, loss=[1.0]))
    assert [verdict.kind for verdict in found] == ["bad", "good"]
    assert health.verdicts(run_with()) == []
