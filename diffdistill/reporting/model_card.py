"""The README.md of a published model: its use, its figures with their protocol, its origin, its limits."""

from collections.abc import Sequence
from typing import Any

from diffdistill.evaluation.figures import features_of, label_of, values_of
from diffdistill.pipelines.folder import published
from diffdistill.reporting.front_matter import VAGUE, base_model, front_matter
from diffdistill.reporting.tables import number, protocol_words


def model_card(*, metadata: dict[str, Any], evaluation: dict[str, Any] | None = None, config: str = "") -> str:
    """Markdown with the front matter of the Hub.

    metadata: content of `diffdistill.json` (`role`, `levels`, `call`; optional `num_classes`, `image_shape`,
    `teacher`, `data`, `config_sha256`, `diffdistill`, `network_module`, `scalelong`, `reward`, `source`,
    `teacher_source`, `training`, `initialize_from`, `pipeline`, `noise`, `decoders`); evaluation: what `Evaluator`
    returned; config: the resolved YAML.
    """
    student = metadata.get("role") == "student"
    levels = tuple(metadata.get("levels") or ())
    kind = "class-conditional" if metadata.get("num_classes") else "unconditional"
    tags = ["image-generation", kind] + (["one-step", "distillation"] if student and len(levels) == 1 else [])
    # Of converted weights only their makers can say the licence.
    licence = "other" if metadata.get("source") or metadata.get("teacher_source") else "apache-2.0"
    return assembled(
        front_matter(licence, "unconditional-image-generation", tags, base_model(metadata), evaluation),
        f"# {_title(student, levels, metadata)}\n\n{_summary(student, levels, metadata)}",
        f"## Use\n\n{_student_use(levels, metadata) if student else _teacher_use(metadata)}",
        metrics_section(evaluation or {}),
        f"## Made from\n\n{origin(student, metadata)}",
        f"## Limits\n\n{_limits(student, metadata)}",
        settings_section(config),
    )


def text_card(*, metadata: dict[str, Any], evaluation: dict[str, Any] | None = None, config: str = "") -> str:
    """The same of a text-to-image student; arguments as of `model_card`."""
    teacher = metadata.get("teacher") or metadata.get("path") or "a text-to-image pipeline"
    teacher = teacher.rstrip("/").rpartition("/")[2].removeprefix("builtin:")
    steps = len(metadata.get("levels") or ())
    return assembled(
        front_matter(VAGUE, "text-to-image", ["text-to-image", "distillation"], base_model(metadata), evaluation),
        f"# {'One' if steps == 1 else steps}-step {teacher}",
        f"Distilled from {teacher} into {_calls(steps, metadata)} of its network; under the licence of {teacher}.",
        f"## Use\n\n{_text_use(metadata)}",
        metrics_section(evaluation or {}),
        f"## Made from\n\n{origin(True, metadata)}",
        settings_section(config),
    )


def assembled(*parts: str) -> str:
    """The parts of a card that are there, as one document."""
    return "\n\n".join(part for part in parts if part) + "\n"


def settings_section(config: str) -> str:
    """The resolved YAML, without places of one machine; "" without any."""
    return f"## Settings\n\n```yaml\n{public_settings(config)}\n```" if config else ""


def _title(student: bool, levels: Sequence[float], metadata: dict[str, Any]) -> str:
    name = (metadata.get("data") or {}).get("path")
    subject = f" of {_plain(name)}" if name else ""
    if not student:
        return f"Diffusion model{subject}"
    return f"{'One' if len(levels) == 1 else len(levels)}-step generator{subject}"


def _plain(name: str) -> str:
    """`builtin:fashion_mnist` -> `fashion mnist`; of a path the last part, for the rest is of one machine only."""
    return name.rstrip("/").rpartition("/")[2].removeprefix("builtin:").replace("_", " ")


def _summary(student: bool, levels: Sequence[float], metadata: dict[str, Any]) -> str:
    shape = metadata.get("image_shape")
    size = f" of {shape[2]} x {shape[1]} pixels, {'gray' if shape[0] == 1 else 'RGB'}" if shape else ""
    classes = metadata.get("num_classes")
    kind = f", of {classes} classes" if classes else ""
    if not student:
        return f"A teacher: it makes images{size}{kind}, by removing noise in many steps."
    where = "in diffusers where diffdistill is installed" if metadata.get("network_module") else "in stock diffusers"
    where = "in diffdistill" if metadata.get("scalelong") else where
    return f"It makes images{size}{kind}, with {_calls(len(levels), metadata)} of its network, and loads {where}."


def _student_use(levels: Sequence[float], metadata: dict[str, Any]) -> str:
    if metadata.get("scalelong"):
        return f"{STUDENT_COMMAND}\n\n{SCALED}"
    classes = metadata.get("num_classes")
    call = metadata.get("call") or {"num_inference_steps": len(levels)}
    if "timesteps" in call:
        call = {"num_inference_steps": None} | call
    arguments = [
        "batch_size=8",
        *([f"class_labels=[i % {classes} for i in range(8)]"] if classes else []),
        *(f"{name}={value}" for name, value in call.items()),
        "generator=[torch.Generator().manual_seed(i) for i in range(8)]",
    ]
    inside = "".join(f"    {argument},\n" for argument in arguments)
    module = metadata.get("network_module")
    network = f"\nimport {module}  # the class of the network, which diffusers lacks" if module else ""
    return f"""```python
import torch
from diffusers import DiffusionPipeline
{network}
pipe = DiffusionPipeline.from_pretrained("student"{_told(metadata)})  # this folder, or its Hub id
images = pipe(
{inside}).images
images[0].save("image.png")
```

The noise levels are in the scheduler, there is nothing to set.{_own_code(metadata)}
An image depends on its generator only, not on the batch; with these seeds they are the images of

{STUDENT_COMMAND}"""


STUDENT_COMMAND = """```
diffdistill sample student --num-images 8 --seed 0 --out samples
```"""

SCALED = """The long skips of the network are scaled (ScaleLong, 2310.13545), and diffusers by itself leaves the scales
out, with a line in its log: the images would be others. `remove_scalelong(network, fold=True)` puts constant scales
into the weights, for networks that it can."""


def _teacher_use(metadata: dict[str, Any]) -> str:
    network = "network of diffdistill" if metadata.get("network_module") else "stock diffusers network"
    labels = " --class-labels 0" if metadata.get("num_classes") else ""
    return f"""```
diffdistill sample model --num-images 8{labels} --out samples
```

```python
from diffdistill import Denoiser

denoise = Denoiser.from_pretrained("model")  # this folder, or its Hub id
x0 = denoise(x_t, sigma, cond)  # x_t = x0 + sigma * eps, images in [-1, 1]
```

{_pipeline(network, metadata.get("pipeline"))}""" + (f"\n\n{SCALED}" if metadata.get("scalelong") else "")


def _pipeline(network: str, kept: str | None) -> str:
    """What the folder of a teacher is to diffusers; kept: the pipeline that it began as."""
    if kept is not None:
        return f"""The network is a {network}. The folder is a `{kept}` with the scheduler of the model that it began
as, and opens in diffusers where that does."""
    return f"""The network is a {network} with the preconditioning of EDM (2206.00364, Table 1) and the time input
250 ln(sigma). `DiffusionPipeline.from_pretrained` opens the folder too, but samples it like a consistency model, which
a teacher is not: use the command above."""


def _text_use(metadata: dict[str, Any]) -> str:
    call = metadata.get("call") or {}
    arguments = "".join(f", {name}={value}" for name, value in call.items())
    # These pipelines draw the noise between their steps from torch's own generator.
    flow = str(metadata.get("scheduler")).startswith("FlowMatch")
    own = OWN_GENERATOR if flow and len(metadata.get("levels") or ()) > 1 else ""
    levels = "in the call: leave none of it out" if {"timesteps", "sigmas"} & call.keys() else "in the scheduler"
    return f"""```python
import torch
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("student"{_told(metadata)})  # this folder, or its Hub id
image = pipe(prompt="a caption"{arguments}, generator=torch.Generator().manual_seed(0)).images[0]
image.save("image.png")
```

The levels are {levels}; the guidance is in the weights.{own}{_own_code(metadata)}"""


def _calls(steps: int, metadata: dict[str, Any]) -> str:
    """How often an image asks the network."""
    if _decoded(metadata):
        return f"one pass of the encoder and {len(metadata['decoders'])} of the decoder"
    return "one evaluation" if steps == 1 else f"{steps} evaluations"


def _decoded(metadata: dict[str, Any]) -> bool:
    """Whether it draws by several decoders over one encoder pass."""
    return bool(metadata.get("decoders"))


def _told(metadata: dict[str, Any]) -> str:
    """What diffusers must be told, for it to take the pipeline in the folder."""
    return ', custom_pipeline="student", trust_remote_code=True' if _decoded(metadata) else ""


def _own_code(metadata: dict[str, Any]) -> str:
    return OWN_CODE if _decoded(metadata) else ""


OWN_CODE = """ This model draws by several decoders over one encoder
pass (2505.21960), which `pipeline.py` and `decoders.py` in this folder do: read them, as they run on your machine.
Without `custom_pipeline` diffusers draws other images, by passes that were not trained."""


OWN_GENERATOR = """ This pipeline draws the noise between its steps from torch's own generator: for the
same image again call `torch.manual_seed` too."""


def metrics_section(evaluation: dict[str, Any]) -> str:
    """The figures of an evaluation with their protocol; "" without any."""
    evaluation = published(evaluation)
    values = values_of(evaluation)
    if not values:
        return ""
    features, words = features_of(evaluation), evaluation.get("figures")
    lines = ["| metric | value | real against real |", "|---|---|---|"]
    for name, value in values.items():
        error = "" if value.error is None else f" ± {number(value.error)}"
        real = "" if value.real is None else number(value.real)
        lines.append(f"| {label_of(name, features, words)} | {number(value.value)}{error} | {real} |")
    known = [f"- {key}: {value}" for key, value in protocol_words(evaluation.get("protocol") or {}).items()]
    known += [f"- Warning: {warning}" for warning in evaluation.get("warnings") or ()]
    protocol = "\n\nProtocol; figures compare only under the same one:\n\n" + "\n".join(known) if known else ""
    return "## Metrics\n\n" + "\n".join(lines) + protocol


def origin(student: bool, metadata: dict[str, Any]) -> str:
    data = metadata.get("data") or {}
    method = "distribution matching against its teacher" if student else "denoising score matching, averaged weights"
    start = metadata.get("initialize_from")
    rows = {
        "Training": metadata.get("training", method),
        "Started from": start and f"`{start}`",
        "Converted from": _file(metadata.get("source")),
        "Teacher converted from": _file(metadata.get("teacher_source")),
        "Reward": _rewards(metadata.get("reward") or {}),
        "Teacher": metadata.get("teacher") and f"`{metadata['teacher']}`",
        "LoRA on the teacher": _task(metadata.get("teacher_lora")),
        "Data": data.get("path") and f"`{data['path']}`",
        "Fingerprint of the data": data.get("fingerprint") and f"`{data['fingerprint']}`",
        "Long skips": _scales(metadata.get("scalelong")),
        "Noise": _noise(metadata.get("noise")),
        "Noise levels": ", ".join(f"{level:.4g}" for level in metadata.get("levels") or ()),
        "Settings, SHA-256": metadata.get("config_sha256") and f"`{metadata['config_sha256']}`",
        "diffdistill": metadata.get("diffdistill"),
    }
    return "\n".join(f"- {key}: {value}" for key, value in rows.items() if value)


def _file(source: dict[str, Any] | None) -> str | None:
    return f"`{source['file']}`, SHA-256 `{source['sha256']}`" if source else None


def _task(lora: dict[str, Any] | None) -> str | None:
    if not lora:
        return None
    return (
        f"`{lora['file']}`, scale {lora['scale']:g}, SHA-256 `{lora['sha256']}`: it is in these weights, and in "
        f"`lora/`, where that is there, which is for the base without it"
    )


def _rewards(versions: dict[str, str | None]) -> str:
    return ", ".join(f"{name} ({version})" if version else name for name, version in versions.items())


def _scales(scalelong: dict[str, Any] | None) -> str | None:
    if not scalelong:
        return None
    words = [f"mode {scalelong['mode']}", f"position {scalelong['position']}"]
    if scalelong["mode"] == "cs":
        words.insert(1, f"kappa {scalelong['kappa']:g}")
    return f"scaled by ScaleLong (2310.13545): {', '.join(words)}"


def _noise(law: dict[str, Any] | None) -> str | None:
    if not law or law["law"] != "student_t":
        return None
    return (
        f"Student's t with D = {law['dimension']:g} (PFGM++, 2302.04265), which sampling must begin with: "
        f"`diffdistill sample` does, a pipeline of diffusers begins with Gaussian noise"
    )


def public_settings(config: str) -> str:
    """The settings, without where on someone's machine the run and its config lay."""
    import yaml

    settings = yaml.safe_load(config)
    kept = {key: value for key, value in settings.items() if key not in ("output_dir", "resume_from_checkpoint")}
    return yaml.safe_dump(published(kept), sort_keys=False, default_flow_style=None, width=110).strip()


def _limits(student: bool, metadata: dict[str, Any]) -> str:
    lines = ["It knows its training images and nothing else: other subjects, sizes and classes are out of its reach."]
    alone = student and not metadata.get("teacher") and not metadata.get("teacher_source")
    if alone:
        lines.append("It makes images of noise at the levels above only, and has no null class: it cannot be guided.")
    elif student:
        lines += [
            "It works at the noise levels above only: to fine-tune or to guide, take its teacher.",
            "A student can miss rare modes of its teacher; recall, where it is given above, measures that.",
        ]
    start = " and of the model that it began with" if metadata.get("initialize_from") else ""
    owners = f"The licence of the data{start} holds" if alone else "The licences of the data and of the teacher hold"
    lines += [
        "What is biased or missing in the data is so in the images.",
        f"{owners} beside that of these weights.",
    ]
    return "\n".join(f"- {line}" for line in lines)
