"""From a YAML file and `key=value` overrides to checked, frozen settings.

Order: defaults < `base:` parents < the file < overrides. No torch here: an error must come at once.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import reduce
from pathlib import Path as File
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from diffdistill.config.complaints import dotted, fields_of, sentences, variants
from diffdistill.config.unused import OVERRIDE, RULES, Given
from diffdistill.config.yaml import Placed, flow, parse, places_in, read
from diffdistill.errors import ConfigError, Problems
from diffdistill.files import reason_of
from diffdistill.section import Section

Model = TypeVar("Model", bound=Section)

PACKAGE = File(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Resolved(Generic[Model]):
    """Settings of one run, ready to use and to write down.

    text_yaml: every value with, as a comment, the place it came from; it loads back equal. sha256: of the values
    alone. origins: the place of every value that was given, by dotted key; what is not there is a default. given: the
    values themselves, as they were laid over each other.
    """

    config: Model
    text_yaml: str
    sha256: str
    origins: Mapping[str, str]
    given: Given = field(compare=False, repr=False)


# The first says what the second would: a file, or the command line, with one means it, whatever lies below has.
EITHER = (("ema_decay", "ema_half_life_images"), ("ema_half_life_images", "ema_decay"))


def merged(lower: dict[str, Any], upper: Placed) -> Placed:
    """`upper` laid over `lower`: sections are merged, anything else is replaced, with its place.

    Of two settings that say one thing, the one that `upper` gives replaces the other of `lower`; two overrides that
    both say it stay, and the section refuses them.
    """
    result = Placed(lower)
    for one, other in EITHER:
        both_overrides = result.places.get(other, "").startswith(OVERRIDE)
        if upper.get(one) is not None and other not in upper and not both_overrides:
            result.pop(other, None)
            result.places.pop(other, None)
    for key, value in upper.items():
        below = result.get(key)
        if isinstance(value, Placed) and isinstance(below, dict):
            result[key] = merged(below, value)
        else:
            result[key], result.places[key] = value, upper.places[key]
    return result


def configs_folder() -> File:
    """Folder of the shipped configs: in the wheel beside the modules, in a clone beside the package."""
    inside = PACKAGE / "configs"
    return inside if inside.is_dir() else PACKAGE.parent / "configs"


EARLIER_BASES = (
    "fashion_mnist/distill", "emoji/distill", "cifar10/edm", "imagenet64/edm", "sd15/sd15", "sdxl/sdxl",
)  # fmt: skip
"""Names that a folder's `_base` had before 0.2; configs of users still say them."""


def find_config(name: str, beside: File | None = None) -> tuple[File, str]:
    """The file CONFIG means and the name to call it by: a path, or a shipped config such as `fashion_mnist/dmd2`.

    beside: the folder that relative paths start from. Raises ConfigError when there is no such file.
    """
    shipped = configs_folder()
    short = name.removeprefix("configs/").removesuffix(".yaml")
    try:
        path = File(name) if beside is None else beside / name
        if path.is_file():
            inside = path.resolve().is_relative_to(shipped)
            return path, f"configs/{path.resolve().relative_to(shipped)}" if beside and inside else str(path)
        if path.is_dir():
            raise ConfigError(f"'{path}' is a folder; give a YAML file")
        if short in EARLIER_BASES:
            short = f"{short.partition('/')[0]}/_base"
        if (shipped / f"{short}.yaml").is_file():
            return shipped / f"{short}.yaml", f"configs/{short}.yaml"
    except (OSError, ValueError) as error:
        raise ConfigError(f"'{name[:80]}' cannot be a config ({reason_of(error)}); name a YAML file") from None
    files = [file for file in shipped.rglob("*.yaml") if file.stem != "_base"]
    names = sorted(file.relative_to(shipped).with_suffix("").as_posix() for file in files)
    close = get_close_matches(short, names, 1)
    hint = f"did you mean '{close[0]}'?" if close else f"shipped configs: {', '.join(names) or 'none'}"
    raise ConfigError(f"config '{name}' does not exist; {hint}")


MOST_PARENTS = 64  # files that one config may be made of


@dataclass
class _Files:
    """What a config is made of: files met so far; their labels, parents first; those of resolved ones."""

    met: int = 0
    order: list[str] = field(default_factory=list)
    whole: set[str] = field(default_factory=set)


def _read(name: str, files: _Files, beside: File | None = None, chain: tuple[File, ...] = ()) -> Placed:
    path, label = find_config(name, beside)
    files.met += 1
    if files.met > MOST_PARENTS:
        raise ConfigError(f"{label}: 'base' leads to more than {MOST_PARENTS} files; put the settings into fewer")
    if path.resolve() in chain:
        raise ConfigError(f"{label}: 'base' leads back to this file; remove one link of the circle")
    data = read(path, label)
    data = Placed() if data is None else data
    if not isinstance(data, Placed):
        raise ConfigError(f"{label}: holds {flow(data)[:60]}; a config is a list of 'key: value' lines")
    parents, place = data.pop("base", []), data.places.pop("base", label)
    parents = [parents] if isinstance(parents, str) else parents
    if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
        raise ConfigError(f"{place}: 'base' must be a config or a list of configs")
    above = [_read(parent, files, path.parent, (*chain, path.resolve())) for parent in parents]
    files.order.append(label)
    if is_resolved(path):
        files.whole.add(label)
    return reduce(merged, [*above, data])


def given_in(name: str) -> Placed:
    """What a config and its parents say, laid over each other and not checked; ConfigError where there is none."""
    return _read(name, _Files())


RESOLVED = "settings, resolved; sha256"


def is_resolved(path: File) -> bool:
    """Whether a file is the `config.yaml` of a run, which says every setting, used or not."""
    with path.open("rb") as stream:
        first = stream.readline(200)
    return first.startswith(b"#") and RESOLVED.encode() in first


def _override(text: str) -> Placed:
    label = f"override '{text}'"
    name, sign, value = text.partition("=")
    path = name.strip().replace("-", "_").split(".")
    if not sign or not all(path):
        raise ConfigError(f"{label} is not allowed after CONFIG; write key=value, e.g. optimizer.learning_rate=1e-4")
    try:
        data: Any = value.strip() if COMMENT.search(value) else parse(value, label, numbered=False)
    except ConfigError as error:
        data = Unread(value.strip())
        data.error = f"{error}; put quotes around text"
    for key in reversed(path):
        data = Placed({key: data}, {key: label})
    return data


class Unread(str):
    """A word that is no YAML: a text all the same, where the setting is one; `error`: why it is nothing else."""

    error: str


COMMENT = re.compile(r"^(?!\s*[\"'\[{])(.*\s)?#")
"""What a YAML line would lose from `#` on. A word of a command line has no comments: `data.path=set #2` is a name."""


def _as_text(model: type[BaseModel], given: Placed, overrides: Sequence[str]) -> Placed:
    """`given`, with overrides of settings that are text as they were written, be it `2024`, `[old] set` or `@home`:
    the shell takes the quotes away that YAML wants. Within quotes of its own a word is YAML, and so is `null`.

    Raises ConfigError for a word that is no YAML where the setting is no text.
    """
    texts = {path: info.annotation for path, info in fields_of(model, given) if info.annotation in (str, str | None)}
    words = (word.partition("=") for word in overrides)
    last = {tuple(name.strip().replace("-", "_").split(".")): value for name, _, value in words}
    for path, value in last.items():
        section: Any = given
        for key in path[:-1]:
            section = section.get(key) if isinstance(section, dict) else None
        if not isinstance(section, dict) or path[-1] not in section:
            continue
        word = value.strip()
        given_value = section[path[-1]]
        null = word == "null" or (word in ("~", "") and texts.get(path) is not str)
        yaml = null or (QUOTED.fullmatch(word) and not isinstance(given_value, Unread))
        below = any(other[: len(path)] == path != other for other in last)  # keys of a text, which has none
        if path in texts and not yaml and not below:
            section[path[-1]] = word
        elif isinstance(given_value, Unread):
            raise ConfigError(given_value.error)
    return given


QUOTED = re.compile(r"""(["']).*\1""", re.DOTALL)


def with_defaults(model: type[BaseModel], data: Placed) -> dict[str, Any]:
    """Complete given sections from the model's own defaults.

    Pydantic alone would fill a partly given section from the defaults of its class and forget those of the place it
    stands in: `level: {std: 1}` where the default is `Level(law="lognormal")` would silently become another law.
    """
    result: dict[str, Any] = dict(data)
    for name, info in model.model_fields.items():
        value = data.get(name)
        if not isinstance(value, Placed):
            continue
        default = info.default.model_dump(mode="json") if isinstance(info.default, BaseModel) else {}
        if default and type(info.default) in variants(info, merged(default, value)):
            result[name] = merged(default, value)
        elif chosen := variants(info, value):
            result[name] = with_defaults(chosen[0], value)
    return result


def resolve(model: type[Model], given: Placed, label: str) -> Model:
    """Check settings against a model; ConfigError has one line for every problem."""
    data = with_defaults(model, given)
    try:
        # JSON mode: lists may fill tuples, yet nothing else is converted: true is no number and 1.0 no whole number.
        return model.model_validate_json(json.dumps(data, ensure_ascii=False).encode(), strict=True)
    except UnicodeEncodeError as error:
        wrong = ascii(error.object[error.start : error.end])
        raise ConfigError(f"{label}: {wrong} is no character; write the settings as UTF-8 text") from None
    except ValidationError as error:
        raise Problems("\n".join(sentences(error, model, data, given, label))) from None


def load_config(model: type[Model], path: str | File, overrides: Sequence[str] = ()) -> Resolved[Model]:
    """Read CONFIG, lay `a.b=c` overrides over it and check everything against `model`.

    path: a YAML file or the name of a shipped config; a key `base` names parents (one or a list, relative to the file
    or shipped). Raises ConfigError, naming file and line, with one line for every problem.
    """
    files = _Files()
    given = reduce(merged, map(_override, overrides), _read(str(path), files))
    model = model.admitting(given)
    config = resolve(model, _as_text(model, given, overrides), find_config(str(path))[1])
    known = Given(given, files.order, files.whole)
    if idle := known.idle(config, RULES.get(model.__name__, ())):
        raise Problems("\n".join(idle))
    origins = {
        dotted(path): place
        for path, place, value in places_in(given)
        if isinstance(path[-1], str) and not isinstance(value, dict)
    }
    digest = hashlib.sha256(json.dumps(config.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()
    text_yaml = f"# {model.__name__.lower()} {RESOLVED} {digest}\n{dump_config(config, origins)}"
    return Resolved(config, text_yaml, digest, origins, known)


def dump_config(config: BaseModel, origins: Mapping[str, str] | None = None) -> str:
    """YAML of all settings, defaults too, that `load_config` reads back equal; `origins` become comments."""
    lines: list[str] = []

    def write(section: dict[str, Any], prefix: str, indent: str) -> None:
        for key, value in section.items():
            dotted = f"{prefix}{key}"
            if isinstance(value, dict) and value:
                lines.append(f"{indent}{flow(key)}:")
                write(value, f"{dotted}.", f"{indent}  ")
            else:
                origin = (origins or {}).get(dotted)
                comment = f"  # {' '.join(origin.split())}" if origin else ""
                lines.append(f"{indent}{flow(key)}: {flow(value)}{comment}")

    write(config.model_dump(mode="json"), "", "")
    return "\n".join(lines) + "\n"
