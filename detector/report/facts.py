"""What the report shows beside COCO's metrics, computed from the matching at IoU 0.5."""

from dataclasses import dataclass

import numpy as np
from pycocotools import mask

from detector.evaluation.calibration import Matched
from detector.evaluation.coco import CocoResult
from detector.evaluation.matching import FOREGROUND_IOU, Flags, Floats, Ints, Kind

# COCO's size ranges in square pixels; both ends belong to a range, as in COCO.
SIZES = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}


@dataclass(frozen=True)
class Shown:
    """The detections that reach the threshold of their class, and the counts that result."""

    thresholds: Floats  # [C]
    found: Flags  # [D] mask of these detections, without ignored ones
    gt: Flags  # [M] gt boxes that are matched with one of them
    right: Ints  # [I] correct detections per image
    wrong: Ints  # [I] wrong detections per image
    unfound: Ints  # [I] gt boxes not found per image

    @property
    def f1(self) -> Floats:
        """F1 per image, [I]; NaN without gt boxes and detections."""
        total = 2 * self.right + self.wrong + self.unfound
        return np.where(total > 0, 2 * self.right / np.maximum(total, 1), np.nan)


def shown(result: CocoResult) -> Shown:
    """The detections at the chosen thresholds, or else at the best threshold of each class."""
    material, matching = result.material, result.matching
    thresholds = result.best_thresholds
    if result.chosen:
        thresholds = np.array([*result.chosen.thresholds.values()])
    found = material.found
    visible = (found.scores >= thresholds[found.labels]) & (matching.kinds != Kind.IGNORED)
    has = matching.found >= 0
    gt = np.zeros(len(has), np.bool_)
    gt[has] = visible[matching.found[has]]
    images = len(material.image_ids)
    return Shown(
        thresholds,
        visible,
        gt,
        np.bincount(found.images[visible & matching.correct], minlength=images),
        np.bincount(found.images[visible & ~matching.correct], minlength=images),
        np.bincount(material.gt.images[~gt & ~material.gt.ignore], minlength=images),
    )


def confusion(result: CocoResult, at: Shown) -> Ints:
    """How often a gt box of one class (row) was detected as another (column): [C + 1, C + 1].

    COCO's matches come first, on the diagonal. The rest is paired regardless of class, by descending
    IoU down to 0.5. The last column counts unpaired gt boxes, the last row unpaired detections,
    including duplicates.
    """
    gt, found, nothing = result.material.gt, result.material.found, len(result.per_class)
    table = np.zeros((nothing + 1, nothing + 1), np.int64)
    np.add.at(table, (gt.labels[at.gt], gt.labels[at.gt]), 1)
    left = np.flatnonzero(at.found & ~result.matching.correct)
    gt_left = np.flatnonzero(~at.gt & ~gt.ignore)
    paired, gt_paired = [], []
    for image in np.intersect1d(found.images[left], gt.images[gt_left]):
        rows, gts = left[found.images[left] == image], gt_left[gt.images[gt_left] == image]
        overlap = mask.iou(found.xywh[rows], gt.xywh[gts], np.zeros(len(gts), np.uint8))
        while overlap.size and overlap.max() >= FOREGROUND_IOU:
            d, g = np.unravel_index(overlap.argmax(), overlap.shape)
            paired.append(rows[d])
            gt_paired.append(gts[g])
            overlap[d], overlap[:, g] = 0, 0
    np.add.at(table, (gt.labels[gt_paired], found.labels[paired]), 1)
    np.add.at(table, (gt.labels[np.setdiff1d(gt_left, gt_paired)], nothing), 1)
    np.add.at(table, (nothing, found.labels[np.setdiff1d(left, paired)]), 1)
    return table


def score_range(matched: Matched) -> tuple[float, float]:
    """The lowest and the highest score, extended to at least [0, 1]."""
    return float(matched.scores.min(initial=0)), float(matched.scores.max(initial=1))


def score_steps(matched: Matched) -> Floats:
    """101 evenly spaced thresholds over `score_range`: 0, 0.01, ..., 1 if all scores are in [0, 1]."""
    return np.linspace(*score_range(matched), 101).round(6)  # or the step 0.35 would exceed a score of 0.35


def score_histogram(matched: Matched, bins: int = 20) -> tuple[Floats, Ints, Ints]:
    """Bin edges [B + 1] over `score_range`, and the counts of correct and of wrong detections per bin [B]."""
    edges = np.linspace(*score_range(matched), bins + 1)
    correct, wrong = (np.histogram(matched.scores[k], edges)[0] for k in (matched.correct, ~matched.correct))
    return edges, correct, wrong


def calibration_curve(matched: Matched) -> tuple[Floats, Floats, Ints]:
    """Mean score, fraction of correct detections and number of detections, for each non-empty score bin."""
    bins = 10
    at = np.clip((matched.scores * bins).astype(np.int64), 0, bins - 1)
    counts = np.bincount(at, minlength=bins)
    some = counts > 0
    scores = np.bincount(at, matched.scores, bins)[some] / counts[some]
    correct = np.bincount(at, matched.correct.astype(np.float64), bins)[some] / counts[some]
    return scores, correct, counts[some]


def size_counts(result: CocoResult, at: Shown) -> dict[str, tuple[int, int]]:
    """The number of gt boxes in each of COCO's size ranges, and how many of them are found."""
    material = result.material
    counts = {}
    for name, (low, high) in SIZES.items():
        mine = ~material.gt.ignore & (material.gt_areas >= low) & (material.gt_areas <= high)
        counts[name] = (int(mine.sum()), int((mine & at.gt).sum()))
    return counts


def worst_false(result: CocoResult, at: Shown, count: int, per_image: int = 2) -> Ints:
    """Rows of the wrong detections with the highest scores, at most `per_image` per image."""
    wrong = at.found & ~result.matching.correct
    order = result.matching.order
    return _spread(order[wrong[order]], result.material.found.images, count, per_image)


def worst_missed(result: CocoResult, at: Shown, count: int, per_image: int = 2) -> Ints:
    """Rows of gt boxes not found: first those without a detection at any score, then by falling area."""
    gt = result.material.gt
    unfound = np.flatnonzero(~at.gt & ~gt.ignore)
    order = np.lexsort((-result.material.gt_areas[unfound], result.matching.found[unfound] >= 0))
    return _spread(unfound[order], gt.images, count, per_image)


def worst_images(at: Shown, count: int) -> Ints:
    """Images with the lowest F1; ties with the most errors first."""
    errors = at.wrong + at.unfound
    order = np.lexsort((-errors, at.f1))
    return order[(errors[order] > 0)][:count]


def best_images(at: Shown, count: int) -> Ints:
    """Images with the highest F1, ties with the most right detections first; only images with any."""
    order = np.lexsort((-at.right, -at.f1))
    return order[at.right[order] > 0][:count]


def _spread(rows: Ints, images: Ints, count: int, per_image: int) -> Ints:
    chosen: list[int] = []
    seen: dict[int, int] = {}
    for row in rows.tolist():
        image = int(images[row])
        if len(chosen) == count:
            break
        if seen.get(image, 0) < per_image:
            seen[image] = seen.get(image, 0) + 1
            chosen.append(row)
    return np.array(chosen, dtype=np.int64)
