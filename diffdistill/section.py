"""What all settings are made of: a frozen section, numbers with bounds, names of a table, and the plain data in them.

The mathematics knows no section: it takes frozen dataclasses, which `plain` fills by the names of their fields.
"""

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Self, TypeVar, get_args, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from diffdistill.registry import is_plugin

Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, le=10**9)]  # above is a typing error, and overflows what counts with it
Curvature = Annotated[float, Field(ge=0.1, le=1000)]  # of levels: powers of it, and of one over it, are numbers
Plain = TypeVar("Plain")


def meaning(section: type[BaseModel]) -> str:
    """What a section says that it is: its docstring without the examples in Python; its name where it has none."""
    return inspect.cleandoc(section.__doc__ or section.__name__).partition("\n\n>>> ")[0]


def _described(schema: dict[str, Any], section: type[BaseModel]) -> None:
    if "description" in schema:
        schema["description"] = meaning(section)


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True, json_schema_extra=_described
    )

    @classmethod
    def admitting(cls, data: Mapping[str, Any]) -> type[Self]:
        """The class that these settings are checked against; another where they name a plug-in with settings."""
        return cls


class OneOf:
    """`Annotated[str, OneOf(NAMES)]`: one of these names; a `Literal` of names that stand in a table elsewhere.

    files: or `FILE.py:NAME`, which the section itself looks up.
    """

    def __init__(self, names: Iterable[str], files: bool = False):
        self.names, self.files = list(names), files

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        names = core_schema.literal_schema(self.names)
        if not self.files:
            return names
        text = core_schema.simple_ser_schema("str")
        return core_schema.no_info_wrap_validator_function(_name_or_file, names, serialization=text)


def _name_or_file(value: Any, known: Callable[[Any], str]) -> str:
    return value if isinstance(value, str) and is_plugin(value) else known(value)


def plain(section: BaseModel, kind: type[Plain]) -> Plain:
    """The dataclass `kind` with the section's values: of its fields those that the section has, by name.

    A section within becomes the dataclass that the field's annotation names.
    """
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        if not hasattr(section, field.name):
            continue
        value = getattr(section, field.name)
        if isinstance(value, BaseModel):
            options = (hints[field.name], *get_args(hints[field.name]))
            value = plain(value, next(option for option in options if dataclasses.is_dataclass(option)))  # type: ignore[arg-type]
        values[field.name] = value
    return kind(**values)
