"""Comparing runs: intervals of the right width, differences, and AP as in pycocotools."""

import contextlib
import copy
import io
import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy.stats import binom

import evaluate as door
from detector.builders.network import build_model
from detector.checkpoint import save_checkpoint
from detector.config.file import apply_overrides, parse_config
from detector.evaluation.checkpoint import open_checkpoint
from detector.evaluation.coco import evaluate_files
from detector.evaluation.comparison import (
    RESAMPLES,
    Comparison,
    Interval,
    RunResult,
    _intervals,
    compare,
    compare_files,
    comparison_table,
    differing,
    draws,
)
from detector.evaluation.material import material_of
from detector.evaluation.tally import Tally, average_precision, tally_of
from detector.training.trainer import Trainer
from errors import InputError
from tests.builders import coco_dict, small_coco, write_coco
from tests.detector.evaluation.test_coco import random_case
from tests.detector.evaluation.test_voc import make as voc_case
from tests.runs import assert_one_line, call, tiny_config

Content = dict[str, Any]


def tally_files(content: Content, results: list[Content], folder: Path) -> Tally:
    (folder / "gt.json").write_text(json.dumps(content))
    (folder / "found.json").write_text(json.dumps(results))
    return tally_of(evaluate_files(folder / "found.json", folder / "gt.json").material)


def precision_of_pycocotools(content: Content, results: list[Content]) -> np.ndarray:
    """[T, K] for all areas and 100 detections, NaN for a class without gt boxes."""
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO()
        gt.dataset = copy.deepcopy(content)
        gt.createIndex()
        evaluator = COCOeval(gt, gt.loadRes(copy.deepcopy(results)), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
    precision = evaluator.eval["precision"][:, :, :, 0, -1]  # [T, recall, K]
    return np.where(precision[:, 0] < 0, np.nan, precision.mean(axis=1))


def copies(content: Content, results: list[Content], counts: dict[int, int]) -> tuple[Content, list[Content]]:
    """The set with each image repeated as often as `counts` says, in the form that pycocotools needs."""
    images: list[Content] = []
    annotations: list[Content] = []
    found: list[Content] = []
    for old, count in counts.items():
        for _ in range(count):
            new = 1000 * old + len(images)
            images.append({"id": new, "height": 480, "width": 640})
            for part, records in ((annotations, content["annotations"]), (found, results)):
                part += [{**r, "image_id": new} for r in records if r["image_id"] == old]
    annotations = [{**a, "id": i} for i, a in enumerate(annotations, start=1)]
    return {**content, "images": images, "annotations": annotations}, found


@pytest.mark.parametrize(("seed", "without_gt"), [(0, None), (2, 90)])
def test_ap_of_a_draw_equals_pycocotools_on_the_images_drawn(
    seed: int, without_gt: int | None, tmp_path: Path
) -> None:
    """With crowds, a class without gt boxes, and images drawn once, several times or not at all."""
    content, results = random_case(seed, without_gt)
    tally = tally_files(content, results, tmp_path)
    assert tally.image_ids.tolist() == [3, 7, 55, 100] and tally.ignored.any()
    counts = np.array([[1, 1, 1, 1], [2, 0, 1, 1], [3, 1, 0, 0], [0, 0, 4, 0]], dtype=np.int32)
    mine = average_precision(tally, counts)
    for row, found in zip(counts, mine, strict=True):
        drawn = dict(zip(tally.image_ids.tolist(), row.tolist(), strict=True))
        expected = precision_of_pycocotools(*copies(content, results, drawn))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    assert len(set(mine[~np.isnan(mine)])) > 20


def test_the_point_estimates_are_those_of_one_run_alone(tmp_path: Path) -> None:
    content, results = random_case(1)
    tally = tally_files(content, results, tmp_path)
    alone = evaluate_files(tmp_path / "found.json", tmp_path / "gt.json")
    (run,) = compare(["run"], [tally]).runs
    for name, one in run.metrics.items():
        assert one.value == pytest.approx(alone.summary[name], abs=1e-12)
    assert {k: v.value for k, v in run.per_class.items()} == pytest.approx(
        {k: v.ap for k, v in alone.per_class.items()}, abs=1e-12
    )


def test_classes_stand_under_their_names_whatever_their_ids(tmp_path: Path) -> None:
    """Two exports of one set may number its categories differently."""
    content, results = random_case(1)
    last = max(category["id"] for category in content["categories"])
    turned, moved = copy.deepcopy((content, results))
    for record in turned["categories"]:
        record["id"] = last + 1 - record["id"]
    for record in (*turned["annotations"], *moved):
        record["category_id"] = last + 1 - record["category_id"]
    first, second = tally_files(content, results, tmp_path), tally_files(turned, moved, tmp_path)
    assert first.classes != second.classes
    _, run = compare(["one", "other"], [first, second]).runs
    assert {k: v.value for k, v in run.per_class.items()} == pytest.approx(
        {k: v.value for k, v in _.per_class.items()}, abs=1e-12, nan_ok=True
    )
    for one in (*run.differences.values(), *run.per_class_differences.values()):
        assert np.isnan(one.value) or (one.low, one.value, one.high) == pytest.approx((0, 0, 0), abs=1e-12)


def test_boxes_of_no_area_that_is_count_for_nothing_as_in_pycocotools(tmp_path: Path) -> None:
    """Some tools write negative sides after clipping: such a file had another AP alone than when compared."""
    content, results = random_case(1)
    results += [
        {**record, "bbox": [*record["bbox"][:2], -2.0, record["bbox"][3]], "score": 0.99}
        for record in results[:40]
    ]
    mine = average_precision(tally_files(content, results, tmp_path), np.ones((1, 4), dtype=np.int32))
    np.testing.assert_allclose(mine[0], precision_of_pycocotools(content, results), rtol=0, atol=1e-12)
    alone = evaluate_files(tmp_path / "found.json", tmp_path / "gt.json")
    assert alone.errors.ap50 == pytest.approx(alone.summary["AP50"], abs=1e-12)


def all_or_nothing(hits: np.ndarray) -> Tally:
    """One gt box in every image, found for certain where `hits` is true and not at all elsewhere."""
    images = np.flatnonzero(hits)
    return Tally(
        classes=("cat",),
        image_ids=np.arange(len(hits)),
        gt_counts=np.ones((len(hits), 1), dtype=np.int32),
        labels=np.zeros(len(images), dtype=np.int64),
        images=images,
        scores=np.ones(len(images)),
        right=np.ones((10, len(images)), dtype=bool),
        ignored=np.zeros((10, len(images)), dtype=bool),
    )


LEVEL = 1 / 101  # AP counts the recall levels that are reached, a hundredth apart


def test_the_interval_of_a_proportion_is_the_binomial_one() -> None:
    """Each image is either perfect or empty: AP is the share of perfect ones.

    The number of perfect images in 100 drawn is binomial(100, 0.65): exact quantiles by scipy.
    """
    hits = np.arange(100) % 20 < 13
    (run,) = compare(["run"], [all_or_nothing(hits)]).runs
    ap, low, high = run.metrics["AP"], *binom.ppf((0.025, 0.975), 100, 0.65) / 100
    assert ap.value == pytest.approx(0.65, abs=LEVEL)
    assert high - low > 15 * LEVEL
    assert (ap.low, ap.high) == pytest.approx((low, high), abs=2 * LEVEL)


def test_a_value_lies_in_its_interval_though_resampled_images_agree_with_themselves() -> None:
    """Rare classes and their false detections: all resamples have a higher AP than the set itself.

    The interval is as wide as the spread of the draws, but is centred on the value.
    """
    rng = np.random.default_rng(0)
    drawn = 0.15 + 0.002 * rng.standard_normal(2000)
    values = np.repeat(np.concatenate(([0.142], drawn))[:, None], 3, axis=1)
    (interval, *_), _ = (list(each.values()) for each in _intervals(values, [False] * 3, (), least=0))
    assert interval.low == pytest.approx(0.142 - 1.96 * 0.002, abs=3e-4)
    assert interval.high == pytest.approx(0.142 + 1.96 * 0.002, abs=3e-4)
    near_zero = values - 0.147
    (interval, *_), _ = (
        list(each.values()) for each in _intervals(near_zero.clip(0), [False] * 3, (), least=0)
    )
    assert interval.low == 0


def test_a_difference_is_as_uncertain_as_the_images_on_which_the_runs_differ() -> None:
    """Runs that agree on 80 of 100 images; of the others B finds 18 and A 2.

    The difference of an image is 1, -1 or 0: mean 0.16, variance 0.2 - 0.16^2, so that the mean of 100
    has a spread of 0.042 and is clear of 0. The intervals of the runs alone touch.
    """
    hits = np.arange(100) % 10 < 6
    better = hits.copy()
    better[np.flatnonzero(~hits)[:18]] = True
    better[np.flatnonzero(hits)[:2]] = False
    first, second = compare(["A", "B"], [all_or_nothing(hits), all_or_nothing(better)]).runs
    difference, spread = second.differences["AP"], math.sqrt(0.2 - 0.16**2) / 10
    assert difference.value == pytest.approx(0.16, abs=LEVEL)
    assert difference.low == pytest.approx(0.16 - 1.96 * spread, abs=2 * LEVEL)
    assert difference.high == pytest.approx(0.16 + 1.96 * spread, abs=2 * LEVEL)
    assert difference.excludes_zero
    assert first.metrics["AP"].high > second.metrics["AP"].low - LEVEL


def test_a_run_beside_itself_differs_by_exactly_nothing_and_draws_are_the_same_each_time(
    tmp_path: Path,
) -> None:
    content, results = random_case(0)
    tally = tally_files(content, results, tmp_path)
    one, other = (compare(["A", "B"], [tally, tally]) for _ in range(2))
    assert one == other
    for same in one.runs[1].differences.values():
        assert (same.value, same.low, same.high, same.excludes_zero) == (0, 0, 0, False)
    assert one.runs[0].metrics["AP"].low < one.runs[0].metrics["AP"].high


def test_draws_have_as_many_images_as_the_set() -> None:
    counts = draws(7)
    assert counts.shape == (1 + RESAMPLES, 7)
    assert (counts.sum(axis=1) == 7).all() and (counts[0] == 1).all()
    # The number of copies of an image is binomial(7, 1 / 7): mean 1, variance 6 / 7.
    assert counts[1:].var() == pytest.approx(6 / 7, rel=0.05)


def test_a_rare_class_that_is_missing_from_draws_is_left_out_of_them() -> None:
    """Its only gt box is always found: its AP is 1 in every draw that contains the image."""
    both = all_or_nothing(np.ones(5, dtype=bool))
    gt = np.array([[1, 1], [1, 0], [1, 0], [1, 0], [1, 0]], dtype=np.int32)
    tally = replace(
        both,
        classes=("cat", "yeti"),
        gt_counts=gt,
        labels=np.array([0, 0, 0, 0, 0, 1]),
        images=np.array([0, 1, 2, 3, 4, 0]),
        scores=np.ones(6),
        right=np.ones((10, 6), dtype=bool),
        ignored=np.zeros((10, 6), dtype=bool),
    )
    (run,) = compare(["run"], [tally]).runs
    yeti = run.per_class["yeti"]
    assert (yeti.value, yeti.low, yeti.high) == pytest.approx((1, 1, 1))


@pytest.mark.parametrize(("images", "told"), [(9, False), (10, True)])
def test_no_difference_is_told_from_a_handful_of_images(images: int, told: bool) -> None:
    """One run finds every yeti, the other none; all have cats, which both find."""
    gt = np.ones((15, 2), dtype=np.int32)
    gt[images:, 1] = 0
    labels, at = np.repeat([0, 1], [15, images]), np.concatenate((np.arange(15), np.arange(images)))
    tally = replace(
        all_or_nothing(np.ones(15, dtype=bool)),
        classes=("cat", "yeti"),
        gt_counts=gt,
        labels=labels,
        images=at,
        scores=np.ones(len(at)),
        right=np.ones((10, len(at)), dtype=bool),
        ignored=np.zeros((10, len(at)), dtype=bool),
    )
    blind = replace(tally, right=np.repeat([labels == 0], 10, axis=0))
    _, other = compare(["one", "other"], [tally, blind]).runs
    assert other.per_class_differences["yeti"].excludes_zero == told


def test_files_are_compared_at_the_command_line(tmp_path: Path) -> None:
    """The worse results are the better ones with every second detection left out."""
    content, results = random_case(0)
    for name, value in (("gt", content), ("all", results), ("half", results[::2])):
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    words = ("--predictions", "all.json", "half.json", "--annotations", "gt.json", "--output", "out.json")
    outcome = call(door.main, *words, cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    written = json.loads((tmp_path / "out.json").read_text())
    alone = [
        evaluate_files(tmp_path / f"{n}.json", tmp_path / "gt.json").summary["AP"] for n in ("all", "half")
    ]
    assert [run["AP"]["value"] for run in written["runs"]] == pytest.approx(alone, abs=1e-12)
    difference = written["runs"][1]["difference"]["AP"]
    assert difference["value"] == pytest.approx(alone[1] - alone[0], abs=1e-12)
    assert difference["low"] <= difference["value"] <= difference["high"]
    assert set(written["runs"][0]["per_class"]) == {"car", "cow", "cup"}
    (line,) = [line for line in outcome.out.splitlines() if line.startswith("AP  ")]
    assert f"{alone[0]:.3f} [" in line and f"{alone[1] - alone[0]:+.3f} [" in line


def test_nothing_is_told_from_a_single_image(tmp_path: Path) -> None:
    """All draws of one image are the same, so every difference would seem to be beyond chance."""
    content = coco_dict([[[4.0, 5.0, 20.0, 18.0], [30.0, 10.0, 24.0, 20.0]]])
    found = [
        {k: a[k] for k in ("image_id", "category_id", "bbox")} | {"score": 0.9}
        for a in content["annotations"]
    ]
    for name, results in (("gt", content), ("one", found[:1]), ("two", found)):
        (tmp_path / f"{name}.json").write_text(json.dumps(results))
    comparison = compare_files([tmp_path / "one.json", tmp_path / "two.json"], tmp_path / "gt.json")
    difference = comparison.runs[1].differences["AP"]
    assert difference.value > 0 and not difference.excludes_zero


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compared")
    Trainer(tiny_config(small_coco(folder / "set"), folder / "run", "train.epochs=1"), "test").run()
    return folder / "run"


def test_runs_are_compared_at_the_command_line(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "again")
    outcome = call(door.main, str(run), "again", "eval.batch_size=2", "--output", "out.json", cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    first, second = json.loads((tmp_path / "out.json").read_text())["runs"]
    assert (first["name"], second["name"]) == (str(run), "again")
    assert second["AP"] == first["AP"]
    assert second["difference"]["AP"] == {"value": 0, "low": 0, "high": 0, "excludes_zero": False}


def test_the_same_classes_in_another_order_are_compared(run: Path, tmp_path: Path) -> None:
    words = ("train.epochs=1", "data.classes=[dog, cat]")
    Trainer(tiny_config(run.parent / "set", tmp_path / "other", *words), "test").run()
    outcome = call(door.main, str(run), "other", "--output", "out.json", cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    alone = call(door.main, "other", "--output", "alone.json", cwd=tmp_path)
    assert alone.code == 0
    compared = json.loads((tmp_path / "out.json").read_text())["runs"][1]["per_class"]
    for name, one in json.loads((tmp_path / "alone.json").read_text())["per_class"].items():
        assert compared[name]["value"] == pytest.approx(one["AP"], abs=1e-12)


@pytest.mark.parametrize("several", [False, True])
def test_images_that_a_run_has_learnt_are_told(
    run: Path, tmp_path: Path, several: bool, caplog: pytest.LogCaptureFixture
) -> None:
    runs = [str(run)] * (1 + several)
    assert call(door.main, *runs, cwd=tmp_path).code == 0
    assert "was trained on" not in caplog.text
    assert call(door.main, *runs, "data.splits.val=train", cwd=tmp_path).code == 0
    assert re.search(r"was trained on (\d+) of these \1 images", caplog.text)
    caplog.clear()
    assert call(door.main, str(run), str(run), "--mean", "data.splits.val=train", cwd=tmp_path).code == 0
    assert "was trained on" in caplog.text
    # The run was not trained on another set whose training split has the same name.
    caplog.clear()
    small_coco(tmp_path / "another")
    assert call(door.main, *runs, "data.root=another", "data.splits.val=train", cwd=tmp_path).code == 0
    assert "was trained on" not in caplog.text


def test_runs_of_other_data_are_refused_with_what_differs(run: Path, tmp_path: Path) -> None:
    content = coco_dict([[[4.0, 5.0, 20.0, 18.0], [30.0, 10.0, 24.0, 20.0]]] * 2)
    same = json.loads((run.parent / "set" / "annotations" / "val.json").read_text())
    moved, relabelled, crowd, renamed = (copy.deepcopy(same) for _ in range(4))
    moved["annotations"][0]["bbox"][0] += 1
    relabelled["annotations"][0]["category_id"] = 3  # a cat in place of a dog
    crowd["annotations"][0]["iscrowd"] = 1
    renamed["images"][2]["file_name"] = "other.png"
    checkpoint = torch.load(run / "checkpoints" / "best.pt", weights_only=True)
    for name, other, classes, said in (
        ("fewer", content, ["cat", "dog"], "2 images, but the first has 6"),
        ("one", moved, ["dog"], "classes are dog, but those of the first are cat, dog"),
        ("moved", moved, ["cat", "dog"], "gt boxes"),
        ("relabelled", relabelled, ["cat", "dog"], "gt boxes"),
        ("crowd", crowd, ["cat", "dog"], "gt boxes"),
        ("renamed", renamed, ["cat", "dog"], "images differ, e.g. "),
    ):
        root = write_coco(tmp_path / name, other, other)
        config = {**checkpoint["config"], "data": {**checkpoint["config"]["data"], "root": str(root)}}
        weights = open_checkpoint(run, []).model.state_dict()
        if len(classes) == 1:
            weights = build_model(parse_config(config, "the test").model, 1, False).state_dict()
        changed = {
            **checkpoint,
            "config": config,
            "classes": classes,
            "category_ids": [3, 7][-len(classes) :],
        }
        save_checkpoint(tmp_path / f"{name}.pt", {**changed, "model": weights})
        outcome = call(door.main, str(run), f"{name}.pt", "--output", "x.json", cwd=tmp_path)
        assert_one_line(outcome, "cannot be compared", name, said)
        assert not (tmp_path / "x.json").exists()


def test_no_gt_and_a_missing_run_are_one_line(run: Path, tmp_path: Path) -> None:
    content, results = random_case(0)
    (tmp_path / "gt.json").write_text(json.dumps({**content, "annotations": []}))
    (tmp_path / "found.json").write_text(json.dumps(results))
    with pytest.raises(InputError, match="no gt boxes"):
        compare_files([tmp_path / "found.json"] * 2, tmp_path / "gt.json")
    assert_one_line(call(door.main, str(run), "nowhere", cwd=tmp_path), "nowhere")


def test_runs_are_told_apart_by_the_settings_that_differ() -> None:
    words = (
        ["optimizer.lr=0.002", "run.dir=a", "data.workers=1"],
        ["optimizer.lr=0.004", "run.dir=b"],
        ["optimizer.lr=0.002", "loss.name=focal", "run.dir=c"],
    )
    configs = [parse_config(apply_overrides({}, own), "the test") for own in words]
    assert differing(configs) == [
        {"optimizer.lr": 0.002, "loss.name": "ap"},
        {"optimizer.lr": 0.004, "loss.name": "ap"},
        {"optimizer.lr": 0.002, "loss.name": "focal"},
    ]
    assert differing(configs[:1] * 2) == [{}, {}]
    runs = [
        replace(RunResult(name, {}, {}, {}, {}), settings=differing(configs)[k])
        for k, name in enumerate("abc")
    ]
    lines = comparison_table(Comparison(runs, 9), "the test").splitlines()
    assert lines[2] == "B  b  loss.name=ap optimizer.lr=0.004"


def test_many_runs_are_lines_by_falling_ap():
    """For example a sweep: side by side, its columns would wrap."""

    def run(name, ap, difference):
        values = {"AP": ap, "AP50": 0.8, "AP75": 0.3}
        metrics = {metric: Interval(v, v - 0.1, v + 0.1) for metric, v in values.items()}
        own = {"cat": Interval(ap, 0, 1), "dog": Interval(np.nan, np.nan, np.nan)}
        to_first = {} if difference is None else {"AP": difference}
        return RunResult(name, metrics, own, to_first, {})

    runs = [
        run("runs/a", 0.5, None),
        run("runs/b", 0.7, Interval(0.2, 0.1, 0.3)),
        run("runs/c", 0.4, Interval(-0.1, -0.3, 0.1)),
        run("runs/d", 0.6, Interval(0.1, -0.1, 0.3)),
    ]
    lines = comparison_table(Comparison(runs, 9), "the test").splitlines()
    assert lines[1:5] == ["A  runs/a", "B  runs/b", "C  runs/c", "D  runs/d"]
    assert lines[5].split() == "AP AP - A AP50 AP75 AP cat".split()
    assert [line.split() for line in lines[6:10]] == [
        "B 0.700 [0.600, 0.800] +0.200 [+0.100, +0.300] * 0.800 0.300 0.700".split(),
        "D 0.600 [0.500, 0.700] +0.100 [-0.100, +0.300] 0.800 0.300 0.600".split(),
        "A 0.500 [0.400, 0.600] 0.800 0.300 0.500".split(),
        "C 0.400 [0.300, 0.500] -0.100 [-0.300, +0.100] 0.800 0.300 0.400".split(),
    ]


def test_classes_out_of_the_order_of_their_ids_are_tallied_as_what_they_are() -> None:
    """data.classes=[b, a], ids 9 and 3: one of b's two boxes is found (51 of 101 levels), a's only one is."""
    box, other = [0, 0, 10, 10], [50, 50, 60, 60]
    gt = [(0, 0, box, False), (1, 0, box, False), (0, 1, other, False)]
    records, found = voc_case(gt, [(0, 0, box, 0.9), (0, 1, other, 0.8)], 2, 2)
    tally = tally_of(material_of(replace(records, classes=("b", "a"), category_ids=(9, 3)), found))
    ap = average_precision(tally, np.ones((1, 2), np.int32))[0, 0]
    assert dict(zip(tally.classes, ap.tolist(), strict=True)) == pytest.approx({"a": 1.0, "b": 51 / 101})
