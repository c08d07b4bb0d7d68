"""The list of mutants: `list/*.toml`, a table a file of the package, a line an error.

    ["diffdistill/methods/sid.py"]
    "alpha is that of the Fisher divergence" = ["Field(1.0", "Field(0.5"]

The key says what the error breaks. The first text must stand exactly once in the file and within one line; the second
takes its place. A list file may begin with `needs = "transformers"`: without that package its mutants are not run.
"""

import ast
import contextlib
import functools
import tomllib
from dataclasses import dataclass
from pathlib import Path

LISTS = Path(__file__).parent / "list"


def area_of(file: str) -> str:
    """The row of the table that a file counts in: a folder of the package (a part of `parts/`), or a module beside."""
    inside = Path(file).parts[1:]
    return Path(*inside[: 2 if inside[0] == "parts" else 1]).with_suffix("").as_posix()


@dataclass(frozen=True)
class Mutant:
    """One error: `old` becomes `new` in `file`, and `name` is what is then wrong."""

    file: str
    name: str
    old: str
    new: str
    needs: str | None = None

    @property
    def title(self) -> str:
        return f"{self.file}: {self.name}"

    @property
    def area(self) -> str:
        return area_of(self.file)

    def fault(self, root: Path) -> str | None:
        """Why it cannot be applied to the tree at `root`, or None."""
        path = root / self.file
        if not path.is_file():
            return "there is no such file"
        source = path.read_text()
        if source.count(self.old) != 1:
            return f"the text stands {source.count(self.old)} times in the file, not once: {self.old!r}"
        if "\n" in self.old or "\n" in self.new:
            return "it is not within one line"
        statement, tree = _statement_at(source, self.line(source))
        try:
            changed = ast.parse(self.applied(statement))
        except SyntaxError as error:
            return f"what it makes does not compile ({error})"
        return "it changes nothing" if ast.dump(changed) == tree else None

    def applied(self, source: str) -> str:
        return source.replace(self.old, self.new)

    def line(self, source: str) -> int:
        """The number of its line, from 1."""
        return source[: source.index(self.old)].count("\n") + 1


@functools.lru_cache(maxsize=4)  # the errors of a file follow each other
def _spans(source: str) -> list[tuple[int, int]]:
    """First and last lines of all statements, with their decorators; the shortest first."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.stmt):
            first = min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", ()))])
            found.add((first, node.end_lineno or node.lineno))
    return sorted(found, key=lambda span: span[1] - span[0])


def _statement_at(source: str, line: int) -> tuple[str, str]:
    """The least statement that a line is in, and its tree as text; a whole module takes many times as long."""
    lines = source.splitlines(keepends=True)
    for first, last in _spans(source):
        if first <= line <= last:
            statement = "".join(lines[first - 1 : last])
            statement = f"if 1:\n{statement}" if statement[0].isspace() else statement
            with contextlib.suppress(SyntaxError):  # an `elif` is none without its `if`
                return statement, ast.dump(ast.parse(statement))
    return source, ast.dump(ast.parse(source))


def catalogue(folder: Path = LISTS) -> list[Mutant]:
    """All mutants, in the order of the lists."""
    found = []
    for path in sorted(folder.glob("*.toml")):
        tables = tomllib.loads(path.read_text())
        needs = tables.pop("needs", None)
        for file, errors in tables.items():
            found += [Mutant(file, name, old, new, needs) for name, (old, new) in errors.items()]
    return found


def lines_of(source: str, line: int) -> tuple[range, bool]:
    """The lines whose tests see an error in `line`, and if they are in a function.

    They are those of the smallest statement that holds it, or of the whole function if it is the head of one.
    """
    found, inside = range(line, line + 1), False

    def visit(node: ast.AST, in_function: bool) -> None:
        nonlocal found, inside
        for child in ast.iter_child_nodes(node):
            if not hasattr(child, "lineno"):
                visit(child, in_function)  # arguments, match cases and the like have no lines of their own
                continue
            if not child.lineno <= line <= child.end_lineno:
                continue
            function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            if isinstance(child, ast.stmt):
                body = getattr(child, "body", None)
                if body is None:
                    found, inside = range(child.lineno, child.end_lineno + 1), in_function
                elif line < body[0].lineno:
                    first = body[0].lineno if function else child.lineno
                    found = range(first, child.end_lineno + 1 if function else body[0].lineno)
                    inside = in_function or function
            visit(child, in_function or function)

    visit(ast.parse(source), False)
    return found, inside


def homes_of_bases(source: str) -> set[str]:
    """Modules from which a source takes the bases of its classes: what is inherited runs with values set here."""
    tree = ast.parse(source)
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    bases = {base.id for one in classes for base in one.bases if isinstance(base, ast.Name)}
    return {module for module, names in imported(tree) if names & bases}


def is_used_in(source: str, module: str, names: set[str]) -> bool:
    """Whether a source imports one of the names from a module."""
    return any(home == module and have & names for home, have in imported(ast.parse(source)))


def imported(tree: ast.AST) -> list[tuple[str, set[str]]]:
    froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    return [(str(node.module), {alias.name for alias in node.names}) for node in froms]


def assigned_at(source: str, line: int) -> set[str]:
    """Names that the statement of a line gives a value, outside classes and functions."""
    for node in ast.parse(source).body:
        if node.lineno <= line <= (node.end_lineno or 0) and isinstance(node, ast.Assign | ast.AnnAssign):
            return {
                name.id for name in ast.walk(node) if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)
            }
    return set()


def module_of(file: str) -> str:
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
