"""Reads a configuration: YAML files with inheritance, KEY=VALUE overrides, and errors that name the key."""

import difflib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_origin

import yaml
from pydantic import ValidationError

from detector.config import Config, Section
from detector.config.fields import Names, in_home, sub_section
from detector.config.hints import leaf_kinds, nearest
from detector.config.idle import warn_of_idle_settings
from errors import InputError

_TEXTS = (str, str | None)
_TEXT_OR_LIST = (str | Names, str | Names | None)
_NOTHING = ("", "~", "null", "Null", "NULL")  # YAML's nulls

_LEADING_ZERO = re.compile(r"[-+]?0[0-9_]")

_OURS = Path(__file__).resolve().parents[2] / "configs"


class _StrictLoader(yaml.SafeLoader):
    """YAML without two of its surprises.

    It silently uses the last of several sections of the same name. And it reads 016 as 14 and 12:30 as 750;
    here both are text, which the schema converts to 16 and refuses, respectively.
    """

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError):  # 2026-13-45, !!int '', !!bool x, !!timestamp x
            raise yaml.YAMLError(f"{node.value!r} is not a value, line {node.start_mark.line + 1}") from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        twice = next((key for i, key in enumerate(keys) if key in keys[:i]), None)
        if twice is not None:
            raise yaml.YAMLError(f"'{twice}' appears twice in one mapping, line {node.start_mark.line + 1}")
        return super().construct_mapping(node, deep)

    def construct_number(self, node: yaml.ScalarNode) -> Any:
        text = node.value
        if ":" in text or _LEADING_ZERO.match(text):
            return text
        return self.construct_yaml_int(node) if node.tag.endswith(":int") else self.construct_yaml_float(node)


_StrictLoader.add_constructor("tag:yaml.org,2002:int", _StrictLoader.construct_number)
_StrictLoader.add_constructor("tag:yaml.org,2002:float", _StrictLoader.construct_number)


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file with its bases, apply KEY=VALUE overrides, check everything.

    Raises:
        InputError: the file is missing or malformed, a key is unknown, or a value is invalid.
    """
    values, own = _read_with_bases(path, ())
    if {"images", "annotations", "categories"} <= values.keys():
        raise InputError(
            f"{path} is a COCO annotation file, not a configuration; try configs/own.yaml data.root=FOLDER, "
            "which finds annotations/train.json and val.json in it"
        )
    if "names" in values and "train" in values:
        raise InputError(
            f"{path} is the data.yaml of a YOLO set, not a configuration; try configs/own.yaml "
            f"data.format=yolo data.root={path}"
        )
    values = apply_overrides(values, overrides)
    _refuse_own_data_as_demo(path, values.get("data"))
    config = parse_config(values, str(path), overrides)
    # A base may have settings of another optimizer, say, in order to be overridden.
    warn_of_idle_settings(config, keys_of(overrides), _leaf_keys(own))
    return config


def parse_config(values: dict[str, Any], source: str, overrides: Sequence[str] = ()) -> Config:
    """Check plain values against the schema.

    Args:
        source: name of the values in messages.
        overrides: those applied already; errors in these name the command line.

    Raises:
        InputError: a key is unknown, or a value is invalid.
    """
    try:
        return Config.model_validate(_with_empty_sections(Config, values))
    except ValidationError as error:
        text = _explain(error)
        first = error.errors()[0]
        of_section = first["type"] == "value_error" and not _leaf_of(_key_of(first["loc"]))
    given = keys_of(overrides)
    place = text.partition(":")[0]
    key = _leaf_of(place) or place
    # An error about several keys of a section is not the file's if an override has caused it.
    leaves = (one.rpartition(".")[2] for one in given if one.rpartition(".")[0] == key.rpartition(".")[0])
    if key in given or (of_section and any(re.search(rf"\b{leaf}\b", text) for leaf in leaves)):
        source = "on the command line"
        if "valid list" in text:
            some = "[[a, b], [c, d]]" if place != key else "[a, b]"
            text += f'; write a list like this, with the quotes: "{key}={some}"'
    raise InputError(f"{source}: {text}")


def _with_empty_sections(section: type[Section], values: dict[str, Any]) -> dict[str, Any]:
    """Treat `train:` with nothing below it as an empty section."""
    filled = dict(values)
    for name, field in section.model_fields.items():
        inner = sub_section(field.annotation)
        if inner is not None and name in values:
            below = {} if values[name] is None else values[name]
            filled[name] = _with_empty_sections(inner, below) if isinstance(below, dict) else below
    return filled


def dump_config(config: Config) -> str:
    """The configuration as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, default_flow_style=None)


def apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Set dotted keys: apply_overrides({}, ["optimizer.lr=0.005"]).

    Raises:
        InputError: an override is not KEY=VALUE, or a key is unknown.
    """
    kinds = leaf_kinds(Config)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise InputError(_not_an_override(override))
        if key not in kinds:
            raise InputError(f"unknown configuration key '{key}'{nearest(key, text)}")
        # run.dir=2026 and data.images={split} are text, whatever YAML would read. So is
        # data.splits.train=2007, unless it is a list.
        texts = _TEXTS if text.startswith("[") else (*_TEXTS, *_TEXT_OR_LIST)
        is_text = kinds[key] in texts and text not in _NOTHING
        value: Any = text if is_text else _yaml_value(key, text)
        nested = value
        for part in reversed(key.split(".")):
            nested = {part: nested}
        values = _merge(values, nested)
    return values


def keys_of(overrides: Sequence[str]) -> list[str]:
    """The dotted keys of overrides."""
    return [override.partition("=")[0] for override in overrides]


def _refuse_own_data_as_demo(path: Path, data: object) -> None:
    """Raises InputError for a file with a data.root but no data.format, unless the root is the demo's."""
    if not isinstance(data, dict) or "format" in data or any(str(key).startswith("shapes_") for key in data):
        return
    if _is_not_the_demos(root := data.get("root")):
        raise InputError(
            f"{path}: data.root={root} also needs data.format, which is coco, voc or yolo (or shapes, to "
            "create the demo data set in that folder)"
        )


def _is_not_the_demos(root: object) -> bool:
    if not isinstance(root, str) or root == Config().data.root:
        return False
    return not Path(str(in_home(root)), "shapes.json").is_file()


def _leaf_keys(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """The dotted names of all keys in a file."""
    for name, value in values.items():
        yield f"{prefix}{name}"
        if isinstance(value, dict):
            yield from _leaf_keys(value, f"{prefix}{name}.")


def refuse_own_data_as_demo(overrides: list[str]) -> None:
    """Refuse data.root without data.format where no configuration file is given.

    Otherwise the demo set would be generated in that folder, or in one with a misspelt name, and trained on.

    Raises:
        InputError: data.root is given and does not hold the demo set.
    """
    given = dict(word.partition("=")[::2] for word in overrides)
    root = given.get("data.root")
    if "data.format" in given or not _is_not_the_demos(root):
        return
    raise InputError(
        f"data.root={root}: without CONFIG the generated demo data set is trained on; for a data set of "
        "your own give a CONFIG such as configs/own.yaml, or set data.format=coco, voc or yolo (to create "
        "the demo data set in that folder: data.format=shapes)"
    )


_NOT_YAML = (yaml.YAMLError, RecursionError, ValueError)  # ValueError: invalid characters


def _loaded(text: str) -> Any:
    values = yaml.load(text, _StrictLoader)
    _refuse_circles(values, (), set())
    return values


def _refuse_circles(value: Any, within: tuple[int, ...], done: set[int]) -> None:
    if id(value) in within:
        raise yaml.YAMLError("an alias (*) refers to a value that contains it")
    if isinstance(value, dict | list) and id(value) not in done:
        for one in value.values() if isinstance(value, dict) else value:
            _refuse_circles(one, (*within, id(value)), done)
        done.add(id(value))


def _yaml_value(key: str, text: str) -> Any:
    try:
        return _loaded(text)
    except _NOT_YAML:
        hint = f'; the shell needs quotes: "{key}=[a, b]"' if text.startswith("[") else ""
        if text.startswith("{"):
            hint = f"; write it like this, with the quotes: \"{key}={{a: [b, c], d: '*'}}\""
        raise InputError(f"{key}: '{text}' is not a YAML value{hint}") from None


def _read_with_bases(path: Path, seen: tuple[Path, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The values of a file merged with its bases, and its own values."""
    path = path.resolve() if path.is_file() else path  # a pipe cannot be resolved
    if path in seen:
        raise InputError(f"{path}: its base refers back to the file itself")
    try:
        values = _loaded(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if not seen and str(path) in leaf_kinds(Config):
            raise InputError(_not_an_override(str(path))) from None
        whose = f", the base of {seen[-1]}," if seen else ""
        hint = _nearest_file(path, seen[-1].parent if seen else Path())
        raise InputError(f"configuration file {path}{whose} does not exist{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"configuration file {path} cannot be read: {error}") from None
    except _NOT_YAML as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise InputError(f"{path} must be a mapping of sections, such as 'train: {{epochs: 12}}'")
    base = values.pop("base", None)
    if base is None:
        return values, values
    if not isinstance(base, str):
        raise InputError(f"{path}: base must be the name of a single file")
    below, _ = _read_with_bases(path.parent / Path(base).expanduser(), (*seen, path))
    return _merge(below, values), values


def _nearest_file(path: Path, seen_from: Path) -> str:
    """Hint at the configuration that was probably meant: its suffix, folder or a letter is wrong."""
    there = [
        file for folder in (path.parent, Path("configs"), _OURS) for file in sorted(folder.glob("*.y*ml"))
    ]
    names = {file.name: file for file in reversed(there)}
    found = difflib.get_close_matches(path.with_suffix(".yaml").name, names, n=1, cutoff=0.75)
    if found:
        return f"; did you mean {os.path.relpath(names[found[0]], seen_from)}?"
    ours = sorted(file.name for file in _OURS.glob("*.yaml"))
    return f"; {os.path.relpath(_OURS)} has {', '.join(ours)}"


def _not_an_override(word: str) -> str:
    return f"'{word}' is not of the form KEY=VALUE, e.g. optimizer.lr=0.005, without spaces"


def _merge(base: dict[str, Any], change: dict[str, Any], section: type[Section] = Config) -> dict[str, Any]:
    """Merge sections recursively, replace everything else. An empty section changes nothing.

    A value in place of a section is kept, to be refused later.
    """
    merged = dict(base)
    for key, value in change.items():
        field = section.model_fields.get(key)
        inner = sub_section(field.annotation) if field else None
        old = merged.get(key)
        if inner and isinstance(old, dict) and (value is None or isinstance(value, dict)):
            merged[key] = _merge(old, value or {}, inner)
        elif not inner or old is None or not isinstance(value, dict | None):
            merged[key] = value
    return merged


def _key_of(loc: tuple[int | str, ...]) -> str:
    """The dotted key of pydantic's location, which ends in the tried member of a union (str, list[...])."""
    parts: list[str] = []
    section: type[Section] | None = Config
    for part in loc:
        if isinstance(part, int):
            parts = [*parts[:-1], f"{parts[-1]}[{part}]"] if parts else [str(part)]
        elif section is not None and "[" not in part:
            parts.append(part)
            field = section.model_fields.get(part)
            section = sub_section(field.annotation) if field else None
            if field is not None and get_origin(field.annotation) is dict:  # e.g. a class of data.merge
                return ".".join([*parts, *(str(one) for one in loc[len(parts) : len(parts) + 1])])
    return ".".join(parts)


def _leaf_of(place: str) -> str | None:
    """The key that contains a place: data.merge for data.merge.cell[0]."""
    return next((key for key in leaf_kinds(Config) if re.match(rf"{re.escape(key)}(\W|$)", place)), None)


def _explain(error: ValidationError) -> str:
    keys = [_key_of(one["loc"]) for one in error.errors()]
    # Of the members of a union (text, or list of texts) the one that validated furthest was meant.
    key = next((key for key in keys if key.startswith(f"{keys[0]}[")), keys[0])
    of_key = [one for one, its in zip(error.errors(), keys, strict=True) if its == key]
    # Likewise skip members that failed because of their type.
    first = next((one for one in of_key if not one["type"].endswith("_type")), of_key[0])
    if first["type"] == "extra_forbidden":
        return f"unknown configuration key '{key}'{nearest(key)}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        if _leaf_of(key):
            return f"{key}: {message}"
        return f"{key}.{message}" if key else message  # messages of sections begin with the key
    if first["type"] == "model_type":
        got = f"got {first['input']!r}"
        return f"{key}: must hold settings, each as KEY: VALUE with a space after the colon; {got}"
    if first["type"] == "invalid_key":
        place = _key_of(first["loc"][:-1])
        where = f"{place}: " if place else ""
        return (
            f"{where}{first['input']!r} is not a setting (YAML reads on, off, yes and no as true and false)"
        )
    if first["type"] == "less_than":  # pydantic rounds large limits
        message = f"input should be less than {first['ctx']['lt']}"
    text = f"{key}: {message[0].lower()}{message[1:]}, got {first['input']!r}"
    if first["type"] == "string_type" and isinstance(first["input"], bool | int | float):
        text += """; in YAML no, yes and numbers are strings only in quotes: 'no', '1'"""
    return text
