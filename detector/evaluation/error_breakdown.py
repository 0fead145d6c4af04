"""What each kind of error costs: AP50 with the errors of one kind fixed and all others kept, minus AP50.

After TIDE (Bolya et al., ECCV 2020, section 2.3). Differences from its program: a class without gt boxes
is left out, as in COCO; one that has no gt box left after a fix always counts 0.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from detector.evaluation.matching import RECALLS, Flags, Floats, FoundBoxes, GtBoxes, Ints, Kind, Matching

# Column headings.
SHORT_NAMES = {
    "classification": "class",
    "localisation": "box",
    "both": "class+box",
    "duplicate": "duplicate",
    "background": "background",
    "missed": "missed",
    "false_positives": "all false",
    "false_negatives": "all unfound",
}


@dataclass(frozen=True)
class Cost:
    """One kind of error."""

    count: int  # detections; for missed, gt boxes
    ap50: float  # AP50 gained without these errors


@dataclass(frozen=True)
class ErrorBreakdown:
    """The kinds of error in a set of detections. Costs do not add up: errors hide one another.

    If no class has gt boxes, AP50 is -1 and every cost 0. The comments say how each kind is fixed.
    """

    ap50: float  # unfixed; the same as pycocotools' to the last digit
    classification: Cost  # class corrected, only for the best of several on one gt box; the others removed
    localisation: Cost  # box corrected, likewise
    both: Cost  # removed
    duplicate: Cost  # removed
    background: Cost  # removed
    missed: Cost  # gt boxes with no detection of the first two kinds (and no correct one): not counted
    false_positives: Cost  # all of the first five: every correct detection ranked above every wrong one
    false_negatives: Cost  # all gt boxes without a correct detection: not counted

    def costs(self) -> dict[str, Cost]:
        """The six kinds by name, then the two sums."""
        return {name: getattr(self, name) for name in SHORT_NAMES}

    def as_json(self) -> dict[str, dict[str, float]]:
        """Plain values: {"missed": {"count": 3, "AP50": 0.01}, ...}."""
        return {name: {"count": one.count, "AP50": one.ap50} for name, one in self.costs().items()}


def error_breakdown(gt: GtBoxes, found: FoundBoxes, matching: Matching) -> ErrorBreakdown:
    """The costs of the errors that `match` has found in a set of detections."""
    counted = matching.order[matching.kinds[matching.order] != Kind.IGNORED]  # in descending order of score
    kinds, labels, correct = matching.kinds[counted], found.labels[counted], matching.correct[counted]
    classes = int(max(gt.labels.max(initial=-1), labels.max(initial=-1))) + 1
    regular = ~gt.ignore
    totals = np.bincount(gt.labels[regular], minlength=classes)
    listed = totals > 0

    def ap(labels: Ints, correct: Flags, totals: Ints) -> float:
        return float(class_aps(labels, correct, totals)[listed].mean()) if listed.any() else -1.0

    def without(gts: Flags) -> float:
        return ap(labels, correct, totals - np.bincount(gt.labels[gts], minlength=classes))

    def removed(kind: Kind) -> float:
        kept = kinds != kind
        return ap(labels[kept], correct[kept], totals)

    def mended(kind: Kind) -> float:
        target = matching.gt[counted]
        best = (kinds == kind) & (matching.usable[target] == counted) if len(gt.labels) else kinds == kind
        kept = (kinds != kind) | best
        classes_then = np.where(best, gt.labels[target], labels) if len(gt.labels) else labels
        return ap(classes_then[kept], (correct | best)[kept], totals)

    base = ap(labels, correct, totals)

    def cost(count: int, then: float) -> Cost:
        return Cost(int(count), max(then - base, 0.0))  # below 0 only due to COCO's recall steps

    first_right = np.argsort(~correct, kind="stable")
    unfound = regular & (matching.found < 0)
    return ErrorBreakdown(
        base,
        cost((kinds == Kind.CLASSIFICATION).sum(), mended(Kind.CLASSIFICATION)),
        cost((kinds == Kind.LOCALISATION).sum(), mended(Kind.LOCALISATION)),
        cost((kinds == Kind.BOTH).sum(), removed(Kind.BOTH)),
        cost((kinds == Kind.DUPLICATE).sum(), removed(Kind.DUPLICATE)),
        cost((kinds == Kind.BACKGROUND).sum(), removed(Kind.BACKGROUND)),
        cost(matching.missed.sum(), without(matching.missed)),
        cost((~correct).sum(), ap(labels[first_right], correct[first_right], totals)),
        cost(unfound.sum(), without(unfound)),
    )


def class_aps(labels: Ints, correct: Flags, totals: Ints) -> Floats:
    """COCO's AP of each class at one IoU threshold.

    Args:
        labels, correct: [D], detections in descending order of score.
        totals: [C], gt boxes of each class.

    Returns:
        float64 [C]; 0 for a class without gt boxes.
    """
    aps = np.zeros(len(totals))
    for label, hits in _by_class(labels, correct):
        if totals[label] > 0:
            aps[label] = precisions(hits, int(totals[label])).mean()
    return aps


def precisions(correct: Flags, total: int) -> Floats:
    """Interpolated precision at COCO's 101 recalls, for detections in descending order of score: [101]."""
    right = np.cumsum(correct, dtype=np.float64)
    precision = right / (np.arange(1, len(correct) + 1) + np.spacing(1))
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(right / total, RECALLS, side="left")
    return np.concatenate([envelope, [0.0]])[at]


def _by_class(labels: Ints, correct: Flags) -> Iterator[tuple[int, Flags]]:
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.diff(labels[order], prepend=-1))
    if len(starts):
        yield from zip(labels[order[starts]].tolist(), np.split(correct[order], starts[1:]), strict=True)
