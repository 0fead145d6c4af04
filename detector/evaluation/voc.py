"""Pascal VOC's average precision: 11-point (VOC2007) and area under the curve (from VOC2010 on)."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from data.sample import DetectionSet
from detector.boxes import pairwise_iou
from detector.evaluation.inference import Predictions

_IOU = 0.5  # a detection is right from here on


class VocResult(NamedTuple):
    """Mean over the classes that have gt boxes, at IoU 0.5; -1 if none has any."""

    ap07: float
    ap12: float


def evaluate_voc(records: DetectionSet, predictions: Predictions) -> VocResult:
    """Score predictions by the VOC devkit's rules.

    Each detection, best first, is assigned to the gt box of its class with the highest IoU. It is right
    if that IoU reaches 0.5 and the gt is not taken yet; it is not counted if that gt is difficult.
    Boxes are continuous (the devkit adds one pixel to sides).
    """
    per_class, image_of_box = [], records.image_of_box
    for label in range(len(records.classes)):
        gt_rows = np.flatnonzero(records.labels == label)
        total = int((~records.ignore[gt_rows]).sum())
        if total:
            right, wrong = _judge(records, predictions, label, gt_rows, image_of_box[gt_rows])
            per_class.append(average_precision(right, wrong, total))
    if not per_class:
        return VocResult(-1.0, -1.0)
    return VocResult(*(float(np.mean([getattr(r, name) for r in per_class])) for name in VocResult._fields))


def average_precision(right: NDArray[np.bool_], wrong: NDArray[np.bool_], total: int) -> VocResult:
    """Both metrics from judged detections in descending order of score; total: number of gt boxes."""
    hits, misses = np.cumsum(right), np.cumsum(wrong)
    recall = hits / total
    precision = hits / np.maximum(hits + misses, 1)
    at_points = [precision[recall >= t].max(initial=0) for t in np.linspace(0, 1, 11) - 1e-12]
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    steps = np.diff(recall, prepend=0.0)
    return VocResult(float(np.mean(at_points)), float((steps * envelope).sum()))


def _judge(
    records: DetectionSet,
    p: Predictions,
    label: int,
    gt_rows: NDArray[np.int64],
    image_of_gt: NDArray[np.int64],
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which detections of a class are right and which wrong, in descending order of score."""
    mine = np.flatnonzero(p.labels == label)
    mine = mine[np.argsort(-p.scores[mine], kind="stable")]
    right, wrong = np.zeros(len(mine), np.bool_), np.zeros(len(mine), np.bool_)
    place = np.empty(len(p.labels), np.int64)
    place[mine] = np.arange(len(mine))
    # Stable: the best stay first within an image.
    by_image = mine[np.argsort(p.rows[mine], kind="stable")]
    images, starts = np.unique(p.rows[by_image], return_index=True)
    first_gts, last_gts = (np.searchsorted(image_of_gt, images, side=side) for side in ("left", "right"))
    parts = np.split(by_image, starts[1:])
    for detections, first_gt, last_gt in zip(parts, first_gts, last_gts, strict=False):  # [] splits into 1
        gts = gt_rows[first_gt:last_gt]
        if len(gts) == 0:
            wrong[place[detections]] = True
            continue
        overlap = pairwise_iou(torch.from_numpy(p.boxes[detections]), torch.from_numpy(records.boxes[gts]))
        best, which = (t.numpy() for t in overlap.max(dim=1))
        taken = np.zeros(len(gts), np.bool_)
        for i, detection in enumerate(detections):
            gt = which[i]
            if best[i] < _IOU:
                wrong[place[detection]] = True
            elif not records.ignore[gts[gt]]:
                (wrong if taken[gt] else right)[place[detection]] = True
                taken[gt] = True
    return right, wrong
