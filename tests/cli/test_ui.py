"""The page of a run and a model, by Gradio's client where it is installed; one sentence where it is not."""

import importlib.util
import sys

import pytest

from diffdistill.cli import ui
from diffdistill.errors import CheckpointError, ConfigError

TEACHER = "builtin:fashion_mnist_teacher"


def test_without_gradio_it_is_a_sentence(monkeypatch, ask):
    monkeypatch.setitem(sys.modules, "gradio", None)
    code, _, err = ask("ui", TEACHER)
    assert code == 2
    assert err.startswith("diffdistill: error: ui needs gradio (")
    assert err.endswith("; pip install 'diffdistill[ui]'\n")
    assert ask("ui", "nowhere")[0] == 4


def test_the_model_of_a_run_is_what_it_published(tmp_path):
    run = tmp_path / "run"
    (run / "student").mkdir(parents=True)
    (run / "metrics.jsonl").write_text("")
    with pytest.raises(CheckpointError, match="has published no model yet"):
        ui.model_of(str(run))
    (run / "student" / "model_index.json").write_text("{}")
    assert ui.model_of(str(run)) == str(run / "student")
    assert ui.model_of(TEACHER) == TEACHER


def test_what_is_drawn_is_what_sample_draws():
    from diffdistill import sample

    drawing = ui.Drawing(TEACHER, "cpu")
    grid, words = drawing(2, 3, 1, "9,0")
    assert (
        words == "Samples(2 images of 1x28x28, by builtin:fashion_mnist_teacher, sampler heun, evaluations 1, seed 3)"
    )
    assert sample(drawing.model(), num_images=2, seed=3, steps=1, class_labels=[9, 0])._repr_html_().count("<img") == 1
    assert grid.size[0] > 56
    with pytest.raises(ConfigError, match="'nine' is no list of class labels"):
        drawing(2, 3, 1, "nine")
    with pytest.raises(ConfigError, match="ask for 1 to 100"):
        drawing(1000, 3, 1, "")


def test_the_report_within_the_page_runs_nothing_and_closes_nothing(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    (tmp_path / "config.yaml").write_text("data: {path: '\"></iframe><script>'}\n")
    inside = ui.report(str(tmp_path))
    assert inside.count("<") == 2  # the iframe alone
    assert ' sandbox srcdoc="' in inside


@pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="needs gradio")
def test_the_page_serves_this_machine_alone():
    from gradio_client import Client

    demo = ui.built(TEACHER, "cpu")
    _, address, shared = demo.launch(server_name=ui.HERE, share=False, quiet=True, prevent_thread_lock=True)
    try:
        assert address.startswith("http://127.0.0.1:")
        assert shared is None
        client = Client(address, verbose=False)
        picture, words = client.predict(1, 0, 1, "4", api_name="/draw")
        assert picture
        assert "1 image of 1x28x28" in words
        with pytest.raises(Exception, match="'x' is no list of class labels"):
            client.predict(1, 0, 1, "x", api_name="/draw")
    finally:
        demo.close()
