"""Run predict.py, and read what it has written."""

import contextlib
import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import predict
from data.inputs import RESULTS_MARK
from tests.runs import Outcome, call

ALL = ("--threshold", "0")


def run(place: Path, trained: Path, *words: str) -> Outcome:
    return call(predict.main, str(trained / "run"), *words, "--device", "cpu", cwd=place)


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "detections.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def files(folder: Path) -> set[str]:
    """All files below a folder, without the mark by which results are recognised."""
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return found - {RESULTS_MARK}


@contextlib.contextmanager
def standard_input(content: bytes) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(content)))
        yield


def to_results(records, predictions) -> list[dict]:
    """Predictions as entries of a COCO results file, with the set's own image and category ids."""
    p = predictions
    return [
        {
            "image_id": int(records.image_ids[row]),
            "category_id": int(records.category_ids[label]),
            "bbox": [float(v) for v in (*box[:2], *(box[2:] - box[:2]))],
            "score": float(score),
        }
        for row, label, box, score in zip(p.rows, p.labels, p.boxes, p.scores, strict=True)
    ]
