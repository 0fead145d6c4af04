"""Detections as a COCO results file, as read by pycocotools' loadRes and evaluate.py --predictions."""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

# How a file of `results_text` begins. Other programs put the first entry right after the bracket, or each
# number on its own line.
BEGINNING = r'\[\n(\]|\{"image_id": )'


def result_entry(image_id: Any, category_id: int, xywh: Sequence[float], score: float) -> dict[str, Any]:
    """One detection; box in pixels."""
    return {"image_id": image_id, "category_id": category_id, "bbox": [*xywh], "score": score}


def results_text(entries: Iterable[dict[str, Any]]) -> str:
    """The content of the file, one detection per line."""
    return "".join(results_pieces(entries))


def results_pieces(entries: Iterable[dict[str, Any]]) -> Iterator[str]:
    """The same in pieces, as it may not fit in memory."""
    yield "[\n"
    yield from in_list(entries, ",\n")
    yield "]\n"


def in_list(entries: Iterable[dict[str, Any]], comma: str) -> Iterator[str]:
    """The inside of a JSON list, in pieces."""
    before = ""
    for entry in entries:
        yield before + json.dumps(entry)
        before = comma
