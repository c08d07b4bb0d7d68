"""What is installed, what it costs to import, and that the bundled files are what they say."""

import hashlib
import re
import shutil
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement

import diffdistill

TAKEN = ("build", "dist", "runs")  # what is made at the top of the clone, and may be a room's name elsewhere
EXTRAS = {"text", "eval", "data", "plot", "quant", "xformers", "dev", "ui", "search"}
EXTRAS |= {"tensorboard", "wandb", "trackio", "mlflow"}


@pytest.fixture
def project(root):
    return tomllib.loads((root / "pyproject.toml").read_text())["project"]


def test_the_package_is_lazy(python):
    script = (
        "import sys, diffdistill; print([n for n in ('torch', 'numpy', 'pydantic', 'diffusers') if n in sys.modules])"
    )
    assert python("-c", script).out == "[]\n"


def test_the_denoiser_comes_at_first_use():
    from diffdistill.denoiser import Denoiser

    assert diffdistill.Denoiser is Denoiser
    assert {"Denoiser", "__version__"} <= set(dir(diffdistill))
    with pytest.raises(AttributeError, match="no attribute 'Denoizer'"):
        _ = diffdistill.Denoizer


def test_importing_changes_nothing(python):
    script = (
        "import logging, os, random, sys; before = (dict(os.environ), random.getstate(), logging.root.handlers[:]);"
        "import diffdistill; print(before == (dict(os.environ), random.getstate(), logging.root.handlers[:]))"
    )
    assert python("-c", script).out == "True\n"


def test_pyproject_says_what_it_must(project, root):
    assert project["requires-python"] == ">=3.11"
    assert project["license"] == "Apache-2.0"
    assert project["scripts"] == {"diffdistill": "diffdistill.cli:main"}
    assert set(project["optional-dependencies"]) == EXTRAS
    core = {Requirement(line).name for line in project["dependencies"]}
    assert core.isdisjoint({"torchvision", "transformers", "scipy", "lightning", "xformers"})
    assert re.fullmatch(r"\d+\.\d+\.\d+", diffdistill.__version__)
    assert (root / "diffdistill" / "py.typed").exists()
    assert f"\nversion: {diffdistill.__version__}\n" in (root / "CITATION.cff").read_text()


def test_the_constraints_fit_the_ranges_and_bring_no_torchvision(project, root):
    lines = (root / "constraints" / "cpu.txt").read_text().splitlines()
    pins = {
        line.split("==")[0].lower().replace("_", "-"): line.split("==")[1]
        for line in lines
        if not line.startswith("#")
    }
    assert pins["torch"] == "2.13.0"
    assert not {"torchvision", "torchaudio", "triton"} & set(pins)
    extras = [line for extra in ("dev", "data", "plot") for line in project["optional-dependencies"][extra]]
    for requirement in map(Requirement, project["dependencies"] + extras):
        assert pins[requirement.name] in requirement.specifier, requirement


def test_every_pinned_package_but_torch_has_its_hashes(root):
    pins = (root / "constraints" / "cpu.txt").read_text().splitlines()
    wanted = {line.lower().replace("_", "-") for line in pins if not line.startswith(("#", "torch=="))}
    entries = [
        entry
        for name in ("light", "text")
        for entry in re.split(r"\n(?=\S)", (root / f"constraints/{name}.lock").read_text())
    ]
    assert {entry.split()[0] for entry in entries} == wanted, "run `make lock`"
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}", entry) for entry in entries)


def test_what_builds_the_package_is_pinned_as_its_environment_is(root):
    build = tomllib.loads((root / "pyproject.toml").read_text())["build-system"]["requires"]
    pins = (root / "constraints" / "cpu.txt").read_text().splitlines()
    assert build
    assert set(build) <= set(pins)


def test_the_licence_is_apache_2(root):
    digest = hashlib.sha256((root / "LICENSE").read_bytes()).hexdigest()
    assert digest == "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"


def test_every_bundled_file_has_its_checksum(root):
    assets = root / "assets"
    known = dict(reversed(line.split("  ", 1)) for line in (assets / "SHA256SUMS").read_text().splitlines())
    files = {path.relative_to(assets).as_posix() for path in assets.rglob("*") if path.is_file()}
    assert files - {"SHA256SUMS", "README.md"} == set(known), "run `make checksums`"
    for name, digest in known.items():
        assert hashlib.sha256((assets / name).read_bytes()).hexdigest() == digest, "run `make checksums`"


def test_files_fit_a_reader(root):
    lengths = {path: len(path.read_text().splitlines()) for path in (root / "diffdistill").rglob("*.py")}
    assert {path.name: length for path, length in lengths.items() if length > 400} == {}


def test_git_sees_every_file_of_the_package_and_of_the_tests(root):
    """A pattern without a slash before it swallows folders of that name wherever they are: files are then never
    committed, and nobody is told."""
    if shutil.which("git") is None or not (root / ".git").exists():
        pytest.skip("this is no clone, or there is no git")
    files = [str(file.relative_to(root)) for name in ("diffdistill", "tests") for file in (root / name).rglob("*.py")]
    assert len(files) > 100
    # The names of folders too: the next file in one of them must be seen.
    names = "\n".join(files + [f"{name}/{folder}/a.py" for name in ("diffdistill", "tests") for folder in TAKEN])
    ask = ["git", "-C", str(root), "-c", "core.excludesFile=", "check-ignore", "--no-index", "--stdin"]
    done = subprocess.run(ask, input=names, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("", 1)  # 1: none is ignored


@pytest.mark.bench
def test_importing_the_denoiser_costs_little_over_torch_and_diffusers(python):
    def cost(script):
        return min(python("-c", script).cpu_seconds for _ in range(3))

    base = cost("import torch; from diffusers import UNet2DModel")
    full = cost("import torch; from diffusers import UNet2DModel; from diffdistill import Denoiser")
    print(f"import: torch and diffusers {base:.2f} s, with diffdistill {full:.2f} s")
    assert full - base < 0.3
    assert cost("import torch, diffdistill") - cost("import torch") < 0.3


@pytest.mark.slow
def test_the_wheel_works_without_the_clone(root, tmp_path, python):
    """Built, unpacked elsewhere, run from an empty folder: configs and assets are inside."""
    pip = [sys.executable, "-m", "pip"]
    subprocess.run([*pip, "wheel", "--quiet", "--no-deps", "-w", str(tmp_path), str(root)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)], check=True)
    script = (
        f"import sys; sys.path.insert(0, {str(site)!r}); import diffdistill; print(diffdistill.__file__);"
        "from diffdistill.cli import main; main(['config', 'show', 'train', 'fashion_mnist/teacher']);"
        "from diffdistill.rewards import load_reward; print(load_reward('examples/emoji/judge.py:noto').name);"
        "from diffdistill.assets import asset; print(asset('fashion_mnist'))"
    )
    done = python("-I", "-c", script)
    first, *_, judge, last = done.out.splitlines()
    assert done.err == ""
    assert first == str(site / "diffdistill" / "__init__.py")
    assert judge == "noto"
    assert last == str(site / "diffdistill" / "assets" / "fashion_mnist")
    assert "configs/fashion_mnist/teacher.yaml:" in done.out
