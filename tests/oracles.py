"""Reference results, computed slowly in float64 from the definitions without any code of the project."""

import math
from collections.abc import Sequence
from math import dist
from statistics import fmean, stdev
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


def alrp_loss(
    logits: Sequence[float], targets: Sequence[int], errors: Sequence[float], delta: float
) -> tuple[float, float, list[float], list[float]]:
    """The two parts of aLRP, the update of the logits and the gradient of the regression losses.

    rank_i = 1 + sum_{k != i} H(f_k - f_i) + b_i; ranking part mean b_i / rank_i, localisation part
    mean (E_i + sum_{k != i} H(f_k - f_i) E_k) / rank_i. Each pair (i, j) of a positive and a negative
    above it moves both by (l_i - l*_i) H(n_j - f_i) / b_i / P, l_i the sum of both parts of i and
    l*_i = E_i / rank_i what is left of it without negatives above.
    """
    f = [x for x, t in zip(logits, targets, strict=True) if t == 1]
    n = [x for x, t in zip(logits, targets, strict=True) if t == 0]
    count = len(f)
    ranking = localisation = 0.0
    of_positives, of_negatives, of_errors = [0.0] * count, [0.0] * len(n), [0.0] * count
    for i in range(count):
        above = [soft_step(f[k] - f[i], delta) if k != i else 0.0 for k in range(count)]
        negatives = [soft_step(x - f[i], delta) for x in n]
        b = math.fsum(negatives)
        rank = 1 + math.fsum(above) + b
        own = [1.0 if k == i else above[k] for k in range(count)]
        error = math.fsum(h * e for h, e in zip(own, errors, strict=True)) / rank
        ranking += b / rank / count
        localisation += error / count
        for k in range(count):
            of_errors[k] += own[k] / rank / count
        if b > 0:
            excess = b / rank + error - errors[i] / rank
            of_positives[i] -= excess / count
            for j, h in enumerate(negatives):
                of_negatives[j] += excess * h / b / count
    entries = {1: iter(of_positives), 0: iter(of_negatives), -1: iter([0.0] * len(logits))}
    return ranking, localisation, [next(entries[t]) for t in targets], of_errors


def rank_sort_loss(
    logits: Sequence[float], quality: Sequence[float], delta: float
) -> tuple[float, float, list[float], list[float]]:
    """Ranking and sorting error of Rank & Sort, and the update of the logits that each makes.

    Ranking: b_i / (sum_k H(f_k - f_i) + b_i), shared by the negatives. Sorting: the H-weighted mean
    of 1 - q_k over all positives minus that over those with q_k >= q_i, shared by the others.
    """
    f = [(x, q) for x, q in zip(logits, quality, strict=True) if q > 0]
    n = [x for x, q in zip(logits, quality, strict=True) if q == 0]
    count = len(f)
    ranking = sorting = 0.0
    rank_p, rank_n, sort_p = [0.0] * count, [0.0] * len(n), [0.0] * count
    for i, (f_i, q_i) in enumerate(f):
        above = [soft_step(f_k - f_i, delta) for f_k, _ in f]
        negatives = [soft_step(x - f_i, delta) for x in n]
        b = math.fsum(negatives)
        error = b / (math.fsum(above) + b)
        ranking += error / count
        rank_p[i] -= error / count
        for j, h in enumerate(negatives):
            rank_n[j] += error * h / b / count if b > 0 else 0.0
        better = [h if q_k >= q_i else 0.0 for h, (_, q_k) in zip(above, f, strict=True)]
        worse = [h - g for h, g in zip(above, better, strict=True)]
        error = math.fsum(h * (1 - q) for h, (_, q) in zip(above, f, strict=True)) / math.fsum(above)
        error -= math.fsum(h * (1 - q) for h, (_, q) in zip(better, f, strict=True)) / math.fsum(better)
        sorting += error / count
        if math.fsum(worse) > 0:
            sort_p[i] -= error / count
            for k, h in enumerate(worse):
                sort_p[k] += error * h / math.fsum(worse) / count
    signs = [(q > 0) - (q < 0) for q in quality]
    ranked = {1: iter(rank_p), 0: iter(rank_n), -1: iter([0.0] * len(logits))}
    sorted_ = {1: iter(sort_p), 0: iter([0.0] * len(logits)), -1: iter([0.0] * len(logits))}
    return ranking, sorting, [next(ranked[t]) for t in signs], [next(sorted_[t]) for t in signs]


def ce_ohem_loss(logits: Sequence[float], targets: Sequence[int], ratio: float) -> float:
    """Sum of -log p(correct) over the positives and the hardest negatives, divided by P."""
    positives = [x for x, t in zip(logits, targets, strict=True) if t == 1]
    negatives = sorted((x for x, t in zip(logits, targets, strict=True) if t == 0), reverse=True)
    count = max(1, len(positives))
    hardest = negatives[: round(ratio * count)]
    terms = [math.log1p(math.exp(-x)) for x in positives] + [math.log1p(math.exp(x)) for x in hardest]
    return math.fsum(terms) / count


def intersection(one: Box, other: Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0.0) * max(height, 0.0)


def box_area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def iou(one: Box, other: Box) -> float:
    """Intersection over union; 0 if both boxes are empty."""
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


def match_image_adaptively(
    levels: Sequence[Sequence[Sequence[Box]]],
    objects: dict[int, Box],
    crowds: Sequence[Box],
    candidates: int,
    best_anchor: bool,
) -> list[Match]:
    """ATSS for one image, straight from its Algorithm 1.

    levels: the anchors of each location of each level.
    """
    anchors = [anchor for level in levels for location in level for anchor in location]
    claims: list[dict[int, float]] = [{} for _ in anchors]
    for g, box in objects.items():
        mine, first = [], 0
        for level in levels:
            nearest = sorted(
                range(len(level)), key=lambda i, level=level: dist(centre(level[i][0]), centre(box))
            )
            for i in nearest[:candidates]:
                start = first + sum(len(location) for location in level[:i])
                mine += range(start, start + len(level[i]))
            first += sum(len(location) for location in level)
        overlaps = {a: iou(box, anchors[a]) for a in mine}
        threshold = fmean(overlaps.values()) + stdev(overlaps.values())
        chosen = [a for a in mine if overlaps[a] >= threshold and overlaps[a] > 0 and within(anchors[a], box)]
        if best_anchor and not chosen:
            chosen = [a for a in mine if overlaps[a] == max(overlaps.values()) and overlaps[a] > 0]
        for a in chosen:
            claims[a][g] = overlaps[a]
    matches = []
    for anchor, of_anchor in zip(anchors, claims, strict=True):
        if of_anchor:
            matches.append(Match(1, max(of_anchor, key=lambda g, of=of_anchor: of[g])))
        else:
            in_crowd = any(intersection(anchor, crowd) > 0.5 * box_area(anchor) for crowd in crowds)
            matches.append(Match(-1 if in_crowd else 0, None))
    return matches


def centre(box: Box) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def within(anchor: Box, box: Box) -> bool:
    """Whether the centre of an anchor lies inside a box."""
    x, y = centre(anchor)
    return box[0] < x < box[2] and box[1] < y < box[3]
