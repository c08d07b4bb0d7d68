"""The verb `align`: pairs, pipeline, run folder, and the aligned pipeline in `model/`."""

from pathlib import Path
from typing import Any

from diffdistill import __version__
from diffdistill.alignment.lora import check_peft, lora_tensors, merged
from diffdistill.config import Resolved
from diffdistill.config.align import Align
from diffdistill.data.pairs import PairSet, digest_of, load_pairs, split_by_caption
from diffdistill.errors import DataError
from diffdistill.files import new_folder, sha256, write_json
from diffdistill.parts.attention.kernels import set_attention
from diffdistill.pipelines.folder import METADATA, read_json
from diffdistill.pipelines.text.adapter import load_pipeline
from diffdistill.pipelines.text.save import copy_parts
from diffdistill.reporting.model_card import public_settings
from diffdistill.reporting.report import write_report
from diffdistill.training.align_observer import AlignObserver, load_judges
from diffdistill.training.device import Device
from diffdistill.training.loop import run_loop
from diffdistill.training.run import chosen, open_folder, peak_memory
from diffdistill.training.tasks.align import AlignTask


def align(resolved: Resolved) -> int:
    """`diffdistill align`: the network of a text-to-image pipeline, trained on pairs, into `model/`."""
    config: Align = resolved.config
    pairs, held_out = pairs_of(config)
    if config.lora is not None:
        check_peft()
    device = Device(config.mixed_precision, config.num_threads)
    model = load_pipeline(config.model)
    model.kept.limit = config.data.prompt_cache_gb * 1e9
    task = AlignTask(config, model, pairs, device)
    attention = str(set_attention(task.network, config.attention, run=task.example, context=device.autocast))
    judges = load_judges(config.evaluation, device)  # before there is a folder
    folder = open_folder(config, resolved, chosen(attention, device))
    observer = AlignObserver(task, held_out, config.evaluation, judges)
    evaluation = run_loop(task, config, folder, observer)
    if not evaluation and config.evaluation.at_end:  # a finished run, resumed
        evaluation = observer.evaluate(model)
    machine = read_json(folder / "environment.json")
    write_json(folder / "environment.json", machine | {"peak_memory_mb": round(peak_memory() / 1e6)})
    if not (folder / "model").exists():
        publish(task, resolved, folder, evaluation)
    if evaluation:
        write_json(folder / "evaluation.json", {"aligned": evaluation})
    write_report(folder)
    print(f"{folder / 'model'}: the pipeline; {folder / 'report.html'}: curves and figures")
    return 0


def pairs_of(config: Align) -> tuple[PairSet, PairSet]:
    """`(training, held out)`; ties teach nothing when measured, so the second has none."""
    data = config.data
    pairs = load_pairs(data.path, split=data.split, limit=data.limit, ties=data.ties)
    for reason, count in pairs.counts.items():
        print(f"{data.path}: {count} pairs left out: {reason}")
    if data.held_out_path is not None:
        return pairs, load_pairs(data.held_out_path, split=data.held_out_split)
    training, held_out = split_by_caption(pairs, data.held_out)
    clear = tuple(pair for pair in held_out.pairs if not pair.tie)
    if not clear:
        raise DataError(f"all held-out pairs of {data.path} are ties; raise data.held_out or give data.held_out_path")
    return training, PairSet(clear, held_out.name, held_out.counts, digest_of(clear))


def publish(task: AlignTask, resolved: Resolved, folder: Path, evaluation: dict[str, Any]) -> None:
    """Write `model/`, a stock pipeline: every part but the network is the source's, byte for byte.

    Adapters are merged into float32 weights there, and lie by themselves in `lora/`, for `load_lora_weights`.
    """
    config, model = task.config, task.model
    if config.lora is None:
        network = task.network
    else:
        lora = {f"{model.part}_lora_layers": lora_tensors(task.network)}
        type(model.pipeline).save_lora_weights(folder / "lora", **lora, safe_serialization=True)
        network = merged(task.network, model.source / model.part, config.lora.rank, config.lora.targets)
    with new_folder(folder / "model") as staged:
        copy_parts(model.source, staged, leave=(model.part,))
        network.save_pretrained(staged / model.part, safe_serialization=True)
        # The folder's own names must not depend on where it was trained.
        for file in (staged / "model_index.json", staged / model.part / "config.json"):
            write_json(file, {key: value for key, value in read_json(file).items() if key != "_name_or_path"})
        source = read_json(model.source / METADATA) if (model.source / METADATA).is_file() else {}
        metadata = {
            "role": "aligned",
            # Drawn as the model it was made from, unless told otherwise.
            **{key: source[key] for key in ("guidance_scale",) if key in source},
            "model": config.model,
            "method": config.method.name,
            "sha256": {str(f.relative_to(staged)): sha256(f) for f in sorted(staged.rglob("*.safetensors"))},
            "diffdistill": __version__,
            "config_sha256": resolved.sha256,
            "data": {"path": task.pairs.name, "fingerprint": task.pairs.fingerprint, "pairs": len(task.pairs)},
        }
        write_json(staged / METADATA, metadata)
        (staged / "README.md").write_text(card(metadata, evaluation, resolved.text_yaml))


def card(metadata: dict[str, Any], evaluation: dict[str, Any], settings: str) -> str:
    """README.md of the model: use, figures, origin."""
    figures = "\n".join(
        f"| {name} | {entry['value']:.4g} ± {entry['standard_error']:.2g} |"
        for name, entry in evaluation.get("metrics", {}).items()
    )
    table = f"\n\n## Held-out pairs\n\n| figure | value |\n|---|---|\n{figures}" if figures else ""
    name = metadata["model"].rstrip("/").rpartition("/")[2]
    return f"""---
library_name: diffusers
pipeline_tag: text-to-image
license: other
tags:
- diffdistill
- {metadata["method"]}
---

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
