"""Ids that are texts in a COCO file, as some conversions write them: numbered, as everything here counts."""

import logging
from functools import cache
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)
_KEYS = (("images", "image_id"), ("categories", "category_id"))


def numbers_of(records: list[Any]) -> dict[str, int]:
    """The number of each id of a section, by its value if all are decimal, else in their order.

    Only where all are texts and no two alike, else {}: they are refused one by one, as what they are.
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
    """The content of an instances file with numbers for ids that are texts; and whether it lists such."""
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
    """The content of an instances file, with numbers where its annotations have listed ones in quotes."""
    for section, key in _KEYS:
        content = _as_listed(content, section, key, source)
    return content


def _as_listed(content: dict[str, Any], section: str, key: str, source: Path) -> dict[str, Any]:
    """Where the lists have numbers, and annotations have them in quotes."""
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
    """Once: training, validation and evaluation read the same file."""
    log.warning("%s", message)


def _renamed(record: Any, key: str, numbers: dict[str, int]) -> Any:
    value = record.get(key) if isinstance(record, dict) else None
    return {**record, key: numbers[value]} if isinstance(value, str) and value in numbers else record
