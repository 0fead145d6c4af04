"""Ids that are texts in a COCO file, as some conversions write them: numbered, as everything here counts."""

import logging
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


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


def with_numbers(content: dict[str, Any], source: Path) -> dict[str, Any]:
    """The content of an instances file with numbers for ids that are texts; itself if there are none."""
    for section, key in (("images", "image_id"), ("categories", "category_id")):
        numbers = numbers_of(content[section])
        if not numbers:
            continue
        first, number = next(iter(numbers.items()))
        log.warning(
            "%s: the ids of its %s are texts and are numbered: '%s' is %d", source, section, first, number
        )
        content = {
            **content,
            section: [{**record, "id": numbers[record["id"]]} for record in content[section]],
            "annotations": [_renamed(record, key, numbers) for record in content["annotations"]],
        }
    return content


def _renamed(record: Any, key: str, numbers: dict[str, int]) -> Any:
    value = record.get(key) if isinstance(record, dict) else None
    return {**record, key: numbers[value]} if isinstance(value, str) and value in numbers else record
