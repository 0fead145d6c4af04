"""COCO metrics by pycocotools or faster-coco-eval, guarded against inputs that these handle wrongly.

Known problems: a gt annotation with id 0 never matches, no predictions raise IndexError, missing
`area`, `iscrowd` or `info` raise KeyError. So the gt is always rebuilt here, with ids from 1.
"""

import contextlib
import importlib.util
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from data.progress import told_if_long
from data.sample import DetectionSet
from detector.evaluation.calibration import Matched
from detector.evaluation.error_breakdown import ErrorBreakdown, error_breakdown
from detector.evaluation.inference import Predictions
from detector.evaluation.matching import (
    IOU_THRESHOLDS,
    RECALLS,
    Flags,
    Floats,
    FoundBoxes,
    GtBoxes,
    Ints,
    Kind,
    Matching,
    match,
)
from detector.evaluation.material import Material, material_of, read_material
from errors import InputError

COCO_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")

Backend = Literal["auto", "pycocotools", "faster_coco_eval"]


@dataclass(frozen=True)
class ClassResult:
    """One class; -1 if it has no gt boxes, as in COCO."""

    ap: float
    ap50: float
    ap75: float
    gt_boxes: int
    detections: int  # without ignored ones: on ignored gt, or beyond the first 100 per image and class
    best_f1: float  # at IoU 0.5
    best_threshold: float  # the score threshold with the best F1
    best_precision: float  # of the detections that reach it
    best_recall: float

    @property
    def told_threshold(self) -> float:
        """best_threshold; -1 if no detection is right: then no threshold is better than another."""
        return self.best_threshold if self.best_f1 > 0 else -1

    def as_json(self) -> dict[str, float]:
        """Plain values."""
        return {
            "AP": self.ap, "AP50": self.ap50, "AP75": self.ap75, "gt_boxes": self.gt_boxes,
            "detections": self.detections, "best_f1": self.best_f1, "best_f1_threshold": self.told_threshold,
            "best_f1_precision": self.best_precision, "best_f1_recall": self.best_recall,
        }  # fmt: skip


@dataclass(frozen=True)
class Chosen:
    """Score thresholds at which a result is shown."""

    thresholds: Mapping[str, float]  # by class, in the order of the classes
    of: str  # where they come from, in words


@dataclass(frozen=True)
class AtThreshold:
    """The detections of a class that reach a score threshold, judged at IoU 0.5."""

    threshold: float
    right: int
    wrong: int
    missed: int  # gt boxes

    @property
    def precision(self) -> float:
        """-1 without detections."""
        found = self.right + self.wrong
        return self.right / found if found else -1

    @property
    def recall(self) -> float:
        """-1 without gt boxes."""
        there = self.right + self.missed
        return self.right / there if there else -1

    @property
    def f1(self) -> float:
        """-1 without gt boxes and detections."""
        total = 2 * self.right + self.wrong + self.missed
        return 2 * self.right / total if total else -1

    def as_json(self) -> dict[str, float]:
        """Plain values."""
        return {
            "threshold": self.threshold, "precision": self.precision, "recall": self.recall, "f1": self.f1,
            "right": self.right, "wrong": self.wrong, "missed": self.missed,
        }  # fmt: skip


@dataclass(frozen=True)
class CocoResult:
    """The 12 COCO metrics by name, the results per class by name, and the data behind them."""

    summary: dict[str, float]
    per_class: dict[str, ClassResult]
    errors: ErrorBreakdown  # what each kind of error costs in AP50
    precision: Floats  # [10, 101, C], at IOU_THRESHOLDS and recalls 0, 0.01, ..., 1; -1 without gt boxes
    matching: Matching  # every detection and gt box at IoU 0.5
    material: Material
    chosen: "Chosen | None" = None  # instead of the best thresholds

    @property
    def matched(self) -> Matched:
        """The detections that are not ignored."""
        counts, found = self.matching.kinds != Kind.IGNORED, self.material.found
        correct = self.matching.correct[counts]
        return Matched(found.scores[counts], correct, found.images[counts], found.labels[counts])

    def as_json(self) -> dict[str, Any]:
        """The metrics as plain values, with COCO's names at the top level."""
        plain = {
            **self.summary,
            "errors": self.errors.as_json(),
            "per_class": {name: one.as_json() for name, one in self.per_class.items()},
        }
        if self.chosen:
            plain["at_thresholds"] = {name: one.as_json() for name, one in self.at_chosen().items()}
        return plain

    def commonest(self, most: int | None = None) -> dict[str, ClassResult]:
        """The classes that have gt boxes, in their order; at most `most`, those with the most gt boxes."""
        there = {name: one for name, one in self.per_class.items() if one.gt_boxes}
        if most is None or len(there) <= most:
            return there
        names = {*sorted(there, key=lambda name: -there[name].gt_boxes)[:most]}
        return {name: one for name, one in there.items() if name in names}

    @property
    def best_thresholds(self) -> Floats:
        """The threshold with the best F1 per class [C]; the highest of all for classes without gt boxes."""
        best = np.array([one.best_threshold for one in self.per_class.values()])
        known = np.array([one.gt_boxes > 0 for one in self.per_class.values()])
        right = np.array([one.best_f1 > 0 for one in self.per_class.values()])  # scores may be below 0
        return np.where(known, best, best[known & right].max() if (known & right).any() else 0.0)

    def at_chosen(self) -> dict[str, "AtThreshold"]:
        """The result of each class at its chosen threshold."""
        found, matching, counts = self.material.found, self.matching, self.material.gt_totals().tolist()
        rows = {}
        for label, (name, threshold) in enumerate(self.chosen.thresholds.items() if self.chosen else ()):
            mine = (matching.kinds != Kind.IGNORED) & (found.labels == label) & (found.scores >= threshold)
            right = int((mine & matching.correct).sum())
            rows[name] = AtThreshold(threshold, right, int(mine.sum()) - right, counts[label] - right)
        return rows


def evaluate_coco(records: DetectionSet, predictions: Predictions, backend: Backend = "auto") -> CocoResult:
    """Score predictions against the gt boxes of a set. Ignored gt (crowd, difficult) is not counted."""
    return evaluate_material(material_of(records, predictions), backend)


def evaluate_files(results_path: Path, annotations_path: Path, backend: Backend = "auto") -> CocoResult:
    """Score any COCO results file against an instances file, as pycocotools would.

    Raises:
        InputError: a file is missing or malformed, or the results name an unknown image or category.
    """
    return evaluate_material(read_material(results_path, annotations_path), backend)


def evaluate_material(material: Material, backend: Backend = "auto") -> CocoResult:
    """Score the detections in a set.

    Args:
        backend: the package that computes the 12 metrics; auto uses faster-coco-eval if it is installed.
            Both agree to 15 digits.

    Raises:
        InputError: faster-coco-eval is requested but not installed.
    """
    gt, found = material.gt, material.found
    matching = match(gt, found)
    summary, precision = _summary(material, backend)
    per_class = {
        name: _class_result(material, matching, precision[:, :, label], label)
        for label, name in enumerate(material.classes)
    }
    return CocoResult(summary, per_class, error_breakdown(gt, found, matching), precision, matching, material)


def has_faster_coco_eval() -> bool:
    """Whether faster-coco-eval is installed; it is imported only when used."""
    return importlib.util.find_spec("faster_coco_eval") is not None


def _summary(material: Material, backend: Backend) -> tuple[dict[str, float], Floats]:
    """The 12 metrics, and the precision [10, 101, C] for all areas."""
    if backend == "faster_coco_eval" and not has_faster_coco_eval():
        raise InputError(
            "eval.backend: faster_coco_eval is not installed; pip install faster-coco-eval, or set "
            "eval.backend=pycocotools"
        )
    with contextlib.redirect_stdout(io.StringIO()):
        whole = COCOeval(iouType="bbox")
        areas_and_most = len(whole.params.areaRng), len(whole.params.maxDets)
        precision = np.full((len(IOU_THRESHOLDS), len(RECALLS), len(material.classes), *areas_and_most), -1.0)
        recall = np.full((len(IOU_THRESHOLDS), len(material.classes), *areas_and_most), -1.0)
        # Class by class, in the images that contain it: the result is the same, and saves memory, as each
        # detection is a dictionary of two kilobytes there.
        rows = (_rows_of_each(boxes.labels, len(material.classes)) for boxes in (material.gt, material.found))
        classes = list(zip(material.class_order, *rows, strict=True))
        for place, gt_rows, found_rows in told_if_long(classes, len(classes), "class", "precision"):
            if not material.gt.ignore[gt_rows].all():  # without gt boxes it stays at -1
                one = _evaluated(material, gt_rows, found_rows, backend)
                precision[:, :, place], recall[:, place] = one["precision"][:, :, 0], one["recall"][:, 0]
        whole.eval = {"precision": precision, "recall": recall}
        whole.summarize()
    values = [float(value) for value in whole.stats]
    # Always in the same memory layout: the last digit of a mean depends on it.
    at_all_areas = np.ascontiguousarray(precision[:, :, material.class_order, 0, -1])
    return dict(zip(COCO_NAMES, values, strict=True)), at_all_areas


def _rows_of_each(labels: Ints, classes: int) -> list[Ints]:
    """The rows of each class, in their order."""
    return np.split(labels.argsort(kind="stable"), np.bincount(labels, minlength=classes).cumsum()[:-1])


def _evaluated(material: Material, gt_rows: Ints, found_rows: Ints, backend: Backend) -> dict[str, Floats]:
    """Precision and recall of one class, from COCOeval."""
    gt, found = material.gt, material.found
    images = np.union1d(gt.images[gt_rows], found.images[found_rows])
    gt_extra = zip(material.gt_areas[gt_rows].tolist(), gt.ignore[gt_rows].tolist(), strict=True)
    areas = found.xywh[found_rows, 2] * found.xywh[found_rows, 3]
    extra = zip(areas.tolist(), found.scores[found_rows].tolist(), strict=True)
    evaluator = _evaluator(
        _index(images, gt, gt_rows, ({"area": a, "iscrowd": int(i)} for a, i in gt_extra)),
        _index(images, found, found_rows, ({"area": a, "iscrowd": 0, "score": s} for a, s in extra)),
        backend,
    )
    evaluator.evaluate()
    evaluator.accumulate()
    return {name: np.asarray(evaluator.eval[name]) for name in ("precision", "recall")}


def _evaluator(gt: COCO, found: COCO, backend: Backend) -> Any:
    if backend == "pycocotools" or not has_faster_coco_eval():
        return COCOeval(gt, found, "bbox")
    from faster_coco_eval import COCOeval_faster

    return COCOeval_faster(gt, found, "bbox", separate_eval=True)


def _class_result(material: Material, matching: Matching, precision: Floats, label: int) -> ClassResult:
    total = int(material.gt_totals()[label])
    rows = matching.order[material.found.labels[matching.order] == label]
    rows = rows[matching.kinds[rows] != Kind.IGNORED]
    if total == 0:
        return ClassResult(-1, -1, -1, 0, len(rows), -1, -1, -1, -1)
    ap = (float(precision.mean()), float(precision[0].mean()), float(precision[5].mean()))
    return ClassResult(
        *ap, total, len(rows), *_best_f1(material.found.scores[rows], matching.correct[rows], total)
    )


def _best_f1(scores: Floats, correct: Flags, total: int) -> tuple[float, float, float, float]:
    """The best F1 of any threshold, and the threshold, precision and recall there.

    scores [D] descending, correct [D]; total: number of gt boxes. All 0 without detections.
    """
    if len(scores) == 0:
        return 0.0, 0.0, 0.0, 0.0
    right, count = np.cumsum(correct), np.arange(1, len(scores) + 1)
    possible = np.append(scores[1:] < scores[:-1], True)  # a threshold cannot separate equal scores
    f1 = np.where(possible, 2 * right / (count + total), -1)
    best = int(f1.argmax())
    return float(f1[best]), float(scores[best]), float(right[best] / count[best]), float(right[best] / total)


def _index(images: Ints, boxes: GtBoxes | FoundBoxes, rows: Ints, extra: Iterable[dict[str, Any]]) -> COCO:
    """The given rows of gt boxes or detections, all of one class, as a pycocotools object."""
    coco = COCO()
    coco.dataset = {
        "info": {},
        "images": [{"id": image} for image in images.tolist()],
        "categories": [{"id": 1}],
        "annotations": [
            {"id": number, "image_id": image, "category_id": 1, "bbox": box, **more}
            for number, (image, box, more) in enumerate(
                zip(boxes.images[rows].tolist(), boxes.xywh[rows].tolist(), extra, strict=True), start=1
            )
        ],
    }
    coco.createIndex()
    return coco
