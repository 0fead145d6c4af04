"""COCO metrics: equal to pycocotools where it can answer, right where it cannot."""

import contextlib
import io
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from data.sample import DetectionSet
from detector.evaluation.calibration import fit_calibration
from detector.evaluation.coco import COCO_NAMES, evaluate_coco, evaluate_files
from detector.evaluation.inference import Predictions
from detector.evaluation.matching import Kind
from detector.evaluation.score import Scores
from errors import InputError
from tests.detector.evaluation.coco_cases import CATEGORIES, IMAGES, NAMES, Content, evaluate, random_case
from tests.detector.evaluation.test_voc import make as voc_case


def plain_pycocotools(content: Content, results: list[Content], tmp_path: Path) -> list[float]:
    """The 12 numbers as pycocotools' own example computes them, from a file."""
    path = tmp_path / "plain.json"
    path.write_text(json.dumps(content))
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO(str(path))
        evaluator = COCOeval(gt, gt.loadRes(results), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return [float(v) for v in evaluator.stats]


@pytest.mark.parametrize(("seed", "without_gt"), [(0, None), (1, None), (2, 90)])
def test_the_12_numbers_equal_pycocotools(seed: int, without_gt: int | None, tmp_path: Path) -> None:
    content, results = random_case(seed, without_gt)
    expected = plain_pycocotools(content, results, tmp_path)
    assert len(set(expected)) > 8 and 0.1 < expected[0] < 0.9
    summary = evaluate(content, results, tmp_path).summary
    assert tuple(summary) == COCO_NAMES
    assert list(summary.values()) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("case", [(0, None), (2, 90), (3, None)])
def test_faster_coco_eval_gives_the_numbers_of_pycocotools(
    case: tuple[int, int | None], tmp_path: Path
) -> None:
    """To the 15 digits of a float; pycocotools adds 2e-16 to the 1 that it divides by."""
    pytest.importorskip("faster_coco_eval")
    content, results = random_case(*case)
    for found in (results, []):
        (tmp_path / "gt.json").write_text(json.dumps(content))
        (tmp_path / "results.json").write_text(json.dumps(found))
        files = (tmp_path / "results.json", tmp_path / "gt.json")
        slow, fast = (evaluate_files(*files, backend) for backend in ("pycocotools", "faster_coco_eval"))
        assert slow.summary == pytest.approx(fast.summary, abs=3e-16, rel=0)
        assert slow.precision == pytest.approx(fast.precision, abs=3e-16, rel=0)
        for name, one in slow.per_class.items():
            assert one.as_json() == pytest.approx(fast.per_class[name].as_json(), abs=3e-16, rel=0)
        assert slow.errors == fast.errors
    assert slow.precision.max() == 0


def test_a_backend_that_is_not_installed_is_refused_and_auto_goes_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    records, predictions = as_arrays(*random_case(0))
    with pytest.raises(InputError, match="pip install faster-coco-eval"):
        evaluate_coco(records, predictions, "faster_coco_eval")
    plain = evaluate_coco(records, predictions, "pycocotools")
    assert evaluate_coco(records, predictions, "auto").as_json() == plain.as_json()


@pytest.mark.parametrize("seed", range(5))
def test_best_f1_is_that_of_the_best_threshold_tried_one_by_one(seed: int, tmp_path: Path) -> None:
    """Oracle: right and wrong detections counted with every score as threshold. Scores are tied."""
    content, results = random_case(seed)
    results = [{**r, "score": round(r["score"], 1)} for r in results]
    result = evaluate(content, results, tmp_path)
    matched, labels = result.matched, result.material.found.labels[result.matching.kinds != Kind.IGNORED]
    for label, one in enumerate(result.per_class.values()):
        tried = {}
        for threshold in {r["score"] for r in results}:
            shown = (labels == label) & (matched.scores >= threshold)
            right = int((shown & matched.correct).sum())
            counted = (right / max(1, shown.sum()), right / one.gt_boxes)
            tried[threshold] = (2 * right / (shown.sum() + one.gt_boxes), *counted)
        assert one.best_f1 == pytest.approx(max(f1 for f1, *_ in tried.values()))
        assert tried[one.best_threshold] == pytest.approx((one.best_f1, one.best_precision, one.best_recall))


def test_annotation_id_zero_counts_like_any_other(tmp_path: Path) -> None:
    """pycocotools takes the id 0 for "no match"; numbering from 1 must change nothing."""
    content, results = random_case(3)
    first = content["annotations"][0]
    first["iscrowd"] = 0
    results.append({k: first[k] for k in ("image_id", "category_id", "bbox")} | {"score": 0.99})
    expected = plain_pycocotools(content, results, tmp_path)
    shifted = {**content, "annotations": [{**a, "id": a["id"] - 1} for a in content["annotations"]]}
    assert plain_pycocotools(shifted, results, tmp_path) != expected  # the trap is real
    assert list(evaluate(shifted, results, tmp_path).summary.values()) == pytest.approx(expected, abs=1e-12)


def test_missing_area_iscrowd_and_info_mean_box_area_and_no_crowd(tmp_path: Path) -> None:
    content, results = random_case(4)
    full = [{**a, "area": a["bbox"][2] * a["bbox"][3], "iscrowd": 0} for a in content["annotations"]]
    bare = [{k: a[k] for k in ("id", "image_id", "category_id", "bbox")} for a in full]
    expected = plain_pycocotools({**content, "annotations": full}, results, tmp_path)
    content = {"images": content["images"], "annotations": bare, "categories": content["categories"]}
    assert list(evaluate(content, results, tmp_path).summary.values()) == pytest.approx(expected, abs=1e-12)


def test_no_predictions_score_zero(tmp_path: Path) -> None:
    content, _ = random_case(0)
    result = evaluate(content, [], tmp_path)
    assert set(result.summary.values()) == {0.0}
    assert {c.ap for c in result.per_class.values()} == {0.0}
    assert {c.best_f1 for c in result.per_class.values()} == {0.0}


def test_no_gt_scores_minus_one(tmp_path: Path) -> None:
    content, results = random_case(0)
    result = evaluate({**content, "annotations": []}, results, tmp_path)
    assert set(result.summary.values()) == {-1.0}
    assert {c.ap for c in result.per_class.values()} == {-1}


def test_class_ap_averages_to_ap(tmp_path: Path) -> None:
    result = evaluate(*random_case(0), tmp_path)
    mine = result.per_class.values()
    assert len({c.ap for c in mine}) == 3
    assert np.mean([c.ap for c in mine]) == pytest.approx(result.summary["AP"], abs=1e-12)
    assert np.mean([c.ap50 for c in mine]) == pytest.approx(result.summary["AP50"], abs=1e-12)


def test_class_without_gt_is_named_and_left_out_of_the_mean(tmp_path: Path) -> None:
    content, results = random_case(2, without_gt=90)
    result = evaluate(content, results, tmp_path)
    assert set(result.per_class) == set(NAMES)
    assert (result.per_class["cow"].ap, result.per_class["cow"].gt_boxes) == (-1, 0)
    others = [result.per_class[name].ap for name in ("car", "cup")]
    assert np.mean(others) == pytest.approx(result.summary["AP"], abs=1e-12)
    crowds = sum(a["iscrowd"] for a in content["annotations"])
    assert crowds > 0
    assert sum(c.gt_boxes for c in result.per_class.values()) == len(content["annotations"]) - crowds


def test_gt_of_images_or_categories_that_are_not_listed_counts_for_nothing(tmp_path: Path) -> None:
    """As in pycocotools: files cut down to a few images or classes keep the annotations of the rest."""
    content, results = random_case(6)
    cut = {**content, "images": content["images"][:2], "categories": content["categories"][:2]}
    left = [r for r in results if r["image_id"] in IMAGES[:2] and r["category_id"] in CATEGORIES[:2]]
    result = evaluate(cut, left, tmp_path)
    expected = plain_pycocotools(cut, left, tmp_path)
    assert list(result.summary.values()) == pytest.approx(expected, abs=1e-12)
    for category, name in zip(CATEGORIES[:2], NAMES, strict=False):
        wanted = [a for a in content["annotations"] if a["category_id"] == category and not a["iscrowd"]]
        assert result.per_class[name].gt_boxes == sum(a["image_id"] in IMAGES[:2] for a in wanted)


def row(found: list[tuple[float, bool]], gt: int) -> tuple[Content, list[Content]]:
    """One class; each detection (score, right) lies on a gt box of its own or on none."""
    boxes = [[20.0 * i, 0.0, 10.0, 10.0] for i in range(gt + len(found))]
    content = {
        "images": [{"id": 1}],
        "annotations": [{"id": i, "image_id": 1, "category_id": 1, "bbox": boxes[i]} for i in range(gt)],
        "categories": [{"id": 1, "name": "car"}],
    }
    hits, misses = iter(boxes[:gt]), iter(boxes[gt:])
    results = [
        {"image_id": 1, "category_id": 1, "bbox": next(hits if right else misses), "score": score}
        for score, right in found
    ]
    return content, results


def test_best_threshold_is_where_f1_peaks(tmp_path: Path) -> None:
    """Of 4 gt, after each detection: F1 = 2/5, 2/6, 4/7, 6/8, 6/9, 6/10; the peak is at score 0.6."""
    case = row([(0.9, True), (0.8, False), (0.7, True), (0.6, True), (0.5, False), (0.4, False)], gt=4)
    car = evaluate(*case, tmp_path).per_class["car"]
    assert car.best_f1 == pytest.approx(6 / 8)
    assert car.best_threshold == pytest.approx(0.6)


def test_scores_below_zero_have_thresholds_too(tmp_path: Path) -> None:
    """For example logits. A class without gt boxes gets the highest threshold of the other classes."""
    content, results = random_case(4)
    labels = {one["category_id"] for one in content["annotations"]}
    unseen = content["categories"][-1]["id"]
    content["annotations"] = [one for one in content["annotations"] if one["category_id"] != unseen]
    assert unseen in labels and any(one["category_id"] == unseen for one in results)
    result = evaluate(content, results, tmp_path)
    lower = evaluate(content, [{**one, "score": one["score"] - 5} for one in results], tmp_path)
    assert lower.best_thresholds == pytest.approx(result.best_thresholds - 5)


def test_best_f1_is_exact_between_the_points_of_the_recall_grid(tmp_path: Path) -> None:
    """One of 3 gt is found, at rank 1: precision 1, recall 1/3, F1 = 1/2."""
    car = evaluate(*row([(0.9, True), (0.3, False)], gt=3), tmp_path).per_class["car"]
    assert car.best_f1 == pytest.approx(1 / 2)
    assert car.best_threshold == pytest.approx(0.9)


def test_predictions_of_a_set_score_as_their_results_file(tmp_path: Path) -> None:
    """The two ways in: arrays of a training run, and files; crowds are the ignored boxes."""
    content, results = random_case(5)
    records, predictions = as_arrays(content, results)
    expected = plain_pycocotools(content, results, tmp_path)
    result = evaluate_coco(records, predictions)
    assert list(result.summary.values()) == pytest.approx(expected, abs=1e-9)
    assert result.per_class == pytest.approx(evaluate(content, results, tmp_path).per_class)


def test_calibration_changes_scores_and_no_metric() -> None:
    """Oracle: pycocotools, which sees nothing but the order of the scores."""
    records, predictions = as_arrays(*random_case(5))
    plain = evaluate_coco(records, predictions)
    calibration = fit_calibration(plain.matched, plain.material.gt_totals() > 0)
    assert calibration is not None and len(set(calibration.maps)) > 1
    probabilities = calibration(predictions.scores, predictions.labels)
    assert np.abs(probabilities - predictions.scores).max() > 0.1
    anew = evaluate_coco(records, replace(predictions, scores=probabilities))
    assert anew.summary == plain.summary
    scores = Scores(predictions, plain, {}, {}).calibrated(calibration)
    assert scores.coco.summary == plain.summary
    assert (scores.predictions.scores == probabilities).all()
    # The order across classes does change, and with it the worst detections and the cost of errors.
    assert scores.coco.errors == anew.errors
    assert not np.array_equal(scores.coco.matching.order, plain.matching.order)
    falling = scores.coco.material.found.scores[scores.coco.matching.order]
    assert (np.diff(falling) <= 0).all()


def test_matched_tells_right_from_wrong_and_leaves_out_what_counts_for_nothing(tmp_path: Path) -> None:
    """By hand: a hit, a second box on the same object, a miss, a box of another class, one on a crowd."""
    objects = [[0.0, 0, 20, 20], [50, 50, 30, 30]]
    gt = [
        {"id": k, "image_id": 7, "category_id": 4, "bbox": box, "area": 400, "iscrowd": k}
        for k, box in enumerate(objects)
    ]
    found = [(4, objects[0]), (4, [1.0, 1, 20, 20]), (4, [90.0, 90, 5, 5]), (9, objects[0]), (4, objects[1])]
    results = [
        {"image_id": 7, "category_id": category, "bbox": box, "score": 0.9 - k / 10}
        for k, (category, box) in enumerate(found)
    ]
    content = {
        "images": [{"id": 7}],
        "annotations": gt,
        "categories": [{"id": 4, "name": "a"}, {"id": 9, "name": "b"}],
    }
    matched = evaluate(content, results, tmp_path).matched
    order = np.argsort(-matched.scores)
    assert matched.scores[order].tolist() == pytest.approx([0.9, 0.8, 0.7, 0.6])
    assert matched.correct[order].tolist() == [True, False, False, False]
    assert set(matched.images.tolist()) == {0}


@pytest.mark.parametrize(("place", "counts"), [(99, True), (100, False)])
def test_the_hundredth_of_a_class_in_an_image_counts_and_no_more(
    tmp_path: Path, place: int, counts: bool
) -> None:
    """Of 101 detections, the best first, only the one at index `place` is on the object."""
    right, wrong = [0.0, 0, 20, 20], [100.0, 100, 20, 20]
    content = {
        "images": [{"id": 7}],
        "annotations": [{"id": 1, "image_id": 7, "category_id": 4, "bbox": right, "area": 400, "iscrowd": 0}],
        "categories": [{"id": 4, "name": "a"}],
    }
    results = [
        {"image_id": 7, "category_id": 4, "bbox": right if k == place else wrong, "score": 1 - k / 200}
        for k in range(101)
    ]
    result = evaluate(content, results, tmp_path)
    assert result.matched.correct.sum() == counts
    assert (result.summary["AR100"] > 0) == counts
    # If no detection is right, no threshold is better than another.
    assert (result.as_json()["per_class"]["a"]["best_f1_threshold"] == -1) == (not counts)


def as_arrays(content: Content, results: list[Content]) -> tuple[DetectionSet, Predictions]:
    """A COCO set and its results as training has them."""
    order = {image: k for k, image in enumerate(IMAGES)}
    gt = sorted(content["annotations"], key=lambda a: order[a["image_id"]])

    def xyxy(records: list[Content]) -> np.ndarray:
        return np.array([[x, y, x + w, y + h] for x, y, w, h in (r["bbox"] for r in records)])

    counts = [sum(a["image_id"] == image for a in gt) for image in IMAGES]
    records = DetectionSet(
        files=np.array([f"{i}.jpg" for i in IMAGES]),
        image_ids=np.array(IMAGES),
        sizes=np.full((len(IMAGES), 2), 480),
        offsets=np.array([0, *np.cumsum(counts)]),
        boxes=xyxy(gt),
        labels=np.array([CATEGORIES.index(a["category_id"]) for a in gt]),
        ignore=np.array([bool(a["iscrowd"]) for a in gt]),
        areas=np.array([a["area"] for a in gt]),
        annotation_ids=np.arange(len(gt)),
        classes=NAMES,
        category_ids=CATEGORIES,
    )
    predictions = Predictions(
        rows=np.array([order[r["image_id"]] for r in results]),
        boxes=xyxy(results),
        scores=np.array([r["score"] for r in results]),
        labels=np.array([CATEGORIES.index(r["category_id"]) for r in results]),
    )
    return records, predictions


def test_a_class_without_gt_takes_no_threshold_of_one_that_is_never_right() -> None:
    box, far = [0, 0, 10, 10], [50, 50, 60, 60]
    gt = [(0, 0, box, False), (0, 1, box, False)]
    records, found = voc_case(gt, [(0, 0, box, 0.6), (0, 1, far, 0.9)], 1, 3)
    assert evaluate_coco(records, found).best_thresholds[2] == 0.6
