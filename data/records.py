"""Access to the fields of COCO records; a missing one raises a fault that names the record."""

from collections.abc import Hashable
from typing import Any

from data.faults import DataFault


def field_of(record: Any, key: str, where: str) -> Any:
    if not isinstance(record, dict) or key not in record:
        raise DataFault("record-malformed", f"{where} has no '{key}'")
    return record[key]


def text_of(record: Any, key: str, where: str) -> str:
    name = field_of(record, key, where)
    if name is None or isinstance(name, dict | list) or not str(name).strip():
        raise DataFault("record-malformed", f"{where}: {key} must be a string, got {name!r}")
    return str(name)


def whole_of(record: Any, key: str, where: str) -> Any:
    value = field_of(record, key, where)
    # pandas writes integers as 10.0
    return int(value) if isinstance(value, float) and value.is_integer() else value


def shown(number: Any) -> str:
    """An id for messages; says so if it is a text that looks like a number."""
    return f"{number!r}, a string where a number is expected" if isinstance(number, str) else str(number)


def id_of_refused(record: Any) -> set[Any]:
    """The id of a refused record, so that its annotations are not refused for the same fault."""
    number = record.get("id") if isinstance(record, dict) else None
    return {number} if number is not None and isinstance(number, Hashable) else set()
