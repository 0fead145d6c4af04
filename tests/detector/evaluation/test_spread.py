"""evaluate.py --mean: mean and standard deviation over runs."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import evaluate as door
from detector.evaluation.coco import evaluate_files
from detector.evaluation.spread import Spread, spread_table
from detector.training.trainer import Trainer
from tests.builders import small_coco
from tests.detector.evaluation.test_coco import random_case
from tests.runs import assert_one_line, call, tiny_config


def test_of_results_files(tmp_path: Path) -> None:
    """Oracle: NumPy on what each file gives alone; a class without gt boxes has no value."""
    content, results = random_case(0)
    content["categories"].append({"id": 99, "name": "yeti"})
    (tmp_path / "gt.json").write_text(json.dumps(content))
    files = ["one.json", "two.json", "three.json"]
    for k, name in enumerate(files):
        (tmp_path / name).write_text(json.dumps(results[:: k + 1]))
    words = ("--predictions", *files, "--annotations", "gt.json", "--mean", "--output", "out.json")
    outcome = call(door.main, *words, cwd=tmp_path)
    assert (outcome.code, outcome.err) == (0, "")
    alone = [evaluate_files(tmp_path / name, tmp_path / "gt.json") for name in files]
    written = json.loads((tmp_path / "out.json").read_text())
    for metric in ("AP", "AP50", "AP75"):
        values = [one.summary[metric] for one in alone]
        assert [run[metric] for run in written["runs"]] == values
        assert written["mean"][metric] == pytest.approx(np.mean(values), rel=1e-12)
        assert written["std"][metric] == pytest.approx(np.std(values, ddof=1), rel=1e-12)
    cars = [one.per_class["car"].ap for one in alone]
    assert written["mean"]["per_class"]["car"] == pytest.approx(np.mean(cars), rel=1e-12)
    assert written["mean"]["per_class"]["yeti"] is None
    assert all(run["images"] == len(content["images"]) for run in written["runs"])
    lines = outcome.out.splitlines()
    (row,) = [line.split() for line in lines if line.startswith("AP car")]
    assert row[2:] == [f"{value:.3f}" for value in (*cars, np.mean(cars), np.std(cars, ddof=1))]
    assert "yeti" not in outcome.out  # the yeti has no gt boxes
    # Again into the same file, which is recognised as an earlier output.
    assert call(door.main, *words, cwd=tmp_path).code == 0


def test_runs_are_each_scored_on_the_images_of_their_own(tmp_path: Path) -> None:
    """Two folds: the values are those of each run evaluated alone."""
    root = small_coco(tmp_path / "set")
    shutil.copy(root / "annotations/val.json", root / "annotations/other.json")
    content = json.loads((root / "annotations/other.json").read_text())
    gone = content["images"].pop()
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != gone["id"]]
    (root / "annotations/other.json").write_text(json.dumps(content))
    for name, split in (("one", "val"), ("two", "other")):
        config = tiny_config(root, tmp_path / name, "train.epochs=1", f"data.splits.val={split}")
        Trainer(config, "test").run()
    alone = []
    for name in ("one", "two"):
        assert call(door.main, name, "--output", f"{name}.json", cwd=tmp_path).code == 0
        alone.append(json.loads((tmp_path / f"{name}.json").read_text())["AP"])
    outcome = call(door.main, "one", "two", "--mean", "--output", "out.json", cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    written = json.loads((tmp_path / "out.json").read_text())
    assert [run["AP"] for run in written["runs"]] == alone
    counts = [run["images"] for run in written["runs"]]
    assert counts[0] == counts[1] + 1
    assert f"A  one ({counts[0]} images)" in outcome.out


def test_what_makes_no_mean_is_one_line(tmp_path: Path) -> None:
    root = small_coco(tmp_path / "set")
    Trainer(tiny_config(root, tmp_path / "run", "train.epochs=0"), "test").run()
    assert_one_line(call(door.main, "run", "--mean", cwd=tmp_path), "--mean", "at least two")
    checkpoint = torch.load(tmp_path / "run/checkpoints/last.pt", weights_only=False)
    checkpoint["classes"] = [f"other {name}" for name in checkpoint["classes"]]
    torch.save(checkpoint, tmp_path / "other.pt")
    outcome = call(door.main, "run", "other.pt", "--mean", cwd=tmp_path)
    assert_one_line(outcome, "other.pt and run cannot be averaged", "other ")


def test_a_mean_of_different_recipes_and_of_one_run_twice_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = small_coco(tmp_path / "set")
    runs = {"one": (), "seed": ("train.seed=7",), "lr": ("optimizer.lr=0.5", "train.seed=8")}
    for name, words in runs.items():
        Trainer(tiny_config(root, tmp_path / name, "train.epochs=1", *words), "test").run()
    usual = json.dumps(tiny_config(root, tmp_path).optimizer.lr)
    for several, said in (
        (("one", "seed"), ()),
        (("one", "lr"), ("differ in more than folds and seeds", f"optimizer.lr ({usual}, 0.5)")),
        (("one", "seed", "one/checkpoints/best.pt"), ("given twice",)),
    ):
        caplog.clear()
        assert call(door.main, *several, "--mean", cwd=tmp_path).code == 0
        assert len(caplog.messages) == bool(said)
        assert all(part in caplog.text for part in said)


def test_a_class_that_some_folds_lack_has_its_line() -> None:
    each = {name: [0.5, 0.7] for name in ("AP", "AP50", "AP75")}
    table = spread_table(Spread(["a", "b"], [3, 3], each, {"cat": [0.5, math.nan]}), "t")
    (line,) = [one.split() for one in table.splitlines() if one.startswith("AP cat")]
    assert line[2:] == ["0.500", "-", "0.500", "-"]
