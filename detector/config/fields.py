"""Building blocks of the configuration: value types, and the base class of its sections."""

import os
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field


def in_home(path: str | None) -> str | None:
    """Expand ~ at the start of a path; a shell does so only at the start of a word, not in KEY=~/data."""
    return path and os.path.expanduser(path)  # noqa: PTH111  pathlib would change the spelling


def _no_two(names: list[str]) -> list[str]:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"'{name}' is listed twice")
    return names


def _no_bool(value: Any) -> Any:
    # pydantic accepts `true` as 1; in a configuration that is a typo.
    if isinstance(value, bool):
        raise ValueError(f"must be a number, got {str(value).lower()}")
    return value


Number = Annotated[float, BeforeValidator(_no_bool)]
Integer = Annotated[int, BeforeValidator(_no_bool)]
Fraction = Annotated[Number, Field(ge=0, le=1)]
Positive = Annotated[Number, Field(gt=0)]
NonNegative = Annotated[Number, Field(ge=0)]
Count = Annotated[Integer, Field(ge=1, lt=2**31)]
Whole = Annotated[Integer, Field(ge=0, lt=2**31)]
Names = Annotated[list[str], Field(min_length=1)]
Classes = Annotated[Names, AfterValidator(_no_two)]


def _a_class_or_more(value: Any) -> Any:
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        got = "nothing; write a space after the colon" if value is None else f"{value!r}"
        raise ValueError(f"must be a class or a list of classes, got {got}")
    return value


Parts = Annotated[Classes, BeforeValidator(_a_class_or_more)]


def _transform_shaped(value: Any) -> Any:
    shaped = isinstance(value, str) or (
        isinstance(value, dict) and all(isinstance(p, dict) or p is None for p in value.values())
    )
    if not shaped:
        raise ValueError(
            "must be NAME or NAME: {parameter: value}, with the parameters indented below the name; got "
            f"{value!r}"
        )
    return value


Transform = Annotated[str | dict[str, dict[str, Any] | None], BeforeValidator(_transform_shaped)]


class Section(BaseModel):
    """A part of the configuration: immutable, without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def sub_section(annotation: Any) -> type[Section] | None:
    """The section class that a field holds, or None."""
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def leaf_values(section: Section, prefix: str = "") -> dict[str, Any]:
    """The value of every dotted key."""
    values: dict[str, Any] = {}
    for name in type(section).model_fields:
        value = getattr(section, name)
        inner = isinstance(value, Section)
        values |= leaf_values(value, f"{prefix}{name}.") if inner else {prefix + name: value}
    return values
