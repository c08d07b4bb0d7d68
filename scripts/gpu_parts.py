"""The parts of `gpu_check.py`: each yields rows, a name and the work that gives the row's figures."""

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from gpu_networks import Absent, Figures, Look, Rows, Size, autocast, cifar10, dit, filled, mfu, sdxl
from gpu_steps import methods, steps, waits
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from diffdistill import devices, launcher
from diffdistill.denoiser import Denoiser
from diffdistill.process import EDM
from diffdistill.training.speed import fast_math, kept_math

ROOT = Path(__file__).resolve().parents[1]


# ---- tests


def gpu_tests(look: Look) -> Rows:
    def run() -> Figures:
        if not look.on_cuda:
            raise Absent("tests marked gpu need a CUDA device")
        words = ["-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests"]
        done = subprocess.run(
            [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=look.seconds(), check=False
        )
        last = ([line for line in done.stdout.splitlines() if line.strip()] or [done.stderr[-200:]])[-1]
        return {"exit code": done.returncode, "pytest": last.strip("= ")}

    yield "pytest -m gpu", run


# ---- networks of real size


def cifar10_network(look: Look) -> Rows:
    yield from network_rows(look, cifar10(look.tiny), ("float32", "tf32", "bfloat16"), weights=torch.float32)


def sdxl_network(look: Look) -> Rows:
    yield from network_rows(look, sdxl(look.tiny), ("bfloat16",), weights=torch.bfloat16)


def dit_network(look: Look) -> Rows:
    yield from network_rows(look, dit(look.tiny), ("bfloat16",), weights=torch.bfloat16)


def network_rows(look: Look, size: Size, kinds: tuple[str, ...], weights: torch.dtype) -> Rows:
    """A forward pass; a step of AdamW on all weights; one on adapters of rank 16, by our own `SharedWeights`."""
    network = filled(size, look.device, weights)

    def of(what: str, kind: str) -> Figures:
        flops = operations(size, what)
        with kept_math():
            fast_math(tf32=kind != "float32", benchmark=look.on_cuda)
            passes = Passes(network, size, look.device, weights, kind)
            found = look.clock.figures(getattr(passes, what)(), size.batch)
        used = mfu(flops, found["ms"], look.device, kind)
        return found | used | {"batch": size.batch, "million weights": passes.count / 1e6}

    for kind in kinds:
        yield f"forward, {kind}", lambda kind=kind: of("forward", kind)  # type: ignore[misc]
        yield f"whole, {kind}", lambda kind=kind: of("whole", kind)  # type: ignore[misc]
    yield f"LoRA, {kinds[-1]}", lambda: of("lora", kinds[-1])


def operations(size: Size, what: str) -> int:
    """Of one time, counted on tensors without numbers; what checkpointing computes again is no use, and not in it."""
    meta = torch.device("meta")
    with meta:
        network = size.build()
    with FlopCounterMode(display=False) as counter:
        getattr(Passes(network, size, meta, torch.float32, "float32"), what)()()
    return counter.get_total_flops()


class Passes:
    """Work on one network: each method gives what is timed. Big networks compute activations anew, but not on meta."""

    def __init__(self, network: nn.Module, size: Size, device: torch.device, dtype: torch.dtype, kind: str):
        self.network: Any = network
        self.size, self.device, self.kind = size, device, kind
        self.inputs, self.named = size.inputs(size.batch, device, dtype)
        self.count = sum(weight.numel() for weight in network.parameters())
        self.cast = kind if dtype == torch.float32 else "none"  # weights of bfloat16 need no autocast

    def call(self, network: Any) -> Tensor:
        with autocast(self.device, self.cast):
            return network(*self.inputs, **self.named)[0]

    def forward(self) -> Callable[[], None]:
        def work() -> None:
            with torch.no_grad():
                self.call(self.network)

        return work

    def whole(self) -> Callable[[], None]:
        self.network.requires_grad_(True)
        self._recompute()
        return self._step(self.network, list(self.network.parameters()))

    def lora(self) -> Callable[[], None]:
        from diffdistill.pipelines.text.lora import SharedWeights

        shared = SharedWeights(self.network)
        adapted = shared.adapted(16, None, self.size.targets)
        self._recompute(shared.checkpointed)
        return self._step(adapted, list(adapted.low_rank.to(self.device).parameters()))

    def _recompute(self, *by: Any) -> None:
        if self.device.type != "meta" and self.size.name != "cifar10":
            self.network.enable_gradient_checkpointing(*by)

    def _step(self, network: Any, weights: list[nn.Parameter]) -> Callable[[], None]:
        optimizer = torch.optim.AdamW(weights, lr=1e-6, foreach=self.device.type in devices.KNOWN)

        def work() -> None:
            self.call(network).float().square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

        return work


# ---- sampling and features


def sampling(look: Look) -> Rows:
    from diffdistill.sampling.generate import generate

    def of(size: Size, role: str, precision: str) -> Figures:
        about = {"role": "student", "levels": [2.5]} if role == "student" else {}
        torch.manual_seed(0)
        model = Denoiser(size.build(), EDM(), null_class=None if about else 10, metadata=about).eval().to(look.device)
        count = 4 if look.tiny else 256 if about else 64

        def work() -> None:
            with autocast(look.device, precision):
                steps = None if about else 3 if look.tiny else 18
                list(generate(model, num_images=count, batch_size=count, steps=steps))

        return look.clock.figures(work, count)

    size = cifar10(look.tiny)
    for role, said in (("teacher", "Heun, 18 steps"), ("student", "1 step")):
        for kind in ("float32", "bfloat16"):
            row = f"CIFAR-10, {role}, {said}, {kind}"
            yield row, lambda role=role, kind=kind: of(size, role, kind)  # type: ignore[misc]


def features(look: Look) -> Rows:
    """Inception of 2015 with random weights: its time and memory, and its resizes there against those of the CPU."""
    from diffdistill.evaluation.extractors.inception_net import InceptionNet
    from diffdistill.evaluation.resize import resize

    side, count = (75, 2) if look.tiny else (299, 64)

    def embed() -> Figures:
        net = InceptionNet(largest=True).eval().to(look.device)
        images = torch.rand(count, 3, side, side).to(look.device)
        with torch.no_grad():
            return look.clock.figures(lambda: net(images), count)

    def resized(mode: str) -> Figures:
        images = torch.randint(0, 256, (count, 3, 32, 32), generator=torch.Generator().manual_seed(0)).float()
        here, cpu = (resize(images.to(where), (side, side), mode).cpu() for where in (look.device, "cpu"))
        work = look.clock.figures(lambda: resize(images.to(look.device), (side, side), mode), count)
        return work | {"largest difference": float((here - cpu).abs().max())}

    yield "Inception-sized network", embed
    for mode in ("tf", "clean"):
        yield f"resize {mode}", lambda mode=mode: resized(mode)  # type: ignore[misc]


# ---- one rank of a group


@contextmanager
def group(device: torch.device) -> Iterator[str]:
    """A process group of this process alone; its backend."""
    from torch import distributed

    backend = launcher.BACKENDS.get(device.type, "gloo")
    with tempfile.TemporaryDirectory() as folder:
        store = distributed.FileStore(str(Path(folder) / "store"), 1)
        distributed.init_process_group(backend, store=store, rank=0, world_size=1)
        try:
            yield backend
        finally:
            distributed.destroy_process_group()


def one_rank(look: Look) -> Rows:
    """What several GPUs need, as far as one shows it: a sum, sharded weights, a checkpoint of them."""
    from torch import distributed

    def summed() -> Figures:
        with group(look.device) as backend:
            x = torch.ones(1 << (10 if look.tiny else 24), device=look.device)
            found = look.clock.figures(lambda: distributed.all_reduce(x))
            return {"backend": backend, "sum is right": bool((x == 1).all().cpu()), **found}

    def sharded() -> Figures:
        from torch.distributed import checkpoint
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        with group(look.device), tempfile.TemporaryDirectory() as folder:
            torch.manual_seed(0)
            net: Any = nn.Sequential(nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1)).to(look.device)
            x = torch.randn(8, 64).to(look.device)
            plain = net(x).detach().cpu()
            mesh = init_device_mesh(look.device.type, (1,))
            for layer in (net[0], net[2], net):
                fully_shard(layer, mesh=mesh)
            net(x).sum().backward()
            off = float((net(x).detach().cpu() - plain).abs().max())
            checkpoint.save({"net": net.state_dict()}, checkpoint_id=Path(folder) / "dcp")
            with torch.no_grad():
                net[0].weight.zero_()
            state = {"net": net.state_dict()}
            checkpoint.load(state, checkpoint_id=Path(folder) / "dcp")
            net.load_state_dict(state["net"])
            again = float((net(x).detach().cpu() - plain).abs().max())
            return {"sharded against plain": off, "loaded against plain": again}

    yield "all_reduce", summed
    yield "fully_shard, checkpoint", sharded


def xformers(look: Look) -> Rows:
    def attend() -> Figures:
        try:
            from xformers.ops import memory_efficient_attention
        except ImportError as error:
            raise Absent("xformers is not installed") from error
        q, k, v = (torch.randn(2, 1024, 8, 64, device=look.device, dtype=torch.bfloat16) for _ in range(3))
        heads_first = [x.transpose(1, 2).float() for x in (q, k, v)]
        exact = nn.functional.scaled_dot_product_attention(heads_first[0], heads_first[1], heads_first[2])
        found = memory_efficient_attention(q, k, v).transpose(1, 2).float()
        off = {"relative difference": float((found - exact).norm() / exact.norm())}
        return look.clock.figures(lambda: memory_efficient_attention(q, k, v)) | off

    yield "memory_efficient_attention", attend


PARTS: dict[str, Callable[[Look], Rows]] = {
    "tests": gpu_tests,
    "methods": methods,
    "waits": waits,
    "cifar10": cifar10_network,
    "sdxl": sdxl_network,
    "dit": dit_network,
    "sampling": sampling,
    "features": features,
    "one_rank": one_rank,
    "xformers": xformers,
    "steps": steps,
}
