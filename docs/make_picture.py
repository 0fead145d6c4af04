"""The picture of the README: python -m docs.make_picture RUN_DIR docs/detections.jpg [KEY=VALUE ...]."""

import argparse
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.io import write_jpeg
from torchvision.utils import draw_bounding_boxes, make_grid

from data.loader import DetectionDataset
from detector.build import build_pipeline
from detector.evaluation.checkpoint import evaluate_checkpoint
from detector.evaluation.coco import CocoResult
from detector.evaluation.inference import Predictions
from doors import run_door

_ROWS, _COLUMNS = 2, 3
_GT_COLOUR, _FOUND_COLOUR = "#ffffff", "#ff5a00"


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw gt and detections of validation images into one JPEG.")
    parser.add_argument("run", type=Path, metavar="RUN_DIR_OR_CHECKPOINT")
    parser.add_argument("output", type=Path, metavar="FILE.jpg")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    a = parser.parse_intermixed_args()
    done = evaluate_checkpoint(a.run, a.overrides, "val")
    dataset = DetectionDataset(done.records, build_pipeline(done.config.data, training=False), seed=0)
    # Evenly spread over the split: neither the best nor the worst.
    rows = np.linspace(0, len(done.records) - 1, _ROWS * _COLUMNS + 2).round().astype(int)[1:-1]
    drawn = _pictures(dataset, rows, done.scores.predictions, done.scores.coco, enlarge=2)
    grid = make_grid(_same_size(drawn), nrow=_COLUMNS, padding=4, pad_value=255)
    write_jpeg(grid, str(a.output), quality=85)


def _same_size(images: list[Tensor]) -> list[Tensor]:
    height, width = (max(image.shape[side] for image in images) for side in (1, 2))
    return [F.pad(i, (0, width - i.shape[2], 0, height - i.shape[1]), value=255) for i in images]


def _pictures(
    dataset: DetectionDataset,
    rows: Iterable[int],
    predictions: Predictions,
    result: CocoResult,
    enlarge: int,
) -> list[Tensor]:
    """The images of some rows with gt and the detections above each class's best threshold.

    Returns uint8 [3, H, W] each, `enlarge` times the size that the dataset resizes them to.
    """
    classes = dataset.records.classes
    thresholds = torch.tensor([result.per_class[name].best_threshold for name in classes])
    drawn = []
    for row in rows:
        sample = dataset.sample(0, row)
        mine = predictions.rows == row
        labels = torch.from_numpy(predictions.labels[mine])
        scores = torch.from_numpy(predictions.scores[mine])
        shown = (scores >= thresholds[labels]) & (thresholds[labels] >= 0)
        image = torch.from_numpy(sample.image).permute(2, 0, 1)
        image = image.repeat_interleave(enlarge, 1).repeat_interleave(enlarge, 2)
        height, width = sample.original_size
        factor = torch.tensor([image.shape[2] / width, image.shape[1] / height]).repeat(2)
        boxes = torch.from_numpy(predictions.boxes[mine]) * factor
        gt_boxes = torch.from_numpy(sample.boxes) * enlarge
        drawn.append(_draw(image, gt_boxes, boxes[shown], labels[shown], scores[shown], classes))
    return drawn


def _draw(
    image: Tensor, gt_boxes: Tensor, boxes: Tensor, labels: Tensor, scores: Tensor, classes: tuple[str, ...]
) -> Tensor:
    """gt in white, detections in orange with class and score: uint8 [3, H, W] -> the same, drawn on.

    gt_boxes, boxes [K, 4] xyxy pixels, labels int64 [K], scores [K].
    """
    if len(gt_boxes):
        image = draw_bounding_boxes(image, gt_boxes, colors=_GT_COLOUR, width=1)
    if len(boxes):
        names = [f"{classes[label]} {score:.2f}" for label, score in zip(labels, scores, strict=True)]
        image = draw_bounding_boxes(image, boxes, labels=names, colors=_FOUND_COLOUR, width=2)
    return image


if __name__ == "__main__":
    run_door(main)
