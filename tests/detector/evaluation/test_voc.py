"""VOC's average precision: a case worked out by hand, and a loop that follows the devkit's rules."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from data.sample import DetectionSet
from detector.evaluation.inference import Predictions
from detector.evaluation.voc import average_precision, evaluate_voc
from tests.oracles import iou

Gt = tuple[int, int, list[float], bool]  # image, label, box, difficult
Found = tuple[int, int, list[float], float]  # image, label, box, score


def make(gt: list[Gt], found: list[Found], images: int, classes: int) -> tuple[DetectionSet, Predictions]:
    gt = sorted(gt, key=lambda item: item[0])
    boxes = np.array([box for _, _, box, _ in gt], dtype=np.float64).reshape(-1, 4)
    counts = np.bincount([image for image, *_ in gt], minlength=images)
    arrays: dict[str, Any] = {
        "files": np.array([f"{i}.jpg" for i in range(images)]),
        "image_ids": np.arange(images) + 50,
        "sizes": np.full((images, 2), 100),
        "offsets": np.array([0, *np.cumsum(counts)]),
        "boxes": boxes,
        "labels": np.array([label for _, label, _, _ in gt], dtype=np.int64),
        "ignore": np.array([difficult for *_, difficult in gt], dtype=np.bool_),
        "areas": (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
        "annotation_ids": np.arange(len(boxes)),
    }
    names = tuple(f"class{i}" for i in range(classes))
    records = DetectionSet(**arrays, classes=names, category_ids=tuple(range(classes)))
    predictions = Predictions(
        rows=np.array([image for image, *_ in found], dtype=np.int64),
        boxes=np.array([box for _, _, box, _ in found], dtype=np.float64).reshape(-1, 4),
        scores=np.array([score for *_, score in found], dtype=np.float64),
        labels=np.array([label for _, label, _, _ in found], dtype=np.int64),
    )
    return records, predictions


def by_loops(gt: list[Gt], found: list[Found], classes: int) -> tuple[float, float]:
    """Mean AP by the rules of VOC2007 and by those since VOC2010, after the devkit's VOCevaldet.m."""
    per_class = []
    for label in range(classes):
        mine = [k for k, item in enumerate(gt) if item[1] == label]
        total = sum(not gt[k][3] for k in mine)
        if total == 0:
            continue
        taken: set[int] = set()
        hits = misses = 0
        curve = [(0.0, 0.0)]  # recall, precision
        for image, _, box, _ in sorted((f for f in found if f[1] == label), key=lambda f: -f[3]):
            here = [(iou(box, gt[k][2]), -k) for k in mine if gt[k][0] == image]
            overlap, best = max(here, default=(0.0, 0))
            if overlap >= 0.5 and gt[-best][3]:
                continue
            if overlap >= 0.5 and -best not in taken:
                taken.add(-best)
                hits += 1
            else:
                misses += 1
            curve.append((hits / total, hits / (hits + misses)))

        def at(recall: float, curve: list[tuple[float, float]] = curve) -> float:
            return max((p for r, p in curve if r >= recall - 1e-12), default=0.0)

        eleven = sum(at(t / 10) for t in range(11)) / 11
        steps = sorted({r for r, _ in curve})
        area = sum((r - last) * at(r) for last, r in pairwise(steps))
        per_class.append((eleven, area))
    return tuple(sum(values) / len(per_class) for values in zip(*per_class, strict=True))


A, B, C, D = ([30.0 * i, 0.0, 30.0 * i + 20, 20.0] for i in range(4))
NOWHERE = [0.0, 60.0, 20.0, 80.0]
# Right, wrong, right, a second hit on A (wrong), right: recall 1/4, 1/4, 2/4, 2/4, 3/4.
HAND_GT: list[Gt] = [(0, 0, box, False) for box in (A, B, C, D)]
HAND_FOUND: list[Found] = [
    (0, 0, A, 0.9), (0, 0, NOWHERE, 0.8), (0, 0, B, 0.7), (0, 0, A, 0.6), (0, 0, C, 0.5)
]  # fmt: skip


def test_hand_case() -> None:
    """Precision 1 up to recall 1/4, 2/3 up to 2/4, 3/5 up to 3/4, then 0."""
    result = evaluate_voc(*make(HAND_GT, HAND_FOUND, images=1, classes=1))
    assert result.ap07 == pytest.approx((3 * 1 + 3 * 2 / 3 + 2 * 3 / 5) / 11)
    assert result.ap12 == pytest.approx((1 + 2 / 3 + 3 / 5) / 4)


def test_precision_before_a_later_peak_is_lifted_to_it() -> None:
    """Wrong, right, right with 2 gt boxes: the envelope is 2/3 everywhere."""
    judged = np.array([False, True, True])
    assert average_precision(judged, ~judged, 2) == pytest.approx((2 / 3, 2 / 3))


def random_case(seed: int) -> tuple[list[Gt], list[Found]]:
    rng = np.random.default_rng(seed)
    gt: list[Gt] = []
    found: list[Found] = []
    for image in range(5):
        for _ in range(8):
            corner = rng.uniform(0, 60, 2)
            box = [float(v) for v in (*corner, *(corner + rng.uniform(10, 40, 2)))]
            label = int(rng.integers(3))
            gt.append((image, label, box, bool(rng.random() < 0.25)))
            for _ in range(rng.integers(0, 4)):
                moved = [float(v) for v in np.array(box) + rng.normal(0, 2.5, 4)]
                found.append((image, label, moved, float(rng.random())))
    return gt, found


@pytest.mark.parametrize("seed", range(4))
def test_random_sets_score_as_the_devkit_rules_say(seed: int) -> None:
    gt, found = random_case(seed)
    expected = by_loops(gt, found, 3)
    assert 0.1 < expected[0] < 0.95 and expected[0] != expected[1]
    assert evaluate_voc(*make(gt, found, images=5, classes=3)) == pytest.approx(expected, abs=1e-12)


def test_difficult_boxes_are_neither_wanted_nor_punished() -> None:
    """An additional difficult box, found three times at the top of the list, changes nothing."""
    plain = evaluate_voc(*make(HAND_GT, HAND_FOUND, images=2, classes=1))
    hard: list[Gt] = [(1, 0, A, True)]
    again: list[Found] = [(1, 0, A, score) for score in (0.99, 0.98, 0.97)]
    assert evaluate_voc(*make(HAND_GT + hard, HAND_FOUND + again, images=2, classes=1)) == plain
    assert evaluate_voc(*make(HAND_GT + hard, HAND_FOUND, images=2, classes=1)) == plain
    assert evaluate_voc(*make(HAND_GT, HAND_FOUND + again, images=2, classes=1)).ap12 < plain.ap12


def test_a_class_without_gt_is_left_out_of_the_mean() -> None:
    alarms: list[Found] = [(0, 1, A, 0.95)]
    plain = evaluate_voc(*make(HAND_GT, HAND_FOUND, images=1, classes=1))
    assert evaluate_voc(*make(HAND_GT, HAND_FOUND + alarms, images=1, classes=2)) == plain


def test_no_detections_score_zero_and_no_gt_minus_one() -> None:
    assert evaluate_voc(*make(HAND_GT, [], images=1, classes=1)) == (0, 0)
    assert evaluate_voc(*make([], HAND_FOUND, images=1, classes=1)) == (-1, -1)


def test_an_iou_of_exactly_a_half_is_right() -> None:
    case = make([(0, 0, [0, 0, 10, 10], False)], [(0, 0, [0, 0, 10, 5], 0.9)], 1, 1)
    assert evaluate_voc(*case) == (1.0, 1.0)
