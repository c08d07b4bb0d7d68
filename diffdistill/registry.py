"""One registry a kind: a metric, a method, a sampler declares itself in its own file, here or outside the package.

A file of the package's folder holds the row (`METRIC = Metric(name="fid", ...)`), and imports nothing heavy to say so:
`--help`, settings, tables and reports ask the registry for names, and none of them names a row itself.

From outside come rows of the user's own files: `FILE.py:NAME` wherever a name is asked for, or for every command the
files of the environment variable DIFFDISTILL_PLUGINS. Both run code: the first asks for `--allow-code`, unless the
file is one of the package's own examples.
"""

import hashlib
import importlib
import importlib.util
import os
import pkgutil
import sys
from collections.abc import Callable
from difflib import get_close_matches
from functools import cache
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

from diffdistill.assets import example
from diffdistill.errors import ConfigError
from diffdistill.files import expanded

PLUGINS = "DIFFDISTILL_PLUGINS"
OF_PLUGINS = "diffdistill_plugin_"  # what names of the modules of such files begin with
Row = TypeVar("Row")


class _Consent:
    given = False


def allow_code(allowed: bool = True) -> None:
    """Let `FILE.py:NAME` run the file, as `--allow-code` does; the user says so, never a config.

    allowed: False takes the leave back; it is of this process and holds for every file.

    >>> from diffdistill.registry import check_consent
    >>> allow_code()
    >>> check_consent("my_metric.py:METRIC")
    >>> allow_code(False)
    >>> check_consent("my_metric.py:METRIC")
    Traceback (most recent call last):
    diffdistill.errors.ConfigError: 'my_metric.py:METRIC' is code, which would be run: say --allow-code ...
    """
    _Consent.given = allowed


class Registry(Generic[Row]):
    """The rows of one kind by name: those of the files in `package`, and those of plug-ins.

    kind: what it is called in messages, "metric". row: the class of its rows, or that the rows are subclasses of.
    attribute: the module-level name of a row, or of a tuple of rows, in a file. name_of: the name of a row.

    >>> from diffdistill.sampling.sampler import Sampler
    >>> samplers: Registry[Sampler] = Registry("sampler", Sampler, "diffdistill.sampling.samplers", "SAMPLER")
    >>> samplers.get("heun").name, "ddpm" in samplers.names()
    ('heun', True)
    >>> samplers.get("huen")
    Traceback (most recent call last):
    diffdistill.errors.ConfigError: sampler 'huen' is not known (did you mean heun?); it must be one of ...
    """

    def __init__(
        self, kind: str, row: type, package: str, attribute: str, name_of: Callable[[Row], str] = attrgetter("name")
    ):
        self.kind, self.row, self.package, self.attribute, self.name_of = kind, row, package, attribute, name_of

    def rows(self, of_package: bool = False) -> dict[str, Row]:
        """Every row by its name, in the order of the files; ConfigError where a plug-in cannot be read.

        The row of a plug-in takes the place of the package's of that name, a later one's that of an earlier one's.
        of_package: without plug-ins, for what is told while modules are imported, which plug-ins may import.
        """
        modules = [*_modules(self.package), *(() if of_package else plugins())]
        return {self.name_of(row): row for module in modules for row in self._rows_in(module)}

    def names(self) -> tuple[str, ...]:
        return tuple(self.rows())

    def get(self, name: str) -> Row:
        """The row of that name, or of `FILE.py:NAME`; ConfigError, with the names there are, where there is none."""
        if (row := self.find(name)) is not None:
            return row
        if is_plugin(name):
            value = load(name)
            if self._fits(value):
                return value
            raise ConfigError(f"'{name}' is no {self.kind}; it must be a {self.row.__module__}.{self.row.__name__}")
        raise ConfigError(self.unknown(name))

    def find(self, name: str) -> Row | None:
        """The row of that name, as `rows` has it; None where there is none.

        Most stand in a file that is called as they are, and the package's others are not read then.
        """
        for module in reversed(plugins()):
            for row in reversed(self._rows_in(module)):
                if self.name_of(row) == name:
                    return row
        file = f"{self.package}.{name}"
        if name.isidentifier() and importlib.util.find_spec(file) is not None:
            for row in self._rows_in(importlib.import_module(file)):
                if self.name_of(row) == name:
                    return row
        return self.rows().get(name)

    def unknown(self, name: str) -> str:
        near = get_close_matches(name, self.names(), 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        return f"{self.kind} '{name}' is not known{hint}; it must be one of {', '.join(self.names())}, or FILE.py:NAME"

    def _rows_in(self, module: ModuleType) -> tuple[Row, ...]:
        value = getattr(module, self.attribute, ())
        rows = value if isinstance(value, tuple) else (value,)
        for row in rows:
            if not self._fits(row):
                raise ConfigError(
                    f"{self.attribute} in '{module.__file__}' is {row!r:.60}, and a {self.kind} must be a "
                    f"{self.row.__module__}.{self.row.__name__}; mend the file, or take it out of {PLUGINS}"
                )
        return rows

    def _fits(self, value: object) -> bool:
        return isinstance(value, self.row) or (isinstance(value, type) and issubclass(value, self.row))


@cache
def _modules(package: str) -> tuple[ModuleType, ...]:
    home = importlib.import_module(package)
    return tuple(importlib.import_module(f"{package}.{info.name}") for info in pkgutil.iter_modules(home.__path__))


def plugins() -> tuple[ModuleType, ...]:
    """The modules of the files in DIFFDISTILL_PLUGINS, separated as in PATH; ConfigError for one that cannot be run.

    >>> import os, tempfile
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder, "mine.py")
    ...     count = file.write_text("WHERE = 'here'")
    ...     os.environ["DIFFDISTILL_PLUGINS"] = str(file)
    ...     [module.WHERE for module in plugins()]
    ['here']
    >>> del os.environ["DIFFDISTILL_PLUGINS"]
    """
    files = [file for file in os.environ.get(PLUGINS, "").split(os.pathsep) if file]
    try:
        return tuple(_module(file) for file in files)
    except ConfigError as error:
        raise ConfigError(f"the environment variable {PLUGINS} names a plug-in that cannot be had: {error}") from None


def is_plugin(name: str) -> bool:
    """Whether a name has the form `FILE.py:NAME`.

    >>> is_plugin("my_metric.py:METRIC"), is_plugin("fid"), is_plugin("alpha:0.5")
    (True, False, False)
    """
    place, _, attribute = name.rpartition(":")
    return place.endswith(".py") and attribute.isidentifier()


def load(name: str) -> Any:
    """What `FILE.py:NAME` or `module:NAME` is, once the user has allowed code; raises ConfigError.

    FILE.py is relative to the current folder; `examples/...` means the package's own file where there is one, which
    runs without leave, and `./examples/...` the user's.

    >>> load("examples/emoji/judge.py:STYLES")
    ('noto', 'twemoji')
    >>> load("my_metric.py:METRIC")
    Traceback (most recent call last):
    diffdistill.errors.ConfigError: 'my_metric.py:METRIC' is code, which would be run: say --allow-code ...
    """
    check_consent(name)
    place, _, attribute = name.rpartition(":")
    place = str(_own(place) or place)
    value = getattr(_module(place), attribute, None)
    if value is None:
        raise ConfigError(f"'{place}' defines no '{attribute}'; give FILE.py:NAME of what it defines")
    return value


def check_consent(name: str) -> None:
    """ConfigError for `FILE.py:NAME`, or a file that is a program, that the user has not allowed to run.

    >>> check_consent("examples/emoji/judge.py:noto")
    >>> check_consent("my_reward.py:noto")
    Traceback (most recent call last):
    diffdistill.errors.ConfigError: 'my_reward.py:noto' is code, which would be run: say --allow-code ...
    """
    if not _Consent.given and _own(name.rpartition(":")[0]) is None:
        raise ConfigError(
            f"'{name}' is code, which would be run: say --allow-code if you trust the file (in Python: "
            f"diffdistill.registry.allow_code())"
        )


def _own(place: str) -> Path | None:
    return None if place.startswith(".") else example(place)


def plugin_file(module: object) -> str | None:
    """The file of a module that came from a plug-in; None for any other module, by its name.

    >>> print(plugin_file("diffdistill.losses"))
    None
    """
    if not isinstance(module, str) or not module.startswith(OF_PLUGINS):
        return None
    return str(getattr(sys.modules.get(module), "__file__", None) or module.removeprefix(OF_PLUGINS))


def named(target: str) -> Any:
    """What the package's own `module:name` is; imported now, so that tables of names stay light.

    >>> named("diffdistill.losses:alpha_bounds")(1.5)
    (0.0, 2.0)
    """
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def _module(place: str) -> ModuleType:
    try:
        return _run(expanded(place).resolve()) if place.endswith(".py") else importlib.import_module(place)
    except FileNotFoundError:
        raise ConfigError(f"the file '{place}' does not exist; give its path from here") from None
    except ImportError as error:
        raise ConfigError(f"'{place}' cannot be imported ({error}); give FILE.py:NAME") from None
    except Exception as error:  # the user's own code
        raise ConfigError(f"'{place}' fails when it is run ({type(error).__name__}: {error}); mend it") from error


def _run(file: Path) -> ModuleType:
    """The module of a file, which runs once: where it imports what asks for plug-ins, it is given as far as it is."""
    name = f"{OF_PLUGINS}{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pydantic look up their module by name, too
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
