"""Imports only point down: no file imports from a floor above its own, and no import leads back to where it began."""

import ast
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "diffdistill"

GROUND = [
    "borrowed", "explain", "failures", "files", "imports", "launcher", "locks", "machine", "devices", "processes",
    "sharding", "outputs", "assets", "registry", "loading", "precision", "showing", "pipelines.folder",
]  # fmt: skip
# Low to high. A module stands on the floor of the longest of these names that it begins with.
FLOORS = [
    ["errors"],
    GROUND,
    ["process", "noise_law", "request", "last_layer"],
    ["parts", "schedulers", "pickle_reader", "models"],
    ["denoiser"],
    ["divergences", "matching", "losses", "loss_weights", "coupling", "consistency"],
    ["data", "rewards"],
    ["section"],
    ["optimizers", "methods", "objectives", "alignment"],
    ["evaluation"],
    ["config"],
    ["reporting"],
    ["pipelines"],
    ["sampling"],
    ["evaluation.run", "evaluation.command", "evaluation.subjects", "evaluation.probes"],
    ["training"],
    ["export"],
    ["parts.edm.convert", "parts.edm.command", "parts.exposure_bias.calibration", "parts.exposure_bias.command",
     "parts.verification", "parts.bench", "parts.doctor"],
    ["api", "cli"],
    ["", "__main__"],
]  # fmt: skip


def name_of(file: Path) -> str:
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(file): file for file in PACKAGE.rglob("*.py")}


@cache
def names_in(file: Path) -> tuple[tuple[str, ...], frozenset[str]]:
    """What a file imports, wherever in it and for whatever: whole modules; and for the run, modules of the package."""
    tree = ast.parse(file.read_text("utf-8"))
    nodes = list(ast.walk(tree))
    unseen = {
        id(inner)
        for node in nodes
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found, names = set(), []
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            names.append(node.module or "")
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        if id(node) in unseen:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "diffdistill":
            home = (node.module or "").removeprefix("diffdistill").lstrip(".")
            for alias in node.names:
                inner = f"{home}.{alias.name}".lstrip(".")
                found.add(inner if inner in MODULES else home)
        elif isinstance(node, ast.Import):
            found |= {a.name.removeprefix("diffdistill.") for a in node.names if a.name.startswith("diffdistill.")}
    return tuple(names), frozenset(found & MODULES.keys())


def imports_of(file: Path) -> frozenset[str]:
    """Modules of the package that a file imports, wherever in it; not those for type checkers alone."""
    return names_in(file)[1]


@cache
def floor_of(module: str) -> int:
    places = [(len(name), floor) for floor, names in enumerate(FLOORS) for name in names if covers(name, module)]
    return max(places)[1]


def covers(name: str, module: str) -> bool:
    return module == name or (name != "" and module.startswith(f"{name}."))


def climbs() -> list[str]:
    """Every import that points up; `from diffdistill import __version__` does not count."""
    return [
        f"{module} -> {other}"
        for module, file in sorted(MODULES.items())
        for other in sorted(imports_of(file) - {""})
        if floor_of(other) > floor_of(module)
    ]


def circles() -> list[list[str]]:
    """Groups of modules that import each other in the end (strongly connected; Tarjan's algorithm)."""
    graph = {module: imports_of(file) - {module, ""} for module, file in MODULES.items()}
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for other in graph[module]:
            if other not in index:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], index[other])
        if low[module] == index[module]:
            group = []
            while not group or group[-1] != module:
                group.append(stack.pop())
            if len(group) > 1:
                groups.append(sorted(group))

    for module in graph:
        if module not in index:
            visit(module)
    return groups


def test_every_module_has_a_floor():
    for module in MODULES:
        assert any(covers(name, module) for names in FLOORS for name in names), f"{module} stands on no floor"


def test_no_import_climbs():
    assert climbs() == []


def test_there_is_no_circle():
    assert circles() == []


@pytest.mark.parametrize("module", ["process", "denoiser", "losses", "divergences", "matching.step"])
def test_mathematics_needs_no_schema(module):
    """Nor anything of what it imports in this package."""
    seen, waiting = set(), [module]
    while waiting:
        one = waiting.pop()
        if one not in seen:
            seen.add(one)
            waiting += imports_of(MODULES[one]) - {""}
    for one in seen:
        names, _ = names_in(MODULES[one])
        assert not {name for name in names if name.split(".")[0] == "pydantic"}, f"{module} -> {one}"
