"""How each pipeline class of diffusers calls its network, and the registry of the classes that are known.

No forward is copied. An adapter knows what differs from class to class; everything else is the same for all.
"""

import inspect
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffdistill.errors import CheckpointError, ConfigError
from diffdistill.loading import load_whole
from diffdistill.pipelines.folder import locate, read_json, read_metadata
from diffdistill.pipelines.network import held_in
from diffdistill.pipelines.scheduler_values import read_scheduler
from diffdistill.pipelines.text.kept import Condition
from diffdistill.pipelines.text.latents import Latents, vae_dtype
from diffdistill.pipelines.text.task_lora import TaskLora
from diffdistill.pipelines.text.texts import Texts
from diffdistill.precision import OWN, Precision
from diffdistill.registry import PLUGINS, Registry


class Adapter(Texts, Latents):
    """A text-to-image pipeline: texts, latents, and the call of its network; as `StableDiffusionPipeline` has them.

    To support another class, subclass this with its `text` and `arguments` (and `predict`, where the network is called
    otherwise), and declare `ADAPTER = AdapterFor("ItsPipeline", Subclass)` in a file of `adapters/` or of your own.

    pipeline: of diffusers; its networks are frozen here. source: the folder it was read from.

    >>> from diffdistill.pipelines.text.adapter import load_pipeline
    >>> emoji: Adapter = load_pipeline("builtin:emoji_teacher")
    >>> emoji.image_size, emoji.latent_shape
    (32, (8, 8, 8))
    >>> cond = emoji.joined(["an emoji of cow", None])  # None: what guidance leads away from
    >>> emoji.predict(emoji.network, torch.randn(2, 8, 8, 8), torch.tensor([999, 999]), cond).shape
    torch.Size([2, 8, 8, 8])
    """

    def __init__(self, pipeline: Any, source: Path):
        super().__init__(pipeline)
        self.source = source
        self.image_size = self.native_size()

    def hold(self, precision: Precision) -> None:
        """The network in a precision, but for what stays exact (`held_in`); what it is trained from stays as it is."""
        if precision.network != OWN:
            held_in(self.network, getattr(torch, precision.network))

    def __deepcopy__(self, _memo: Any) -> "Adapter":
        """Shared: a copy of a denoiser is another network in the same pipeline."""
        return self

    @property
    def scheduler(self) -> Any:
        return self.pipeline.scheduler

    def native_size(self) -> int:
        size = self.network.config.sample_size
        if type(size) is not int or size < 1:
            raise CheckpointError(
                f"'{self.source / self.part / 'config.json'}' has the sample_size {size!r:.60}, and it must be a "
                f"whole number, of latents a side; write there what the network was trained on"
            )
        return size * self.pipeline.vae_scale_factor

    @property
    def size_multiple(self) -> int:
        """What sides in pixels must be multiples of: the VAE's factor, times that of the network's down-sampling."""
        return self.pipeline.vae_scale_factor * 2 ** (len(self.network.config.block_out_channels) - 1)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """`(C, h, w)` of what the network makes."""
        height, width = (side // self.pipeline.vae_scale_factor for side in self.sides)
        return self.pipeline.vae.config.latent_channels, height, width

    def predict(self, network: Any, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """One call of a network of this pipeline: `(B, C, H, W)`, t `(B,)` in its own units."""
        return network(x_t, t, **cond, return_dict=False)[0]

    def feature(self, output: Any) -> Tensor:
        """What a submodule returned, as a map `(B, C, h, w)`."""
        return output[0] if isinstance(output, tuple) else output

    def arrange(self, noise: Tensor) -> Tensor:
        """Noise `(B, C, h, w)` that the stock scheduler draws between steps, in the order of its own state."""
        return noise

    @property
    def embeds_guidance(self) -> bool:
        """Whether the guidance scale is an input of the network, which then needs no second pass."""
        return False

    @property
    def default_guidance(self) -> float:
        """The scale w of guidance where the stock pipeline is given none."""
        return float(inspect.signature(type(self.pipeline).__call__).parameters["guidance_scale"].default)

    # The input of a guidance-distilled network; others have none.
    guidance = 1.0

    # What was added to the network's weights since they were read (`task_lora`).
    task: TaskLora | None = None

    # Whether it is read off a pipeline that runs, in float32: half precision would tell other times and scales.
    reads_itself = False

    # Whether the pipeline changes null + w (cond - null), outputs of its network, to `guided` of it.
    changes_guided = False

    def guided(self, mixed: Tensor, _cond: Tensor) -> Tensor:
        return mixed

    @classmethod
    def why_not(cls, _pipeline: Any) -> str | None:
        """Why this adapter is not for a pipeline class of diffusers; None: it is."""
        return None

    def student_call(self) -> dict[str, Any]:
        """What a student's pipeline is called with beside its steps: no null pass, for guidance is in the weights."""
        height, width = self.sides
        size = {} if height == width == self.native_size() else {"height": height, "width": width}
        return {"guidance_scale": self.guidance if self.embeds_guidance else 1.0, **size}

    def shift(self, _steps: int = 1) -> float:
        """Of a flow's times towards noise (2403.03206, eq. 23), at this size of image and for so many steps."""
        return float(self.scheduler.config.shift)

    def default_sigmas(self, steps: int) -> list[float] | None:
        """The flow times that the pipeline hands to its scheduler where the user gives none; None: it hands none."""
        return None


class TransformerAdapter(Adapter):
    """What pipelines with a transformer share: latents cut into patches, features that are tokens.

    Of a stand-in for a pipeline of 64 pixels, whose network sees latents of 8 x 8 in patches of 2 x 2:

    >>> from pathlib import Path
    >>> from types import SimpleNamespace as Stub
    >>> network, vae = Stub(config=Stub(sample_size=8, patch_size=2)), Stub(config=Stub(latent_channels=4))
    >>> pipeline = Stub(transformer=network, vae=vae, vae_scale_factor=8, components={})
    >>> adapter = TransformerAdapter(pipeline, Path("my/pipeline"))
    >>> adapter.image_size, adapter.size_multiple, adapter.latent_shape
    (64, 16, (4, 8, 8))
    >>> adapter.feature(torch.randn(1, 16, 32)).shape  # 16 tokens of the image
    torch.Size([1, 32, 4, 4])
    """

    part = "transformer"

    @property
    def patch(self) -> int:
        """Side in latents of what one token stands for."""
        return self.network.config.patch_size

    @property
    def size_multiple(self) -> int:
        return self.pipeline.vae_scale_factor * self.patch

    def feature(self, output: Any) -> Tensor:
        """The tokens of the image, `(B, h w, C)`, as a map `(B, C, h, w)`; blocks may return the text's too."""
        _, height, width = self.latent_shape
        height, width = height // self.patch, width // self.patch
        outputs = output if isinstance(output, tuple) else (output,)
        # The image's tokens come last; a text may happen to be as long.
        tokens = next(value for value in reversed(outputs) if value.shape[1] == height * width)
        return tokens.transpose(1, 2).unflatten(2, (height, width))


@dataclass(frozen=True)
class AdapterFor:
    """A pipeline class of diffusers, its adapter, and whether `align` may train it.

    >>> from diffdistill.pipelines.text.adapter import TransformerAdapter
    >>> class Mine(TransformerAdapter):
    ...     def text(self, prompt):  # what its encoders say of one prompt, a row each
    ...         embeds, mask, _, _ = self.pipeline.encode_prompt(prompt, False, device=self.device)
    ...         return {"encoder_hidden_states": embeds, "encoder_attention_mask": mask}
    >>> ADAPTER = AdapterFor("MyPipeline", Mine)
    >>> ADAPTER.adapter.part, ADAPTER.align
    ('transformer', True)
    """

    name: str
    adapter: type[Adapter]
    align: bool = True


# The name under which the adapter of every class stands that has none of its own.
ANY_OTHER = "any other"
ADAPTERS: Registry[AdapterFor] = Registry("pipeline", AdapterFor, "diffdistill.pipelines.text.adapters", "ADAPTER")


def load_adapter(
    folder: Path, name: str, model: str, adapter: str | None = None, precision: Precision | None = None
) -> Adapter:
    """Read the pipeline in `folder`, of class `name`; never a pickle, never its own code.

    model: what the user calls it; adapter: `FILE.py:NAME` of an `AdapterFor`, in place of the known one; precision:
    what each part is read in, None: float32; the network as its files have it, until `hold`. Raises ConfigError for a
    class without adapter and without transformers, CheckpointError for a folder that is damaged.

    >>> from diffdistill.assets import asset
    >>> load_adapter(asset("emoji_teacher"), "StableDiffusionPipeline", "my model").latent_shape
    (8, 8, 8)
    >>> load_adapter(asset("emoji_teacher"), "KandinskyPipeline", "my model")
    Traceback (most recent call last):
    diffdistill.errors.ConfigError: 'my model' is a KandinskyPipeline, and there are adapters for ...
    """
    known = ADAPTERS.rows() | ({} if adapter is None else {name: ADAPTERS.get(adapter)})
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise ConfigError("a text-to-image pipeline needs transformers: pip install 'diffdistill[text]'") from error
    import diffusers

    cls: Any = getattr(diffusers, name, None)
    if cls is None and name in known:
        raise CheckpointError(f"'{model}' is a {name}, which this diffusers lacks; upgrade diffusers")
    fitting = _fitting(cls, name, model, known)
    read_scheduler(folder)
    own = Precision() if precision is None or fitting.reads_itself else precision
    networks = _load_networks(folder, cls, fitting.part, own)
    try:
        pipeline = cls.from_pretrained(folder, use_safetensors=True, local_files_only=True, **networks)
    except Exception as error:
        raise CheckpointError(
            f"'{model}' could not be loaded ({' '.join(str(error).split())[:200]}); make or fetch the folder again"
        ) from error
    pipeline.set_progress_bar_config(disable=True)
    return fitting(pipeline, folder)


def _fitting(cls: Any, name: str, model: str, known: dict[str, AdapterFor]) -> type[Adapter]:
    """The adapter of a class, or that of all which have none; ConfigError where neither is for it."""
    fitting = known.get(name, known[ANY_OTHER]).adapter
    problem = fitting.why_not(cls) if isinstance(cls, type) else "this diffusers lacks it"
    if problem is None:
        return fitting
    named = ", ".join(row for row in known if row != ANY_OTHER)
    raise ConfigError(
        f"'{model}' is a {name}, and there are adapters for {named}; this one cannot be read off itself, for "
        f"{problem}: give one of these, or name a file with an AdapterFor of your own in {PLUGINS} "
        f"(docs/text_to_image.md)"
    )


def _load_networks(folder: Path, pipeline: type, network: str, precision: Precision) -> dict[str, nn.Module]:
    """The networks that model_index.json names, each read whole; CheckpointError where one is not, or is of a package
    whose code would have to be imported for it.
    """
    networks: dict[str, nn.Module] = {}
    wanted = inspect.signature(pipeline.__init__).parameters  # type: ignore[misc]
    for part, entry in read_json(folder / "model_index.json").items():
        if not isinstance(entry, list) or part not in wanted or entry == [None, None]:
            continue
        if any(isinstance(word, int) for word in entry) and not (folder / part).exists():  # a setting that is a list
            continue
        cls = class_of(folder, part, entry)
        if isinstance(cls, type) and issubclass(cls, nn.Module) and (folder / part).is_dir():
            networks[part] = load_whole(cls, folder / part, dtype=_dtype_of(folder / part, network, precision))
    return networks


def _dtype_of(part: Path, network: str, precision: Precision) -> str:
    """What a part is read in: the network as its files have it, for `held_in` to round what does not stay exact."""
    if part.name == network:
        return OWN if precision.network != "float32" else "float32"
    if part.name != "vae":
        return precision.encoders
    return vae_dtype(precision, read_json(part / "config.json"))


def class_of(folder: Path, part: str, entry: list[Any]) -> Any:
    """The class of a part, of a package that is known: diffusers would import any, and run what it does then.

    entry: what model_index.json says of the part, a package and a name. CheckpointError for any other package.

    >>> from diffdistill.assets import asset
    >>> class_of(asset("emoji_teacher"), "unet", ["diffusers", "UNet2DConditionModel"]).__name__
    'UNet2DConditionModel'
    """
    import diffusers

    library, name = entry if len(entry) == 2 and all(isinstance(word, str) for word in entry) else ("", "")
    known = import_module(library) if library in ("diffusers", "transformers") else None
    home = known or getattr(diffusers.pipelines, library, None) or sys.modules.get(library)
    if home is None or (folder / part / f"{library}.py").exists():  # which diffusers would take in its place
        raise CheckpointError(
            f"'{folder}' wants its {part} from the package {str(library)[:60]!r}, and only diffusers, transformers "
            f"and what is imported already are asked; import it first if you trust it"
        )
    return getattr(home, name, None)


def load_pipeline(model: str, precision: Precision | None = None) -> Adapter:
    """Read a pipeline folder or Hub id that `align` can train; precision: as of `load_adapter`.

    Raises ConfigError for a class whose adapter is not for it and for students, CheckpointError for a folder that is
    missing or damaged, and what `load_adapter` raises.

    >>> emoji = load_pipeline("builtin:emoji_teacher")
    >>> type(emoji.pipeline).__name__, emoji.image_size
    ('StableDiffusionPipeline', 32)
    >>> load_pipeline("builtin:fashion_mnist_teacher")
    Traceback (most recent call last):
    diffdistill.errors.ConfigError: 'builtin:fashion_mnist_teacher' is a ConsistencyModelPipeline, and there are ...
    """
    folder = locate(model)
    name = str(read_json(folder / "model_index.json").get("_class_name"))
    rows = ADAPTERS.rows()
    if not rows.get(name, rows[ANY_OTHER]).align:
        raise ConfigError(
            f"'{model}' is a {name}, and its adapter is not for align; give another model, or name a file with an "
            f"AdapterFor of your own in {PLUGINS}"
        )
    if read_metadata(folder).get("role") == "student":
        raise ConfigError(
            f"'{model}' is a student, which is trained at its own levels alone, and align trains a denoiser at all "
            f"levels; align the diffusion model it was made from, and distil that"
        )
    return load_adapter(folder, name, model, precision=precision)
