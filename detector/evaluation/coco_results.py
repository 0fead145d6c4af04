"""Detections as a COCO results file: what pycocotools' loadRes and evaluate.py --predictions read."""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

# How a file of `results_text` begins. Other programs put the first entry behind the bracket, or each number
# on a line of its own.
BEGINNING = r'\[\n(\]|\{"image_id": )'


def result_entry(image_id: Any, category_id: int, xywh: Sequence[float], score: float) -> dict[str, Any]:
    """One detection; box in pixels."""
    return {"image_id": image_id, "category_id": category_id, "bbox": [*xywh], "score": score}


def results_text(entries: Iterable[dict[str, Any]]) -> str:
    """The content of the file, one detection on each line."""
    return "".join(results_pieces(entries))


def results_pieces(entries: Iterable[dict[str, Any]]) -> Iterator[str]:
    """The same, which may not fit in memory, in pieces."""
    yield "[\n"
    yield from in_list(entries, ",\n")
    yield "]\n"


def in_list(entries: Iterable[dict[str, Any]], comma: str) -> Iterator[str]:
    """What stands in a list of JSON, in pieces."""
    before = ""
    for entry in entries:
        yield before + json.dumps(entry)
        before = comma
