"""The numbers behind the report's charts, as CSV for other programs."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from detector.evaluation.coco import CocoResult
from detector.evaluation.curves import curves
from detector.evaluation.matching import IOU_THRESHOLDS, RECALLS, Ints
from detector.report.facts import Shown, score_steps

_CORNER = "gt in rows"
_NOTHING = "nothing"

# First columns of each file.
_COLUMNS: dict[str, Sequence[str]] = {
    "confusion.csv": (_CORNER,),
    "images.csv": ("image_id", "image", "gt_boxes", "right", "wrong", "missed", "f1"),
    "precision_recall.csv": ("class", "recall"),
    "thresholds.csv": ("class", "threshold", "precision", "recall", "f1", "right", "wrong", "missed"),
}


def tables(result: CocoResult, at: Shown, matrix: Ints) -> dict[str, str]:
    """The content of each file by name.

    confusion.csv, images.csv: at the thresholds of the page and IoU 0.5; thresholds.csv: results at other
    thresholds and IoU 0.5; precision_recall.csv: COCO's interpolated precision at every IoU, for the classes
    that have gt boxes. matrix: from `confusion`.
    """
    nothing = f"({_NOTHING})" if _NOTHING in result.per_class else _NOTHING
    names = [*result.per_class, nothing]
    rows = ((name, *line) for name, line in zip(names, matrix.tolist(), strict=True))
    at_ious = [f"iou_{iou:.2f}" for iou in IOU_THRESHOLDS]
    return {
        "confusion.csv": _csv((_CORNER, *names), rows),
        "images.csv": _csv(_COLUMNS["images.csv"], _images(result, at)),
        "precision_recall.csv": _csv((*_COLUMNS["precision_recall.csv"], *at_ious), _precision(result)),
        "thresholds.csv": _csv(_COLUMNS["thresholds.csv"], _thresholds(result)),
    }


def is_table(file: Path) -> bool:
    """Whether a file may belong to an earlier report."""
    if file.name not in _COLUMNS:
        return False
    beginning = ",".join(_COLUMNS[file.name]).encode()
    try:
        with file.open("rb") as content:
            return content.read(len(beginning)) == beginning
    except OSError:
        return False


def _images(result: CocoResult, at: Shown) -> Iterable[Sequence[object]]:
    m = result.material
    f1 = ["" if np.isnan(value) else _short(value) for value in at.f1.tolist()]
    counts = (counted.tolist() for counted in (at.right + at.unfound, at.right, at.wrong, at.unfound))
    names = m.image_names if m.files is None else m.files
    return zip(m.image_ids, names, *counts, f1, strict=True)


def _precision(result: CocoResult) -> Iterable[Sequence[object]]:
    for label, (name, one) in enumerate(result.per_class.items()):
        if one.gt_boxes > 0:
            of_class = result.precision[:, :, label].T  # [recall, IoU]
            for recall, values in zip(RECALLS.tolist(), of_class.tolist(), strict=True):
                yield name, _short(recall), *map(_short, values)


def _thresholds(result: CocoResult) -> Iterable[Sequence[object]]:
    thresholds = score_steps(result.matched)
    for one in curves(result, thresholds):
        values = thresholds, one.precision, one.recall, one.f1
        counts = one.right, one.wrong, one.gt_boxes - one.right
        for threshold, precision, recall, f1, right, wrong, missed in zip(
            *(v.tolist() for v in (*values, *counts)), strict=True
        ):
            told = _short(precision) if right + wrong else ""  # undefined without detections
            yield one.name, _short(threshold), told, _short(recall), _short(f1), right, wrong, missed


def _short(value: float) -> str:
    """A number with six significant digits."""
    return f"{value:.6g}"


def _csv(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return text.getvalue()
