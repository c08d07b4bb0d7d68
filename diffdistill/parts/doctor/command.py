"""`diffdistill doctor`: what is broken in this installation, and the one command that mends it.

Whatever may crash is imported in a process of its own, so a broken package is reported and not suffered.
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
from diffdistill.errors import DiskError
from diffdistill.files import sha256
from diffdistill.parts.doctor.scripts import DIFFUSERS, TORCH, TORCHVISION, XFORMERS

PIP = f"{shlex.quote(sys.executable)} -m pip"
NAMES = (
    *("torch", "torchvision", "diffusers", "transformers", "torchmetrics"),
    *("scipy", "clean-fid", "xformers", "pyarrow", "matplotlib", "peft"),
)
GIB = 1 << 30


@dataclass(frozen=True)
class Check:
    """status: ok, warn (something optional will not work) or fail (diffdistill will not work)."""

    name: str
    status: str
    detail: str
    fix: str = ""


def installed() -> dict[str, str | None]:
    """Version of every package that matters here; None: not installed."""
    found: dict[str, str | None] = {}
    for name in NAMES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


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
        return json.loads(done.stdout.strip().splitlines()[-1])
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
    errors = [line for line in lines if re.match(r"[\w.]+(Error|Exception): ", line)]
    return {"error": (errors or lines)[-1][:200]}


def check_core() -> Check:
    """Every package that pyproject.toml asks for, in its range."""
    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(line) for line in metadata.requires("diffdistill") or ()]
    except metadata.PackageNotFoundError:
        return Check("packages", "warn", "diffdistill runs from a folder and is not installed", f"{PIP} install -e .")
    wrong = []
    for requirement in wanted:
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


def check_torch(versions: Mapping[str, str | None], facts: Mapping[str, Any]) -> list[Check]:
    if "error" in facts:
        return [
            Check("torch", "fail", f"{versions['torch']}: {facts['error']}", f"{PIP} install --force-reinstall torch")
        ]
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
    kernels = facts["kernels"]
    if kernels:
        detail = f"{facts['taken']} runs ({facts['dtype']}); kernels that run and agree: {', '.join(kernels)}"
        checks.append(Check("attention", "ok", detail))
    else:
        checks.append(Check("attention", "fail", "no attention kernel runs", f"{PIP} install --force-reinstall torch"))
    return checks


def check_torchvision(versions: Mapping[str, str | None], facts: Mapping[str, Any]) -> Check:
    """torchvision of another build than torch is worse than none: it breaks the import of diffusers."""
    if versions["torchvision"] is None:
        return Check("torchvision", "ok", "not installed; only the extra `eval` needs it")
    pair = f"torchvision {versions['torchvision']} with torch {versions['torch']}"
    if facts.get("ops"):
        return Check("torchvision", "ok", pair)
    fix = f"{PIP} uninstall -y torchvision"
    return Check("torchvision", "fail", f"{pair} do not fit: {facts.get('error', 'its operators are missing')}", fix)


def check_diffusers(versions: Mapping[str, str | None], facts: Mapping[str, Any]) -> Check:
    if "error" in facts:
        fix = f"{PIP} install --force-reinstall --no-deps diffusers=={versions['diffusers']}"
        if "torchvision" in facts["error"]:
            fix = f"{PIP} uninstall -y torchvision"
        return Check("diffusers", "fail", f"{versions['diffusers']}: {facts['error']}", fix)
    return Check("diffusers", "ok", str(versions["diffusers"]))


def check_xformers(versions: Mapping[str, str | None], facts: Mapping[str, Any]) -> Check:
    if versions["xformers"] is None:
        return Check("xformers", "ok", "not installed; PyTorch's own kernels are used")
    if "error" in facts:
        detail = f"{versions['xformers']} has no kernel for this machine: {facts['error']}"
        return Check("xformers", "warn", detail, f"{PIP} uninstall -y xformers")
    return Check("xformers", "ok", str(versions["xformers"]))


def check_references(versions: Mapping[str, str | None]) -> list[Check]:
    """Known breaks between the packages that cross-check our metrics."""
    checks = []
    scipy, clean, transformers, torchmetrics = (
        versions[name] for name in ("scipy", "clean-fid", "transformers", "torchmetrics")
    )
    if scipy and clean:
        detail = f"clean-fid {clean} with SciPy {scipy}"
        if release(scipy) >= (1, 18) and release(clean) <= (0, 1, 35):
            detail += ": its FID calls an option of sqrtm that SciPy 1.18 removed; our native backend does not"
            checks.append(Check("clean-fid", "warn", detail, f"{PIP} install 'scipy<1.18'"))
        else:
            checks.append(Check("clean-fid", "ok", detail))
    if transformers and torchmetrics:
        detail = f"torchmetrics {torchmetrics} with transformers {transformers}"
        if release(transformers) >= (5,) and release(torchmetrics) <= (1, 9, 0):
            detail += ": its CLIPScore fails with transformers 5; our own clip_score does not"
            checks.append(Check("torchmetrics", "warn", detail, f"{PIP} install 'transformers<5'"))
        else:
            checks.append(Check("torchmetrics", "ok", detail))
    return checks


def check_optional(versions: Mapping[str, str | None]) -> list[Check]:
    checks = []
    uses = {
        "pyarrow": "parquet files",
        "matplotlib": "curves in reports",
        "transformers": "text-to-image models, CLIP scores and rewards",
        "peft": "LoRA",
    }
    for name, use in uses.items():
        if versions[name]:
            checks.append(Check(name, "ok", str(versions[name])))
        else:
            checks.append(Check(name, "warn", f"not installed: no {use}", f"{PIP} install {name}"))
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
    sums = root / "SHA256SUMS" if root else None
    if root is None or sums is None or not sums.is_file():
        return Check("assets", "fail", "the bundled files are not installed", fix)
    wrong = []
    lines = sums.read_text().splitlines()
    for line in lines:
        digest, name = line.split("  ", 1)
        path = root / name
        if not path.is_file():
            wrong.append(f"{name} is missing")
        elif sha256(path) != digest:
            wrong.append(f"{name} is damaged")
    if wrong:
        return Check("assets", "fail", "; ".join(wrong[:5]), fix)
    return Check("assets", "ok", f"{len(lines)} bundled files, SHA-256 right")


def examine() -> list[Check]:
    """All checks, in the order they are printed."""
    versions = installed()
    scripts = {"torch": TORCH, "torchvision": TORCHVISION, "diffusers": DIFFUSERS, "xformers": XFORMERS}
    wanted = {name: script for name, script in scripts.items() if versions[name] or name in ("torch", "diffusers")}
    with ThreadPoolExecutor() as pool:
        facts = dict(zip(wanted, pool.map(probe, wanted.values()), strict=True))
    return [
        Check("python", "ok", ".".join(map(str, sys.version_info[:3]))),
        check_core(),
        *check_torch(versions, facts["torch"]),
        check_torchvision(versions, facts.get("torchvision", {})),
        check_diffusers(versions, facts["diffusers"]),
        check_xformers(versions, facts.get("xformers", {})),
        *check_references(versions),
        *check_optional(versions),
        check_disk(Path.cwd()),
        check_assets(next((root for root in ROOTS if root.is_dir()), None)),
    ]


def run(args: argparse.Namespace) -> int:
    """Print the findings; 1 if something fails, else 0."""
    checks = examine()
    failed = any(check.status == "fail" for check in checks)
    text = json.dumps({"ok": not failed, "checks": [asdict(check) for check in checks]}, indent=2)
    if args.json == "-":
        print(text)
        return int(failed)
    if args.json:
        try:
            Path(args.json).write_text(text + "\n")
        except OSError as error:
            raise DiskError(f"cannot write '{args.json}' ({error.strerror}); name another file") from error
    for check in checks:
        print(f"{check.status:<5} {check.name:<12} {check.detail}")
        if check.fix:
            print(f"      {'':<12} mend: {check.fix}")
    return int(failed)
