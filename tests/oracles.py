"""Answers worked out the slow way, in float64, from the definitions; nothing of the project is used."""

import math
from collections.abc import Sequence
from typing import NamedTuple

Box = Sequence[float]


def soft_step(u: float, delta: float) -> float:
    """H(u) = clamp(u / (2 delta) + 1/2, 0, 1); the plain step for delta = 0, 1/2 at 0."""
    if delta == 0:
        return 0.5 if u == 0 else float(u > 0)
    return min(max(u / (2 * delta) + 0.5, 0.0), 1.0)


def soft_rank_sums(values: Sequence[float], thresholds: Sequence[float], delta: float) -> list[float]:
    """sum_j H(x_j - t_i) for every threshold."""
    return [math.fsum(soft_step(x - t, delta) for x in values) for t in thresholds]


def pulls(
    values: Sequence[float], thresholds: Sequence[float], weights: Sequence[float], delta: float
) -> list[float]:
    """sum_i w_i H(x_j - t_i) for every value."""
    pairs = list(zip(weights, thresholds, strict=True))
    return [math.fsum(w * soft_step(x - t, delta) for w, t in pairs) for x in values]


def ap_loss(
    logits: Sequence[float], targets: Sequence[int], delta: float, interpolated: bool
) -> tuple[float, list[float]]:
    """The AP-loss and its error-driven gradient.

    a_i = 1/2 + sum_k H(f_k - f_i) and b_i = sum_j H(n_j - f_i); r_i = a_i / (a_i + b_i);
    p_i = max of r_k over f_k <= f_i, or r_i. Loss 1 - mean p_i; gradient of positive i
    -(1 - p_i) / P, of negative j (1 / P) sum_i w_i H(n_j - f_i) with w_i = (1 - p_i) / b_i, 0 where b_i = 0.
    """
    f = [x for x, t in zip(logits, targets, strict=True) if t == 1]
    n = [x for x, t in zip(logits, targets, strict=True) if t == 0]
    if not f:
        return 0.0, [0.0] * len(logits)
    a = [0.5 + rank for rank in soft_rank_sums(f, f, delta)]
    b = soft_rank_sums(n, f, delta)
    r = [a_i / (a_i + b_i) for a_i, b_i in zip(a, b, strict=True)]
    p = [max(r_k for r_k, f_k in zip(r, f, strict=True) if f_k <= f_i) for f_i in f] if interpolated else r
    errors = [1 - p_i for p_i in p]
    w = [error / b_i if b_i > 0 else 0.0 for error, b_i in zip(errors, b, strict=True)]
    of_positives = iter([-error / len(f) for error in errors])
    of_negatives = iter([pull / len(f) for pull in pulls(n, f, w, delta)])
    entries = {1: of_positives, 0: of_negatives, -1: iter([0.0] * len(logits))}
    return math.fsum(errors) / len(f), [next(entries[t]) for t in targets]


def intersection(one: Box, other: Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0.0) * max(height, 0.0)


def box_area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def iou(one: Box, other: Box) -> float:
    """0 where both boxes are empty."""
    shared = intersection(one, other)
    union = box_area(one) + box_area(other) - shared
    return shared / union if union > 0 else 0.0


class Match(NamedTuple):
    status: int  # 1 positive, 0 negative, -1 ignored
    gt: int | None  # the matched box of a positive


def match_image(
    anchors: Sequence[Box],
    objects: dict[int, Box],
    crowds: Sequence[Box],
    positive_iou: float,
    negative_iou: float,
    best_anchor: bool,
) -> list[Match]:
    """What each anchor of one image is to learn; `objects` maps a row of the gt boxes to its box.

    The first of several equally good boxes wins.
    """
    overlaps = [{g: iou(box, anchor) for g, box in objects.items()} for anchor in anchors]
    best_of_gt = {g: max(of_anchor[g] for of_anchor in overlaps) for g in objects}
    matches = []
    for anchor, of_anchor in zip(anchors, overlaps, strict=True):
        best = max(of_anchor, key=lambda g: of_anchor[g], default=None)
        best_iou = 0.0 if best is None else of_anchor[best]
        forcing = [g for g in objects if of_anchor[g] == best_of_gt[g] and of_anchor[g] > 0]
        in_crowd = any(intersection(anchor, crowd) > 0.5 * box_area(anchor) for crowd in crowds)
        if best is not None and best_iou >= positive_iou:
            matches.append(Match(1, best))
        elif best_anchor and forcing:
            matches.append(Match(1, max(forcing, key=lambda g: of_anchor[g])))
        elif in_crowd:
            matches.append(Match(-1, None))
        else:
            matches.append(Match(0 if best_iou < negative_iou else -1, None))
    return matches
