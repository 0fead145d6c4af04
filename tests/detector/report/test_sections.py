"""The parts of the report against the numbers behind them: every column and line shows what its name says."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from detector.evaluation.coco import Chosen, CocoResult
from detector.evaluation.matching import RECALLS
from detector.report.facts import (
    best_images,
    calibration_curve,
    score_histogram,
    shown,
    size_counts,
    worst_false,
    worst_images,
    worst_missed,
)
from detector.report.galleries import galleries
from detector.report.sections import classes, curves, pictures, scores, sizes, thresholds
from tests.detector.report.test_facts import Boxes, result_of
from tests.detector.report.test_svg import Drawn

Table = dict[str, dict[str, str]]  # by the first cell of the row, then by heading
AT = {"cat": 0.41, "dog": 0.67, "bird": 0.2}
DASH = "\N{EN DASH}"


def noisy() -> CocoResult:
    """Cats and dogs of three sizes, found more or less well or taken for others; there are no birds."""
    rng = np.random.default_rng(5)
    gt: Boxes = []
    found: Boxes = []
    scores: list[float] = []
    for place in range(45):
        image, label, side = place % 3, int(place % 5 < 2), (20, 60, 150)[place // 3 % 3]
        x = 200 * (place // 3)
        gt.append((image, label, (x, 0, side, side)))
        for _ in range(rng.integers(0, 4)):
            dx, dy = (round(shift) for shift in rng.normal(0, 0.08 * side, 2))
            taken = label if rng.random() < 0.8 else int(rng.integers(0, 3))
            found.append((image, taken, (x + dx, dy, side, side)))
            scores.append(round(rng.beta(2, 1 + (abs(dx) + abs(dy)) / side * 8), 2))
    return result_of(gt, found, scores, classes=("cat", "dog", "bird"))


@pytest.fixture(scope="module")
def best() -> CocoResult:
    """At the best thresholds."""
    return noisy()


@pytest.fixture(scope="module")
def at(best: CocoResult) -> CocoResult:
    """At chosen ones."""
    return replace(best, chosen=Chosen(AT, "given"))


def tables(section: str) -> list[Table]:
    found = []
    for table in ElementTree.fromstring(section).iter("table"):
        head, *rows = ([cell.text or "" for cell in row] for row in table.iter("tr"))
        found.append({row[0]: dict(zip(head, row, strict=True)) for row in rows})
    return found


def charts(section: str, log: bool = False) -> dict[str, Drawn]:
    """The charts by their aria-label. log: whether the y axis of the first one is logarithmic."""
    figures = ElementTree.fromstring(section).iter("svg")
    return {figure.get("aria-label", ""): Drawn(figure, log and k == 0) for k, figure in enumerate(figures)}


def test_a_class_has_in_each_column_what_the_json_has_by_that_name(at: CocoResult) -> None:
    names = {"AP": "AP", "AP50": "AP50", "AP75": "AP75", "best F1": "best_f1",
             "threshold": "best_f1_threshold", "precision": "best_f1_precision",
             "recall": "best_f1_recall"}  # fmt: skip
    at_names = {"threshold": "threshold", "precision": "precision", "recall": "recall", "F1": "f1"}
    told = at.as_json()
    of_best, of_chosen = tables(classes(at))
    for table, key, floats, counts in (
        (of_best, "per_class", names, {"gt": "gt_boxes", "detections": "detections"}),
        (of_chosen, "at_thresholds", at_names, {name: name for name in ("right", "wrong", "missed")}),
    ):
        assert [*table] == ["cat", "dog", "bird"]
        for name, row in table.items():
            one = told[key][name]
            assert row == {
                "class": name,
                **{head: f"{one[field]}" for head, field in counts.items()},
                **{head: DASH if one[f] == -1 else f"{one[f]:.3f}" for head, f in floats.items()},
            }
            assert name == "bird" or len({*row.values()}) == len(row), "the case parts no two columns"
    assert of_best["bird"]["AP"] == DASH


def test_sizes_are_told_with_their_own_ap_and_ar(at: CocoResult) -> None:
    told, counts = at.as_json(), size_counts(at, shown(at))
    (table,) = tables(sizes(at, shown(at)))
    for name, (total, found) in counts.items():
        ap, ar, row = told[f"AP{name[0]}"], told[f"AR{name[0]}"], table[name]
        assert (row["AP"], row["AR"]) == (f"{ap:.3f}", f"{ar:.3f}") and row["AP"] != row["AR"]
        assert row["gt"] == str(total) and row["found at the threshold"].startswith(f"{found} (")


def test_curves_and_their_mean_are_of_the_classes_that_there_are(best: CocoResult) -> None:
    """Precision upwards, recall to the right; the mean is of cats and dogs, and birds do not lower it."""
    drawn = charts(curves(best))
    assert [*drawn] == [f"precision over recall, {of}" for of in ("mean of the classes", "cat", "dog")]
    of_class = [best.precision[:, :, k] for k in range(2)]
    for chart, expected in zip(drawn.values(), (sum(of_class) / 2, *of_class), strict=True):
        for place, label in ((0, "IoU 0.5"), (5, "0.75"), (8, "0.9")):
            xs, ys = chart.line(label)
            assert np.interp(RECALLS, xs, ys, right=0) == pytest.approx(expected[place], abs=0.05)
    for name in ("cat", "dog"):
        one = best.as_json()["per_class"][name]
        recall, precision = one["best_f1_recall"], one["best_f1_precision"]
        assert abs(recall - precision) > 0.02
        (point,) = drawn[f"precision over recall, {name}"].points("best F1")
        assert point == pytest.approx((recall, precision), abs=0.005)


def test_lines_over_the_threshold_are_what_they_are_called(best: CocoResult, at: CocoResult) -> None:
    """The marked threshold, with its F1, is the chosen one if there is one, else the best."""
    drawn, chosen = charts(thresholds(at)), at.as_json()["at_thresholds"]
    of_best, per_class = charts(thresholds(best)), best.as_json()["per_class"]
    assert [*drawn] == [*of_best] == ["over the threshold, cat", "over the threshold, dog"]
    for name in ("cat", "dog"):
        chart, one = drawn[f"over the threshold, {name}"], chosen[name]
        for label, key in (("precision", "precision"), ("recall", "recall"), ("F1", "f1")):
            xs, ys = chart.line(label)
            assert np.interp(one["threshold"], xs, ys) == pytest.approx(one[key], abs=0.01), label
        assert chart.points("threshold") == [pytest.approx((one["threshold"], one["f1"]), abs=0.005)]
        (point,) = of_best[f"over the threshold, {name}"].points("threshold")
        expected = per_class[name]["best_f1_threshold"], per_class[name]["best_f1"]
        assert point == pytest.approx(expected, abs=0.005) and abs(point[0] - point[1]) > 0.02


def assert_histogram(chart: Drawn, result: CocoResult) -> None:
    """Compared at the middle of each bin. Zero is drawn as half a detection, as the axis is logarithmic."""
    edges, right, wrong = score_histogram(result.matched)
    middles = (edges[1:] + edges[:-1]) / 2
    for label, counts in (("right", right), ("wrong", wrong)):
        xs, ys = chart.line(label)
        assert np.interp(middles, xs, ys) == pytest.approx(np.maximum(counts, 0.5), rel=0.05), label
    assert right.tolist() != wrong.tolist()


def test_scores_are_shown_by_what_is_right_and_as_probabilities(best: CocoResult) -> None:
    drawn = charts(scores(best, shown(best)), log=True)
    assert_histogram(drawn["scores, right and wrong"], best)
    chart = drawn["share that is right, over the score"]
    score, share, _ = calibration_curve(best.matched)
    assert np.abs(score - share).max() > 0.1
    label = "detections (more: larger)"
    assert np.array(chart.points(label)).T == pytest.approx(np.stack([score, share]), abs=0.005)
    assert np.stack(chart.line(label)) == pytest.approx(np.stack([score, share]), abs=0.005)


@pytest.mark.parametrize(("low", "high"), [(-3, 7), (-4, 1), (0, 5)])
def test_scores_that_are_no_probabilities_have_an_axis_and_no_calibration(
    low: float, high: float, best: CocoResult
) -> None:
    found = best.material.found
    wide = np.interp(found.scores, (found.scores.min(), found.scores.max()), (low, high))
    result = replace(best, material=replace(best.material, found=replace(found, scores=wide)))
    page = scores(result, shown(result))
    drawn = charts(page, log=True)
    assert [*drawn] == ["scores, right and wrong"] and "calibration" not in page
    (chart,) = drawn.values()
    assert [value for _, value in chart.x_ticks] == np.linspace(low, high, 6).tolist()
    assert_histogram(chart, result)


def titles(page: str) -> Iterator[tuple[str, list[str]]]:
    for section in re.findall("<section>.*?</section>", page, re.DOTALL):
        yield re.findall("<h2>(.*?)</h2>", section)[0], re.findall("<b>(.*?)</b>", section)


def test_each_gallery_stands_under_its_heading(at: CocoResult, tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    Image.new("RGB", (3000, 160)).save(file)
    result = replace(at, material=replace(at.material, files=(file,) * 3))
    seen, m = shown(result), result.material
    false, missed = worst_false(result, seen, 12).tolist(), worst_missed(result, seen, 12).tolist()
    sides = m.gt.xywh[:, 2].astype(int)
    expected = {
        "Worst false detections": [f"{m.classes[m.found.labels[k]]} {m.found.scores[k]:.2f}:" for k in false],
        "Worst misses": [f"{m.classes[m.gt.labels[k]]}, {sides[k]} x {sides[k]} px:" for k in missed],
        "Worst images": [f"F1 {seen.f1[k]:.2f}:" for k in worst_images(seen, 6)],
        "Best images": [f"F1 {seen.f1[k]:.2f}:" for k in best_images(seen, 6)],
    }
    found = dict(titles(pictures(galleries(result, seen))))
    assert {name: [title.split(":")[0] + ":" for title in given] for name, given in found.items()} == expected
    assert all(expected.values()) and expected["Worst images"] != expected["Best images"]
