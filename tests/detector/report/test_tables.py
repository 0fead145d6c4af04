"""The tables of the report against what evaluate.py gives for the same results."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import evaluate
from tests.detector.report.test_page import write_case
from tests.runs import call

Rows = list[dict[str, str]]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tables")
    words = [*write_case(folder, cat="cat, or kitten"), "--report", "out", "--threshold", "0.35"]
    found = json.loads((folder / "found.json").read_text())
    for one in found:  # in results files scores are rounded, and may equal a threshold
        one["score"] = round(one["score"], 2)
    found += [one | {"score": score} for one in found[:6] for score in (0.35, 0.57, 0.7)]
    (folder / "found.json").write_text(json.dumps(found))
    assert call(evaluate.main, *words, "--output", "at.json", cwd=folder).code == 0
    return folder


def table(case: Path, name: str) -> Rows:
    with (case / "out" / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def metrics(case: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((case / "at.json").read_text())
    return content


def test_images_and_confusion_add_up_to_what_the_thresholds_give(case: Path) -> None:
    at = metrics(case)["at_thresholds"]
    total = {key: sum(one[key] for one in at.values()) for key in ("right", "wrong", "missed")}
    images = table(case, "images")
    assert [row["image_id"] for row in images] == sorted(row["image_id"] for row in images)
    for key, expected in total.items():
        assert sum(int(row[key]) for row in images) == expected
    for row in images:
        right, wrong, missed = (int(row[key]) for key in ("right", "wrong", "missed"))
        assert int(row["gt_boxes"]) == right + missed
        if right + wrong + missed == 0:
            assert row["f1"] == ""
            continue
        assert float(row["f1"]) == pytest.approx(2 * right / (2 * right + wrong + missed), rel=1e-5)

    counts = {row["gt in rows"]: row for row in table(case, "confusion")}
    assert [*counts] == ["cat, or kitten", "dog", "nothing"]
    for name, one in at.items():
        mine = {key: int(value) for key, value in counts[name].items() if key != "gt in rows"}
        assert mine[name] == one["right"]
        assert sum(mine.values()) == one["right"] + one["missed"]
        column = sum(int(row[name]) for row in counts.values())
        assert column == one["right"] + one["wrong"]


def test_an_image_is_named_by_its_file_where_it_is_at_hand(case: Path) -> None:
    words = ["--predictions", "found.json", "--annotations", "set/annotations/val.json"]
    assert [(row["image_id"], row["image"]) for row in table(case, "images")] == [
        (str(10 + k), f"{k}.png") for k in range(6)
    ]
    more = ("--images", "set/images", "--report", "seen")
    assert call(evaluate.main, *words, *more, cwd=case).code == 0
    with (case / "seen" / "images.csv").open(newline="", encoding="utf-8") as file:
        images = {row["image_id"]: case / row["image"] for row in csv.DictReader(file)}
    assert images == {str(10 + k): case / "set" / "images" / f"{k}.png" for k in range(6)}


@pytest.mark.parametrize("step", [0, 20, 35, 57, 70, 90])
def test_a_row_of_thresholds_is_what_evaluate_gives_at_it(case: Path, step: int) -> None:
    words = ["--predictions", "found.json", "--annotations", "set/annotations/val.json"]
    output = ("--output", f"{step}.json", "--threshold", str(step / 100))
    assert call(evaluate.main, *words, *output, cwd=case).code == 0
    expected = json.loads((case / f"{step}.json").read_text())["at_thresholds"]
    rows = table(case, "thresholds")
    for name, one in expected.items():
        (row,) = (r for r in rows if r["class"] == name and float(r["threshold"]) == step / 100)
        for key, value in one.items():
            assert float(row[key] or -1) == pytest.approx(value, rel=1e-5), key


def test_the_mean_of_the_precision_is_ap(case: Path) -> None:
    rows = table(case, "precision_recall")
    assert len(rows) == 2 * 101 and [r["recall"] for r in rows[:3]] == ["0", "0.01", "0.02"]
    for name, one in metrics(case)["per_class"].items():
        values = np.array([[*map(float, [*r.values()][2:])] for r in rows if r["class"] == name])
        assert values.shape == (101, 10)
        assert values.mean() == pytest.approx(one["AP"], rel=1e-5)
        at_75 = [float(r["iou_0.75"]) for r in rows if r["class"] == name]
        assert np.mean(at_75) == pytest.approx(one["AP75"], rel=1e-5)
