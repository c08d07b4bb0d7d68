"""Bytes that each process holds of a distillation's weights, gradients, moments and averages: whole, and sharded.

Two processes on cores (gloo) build a student, a critic and a teacher of a UNet, take updates, and count the bytes of
the tensors that lie in their own memory. `a step` is the most that an update holds beyond what is there before it:
gradients, what is gathered for a block's pass, sums, activations (small here). `before`: weights of all networks in
the CPU's memory when they are about to be sharded, which the machine must hold for each of its processes. `rise`: the
most resident memory while the task is made and its networks sharded, beyond that with the teacher read. The line after
the processes is what the arithmetic of `scaling.py` says of a step.

    python benchmarks/sharded_memory.py [--processes 2] [--channels 64]
"""

import argparse
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from diffusers import UNet2DModel
from scaling import groups_of, whole_at_a_time

from diffdistill import processes
from diffdistill.config.schema import Distill
from diffdistill.data import ImageSet
from diffdistill.denoiser import Denoiser
from diffdistill.parts.bench.measure import peak_bytes
from diffdistill.process import EDM
from diffdistill.sharding import local
from diffdistill.training.device import Device
from diffdistill.training.flat import tensors_of
from diffdistill.training.optim.updater import Updater
from diffdistill.training.sharded.plan import Plan
from diffdistill.training.tasks.distill import DistillTask

KINDS = ("weights", "gradients", "moments", "averages", "teacher", "a step", "before", "rise")


def teacher(channels: int) -> Denoiser:
    torch.manual_seed(0)
    network = UNet2DModel(
        8, 1, 1, layers_per_block=1, block_out_channels=(channels, 2 * channels), norm_num_groups=8,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, add_attention=False,
    )  # fmt: skip
    return Denoiser(network, EDM()).eval()


def held(strategy: str, channels: int) -> dict[str, int]:
    """Bytes by kind in this process after an update."""
    config = Distill.model_validate(
        {
            "output_dir": "unused", "max_train_steps": 3, "train_batch_size": processes.size(),
            "critic": {"updates_per_step": 1}, "method": {"name": "diff_instruct"}, "parallel": {"strategy": strategy},
        }
    )  # fmt: skip
    images = torch.randint(0, 256, (8, 1, 8, 8), dtype=torch.uint8)
    frozen = teacher(channels)
    counted = said_of(frozen.network)
    kept: dict[str, int] = dict.fromkeys(KINDS, 0)
    shard = Plan.shard

    def counting(plan: Plan, *given: Any, **named: Any) -> None:
        weights = {p.data_ptr(): p.nbytes for network in plan.networks.values() for p in network.parameters()}
        kept["before"] = sum(weights.values())
        shard(plan, *given, **named)

    resident("VmHWM", forget=True)
    read = resident("VmRSS")
    with mock.patch.object(Plan, "shard", counting):
        task = DistillTask(config, frozen, ImageSet(images, None, None, None, "noise", "0" * 64), Device("no"))
    kept["rise"] = resident("VmHWM") - read
    updaters = (task.student_updater, *task.critic_updaters)

    def note(updater: Updater) -> None:
        kept["gradients"] += sum(local(p.grad).nbytes for p in updater.parameters if p.grad is not None)

    task.update(0)  # the critic's first; the student moves from the next one on
    hooks = [updater.optimizer.register_step_pre_hook(lambda *_, which=updater: note(which)) for updater in updaters]
    task.update(1)
    for hook in hooks:
        hook.remove()
    kept["a step"] = peak_bytes(lambda: task.update(2), torch.device("cpu"))
    for updater in updaters:
        kept["weights"] += sum(local(p).nbytes for p in updater.parameters)
        kept["moments"] += sum(local(value).nbytes for value in tensors_of(updater.optimizer).values())
    kept["averages"] = sum(local(p).nbytes for p in task.ema.module.parameters())
    kept["teacher"] = sum(local(p).nbytes for p in frozen.parameters())
    return kept | counted


def resident(kind: str, forget: bool = False) -> int:
    """Bytes of resident memory: VmRSS, now; VmHWM, the most so far, or since it was last to `forget`."""
    if forget:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{kind}:")) * 1024


def said_of(network: torch.nn.Module) -> dict[str, int]:
    """Bytes that a sharded step takes by the arithmetic: a part of the gradients of one network, and what is whole."""
    blocks, weights = groups_of(network), sum(p.numel() for p in network.parameters())
    return {"said": 4 * weights // processes.size() + whole_at_a_time(blocks, weights - sum(blocks), weight=4)}


def work(channels: int) -> None:
    """In each process: the leader prints a line a strategy, with what every process holds."""
    with processes.together():
        for strategy in ("ddp", "fsdp"):
            mine = held(strategy, channels)
            everyone = [processes.share(mine, source) for source in range(processes.size())]
            if processes.leader():
                print(json.dumps({"strategy": strategy, "processes": everyone}), flush=True)


def launch(count: int, channels: int) -> list[dict]:
    """The lines of `work` in so many processes, as torchrun starts them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
    command = [sys.executable, __file__, "--channels", str(channels)]
    started = [
        subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True,
            env=os.environ | place | {"MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(count)
    ]  # fmt: skip
    said = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise SystemExit("a process failed")
    return [json.loads(line) for line in said[0].splitlines() if line.startswith("{")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--channels", type=int, default=64)
    args = parser.parse_args()
    if processes.launched()[1] > 1:
        work(args.channels)
        return
    ddp, fsdp = (found["processes"] for found in launch(args.processes, args.channels))
    print(f"{args.processes} processes, kB in each{'':10}" + "".join(f"{kind:>12}" for kind in KINDS))
    for name, rows in (("ddp", ddp), ("fsdp", fsdp)):
        for rank, row in enumerate(rows):
            print(f"{name}, process {rank:<20}" + "".join(f"{row[kind] / 1e3:12.1f}" for kind in KINDS))
    largest = {kind: max(row[kind] for row in fsdp) / max(row[kind] for row in ddp) for kind in KINDS}
    print(f"{'a step, by the arithmetic':<31}{'':60}{fsdp[0]['said'] / 1e3:12.1f}")
    print(f"{'largest part of ddp':<31}" + "".join(f"{largest[kind]:12.3f}" for kind in KINDS))


if __name__ == "__main__":
    main()
