"""The picture of the README: python -m docs.make_picture RUN_DIR docs/detections.jpg [KEY=VALUE ...]."""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.io import write_jpeg
from torchvision.utils import make_grid

from data.drawing import draw_boxes
from data.loader import DetectionDataset
from detector.builders.data import build_pipeline
from detector.evaluation.checkpoint import CheckpointScores, evaluate_checkpoint
from detector.evaluation.pictures import above_thresholds
from doors import run_door

_ROWS, _COLUMNS = 2, 3


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
    drawn = [_drawn(dataset, row, done) for row in rows]
    grid = make_grid(_same_size(drawn), nrow=_COLUMNS, padding=4, pad_value=255)
    write_jpeg(grid, str(a.output), quality=85)
    print(a.output)


def _drawn(dataset: DetectionDataset, row: int, done: CheckpointScores) -> Tensor:
    """An image with gt, dashed, and the detections above each class's best threshold: uint8 [3, H, W]."""
    sample, scores = dataset.sample(0, row), done.scores
    height, width = sample.image.shape[:2]
    boxes, labels, texts = above_thresholds(scores.predictions, row, scores.coco, sample.original_size)
    picture = draw_boxes(
        sample.image,
        np.concatenate([boxes * [width, height, width, height], sample.boxes]),
        np.concatenate([labels, sample.labels]),
        [*texts, *[""] * len(sample.boxes)],
        dashed=np.arange(len(texts) + len(sample.boxes)) >= len(texts),
    )
    return torch.from_numpy(picture).permute(2, 0, 1)


def _same_size(images: list[Tensor]) -> list[Tensor]:
    height, width = (max(image.shape[side] for image in images) for side in (1, 2))
    return [F.pad(i, (0, width - i.shape[2], 0, height - i.shape[1]), value=255) for i in images]


if __name__ == "__main__":
    run_door(main)
