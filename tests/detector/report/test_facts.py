"""The numbers behind the report, by hand and against one another."""

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from detector.evaluation.calibration import Matched
from detector.evaluation.coco import CocoResult, evaluate_material
from detector.evaluation.matching import FoundBoxes, GtBoxes
from detector.evaluation.material import Material
from detector.report.facts import (
    Shown,
    best_images,
    calibration_curve,
    confusion,
    score_histogram,
    shown,
    size_counts,
    worst_false,
    worst_images,
    worst_missed,
)
from detector.report.sections import curves, matrix

A, B, C, FAR = (0, 0, 20, 20), (100, 0, 40, 40), (200, 0, 100, 100), (500, 0, 20, 20)
Boxes = list[tuple[int, int, tuple[int, int, int, int]]]  # image, class, xywh


def result_of(
    gt: Boxes,
    found: Boxes,
    scores: list[float],
    crowd: int = 0,
    classes: tuple[str, ...] = ("cat", "dog"),
) -> CocoResult:
    """Images 0 to 2; the last `crowd` gt boxes are ignored."""
    gt_xywh = np.array([box for *_, box in gt], float).reshape(-1, 4)
    return evaluate_material(
        Material(
            classes, np.arange(len(classes)), (10, 11, 12), ("a.jpg", "b.jpg", "c.jpg"), None, None,
            GtBoxes(gt_xywh, np.array([label for _, label, _ in gt], int),
                    np.arange(len(gt)) >= len(gt) - crowd, np.array([image for image, *_ in gt], int)),
            gt_xywh[:, 2] * gt_xywh[:, 3],
            FoundBoxes(np.array([box for *_, box in found], float).reshape(-1, 4),
                       np.array([label for _, label, _ in found], int), np.array(scores, float),
                       np.array([image for image, *_ in found], int)),
        )
    )  # fmt: skip


def mixed() -> CocoResult:
    """Image 0: a cat found, a dog taken for a cat, a false cat on nothing, another on the first cat.
    Image 1: a dog found, a cat missed, a dog on a crowd. Image 2: a cat found below the threshold."""
    gt = [(0, 0, A), (0, 1, B), (1, 1, A), (1, 0, C), (2, 0, B), (1, 1, FAR)]
    found = [(0, 0, A), (0, 0, B), (0, 0, FAR), (0, 0, A), (1, 1, A), (1, 1, FAR), (2, 0, FAR), (2, 0, B)]
    return result_of(gt, found, [0.9, 0.89, 0.88, 0.87, 0.86, 0.85, 0.1, 0.05], crowd=1)


def test_confusion_by_hand() -> None:
    """Best F1: cats at 0.9 (1 of 3 gt, 2/4), dogs at 0.86 (1 of 2, 2/3). Then with cats from 0.87 on."""
    result = mixed()
    at = shown(result)
    assert at.thresholds.tolist() == [0.9, 0.86]
    assert confusion(result, at).tolist() == [[1, 0, 2], [0, 1, 1], [0, 0, 0]]
    found = result.material.found
    lower = shown_at(result, [0.87, 0.86])
    assert confusion(result, lower).tolist() == [[1, 0, 2], [1, 1, 0], [2, 0, 0]]
    assert lower.found.sum() == 5 and found.scores[lower.found].min() == 0.86
    page = matrix(result, confusion(result, lower))
    assert "gt dog, detected as cat: 1 (50.0%)" in page and "gt cat, detected as dog: 0 (0.0%)" in page


def test_of_many_classes_the_parts_are_those_of_whole_rows() -> None:
    """20 of 30 classes are shown; the first is taken once for the second, and for each of the last ten."""
    table = np.zeros((31, 31), np.int64)
    table[0, 1] = 1
    table[0, 20:30] = 1
    table[1:20, 0] = 50  # these are shown
    names = SimpleNamespace(per_class={f"c{k}": None for k in range(30)})
    page = matrix(names, table)  # type: ignore[arg-type]
    assert "gt c0, detected as c1: 1 (9.1%)" in page
    assert "detected as c25" not in page


def test_a_gt_box_is_confused_once() -> None:
    """Two detections of the wrong class on one gt box: the nearer one is its confusion, the other on nothing.
    A third, between two other gt boxes and with an IoU below 0.5 with both, is on nothing, too."""
    near, nearer, between = (0, 0, 20, 19), (0, 0, 20, 20), (100, 20, 40, 42)
    gt = [(0, 0, A), (0, 0, B), (0, 0, (100, 40, 40, 40))]
    result = result_of(gt, [(0, 1, near), (0, 1, nearer), (0, 1, between)], [0.9, 0.8, 0.7])
    assert confusion(result, shown_at(result, [0.5, 0.5])).tolist() == [[0, 1, 2], [0, 0, 0], [0, 2, 0]]


def shown_at(result: CocoResult, thresholds: list[float]) -> Shown:
    """With `thresholds` in place of the best ones."""
    per_class = {
        name: replace(one, best_threshold=threshold)
        for (name, one), threshold in zip(result.per_class.items(), thresholds, strict=True)
    }
    return shown(replace(result, per_class=per_class))


def test_a_class_without_gt_shows_no_more_than_the_others() -> None:
    """It has no best threshold and gets the highest of the others; -1 would show all that it finds."""
    found = [(0, 0, A), (0, 1, B), (0, 1, FAR)]
    at = shown(result_of([(0, 0, A)], found, [0.6, 0.7, 0.5]))
    assert at.thresholds.tolist() == [0.6, 0.6]
    assert at.found.tolist() == [True, True, False]


def test_each_curve_ends_at_the_recall_of_its_iou() -> None:
    """Boxes of IoU 0.92, 0.87, 0.78, 0.72 and 0.52, the best first: 5 of 5, 3 and 1 are right, and none wrong
    before them. The axis is 244 px long and begins at 46; a precision of 1 lies at 8."""
    widths = (92, 87, 78, 72, 52)
    gt = [(0, 0, (0, 60 * k, 100, 40)) for k in range(5)]
    found = [(0, 0, (0, 60 * k, width, 40)) for k, width in enumerate(widths)]
    page = curves(result_of(gt, found, [0.9, 0.8, 0.7, 0.6, 0.5]))
    lines = re.findall(r'<polyline points="([^"]*)"', page)
    assert re.findall(r">(IoU 0.5|0.75|0.9)<", page) == ["IoU 0.5", "0.75", "0.9"]
    for line, recall in zip(lines, (1.0, 0.6, 0.2), strict=True):
        points = [tuple(map(float, point.split(","))) for point in line.split()]
        end = max(x for x, y in points if y == 8)
        assert end == pytest.approx(46 + 244 * recall, abs=2.5)  # a step of the recall


def test_what_is_worst_comes_first() -> None:
    result = mixed()
    at = shown_at(result, [0.87, 0.86])
    assert worst_false(result, at, 12).tolist() == [1, 2]  # two per image
    assert worst_false(result, at, 12, per_image=9).tolist() == [1, 2, 3]
    assert worst_missed(result, at, 12).tolist() == [3, 1, 4]  # nothing near (larger first); below threshold
    assert (at.right.tolist(), at.wrong.tolist(), at.unfound.tolist()) == ([1, 1, 0], [3, 0, 0], [1, 1, 1])
    assert at.f1.tolist() == pytest.approx([2 / 6, 2 / 3, 0])
    assert worst_images(at, 2).tolist() == [2, 0]
    assert best_images(at, 6).tolist() == [1, 0]


def test_sums_agree_with_the_metrics() -> None:
    result = mixed()
    at = shown(result)
    table = confusion(result, at)
    for k, one in enumerate(result.per_class.values()):
        assert table[k].sum() == one.gt_boxes
        assert table[k, k] == round(one.best_recall * one.gt_boxes)
        assert table[k, k] / max(1, table[:, k].sum()) == pytest.approx(one.best_precision)
    assert {name: total for name, (total, _) in size_counts(result, at).items()} == {
        "small": 2, "medium": 2, "large": 1,
    }  # fmt: skip
    assert sum(found for _, found in size_counts(result, at).values()) == np.trace(table)


def test_histogram_and_calibration_by_hand() -> None:
    scores, correct = np.array([0.02, 0.04, 0.31, 0.33, 1.0]), np.array([False, False, True, False, True])
    matched = Matched(scores, correct, *np.zeros((2, 5), np.int64))
    edges, right, wrong = score_histogram(matched, bins=10)
    assert edges.tolist() == pytest.approx(np.linspace(0, 1, 11).tolist())
    assert right.tolist() == [0, 0, 0, 1, 0, 0, 0, 0, 0, 1]
    assert wrong.tolist() == [2, 0, 0, 1, 0, 0, 0, 0, 0, 0]
    score, share, counts = calibration_curve(matched)
    assert score.tolist() == pytest.approx([0.03, 0.32, 1.0])
    assert share.tolist() == [0, 0.5, 1]
    assert counts.tolist() == [2, 2, 1]


def test_scores_of_any_range_have_a_histogram() -> None:
    matched = Matched(np.array([-3.0, 7.0]), np.array([True, False]), *np.zeros((2, 2), np.int64))
    edges, right, wrong = score_histogram(matched)
    assert (edges[0], edges[-1], right.sum(), wrong.sum()) == (-3, 7, 1, 1)
