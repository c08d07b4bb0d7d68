"""Windows and macOS, as far as one Linux machine can tell: what they lack is taken away, and the main job still runs.

What is simulated is no test of those systems; pyproject.toml names the one that is tested.
"""

import ast
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from diffdistill.process import EDM, VP, Flow, Level, LevelLaw

PACKAGE = Path(__file__).resolve().parents[2] / "diffdistill"
FILES = sorted(PACKAGE.rglob("*.py"))

ABSENT = """
import builtins, os, signal, sys, warnings

MODULES = {"resource", "fcntl", "pwd", "grp", "termios", "posix"}
real_import, real_open = builtins.__import__, os.open

def without(name, globals=None, locals=None, fromlist=(), level=0):
    if name in MODULES and str((globals or {}).get("__name__")).startswith("diffdistill"):
        raise ImportError(f"this system has no {name}")
    return real_import(name, globals, locals, fromlist, level)

def no_folders(path, flags, *more, **kw):
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", path)
    return real_open(path, flags, *more, **kw)

builtins.__import__ = without
import diffdistill.training.run, diffdistill.evaluation.run, diffdistill.sampling.run  # others' may look for the rest
from diffusers import ConsistencyModelPipeline, UNet2DModel
for name in ("SIGUSR1", "SIGUSR2", "SIGHUP", "SIGXCPU", "SIGALRM", "SIGQUIT", "SIGPIPE"):
    delattr(signal, name)
for name in ("sysconf", "getloadavg", "fork", "getuid", "mkfifo"):
    delattr(os, name)
os.open = no_folders
warnings.filterwarnings("error", category=EncodingWarning, module="diffdistill")
from diffdistill.cli import main
import diffdistill.files as files
# Folders cannot be flushed where they cannot be opened.
class Named:
    def __getattr__(self, name):
        return "nt" if name == "name" else getattr(os, name)
files.os = Named()
for words in open(sys.argv[1], encoding="utf-8").read().splitlines():
    code = main(words.split(" "))
    if code:
        sys.exit(code)
"""

COMMANDS = """\
train fashion_mnist/teacher data.path=data.npz output_dir=out/run train_batch_size=4 log_every=1 sample_every=2 \
evaluation.features=pixels evaluation.num_images=12 evaluation.metrics=[fid] evaluation.steps=1 \
network.block_out_channels=[8,16] network.norm_num_groups=4 network.attention_head_dim=8 max_train_steps=2 \
checkpoint_every=1 num_threads=1 evaluation.at_end=false
train fashion_mnist/teacher data.path=data.npz output_dir=out/run train_batch_size=4 log_every=1 sample_every=2 \
evaluation.features=pixels evaluation.num_images=12 evaluation.metrics=[fid] evaluation.steps=1 \
network.block_out_channels=[8,16] network.norm_num_groups=4 network.attention_head_dim=8 max_train_steps=3 \
checkpoint_every=1 num_threads=1 resume_from_checkpoint=latest
sample out/run/model --num-images 4 --steps 1 --out out/samples
evaluate --images out/samples --reference data.npz --features pixels --json out/r.json
report out/run --out out/r.html
checkpoint verify out/run
"""


def test_the_main_job_runs_without_what_other_systems_lack(tmp_path, python, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 8), dtype=np.uint8)
    np.savez("data.npz", images=pixels, labels=np.arange(12) % 3)
    Path("commands").write_text(COMMANDS.replace(" \\\n", " "), encoding="utf-8")
    Path("main.py").write_text(ABSENT, encoding="utf-8")
    # The locale's encoding is ASCII, and a file that is opened in it warns, which is an error here.
    env = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "DIFFDISTILL_CACHE": str(tmp_path / "cache")}
    done = python("-X", "warn_default_encoding", "main.py", "commands", **env)
    assert done.code == 0, done.err[-2000:]
    assert Path("out/r.json").is_file()
    assert Path("out/r.html").is_file()


def calls(tree):
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def unsaid(call):
    """Whether a call opens a text file in the encoding of the machine."""
    if any(keyword.arg == "encoding" for keyword in call.keywords):
        return False
    texts = [arg.value for arg in call.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
    if isinstance(call.func, ast.Name):
        return call.func.id == "open" and not any("b" in text for text in texts[-1:])
    if not isinstance(call.func, ast.Attribute) or getattr(call.func.value, "id", "") in ("files", "os", "archive"):
        return False
    name = call.func.attr
    if name == "open":  # of a path; images and archives are opened otherwise
        return bool(texts) and texts[-1] in ("r", "w", "a", "x", "r+", "w+", "a+")
    return (name == "read_text" and not call.args) or (name == "write_text" and len(call.args) < 2)


@pytest.mark.parametrize("given", ["open(p)", "open(p, 'w')", "p.open('a')", "p.read_text()", "p.write_text(t)"])
def test_a_text_file_without_an_encoding_is_seen(given):
    assert unsaid(ast.parse(given).body[0].value)


def test_every_text_file_says_its_encoding():
    found = [
        f"{file.relative_to(PACKAGE)}:{call.lineno}"
        for file in FILES
        for call in calls(ast.parse(file.read_text("utf-8")))
        if unsaid(call)
    ]
    assert found == []


OF_POSIX = {"resource", "fcntl", "pwd", "grp", "termios", "posix", "pty"}
# Where something of POSIX alone may be named: each asks whether it is there.
ASKING = {"machine.py", "files.py", "training/signals.py", "training/lock.py", "training/run_folder.py"}
POSIX_CALLS = {"sysconf", "getloadavg", "fork", "getuid", "statvfs", "sched_getaffinity", "mkfifo", "nice"}


def test_nothing_of_one_system_alone_is_imported_by_a_module():
    found = [
        f"{file.relative_to(PACKAGE)}: {alias.name}"
        for file in FILES
        for node in ast.parse(file.read_text("utf-8")).body
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name in OF_POSIX
    ]
    assert found == []


def test_signals_and_calls_of_posix_are_asked_for_in_one_place():
    found = []
    for file in FILES:
        if file.relative_to(PACKAGE).as_posix() in ASKING:
            continue
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if not isinstance(node, ast.Attribute) or not isinstance(node.value, ast.Name):
                continue
            of_signal = node.value.id == "signal" and node.attr.startswith("SIG") and node.attr not in SIGNALS
            if of_signal or (node.value.id == "os" and node.attr in POSIX_CALLS):
                found.append(f"{file.relative_to(PACKAGE)}:{node.lineno}: {node.value.id}.{node.attr}")
    assert found == []


SIGNALS = ("SIGINT", "SIGTERM", "SIG_DFL", "SIG_IGN")


def test_only_the_tested_system_is_named(root):
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    systems = [line for line in project["classifiers"] if line.startswith("Operating System")]
    assert systems == ["Operating System :: POSIX :: Linux"]


class NoFloat64(TorchFunctionMode):
    """An accelerator without float64, played by the CPU: whoever makes a tensor of it raises, as MPS does."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.dtype == torch.float64:
            raise TypeError(f"{function}: this device has no float64")
        return made


@pytest.fixture
def without_float64(monkeypatch):
    monkeypatch.setattr("diffdistill.machine.WITHOUT_FLOAT64", {"cpu"})


def processes():
    vp = VP(torch.linspace(0.9999, 0.01, 100).cumprod(0).clamp(min=1e-6), "epsilon")
    vp.log_sigmas = vp.log_sigmas.float()  # that it leaves the CPU as float32 is what `_table` sees to
    return [EDM(), vp, Flow()]


@pytest.mark.parametrize("process", processes(), ids=lambda process: type(process).__name__)
def test_what_runs_on_an_accelerator_needs_no_float64(process, without_float64):
    x, sigma = torch.randn(2, 1, 4, 4), torch.tensor([0.5, 2.0])
    wanted = process.to_network(x, sigma)
    with NoFloat64():
        for one, other in zip(process.to_network(x, sigma), wanted, strict=True):
            assert torch.allclose(one, other, rtol=1e-4)
        process.to_x0(x, x, sigma)
        if hasattr(process, "level_at"):
            process.level_at(torch.tensor([3.0, 50.0]))
        laws = ["lognormal", "karras", "uniform", "loguniform", "shifted"]
        for law in [*laws, *(["timestep"] if isinstance(process, VP) else [])]:
            u, levels = LevelLaw(Level(law=law, sigma_min=0.01, sigma_max=50.0), process=process).draw(4)
            assert levels.dtype == torch.float32
            assert LevelLaw(Level(law=law, sigma_min=0.01, sigma_max=50.0), process=process).slope(u).isfinite().all()


ON_DEVICES = ("process.py", "denoiser.py", "losses.py", "matching", "alignment", "methods", "models", "pipelines")


def _on_the_cpu(value):
    """Whether what is called has `.cpu()` before it."""
    return isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and value.func.attr == "cpu"


def test_tensors_of_a_device_are_made_float64_nowhere():
    files = [file for file in FILES if file.relative_to(PACKAGE).parts[0] in ON_DEVICES]
    found = {
        f"{file.relative_to(PACKAGE)}:{call.lineno}"
        for file in files
        for call in calls(ast.parse(file.read_text("utf-8")))
        if isinstance(call.func, ast.Attribute) and call.func.attr == "double" and not _on_the_cpu(call.func.value)
    }
    assert len(found) == 1  # a scheduler's table, on the CPU
    assert next(iter(found)).startswith("process.py:")
