"""`bench --config`: the passes of a step are found as they were made, and its phases cover it."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from edm_tiny import tiny_network
from runs import data, settings
from tiny import tiny_teacher

from diffdistill.denoiser import Denoiser
from diffdistill.parts.bench.command import Bench
from diffdistill.parts.bench.phases import BACKWARD, CRITIC, FORWARD, GRADIENT, OPTIMISERS, peaks, phases_of
from diffdistill.parts.bench.runs import described, forget, recorded, step_of
from diffdistill.process import EDM
from diffdistill.training.device import Device
from diffdistill.training.tasks.distill import DistillTask

TRAINS, ENCODED = "forward + backward to the weights", "encoder + encoder backward to the weights"
FISHER = "forward + backward to the input"


def pixel_task(method, options=None, **more):
    one = {"student": {"steps": 1}, "critic": {"updates_per_step": 1}}
    config = settings(method, ".", **one | more)
    if options:
        config = config.model_validate(config.model_dump() | {"method": {"name": method, **options}})
    return DistillTask(config, tiny_teacher(), data(), Device("no"))


def passes_of(task):
    return recorded(task, step_of(task, 0, task.config.max_train_steps // 2), Device("no"))


TO_TAPS = "forward + encoder backward to the input"
PLAIN = [f"2 x {TRAINS}, 4 rows", "1 x encoder, 8 rows", f"1 x {TO_TAPS}, 4 rows", "1 x forward, 4 rows"]
CASES = {
    "plain": ({}, {}, PLAIN),
    "guided, in parts": (
        {"guidance_scale": 2.0},
        {"micro_batch_size": 2},
        [f"4 x {TRAINS}, 2 rows", "2 x encoder, 4 rows", f"2 x {TO_TAPS}, 2 rows", "6 x forward, 2 rows"],
    ),
    "critic's features, R1": (
        {"adversarial": {"features": "critic", "r1": 1.0}},
        {},
        [f"2 x {TRAINS}, 4 rows", f"1 x {ENCODED}, 8 rows", f"1 x {TO_TAPS}, 4 rows", "1 x forward, 4 rows"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_passes_of_a_step_are_those_that_it_made(case):
    options, more, words = CASES[case]
    task = pixel_task("dmd2", options, **more)
    found = passes_of(task)
    assert sorted(described(found).split("; ")) == sorted(words)
    again = []
    for network in {each.network for each in found}:
        network.register_forward_pre_hook(lambda _, inputs: again.append(len(inputs[0])))
    for each in found:
        each.again()
    forget(task)
    assert again == [each.rows for each in found]
    assert all(weight.grad is None for denoiser in task.denoisers.values() for weight in denoiser.parameters())


def test_passes_of_adapters_are_not_counted_twice(tmp_path):
    pytest.importorskip("transformers")
    from text_world import LORA, stable_diffusion
    from text_world import settings as text_settings
    from text_world import task as text_task

    stable_diffusion(tmp_path / "sd")
    (tmp_path / "prompts.txt").write_text("a thing\nanother\n")
    task = text_task(text_settings(tmp_path, **LORA))
    found = passes_of(task)
    assert sum(each.backward == 1 and not each.to_input for each in found) == 3  # the student's, the critic's two
    for each in found:
        each.again()
    assert all(weight.grad is not None for weight in task.student.parameters())
    forget(task)
    assert all(weight.grad is None for weight in task.student.parameters())


def test_phases_are_the_step():
    task = pixel_task("sid")
    phases = phases_of(task, step_of(task, 0, 3), FORWARD, torch.device("cpu"))
    assert list(phases) == [FORWARD, GRADIENT, BACKWARD, OPTIMISERS, CRITIC]
    assert all(phase.seconds > 0 and phase.peak_bytes > 0 for phase in phases.values())
    assert "step" not in vars(task.student_updater)


def test_what_is_held_when_a_phase_begins_is_in_its_peak():
    def event(name, start, size=0):
        return SimpleNamespace(name=lambda: name, start_ns=lambda: start, nbytes=lambda: size)

    events = [event("phase 0", 0), event("[memory]", 1, 10), event("phase 1", 2),
              event("[memory]", 3, -4), event("[memory]", 4, 1), event("other", 5, 100),
              event("phase 2", 6), event("[memory]", 7, 20)]  # fmt: skip
    assert peaks(events, ["first", "second", "first"]) == {"first": 27, "second": 10}


def test_edm_networks_have_their_rows():
    edm = Denoiser(tiny_network("ddpmpp", augment=0), EDM())
    (row,) = Bench(edm, Device("no"), 2, 1, ("dmd2",)).distill()
    assert "2 x features" in row.passes


def test_pipelines_have_their_rows(tmp_path):
    pytest.importorskip("transformers")
    from text_world import stable_diffusion

    text = Denoiser.from_pretrained(stable_diffusion(tmp_path / "sd"))
    bench = Bench(text, Device("no"), 2, 1, ("dmd2",))
    assert [row.name for row in (*bench.passes(), *bench.distill(), *bench.sampling())] == [
        "denoiser, forward",
        "denoiser, forward + backward",
        "distill dmd2, one step",
        "sample, teacher, dpm_solver, 6 passes",
        "sample, student, consistency, 1 pass",
    ]
    assert len(list(bench.attention())) > 1


def test_the_command_measures_a_step_of_a_run(tmp_path, ask):
    tiny_teacher().save_pretrained(tmp_path / "teacher", role="teacher")
    np.savez(tmp_path / "data.npz", images=np.zeros((16, 8, 8), np.uint8), labels=np.arange(16) % 3)
    overrides = (
        f"teacher={tmp_path / 'teacher'}", f"data.path={tmp_path / 'data.npz'}", "train_batch_size=4",
        "student.regression.pairs=8", "student.regression.steps=2", "evaluation.at_end=false", "max_train_steps=9",
    )  # fmt: skip
    target = tmp_path / "bench.json"
    code, out, err = ask("bench", "--quick", "--config", "fashion_mnist/sid", *overrides, "--json", str(target))
    assert code == 0, err
    found = json.loads(target.read_text())
    assert [row["name"] for row in found["rows"]] == ["distill, one step of regression", "distill sid, one step"]
    assert found["rows"][0]["passes"] == f"1 x {TRAINS}, 4 rows"
    assert found["rows"][1]["passes"] == f"2 x {TRAINS}, 4 rows; 2 x {FISHER}, 4 rows"
    assert list(found["rows"][0]["phases"]) == ["forward and backward", "optimisers"]
    assert "max_train_steps: 9" in found["config"]
    assert "student gradient" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["student.steps=2"], "unexpected 'student.steps=2'"),
        (["--config", "fashion_mnist/sid", "--batch-size", "2"], "--batch-size does not go with --config"),
        (["--config", "fashion_mnist/nothing"], "fashion_mnist/nothing"),
    ],
)
def test_words_that_do_not_go_together_are_refused(words, said, ask):
    code, out, err = ask("bench", *words)
    assert (code, out) == (2, "")
    assert said in err
