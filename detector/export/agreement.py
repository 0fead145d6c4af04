"""Compares the detections of two programs in the same images, allowing for rounding."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detector.config import EvalConfig

BOX_PX, SCORE = 1e-3, 1e-5  # tolerances within which two detections are the same
_RELATIVE = 2e-6  # fraction of the image's long side: float32's precision of coordinates in a large image
_OF_BOX = 1e-5  # fraction of a box's long side: deltas are relative to the size of the anchor
_IOU = 1e-4  # this close to the threshold, rounding decides what NMS drops


@dataclass(frozen=True)
class Found:
    """The detections in one image, best first."""

    boxes: NDArray[np.float64]  # [D, 4] xyxy pixels
    scores: NDArray[np.float64]  # [D]
    labels: NDArray[np.int64]  # [D]


@dataclass(frozen=True)
class Agreement:
    """How two sets of detections compare."""

    detections: int
    box_px: float  # largest difference of a coordinate, over detections in both sets
    score: float  # largest difference of a score, likewise
    by_rounding: int  # detections in one set only, explained by rounding in NMS or at the limit
    unexplained: int  # detections in one set only, without such an explanation

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

    Two detections are the same if they have the same label, coordinates within 1e-3 px (more in images above
    500 px, due to float32 rounding, and for boxes above 100 px), and scores within `score`.

    Args:
        side_px: the long side of the image.
        settings: the settings that both programs detected with.
    """
    distance = np.abs(one.boxes[:, None] - other.boxes[None]).max(-1, initial=0.0)  # [D1, D2]
    apart = np.abs(one.scores[:, None] - other.scores[None])
    tolerance = max(BOX_PX, _RELATIVE * side_px)
    of_box = _OF_BOX * (one.boxes[:, 2:] - one.boxes[:, :2]).max(-1, initial=0.0)
    same = (distance <= np.maximum(tolerance, of_box)[:, None]) & (apart <= score)
    same &= one.labels[:, None] == other.labels[None]
    cost = np.where(same, distance, np.inf)
    # Pair greedily with the nearest: identical boxes of equal score pair up in their order.
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
    """Which of the unpaired detections are explained by rounding: bool, first set's, then second set's."""
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
    # At the border of the image, rounding may leave a box without width or height, which drops it.
    marginal |= (boxes[:, 2:] - boxes[:, :2] <= tolerance).any(axis=1)
    # One box more or less after NMS moves another across the limit ...
    if all(len(f.scores) == settings.detections_per_img for f in both):
        marginal |= scores <= _lowest_of_class(both)[labels] + score
    # ... and suppresses or frees those that it overlaps.
    between = (overlap > settings.nms_threshold)[:, _positions(both, alone)]
    for _ in range(len(marginal)):
        more = marginal | np.any(between & marginal[None], axis=1)
        if (more == marginal).all():
            break
        marginal = more
    return marginal


def _lowest_of_class(both: Sequence[Found]) -> NDArray[np.float64]:
    """The lowest score of each class in a set, the higher of the two sets' values: [C].

    The limit applies to scores before calibration, which keeps the order only within a class.
    """
    lowest = np.full((2, 1 + max(f.labels.max(initial=0) for f in both)), np.inf)
    for of_one, f in zip(lowest, both, strict=True):
        np.minimum.at(of_one, f.labels, f.scores)
    return np.where(np.isinf(lowest), lowest[::-1], lowest).max(axis=0)


def _positions(both: Sequence[Found], alone: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.concatenate([alone[0], alone[1] + len(both[0].scores)])


def _iou(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """xyxy boxes [N, 4], [M, 4] -> IoU [N, M]."""
    least = np.maximum(one[:, None, :2], other[None, :, :2])
    most = np.minimum(one[:, None, 2:], other[None, :, 2:])
    inside = (most - least).clip(0).prod(-1)
    areas = [(b[:, 2:] - b[:, :2]).prod(-1) for b in (one, other)]
    union = areas[0][:, None] + areas[1][None] - inside
    return inside / np.maximum(union, np.finfo(np.float64).tiny)
