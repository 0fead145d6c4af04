"""Whether two programs find the same in the same images, but for what rounding decides."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detector.config import EvalConfig

BOX_PX, SCORE = 1e-3, 1e-5  # the same detection
_RELATIVE = 2e-6  # of the image's long side: what float32 leaves of the coordinates of a large one
_OF_BOX = 1e-5  # of a box's long side: its deltas count in sides of its anchor
_IOU = 1e-4  # this near to the threshold, rounding decides what NMS drops


@dataclass(frozen=True)
class Found:
    """What was found in one image, best first."""

    boxes: NDArray[np.float64]  # [D, 4] xyxy pixels
    scores: NDArray[np.float64]  # [D]
    labels: NDArray[np.int64]  # [D]


@dataclass(frozen=True)
class Agreement:
    """How two sets of detections compare."""

    detections: int
    box_px: float  # the largest difference of a coordinate, of detections that are in both
    score: float  # of a score
    by_rounding: int  # that are in one only, where NMS or the limit was a matter of rounding
    unexplained: int  # that are in one only, and should be in both

    def __add__(self, other: "Agreement") -> "Agreement":
        return Agreement(
            self.detections + other.detections,
            max(self.box_px, other.box_px),
            max(self.score, other.score),
            self.by_rounding + other.by_rounding,
            self.unexplained + other.unexplained,
        )


NOTHING = Agreement(0, 0.0, 0.0, 0, 0)


def compare(
    one: Found, other: Found, side_px: float, settings: EvalConfig, score: float = SCORE
) -> Agreement:
    """Compare the detections of two programs in one image.

    Two are the same with the same label, boxes within 1e-3 px (more in images above 500 px, whose
    coordinates float32 rounds, and of boxes above 100 px) and scores within `score`.

    Args:
        side_px: the long side of the image.
        settings: that decided which boxes are left.
    """
    distance = np.abs(one.boxes[:, None] - other.boxes[None]).max(-1, initial=0.0)  # [D1, D2]
    apart = np.abs(one.scores[:, None] - other.scores[None])
    tolerance = max(BOX_PX, _RELATIVE * side_px)
    of_box = _OF_BOX * (one.boxes[:, 2:] - one.boxes[:, :2]).max(-1, initial=0.0)
    same = (distance <= np.maximum(tolerance, of_box)[:, None]) & (apart <= score)
    same &= one.labels[:, None] == other.labels[None]
    cost = np.where(same, distance, np.inf)
    # The nearest both ways: equal boxes of equal score pair off by their order.
    pairs: list[tuple[int, int]] = []
    free = np.ones(len(other.scores), dtype=bool)
    for row in range(len(one.scores)):
        column = int(np.where(free, cost[row], np.inf).argmin()) if free.any() else -1
        if column >= 0 and free[column] and same[row, column]:
            pairs.append((row, column))
            free[column] = False
    rows, columns = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    alone = [np.setdiff1d(np.arange(len(f.scores)), taken) for f, taken in ((one, rows), (other, columns))]
    marginal = _marginal((one, other), alone, tolerance, score, settings)
    return Agreement(
        len(one.scores),
        float(distance[rows, columns].max(initial=0.0)),
        float(apart[rows, columns].max(initial=0.0)),
        int(marginal.sum()),
        int((~marginal).sum()),
    )


def _marginal(
    both: Sequence[Found],
    alone: Sequence[NDArray[np.int64]],
    tolerance: float,
    score: float,
    settings: EvalConfig,
) -> NDArray[np.bool_]:
    """Which of the detections that are in one set only are there by rounding: bool [first's, second's]."""
    boxes, scores, labels = (
        np.concatenate([getattr(f, name)[rows] for f, rows in zip(both, alone, strict=True)])
        for name in ("boxes", "scores", "labels")
    )
    all_boxes, all_scores, all_labels = (
        np.concatenate([getattr(f, name) for f in both]) for name in ("boxes", "scores", "labels")
    )
    rivals = (labels[:, None] == all_labels) & (scores[:, None] <= all_scores + score)
    overlap = np.where(rivals, _iou(boxes, all_boxes), -1.0)  # [U, D1 + D2]
    marginal: NDArray[np.bool_] = np.any(np.abs(overlap - settings.nms_threshold) < _IOU, axis=1)
    # At the border of the image a box may have a side of nothing, and is none then.
    marginal |= (boxes[:, 2:] - boxes[:, :2] <= tolerance).any(axis=1)
    # One more or one less that NMS keeps moves another over the limit ...
    if all(len(f.scores) == settings.detections_per_img for f in both):
        marginal |= scores <= _lowest_of_class(both)[labels] + score
    # ... and drops or frees those that it overlaps.
    between = (overlap > settings.nms_threshold)[:, _positions(both, alone)]
    for _ in range(len(marginal)):
        more = marginal | np.any(between & marginal[None], axis=1)
        if (more == marginal).all():
            break
        marginal = more
    return marginal


def _lowest_of_class(both: Sequence[Found]) -> NDArray[np.float64]:
    """The lowest score that each class has in a set, the higher one of the two sets: [C].

    The limit is one of scores before calibration, whose order is kept within a class alone.
    """
    lowest = np.full((2, 1 + max(f.labels.max(initial=0) for f in both)), np.inf)
    for of_one, f in zip(lowest, both, strict=True):
        np.minimum.at(of_one, f.labels, f.scores)
    return np.where(np.isinf(lowest), lowest[::-1], lowest).max(axis=0)


def _positions(both: Sequence[Found], alone: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.concatenate([alone[0], alone[1] + len(both[0].scores)])


def _iou(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """[N, 4], [M, 4] -> [N, M]."""
    least = np.maximum(one[:, None, :2], other[None, :, :2])
    most = np.minimum(one[:, None, 2:], other[None, :, 2:])
    inside = (most - least).clip(0).prod(-1)
    areas = [(b[:, 2:] - b[:, :2]).prod(-1) for b in (one, other)]
    union = areas[0][:, None] + areas[1][None] - inside
    return inside / np.maximum(union, np.finfo(np.float64).tiny)
