"""A recalibrated checkpoint gives the results of the evaluation that produced it."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import evaluate
import train
from detector.checkpoint import load_checkpoint, save_checkpoint
from detector.evaluation.checkpoint import open_checkpoint
from tests.builders import TINY_MODEL, small_coco
from tests.runs import assert_refused, call


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `run`, trained with hard NMS, and its set."""
    folder = tmp_path_factory.mktemp("recalibration")
    small_coco(folder / "set", 6)
    (folder / "mine.yaml").write_text("data: {format: coco, root: set}\ntrain: {epochs: 1}\n")
    assert call(train.main, "mine.yaml", "run.dir=run", *TINY_MODEL, cwd=folder).code == 0
    return folder


@pytest.fixture
def place(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_scores_and_thresholds_are_those_of_the_new_settings(place: Path, caplog) -> None:
    words = ("run", "eval.nms=soft", "--recalibrate", "soft.pt", "--output", "made.json")
    outcome = call(evaluate.main, *words, cwd=place)
    assert outcome.code == 0, outcome.err
    outcome = call(evaluate.main, "soft.pt", "--output", "again.json", cwd=place)
    assert (outcome.code, caplog.text) == (0, "")  # no warning of a calibration for other settings
    made, again = (json.loads((place / f"{name}.json").read_text()) for name in ("made", "again"))
    assert made == again
    assert call(evaluate.main, "run", "eval.nms=soft", "--output", "off.json", cwd=place).code == 0
    assert "calibrated for eval.nms=hard" in caplog.text
    off = json.loads((place / "off.json").read_text())
    assert off["AP"] == made["AP"] and off["calibration_error_raw"] == made["calibration_error_raw"]
    assert made["calibration_error"] != off["calibration_error"]
    old, new = (
        torch.load(place / name, weights_only=True) for name in ("run/checkpoints/best.pt", "soft.pt")
    )
    assert new["config"]["eval"]["nms"] == "soft" and old["config"]["eval"]["nms"] == "hard"
    assert {k: v for k, v in new["config"].items() if k != "eval"} == {
        k: v for k, v in old["config"].items() if k != "eval"
    }
    assert all(torch.equal(new["model"][name], weight) for name, weight in old["model"].items())
    told = {name: one["best_f1_threshold"] for name, one in made["per_class"].items()}
    thresholds = open_checkpoint(place / "soft.pt", []).thresholds
    assert all(t == told[n] or told[n] == -1 for n, t in zip(("cat", "dog"), thresholds, strict=True))
    smaller = "data.transforms.eval=[{ResizeWithin: {long: 48}}]"
    assert call(evaluate.main, *words[:-2], smaller, cwd=place).code == 0  # replaces soft.pt
    resized = open_checkpoint(place / "soft.pt", []).config.data.transforms.eval
    assert resized == [{"ResizeWithin": {"long": 48}}]


def test_no_file_beside_the_new_one_is_touched(place: Path) -> None:
    for name in ("soft.tmp", ".soft.tmp"):
        (place / name).write_text("mine")
    assert call(evaluate.main, "run", "--recalibrate", "soft.pt", cwd=place).code == 0
    assert {path.name for path in place.glob("*soft*")} == {"soft.pt", "soft.tmp", ".soft.tmp"}
    assert (place / "soft.tmp").read_text() == (place / ".soft.tmp").read_text() == "mine"


def test_what_would_be_lost_or_has_nothing_to_go_by_is_refused(place: Path) -> None:
    (place / "notes.pt").write_text("mine")
    files = sorted(path for path in place.rglob("*") if path.is_file())
    for words, *said in (
        (("run", "--recalibrate", "run/checkpoints/best.pt"), "best.pt is also an input of this command"),
        (("run", "--recalibrate", "run/checkpoints/last.pt"), "last.pt exists and is not an earlier output"),
        (("run", "--recalibrate", "notes.pt"), "notes.pt exists and is not an earlier output"),
        (("run", "--recalibrate", "x.pt", "--output", "x.pt"), "--output", "are both x.pt"),
        (("run", "--recalibrate", "soft.onnx"), "soft.onnx does not end in .pt"),
        (("run", "--recalibrate", "nowhere/soft.pt"), "the folder nowhere does not exist"),
        (("run", "run", "--recalibrate", "soft.pt"), "single checkpoint"),
        (("run", "eval.calibrate=no", "--recalibrate", "soft.pt"), "eval.calibrate=false"),
    ):
        assert_refused(evaluate.main, words, place, "--recalibrate", *said)
    for split in ("val", "train"):
        path = place / "set" / "annotations" / f"{split}.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "annotations": []}))
    words = ("run", "--recalibrate", "soft.pt")
    assert_refused(evaluate.main, words, place, "--recalibrate: the split val has no gt boxes")
    assert sorted(path for path in place.rglob("*") if path.is_file()) == files


def test_a_calibration_that_is_older_than_the_weights_is_told(place: Path, caplog) -> None:
    """Between two evaluations the weights in last.pt are newer than its calibration; in best.pt never."""
    last = place / "run" / "checkpoints" / "last.pt"
    save_checkpoint(last, load_checkpoint(last) | {"step": 5})
    assert call(evaluate.main, "run", cwd=place).code == 0
    assert caplog.text == ""
    assert call(evaluate.main, str(last), cwd=place).code == 0
    assert (
        "weights are from step 5, but its calibration and thresholds are from an evaluation at step 3"
        in caplog.text
    )
    caplog.clear()
    assert call(evaluate.main, str(last), "--recalibrate", "new.pt", cwd=place).code == 0
    assert call(evaluate.main, "new.pt", cwd=place).code == 0
    assert caplog.text == ""
