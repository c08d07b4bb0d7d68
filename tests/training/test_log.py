"""The log of a run: what is left of it when the run begins or goes on."""

import json

import pytest

from diffdistill.training.log import Log


def steps(file):
    return [json.loads(line)["step"] for line in file.read_text("utf-8").splitlines()]


@pytest.mark.parametrize(("start", "kept"), [(0, []), (1, [0, 1]), (2, [0, 1, 2]), (9, [0, 1, 2, 3])])
def test_lines_up_to_the_step_that_the_run_goes_on_from_stay(tmp_path, start, kept):
    file = tmp_path / "metrics.jsonl"
    before = Log(file, 0)
    for step in range(4):  # what is measured before the first step is of step 0
        before.write({"step": step, "loss": 0.5})
    log = Log(file, start)
    assert steps(file) == kept
    log.write({"step": start + 1, "fid": 2.0})
    assert steps(file) == [*kept, start + 1]
    assert log.has(start + 1, "fid")
    assert not log.has(start + 1, "loss")


def test_damaged_lines_are_left_out_and_told_but_not_the_last_which_any_kill_cuts(tmp_path, capsys):
    file = tmp_path / "metrics.jsonl"
    whole = '{"step": 1}\n{"step": 2}\n'
    file.write_text(whole + '{"step": 3, "lo')
    Log(file, 5)
    assert file.read_text() == whole
    assert capsys.readouterr().out == ""
    file.write_text("\0\0\0\n" + whole + '{"step": 3}\n')
    Log(file, 5)
    assert steps(file) == [1, 2, 3]
    assert "are damaged and left out; the run is not" in capsys.readouterr().out
