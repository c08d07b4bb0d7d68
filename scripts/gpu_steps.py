"""Parts of `gpu_check.py` about training steps: each method against the CPU, its waits, and how fast a step is."""

import copy
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from gpu_networks import Absent, Figures, Look, Rows, Size, cifar10
from torch import Tensor
from torch.overrides import TorchFunctionMode

from diffdistill import load_model
from diffdistill.config.parts import Speed
from diffdistill.config.schema import Distill
from diffdistill.data import ImageSet
from diffdistill.denoiser import Denoiser
from diffdistill.errors import ConfigError
from diffdistill.methods import METHODS
from diffdistill.parts.attention.names import SDPA
from diffdistill.process import EDM
from diffdistill.training.attention import choose_attention
from diffdistill.training.device import Device
from diffdistill.training.randomness import seed_step
from diffdistill.training.speed import fast_math, kept_math, speed_up
from diffdistill.training.tasks.distill import DistillTask

UPDATES = 3

# ---- methods, against the CPU


LIKE = {torch.randn_like, torch.rand_like, torch.randint_like}
DRAWS = {torch.randn, torch.rand, torch.randint, torch.randperm}


class DrawnOnCpu(TorchFunctionMode):
    """Random numbers for any device by the CPU's generator: the same noise everywhere."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in LIKE and args[0].device.type != "cpu":
            blank = torch.empty(args[0].shape, dtype=args[0].dtype)
            return func(blank, *args[1:], **kwargs).to(args[0].device)
        if func in DRAWS and kwargs.get("generator") is None:
            where = kwargs.pop("device", None)
            drawn = func(*args, **kwargs)
            return drawn if where is None else drawn.to(where)
        return func(*args, **kwargs)


def small_teacher(tiny: bool) -> Denoiser:
    """The bundled one; a network of one block in tiny checks."""
    if not tiny:
        return load_model("builtin:fashion_mnist_teacher")
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8,), norm_num_groups=4,
        attention_head_dim=8, down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), num_class_embeds=4,
    )  # fmt: skip
    return Denoiser(network, EDM(), null_class=3).eval()


def noise_data(model: Denoiser, count: int = 256) -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, *model.image_shape), generator=generator, dtype=torch.uint8)
    return ImageSet(images, torch.arange(count) % (model.num_classes or 1), None, None, "noise", "")


def task_of(teacher: Denoiser, where: torch.device, precision: str, batch: int, name: str, **more: Any) -> DistillTask:
    """A distillation on the device, from a copy of the teacher."""
    placed = Device(precision)
    placed.name = where
    config = Distill(output_dir=".", max_train_steps=100, train_batch_size=batch, method={"name": name, **more})
    return DistillTask(config, copy.deepcopy(teacher).to(where), noise_data(teacher), placed)


def trained(teacher: Denoiser, where: torch.device, name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Weights before and after some updates in float32, and the last figures."""
    with DrawnOnCpu(), kept_math():
        fast_math(tf32=False)
        task = task_of(teacher, where, "no", 4, name, **options)
        before = weights_of(task)
        for step in range(UPDATES):
            seed_step(0, step)
            metrics = task.update(step)
    figures = {key: float(value) for key, value in metrics.items()}
    return {"before": before, "after": weights_of(task), "moments": moments_of(task), "figures": figures}


def weights_of(task: DistillTask) -> Tensor:
    """Of all that is trained, in a row."""
    parts = [task.parts[name] for name in ("student", "critic", "discriminator") if name in task.parts]
    return row(value for part in parts for value in part.state_dict().values())


def moments_of(task: DistillTask) -> dict[str, Tensor]:
    """The means of the gradients so far that each optimiser holds."""
    return {
        name: row(slots["exp_avg"] for slots in part.state_dict()["state"].values())
        for name, part in task.parts.items()
        if isinstance(part, torch.optim.Optimizer) and part.state_dict()["state"]
    }


def row(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([value.detach().cpu().double().flatten() for value in tensors if value.is_floating_point()])


def methods(look: Look) -> Rows:
    """float32 without TF32 on both, |a - b| / |b|. `gradients`: of the means of an optimiser's gradients, the largest.
    `update`: of what the updates changed, in which a weight without a gradient moves by the sign of its rounding.
    `figures`: of what is logged, the largest.
    """
    teacher = small_teacher(look.tiny)

    def of(name: str) -> Figures:
        options = {"guidance_scale": 2.0} if name in ("diff_instruct_pp", "diff_instruct_star") else {}
        here, cpu = (trained(teacher, where, name, options) for where in (look.device, torch.device("cpu")))
        means = cpu["moments"]
        gradients = max(float((here["moments"][key] - means[key]).norm() / means[key].norm()) for key in means)
        off, moved = here["after"] - cpu["after"], cpu["after"] - cpu["before"]
        ours, theirs = here["figures"], cpu["figures"]
        both = [key for key in theirs if key in ours and ours[key] == ours[key]]  # not NaN
        figures = max(abs(ours[key] - theirs[key]) / max(abs(theirs[key]), 1e-6) for key in both)
        return {"gradients": gradients, "update": float(off.norm() / moved.norm()), "figures": figures}

    for name in METHODS.names():
        yield name, lambda name=name: of(name)  # type: ignore[misc]


# ---- waits


def waits(look: Look) -> Rows:
    """How often the host waits in a step, by CUDA's own account; the stand-in of the tests says never."""
    if not look.on_cuda:
        raise Absent("torch.cuda counts waits, and no other device does")
    teacher = small_teacher(look.tiny)

    def of(name: str) -> Figures:
        options = {"guidance_scale": 2.0} if name in ("diff_instruct_pp", "diff_instruct_star") else {}
        task = task_of(teacher, look.device, "no", 16, name, **options)
        for step in range(2):
            seed_step(0, step)
            torch.cuda.set_sync_debug_mode("warn" if step else "default")
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                try:
                    task.update(step)
                finally:
                    torch.cuda.set_sync_debug_mode("default")
        seen = [one for one in caught if "synchroniz" in str(one.message)]
        where = sorted({f"{Path(one.filename).name}:{one.lineno}" for one in seen})
        return {"waits": len(seen), "where": " ".join(where)}

    for name in METHODS.names():
        yield name, lambda name=name: of(name)  # type: ignore[misc]


# ---- steps


def edm_teacher(size: Size) -> Denoiser:
    return Denoiser(size.build(), EDM(), null_class=10).eval()


def steps(look: Look) -> Rows:
    """A step of dmd2 on the CIFAR-10 network, by precision, order in memory, kernel of attention and compiler."""
    size = cifar10(look.tiny)
    teacher, batch = edm_teacher(size), 2 if look.tiny else 64
    off = Speed(channels_last=False, tf32=False, cudnn_benchmark=False)
    fast = off.model_copy(update={"tf32": True, "cudnn_benchmark": True})
    last = fast.model_copy(update={"channels_last": True})

    def of(precision: str, speed: Speed, attention: str = "auto") -> Figures:
        if look.tiny and speed.compile != "none":
            raise Absent("nothing is compiled in a tiny check")
        with kept_math():
            task = task_of(teacher, look.device, precision, batch, "dmd2")
            networks = task.networks()
            try:
                kernels = choose_attention(networks, attention, task.device.autocast)
            except ConfigError as why:
                raise Absent(str(why)) from why
            said = speed_up(speed, look.device, [(role, network) for role, (network, _) in networks.items()])
            count = iter(range(1, 90))

            def step() -> None:
                now = next(count)
                seed_step(0, now)
                task.update(now)

            return look.clock.figures(step, batch) | {"attention": kernels, "speed": said}

    yield "float32", lambda: of("no", off)
    yield "float32, TF32", lambda: of("no", fast)
    yield "bf16", lambda: of("bf16", fast)
    yield "bf16, channels_last", lambda: of("bf16", last)
    for kernel in (*SDPA, "xformers"):
        yield f"bf16, attention {kernel}", lambda kernel=kernel: of("bf16", fast, kernel)  # type: ignore[misc]
    yield "bf16, compiled", lambda: of("bf16", fast.model_copy(update={"compile": "regional"}))
    yield "bf16, channels_last, compiled", lambda: of("bf16", last.model_copy(update={"compile": "regional"}))
