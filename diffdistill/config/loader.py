"""From a YAML file and `key=value` overrides to checked, frozen settings.

Order: defaults < `base:` parents < the file < overrides. No torch here: an error must come at once.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path as File
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from diffdistill.config.complaints import dotted, sentences, variants
from diffdistill.config.yaml import Path, flow, parse, read
from diffdistill.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)

PACKAGE = File(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Resolved(Generic[Model]):
    """Settings of one run, ready to use and to write down.

    text_yaml: every value with, as a comment, the place it came from; it loads back equal. sha256: of the values
    alone. origins: the place of every value that was given, by dotted key; what is not there is a default.
    """

    config: Model
    text_yaml: str
    sha256: str
    origins: Mapping[str, str]


@dataclass
class _Layer:
    data: dict[str, Any] = field(default_factory=dict)
    places: dict[Path, str] = field(default_factory=dict)

    def put(self, upper: "_Layer") -> None:
        """Lay `upper` over this layer: sections are merged, anything else is replaced."""
        self.data = merged(self.data, upper.data)
        for path in [path for path in self.places if _replaced(path, upper)]:
            del self.places[path]
        for path, place in upper.places.items():
            if path not in self.places or not isinstance(_at(upper.data, path), dict):
                self.places[path] = place


def _replaced(path: Path, upper: _Layer) -> bool:
    value: Any = upper.data
    for key in path:
        if not isinstance(value, dict):
            return True
        if key not in value:
            return False
        value = value[key]
    return False


def merged(lower: dict[str, Any], upper: dict[str, Any]) -> dict[str, Any]:
    result = dict(lower)
    for key, value in upper.items():
        below = result.get(key)
        result[key] = merged(below, value) if isinstance(value, dict) and isinstance(below, dict) else value
    return result


def configs_folder() -> File:
    """Folder of the shipped configs: in the wheel beside the modules, in a clone beside the package."""
    inside = PACKAGE / "configs"
    return inside if inside.is_dir() else PACKAGE.parent / "configs"


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
        if (shipped / f"{short}.yaml").is_file():
            return shipped / f"{short}.yaml", f"configs/{short}.yaml"
    except (OSError, ValueError) as error:
        raise ConfigError(f"'{name[:80]}' cannot be a config: {error}") from None
    files = [file for file in shipped.rglob("*.yaml") if file.stem != "_base"]
    names = sorted(file.relative_to(shipped).with_suffix("").as_posix() for file in files)
    close = get_close_matches(short, names, 1)
    hint = f"did you mean '{close[0]}'?" if close else f"shipped configs: {', '.join(names) or 'none'}"
    raise ConfigError(f"config '{name}' does not exist; {hint}")


def _read(name: str, beside: File | None = None, chain: tuple[File, ...] = ()) -> _Layer:
    path, label = find_config(name, beside)
    if path.resolve() in chain:
        raise ConfigError(f"{label}: 'base' leads back to this file; remove one link of the circle")
    document = read(path, label)
    data = {} if document.data is None else document.data
    if not isinstance(data, dict):
        raise ConfigError(f"{label}: holds {flow(data)[:60]}; a config is a list of 'key: value' lines")
    parents = data.pop("base", [])
    parents = [parents] if isinstance(parents, str) else parents
    if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
        raise ConfigError(f"{label}:{document.lines[('base',)]}: 'base' must be a config or a list of configs")
    layer = _Layer()
    for parent in parents:
        layer.put(_read(parent, path.parent, (*chain, path.resolve())))
    places = {key: f"{label}:{line}" for key, line in document.lines.items() if key[0] != "base"}
    layer.put(_Layer(data, places))
    return layer


def _override(text: str) -> _Layer:
    label = f"override '{text}'"
    name, sign, value = text.partition("=")
    path = tuple(name.strip().replace("-", "_").split("."))
    if not sign or not all(path):
        raise ConfigError(f"{label} is not allowed after CONFIG; write key=value, e.g. optimizer.learning_rate=1e-4")
    try:
        data = parse(value, label).data
    except ConfigError as error:
        raise ConfigError(str(error).replace(f"{label}:1:", f"{label}:") + "; put quotes around text") from None
    for key in reversed(path):
        data = {key: data}
    return _Layer(data, {path[: depth + 1]: label for depth in range(len(path))})


def with_defaults(model: type[BaseModel], data: dict[str, Any]) -> dict[str, Any]:
    """Complete given sections from the model's own defaults.

    Pydantic alone would fill a partly given section from the defaults of its class and forget those of the place it
    stands in: `level: {std: 1}` where the default is `Level(law="lognormal")` would silently become another law.
    """
    result = dict(data)
    for name, info in model.model_fields.items():
        value = data.get(name)
        if not isinstance(value, dict):
            continue
        default = info.default.model_dump(mode="json") if isinstance(info.default, BaseModel) else {}
        if default and type(info.default) in variants(info, merged(default, value)):
            result[name] = merged(default, value)
        elif chosen := variants(info, value):
            result[name] = with_defaults(chosen[0], value)
    return result


def resolve(model: type[Model], given: dict[str, Any], places: Mapping[Path, str], label: str) -> Model:
    """Check plain data against a model; ConfigError has one line for every problem."""
    data = with_defaults(model, given)
    try:
        # JSON mode: lists may fill tuples, yet nothing else is converted: true is no number and 1.0 no whole number.
        return model.model_validate_json(json.dumps(data, ensure_ascii=False).encode(), strict=True)
    except UnicodeEncodeError as error:
        wrong = ascii(error.object[error.start : error.end])
        raise ConfigError(f"{label}: {wrong} is no character; write the settings as UTF-8 text") from None
    except ValidationError as error:
        raise ConfigError("\n".join(sentences(error, model, data, places, label))) from None


def load_config(model: type[Model], path: str | File, overrides: Sequence[str] = ()) -> Resolved[Model]:
    """Read CONFIG, lay `a.b=c` overrides over it and check everything against `model`.

    path: a YAML file or the name of a shipped config; a key `base` names parents (one or a list, relative to the file
    or shipped). Raises ConfigError, naming file and line, with one line for every problem.
    """
    layer = _read(str(path))
    for text in overrides:
        layer.put(_override(text))
    model = model.admitting(layer.data)
    label = find_config(str(path))[1]
    config = resolve(model, layer.data, layer.places, label)
    origins = {
        dotted(path): place
        for path, place in layer.places.items()
        if isinstance(path[-1], str) and not isinstance(_at(layer.data, path), dict)
    }
    digest = hashlib.sha256(json.dumps(config.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()
    text_yaml = f"# {model.__name__.lower()} settings, resolved; sha256 {digest}\n{dump_config(config, origins)}"
    return Resolved(config, text_yaml, digest, origins)


def _at(data: Any, path: Path) -> Any:
    for key in path:
        data = data[key]
    return data


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
