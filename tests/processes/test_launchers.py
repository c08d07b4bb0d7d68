"""torchrun and accelerate launch themselves, from end to end: fresh interpreters that find each other."""

import importlib.util
import os
import subprocess
import sys

import pytest
from shared_commands import together, weights, whole, words, world

pytestmark = pytest.mark.dist

TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "diffdistill"]
ACCELERATE = [
    "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision",
    "no", "--dynamo_backend", "no", "--main_process_port", "0", "-m", "diffdistill",
]  # fmt: skip


@pytest.mark.parametrize("launcher", [TORCHRUN, ACCELERATE], ids=lambda words: words[0].split(".")[0])
def test_a_run(root, tmp_path, launcher):
    if importlib.util.find_spec(launcher[0].split(".")[0]) is None:
        pytest.skip(f"there is no {launcher[0]}")
    config = world(tmp_path)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ACCELERATE")}
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    env = kept | {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "", "HF_HOME": str(tmp_path / "home")}
    argv = [sys.executable, "-m", *launcher, *words(config, tmp_path / "run", "max_train_steps=2")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=600, check=False, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert whole(tmp_path / "run") == ["step-000001", "step-000002"]
    record = (tmp_path / "run" / "environment.json").read_text()
    assert '"processes": 2' in record
    forked = together(words(config, tmp_path / "forked", "max_train_steps=2"), 2, tmp_path / "logs")
    assert forked.codes == [0, 0]
    assert weights(tmp_path / "run", 2) == weights(tmp_path / "forked", 2)
