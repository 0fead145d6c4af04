"""Text ids in COCO files, as written by some converters: replaced by integers."""

import logging
from functools import cache
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)
_KEYS = (("images", "image_id"), ("categories", "category_id"))


def numbers_of(records: list[Any]) -> dict[str, int]:
    """Integer for each text id of a section: its value if all are decimal, else its position from 1.

    {} unless all ids are distinct texts; other mixtures are refused record by record.
    """
    ids = [record.get("id") if isinstance(record, dict) else None for record in records]
    texts = [number for number in ids if isinstance(number, str)]
    if not texts or len(set(texts)) < len(ids):
        return {}
    if all(text.isascii() and text.isdecimal() and len(text) < 19 for text in texts):
        values = {text: int(text) for text in texts}
        if len(set(values.values())) == len(ids):
            return values
    return {text: number for number, text in enumerate(texts, start=1)}


def with_numbers(content: dict[str, Any], source: Path) -> tuple[dict[str, Any], bool]:
    """Replace text ids in the content of an instances file; also returns whether there were any."""
    renumbered = False
    for section, key in _KEYS:
        numbers = numbers_of(content[section])
        if not numbers:
            content = _as_listed(content, section, key, source)
            continue
        renumbered = True
        first, number = next(iter(numbers.items()))
        _say(
            f"{source}: the ids of its {section} are strings and are replaced by numbers: '{first}' is "
            f"{number}"
        )
        content = {
            **content,
            section: [{**record, "id": numbers[record["id"]]} for record in content[section]],
            "annotations": [_renamed(record, key, numbers) for record in content["annotations"]],
        }
    return content, renumbered


def as_listed(content: dict[str, Any], source: Path) -> dict[str, Any]:
    """Replace quoted integer ids in annotations by the listed integers."""
    for section, key in _KEYS:
        content = _as_listed(content, section, key, source)
    return content


def _as_listed(content: dict[str, Any], section: str, key: str, source: Path) -> dict[str, Any]:
    """Replace quoted ids in annotations where the section lists integers."""
    ids = (record.get("id") for record in content[section] if isinstance(record, dict))
    numbers = {str(number): number for number in ids if isinstance(number, int)}
    texts = [
        record[key]
        for record in content["annotations"]
        if isinstance(record, dict) and isinstance(record.get(key), str) and record[key] in numbers
    ]
    if not texts:
        return content
    _say(f"{source}: {key} is a string in {len(texts)} annotations; '{texts[0]}' is read as {texts[0]}")
    return {**content, "annotations": [_renamed(record, key, numbers) for record in content["annotations"]]}


@cache
def _say(message: str) -> None:
    """Warn once: training, validation and evaluation read the same file."""
    log.warning("%s", message)


def _renamed(record: Any, key: str, numbers: dict[str, int]) -> Any:
    value = record.get(key) if isinstance(record, dict) else None
    return {**record, key: numbers[value]} if isinstance(value, str) and value in numbers else record
