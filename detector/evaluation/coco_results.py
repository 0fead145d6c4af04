"""Detections as a COCO results file: what pycocotools' loadRes and evaluate.py --predictions read."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

# How a file of `results_text` begins. Other programs put the first entry behind the bracket, or each number
# on a line of its own.
BEGINNING = r'\[\n(\]|\{"image_id": )'


def result_entry(image_id: Any, category_id: int, xywh: Sequence[float], score: float) -> dict[str, Any]:
    """One detection; box in pixels."""
    return {"image_id": image_id, "category_id": category_id, "bbox": [*xywh], "score": score}


def results_text(entries: Iterable[dict[str, Any]]) -> str:
    """The content of the file, one detection on each line."""
    return "[\n" + ",\n".join(json.dumps(entry) for entry in entries) + "]\n"
