"""evaluate.py --exported: an exported file scores as its checkpoint does, or is refused in one line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import evaluate
import export
import train
from detector.evaluation.checkpoint import open_checkpoint
from detector.export.formats import torch_serves
from tests.builders import TINY_MODEL, coco_of_sizes
from tests.runs import assert_refused, call

SIZES = ((48, 64), (96, 64), (48, 64), (40, 90), (96, 64))  # height, width: batches are padded
PLAIN = ("train.amp=off", "train.device=cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, its exported file, a raw one, and a run with other classes."""
    folder = tmp_path_factory.mktemp("scoring")
    coco_of_sizes(folder / "set", SIZES)
    (folder / "tiny.yaml").write_text(
        f"data:\n  format: coco\n  root: {folder / 'set'}\n"
        "  transforms: {eval: [ResizeWithin: {long: 80}]}\n"
        "train: {epochs: 1}\neval: {batch_size: 3, nms: hard}\n"
    )
    for run, words in (("run", ()), ("one", ("data.classes=[dog]",))):
        assert call(train.main, "tiny.yaml", f"run.dir={run}", *TINY_MODEL, *words, cwd=folder).code == 0
    for name, words in (("model", ()), ("raw", ("--raw",))):
        words = ("run", "--output", f"{name}.torchscript", *words)
        assert call(export.main, *words, cwd=folder).code == 0
    return folder


def found(place: Path, name: str, *words: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Detections, sorted by image and class, and metrics."""
    files = ("--results", f"{name}.json", "--output", f"{name}.metrics.json")
    done = call(evaluate.main, "run", *files, *words, cwd=place)
    assert done.code == 0, done.err
    results, metrics = (json.loads((place / file).read_text()) for file in files[1::2])
    return sorted(results, key=lambda r: (r["image_id"], r["category_id"], -r["score"])), metrics


def alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return (
        all(one[key] == other[key] for key in ("image_id", "category_id"))
        and np.allclose(one["bbox"], other["bbox"], rtol=0, atol=0.02)
        and abs(one["score"] - other["score"]) < 1e-4
    )


@pytest.mark.parametrize("words", [(), ("eval.tile=64", "eval.tile_overlap=32")])
def test_a_file_scores_what_its_checkpoint_scores(place: Path, words: tuple[str, ...]) -> None:
    one, metrics = found(place, "plain", *PLAIN, *words)
    other, its_metrics = found(place, "exported", "--exported", "model.torchscript", *words)
    assert len(one) == len(other) > 50
    for expected in one:  # in any order: rounding decides between equal scores
        other.remove(next(given for given in other if alike(given, expected)))
    assert its_metrics["AR100"] == pytest.approx(metrics["AR100"], abs=1e-9)
    assert its_metrics["AP"] == pytest.approx(metrics["AP"], abs=1e-6)
    assert its_metrics["calibration_error"] == pytest.approx(metrics["calibration_error"], abs=1e-4)


def test_tiles_are_joined_by_the_limits_of_the_file(place: Path) -> None:
    """The file gives fewer detections than its checkpoint."""
    words = ("run", "eval.detections_per_img=20", "--output", "few.torchscript")
    assert call(export.main, *words, cwd=place).code == 0
    tiles = ("eval.tile=64", "eval.tile_overlap=32")
    expected, _ = found(place, "plain", *PLAIN, *tiles, "eval.detections_per_img=20")
    given, _ = found(place, "few", "--exported", "few.torchscript", *tiles)
    more, _ = found(place, "more", "--exported", "model.torchscript", *tiles)
    assert len(given) == len(expected) < len(more)
    # The best of all tiles are chosen by raw scores; those of the file are calibrated for each class.
    for one, other in zip(expected, given, strict=True):
        assert one["category_id"] == other["category_id"]
        assert other["score"] == pytest.approx(one["score"], abs=1e-4)


def test_a_file_is_judged_at_thresholds_of_its_own(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    """On raw scores, thresholds for calibrated ones would find nothing, or everything."""
    words = ("run", "eval.calibrate=false", "--output", "uncalibrated.torchscript")
    assert call(export.main, *words, cwd=place).code == 0
    caplog.clear()
    found(place, "own", "--exported", "uncalibrated.torchscript")
    metrics = json.loads((place / "own.metrics.json").read_text())
    raw = open_checkpoint(place / "run", ["eval.calibrate=false"])
    assert {n: one["threshold"] for n, one in metrics["at_thresholds"].items()} == dict(
        zip(raw.classes, raw.thresholds, strict=True)
    )
    assert raw.thresholds != open_checkpoint(place / "run", []).thresholds
    assert "has its own calibration or thresholds" in caplog.text


def test_the_report_names_the_file(place: Path) -> None:
    words = ("run", "--exported", "model.torchscript", "--report", "page")
    assert call(evaluate.main, *words, cwd=place).code == 0
    page = (place / "page" / "index.html").read_text()
    assert "<h1>Evaluation of model.torchscript</h1>" in page
    assert "<dt>exported file</dt><dd>model.torchscript</dd><dt>checkpoint</dt><dd>run</dd>" in page


def test_a_file_that_finds_other_things_scores_otherwise(place: Path) -> None:
    """What is scored is the file, not the checkpoint: one with all boxes outside the images finds nothing."""

    class Moved(torch.nn.Module):
        def __init__(self, model: torch.jit.ScriptModule) -> None:
            super().__init__()
            self.model = model

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
            boxes, scores, labels, count = self.model(images)
            return boxes + 1000.0, scores, labels, count

    model = torch.jit.load(place / "model.torchscript")
    moved = torch.jit.trace(Moved(model), torch.zeros(1, 3, 64, 64, dtype=torch.uint8), check_trace=False)
    torch.jit.save(moved, place / "moved.torchscript")  # without metadata, as converters leave it
    _, metrics = found(place, "as_it_is", "--exported", "model.torchscript")
    _, its_metrics = found(place, "moved", "--exported", "moved.torchscript")
    assert metrics["AR100"] > 0 == its_metrics["AR100"]


def test_what_a_converter_adds_to_the_metadata_is_passed_over(place: Path) -> None:
    """onnxruntime's quantisation adds names of its own, some without a value."""
    if not torch_serves("onnx"):
        pytest.skip(f"PyTorch {torch.__version__} is too old")
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    assert call(export.main, "run", "eval.nms=hard", "--output", "model.onnx", cwd=place).code == 0
    model = onnx.load(place / "model.onnx")
    for name, value in (("onnx.infer", "onnxruntime.quant"), ("onnx.quant.pre_process", "")):
        entry = model.metadata_props.add()
        entry.key, entry.value = name, value
    onnx.save(model, place / "converted.onnx")
    one, metrics = found(place, "plain", *PLAIN)
    other, its_metrics = found(place, "converted", "--exported", "converted.onnx")
    assert len(one) == len(other)
    assert its_metrics["AR100"] == pytest.approx(metrics["AR100"], abs=1e-9)


def test_a_file_for_images_of_another_size_is_said(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    words = ("run", "--exported", "model.torchscript", "data.transforms.eval=[{ResizeWithin: {long: 96}}]")
    assert call(evaluate.main, *words, cwd=place).code == 0
    assert (
        '[{"ResizeWithin": {"long": 80}}], but gets them resized with [{"ResizeWithin": {"long": 96}}]'
        in caplog.text
    )


WRONG = {
    "raw": (("run", "--exported", "raw.torchscript"), ("raw.torchscript", "--raw")),
    "other classes": (
        ("one", "--exported", "model.torchscript"),
        ("finds the classes cat, dog, but", "best.pt finds dog"),
    ),
    "damaged": (("run", "--exported", "damaged.torchscript"), ("damaged.torchscript", "cannot be run")),
    "missing": (("run", "--exported", "none.torchscript"), ("none.torchscript", "No such file")),
    "a checkpoint": (("run", "--exported", "run/checkpoints/best.pt"), (".onnx or .torchscript",)),
    "its own": (("run", "--exported", "model.torchscript", "eval.nms=soft"), ("eval.nms", "export.py")),
    "elsewhere": (("run", "--exported", "model.torchscript", "--device", "cuda"), ("device=cuda", "the CPU")),
    "in bf16": (
        ("run", "--exported", "model.torchscript", "train.amp=bf16"),
        ("train.amp=bf16", "precision"),
    ),
    "alone": (("--exported", "model.torchscript"), ("run folder",)),
    "two": (("run", "one", "--exported", "model.torchscript"), ("--exported", "the checkpoint")),
    "to calibrate": (("run", "--exported", "model.torchscript", "--recalibrate", "r.pt"), ("--recalibrate",)),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_scored_is_refused(place: Path, case: str) -> None:
    (place / "damaged.torchscript").write_bytes((place / "model.torchscript").read_bytes()[:5000])
    words, named = WRONG[case]
    assert_refused(evaluate.main, words, place, *named)
