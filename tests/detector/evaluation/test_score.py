"""From a network to scores: pixels of the file, the settings of evaluation, metrics and calibration."""

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from data.loader import DetectionDataset
from data.sample import Batch, DetectionSet, Sample, collate
from detector.builders.data import build_set
from detector.config import Config
from detector.evaluation.inference import Predictions, best_first
from detector.evaluation.score import predict, score
from detector.retinanet import HeadOutputs
from detector.training.processes import Processes
from detector.training.validation import Validation
from errors import InputError
from tests.builders import small_coco, voc_xml, write_voc
from tests.runs import tiny_config

CPU = torch.device("cpu")


class Says(nn.Module):
    """A network of one class that gives the same output for every image."""

    def __init__(self, anchors: list[list[float]], logits: list[float], dy: list[float]) -> None:
        super().__init__()
        self.anchors, self.logits, self.dy = (torch.tensor(values) for values in (anchors, logits, dy))

    def forward(self, images: Tensor, sizes: Tensor) -> HeadOutputs:
        deltas = torch.zeros(len(self.dy), 4)
        deltas[:, 1] = self.dy
        levels = (len(self.dy) - 1, 1)  # the last anchor is on a level of its own
        return HeadOutputs(self.logits[None, :, None], deltas[None], self.anchors, levels)


def empty(size: tuple[int, int], original: tuple[int, int]) -> Batch:
    """A batch of one image without boxes; height and width as the network sees it, and of the file."""
    nothing = np.zeros(0, np.int64)
    boxes, ignore = np.zeros((0, 4), np.float32), np.zeros(0, bool)
    return collate([Sample(0, 0, np.zeros((*size, 3), np.uint8), original, boxes, nothing, ignore)])


def test_boxes_are_in_pixels_of_the_file() -> None:
    """The network sees half the width and a third of the height: x doubles, y triples."""
    model = Says([[8.0, 4, 24, 12], [0, 0, 4, 16]], [1.0, 0.0], [0.0, 0.0])
    (found,) = predict(Config(), model, [empty((16, 32), (48, 64))], CPU)  # type: ignore[arg-type]
    assert found.boxes.tolist() == [[16, 12, 48, 36], [0, 0, 8, 48]]


@pytest.mark.parametrize("words", [(), ("eval.nms=soft",), ("eval.score_threshold=0.1",)])
@pytest.mark.parametrize(("logit", "dy"), [(math.nan, 0.0), (math.inf, 0.0), (1.0, math.nan)])
def test_a_network_that_gives_nan_is_one_line(logit: float, dy: float, words: tuple[str, ...]) -> None:
    model = Says([[8.0, 4, 24, 12], [0, 0, 4, 16]], [logit, 0.0], [dy, 0.0])
    config = tiny_config(Path(), Path(), *words)
    with pytest.raises(InputError, match="the network returns NaN or infinite"):
        list(predict(config, model, [empty((16, 32), (48, 64))], CPU))  # type: ignore[arg-type]


@pytest.mark.parametrize("words", [(), ("eval.nms=soft",)])
def test_a_logit_of_minus_infinity_is_no_detection_and_no_fault(words: tuple[str, ...]) -> None:
    """fp16 may give such logits."""
    model = Says([[8.0, 4, 24, 12], [0, 0, 4, 16]], [-math.inf, 0.0], [0.0, 0.0])
    config = tiny_config(Path(), Path(), *words)
    (found,) = predict(config, model, [empty((16, 32), (16, 32))], CPU)  # type: ignore[arg-type]
    assert found.boxes.tolist() == [[0, 0, 4, 16]] and found.scores.tolist() == [0.5]


def test_the_best_of_each_image_comes_first_and_the_images_stay_in_their_order() -> None:
    """The images need not be in the order of their rows; equal scores keep their order."""
    rows = np.array([5, 5, 2, 2, 2, 7])
    scores = np.array([0.1, 0.9, 0.5, 0.7, 0.5, 0.8])
    boxes = np.arange(6.0)[:, None] + np.zeros(4)
    found = best_first(Predictions(rows, boxes, scores, np.arange(6)))
    assert found.labels.tolist() == found.boxes[:, 0].tolist() == [1, 0, 3, 2, 4, 5]
    assert found.rows.tolist() == rows.tolist()
    assert found.scores.tolist() == [0.9, 0.1, 0.7, 0.5, 0.5, 0.8]


@pytest.mark.parametrize(
    ("words", "bottoms"),
    [
        ((), [20, 8, 62]),
        (("eval.nms_threshold=0.3",), [20, 62]),
        (("eval.nms_threshold=0.95",), [20, 18, 8, 62]),
        (("eval.nms=soft",), [20, 18, 8, 62]),
        (("eval.score_threshold=0.6",), [20, 8]),
        (("eval.topk_candidates=1",), [20, 62]),
        (("eval.detections_per_img=1",), [20]),
        (("model.box_std=[0.1, 0.15, 0.2, 0.2]",), [20, 8, 63]),
    ],
)
def test_every_setting_of_evaluation_reaches_the_detections(
    tmp_path: Path, words: tuple[str, ...], bottoms: list[int]
) -> None:
    """IoU of the first box with the next two: 0.9 and 0.4. The last moves by dy * std * 20 px; score 0.5."""
    anchors = [[0.0, 0, 20, 20], [0, 0, 20, 18], [0, 0, 20, 8], [40, 40, 60, 60]]
    model = Says(anchors, [3.0, 2.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0])
    config = tiny_config(tmp_path, tmp_path / "run", *words)
    (found,) = predict(config, model, [empty((64, 64), (64, 64))], CPU)  # type: ignore[arg-type]
    assert sorted(found.boxes[:, 3].tolist()) == pytest.approx(sorted(bottoms))


def two_of_a_class(root: Path, *words: str) -> tuple[Config, DetectionSet, Predictions]:
    """Two cats, and three detections of equal score: the first is right, the others lie elsewhere."""
    boxes = ((2, 3, 22, 23), (30, 10, 60, 40))
    xml = voc_xml([("cat", box, 0) for box in boxes])
    write_voc(root, {"0": xml}, {"train": ["0"], "val": ["0"]})
    config = tiny_config(root, root / "run", "data.format=voc", *words)
    records = build_set(config.data, "val")
    found = np.stack([records.boxes[0], records.boxes[0] + 25, records.boxes[0] + [0, 25, 0, 25]])
    rows = np.zeros(3, np.int64)
    return config, records, Predictions(rows, found, np.full(3, 0.9), rows)


def test_the_cache_is_written_by_the_main_process_first(tmp_path: Path) -> None:
    """On a disk without locks, the other processes would remove what it is writing."""
    made: list[Any] = []

    class InTurns(Processes):
        def main_first(self, work: Callable[[], Any]) -> Any:
            made.append(work())
            return made[-1]

    config, records, _ = two_of_a_class(tmp_path, "data.cache=disk", f"data.cache_dir={tmp_path / 'cache'}")
    validation = Validation(config, records, CPU, InTurns())
    dataset = validation._loader.dataset
    assert isinstance(dataset, DetectionDataset) and [dataset.cache] == made


@pytest.mark.parametrize("calibrate", [True, False])
def test_scores_of_a_voc_set_by_hand(tmp_path: Path, calibrate: bool) -> None:
    """Precision 1 up to a recall of 1/2: half the area, 6 of 11 points. One detection of three is right.

    The map fitted to so few is one knot: 1.5 of 4, with half a success and half a failure added. With a
    single image there are no others to fit a map to, so no error on other images is given.
    """
    config, records, predictions = two_of_a_class(tmp_path, f"eval.calibrate={str(calibrate).lower()}")
    validation = Validation(config, records, CPU, Processes())
    scores, calibration = validation.judge([[predictions]])
    expected = {"VOC07": 6 / 11, "VOC12": 1 / 2}
    expected["calibration_error_raw"] = 0.9 - 1 / 3
    if calibrate:
        expected["calibration_error"] = 1.5 / 4 - 1 / 3
    assert scores.extra == pytest.approx(expected)
    assert scores.predictions.scores == pytest.approx(np.full(3, 1.5 / 4 if calibrate else 0.9))
    assert calibration is not None  # a checkpoint has it in any case
    assert calibration(predictions.scores, predictions.labels) == pytest.approx(np.full(3, 1.5 / 4))


def test_pictures_of_an_evaluation_are_not_augmented(tmp_path: Path) -> None:
    """And there are fewer of them than usual if the set has fewer images."""
    shown = []
    for words in (
        "data.transforms.train=[]",
        "data.transforms.train=[{HorizontalFlip: {p: 1}}, {CLAHE: {p: 1}}]",
    ):
        config, records, predictions = two_of_a_class(tmp_path, words)
        validation = Validation(config, records, CPU, Processes())
        shown.append(validation.pictures(validation.judge([[predictions]])[0]))
    assert list(shown[0]) == list(shown[1]) == ["0_0"]
    np.testing.assert_array_equal(shown[0]["0_0"], shown[1]["0_0"])


def test_a_middling_batch_is_timed_after_the_largest_and_all_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seven images in batches of three: batches of 1, 3 and 3."""
    seen: list[int] = []

    def look(config: Config, model: Any, batches: list[Batch], device: torch.device) -> list[Predictions]:
        seen.extend(len(batch.indices) for batch in batches)
        return []

    monkeypatch.setattr("detector.training.validation.predict", look)
    monkeypatch.setattr(Validation, "_ready", lambda *_: None)
    config = tiny_config(small_coco(tmp_path / "set", 7), tmp_path / "run", "eval.batch_size=3")
    nothing: Any = None
    _, count = Validation(config, build_set(config.data, "val"), CPU, Processes()).time_batch(nothing)
    assert (seen, count) == ([3, 3], 3)


def test_a_process_without_a_batch_takes_no_time(tmp_path: Path) -> None:
    """There are more processes than batches."""
    config, records, _ = two_of_a_class(tmp_path)
    nothing: Any = None
    assert Validation(config, records, CPU, Processes(1, 2)).time_batch(nothing) == (0.0, 0)


def test_the_backend_of_the_metrics_is_the_configured_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    config, records, predictions = two_of_a_class(tmp_path, "eval.backend=faster_coco_eval")
    with pytest.raises(InputError, match=r"eval\.backend: faster_coco_eval is not installed"):
        score(config, records, predictions)
