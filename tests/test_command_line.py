"""train.py and evaluate.py in normal use."""

import json
import logging
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import evaluate
import export
import predict
import train
from detector.evaluation import command
from errors import InputError
from tests.builders import TINY_MODEL, coco_dict, small_coco
from tests.runs import assert_one_line, assert_refused, boxes_lost_at, call, last, read_metrics

STEPS = 6  # two epochs of 6 images in batches of 2
PROJECT = Path(train.__file__).parent
COCO_NAMES = {"AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"}
CALIBRATION = {"calibration_error_raw", "calibration_error", "calibration_error_held_out"}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set, tiny.yaml, and run/, a run of two epochs, of which the first is the best."""
    folder = tmp_path_factory.mktemp("workplace")
    small_coco(folder / "set")
    values = {"format": "coco", "root": str(folder / "set"), "splits": {"test": "val"}}
    (folder / "tiny.yaml").write_text(json.dumps({"data": values, "train": {"epochs": 2}}))
    with boxes_lost_at(STEPS):
        assert call(train.main, "tiny.yaml", "run.dir=run", *TINY_MODEL, cwd=folder).code == 0
    return folder


def test_several_processes_do_not_all_evaluate(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert_refused(
        evaluate.main, ("run",), workplace, "evaluate.py runs in a single process", "not with torchrun"
    )
    monkeypatch.setenv("WORLD_SIZE", "")  # as a script may leave it
    assert_refused(evaluate.main, ("gone",), workplace, "gone")


def test_results_of_classes_that_the_gt_does_not_list_are_left_out(workplace: Path, tmp_path: Path) -> None:
    """So that the rest can be scored; AP is unchanged, as it covers only the listed classes."""
    shutil.copytree(workplace / "set", tmp_path / "set")
    file = tmp_path / "set" / "annotations" / "val.json"
    content = json.loads(file.read_text())
    (cat,) = (c for c in content["categories"] if c["name"] == "cat")
    content["categories"] = [cat]
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] == cat["id"]]
    file.write_text(json.dumps(content))
    words = (str(workplace / "run"), "data.root=set", "--results", "r.json", "--output", "one.json")
    assert call(evaluate.main, *words, cwd=tmp_path).code == 0
    results = json.loads((tmp_path / "r.json").read_text())
    assert {entry["category_id"] for entry in results} == {cat["id"]}
    words = ("--predictions", "r.json", "--annotations", str(file), "--output", "other.json")
    outcome = call(evaluate.main, *words, cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    scores = [json.loads((tmp_path / name).read_text())["AP"] for name in ("one.json", "other.json")]
    assert scores[0] == scores[1]


def evaluations(run: Path) -> list[dict[str, Any]]:
    """The evaluations that the trainer logged, without step and epoch."""
    lines = [line for line in read_metrics(run) if "AP" in line]
    return [{key: v for key, v in line.items() if key not in ("step", "epoch")} for line in lines]


def test_train_leaves_a_run_and_says_how_to_go_on(tmp_path: Path) -> None:
    small_coco(tmp_path / "set", 3)
    (tmp_path / "mine.yaml").write_text("data: {format: coco, root: set}\ntrain: {epochs: 1}")
    outcomes = [call(train.main, "mine.yaml", *TINY_MODEL, cwd=tmp_path) for _ in range(2)]
    for outcome, run in zip(outcomes, ("runs/mine", "runs/mine-2"), strict=True):
        assert (outcome.code, outcome.err) == (0, "")
        program = Path(evaluate.__file__)  # not below the folder of this call
        assert re.search(rf"^evaluate: \S*python\S* {program} {run}$", outcome.out, re.MULTILINE)
        assert f"tensorboard --logdir {run}" in outcome.out
        names = {path.name.split(".")[0] for path in (tmp_path / run).rglob("[!.]*")}
        assert names == {"config", "log", "metrics", "checkpoints", "last", "previous", "best", "events"}


@pytest.mark.parametrize("full", ["results.json", "metrics.json"])
def test_what_cannot_be_written_costs_nothing_of_the_rest(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: str
) -> None:
    write = command.write_text

    def fail(path: Path, text: str) -> None:
        if path.name == full:
            raise InputError(f"cannot write {path}: No space left on device")
        write(path, text)

    monkeypatch.setattr(command, "write_text", fail)
    outputs = {"--results": "results.json", "--output": "metrics.json", "--recalibrate": "new.pt"}
    words = [word for option, name in outputs.items() for word in (option, str(tmp_path / name))]
    outcome = call(evaluate.main, "run", *words, cwd=workplace)
    assert outcome.code == 2 and f"{full}: No space left" in outcome.err
    assert {path.name for path in tmp_path.iterdir()} == {*outputs.values()} - {full}
    assert "AP50" in outcome.out
    told = {Path(line.split(": ")[1]).name for line in outcome.out.splitlines()[-2:]}
    assert told == {*outputs.values()} - {full}


def test_evaluate_repeats_the_best_evaluation_of_the_run_exactly(workplace: Path) -> None:
    outcome = call(evaluate.main, "run", "--output", "scores.json", cwd=workplace)
    assert (outcome.code, outcome.err) == (0, "")
    best, last = evaluations(workplace / "run")
    assert best["AP"] > last["AP"] == 0
    scores = json.loads((workplace / "scores.json").read_text())
    assert scores == best
    assert set(scores) == COCO_NAMES | CALIBRATION | {"per_class", "errors"}
    for word in (*COCO_NAMES, "cat", "dog", f"{scores['AP50']:.3f}"):
        assert word in outcome.out


def test_evaluate_gives_raw_scores_where_they_are_wanted(workplace: Path) -> None:
    """Calibration is off: the same metrics, and no calibration error, as no map was used."""
    words = ("run", "eval.calibrate=false", "--output", "raw.json", "--results", "raw_found.json")
    assert call(evaluate.main, *words, cwd=workplace).code == 0
    assert call(evaluate.main, "run", "--results", "calibrated_found.json", cwd=workplace).code == 0
    raw, (best, _) = json.loads((workplace / "raw.json").read_text()), evaluations(workplace / "run")
    assert {name: raw[name] for name in COCO_NAMES} == {name: best[name] for name in COCO_NAMES}
    assert "calibration_error" not in raw
    of_both = [json.loads((workplace / f"{kind}_found.json").read_text()) for kind in ("raw", "calibrated")]
    assert [one["bbox"] for one in of_both[0]] == [one["bbox"] for one in of_both[1]]
    assert [one["score"] for one in of_both[0]] != [one["score"] for one in of_both[1]]


def test_a_resumption_tells_what_it_changes_and_records_no_more_than_was_done(workplace: Path) -> None:
    record = workplace / "run" / "config.yaml"
    before = record.read_text()
    outcome = call(train.main, "--resume", "run", "optimizer.lr=0.5", cwd=workplace)
    assert outcome.code == 0
    assert "changed by this --resume: optimizer.lr=0.5 (was " in outcome.out + outcome.err
    assert "nothing is left to do" in outcome.out + outcome.err
    assert record.read_text() == before


def test_the_device_of_an_evaluation_is_an_option(workplace: Path) -> None:
    assert call(evaluate.main, "run", "--device", "cpu", cwd=workplace).code == 0
    assert_refused(evaluate.main, ("run", "--device", "tpu"), workplace, "tpu")


def test_training_images_can_be_scored_too(workplace: Path) -> None:
    outcome = call(evaluate.main, "run", "--split", "train", cwd=workplace)
    assert outcome.code == 0
    assert "split train of" in outcome.out


def test_the_detections_of_a_run_score_as_the_run(workplace: Path) -> None:
    """Written as COCO results and scored against the annotation file: the same metrics to the last digit."""
    words = ("run", "--output", "direct.json", "--results", "found.json")
    for _ in range(2):  # an earlier file is replaced
        assert call(evaluate.main, *words, cwd=workplace).code == 0
    gt = ("--annotations", "set/annotations/val.json")
    words = ("--predictions", "found.json", *gt, "--output", "again.json")
    assert call(evaluate.main, *words, cwd=workplace).code == 0
    direct, again = (json.loads((workplace / n).read_text()) for n in ("direct.json", "again.json"))
    assert direct["AP"] > 0
    assert {n: direct[n] for n in COCO_NAMES} == {n: again[n] for n in COCO_NAMES}


def test_results_of_another_program_are_not_replaced(workplace: Path) -> None:
    theirs: list[dict[str, Any]] = [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}]
    for content in (json.dumps(theirs), json.dumps(theirs, indent=0), '[\n{"file": "a.jpg"}\n]'):
        (workplace / "theirs.json").write_text(content)
        words = ("run", "--results", "theirs.json")
        assert_refused(
            evaluate.main, words, workplace, "--results", "theirs.json exists and is not an earlier output"
        )


def test_classes_that_the_model_does_not_have_are_not_scored(workplace: Path) -> None:
    for classes in ("[cat, dog]", "null"):
        assert call(evaluate.main, "run", f"data.classes={classes}", cwd=workplace).code == 0
    for classes in ("[cat]", "[dog, cat]", "[bird]"):
        assert_refused(
            evaluate.main, ("run", f"data.classes={classes}"), workplace, "data.classes", "cat, dog"
        )


def test_a_threshold_that_soft_nms_has_not_is_said(workplace: Path, caplog: pytest.LogCaptureFixture) -> None:
    for words, said in ((["eval.nms=soft"], 1), (["eval.nms=hard"], 0)):
        caplog.clear()
        call(evaluate.main, "run", "eval.nms_threshold=0.6", *words, cwd=workplace)
        assert sum("nms_threshold has no effect" in message for message in caplog.messages) == said


def test_evaluate_needs_nothing_but_the_checkpoint_file(workplace: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone.pt"
    alone.write_bytes((workplace / "run" / "checkpoints" / "last.pt").read_bytes())
    outcome = call(evaluate.main, "alone.pt", "--output", "scores.json", cwd=tmp_path)
    assert outcome.code == 0
    assert json.loads((tmp_path / "scores.json").read_text()) == evaluations(workplace / "run")[-1]


def test_evaluate_takes_a_split_and_overrides(workplace: Path, tmp_path: Path) -> None:
    """The test split is the val split here; at most one detection per image makes AR100 equal AR1."""
    words = [str(workplace / "run"), "--split", "test"]
    call(evaluate.main, *words, "--output", "all.json", cwd=tmp_path)
    call(evaluate.main, *words, "eval.detections_per_img=1", "--output", "one.json", cwd=tmp_path)
    every, one = (json.loads((tmp_path / name).read_text()) for name in ("all.json", "one.json"))
    assert every == evaluations(workplace / "run")[0]
    assert one["AR1"] == one["AR100"]


def test_a_finished_run_is_continued_with_more_epochs(workplace: Path, tmp_path: Path) -> None:
    words = ["tiny.yaml", f"run.dir={tmp_path / 'run'}", *TINY_MODEL, "train.epochs=1"]
    call(train.main, *words, cwd=workplace)
    with boxes_lost_at(STEPS // 2):  # counted from the resumption
        outcome = call(train.main, "--resume", str(tmp_path / "run"), "train.epochs=2", cwd=tmp_path)
    assert outcome.code == 0
    assert evaluations(tmp_path / "run") == evaluations(workplace / "run")


@pytest.mark.parametrize(("word", "anew"), [("eval.nms_threshold=0.9", True), ("eval.batch_size=1", False)])
def test_the_best_begins_anew_where_ap_is_measured_otherwise(
    workplace: Path, tmp_path: Path, word: str, anew: bool
) -> None:
    shutil.copytree(workplace / "run", tmp_path / "run")
    with boxes_lost_at(1):  # so that its AP is 0, below the best
        outcome = call(train.main, "--resume", str(tmp_path / "run"), "train.epochs=3", word, cwd=workplace)
    assert outcome.code == 0
    assert ("best.pt starts over" in outcome.err + outcome.out) == anew
    best = torch.load(tmp_path / "run" / "checkpoints" / "best.pt", weights_only=True)
    assert best["step"] == (STEPS + STEPS // 2 if anew else STEPS // 2)


def test_a_damaged_checkpoint_is_told_of_once(
    workplace: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(workplace / "run", tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "last.pt"
    path.write_bytes(path.read_bytes()[:-100])
    with caplog.at_level(logging.WARNING):
        assert call(train.main, "--resume", str(tmp_path / "run"), cwd=workplace).code == 0
    assert caplog.text.count("damaged or incomplete; the run continues from previous.pt") == 1


def test_no_epochs_score_the_weights_that_a_run_begins_with(workplace: Path, tmp_path: Path) -> None:
    """And leave a checkpoint, from which a higher train.epochs continues."""
    best = workplace / "run" / "checkpoints" / "best.pt"
    words = ["tiny.yaml", f"run.dir={tmp_path / 'none'}", *TINY_MODEL, "train.epochs=0", f"model.init={best}"]
    outcome = call(train.main, *words, cwd=workplace)
    assert outcome.code == 0
    (found,), expected = evaluations(tmp_path / "none"), evaluations(workplace / "run")
    assert found["AP"] > 0
    assert {name: found[name] for name in COCO_NAMES} == {name: expected[0][name] for name in COCO_NAMES}
    outcome = call(
        evaluate.main, str(tmp_path / "none"), "--output", str(tmp_path / "out.json"), cwd=workplace
    )
    assert outcome.code == 0
    assert json.loads((tmp_path / "out.json").read_text())["AP"] == found["AP"]
    assert call(train.main, "--resume", str(tmp_path / "none"), "train.epochs=1", cwd=workplace).code == 0
    assert last(tmp_path / "none")["step"] == STEPS // 2


def test_the_best_of_evaluations_without_objects_is_the_newest(
    workplace: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """There is no AP to compare, and nothing to calibrate scores to."""
    annotations = small_coco(tmp_path / "set") / "annotations" / "val.json"
    annotations.write_text(json.dumps({**json.loads(annotations.read_text()), "annotations": []}))
    words = ["tiny.yaml", f"run.dir={tmp_path / 'run'}", *TINY_MODEL, f"data.root={tmp_path / 'set'}"]
    assert call(train.main, *words, cwd=workplace).code == 0
    best = torch.load(tmp_path / "run" / "checkpoints" / "best.pt", weights_only=True)
    assert (best["step"], best["metrics"]["AP"], best["calibration"]) == (STEPS, -1, None)
    with caplog.at_level(logging.WARNING):
        assert call(evaluate.main, str(tmp_path / "run"), cwd=workplace).code == 0
    assert "there are no gt boxes to score against" in caplog.text


def test_perfect_predictions_score_one(tmp_path: Path) -> None:
    truth = coco_dict([[[4.0, 5.0, 20.0, 18.0], [30.0, 10.0, 24.0, 20.0]], [[1.5, 2.5, 30.0, 12.0]], []])
    found = [
        {key: a[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.9}
        for a in truth["annotations"]
    ]
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "found.json").write_text(json.dumps(found))
    words = ["--predictions", "found.json", "--annotations", "truth.json", "--output", "scores.json"]
    outcome = call(evaluate.main, *words, cwd=tmp_path)
    assert outcome.code == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert [scores[name] for name in ("AP", "AP50", "AP75", "APs", "AR100")] == [1.0] * 5
    assert {name: one["gt_boxes"] for name, one in scores["per_class"].items()} == {"cat": 1, "dog": 2}


@pytest.mark.parametrize(
    ("main", "words", "said"),
    [
        (train.main, ["--resume"], "--resume"),
        (train.main, ["configs/demo.yaml", "--epochs", "3"], "--epochs"),
        (evaluate.main, ["run", "--split", "trian"], "'trian'"),
        (evaluate.main, ["--predictions", "a", "--annotations", "b", "--split", "val"], "--split"),
        (evaluate.main, ["--predictions", "a", "--annotations", "b", "--results", "c"], "--results"),
        (evaluate.main, ["a", "--output", "c", "--results", "c"], "are both c"),
        (evaluate.main, ["a", "--report", "r", "--output", "r/c.json"], "--output: r/c.json is in"),
        (evaluate.main, ["a", "--report", "r", "--results", "r/c.json"], "--results: r/c.json is in"),
    ],
)
def test_a_wrong_option_is_one_line(
    tmp_path: Path, main: Callable[[], None], words: list[str], said: str
) -> None:
    assert_one_line(call(main, *words, cwd=tmp_path), said)


@pytest.mark.parametrize(
    ("main", "words", "remedy"),
    [
        (train.main, ["configs/bccd.yaml", "--epochs", "3"], "train.epochs, written KEY=VALUE"),
        (train.main, ["--batch-size=4"], "train.batch_size or eval.batch_size"),
        (train.main, ["--work-dir", "x"], "run.dir"),
        (evaluate.main, ["run", "--batch", "3"], "eval.batch_size=N"),
        (evaluate.main, ["--weights", "best.pt"], "first argument"),
        (predict.main, ["run", "photos", "--conf", "0.5"], "--threshold T"),
        (predict.main, ["--source", "photos", "--weights", "best.pt"], "after the run"),
        (
            predict.main,
            ["run", "photos", "--iou", "0.5"],
            "eval.nms_threshold (for eval.nms=hard), written KEY=VALUE",
        ),
        (export.main, ["run", "--include", "onnx"], "--format"),
    ],
)
def test_an_option_of_another_trainer_is_told_what_to_do_here(
    tmp_path: Path, main: Callable[[], None], words: list[str], remedy: str
) -> None:
    assert_one_line(call(main, *words, cwd=tmp_path), "unrecognized arguments", remedy)


def test_help_comes_at_once_from_any_folder(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, PROJECT / "train.py", "--help"], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "--resume RUN_DIR" in done.stdout
