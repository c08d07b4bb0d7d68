"""What Python and notebooks show of models, images, evaluations and runs: a screen at most."""

import json
from pathlib import Path

import pytest

import diffdistill
from diffdistill.evaluation.table import Evaluation
from diffdistill.showing import facts, table
from diffdistill.training.run import Result

TEACHER = "builtin:fashion_mnist_teacher"
RESULT = {
    "subject": {"images": "x", "model": "m", "sampler": "heun", "evaluations": 3, "seed": 1},
    "metrics": {"fid": {"value": 1.5, "standard_error": 0.1, "n": 10}},
    "protocol": {"num_images": 10, "texts": None},
    "warnings": [],
}


def test_a_model_and_its_images_are_said_in_a_line_and_shown_in_a_notebook():
    model = diffdistill.load_model(TEACHER)
    assert repr(model).startswith(f"Denoiser({TEACHER}, role teacher, network UNet2DModel of 1.48 M")
    assert "<td>10</td>" in model._repr_html_()
    drawn = diffdistill.sample(model, num_images=2, steps=1)
    assert len(repr(drawn)) < 200
    assert 'src="data:image/png;base64,' in drawn._repr_html_()


def test_an_evaluation_is_a_dict_that_says_itself_as_its_table():
    one = Evaluation({"request": {}, **RESULT})
    assert one["metrics"]["fid"]["value"] == 1.5
    assert json.loads(json.dumps(one)) == one
    assert repr(one).splitlines()[-1].split() == ["FID", "1.5", "±", "0.1", "10"]
    several = Evaluation({"request": {}, "models": [RESULT, RESULT]})
    assert repr(several).count("heun") == 2
    assert several._repr_html_().count("<table>") == 2
    assert repr(Evaluation({"a": 1})) == "{'a': 1}"


def test_a_run_is_said_with_its_figures(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 5, "time": 60.0, "loss": 1.0}\n')
    result = Result(tmp_path, tmp_path / "student", {"fid": 1.23456})
    assert repr(result) == f"Run({tmp_path}, model in student, fid 1.235)"
    assert "5 steps" in result._repr_html_()


def test_nothing_shown_is_markup():
    assert "<script>" not in facts("<script>", {"<script>": "<script>"}) + table([("<script>",)], ["<script>"])


@pytest.mark.slow
def test_the_notebook_runs_from_its_first_cell_to_its_last(root, here):
    """As plain Python: no Jupyter is needed to have it tested."""
    held = json.loads((root / "examples" / "fashion_mnist" / "tour.ipynb").read_text("utf-8"))
    cells = [cell for cell in held["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    names: dict = {}
    for cell in cells:
        exec(compile("".join(cell["source"]), "tour.ipynb", "exec"), names)
    assert names["student"].role == "student"
    assert names["figures"]["metrics"]["fid"]["value"] > 0
    assert Path("runs/tour/report.html").is_file()
