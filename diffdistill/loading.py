"""Weights that diffusers and transformers read: whole, finite, and never out of a pickle.

Both fill what a file lacks with random numbers, pass over what it has too much, and say so in a log at most. A folder
may also lead them to a pickle by side doors: an index of shards that names one, an adapter, a name in its config.
"""

import json
import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffdistill.errors import CheckpointError
from diffdistill.files import PICKLES, read_json
from diffdistill.precision import OWN

if TYPE_CHECKING:
    from torch import nn

SHOWN = 3  # names of tensors in a message
# What older versions of the two packages wrote beside the weights; their networks make it by themselves.
KNOWN_SURPLUS = re.compile(r"(^|\.)(position_ids|inv_freq|num_batches_tracked)$")
# What `save_pretrained(variant="fp16")` writes: the variant stands before the ending, or before a shard's number.
WEIGHTS = re.compile(r"(diffusion_pytorch_model|model)(\.(?P<variant>[\w-]+?))?(-\d+-of-\d+)?\.safetensors", re.ASCII)


def load_whole(cls: Any, folder: Path, spare: str = "", dtype: str = "float32", **options: Any) -> Any:
    """`cls.from_pretrained(folder)` where every tensor is there, no other, and all of them numbers.

    cls: a network class of diffusers or transformers. spare: a pattern of names of tensors that the caller never uses,
    which may be missing or too many. dtype: a name of torch, in which the weights come one after the other, whatever
    their files have; "own": as those have them. Weights that are there in one variant alone, as fp16, are read from
    it. Raises CheckpointError, one sentence that names the first few tensors, and for a folder that leads to a
    pickle before anything is opened.
    """
    refuse_pickles(folder)
    variant = only_variant(folder)
    options |= {} if variant is None else {"variant": variant}
    options["torch_dtype"] = named_dtype(widest_dtype(folder) if dtype == OWN else dtype)
    try:
        with quiet():  # what it says of tensors is said below
            network, info = cls.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, output_loading_info=True, **options
            )
    except Exception as error:  # each package raises many kinds; all of them mean that the folder is not readable
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"'{folder}' could not be loaded ({reason}); make or fetch the model again") from error
    _check_names(folder, info, re.compile(spare) if spare else None)
    check_finite(network, folder)
    return network


def named_dtype(name: str) -> Any:
    import torch

    return getattr(torch, name)


def widest_dtype(folder: Path) -> str:
    """The precision, a name of torch, that holds the weights in a folder of one network exactly."""
    return held_by({tensor.get("dtype") for file in weight_files(folder) for tensor in _header(file).values()})


def held_by(kinds: Iterable[Any]) -> str:
    """The narrowest precision that holds numbers of these kinds, named as safetensors names them."""
    floating = {kind for kind in kinds if kind in ("F64", "F32", "BF16", "F16")}
    return {frozenset({"BF16"}): "bfloat16", frozenset({"F16"}): "float16"}.get(frozenset(floating), "float32")


def weight_files(folder: Path) -> list[Path]:
    """The files that weights in a folder of one network are read from."""
    found = [
        (file, match["variant"]) for file in folder.glob("*.safetensors") if (match := WEIGHTS.fullmatch(file.name))
    ]
    variant = only_variant(folder)
    return sorted(file for file, own in found if own == variant)


def _header(file: Path) -> dict[str, Any]:
    """What a safetensors file says of its tensors, by their names; nothing of one that is damaged, which is told when
    it is read."""
    try:
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            content = json.loads(stream.read(size)) if size <= file.stat().st_size else {}
    except (OSError, ValueError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {name: tensor for name, tensor in content.items() if isinstance(tensor, dict) and name != "__metadata__"}


def only_variant(folder: Path) -> str | None:
    """The variant of the weights in a folder of one network, such as fp16; None where the plain ones are there.

    CheckpointError where there are several and no plain one: which of them is meant, nobody said.
    """
    found = {match["variant"] for file in folder.glob("*.safetensors") if (match := WEIGHTS.fullmatch(file.name))}
    if None in found or not found:
        return None
    if len(found) > 1:
        raise CheckpointError(
            f"'{folder}' holds its weights in the variants {named(sorted(map(str, found)))} and not in full "
            f"precision, and one is read; take all but one out of the folder"
        )
    return str(found.pop())


@contextmanager
def quiet() -> Iterator[None]:
    """Within, diffusers, transformers and the Hub's client log nothing: their errors are raised, and told by us."""
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers", "huggingface_hub")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _check_names(folder: Path, info: dict[str, Any], spare: re.Pattern[str] | None) -> None:
    def listed(key: str) -> list[str]:
        # Of tensors that do not fit, the name comes with both shapes.
        names = sorted(str(entry if isinstance(entry, str) else entry[0]) for entry in info.get(key) or ())
        return [name for name in names if not (KNOWN_SURPLUS.search(name) or (spare and spare.search(name)))]

    problems = {
        "lack": listed("missing_keys"),
        "have too much": listed("unexpected_keys"),
        "have in another shape": listed("mismatched_keys"),
    }
    found = [f"{what} {named(names)}" for what, names in problems.items() if names]
    if found or info.get("error_msgs"):
        reason = " and ".join(found) or " ".join(str(info["error_msgs"][0]).split())[:200]
        raise CheckpointError(
            f"the weights in '{folder}' {reason}, so they are not those of the network in its config.json; make or "
            f"fetch the model again"
        )


def named(names: Iterable[str]) -> str:
    """The first few of some names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(name[:80] for name in names[:SHOWN]) + more


def check_finite(network: "nn.Module", where: object) -> None:
    """CheckpointError where a weight or a buffer is NaN or infinite: the pictures would be black, without a word."""
    broken = [name for name, tensor in network.state_dict().items() if not _finite(tensor)]
    if broken:
        raise CheckpointError(
            f"the weights of '{where}' are NaN or infinite ({named(broken)}), so it can make nothing; make or fetch "
            f"the model again, from before its training diverged"
        )


def _finite(tensor: Any) -> bool:
    if not tensor.is_floating_point() or tensor.numel() == 0 or tensor.device.type == "meta":
        return True
    try:
        low, high = tensor.aminmax()  # one pass and no memory; NaN wins both
    except (RuntimeError, NotImplementedError):  # the small formats of quantised networks
        return bool(tensor.float().isfinite().all())
    return bool(low.isfinite() and high.isfinite())


def refuse_pickles(folder: Path) -> None:
    """CheckpointError for a folder of one network out of which a pickle would be read, or another network fetched."""
    for index in folder.glob("*.index*.json"):  # of a variant: *.index.fp16.json
        content = _json(index)
        shards = content.get("weight_map")
        wrong = [name for name in _values(shards) if not _is_shard(name)]
        if wrong or not isinstance(shards, dict):
            raise CheckpointError(
                f"'{index}' names {wrong[0][:80] if wrong else 'no'!r} as a file of weights, and only safetensors "
                f"files beside it are read, for a pickle can run code; fetch the model as safetensors"
            )
    if (folder / "adapter_config.json").exists():
        raise CheckpointError(
            f"'{folder}' holds an adapter (adapter_config.json), which leads to other weights than these; merge it "
            f"into the network and save that"
        )
    config = _json(folder / "config.json") if (folder / "config.json").is_file() else {}
    elsewhere = config.get("transformers_weights")
    if elsewhere is not None and not _is_shard(elsewhere):
        raise CheckpointError(
            f"'{folder / 'config.json'}' names {str(elsewhere)[:80]!r} as its weights, and only safetensors files "
            f"beside it are read; fetch the model as safetensors"
        )
    if not any(folder.glob("*.safetensors")) and (folder / "config.json").is_file():
        pickles = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLES)
        if pickles:
            raise CheckpointError(
                f"'{folder}' holds its weights as a pickle ({pickles[0]}), which can run code when it is opened; "
                f"fetch the model as safetensors"
            )


def _values(shards: Any) -> list[Any]:
    return list(dict.fromkeys(map(str, shards.values()))) if isinstance(shards, dict) else []


def _is_shard(name: Any) -> bool:
    return isinstance(name, str) and name.endswith(".safetensors") and not re.search(r"[/\\:]|^\.\.", name)


def _json(file: Path) -> dict[str, Any]:
    try:
        content = read_json(file)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"'{file}' is not readable JSON ({error}); make or fetch the model again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"'{file}' is no JSON object; make or fetch the model again")
    return content
