"""COCO's verdict on every detection at its ten IoU thresholds, kept so that AP can be recomputed many times.

Matching in one image does not depend on other images. So AP over any multiset of images only needs counting
of matches that were made once.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detector.evaluation.matching import IOU_THRESHOLDS, RECALLS, Kind, match
from detector.evaluation.material import Material

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Counts = NDArray[np.int32]


_ELEMENTS = 1 << 24  # largest size of a temporary array
_EPSILON = np.spacing(1)  # as in pycocotools' precision


@dataclass(frozen=True)
class Tally:
    """All detections of a set, class by class, best first (equal scores in the order of image ids)."""

    classes: tuple[str, ...]  # K, in ascending order of their category ids
    image_ids: Ints  # [I], ascending
    gt_counts: Counts  # [I, K] gt boxes, without ignored ones
    labels: Ints  # [D], ascending
    images: Ints  # [D] index into image_ids
    scores: Floats  # [D]
    right: NDArray[np.bool_]  # [T, D] matched with a gt box that is not ignored
    ignored: NDArray[np.bool_]  # [T, D] neither right nor wrong

    def of_class(self, label: int) -> slice:
        """The slice of the detections of a class."""
        first, last = np.searchsorted(self.labels, [label, label + 1])
        return slice(int(first), int(last))


def tally_of(material: Material) -> Tally:
    """Match the detections of a set at each of the IoU thresholds."""
    gt, found, order = material.gt, material.found, material.class_order
    counts = np.zeros((len(material.image_ids), len(material.classes)), dtype=np.int32)
    np.add.at(counts, (gt.images[~gt.ignore], order[gt.labels[~gt.ignore]]), 1)
    matchings = [match(gt, found, float(threshold)) for threshold in IOU_THRESHOLDS]
    best_first = matchings[0].order
    rows = best_first[np.argsort(order[found.labels[best_first]], kind="stable")]
    return Tally(
        tuple(np.array(material.classes)[np.argsort(order)].tolist()),
        np.asarray(material.image_ids),
        counts,
        order[found.labels[rows]],
        found.images[rows],
        found.scores[rows],
        np.stack([m.correct[rows] for m in matchings]),
        np.stack([m.kinds[rows] == Kind.IGNORED for m in matchings]),
    )


def average_precision(tally: Tally, counts: Counts) -> Floats:
    """COCO's AP (101 recall levels, all areas, 100 detections) if image i occurred counts[r, i] times.

    counts int32 [R, I] -> float64 [R, T, K], NaN where a class has no gt boxes in these images.

    The precision envelope is needed only at detections that match a gt box: the others lower the
    precision and leave the recall unchanged. Copies of an image repeat each detection in succession, and
    within the repetition precision is monotone: only its end matters.
    """
    gt_boxes = counts @ tally.gt_counts  # [R, K]
    found = np.full((len(counts), len(IOU_THRESHOLDS), len(tally.classes)), np.nan)
    for label in range(len(tally.classes)):
        mine = tally.of_class(label)
        length = max(1, _ELEMENTS // max(1, mine.stop - mine.start))
        for first in range(0, len(counts), length):
            part = slice(first, first + length)
            boxes = gt_boxes[part, label]
            ap = _of_class(tally, mine, counts[part], np.maximum(boxes, 1))
            found[part, :, label] = np.where(boxes[:, None] > 0, ap, np.nan)
    return found


def _of_class(tally: Tally, mine: slice, counts: Counts, gt_boxes: Counts) -> Floats:
    """The AP of one class, [R, T]; gt_boxes int32 [R], at least 1."""
    images, right, ignored = tally.images[mine], tally.right[:, mine], tally.ignored[:, mine]
    ap = np.zeros((len(counts), len(right)))
    stops = np.flatnonzero(right.any(axis=0))  # detections that are right at any threshold
    if len(stops) == 0:
        return ap
    seen = _running_sums(counts, images, stops)  # detections down to each stop
    for t in range(len(right)):
        here = np.flatnonzero(right[t, stops])
        if len(here) == 0:
            continue
        hits = np.cumsum(counts[:, images[stops[here]]], axis=1, dtype=np.int32)
        total = seen[:, here]
        skipped = np.flatnonzero(ignored[t])
        if len(skipped):
            above = np.searchsorted(skipped, stops[here])
            sums = np.cumsum(counts[:, images[skipped]], axis=1, dtype=np.int32)
            total = total - np.pad(sums, ((0, 0), (1, 0)))[:, above]
        ap[:, t] = _interpolated(hits, hits / (total + _EPSILON), gt_boxes)
    return ap


def _running_sums(counts: Counts, images: Ints, stops: Ints) -> Counts:
    """Sums of counts[:, images] from the start to each stop, inclusive: int32 [R, S]."""
    starts = np.concatenate(([0], stops[:-1] + 1))
    between = np.add.reduceat(counts[:, images[: stops[-1] + 1]], starts, axis=1)
    return np.cumsum(between, axis=1, dtype=np.int32)


def _interpolated(hits: Counts, precision: Floats, gt_boxes: Counts) -> Floats:
    """The mean over the recall levels of the best precision at that recall or above: [R]."""
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    reached = np.searchsorted(RECALLS, hits / gt_boxes[:, None], side="right")
    levels = np.diff(reached, axis=1, prepend=0)  # recall levels first reached with this gt box
    return (envelope * levels).sum(axis=1) / len(RECALLS)
