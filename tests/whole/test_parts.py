"""The parts are usable alone: what they import."""

import ast

import pytest

FLOOR = ("diffdistill.errors", "diffdistill.machine", "diffdistill.process")
NETWORKS = {
    "attention": ["attention/names.py", "attention/probe.py", "attention/kernels.py"],
    "scalelong": ["scalelong.py", "scalelong_places.py"],
    "edm": ["edm/layers.py", "edm/preconditioning.py", "edm/networks.py"],
}
LOWER = ("coordinates", "epsilon_scaling", "time_shift", "scheduler", "corrections")


def imports(file):
    """The modules of the package that a file imports, at its head or inside functions."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "diffdistill.parts":
            yield from (f"diffdistill.parts.{name.name}" for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            # But for files that are also found in the folder of a model, beside each other.
            assert node.level == 0 or file.parent.name == "one_encoder", file
            yield f"diffdistill.parts.one_encoder.{node.module}" if node.level else node.module
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)


def of_package(file):
    return {name for name in imports(file) if name.split(".")[0] == "diffdistill"}


@pytest.mark.parametrize("part", NETWORKS)
def test_networks_and_kernels_import_the_ground_floor_alone(part, root):
    for name in NETWORKS[part]:
        found = of_package(root / "diffdistill" / "parts" / name)
        assert {m for m in found if not m.startswith(f"diffdistill.parts.{part}")} <= set(FLOOR), name


def test_corrections_know_no_sampler(root):
    folder = root / "diffdistill" / "parts" / "exposure_bias"
    assert {file.stem for file in folder.glob("*.py")} == {"__init__", *LOWER}
    allowed = (*FLOOR, "diffdistill.files", "diffdistill.pipelines.folder", "diffdistill.parts.exposure_bias")
    for name in LOWER:
        found = of_package(folder / f"{name}.py")
        assert [m for m in found if not m.startswith(allowed)] == [], name
        assert not any(m.startswith("diffdistill.parts.exposure_bias.calibration") for m in found), name


def test_sampling_is_the_one_seam_through_which_the_core_sees_exposure_bias(root):
    package = root / "diffdistill"
    seen = {
        file.relative_to(package).parts[0]
        for file in package.rglob("*.py")
        if any(name.startswith("diffdistill.parts.exposure_bias") for name in of_package(file))
    }
    assert seen == {"parts", "sampling", "schedulers.py"}
