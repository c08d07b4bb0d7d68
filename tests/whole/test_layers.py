"""Imports point down only, also those inside functions: docs/design.md, "Layers"."""

import ast

# From the ground up. A name stands for itself and what lies in it, unless a longer name says otherwise.
LAYERS = (
    "errors files assets registry section",
    "process data models pickle_reader parts.attention parts.scalelong parts.edm",
    "request",
    "denoiser",
    "divergences matching losses optimizers rewards",
    "methods evaluation",
    "config",
    "alignment pipelines sampling reporting schedulers parts.exposure_bias parts.edm.convert parts.edm.command",
    "evaluation.subjects evaluation.run evaluation.command",
    "training parts.exposure_bias.calibration parts.verification parts.bench parts.doctor",
    "api cli",
)
FACES = ("diffdistill", "diffdistill.__main__", "diffdistill.parts", "diffdistill.evaluation")  # names on demand
HEIGHTS = {name: height for height, names in enumerate(LAYERS) for name in names.split()}


def height(module):
    """Of the layer of `diffdistill.a.b`, and of what it imports; None for the lazy face and for other packages."""
    names = module.split(".")[1:] if module.startswith("diffdistill.") else []
    homes = [".".join(names[:count]) for count in range(len(names), 0, -1)]
    return next((HEIGHTS[home] for home in homes if home in HEIGHTS), None)


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_no_import_climbs(root):
    climbs, seen = [], set()
    for file in sorted((root / "diffdistill").rglob("*.py")):
        module = ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        if module in FACES:
            continue
        own = height(module)
        assert own is not None, f"{module} is in no layer: name it above, and in docs/design.md"
        seen.add(own)
        for name in imported(ast.parse(file.read_text("utf-8"))):
            if (other := height(name)) is not None and other > own:
                climbs.append(f"{module} imports {name}")
    assert not climbs, "\n".join(climbs)
    assert seen == set(range(len(LAYERS)))


def test_the_design_names_every_layer(root):
    page = (root / "docs" / "design.md").read_text("utf-8")
    table = page.partition("## Layers")[2].partition("\n\n**")[0]
    assert [name for name in HEIGHTS if f"`{name}`" not in table] == []
