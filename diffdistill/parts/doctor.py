"""`diffdistill doctor`: what is broken in this installation, and the one command that repairs it.

Packages that may crash are imported in a process of their own, so a broken one is reported.
"""

import argparse
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from diffdistill.assets import ROOTS
from diffdistill.files import read_text, sha256
from diffdistill.outputs import check_output, has_keys, is_stdout, write_answer

PIP = f"{shlex.quote(sys.executable)} -m pip"
GIB = 1 << 30
Versions = Mapping[str, str | None]
Facts = Mapping[str, Any]

# What is run in an interpreter of its own: each prints one line of JSON, or breaks where the package does.
TORCH = """
import json, torch
cuda = torch.cuda.is_available()
facts = {"cuda": torch.cuda.get_device_name(0) if cuda else None, "build": torch.version.cuda or torch.version.hip}
facts["threads"] = torch.get_num_threads()
of_cpu = getattr(torch.cpu, "get_capabilities", dict)()
facts["bf16"] = bool(torch.cuda.is_bf16_supported() if cuda else of_cpu.get("amx_bf16"))
from diffdistill.parts.attention.probe import usable_kernels
print(json.dumps(facts | usable_kernels()))
"""
TORCHVISION = """
import json, torchvision
from torchvision.extension import _has_ops
print(json.dumps({"ops": bool(_has_ops())}))
"""
DIFFUSERS = """
import json
from diffusers import ConsistencyModelPipeline, UNet2DModel
print(json.dumps({}))
"""
XFORMERS = """
import json, torch, xformers.ops
device = "cuda" if torch.cuda.is_available() else "cpu"
q = torch.randn(1, 64, 2, 32, device=device, dtype=torch.float16 if device == "cuda" else torch.float32)
xformers.ops.memory_efficient_attention(q, q, q)
print(json.dumps({}))
"""
SCRIPTS = {"torch": TORCH, "torchvision": TORCHVISION, "diffusers": DIFFUSERS, "xformers": XFORMERS}
NEEDED = ("torch", "diffusers")
OPTIONAL = {
    "pyarrow": "parquet files",
    "matplotlib": "curves in reports",
    "transformers": "text-to-image models, CLIP scores and rewards",
    "peft": "loading saved adapters with diffusers",
}


@dataclass(frozen=True)
class Break:
    """Of packages that cross-check our metrics: `name` up to `last` does not work with `other` from `first` on."""

    name: str
    last: tuple[int, ...]
    other: str
    first: tuple[int, ...]
    title: str
    why: str
    install: str


BREAKS = (
    Break(
        "clean-fid", (0, 1, 35), "scipy", (1, 18), "SciPy",
        "its FID calls an option of sqrtm that SciPy 1.18 removed; our native backend does not", "scipy<1.18",
    ),
    Break(
        "torchmetrics", (1, 9, 0), "transformers", (5,), "transformers",
        "its CLIPScore fails with transformers 5; our own clip_score does not", "transformers<5",
    ),
)  # fmt: skip
SCRIPTS |= {name: f"import {name}\nprint('{{}}')" for name in OPTIONAL}
NAMES = tuple(dict.fromkeys([*SCRIPTS, *OPTIONAL, *(name for b in BREAKS for name in (b.name, b.other))]))


@dataclass(frozen=True)
class Check:
    """status: ok, warn (something optional will not work) or fail (diffdistill will not work)."""

    name: str
    status: str
    detail: str
    fix: str = ""


def examine() -> list[Check]:
    """All checks, in the order they are printed."""
    versions = installed()
    scripts = {name: script for name, script in SCRIPTS.items() if versions[name] or name in NEEDED}
    with ThreadPoolExecutor() as pool:
        facts = dict(zip(scripts, pool.map(probe, scripts.values()), strict=True))
    return [
        Check("python", "ok", ".".join(map(str, sys.version_info[:3]))),
        check_core(),
        *check_torch(versions, facts["torch"]),
        check_torchvision(versions, facts.get("torchvision", {})),
        check_diffusers(versions, facts["diffusers"]),
        check_xformers(versions, facts.get("xformers", {})),
        *check_references(versions),
        *check_optional(versions, facts, ranges()),
        check_disk(Path.cwd()),
        check_assets(next((root for root in ROOTS if root.is_dir()), None)),
    ]


def run(args: argparse.Namespace) -> int:
    """Print the findings; 1 if something fails, else 0."""
    if args.json is not None:
        check_output(args.json, "--json", has_keys("ok", "checks"))
    checks = examine()
    failed = any(check.status == "fail" for check in checks)
    if args.json is not None:
        write_answer(args.json, {"ok": not failed, "checks": [asdict(check) for check in checks]})
    if is_stdout(args.json):
        return int(failed)
    for check in checks:
        print(f"{check.status:<5} {check.name:<12} {check.detail}")
        if check.fix:
            print(f"      {'':<12} mend: {check.fix}")
    return int(failed)


# ---- facts


def installed() -> dict[str, str | None]:
    """Version of every package that matters here; None: not installed."""
    versions: dict[str, str | None] = {}
    for name in NAMES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def release(version: str) -> tuple[int, ...]:
    """Numbers to compare by: `2.13.0+cpu` is (2, 13, 0)."""
    return tuple(int(number) for number in re.findall(r"\d+", version.partition("+")[0])[:3])


def probe(script: str) -> dict[str, Any]:
    """Run a script in a fresh interpreter; its JSON, or {"error": its last complaint}."""
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, timeout=180
        )
    except subprocess.TimeoutExpired:
        return {"error": "no answer within 180 s"}
    if done.returncode == 0:
        for line in reversed(done.stdout.splitlines()):  # what a package prints when it ends comes after
            if line.startswith("{"):
                return json.loads(line)
        return {"error": "it ends without an answer"}
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
    errors = [line for line in lines if re.match(r"[\w.]+(Error|Exception): ", line)]
    return {"error": (errors or lines)[-1][:200]}


# ---- what they mean


def check_core() -> Check:
    """Every package that pyproject.toml asks for, in its range."""
    from packaging.requirements import Requirement

    home = shlex.quote(str(Path(__file__).resolve().parents[2]))
    try:
        requirements = [Requirement(line) for line in metadata.requires("diffdistill") or ()]
    except metadata.PackageNotFoundError:
        return Check(
            "packages", "warn", "diffdistill runs from a folder and is not installed", f"{PIP} install -e {home}"
        )
    wrong = []
    for requirement in requirements:
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            good = requirement.specifier.contains(metadata.version(requirement.name), prereleases=True)
        except metadata.PackageNotFoundError:
            good = False
        if not good:
            wrong.append(f"{requirement.name}{requirement.specifier}")
    if wrong:
        fix = f"{PIP} install {' '.join(shlex.quote(name) for name in wrong)}"
        return Check("packages", "fail", f"missing or out of range: {', '.join(wrong)}", fix)
    return Check("packages", "ok", "all required packages are in range")


def check_torch(versions: Versions, facts: Facts) -> list[Check]:
    again = f"{PIP} install --force-reinstall torch"
    if "error" in facts:
        return [Check("torch", "fail", f"{versions['torch']}: {facts['error']}", again)]
    checks = [Check("torch", "ok", f"{versions['torch']}, {facts['threads']} threads")]
    bf16 = "bf16 in hardware" if facts["bf16"] else "no fast bf16 in hardware: mixed_precision=no is faster"
    if facts["cuda"]:
        checks.append(Check("device", "ok", f"{facts['cuda']}, {bf16}"))
    elif shutil.which("nvidia-smi"):
        why = "torch is a CPU build" if not facts["build"] else "torch does not see it: the driver may be too old"
        fix = f"{PIP} install --upgrade --force-reinstall torch" if not facts["build"] else "nvidia-smi"
        checks.append(Check("device", "warn", f"an NVIDIA GPU is here, but {why}", fix))
    else:
        checks.append(Check("device", "ok", f"CPU, {bf16}"))
    if not facts["kernels"]:
        return [*checks, Check("attention", "fail", "no attention kernel runs", again)]
    sound = ", ".join(facts["kernels"])
    detail = f"{facts['taken']} runs ({facts['dtype']}); kernels that run and agree: {sound}"
    return [*checks, Check("attention", "ok", detail)]


def check_torchvision(versions: Versions, facts: Facts) -> Check:
    """torchvision of another build than torch is worse than none: it breaks the import of diffusers."""
    if versions["torchvision"] is None:
        return Check("torchvision", "ok", "not installed; only the extra `eval` needs it")
    pair = f"torchvision {versions['torchvision']} with torch {versions['torch']}"
    if facts.get("ops"):
        return Check("torchvision", "ok", pair)
    fix = f"{PIP} uninstall -y torchvision"
    return Check("torchvision", "fail", f"{pair} do not fit: {facts.get('error', 'its operators are missing')}", fix)


def check_diffusers(versions: Versions, facts: Facts) -> Check:
    if "error" not in facts:
        return Check("diffusers", "ok", str(versions["diffusers"]))
    fix = f"{PIP} install --force-reinstall --no-deps diffusers=={versions['diffusers']}"
    if "torchvision" in facts["error"]:
        fix = f"{PIP} uninstall -y torchvision"
    return Check("diffusers", "fail", f"{versions['diffusers']}: {facts['error']}", fix)


def check_xformers(versions: Versions, facts: Facts) -> Check:
    if versions["xformers"] is None:
        return Check("xformers", "ok", "not installed; PyTorch's own kernels are used")
    if "error" in facts:
        detail = f"{versions['xformers']} has no kernel for this machine: {facts['error']}"
        return Check("xformers", "warn", detail, f"{PIP} uninstall -y xformers")
    return Check("xformers", "ok", str(versions["xformers"]))


def check_references(versions: Versions) -> list[Check]:
    """Known breaks between the packages that cross-check our metrics, of those that are installed."""
    checks = []
    for known in BREAKS:
        name, other = versions[known.name], versions[known.other]
        if not (name and other):
            continue
        pair = f"{known.name} {name} with {known.title} {other}"
        if release(other) >= known.first and release(name) <= known.last:
            checks.append(Check(known.name, "warn", f"{pair}: {known.why}", f"{PIP} install '{known.install}'"))
        else:
            checks.append(Check(known.name, "ok", pair))
    return checks


def ranges() -> dict[str, str]:
    """The versions that pyproject.toml asks for of packages of the extras, by name."""
    from packaging.requirements import Requirement

    try:
        known = map(Requirement, metadata.requires("diffdistill") or ())
    except metadata.PackageNotFoundError:
        return {}
    return {one.name: str(one.specifier) for one in known if one.marker is not None and "extra" in str(one.marker)}


def check_optional(versions: Versions, facts: Mapping[str, Facts], wanted: Mapping[str, str]) -> list[Check]:
    """What is there, can be imported, and is of a version that works; facts: of the imports, by name."""
    from packaging.specifiers import SpecifierSet

    checks = []
    for name, use in OPTIONAL.items():
        version, error = versions[name], facts.get(name, {}).get("error")
        range_ = wanted.get(name, "")
        check = Check(name, "ok", str(version))
        if not version:
            check = Check(name, "warn", f"not installed: no {use}", f"{PIP} install {shlex.quote(name + range_)}")
        elif not SpecifierSet(range_).contains(version, prereleases=True):
            fix = f"{PIP} install {shlex.quote(name + range_)}"
            check = Check(name, "warn", f"{version} is out of range, {range_} is needed: no {use}", fix)
        elif error is not None:
            fix = f"{PIP} install --force-reinstall {shlex.quote(f'{name}=={version}')}"
            check = Check(name, "warn", f"{version} cannot be imported ({error}): no {use}", fix)
        checks.append(check)
    return checks


def check_disk(folder: Path) -> Check:
    free = shutil.disk_usage(folder).free
    status = "fail" if free < GIB // 4 else "warn" if free < 2 * GIB else "ok"
    fix = "" if status == "ok" else f"du -xh --max-depth=2 {shlex.quote(str(folder.resolve()))} | sort -h | tail"
    return Check("disk", status, f"{free / GIB:.1f} GiB free here", fix)


def check_assets(root: Path | None) -> Check:
    """Every file named in SHA256SUMS is there and unchanged."""
    fix = f"{PIP} install --force-reinstall --no-deps diffdistill"
    if root and (root.parent / ".git").exists():
        fix = f"git -C {shlex.quote(str(root.parent))} checkout -- assets"
    if root is None or not (root / "SHA256SUMS").is_file():
        return Check("assets", "fail", "the bundled files are not installed", fix)
    lines = read_text(root / "SHA256SUMS").splitlines()
    wrong = []
    for digest, name in (line.split("  ", 1) for line in lines):
        if not (root / name).is_file():
            wrong.append(f"{name} is missing")
        elif sha256(root / name) != digest:
            wrong.append(f"{name} is damaged")
    if wrong:
        return Check("assets", "fail", "; ".join(wrong[:5]), fix)
    return Check("assets", "ok", f"{len(lines)} bundled files, SHA-256 right")
