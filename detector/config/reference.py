"""Writes docs/configuration.md from the schema: python -m detector.config.reference."""

import types
import typing
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml

from detector.config import Config, Section
from detector.config.fields import Transform, sub_section


def reference() -> str:
    """The configuration reference in Markdown: every key, its type, default and meaning."""
    lines = [
        "# Configuration reference",
        "",
        "Every key of the YAML files, generated from the schema by `python -m detector.config.reference`.",
        "On the command line: `python train.py CONFIG optimizer.lr=0.005`.",
    ]
    for name, field in Config.model_fields.items():
        section = sub_section(field.annotation)
        assert section is not None
        lines += ["", f"## {name}", "", "| key | type | default | meaning |", "|---|---|---|---|"]
        lines += _reference_rows(section, f"{name}.")
    return "\n".join(lines) + "\n"


def _reference_rows(section: type[Section], prefix: str) -> list[str]:
    rows = []
    for name, field in section.model_fields.items():
        inner = sub_section(field.annotation)
        if inner:
            rows += _reference_rows(inner, f"{prefix}{name}.")
            continue
        default = yaml.safe_dump(
            _rounded(field.get_default()), default_flow_style=True, width=1 << 20
        ).strip()
        default = default.removesuffix("...").strip()
        kind = _type_name(field.annotation).replace("|", "\\|")
        rows.append(f"| `{prefix}{name}` | {kind} | `{default}` | {field.description or ''} |")
    return rows


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [_rounded(v) for v in value]
    return round(value, 4) if isinstance(value, float) and value > 0.01 else value


def _type_name(annotation: Any) -> str:
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        return _type_name(typing.get_args(annotation)[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in typing.get_args(annotation))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type_name(a) for a in typing.get_args(annotation))
    if origin is dict:
        key, value = (_type_name(a) for a in typing.get_args(annotation))
        return f"mapping from {key} to {value}"
    if origin is list:
        inner = typing.get_args(annotation)[0]
        return "list of transforms" if inner == Transform else f"list of {_type_name(inner)}"
    if annotation is type(None):
        return "null"
    return {"float": "number", "int": "integer", "str": "text", "bool": "true, false"}.get(
        getattr(annotation, "__name__", ""), str(annotation)
    )


if __name__ == "__main__":
    Path("docs/configuration.md").write_text(reference(), encoding="utf-8")
