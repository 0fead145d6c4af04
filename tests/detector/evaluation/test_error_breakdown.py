"""The error analysis: every kind by hand, AP50 against pycocotools, everything counted exactly once."""

import contextlib
import io
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detector.evaluation.error_breakdown import ErrorBreakdown, error_breakdown
from detector.evaluation.matching import FoundBoxes, GtBoxes, Kind, match

HALF = 51 / 101  # the AP of a class whose first detection is right and finds one of two gt boxes
A, B, FAR = (0, 0, 10, 10), (100, 0, 10, 10), (500, 0, 10, 10)
NEAR_A, NEAR_B = (0, 0, 10, 4), (100, 0, 10, 4)  # IoU 0.4

Placed = tuple[int, tuple[int, int, int, int]]  # class, box
Scored = tuple[int, tuple[int, int, int, int], float]


def breakdown(gt: GtBoxes, found: FoundBoxes) -> ErrorBreakdown:
    return error_breakdown(gt, found, match(gt, found))


def boxes(gt: list[Placed], found: list[Scored], crowd: int = 0) -> tuple[GtBoxes, FoundBoxes]:
    """One image; the last `crowd` gt boxes are crowds."""
    ignore = np.arange(len(gt)) >= len(gt) - crowd
    return (
        GtBoxes(
            np.array([b for _, b in gt], float).reshape(-1, 4), np.array([c for c, _ in gt], int), ignore,
            np.full(len(gt), 7),
        ),
        FoundBoxes(
            np.array([b for _, b, _ in found], float).reshape(-1, 4), np.array([c for c, _, _ in found], int),
            np.array([s for *_, s in found], float), np.full(len(found), 7),
        ),
    )  # fmt: skip


def counts(result: ErrorBreakdown) -> dict[str, int]:
    """The kinds that occur, with their counts."""
    return {name: one.count for name, one in result.costs().items() if one.count}


@pytest.mark.parametrize(
    ("kind", "gt", "found", "occurring", "before", "after"),
    [
        # Right at rank 2 of 2, then at rank 1: the precision goes from 1/2 to 1 at half the recall.
        ("background", [(0, A), (0, B)], [(0, FAR, 0.95), (0, A, 0.9)],
         {"background": 1, "missed": 1, "false_positives": 1, "false_negatives": 1}, HALF / 2, HALF),
        # Right, duplicate, right: precision 1 to recall 1/2, 2/3 from there on.
        ("duplicate", [(0, A), (0, B)], [(0, A, 0.95), (0, A, 0.9), (0, B, 0.8)],
         {"duplicate": 1, "false_positives": 1}, (51 + 50 * 2 / 3) / 101, 1.0),
        # With its box corrected it finds B: both are found, so B is not missed.
        ("localisation", [(0, A), (0, B)], [(0, NEAR_B, 0.95), (0, A, 0.9)],
         {"localisation": 1, "false_positives": 1, "false_negatives": 1}, HALF / 2, 1.0),
        # Of the two near B the better one is corrected, the other removed: right, right.
        ("localisation", [(0, A), (0, B)], [(0, NEAR_B, 0.95), (0, NEAR_B, 0.94), (0, A, 0.9)],
         {"localisation": 2, "false_positives": 2, "false_negatives": 1}, HALF / 3, 1.0),
        # A has its detection: there is nothing to correct, so this one is removed.
        ("localisation", [(0, A), (0, B)], [(0, NEAR_A, 0.95), (0, A, 0.9)],
         {"localisation": 1, "missed": 1, "false_positives": 1, "false_negatives": 1}, HALF / 2, HALF),
        # It leaves class 1, whose right detection then comes first, and finds B in class 0.
        ("classification", [(0, A), (0, B), (1, FAR)], [(1, B, 0.95), (0, A, 0.9), (1, FAR, 0.9)],
         {"classification": 1, "false_positives": 1, "false_negatives": 1}, (HALF + 0.5) / 2, 1.0),
        # B has its own detection: that of class 1 is removed.
        ("classification", [(0, A), (0, B), (1, FAR)], [(1, B, 0.95), (0, B, 0.9), (1, FAR, 0.9)],
         {"classification": 1, "missed": 1, "false_positives": 1, "false_negatives": 1},
         (HALF + 0.5) / 2, (HALF + 1) / 2),
        # The better of the two candidates for B is badly placed: correcting the class of the other
        # would make it a second detection on B.
        ("classification", [(0, A), (0, B), (1, FAR)],
         [(0, NEAR_B, 0.99), (1, B, 0.95), (0, A, 0.9), (1, FAR, 0.9)],
         {"classification": 1, "localisation": 1, "false_positives": 2, "false_negatives": 1},
         (HALF / 2 + 0.5) / 2, (HALF / 2 + 1) / 2),
        # Wrong in class and place: removed, and B is missed.
        ("both", [(0, A), (0, B), (1, FAR)], [(1, NEAR_B, 0.95), (0, A, 0.9), (1, FAR, 0.9)],
         {"both": 1, "missed": 1, "false_positives": 1, "false_negatives": 1},
         (HALF + 0.5) / 2, (HALF + 1) / 2),
        ("missed", [(0, A), (0, B)], [(0, A, 0.9)], {"missed": 1, "false_negatives": 1}, HALF, 1.0),
        # Every right detection is above every wrong one: precision 1 to recall 1/2, B stays unfound.
        ("false_positives", [(0, A), (0, B)], [(0, NEAR_B, 0.95), (0, FAR, 0.94), (0, A, 0.9)],
         {"localisation": 1, "background": 1, "false_positives": 2, "false_negatives": 1}, HALF / 3, HALF),
        # B is not counted, although a detection is near it: rank 2 of 2 finds the only one left.
        ("false_negatives", [(0, A), (0, B)], [(0, NEAR_B, 0.95), (0, A, 0.9)],
         {"localisation": 1, "false_positives": 1, "false_negatives": 1}, HALF / 2, 0.5),
    ],
)  # fmt: skip
def test_every_kind_by_hand(
    kind: str,
    gt: list[Placed],
    found: list[Scored],
    occurring: dict[str, int],
    before: float,
    after: float,
) -> None:
    result = breakdown(*boxes(gt, found))
    assert counts(result) == occurring
    assert result.ap50 == pytest.approx(before, abs=1e-12)
    assert result.costs()[kind].ap50 == pytest.approx(after - before, abs=1e-12)


HALF_A, TENTH_A = (0, 0, 10, 5), (0, 0, 10, 1)  # IoU of exactly 0.5 and 0.1


@pytest.mark.parametrize(
    ("found", "kinds"),
    [
        ([(0, HALF_A, 0.9)], [Kind.CORRECT]),
        ([(0, A, 0.9), (0, HALF_A, 0.8)], [Kind.CORRECT, Kind.DUPLICATE]),
        ([(1, HALF_A, 0.9)], [Kind.CLASSIFICATION]),
        ([(0, TENTH_A, 0.9)], [Kind.LOCALISATION]),
        ([(1, TENTH_A, 0.9)], [Kind.BACKGROUND]),
        ([(1, (0, 0, 10, 2), 0.9)], [Kind.BOTH]),
    ],
)
def test_kinds_at_exactly_their_bounds(found: list[Scored], kinds: list[Kind]) -> None:
    """Section 2.2 of the paper: from 0.1 a box is badly placed, up to 0.1 it is background."""
    assert match(*boxes([(0, A)], found)).kinds.tolist() == kinds


def test_of_gt_boxes_with_equal_iou_the_last_is_taken() -> None:
    """pycocotools' evaluateImg also moves on to a gt box of equal IoU (`if ious < iou: continue`)."""
    assert match(*boxes([(0, A), (0, A)], [(0, A, 0.9)])).gt.tolist() == [1]


def test_ignored_gt_takes_no_part() -> None:
    """A detection on a crowd of its class is ignored; one of another class there is on background."""
    case = boxes([(0, A), (0, FAR)], [(0, A, 0.9), (0, FAR, 0.8), (1, FAR, 0.7)], crowd=1)
    assert counts(breakdown(*case)) == {"background": 1, "false_positives": 1}
    assert match(*case).kinds.tolist() == [Kind.CORRECT, Kind.IGNORED, Kind.BACKGROUND]


def test_each_image_has_a_hundred_detections_of_a_class_by_itself() -> None:
    """The last class of one image is also the first of the next."""
    found = FoundBoxes(
        np.tile([0.0, 0, 10, 10], (220, 1)),
        np.zeros(220, np.int64),
        np.linspace(1, 0.1, 220),
        np.repeat([0, 1], 110),
    )
    gt = GtBoxes(
        np.array([[50.0, 50, 9, 9]]), np.zeros(1, np.int64), np.zeros(1, bool), np.zeros(1, np.int64)
    )
    counted = match(gt, found).kinds != Kind.IGNORED
    assert [int(counted[found.images == image].sum()) for image in (0, 1)] == [100, 100]


def test_nothing_found_and_nothing_to_find() -> None:
    result = breakdown(*boxes([(0, A), (1, B)], []))
    assert (result.ap50, counts(result)) == (0, {"missed": 2, "false_negatives": 2})
    result = breakdown(*boxes([], [(0, A, 0.9)]))
    assert (result.ap50, counts(result)) == (-1, {"background": 1, "false_positives": 1})
    assert breakdown(*boxes([], [])).ap50 == -1


def random_case(seed: int) -> tuple[GtBoxes, FoundBoxes]:
    """Crowded images with ids out of order, crowds, equal scores, more than 100 of a class in an image."""
    rng = np.random.default_rng(seed)
    images = np.array([9, 2, 300, 41, 5])
    gt_images, labels = rng.choice(images[:4], 60), rng.integers(0, 3, 60)
    xywh = np.concatenate([rng.uniform(0, 150, (60, 2)), np.exp(rng.uniform(2, 4.5, (60, 2)))], axis=1)
    xywh[:5, 0] += 1000  # no detection will be near
    gt = GtBoxes(xywh, labels, (rng.random(60) < 0.15) & (np.arange(60) > 0), gt_images)
    source = rng.integers(5, 60, 900)
    jitter = rng.normal(0, 0.15, (900, 4)) * np.tile(xywh[source, 2:], 2)
    near = rng.random(900) < 0.7
    found_xywh = np.where(near[:, None], xywh[source] + jitter, rng.permutation(xywh[source]))
    found_xywh[:50, 1] += 2000  # on nothing
    found_xywh[:, 2:] = np.maximum(found_xywh[:, 2:], 1)
    found_labels = np.where(rng.random(900) < 0.5, labels[source], 0)
    where = np.where(near, gt_images[source], rng.choice(images, 900))
    return gt, FoundBoxes(found_xywh, found_labels, rng.random(900).round(2), where)


def pycocotools_ap50(gt: GtBoxes, found: FoundBoxes) -> float:
    def indexed(boxes: Any, extra: list[dict[str, Any]]) -> COCO:
        coco = COCO()
        coco.dataset = {
            "info": {},
            "images": [{"id": int(i)} for i in {*gt.images, *found.images}],
            "categories": [{"id": c} for c in range(3)],
            "annotations": [
                {"id": k, "image_id": int(image), "category_id": int(label), "bbox": box.tolist(),
                 "area": float(box[2] * box[3]), **more}
                for k, (image, label, box, more) in enumerate(
                    zip(boxes.images, boxes.labels, boxes.xywh, extra, strict=True), start=1
                )
            ],
        }  # fmt: skip
        coco.createIndex()
        return coco

    with contextlib.redirect_stdout(io.StringIO()):
        crowds = indexed(gt, [{"iscrowd": int(v)} for v in gt.ignore])
        scored = indexed(found, [{"score": float(v), "iscrowd": 0} for v in found.scores])
        evaluator = COCOeval(crowds, scored, "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return float(evaluator.stats[1])


@pytest.mark.parametrize("seed", range(4))
def test_ap50_before_any_fix_is_that_of_pycocotools(seed: int) -> None:
    gt, found = random_case(seed)
    assert np.unique(found.images * 10 + found.labels, return_counts=True)[1].max() > 100
    result = breakdown(gt, found)
    assert 0.05 < result.ap50 < 0.95
    assert result.ap50 == pytest.approx(pycocotools_ap50(gt, found), abs=1e-15)


@pytest.mark.parametrize("seed", range(4))
def test_everything_is_accounted_for_once(seed: int) -> None:
    """A false detection has one kind; an unfound gt box is missed or the target of a detection to correct."""
    gt, found = random_case(seed)
    matching = match(gt, found)
    result = error_breakdown(gt, found, matching)
    kinds = ("classification", "localisation", "both", "duplicate", "background")
    assert all(result.costs()[name].count for name in (*kinds, "missed"))
    assert sum(result.costs()[name].count for name in kinds) == result.false_positives.count
    taking_part = (matching.kinds != Kind.IGNORED).sum()
    assert taking_part == matching.correct.sum() + result.false_positives.count
    regular, has_one, aim = ~gt.ignore, matching.found >= 0, matching.usable >= 0
    assert (regular.astype(int) == has_one.astype(int) + aim + matching.missed).all()
    assert result.false_negatives.count == aim.sum() + matching.missed.sum()
    assert matching.correct.sum() == has_one.sum()
    assert (matching.gt[matching.found[has_one]] == np.flatnonzero(has_one)).all()
    assert set(matching.kinds[matching.usable[aim]]) <= {Kind.CLASSIFICATION, Kind.LOCALISATION}
    assert (matching.gt[matching.usable[aim]] == np.flatnonzero(aim)).all()


def test_the_order_of_the_arrays_matters_for_equal_scores_alone() -> None:
    gt, found = random_case(0)
    rng = np.random.default_rng(1)
    found = FoundBoxes(found.xywh, found.labels, rng.permutation(900) / 900, found.images)
    shuffled = rng.permutation(900)
    other = FoundBoxes(
        found.xywh[shuffled], found.labels[shuffled], found.scores[shuffled], found.images[shuffled]
    )
    assert breakdown(gt, found) == breakdown(gt, other)
