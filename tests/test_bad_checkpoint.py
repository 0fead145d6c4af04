"""Runs and checkpoints that cannot be used: exit code 2, one line that names them, nothing left behind."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import evaluate
import train
from tests.builders import TINY_MODEL, coco_dict, small_coco
from tests.runs import assert_refused, call

YAML = "data: {format: coco, root: set}\ntrain: {epochs: 1}\n"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set, tiny.yaml and a finished run in run/. Tests only read it."""
    folder = tmp_path_factory.mktemp("finished")
    small_coco(folder / "set", 4)
    (folder / "tiny.yaml").write_text(YAML)
    assert call(train.main, "tiny.yaml", "run.dir=run", *TINY_MODEL, cwd=folder).code == 0
    return folder


# ------------------------------------------------------------------------ resuming


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--resume", "nowhere"), ("--resume", "nowhere", "does not exist")),
        (("--resume", "set"), ("--resume", "set", "checkpoints/last.pt")),
        (("--resume", "run/checkpoints/best.pt"), ("--resume", "best.pt", "the folder of the run")),
        (("--resume", "run/checkpoints/previous.pt"), ("--resume", "previous.pt", "checkpoints/last.pt")),
        (("--resume", "tiny.yaml"), ("--resume", "tiny.yaml", "checkpoints/last.pt")),
        (("--resume", "run", "run.dir=other"), ("--resume", "run.dir")),
        (("--resume", "run", "train.batch_size=4"), ("run", "an epoch had 2 steps", "train.batch_size")),
        (("tiny.yaml", "--resume", "run"), ("--resume", "CONFIG")),
        (("--resume", "run", "train.epoch=3"), ("'train.epoch'", "'train.epochs'")),
        (("--resume", "run", "model.backbone=resnet34"), ("run", "model.backbone is resnet18 in this run")),
        (("--resume", "run", "model.head_width=32"), ("run", "model.head_width is 16 in this run")),
        (("--resume", "run", "model.frozen_stages=1"), ("run", "model.frozen_stages is 0 in this run")),
        (("--resume", "run", "model.init=best.pt"), ("run", "model.init is None in this run", "a new run")),
        (("--resume", "run", "model.anchors.ratios=[1, 2, 3]"), ("run", "model.anchors", "model.init")),
        (("--resume", "run", "model.box_std=[1, 1, 1, 1]"), ("run", "model.box_std", "model.init")),
        (("--resume", "run", "train.ema_decay=0.9"), ("run", "train.ema_decay")),
        (("--resume", "run", "optimizer.name=adamw", "train.epochs=2"), ("run", "optimizer")),
        (
            ("--resume", "run", "optimizer.decay_norm_and_bias=false", "train.epochs=2"),
            ("optimizer.decay_norm_and_bias is True in this run",),
        ),
        (
            ("--resume", "run", "optimizer.backbone_lr_factor=0.5", "train.epochs=2"),
            ("optimizer.backbone_lr_factor is 1.0 in this run",),
        ),
        (("--resume", "run", "data.root=nowhere"), ("data.root", "nowhere")),
        (
            ("tiny.yaml", "run.dir=run", *TINY_MODEL),
            ("run.dir", "run", "is not empty", "--resume run"),
        ),
    ],
)
def test_a_run_that_cannot_go_on_is_left_as_it_is(
    finished: Path, words: tuple[str, ...], named: tuple[str, ...]
) -> None:
    assert_refused(train.main, words, finished, *named)


@pytest.mark.parametrize("damage", ["truncated", "no training state"])
def test_a_damaged_last_checkpoint_does_not_resume(finished: Path, tmp_path: Path, damage: str) -> None:
    checkpoints = tmp_path / "run" / "checkpoints"
    checkpoints.mkdir(parents=True)
    whole = finished / "run" / "checkpoints" / "best.pt"  # which holds no training state
    part = whole.read_bytes() if damage == "no training state" else whole.read_bytes()[:9999]
    (checkpoints / "last.pt").write_bytes(part)
    words = ("--resume", "run", f"data.root={finished / 'set'}")
    assert_refused(train.main, words, tmp_path, "run", damage if damage[0] == "n" else "damaged")


@pytest.mark.parametrize(
    ("place", "where"),
    [
        ("run", "."),
        ("run/checkpoints/last.pt", "."),
        ("checkpoints/last.pt", "run"),
        ("last.pt", "run/checkpoints"),
        ("../last.pt", "run/checkpoints/below"),
    ],
)
def test_a_run_that_has_ended_says_so(finished: Path, tmp_path: Path, place: str, where: str) -> None:
    """A run may also be named by its newest checkpoint, from any folder."""
    shutil.copytree(finished / "run", tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "below").mkdir()
    outcome = call(train.main, "--resume", place, f"data.root={finished / 'set'}", cwd=tmp_path / where)
    assert outcome.code == 0
    assert "nothing is left to do" in outcome.out


# ------------------------------------------------------------------------ evaluating


def test_a_run_without_an_evaluation_names_what_it_has(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "run", tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "best.pt").unlink()
    assert_refused(evaluate.main, ("run",), tmp_path, "not been evaluated", "run/checkpoints/last.pt")


def test_of_a_folder_of_runs_these_are_named(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "run", tmp_path / "runs" / "mine")
    assert_refused(evaluate.main, ("runs",), tmp_path, "runs has no checkpoints", "there are runs/mine")


@pytest.mark.parametrize("text", ["data: {root: set}\n", "# Title\n", "", "a,b\n1,2\n", "(", "}"])
def test_a_text_file_is_no_checkpoint(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.yaml").write_text(text)
    assert_refused(evaluate.main, ("run.yaml",), tmp_path, "run.yaml is not a checkpoint; give a run folder")


CHECKPOINT = "run/checkpoints/best.pt"
DETECTION = {"image_id": 10, "category_id": 3, "bbox": [1, 2, 3, 4], "score": 0.5}


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ((), ("run folder", "--predictions")),
        (("--predictions", "found.json"), ("--annotations",)),
        (("--annotations", "found.json"), ("--predictions",)),
        (("run", "--predictions", "a.json", "--annotations", "b.json"), ("--predictions", "model")),
        (("run", "--output", "nowhere/scores.json"), ("--output", "nowhere", "does not exist")),
        (("run", "--split", "test"), ("data.splits.test",)),
        (("nowhere",), ("nowhere", "does not exist")),
        (("set",), ("set", "checkpoints/best.pt")),
        (("tiny.yaml",), ("tiny.yaml", "is not a checkpoint")),
        (("run", "model.backbone=resnet34"), (CHECKPOINT, "model.backbone", "'resnet18'")),
        (("run", "model.anchors.ratios=[1, 2, 3]"), (CHECKPOINT, "model.anchors", "[0.5, 1.0, 2.0]")),
        (("run", "model.box_std=[1, 1, 1, 1]"), (CHECKPOINT, "model.box_std")),
        (("run", "eval.nms_iou=0.5"), ("'eval.nms_iou'",)),
        (("run", "data.root=nowhere"), ("data.root", "nowhere")),
    ],
)
def test_an_evaluation_that_cannot_be_is_refused(
    finished: Path, words: tuple[str, ...], named: tuple[str, ...]
) -> None:
    assert_refused(evaluate.main, words, finished, *named)


def drop(content: dict[str, Any]) -> None:
    del content["model"]["box_head.output.bias"]


def add(content: dict[str, Any]) -> None:
    content["model"]["extra.weight"] = torch.ones(1)


def third_class(content: dict[str, Any]) -> None:
    content["classes"].append("cow")
    content["category_ids"].append(9)


@pytest.mark.parametrize(
    ("tamper", "named"),
    [
        (drop, ("has no 'box_head.output.bias'", "another architecture")),
        (add, ("'extra.weight'", "another architecture")),
        (third_class, ("'class_head.output.weight'", "number of classes")),
        (lambda content: content.pop("config"), ("not a checkpoint of this project",)),
        (lambda content: content.update(format=2), ("has format 2, but this version reads 1",)),
        (lambda content: content["classes"].append("cow"), ("altered", "3 classes but 2 category_ids")),
        (lambda content: content.update(classes=["cat", "cat"]), ("altered", "not distinct names")),
        (lambda content: content["model"].update(x=1), ("altered", "more than tensors")),
        (lambda content: content.update(metrics=[1]), ("altered", "metrics are a list")),
        (lambda content: content.update(metrics={"per_class": 3}), ("altered", "no per_class")),
        (lambda content: content.update(evaluated="x"), ("altered", "evaluated is not a step")),
        (lambda content: content.update(calibration=3), ("altered", "its calibration is malformed")),
        (
            lambda content: content.update(calibration=[{"logits": []}]),
            ("altered", "its calibration is malformed"),
        ),
        (lambda content: content.update(category_ids=[1, 1]), ("altered", "not distinct whole numbers")),
        (lambda content: content.update(format="1"), ("has format '1', but this version reads 1",)),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(
    finished: Path, tmp_path: Path, tamper: Callable[[dict[str, Any]], Any], named: tuple[str, ...]
) -> None:
    content = torch.load(finished / CHECKPOINT, weights_only=True)
    tamper(content)
    torch.save(content, tmp_path / "odd.pt")
    assert_refused(evaluate.main, ("odd.pt",), tmp_path, "odd.pt", *named)


class MakesFile:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("marker"),)


@pytest.mark.parametrize(
    ("door", "words"),
    [
        (evaluate.main, ("evil.pt",)),
        (train.main, ("--resume", "evil")),
        (train.main, ("tiny.yaml", "run.dir=new", *TINY_MODEL, "model.init=evil.pt")),
    ],
)
def test_code_in_a_checkpoint_is_not_run(
    tmp_path: Path, door: Callable[[], None], words: tuple[str, ...]
) -> None:
    small_coco(tmp_path / "set", 4)
    (tmp_path / "tiny.yaml").write_text(YAML)
    (tmp_path / "evil" / "checkpoints").mkdir(parents=True)
    for path in (tmp_path / "evil.pt", tmp_path / "evil" / "checkpoints" / "last.pt"):
        torch.save({"model": MakesFile()}, path)
    assert_refused(door, words, tmp_path, ".pt", "could run code")
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    ("results", "named"),
    [
        (None, ("results file", "found.json", "does not exist")),
        ("{", ("found.json", "not valid JSON")),
        ("{}", ("found.json", "list")),
        ([{**DETECTION, "image_id": 99}], ("found.json", "detection 0", "image id 99")),
        ([DETECTION, {**DETECTION, "category_id": 99}], ("found.json", "detection 1", "category id 99")),
        ([{**DETECTION, "score": float("nan")}], ("found.json", "detection 0", "finite")),
        ([{"image_id": 10}], ("found.json", "'category_id'")),
    ],
)
def test_wrong_results_are_refused(tmp_path: Path, results: Any, named: tuple[str, ...]) -> None:
    if results is not None:
        (tmp_path / "found.json").write_text(results if isinstance(results, str) else json.dumps(results))
    (tmp_path / "truth.json").write_text(json.dumps(coco_dict([[[1.0, 2.0, 3.0, 4.0]]])))
    words = ("--predictions", "found.json", "--annotations", "truth.json", "--output", "scores.json")
    assert_refused(evaluate.main, words, tmp_path, *named)
