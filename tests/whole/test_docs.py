"""The documentation says what is there: links lead somewhere, commands are understood, files exist."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from diffdistill.cli.front import _named, _verb, _verb_parser, normalized
from diffdistill.config import load_config

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
def test_every_command_is_understood(page, line, monkeypatch):
    """Flags are known; the config exists and takes the settings."""
    monkeypatch.chdir(ROOT)
    words = shlex.split(line.partition("diffdistill ")[2].split("&&")[0].split(" xargs")[0])
    verb = _verb(words[0])
    args = _verb_parser(verb).parse(normalized(words[1:]))
    if verb.settings and "--allow-code" not in words:
        assert load_config(_named(verb.settings), args.config, args.overrides)


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
