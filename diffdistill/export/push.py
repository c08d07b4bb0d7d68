"""`diffdistill push`: a model to a repository of the Hub, all of it or nothing."""

import shutil
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffdistill.errors import ConfigError
from diffdistill.export.card import card_of
from diffdistill.export.folder import check_parts
from diffdistill.export.source import Source, open_source
from diffdistill.files import PICKLES
from diffdistill.pipelines.folder import CARD, FITTED, INDEX, METADATA
from diffdistill.reporting.front_matter import VAGUE, facts_of

__all__ = ["Parcel", "parcel_of"]

BESIDE = (INDEX, METADATA, *FITTED)
OF_THE_HUB = (".gitattributes", CARD)
"""Files that a repository has from its making on."""


@dataclass(frozen=True)
class Parcel:
    """What goes to the Hub: files by their place in the repository, and the text of README.md.

    >>> from diffdistill.export.push import parcel_of
    >>> parcel_of("builtin:fashion_mnist_teacher", licence="mit").card.splitlines()[1]
    'license: mit'
    """

    source: Source
    files: dict[str, Path]
    card: str

    @property
    def sizes(self) -> dict[str, int]:
        found = {name: file.stat().st_size for name, file in self.files.items()}
        return dict(sorted((found | {CARD: len(self.card.encode())}).items()))


def run(args: Namespace) -> int:
    """Upload the model, or with `--dry-run` show what would be."""
    parcel = parcel_of(args.model, base=args.base_model, licence=args.license)
    print(told(parcel, args.repo, dry=args.dry_run), flush=True)
    if not args.dry_run:
        print(push(parcel, args.repo, private=args.private, overwrite=args.overwrite))
    return 0


def parcel_of(model: str, *, base: str | None = None, licence: str | None = None) -> Parcel:
    """What of a model goes to the Hub: the parts that its index names, its adapter, its record; no pickle, nothing
    else that lies there. base, licence: what the card says of them, in place of what is found here.

    >>> sorted(parcel_of("builtin:fashion_mnist_teacher").files)[:3]
    ['calibration.json', 'diffdistill.json', 'model_index.json']

    Raises CheckpointError for a damaged model.
    """
    source = open_source(model)
    check_parts(source)
    parts = [name for name, entry in source.index.items() if isinstance(entry, list)]
    files = {name: source.folder / name for name in BESIDE if (source.folder / name).is_file()}
    for part in (*parts, "lora"):
        for file in sorted((source.folder / part).rglob("*")):
            if file.is_file() and not file.name.startswith(".") and file.suffix not in PICKLES:
                files[file.relative_to(source.folder).as_posix()] = file
    files |= {name: source.folder / name for name in source.record.get("sha256", {})}
    return Parcel(source, files, card_of(source, base, licence))


def told(parcel: Parcel, repo: str, *, dry: bool) -> str:
    """What is uploaded: every file with its size, what the Hub reads of the card, what the card does not know."""
    sizes = parcel.sizes
    lines = [f"{repo}: {len(sizes)} files, {_size(sum(sizes.values()))}{', not uploaded (--dry-run)' * dry}"]
    lines += [f"  {_size(size):>10}  {name}" for name, size in sizes.items()]
    facts = facts_of(parcel.card)
    words = {
        "base_model": facts.get("base_model") or "unknown: name it with --base-model OWNER/NAME",
        "license": facts.get("license"),
        "model-index": ", ".join(_figures(facts.get("model-index"))) or "no figures",
    }
    if words["license"] == VAGUE:
        words["license"] = f"{VAGUE}: name that of its base with --license"
    return "\n".join([*lines, "card:", *(f"  {key}: {value}" for key, value in words.items())])


def _figures(index: Any) -> Iterator[str]:
    """Name and value of each figure; a card that somebody wrote may hold anything there."""
    if isinstance(index, list):
        for entry in index:
            yield from _figures(entry)
    elif isinstance(index, dict) and isinstance(index.get("value"), int | float):
        yield f"{index.get('name') or index.get('type')} {index['value']:.4g}"
    elif isinstance(index, dict):
        yield from _figures([index.get("results"), index.get("metrics")])


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count / 1e3:,.1f} kB"


def push(parcel: Parcel, repo: str, *, private: bool = False, overwrite: bool = False) -> str:
    """Upload in one commit; returns a line with the address. overwrite: what else the repository holds is removed.

    ConfigError, and nothing is uploaded, without a token, for a repository that holds files and must not lose them,
    and for what the Hub answers.
    """
    import huggingface_hub

    if huggingface_hub.get_token() is None:
        raise ConfigError(
            f"there is no token for the Hub, so nothing was pushed to '{repo}'; run 'hf auth login', or set HF_TOKEN"
        )
    api = huggingface_hub.HfApi()
    try:
        taken = _files_there(api, repo)
        if taken and not overwrite:
            raise ConfigError(
                f"'{repo}' exists and holds {len(taken)} files ({', '.join(taken[:3])}), which are not written over; "
                f"name a new repository, or say --overwrite"
            )
        api.create_repo(repo, private=private, exist_ok=True)
        with staged(parcel) as folder:
            done = api.upload_folder(
                repo_id=repo,
                folder_path=folder,
                commit_message="Upload with diffdistill",
                delete_patterns=["*"] if taken else None,
            )
    except ConfigError:
        raise
    except Exception as error:  # of the Hub's client and of what it sends with: network, rights, names
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ConfigError(
            f"nothing was pushed to '{repo}' ({reason}); check the name, the rights of the token and the network"
        ) from error
    return f"{getattr(done, 'commit_url', None) or repo}: pushed"


def _files_there(api: Any, repo: str) -> list[str]:
    """Files of somebody's in a repository; [] where there is none, or an empty one."""
    if not api.repo_exists(repo):
        return []
    return sorted(set(api.list_repo_files(repo)) - set(OF_THE_HUB))


@contextmanager
def staged(parcel: Parcel) -> Iterator[Path]:
    """A folder of what is uploaded, of links to the model's files and the completed card; the model stays as it is."""
    with tempfile.TemporaryDirectory(prefix="diffdistill-") as place:
        for name, file in parcel.files.items():
            target = Path(place) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                target.symlink_to(file.resolve())
            except OSError:  # a system, or its user, that may not
                shutil.copyfile(file, target)
        (Path(place) / CARD).write_text(parcel.card, "utf-8")
        yield Path(place)
