"""The documentation says what is there: links lead somewhere, commands are understood, files exist, snippets run."""

import ast
import importlib
import importlib.util
import inspect
import json
import re
import shlex
import textwrap
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from test_layers import FLOORS, MODULES

import diffdistill
from diffdistill.cli.config_tool import keys
from diffdistill.cli.front import _verb, normalized, parser_of
from diffdistill.config import load_config
from diffdistill.config.align import Align
from diffdistill.config.schema import Distill, Train
from diffdistill.data import load_images
from diffdistill.divergences import get_divergence
from diffdistill.evaluation import metrics
from diffdistill.evaluation.features import load_features
from diffdistill.pipelines.text.adapter import ADAPTERS
from diffdistill.registry import PLUGINS, allow_code, named
from diffdistill.rewards import load_reward
from diffdistill.sampling.sampler import SAMPLERS

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "examples/*/README.md", "assets/README.md")
    for path in ROOT.glob(pattern)
)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def anchors(page: Path) -> set[str]:
    """As forges make them of headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def code_lines(page: Path) -> Iterator[str]:
    """Lines of code blocks, fenced or indented, whole where a backslash cuts them, without comments."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    fenced = False
    for line in text.splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            yield re.sub(r"\s+#.*$", "", line).strip()


def commands() -> list[tuple[str, str]]:
    found = [
        (name(page), line)
        for page in PAGES
        for line in code_lines(page)
        if re.match(r"(\w+=\S+ )?diffdistill [a-z]", line) and "..." not in line
    ]
    assert len(found) > 50
    return found


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_leads_somewhere(page):
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), f"{name(page)} links to {target}"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), f"{name(page)} links to {target}"


@pytest.mark.parametrize(("page", "line"), commands())
@pytest.mark.usefixtures("snippets")
def test_every_command_is_understood(page, line, monkeypatch):
    """Flags are known; the config exists and takes the settings; FILE.py:NAME is what the page shows."""
    if "--allow-code" not in line:
        allow_code(False)
        monkeypatch.chdir(ROOT)
    words = shlex.split(line.partition("diffdistill ")[2].split("&&")[0].split(" xargs")[0])
    verb = _verb(words[0])
    args = parser_of(verb).parse(normalized(words[1:]))
    if verb.settings:
        assert load_config(named(verb.settings), args.config, args.overrides)


# ---- settings


def known_keys() -> set[str]:
    """Every run of names within a dotted key, of every verb: `student.lora.rank`, `lora.rank`, `student`, ..."""
    lines = [
        line.partition(":")[0].split(".")
        for model in (Train, Distill, Align)
        for line in keys(model)
        if line[0] != "#"
    ]
    return {
        ".".join(words[start:end])
        for words in lines
        for start in range(len(words))
        for end in range(start + 1, len(words) + 1)
    }


def test_every_setting_that_pages_name_exists():
    known = known_keys()
    sections = "adversarial critic data evaluation level lora method network optimizer ratio regression reward student"
    named = {
        (name(page), key)
        for page in PAGES
        if page.name != "design.md"  # it names modules
        for key in re.findall(
            rf"`((?:{sections.replace(' ', '|')})(?:\.[a-z_0-9]+)+)(?:`|[=:])", page.read_text(encoding="utf-8")
        )
    }
    assert len(named) > 50
    assert [one for one in named if one[1] not in known and not one[1].endswith(".json")] == []


YAML = [
    (name(page), block)
    for page in PAGES
    for block in re.findall(r"^```yaml\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
]


@pytest.mark.parametrize(("page", "block"), YAML, ids=[page for page, _ in YAML])
def test_every_config_of_a_page_is_taken(page, block, tmp_path):
    base = ROOT / "configs" / "fashion_mnist" / "diff_instruct_star.yaml"
    (tmp_path / "mine.yaml").write_text(f"base: {base}\n{block}", encoding="utf-8")
    load_config(Distill, str(tmp_path / "mine.yaml"), [f"output_dir={tmp_path / 'run'}"])


# ---- the snippets


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


BLOCKS = [(name(page), block) for page in PAGES for block in python_blocks(page)]


@pytest.fixture
def snippets(here, consent, monkeypatch):
    """The current folder has every file that a page shows under its name, `# my_metric.py`; their code is allowed."""
    for _, block in BLOCKS:
        if file := re.match(r"# (\w+\.py)\n", block):
            Path(file[1]).write_text(block, encoding="utf-8")
    monkeypatch.setattr(metrics, "_GIVEN", {})


def bindings(tree: ast.Module) -> dict[str, object]:
    """What a snippet imports of the package, by the names it gives them."""
    names: dict[str, object] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("diffdistill"):
            module = importlib.import_module(str(node.module))
            names |= {alias.asname or alias.name: getattr(module, alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("diffdistill"):
                    importlib.import_module(alias.name)
                    names["diffdistill"] = diffdistill
    return names


@pytest.mark.parametrize(("page", "block"), BLOCKS, ids=[page for page, _ in BLOCKS])
def test_snippets_import_what_there_is_and_call_it_as_it_is_called(page, block):
    tree = ast.parse(textwrap.dedent(block))
    names = bindings(tree)
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        match call.func:
            case ast.Name(id=known) if known in names:
                called = names[known]
            case ast.Attribute(value=ast.Name(id=owner), attr=known) if owner in names:
                called = getattr(names[owner], known)
            case _:
                continue
        keywords = {keyword.arg: None for keyword in call.keywords if keyword.arg}
        inspect.signature(called).bind(*call.args, **keywords)


def test_the_metric_of_the_page(snippets):
    row = metrics.metric("my_metric.py:METRIC")
    images = torch.tensor([7, 9], dtype=torch.uint8).repeat(2, 1, 4, 2)
    assert row.score(images, None).tolist() == pytest.approx([(16 / 15) ** 0.5] * 2)
    assert "contrast" in metrics.metrics()


def test_the_divergence_of_the_page(snippets):
    row = get_divergence("my_divergence.py:CUBE_ROOT")
    logit = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
    weight = row.weight(logit)
    assert weight.item() == pytest.approx(np.exp(0.2))
    assert torch.autograd.grad(weight, logit)[0] == row.weight_slope(logit)
    assert torch.allclose(torch.autograd.grad(row.adversarial(logit), logit)[0], -row.weight(logit))


def test_the_method_of_the_page(snippets):
    settings = ["method.name=my_method.py:Tempered", "method.divergence=alpha:0.5", "output_dir=x"]
    choices = load_config(Distill, "fashion_mnist/f_distill", settings).config.method.choices()
    assert (choices.form, choices.divergence, choices.normalize) == ("score_gap", "alpha:0.5", True)
    assert choices.ratio.clip == (1e-3, 1e3)


def test_the_sampler_of_the_page(snippets):
    """Of normal data the flow is x(sigma) = z sqrt(1 + sigma^2); the error falls faster than Euler's."""
    row = SAMPLERS.get("my_sampler.py:SAMPLER")
    errors = []
    for steps in (8, 16):
        seen = []

        def denoise(x, sigma, seen=seen):
            seen.append(sigma)
            return x / (1 + sigma**2)

        end = row.run(
            denoise, torch.tensor(5**0.5, dtype=torch.float64), torch.linspace(2, 0, steps + 1).tolist(), None
        )
        errors.append(abs(float(end) - 1))
        assert len(seen) == row.evaluations(steps)
    assert errors[1] < errors[0] / 3 < 1e-3


@pytest.mark.parametrize("named", ["my_reward.py:brightness", "mine.py:brightness"])
def test_the_rewards_of_the_pages(snippets, named):
    images = torch.stack([torch.zeros(3, 4, 4), torch.ones(3, 4, 4)]).requires_grad_()
    scores = load_reward(named)(images, ["a", "b"])
    assert scores.tolist() == [0, 1]
    assert torch.autograd.grad(scores.sum(), images)[0].unique().numel() == 1


def test_the_data_format_of_the_page(snippets, monkeypatch):
    monkeypatch.setenv(PLUGINS, "my_format.py")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 28, 28), np.uint8)
    pixels.tofile("images.raw28")
    assert torch.equal(load_images("images.raw28").images[:, 0], torch.from_numpy(pixels))


def test_the_pipeline_of_the_page(snippets, monkeypatch):
    monkeypatch.setenv(PLUGINS, "my_pipeline.py")
    row = ADAPTERS.rows()["MyPipeline"]
    encoder = SimpleNamespace(encode_prompt=lambda prompt, guided, device: (prompt, "mask", None, None))
    mine = SimpleNamespace(pipeline=encoder, device="cpu")
    assert row.adapter.text(mine, "a cow") == {"encoder_hidden_states": "a cow", "encoder_attention_mask": "mask"}

    def network(x_t, *, timestep, return_dict, **cond):
        return (x_t + timestep, cond)

    assert row.adapter.predict(mine, network, torch.ones(2), torch.ones(2), {"a": 1}).tolist() == [2, 2]
    assert row.align


def test_the_features_of_the_page(snippets):
    extractor = load_features("my_features.py:FEATURES")
    assert extractor(torch.full((2, 3, 4, 4), 9, dtype=torch.uint8)).unique().tolist() == [9]


def test_the_level_weight_of_the_page():
    block = next(block for page, block in BLOCKS if page == "docs/extend.md" and "level_weight=lambda" in block)
    space: dict[str, torch.Tensor] = {}
    exec(block, space)
    x0, teacher_x0, critic_x0 = space["x0"], space["teacher_x0"], space["critic_x0"]
    rms = (x0 - teacher_x0).square().mean((1, 2, 3), keepdim=True).sqrt()
    assert torch.allclose(space["gradient"], (critic_x0 - teacher_x0) / rms, atol=1e-6)


def script(name: str) -> ModuleType:
    """One of docs/, as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_public_names_is_up_to_date():
    maker = script("make_api")
    assert maker.page() == maker.PAGE.read_text("utf-8"), "run python docs/make_api.py"


def test_the_page_of_reliability_is_that_of_its_counts():
    maker = script("make_reliability")
    counts = json.loads(maker.COUNTS.read_text("utf-8"))
    assert maker.page(counts) == maker.PAGE.read_text("utf-8"), "run python docs/make_reliability.py"
    assert {row["family"] for row in counts["attacks"]} == set(maker.FAMILIES)


# ---- files


def test_the_design_names_the_floors_in_their_order():
    table = (ROOT / "docs" / "design.md").read_text("utf-8").partition("## Layers")[2].partition("\n\n**")[0]
    floors = [[name for name in floor if name in MODULES and name not in ("", "__main__")] for floor in FLOORS]
    assert [name for floor in floors for name in floor if f"`{name}`" not in table] == []
    places = [[table.index(f"`{name}`") for name in floor] for floor in floors if floor]
    assert all(max(low) < min(high) for low, high in pairwise(places))


def test_every_page_and_script_that_code_names_exists():
    """In the package, configs, Makefiles and scripts; a name may lack its ending."""
    files = [file for place in ("diffdistill", "examples", "benchmarks", "scripts") for file in
             (ROOT / place).rglob("*.py")]  # fmt: skip
    files += [*(ROOT / "configs").rglob("*.yaml"), *ROOT.glob("examples/*/Makefile")]
    files += [ROOT / "Makefile", ROOT / "pyproject.toml"]
    files += [*(ROOT / ".ci").iterdir()]
    named = {
        (name(file), place.rstrip("."))
        for file in files
        if file.is_file()
        for place in re.findall(r"\b(?:docs|examples|benchmarks)/[\w./-]*\w", file.read_text("utf-8"))
    }
    assert len(named) > 30
    assert [one for one in named if not (ROOT / one[1]).exists() and not list(ROOT.glob(f"{one[1]}.*"))] == []


def test_every_script_that_is_named_exists():
    named = {
        (name(page), file)
        for page in PAGES
        for file in re.findall(r"\b(?:scripts|benchmarks|examples|docs|tests)/[\w/]+\.py\b", page.read_text("utf-8"))
    }
    assert len(named) > 10
    assert [one for one in named if not (ROOT / one[1]).exists()] == []


def test_prose_fits_a_terminal():
    long = [
        f"{name(page)}: {line[:60]}"
        for page in PAGES
        for line in page.read_text(encoding="utf-8").splitlines()
        if len(line) > 119
        and not line.lstrip().startswith("|")
        and name(page) not in ("docs/comparison.md", "assets/README.md")
    ]
    assert long == []
