"""One contract for every network: `D(x_t, sigma, cond) -> x0`."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffdistill.errors import ConfigError
from diffdistill.last_layer import float32_output
from diffdistill.machine import send
from diffdistill.noise_law import NoiseLaw
from diffdistill.precision import Precision, dtype_of, name_of
from diffdistill.process import Process, rescaled
from diffdistill.registry import Registry
from diffdistill.request import Conditions, SamplingRequest, class_conditions
from diffdistill.sharding import Ended, device_of, how, tapped
from diffdistill.showing import facts, in_words

Condition = Tensor | dict[str, Tensor] | None


@dataclass(frozen=True)
class Storage:
    """How denoisers come from folders and go into them, the one seam through which this file reaches a higher one.

    `pipelines` declares the row (`STORAGE` in `pipelines/load.py`), and the registry finds it there: nothing here
    imports a pipeline. load: `(model, device, dtype=) -> Denoiser`; save: `(denoiser, folder, *, role,
    levels, card, **provenance)`.
    """

    name: str
    load: "Callable[..., Denoiser]"
    save: Callable[..., None]


STORAGE: Registry[Storage] = Registry("storage of models", Storage, "diffdistill.pipelines", "STORAGE")


def _end() -> None:
    raise Ended


class Denoiser(nn.Module):
    """A diffusers network seen as `D(x_t, sigma, cond) -> x0`.

    x_t: `(B, C, H, W)` = x0 + sigma * eps, images in [-1, 1]; sigma: `(B,)`, noise level in the same units; cond:
    class labels `(B,)` int64, a dict of keyword arguments of the network, or None. Returns float32 `(B, C, H, W)`.

    The network may be any UNet or transformer of diffusers; `process` says what it predicts (`EDM`, `VP` with epsilon,
    v or sample, `Flow`).

    >>> from diffusers import UNet2DModel
    >>> from diffdistill.process import EDM
    >>> blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (8,)}
    >>> network = UNet2DModel(8, in_channels=3, out_channels=3, layers_per_block=1, norm_num_groups=4, **blocks)
    >>> denoiser = Denoiser(network, EDM(sigma_data=0.5))
    >>> x0, sigma = torch.zeros(2, 3, 8, 8), torch.tensor([0.002, 80.0])
    >>> tuple(denoiser(x0 + sigma[:, None, None, None] * torch.randn(2, 3, 8, 8), sigma).shape)
    (2, 3, 8, 8)
    """

    draws_texts = False  # whether a condition is the number of a text, and not a class label
    guidance_rescale = 0.0  # phi of `process.rescaled`
    described_as = "a student, which is trained at its own levels alone"  # in refusals, of the role `student`

    def __init__(
        self, network: nn.Module, process: Process, *, null_class: int | None = None, metadata: dict | None = None
    ):
        super().__init__()
        self.network: Any = network
        self.process = process
        self.null_class = null_class
        self.metadata: dict[str, Any] = metadata or {}

    def __repr__(self) -> str:
        return in_words(type(self).__name__, self._facts())

    def _repr_html_(self) -> str:
        return facts(type(self).__name__, self._facts())

    def _facts(self) -> dict[str, Any]:
        """What fits on a screen; the layers are those of `print(model.network)`."""
        count = sum(weight.numel() for weight in self.parameters())
        known = hasattr(self.network, "config")  # a network of one's own may say nothing of itself
        return {
            "": self.metadata.get("path"),
            "role": self.role,
            "network": f"{type(self.network).__name__} of {count / 1e6:.3g} M parameters",
            "images": "x".join(map(str, self.picture_shape)) if known else None,
            "classes": self.num_classes if known else None,
            "levels": ", ".join(f"{level:g}" for level in self.levels) or None,
            "noise": f"Student's t, D = {self.noise.dimension:g}" if self.noise.heavy else None,
            "on": str(self.device),
        }

    @property
    def layers(self) -> nn.Module:
        """The module that names of layers belong to; networks that share their weights name it themselves."""
        return getattr(self.network, "shared_layers", self.network)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return device_of(self.layers)

    @property
    def dtypes(self) -> dict[str, str]:
        """What it is held in, for records: `dtype` of its network, and what else differs in one that draws texts."""
        return {"dtype": name_of(dtype_of(self.layers))}

    @property
    def image_shape(self) -> tuple[int, int, int]:
        config = self.network.config
        size = config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return config.in_channels, height, width

    @property
    def picture_shape(self) -> tuple[int, int, int]:
        """Of the images; `image_shape` is of what the network works on, which may be latents."""
        return self.image_shape

    @contextlib.contextmanager
    def at_size(self, size: tuple[int, int] | None) -> Iterator[None]:
        """Within, it draws images of this width and height, None: as they are; ConfigError where it has one size."""
        if size is not None:
            _, height, width = self.picture_shape
            raise ConfigError(
                f"size {size[0]}x{size[1]} is for a text-to-image model, and this one draws {width}x{height}; leave "
                f"it out"
            )
        yield

    def encode(self, images: Tensor) -> Tensor:
        """What the network works on, of images `(B, C, H, W)` in [-1, 1]: themselves."""
        return images

    def decode(self, latents: Tensor) -> Tensor:
        """Images `(B, C, H, W)` in [-1, 1] of what the network made: the same."""
        return latents

    def clip(self, x0: Tensor) -> Tensor:
        """x0 within the bounds that the data has: pixels in [-1, 1]."""
        return x0.clamp(-1, 1)

    def example_condition(self, count: int, device: torch.device) -> Tensor | None:
        """A valid condition to call the network with, `(count,)`; None if it takes none."""
        return None if self.num_classes is None else torch.zeros(count, dtype=torch.int64, device=device)

    def placed(self, cond: Tensor | None) -> Tensor | None:
        """Conditions `(B,)` of the CPU, where the network reads them; a text-to-image model's prompts stay there."""
        return None if cond is None else send(cond, self.device)

    @property
    def example_pass(self) -> Callable[[], Tensor] | None:
        """One call of the network on an example input; None where the generic call of a UNet does."""
        return None

    def captions(self, cond: Tensor | None) -> list[str] | None:
        """The texts of conditions `(B,)`, for a reward; None where conditions are no texts."""
        return None

    @property
    def num_classes(self) -> int | None:
        """Number of classes a user may ask for; the null class of guidance is not one."""
        config = self.network.config
        count = getattr(config, "num_class_embeds", None) or getattr(config, "num_embeds_ada_norm", None)
        return count if count is None or self.null_class is None else count - 1

    @property
    def sigma_min(self) -> float:
        return self.process.sigma_min

    @property
    def sigma_max(self) -> float:
        return self.process.sigma_max

    @property
    def role(self) -> str:
        return self.metadata.get("role", "teacher")

    @property
    def levels(self) -> tuple[float, ...]:
        return tuple(self.metadata.get("levels", ()))

    @property
    def noise(self) -> NoiseLaw:
        """The law of the noise that it was trained under, and that sampling begins with."""
        return NoiseLaw.of_record(self.metadata)

    def check_teacher(self, name: str) -> None:
        """ConfigError for a model that gives no score: (D - x) / sigma^2 is the gradient of no log density."""
        if self.noise.heavy:
            raise ConfigError(
                f"teacher '{name}' was trained under Student's t noise (PFGM++), whose D(x_t, sigma) gives no score, "
                f"and every method here compares scores under Gaussian noise; give one of noise.law=gaussian"
            )
        if self.role == "student":
            raise ConfigError(
                f"teacher '{name}' is {self.described_as}: its D(x_t, sigma) is not the posterior mean E[x0 | x_t] "
                f"that a score is made of; give the diffusion model it was made from"
            )

    @property
    def default_sampler(self) -> str:
        """What samples it where the user names nothing: EDM's Heun, or a student's own few steps."""
        return "consistency" if self.role == "student" else "heun"

    def conditions_for(self, request: SamplingRequest) -> Conditions:
        """What the images of a request show; ConfigError for what the model cannot draw."""
        return class_conditions(
            request, num_classes=self.num_classes, null_class=self.null_class, student=self.role == "student"
        )

    def start_scale(self, sigma: float) -> float:
        """Factor of sigma z, where sampling starts. Students of networks with training steps show the network z."""
        return 1.0 if self.role != "student" else self.process.start_scale(sigma) / sigma

    def network_rows(self, device: torch.device) -> int:
        """How many images may go through the network at a time."""
        return sys.maxsize

    def decoder_rows(self, device: torch.device) -> int:
        """How many images may be decoded at a time."""
        return sys.maxsize

    def pipeline_levels(self, sampler: str, steps: int) -> tuple[float, ...] | None:
        """Where the model's own pipeline calls the network for that sampler; None: it has no levels of its own."""
        return None

    def few_step_levels(self, steps: int | None) -> tuple[float, ...]:
        """The levels of a student for `steps` steps, or for its own number; ConfigError for another number."""
        trained = self.levels
        if steps not in (None, 1, len(trained)):
            allowed = "1 step" if len(trained) == 1 else f"{len(trained)} steps, or 1"
            raise ConfigError(
                f"steps is {steps} and this student was trained for {allowed}; use that, or distil another"
            )
        return trained[: steps or len(trained)]

    @property
    def few_step_settings(self) -> dict[str, Any]:
        """How a student's steps differ from bare ones: keyword arguments of the sampler `consistency`."""
        return {"boundary": getattr(self.process, "boundary", 0.0)}

    def forward(self, x_t: Tensor, sigma: Tensor, cond: Condition = None) -> Tensor:
        x_in, time = self.process.to_network(x_t.float(), sigma.float())
        with float32_output(self.layers):
            output = self._call(x_in, time, cond)
        return self.process.to_x0(output.float(), x_t.float(), sigma.float())

    def _call(self, x_in: Tensor, time: Tensor, cond: Condition) -> Tensor:
        extra = cond if isinstance(cond, dict) else {} if cond is None else {"class_labels": cond}
        output = self.network(x_in.to(dtype_of(self.network)), time, **extra, return_dict=False)[0]
        # Networks with learned variance append it as further channels.
        return output[:, : x_in.shape[1]]

    def guided(
        self, x_t: Tensor, sigma: Tensor, cond: Tensor | None, guidance_scale: float = 1.0, null: Tensor | None = None
    ) -> Tensor:
        """Classifier-free guidance (2207.12598): D_null + w (D_cond - D_null), one 2B batch; w = 1 costs nothing.

        null: conditions `(B,)` in place of the model's own, such as negative prompts.
        """
        return self.guided_tapped(x_t, sigma, cond, guidance_scale, (), null)[0]

    def guided_tapped(
        self,
        x_t: Tensor,
        sigma: Tensor,
        cond: Tensor | None,
        guidance_scale: float,
        taps: Sequence[str],
        null: Tensor | None = None,
        only_taps: bool = False,
    ) -> tuple[Tensor, list[Tensor]]:
        """`guided` beside the conditional pass' outputs of the submodules `taps`; only_taps: as of `tapped`."""
        if guidance_scale == 1.0:
            return self.tapped(x_t, sigma, cond, taps, only_taps)
        null = self.null_condition(cond) if null is None else null
        assert cond is not None  # null_condition has refused it
        if only_taps:  # one pass of both would have the graph of both
            with torch.no_grad():
                without = self(x_t, sigma, null)
            with_cond, features = self.tapped(x_t, sigma, cond, taps, only_taps)
            return self.mixed(without, with_cond, guidance_scale, x_t, sigma), features
        twice = torch.cat([x_t, x_t]), torch.cat([sigma, sigma]), torch.cat([null, cond])
        x0, features = self.tapped(*twice, taps)
        without, with_cond = x0.chunk(2)
        mixed = self.mixed(without, with_cond, guidance_scale, x_t, sigma)
        if self.guidance_rescale:
            guided, plain = (self.process.from_x0(v, x_t.float(), sigma.float()) for v in (mixed, with_cond))
            mixed = self.process.to_x0(rescaled(guided, plain, self.guidance_rescale), x_t.float(), sigma.float())
        return mixed, [f.chunk(2)[1] for f in features]

    def mixed(self, without: Tensor, with_cond: Tensor, guidance_scale: float, _x_t: Tensor, _sigma: Tensor) -> Tensor:
        """x0 of the null and of the conditional pass, mixed."""
        return without + guidance_scale * (with_cond - without)

    def null_condition(self, cond: Tensor | None) -> Tensor:
        if self.null_class is None or cond is None:
            raise ConfigError(
                "guidance_scale other than 1 needs a model with a null class (trained with class_dropout > 0); "
                "leave it at 1"
            )
        return torch.full_like(cond, self.null_class)

    def tapped(
        self, x_t: Tensor, sigma: Tensor, cond: Condition, taps: Sequence[str], only_taps: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        """`(x0, features)`: the outputs of the named submodules beside x0, in the order of `taps`.

        only_taps: x0 carries no graph, and what comes behind the last tap leaves none in memory. In a sharded network
        it does: blocks whose passes end without a graph would not gather their weights for the way back.
        """
        graph = torch.is_grad_enabled() and not (only_taps and not taps)
        ends = only_taps and how(self.layers) is None
        at_last: Any = (lambda: torch.set_grad_enabled(False)) if ends else (lambda: None)
        with torch.set_grad_enabled(graph), self._recording(taps, at_last) as outputs:
            x0 = self(x_t, sigma, cond)
        return x0.detach() if only_taps else x0, [outputs[name] for name in taps]

    def features(self, x_t: Tensor, sigma: Tensor, cond: Condition, taps: Sequence[str]) -> list[Tensor]:
        """The outputs of the named submodules; the pass ends at the last: a third of the cost for a UNet's middle."""
        with self._recording(taps, _end) as outputs, contextlib.suppress(Ended):
            self(x_t, sigma, cond)
        return [outputs[name] for name in taps]

    @contextlib.contextmanager
    def _recording(self, taps: Sequence[str], at_last: Callable[[], Any]) -> Iterator[dict[str, Tensor]]:
        """Within, passes write what the taps give; `at_last` is called when all have given it."""
        outputs: dict[str, Tensor] = {}

        def hook(name: str) -> Callable[..., None]:
            def record(_module: nn.Module, _inputs: Any, output: Any) -> None:
                outputs[name] = self.feature(output).float()
                if len(outputs) == len(taps):
                    at_last()

            return record

        modules = self.check_taps(taps)
        handles = [module.register_forward_hook(hook(name)) for name, module in modules.items()]
        try:
            with tapped(self.layers, modules, outputs):
                yield outputs
        finally:
            for handle in handles:
                handle.remove()

    def feature(self, output: Any) -> Tensor:
        """What a submodule returned, as a map `(B, C, h, w)`."""
        value = output[0] if isinstance(output, tuple) else output
        # Tokens of a U-ViT.
        tokens = value.dim() == 3 and hasattr(self.network, "feature_map")
        return self.network.feature_map(value) if tokens else value

    def check_taps(self, taps: Sequence[str]) -> dict[str, nn.Module]:
        """The submodules of the network by name; ConfigError, with the names there are, if one is missing."""
        modules = dict(self.layers.named_modules())
        modules |= {name: modules[layer] for name, layer in getattr(self.network, "tap_aliases", {}).items()}
        for name in taps:
            if name not in modules or name == "":
                blocks = [n for n in modules if n.count(".") <= 1 and ("block" in n)]
                raise ConfigError(
                    f"discriminator tap '{name}' matches no layer of the network; layers are {', '.join(blocks)}"
                )
        return {name: modules[name] for name in taps}

    @classmethod
    def from_pretrained(
        cls, model: str | Path, device: str | torch.device = "cpu", dtype: str | Precision | None = None
    ) -> "Denoiser":
        """Load a diffusers folder, `builtin:NAME` or a Hub id. CheckpointError if it is none, or damaged.

        dtype: of `precision.PRECISIONS`, what its networks are held and computed in; None: float32.
        """
        return STORAGE.get("diffusers").load(str(model), device, dtype=dtype)

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        role: str,
        levels: Sequence[float] = (),
        card: Callable[[dict[str, Any]], str] | None = None,
        **provenance: Any,
    ) -> None:
        """Write a folder that stock diffusers loads as a pipeline. The folder appears whole or not at all.

        card: makes README.md from the content of diffdistill.json; provenance: further entries of diffdistill.json.
        """
        save = STORAGE.get("diffusers").save
        save(self, Path(folder), role=role, levels=levels, card=card, **provenance)
