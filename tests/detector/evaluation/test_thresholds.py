"""evaluate.py --threshold: what a detector gives at thresholds that are not fitted to the images at hand."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

import evaluate as door
from detector.evaluation.coco import Chosen, evaluate_files
from detector.report.facts import shown
from detector.training.trainer import Trainer
from tests.builders import coco_dict, small_coco
from tests.detector.evaluation.test_coco import random_case
from tests.runs import assert_one_line, call, tiny_config


def test_hand_computed(tmp_path: Path) -> None:
    """Two objects, one of them found twice: at 0.5 one detection is right and one wrong."""
    content = coco_dict([[[4.0, 5.0, 20.0, 18.0], [30.0, 10.0, 24.0, 20.0]]])
    content["categories"] = [{"id": 7, "name": "cat"}]
    for annotation in content["annotations"]:
        annotation["category_id"] = 7
    image = content["images"][0]["id"]
    found = [
        {"image_id": image, "category_id": 7, "bbox": [4.0, 5.0, 20.0, 18.0], "score": score}
        for score in (0.9, 0.6)
    ]
    found.append({"image_id": image, "category_id": 7, "bbox": [30.0, 10.0, 24.0, 20.0], "score": 0.4})
    for name, value in (("gt", content), ("found", found)):
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    words = ("--predictions", "found.json", "--annotations", "gt.json", "--output", "out.json", "--threshold")
    expected = {
        "0.5": (0.5, 0.5, 0.5, 1, 1, 1),
        "cat=0.4": (2 / 3, 1, 0.8, 2, 1, 0),
        "0.95": (-1, 0, 0, 0, 0, 2),
    }
    for text, (precision, recall, f1, right, wrong, missed) in expected.items():
        outcome = call(door.main, *words, text, cwd=tmp_path)
        assert (outcome.code, outcome.err) == (0, "")
        one = json.loads((tmp_path / "out.json").read_text())["at_thresholds"]["cat"]
        assert one == pytest.approx(
            {
                "threshold": float(text.removeprefix("cat=")),
                "precision": precision,
                "recall": recall,
                "f1": f1,
                "right": right,
                "wrong": wrong,
                "missed": missed,
            }
        )
        row = outcome.out.split("at the thresholds given:")[1].splitlines()[2].split()
        assert row[0] == "cat" and row[-3:] == [str(n) for n in (right, wrong, missed)]


def test_the_best_ones_chosen_are_the_best_ones(tmp_path: Path) -> None:
    """At each class's best threshold the numbers are the best ones, and the report shows the same."""
    content, results = random_case(0)
    for name, value in (("gt", content), ("found", results)):
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    result = evaluate_files(tmp_path / "found.json", tmp_path / "gt.json")
    text = ",".join(f"{name}={one.best_threshold!r}" for name, one in result.per_class.items())
    words = ("--predictions", "found.json", "--annotations", "gt.json", "--output", "out.json")
    outcome = call(door.main, *words, "--threshold", text, "--report", "page", cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    written = json.loads((tmp_path / "out.json").read_text())["at_thresholds"]
    for name, one in result.per_class.items():
        best = (one.best_f1, one.best_precision, one.best_recall)
        assert [written[name][key] for key in ("f1", "precision", "recall")] == pytest.approx(best)
    assert "At the thresholds given, which confusion" in (tmp_path / "page/index.html").read_text()


def test_the_report_counts_at_the_chosen_ones(tmp_path: Path) -> None:
    content, results = random_case(1)
    for name, value in (("gt", content), ("found", results)):
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    result = evaluate_files(tmp_path / "found.json", tmp_path / "gt.json")
    chosen = replace(result, chosen=Chosen(dict.fromkeys(result.per_class, 0.7), "given"))
    at, rows = shown(chosen), chosen.at_chosen().values()
    assert at.thresholds.tolist() == [0.7] * len(result.per_class)
    assert (at.right.sum(), at.wrong.sum(), at.unfound.sum()) == (
        sum(one.right for one in rows),
        sum(one.wrong for one in rows),
        sum(one.missed for one in rows),
    )
    assert at.wrong.sum() != shown(result).wrong.sum()


def test_of_a_checkpoint_they_are_those_of_validation_but_on_validation_itself(tmp_path: Path) -> None:
    root = small_coco(tmp_path / "set")
    content = json.loads((root / "annotations/val.json").read_text())  # the images of training, but one less
    gone = content["images"].pop()["id"]
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] != gone]
    (root / "annotations/val.json").write_text(json.dumps(content))
    Trainer(tiny_config(root, tmp_path / "run", "train.epochs=1"), "test").run()
    given = ("--threshold", "0.25")
    for split, words in (("val", ()), ("train", ()), ("val", ("data.splits.val=train",)), ("val", given)):
        outcome = call(door.main, "run", "--split", split, "--output", "out.json", *words, cwd=tmp_path)
        assert outcome.code == 0, outcome.err
        written = json.loads((tmp_path / "out.json").read_text())
        if not words and split == "val":
            assert "at_thresholds" not in written and "at the thresholds" not in outcome.out
            best = {name: one["best_f1_threshold"] for name, one in written["per_class"].items()}
            continue
        at = {name: one["threshold"] for name, one in written["at_thresholds"].items()}
        usual = {name: 0.5 if value < 0 else pytest.approx(value) for name, value in best.items()}
        assert at == (dict.fromkeys(best, 0.25) if words == given else usual)
        assert f"at the thresholds {'given' if words == given else 'of the checkpoint'}:" in outcome.out
    # Thresholds refitted on other images are reported on those of validation.
    words = ("--split", "train", "--recalibrate", "new.pt", "--output", "out.json")
    assert call(door.main, "run", *words, cwd=tmp_path).code == 0
    assert "at_thresholds" not in json.loads((tmp_path / "out.json").read_text())
    for split, told in (("train", False), ("val", True)):
        outcome = call(door.main, "new.pt", "--split", split, cwd=tmp_path)
        assert ("at the thresholds of the checkpoint:" in outcome.out) == told


def test_what_is_not_named_keeps_what_it_had(tmp_path: Path) -> None:
    """A class without gt boxes, too, which has the highest threshold of the others, as in the report."""
    content, results = random_case(0)
    content["categories"].append({"id": 99, "name": "yeti"})
    results.append({**results[0], "category_id": 99})
    for name, value in (("gt", content), ("found", results)):
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    best = evaluate_files(tmp_path / "found.json", tmp_path / "gt.json").per_class
    words = ("--predictions", "found.json", "--annotations", "gt.json", "--threshold", "car=0.6")
    outcome = call(door.main, *words, "--output", "out.json", cwd=tmp_path)
    assert "at the thresholds given, else with the best F1 on these images:" in outcome.out
    written = json.loads((tmp_path / "out.json").read_text())["at_thresholds"]
    highest = max(one.best_threshold for one in best.values())
    expected = {name: one.best_threshold for name, one in best.items()} | {"car": 0.6, "yeti": highest}
    assert {name: one["threshold"] for name, one in written.items()} == pytest.approx(expected)


def test_what_cannot_be_is_one_line(tmp_path: Path) -> None:
    content, results = random_case(0)
    for name, value in (("gt", content), ("found", results)):
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    of = ("--annotations", "gt.json", "--predictions", "found.json")
    assert_one_line(call(door.main, *of, "--threshold", "yeti=0.5", cwd=tmp_path), "yeti", "car")
    assert_one_line(call(door.main, *of, "--threshold", "0,5", cwd=tmp_path), "0.5")
    assert_one_line(call(door.main, *of, "--threshold", "2", cwd=tmp_path), "0 to 1")
    assert_one_line(call(door.main, *of, "found.json", "--threshold", "0.5", cwd=tmp_path), "only one")
