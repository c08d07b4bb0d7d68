"""The examples in docstrings run: those of public names as docs/api.md shows them, others in their module's names."""

import doctest
import importlib
import importlib.util
import tempfile
from pathlib import Path

import pytest

from diffdistill import divergences
from diffdistill.registry import PLUGINS

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "diffdistill"
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def module_of(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def page_maker():
    spec = importlib.util.spec_from_file_location("make_api", ROOT / "docs" / "make_api.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MAKER = page_maker()
PUBLIC = MAKER.public()
HOMES = {f"{value.__module__}.{value.__qualname__}" for value in PUBLIC.values()}
FILES = [module_of(file) for file in sorted(PACKAGE.rglob("*.py")) if ">>> " in file.read_text(encoding="utf-8")]
OTHERS = {
    test.name: test
    for name in FILES
    for test in doctest.DocTestFinder().find(importlib.import_module(name))
    if test.examples and test.name not in HOMES
}


def needs_example(value):
    """Errors are raised and not called, and a name that is another package's has its page there."""
    is_error = isinstance(value, type) and issubclass(value, BaseException)
    return value.__module__.startswith("diffdistill") and not is_error


def blocks():
    return {place: MAKER.example(*place) for place in PUBLIC}


@pytest.fixture
def nothing_left(here, tmp_path_factory, monkeypatch):
    """The current folder and that of temporary files are empty, and must be so again; names that are registered go."""
    temporary = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setenv("DIFFDISTILL_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(divergences, "_DIVERGENCES", dict(divergences._DIVERGENCES))
    monkeypatch.delenv(PLUGINS, raising=False)
    yield
    assert [*here.iterdir(), *temporary.iterdir()] == []


# Of pipelines of texts, which need transformers (extra `text`).
TEXT = {("diffdistill", "align"), ("diffdistill.parts.one_encoder.pipeline", "OneEncoderPipeline")} | {
    ("diffdistill.pipelines.text.adapter", name) for name in ("Adapter", "load_adapter", "load_pipeline")
}


def run(test):
    result = doctest.DocTestRunner(optionflags=OPTIONS).run(test)
    assert result.attempted > 0
    assert result.failed == 0


def test_every_public_function_and_class_has_an_example_that_says_what_comes_out():
    asked = {place: text for place, text in blocks().items() if needs_example(PUBLIC[place])}
    assert {module for module, _ in PUBLIC.keys() - asked.keys()} == {"diffdistill.errors", "diffdistill.schedulers"}
    parser = doctest.DocTestParser()
    wants = {place: [step.want for step in parser.get_examples(text)] for place, text in asked.items()}
    assert [".".join(place) for place, said in wants.items() if not any(said)] == []


def test_the_step_in_a_loop_of_ones_own_and_the_making_of_a_divergence_have_examples():
    assert {"diffdistill.matching", "diffdistill.divergences"} <= OTHERS.keys()


@pytest.mark.parametrize("place", [place for place, text in blocks().items() if text], ids=".".join)
@pytest.mark.usefixtures("nothing_left")
def test_an_example_of_the_page_runs_as_it_stands_there(place):
    if place in TEXT:
        pytest.importorskip("transformers")
    run(doctest.DocTestParser().get_doctest(MAKER.example(*place), {}, ".".join(place), None, None))


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.usefixtures("nothing_left")
def test_an_example_of_other_docstrings_runs(name):
    run(OTHERS[name])
