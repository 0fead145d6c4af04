"""COCO metrics by pycocotools or faster-coco-eval, guarded against the inputs that they answer wrongly.

Known there: a gt annotation with id 0 never matches, no predictions raise IndexError, missing
`area`, `iscrowd` or `info` raise KeyError. Here the gt is always built anew, with ids from 1.
"""

import contextlib
import importlib.util
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from data.sample import DetectionSet
from detector.evaluation.calibration import Matched
from detector.evaluation.error_breakdown import ErrorBreakdown, error_breakdown
from detector.evaluation.inference import Predictions
from detector.evaluation.matching import IOU_THRESHOLDS, RECALLS, Flags, Floats, Kind, Matching, match
from detector.evaluation.material import Material, material_of, read_material
from detector.evaluation.tally import Tally, tally_of
from errors import InputError

COCO_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")

Backend = Literal["auto", "pycocotools", "faster_coco_eval"]


@dataclass(frozen=True)
class ClassResult:
    """One class; -1 where it has no gt boxes, as COCO does."""

    ap: float
    ap50: float
    ap75: float
    gt_boxes: int
    detections: int  # that count: not on ignored gt, nor beyond the hundredth of an image and class
    best_f1: float  # at IoU 0.5
    best_threshold: float  # the score at which it is reached
    best_precision: float  # of the detections from that score on
    best_recall: float

    @property
    def told_threshold(self) -> float:
        """best_threshold; -1 where nothing that was found is right: no threshold is better than another."""
        return self.best_threshold if self.best_f1 > 0 else -1

    def as_json(self) -> dict[str, float]:
        """Plain values."""
        return {
            "AP": self.ap, "AP50": self.ap50, "AP75": self.ap75, "gt_boxes": self.gt_boxes,
            "detections": self.detections, "best_f1": self.best_f1, "best_f1_threshold": self.told_threshold,
            "best_f1_precision": self.best_precision, "best_f1_recall": self.best_recall,
        }  # fmt: skip


@dataclass(frozen=True)
class CocoResult:
    """The 12 COCO numbers by their names, every class by its name, and what they come from."""

    summary: dict[str, float]
    per_class: dict[str, ClassResult]
    errors: ErrorBreakdown  # what holds AP50 back
    precision: Floats  # [10, 101, C], at IOU_THRESHOLDS and recalls 0, 0.01, ..., 1; -1 without gt boxes
    matching: Matching  # every detection and gt box at IoU 0.5
    material: Material

    @property
    def matched(self) -> Matched:
        """The detections that count."""
        counts, found = self.matching.kinds != Kind.IGNORED, self.material.found
        correct = self.matching.correct[counts]
        return Matched(found.scores[counts], correct, found.images[counts], found.labels[counts])

    @property
    def tally(self) -> Tally:
        """The same at all IoU thresholds, class by class; it is made anew each time."""
        return tally_of(self.material)

    def as_json(self) -> dict[str, Any]:
        """The numbers as plain values: COCO names at the top level."""
        return {
            **self.summary,
            "errors": self.errors.as_json(),
            "per_class": {name: one.as_json() for name, one in self.per_class.items()},
        }


def evaluate_coco(records: DetectionSet, predictions: Predictions, backend: Backend = "auto") -> CocoResult:
    """Score predictions against the gt boxes of a set. Ignored gt (crowd, difficult) counts for nothing."""
    return evaluate_material(material_of(records, predictions), backend)


def evaluate_files(results_path: Path, annotations_path: Path, backend: Backend = "auto") -> CocoResult:
    """Score any COCO results file against an instances file, as pycocotools would.

    Raises:
        InputError: a file is missing or malformed, or the results name an unknown image or category.
    """
    return evaluate_material(read_material(results_path, annotations_path), backend)


def evaluate_material(material: Material, backend: Backend = "auto") -> CocoResult:
    """Score what was found in a set.

    Args:
        backend: who computes the 12 numbers; auto takes faster-coco-eval where it is installed. Both
            give the same, to the 15th digit.

    Raises:
        InputError: faster-coco-eval is wanted and not installed.
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
    """Whether it is installed; it is imported only where it is used."""
    return importlib.util.find_spec("faster_coco_eval") is not None


def _summary(material: Material, backend: Backend) -> tuple[dict[str, float], Floats]:
    """The 12 numbers, and the precision [10, 101, C] at all areas."""
    if backend == "faster_coco_eval" and not has_faster_coco_eval():
        raise InputError(
            "eval.backend: faster_coco_eval is not installed; pip install faster-coco-eval, or take "
            "eval.backend=pycocotools"
        )
    gt, found = material.gt, material.found
    if len(gt.labels) == 0:
        shape = (len(IOU_THRESHOLDS), len(RECALLS), len(material.classes))
        return dict.fromkeys(COCO_NAMES, -1.0), np.full(shape, -1.0)
    gt_extra = (
        {"area": a, "iscrowd": int(i)} for a, i in zip(material.gt_areas.tolist(), gt.ignore, strict=True)
    )
    areas = (found.xywh[:, 2] * found.xywh[:, 3]).tolist()
    extra = ({"area": a, "iscrowd": 0, "score": s} for a, s in zip(areas, found.scores.tolist(), strict=True))
    with contextlib.redirect_stdout(io.StringIO()):
        sides = (_index(material, gt, gt_extra), _index(material, found, extra))
        evaluator = _evaluator(*sides, backend)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    precision = np.asarray(evaluator.eval["precision"])[:, :, :, 0, -1]
    values = [float(value) for value in evaluator.stats]
    # In one layout: the last digit of a mean depends on it.
    return dict(zip(COCO_NAMES, values, strict=True)), np.ascontiguousarray(
        precision[:, :, material.class_order]
    )


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
    """The best F1 that a threshold gives, the threshold, precision and recall there.

    scores descending [D], correct [D]; total gt boxes. All 0 without detections.
    """
    if len(scores) == 0:
        return 0.0, 0.0, 0.0, 0.0
    right, count = np.cumsum(correct), np.arange(1, len(scores) + 1)
    possible = np.append(scores[1:] < scores[:-1], True)  # a threshold does not part equal scores
    f1 = np.where(possible, 2 * right / (count + total), -1)
    best = int(f1.argmax())
    return float(f1[best]), float(scores[best]), float(right[best] / count[best]), float(right[best] / total)


def _index(material: Material, boxes: Any, extra: Iterable[dict[str, Any]]) -> COCO:
    """Gt boxes or detections as pycocotools wants them; categories in the order of their ids."""
    categories = material.class_order[boxes.labels].tolist()
    coco = COCO()
    coco.dataset = {
        "info": {},
        "images": [{"id": place} for place in range(len(material.image_ids))],
        "categories": [{"id": place} for place in range(len(material.classes))],
        "annotations": [
            {"id": number, "image_id": image, "category_id": category, "bbox": box, **more}
            for number, (image, category, box, more) in enumerate(
                zip(boxes.images.tolist(), categories, boxes.xywh.tolist(), extra, strict=True), start=1
            )
        ],
    }
    coco.createIndex()
    return coco
