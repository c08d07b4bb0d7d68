"""What a finished run publishes: its model with a card, and figures of other models beside its own."""

import contextlib
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol, TypeVar

from diffdistill import __version__, files
from diffdistill.config import Resolved
from diffdistill.denoiser import Denoiser
from diffdistill.evaluation.figures import numbers_of
from diffdistill.files import (
    beside,
    discard,
    new_folder,
    put_in_place,
    replacing_folder,
    sha256,
    write_json,
    write_text,
)
from diffdistill.pipelines.folder import (
    METADATA,
    digests_of,
    forget_origin,
    locate,
    published,
    read_json,
    sealed,
    weights_digest,
)
from diffdistill.pipelines.pixel.save import Origin
from diffdistill.pipelines.text.adapter import Adapter
from diffdistill.pipelines.text.save import copy_parts, write_network
from diffdistill.reporting.front_matter import VAGUE, base_model, front_matter
from diffdistill.reporting.model_card import model_card, public_settings, text_card
from diffdistill.training.sharded.gather import plain_model, plain_network
from diffdistill.training.tasks.align import AlignTask

Model_contra = TypeVar("Model_contra", contravariant=True)


class Publisher(Protocol[Model_contra]):
    """name: of the model's folder in that of the run. role: what the model is, "student"."""

    name: str
    role: str

    def publish(self, model: Model_contra, folder: Path, evaluation: dict[str, Any]) -> None:
        """Write the folder, which appears whole or not at all."""

    def others(self, evaluation: dict[str, Any]) -> dict[str, Any]:
        """Evaluations of other models by the protocol of `evaluation`, by role."""


def publish(publisher: Publisher[Any], model: Any, folder: Path, evaluation: dict[str, Any]) -> None:
    """Publish the model and its figures, in the place of those of a shorter run; a whole model is always there.

    The same model without new figures, as of a finished run that was resumed, leaves all as it is.
    """
    figures = folder.parent / "evaluation.json"
    staged = beside(folder)
    try:
        publisher.publish(model, staged, evaluation)
        same = _weights(staged) == _weights(folder)
        if same:
            _keep_others(folder, staged)
        if evaluation or not same or _names(staged) != _names(folder):
            put_in_place(staged, folder)
    finally:
        with contextlib.suppress(OSError):
            discard(staged)
    if evaluation:
        write_json(figures, {publisher.role: evaluation} | publisher.others(evaluation))
    elif not same:
        figures.unlink(missing_ok=True)  # of another model


def _weights(folder: Path) -> dict[str, str]:
    return {file.relative_to(folder).as_posix(): sha256(file) for file in folder.rglob("*.safetensors")}


def _names(folder: Path) -> set[Path]:
    return {file.relative_to(folder) for file in folder.rglob("*") if file.is_file()}


def _keep_others(folder: Path, staged: Path) -> None:
    """What was put beside these same weights since, such as their calibration."""
    for name in _names(folder) - _names(staged):
        (staged / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / name, staged / name)


class DenoiserPublisher:
    """Teachers and students: a folder that stock diffusers loads.

    data: what it was trained on. teacher: folder or id of the teacher of a student. class_names: in
    the order of their labels. like: the folder that the model began with. provenance: more for the record.
    """

    def __init__(
        self,
        resolved: Resolved,
        data: Any,
        name: str,
        role: str,
        *,
        levels: Sequence[float] = (),
        teacher: str | None = None,
        class_names: Sequence[str] | None = None,
        like: Origin | None = None,
        **provenance: Any,
    ):
        self.like: dict[str, Any] = {} if like is None else {"like": like}
        self.resolved, self.name, self.role, self.levels, self.teacher = resolved, name, role, levels, teacher
        self.provenance = {
            "diffdistill": __version__,
            "config_sha256": resolved.sha256,
            "data": {"path": data.name, "fingerprint": data.fingerprint},
            **({} if class_names is None else {"class_names": list(class_names)}),
            **({} if teacher is None else {"teacher": teacher}),
            **provenance,
        }

    def publish(self, model: Denoiser, folder: Path, evaluation: dict[str, Any]) -> None:
        model = plain_model(model)
        write_card = text_card if model.draws_texts else model_card
        model.save_pretrained(
            folder, role=self.role, levels=self.levels, **self.like, **self.provenance,
            card=lambda metadata: write_card(
                metadata=metadata, evaluation=evaluation, config=self.resolved.text_yaml
            ),
        )  # fmt: skip

    def others(self, evaluation: dict[str, Any]) -> dict[str, Any]:
        # A teacher with a LoRA is not the one whose figures lie beside its weights.
        return {} if "teacher_lora" in self.provenance else recorded(self.teacher, evaluation)


def recorded(teacher: str | None, evaluation: dict[str, Any]) -> dict[str, Any]:
    """The teacher's own evaluations, the best first, made by the protocol of `evaluation`.

    Measuring a many-step teacher takes longer than distilling it, so its figures are kept beside its weights
    (`evaluations.json`, written by `examples/fashion_mnist/evaluate_teacher.py`) and used only where the weights, the
    number of images, the features and the reference are the same to the last bit. Of several samplers the best is
    shown.
    """
    folder = locate(teacher) if teacher else None
    if folder is None or not (folder / "evaluations.json").is_file():
        return {}
    rows: dict[int, Any] = {}
    digest = weights_digest(folder)
    entries: Any = files.read_json(folder / "evaluations.json")  # a list
    for entry in entries:
        measured, protocol = entry["evaluation"], entry["evaluation"]["protocol"]
        ours = evaluation["protocol"]
        same = all(protocol.get(key) == ours.get(key) for key in ("num_images", "features", "reference"))
        same &= protocol.get("dtype", "float32") == ours.get("dtype", "float32")
        if not same or entry["weights_sha256"] != digest:
            continue
        calls = entry["sampling"]["evaluations"]
        if calls not in rows or numbers_of(measured)["fid"] < numbers_of(rows[calls])["fid"]:
            rows[calls] = measured | {"sampling": entry["sampling"]}
    best_first = sorted(rows.items(), key=lambda row: numbers_of(row[1])["fid"])
    return {"teacher" if i == 0 else f"teacher at {calls}": row for i, (calls, row) in enumerate(best_first)}


class PipelinePublisher:
    """Aligned pipelines: stock ones, every part of which but the network is the source's, byte for byte.

    Adapters are merged into float32 weights there, and lie by themselves in `lora/` beside it, for
    `load_lora_weights`.
    """

    name, role = "model", "aligned"

    def __init__(self, task: AlignTask, resolved: Resolved):
        self.task, self.resolved = task, resolved

    def publish(self, model: Adapter, folder: Path, evaluation: dict[str, Any]) -> None:
        adapter = folder.parent / "lora"
        with (
            new_folder(folder) as staged,
            replacing_folder(adapter) if self.task.adapted else nullcontext(adapter) as lora,
        ):
            copy_parts(model.source, staged, leave=(model.part,))
            write_network(self.task.adapted or plain_network(self.task.network), model, staged, lora=lora)
            forget_origin(staged / "model_index.json")
            metadata = published(self._metadata(model, staged))
            write_json(staged / METADATA, sealed(metadata))
            write_text(staged / "README.md", aligned_card(metadata, evaluation, self.resolved.text_yaml))

    def _metadata(self, model: Adapter, staged: Path) -> dict[str, Any]:
        config, pairs = self.task.config, self.task.pairs
        source = read_json(model.source / METADATA) if (model.source / METADATA).is_file() else {}
        return {
            "role": self.role,
            # Drawn as the model it was made from, unless told otherwise.
            **{key: source[key] for key in ("guidance_scale",) if key in source},
            "model": config.model,
            "method": config.method.name,
            "sha256": digests_of(staged),
            "diffdistill": __version__,
            "config_sha256": self.resolved.sha256,
            "data": {"path": pairs.name, "fingerprint": pairs.fingerprint, "pairs": len(pairs)},
        }

    def others(self, evaluation: dict[str, Any]) -> dict[str, Any]:
        return {}


def aligned_card(metadata: dict[str, Any], evaluation: dict[str, Any], settings: str) -> str:
    """README.md of the model: use, figures, origin."""
    figures = "\n".join(
        f"| {name} | {entry['value']:.4g} ± {entry['standard_error']:.2g} |"
        for name, entry in evaluation.get("metrics", {}).items()
    )
    table = f"\n\n## Held-out pairs\n\n| figure | value |\n|---|---|\n{figures}" if figures else ""
    name = metadata["model"].rstrip("/").rpartition("/")[2]
    front = front_matter(VAGUE, "text-to-image", [metadata["method"]], base_model(metadata), evaluation)
    return f"""{front}

# {name}, aligned with preferences

```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("model")  # this folder, or its Hub id
pipe("a caption").images[0].save("image.png")
```

Made from {name} by {metadata["method"]} on {metadata["data"]["pairs"]} pairs; under the licence of {name}, and of the
pairs.{table}

## Settings

```yaml
{public_settings(settings)}
```
"""
