"""`bench`: what it counts is what runs, and what it prints carries its protocol."""

import json

import pytest
import torch
from runs import data, settings
from tiny import tiny_teacher

from diffdistill.denoiser import Denoiser
from diffdistill.parts.bench import measure
from diffdistill.parts.bench.command import COMPARED, STEPS, step_of
from diffdistill.parts.bench.measure import WORDS, Bare, Seconds, Took, compare, described, needed, peak_bytes
from diffdistill.training.device import Device
from diffdistill.training.tasks.distill import student_task

CPU = torch.device("cpu")


@pytest.mark.parametrize("updates", [1, 3])
@pytest.mark.parametrize("name", COMPARED)
def test_a_step_makes_the_passes_it_is_compared_with(name, updates, tmp_path, monkeypatch):
    config = settings(
        name, tmp_path, max_train_steps=STEPS, student={"steps": 1},
        critic={"updates_per_step": updates},
    )  # fmt: skip
    task = student_task(config, tiny_teacher(), data(), Device("no"))
    calls, real = [], Denoiser._call

    def counted(self, x_in, *rest):
        calls.append(len(x_in))
        return real(self, x_in, *rest)

    monkeypatch.setattr(Denoiser, "_call", counted)
    step_of(task)()
    passes = needed(config.method, updates)
    batch = config.train_batch_size
    assert sorted(calls) == sorted(2 * batch if name == "features" else batch for name in passes)


def test_passes_that_train_leave_gradients_and_others_leave_none():
    bare = Bare(tiny_teacher(), 2, torch.no_grad)
    bare.autocast = torch.enable_grad
    weights = list(bare.network.parameters())
    bare.train()
    assert all(weight.grad is not None for weight in weights)
    bare.network.zero_grad()
    bare.run(["to_input", "features_to_input"])
    with torch.no_grad():
        bare.run(["forward", "features"])
    assert all(weight.grad is None for weight in weights)


def test_the_pass_of_features_ends_at_the_tap_and_sees_both_kinds_of_image():
    bare = Bare(tiny_teacher(), 2, torch.no_grad)
    seen = []
    bare.network.conv_in.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    bare.network.conv_out.register_forward_pre_hook(lambda *_: seen.append("end"))
    bare.features()
    assert seen == [4]
    bare.forward()
    assert seen == [4, 2, "end"]


def test_every_kind_of_pass_is_explained():
    passes = {name for method in COMPARED for name in needed(settings(method, ".").method, 2)}
    assert passes == set(WORDS)
    assert described(["train", "forward", "train"]) == "2 x train, 1 x forward"


def test_the_peak_is_of_tensors_alive_at_once():
    kept = torch.empty(1000)  # was there before

    def work():
        first = torch.empty(1_000_000)
        del first
        second, third = torch.empty(500_000), torch.empty(250_000)
        return kept, second, third

    assert peak_bytes(work, CPU) == 4_000_000
    assert peak_bytes(lambda: (torch.empty(500_000), torch.empty(750_000)), CPU) == 5_000_000


def test_the_ratio_is_that_of_neighbouring_runs(monkeypatch):
    """A machine twice as slow in the second half changes the seconds and not the ratio."""
    clock = iter([3.0, 2.0, 6.0, 4.0, 6.6, 4.0])
    monkeypatch.setattr(measure, "timed", lambda work, device: Took(wall := next(clock), wall + 1))
    row = compare("row", lambda: None, lambda: None, "1 x forward", CPU, repeats=3, images=12)
    assert row.ours == Seconds(median=6.0, least=3.0, most=6.6)
    assert row.bare == Seconds(median=4.0, least=2.0, most=4.0)
    assert row.ratio == 1.5
    assert row.ours_cpu == Seconds(median=7.0, least=4.0, most=7.6)
    assert row.bare_cpu == Seconds(median=5.0, least=3.0, most=5.0)
    assert row.ratio_cpu == 1.4
    assert row.record()["speed"] == {"images_per_second": 2.0, "bare": 3.0}


def test_the_command_writes_figures_with_their_protocol(tmp_path, ask):
    tiny_teacher().save_pretrained(tmp_path / "model", role="teacher")
    target = tmp_path / "bench.json"
    code, out, err = ask(
        *("bench", "--quick", "--batch-size", "2", "--model", str(tmp_path / "model"), "--json", str(target))
    )
    assert (code, err) == (0, "")
    found = json.loads(target.read_text())
    assert found["protocol"]["batch"] == 2
    assert found["protocol"]["threads"] == 1
    assert found["protocol"]["dtype"] == "float32"
    assert torch.__version__ in found["protocol"]["versions"]
    names = [row["name"] for row in found["rows"]]
    assert names == [
        "denoiser, forward",
        "denoiser, forward + backward",
        "train, one step",
        "distill dmd2, one step",
        "distill sid, one step",
        "sample, teacher, heun, 11 passes",
        "sample, student, consistency, 1 pass",
    ]
    for row in found["rows"]:
        assert row["name"] in out
        assert 0 < row["ours"]["least"] <= row["ours"]["median"] <= row["ours"]["most"]
        assert row["peak_bytes"] > 0
    # The student's graph waits while the critic trains, so a step holds more than its largest pass.
    assert found["rows"][3]["peak_bytes"] > found["rows"][3]["bare_peak_bytes"]
    assert found["attention"]["auto: flash"]["median"] > 0
    assert found["attention"]["sdpa-cudnn"] is None


def test_a_folder_that_is_not_there_is_refused_before_anything_is_measured(tmp_path, ask):
    code, out, err = ask("bench", "--json", str(tmp_path / "none" / "b.json"))
    assert code == 2
    assert "there is no folder" in err
    assert out == ""
