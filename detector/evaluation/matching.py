"""Matches detections with gt boxes by COCO's rules, and classifies the errors of the others.

The kinds of error follow TIDE (Bolya, Foley, Hays, Hoffman: "TIDE: A General Toolbox for Identifying Object
Detection Errors", ECCV 2020, section 2.2). Matching is that of pycocotools' `evaluateImg` for all areas.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask

from data.progress import told_if_long

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

# COCO's thresholds for AP.
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
FOREGROUND_IOU, BACKGROUND_IOU = 0.5, 0.1
_MOST = 100  # detections per class and image that COCO considers
_AREAS = (0, 1e10)  # square px, COCO's "all areas": a box outside this range may be right, but is never wrong


@dataclass(frozen=True)
class GtBoxes:
    """The gt boxes of a set in flat arrays, in any order."""

    xywh: Floats  # [M, 4] pixels; not xyxy, so that IoU equals pycocotools' to the last digit
    labels: Ints  # [M]
    ignore: Flags  # [M] crowd regions, difficult objects: detections on them are not counted
    images: Ints  # [M] image ids


@dataclass(frozen=True)
class FoundBoxes:
    """The detections of a set in flat arrays, in any order; it breaks ties of score within an image."""

    xywh: Floats  # [D, 4] pixels
    labels: Ints  # [D]
    scores: Floats  # [D]
    images: Ints  # [D] image ids; they break ties of score between images, lower first


class Kind(IntEnum):
    """What a detection is, or what is wrong with it."""

    IGNORED = -1  # on ignored gt, beyond the first 100 of its class and image, or of an area outside _AREAS
    CORRECT = 0
    CLASSIFICATION = 1  # on a gt box of another class
    LOCALISATION = 2  # on a gt box of its class, but the IoU is too small
    BOTH = 3  # near a gt box of another class, but the IoU is too small
    DUPLICATE = 4  # on a gt box of its class that is matched with a better detection
    BACKGROUND = 5  # on no object


@dataclass(frozen=True)
class Matching:
    """The result for every detection and gt box; rows are those of FoundBoxes and GtBoxes."""

    kinds: NDArray[np.int8]  # [D] of Kind
    gt: Ints  # [D] the gt box that a detection is matched with, or that its error refers to; -1: none
    ious: Floats  # [D] IoU with that gt box; 0: none
    found: Ints  # [M] the detection matched with the gt box; -1: none
    usable: Ints  # [M] if unmatched: the best detection with only class or only box wrong; -1: none
    missed: Flags  # [M] neither of the two, and not ignored
    order: Ints  # [D] all detections in the order in which COCO counts them

    @property
    def correct(self) -> Flags:
        """Which detections are correct: bool [D]."""
        return self.kinds == Kind.CORRECT


def match(gt: GtBoxes, found: FoundBoxes, foreground: float = FOREGROUND_IOU) -> Matching:
    """Match the detections of all images with their gt boxes, best first, and classify every error.

    Args:
        foreground: minimum IoU of a match; the IoU limit of the background is always 0.1.

    A detection whose IoU with an already matched gt box is exactly `foreground` is badly localised in TIDE's
    program and paper; here it is a duplicate, as COCO would have let it match.
    """
    by_image = np.lexsort((-found.scores, found.images))  # stable: ties keep their order
    gt_of = dict(_by_image(gt.images, np.argsort(gt.images, kind="stable")))
    m = Matching(
        kinds=np.full(len(found.scores), Kind.BACKGROUND, np.int8),
        gt=np.full(len(found.scores), -1, np.int64),
        ious=np.zeros(len(found.scores)),
        found=np.full(len(gt.labels), -1, np.int64),
        usable=np.full(len(gt.labels), -1, np.int64),
        missed=~gt.ignore,
        order=by_image[np.argsort(-found.scores[by_image], kind="stable")],
    )
    if len(found.scores):
        m.kinds[by_image[_beyond_the_limit(found, by_image)]] = Kind.IGNORED
    images = list(_by_image(found.images, by_image))
    for image, rows in told_if_long(images, len(images), "image", "matching"):
        rows = rows[m.kinds[rows] != Kind.IGNORED]
        if image in gt_of and len(rows):
            _match_image(m, gt, found, gt_of[image], rows, foreground)
    _ignore_wrong_areas(m, found, np.arange(len(found.scores)))  # also in images without gt
    m.missed[(m.found >= 0) | (m.usable >= 0)] = False
    return m


def _by_image(images: Ints, order: Ints) -> Iterator[tuple[int, Ints]]:
    """The rows of each image; `order` sorts them by image."""
    ids, starts = np.unique(images[order], return_index=True)
    return zip(ids.tolist(), np.split(order, starts[1:]), strict=False)  # split of an empty array has 1 part


def _beyond_the_limit(found: FoundBoxes, by_image: Ints) -> Flags:
    """Which detections, ordered by image and score, come after the first 100 of their class and image."""
    group = np.lexsort((found.labels[by_image], found.images[by_image]))  # stable
    images, labels = found.images[by_image[group]], found.labels[by_image[group]]
    first = np.concatenate(([True], (np.diff(images) != 0) | (np.diff(labels) != 0)))
    place = np.arange(len(group)) - np.flatnonzero(first)[np.cumsum(first) - 1]
    beyond = np.zeros(len(group), np.bool_)
    beyond[group] = place >= _MOST
    return beyond


def _match_image(
    m: Matching, gt: GtBoxes, found: FoundBoxes, gts: Ints, rows: Ints, foreground: float
) -> None:
    """Fill in the rows of one image; `rows` in descending order of score."""
    ignore = gt.ignore[gts]
    # For ignored gt, pycocotools uses the fraction of the detection that it covers instead of IoU.
    overlap = mask.iou(found.xywh[rows], gt.xywh[gts], ignore.astype(np.uint8))  # [D, G]
    same: Flags = np.equal.outer(found.labels[rows], gt.labels[gts])  # [D, G]
    _assign(m, overlap, same, gts, rows, ignore, foreground)
    _ignore_wrong_areas(m, found, rows)
    taking_part, regular = m.kinds[rows] == Kind.BACKGROUND, ~ignore
    wrong, gts = rows[taking_part], gts[regular]
    if len(wrong) == 0 or len(gts) == 0:
        return
    overlap, same = overlap[taking_part][:, regular], same[taking_part][:, regular]
    own, other = np.where(same, overlap, 0), np.where(same, 0, overlap)
    best_own, best_other, best_any = own.max(axis=1), other.max(axis=1), overlap.max(axis=1)
    # In TIDE's order: the first condition that holds.
    kinds = np.select(
        [
            (best_own >= BACKGROUND_IOU) & (best_own < foreground),
            best_other >= foreground,
            best_own >= foreground,
            best_any <= BACKGROUND_IOU,
        ],
        [Kind.LOCALISATION, Kind.CLASSIFICATION, Kind.DUPLICATE, Kind.BACKGROUND],
        Kind.BOTH,
    )
    of_own = (kinds == Kind.LOCALISATION) | (kinds == Kind.DUPLICATE)
    at = np.where(of_own, own.argmax(axis=1), other.argmax(axis=1))
    told = kinds != Kind.BACKGROUND
    m.kinds[wrong] = kinds
    m.gt[wrong] = np.where(told, gts[at], -1)
    m.ious[wrong] = np.where(told, overlap[np.arange(len(wrong)), at], 0)
    mendable = (of_own & (kinds != Kind.DUPLICATE)) | (kinds == Kind.CLASSIFICATION)
    free = mendable & (m.found[gts[at]] < 0)
    # Only one detection per gt box can be fixed: the best of both kinds.
    wanted, first = np.unique(gts[at[free]], return_index=True)
    m.usable[wanted] = wrong[free][first]


def _ignore_wrong_areas(m: Matching, found: FoundBoxes, rows: Ints) -> None:
    area = found.xywh[rows, 2] * found.xywh[rows, 3]
    outside = (area < _AREAS[0]) | (area > _AREAS[1])
    m.kinds[rows[outside & (m.kinds[rows] == Kind.BACKGROUND)]] = Kind.IGNORED


def _assign(
    m: Matching, overlap: Floats, same: Flags, gts: Ints, rows: Ints, ignore: Flags, foreground: float
) -> None:
    """pycocotools' greedy matching; without a regular gt, a detection may share ignored gt with others."""
    reaching = np.where(same & (overlap >= min(foreground, 1 - 1e-10)), overlap, -1.0)
    open_regular = np.where(ignore, -1.0, reaching)
    on_ignored = np.logical_or.reduce(reaching[:, ignore] >= 0, axis=1)
    last = len(gts) - 1
    for d in np.flatnonzero((reaching >= 0).any(axis=1)).tolist():
        g = last - int(open_regular[d, ::-1].argmax())  # the last one in a tie
        if open_regular[d, g] >= 0:
            m.kinds[rows[d]], m.gt[rows[d]], m.ious[rows[d]] = Kind.CORRECT, gts[g], overlap[d, g]
            m.found[gts[g]] = rows[d]
            open_regular[:, g] = -1.0
        elif on_ignored[d]:
            m.kinds[rows[d]] = Kind.IGNORED
