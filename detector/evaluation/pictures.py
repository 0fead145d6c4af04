"""Images with gt and detections drawn on them."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from data.loader import DetectionDataset
from detector.evaluation.coco import CocoResult
from detector.evaluation.inference import Predictions
from detector.prediction.drawing import draw_boxes


def pictures(
    dataset: DetectionDataset, rows: Iterable[int], predictions: Predictions, result: CocoResult
) -> list[Tensor]:
    """The images of some rows with gt, dashed, and the detections above each class's best threshold.

    Returns uint8 [3, H, W] each; where the dataset resizes them to less than 512 px, enlarged.
    """
    classes = dataset.records.classes
    thresholds = np.array([result.per_class[name].best_threshold for name in classes])
    drawn = []
    for row in rows:
        sample = dataset.sample(0, row)
        mine = predictions.rows == row
        labels, scores = predictions.labels[mine], predictions.scores[mine]
        shown = (scores >= thresholds[labels]) & (thresholds[labels] >= 0)
        height, width = sample.original_size
        factors = np.tile([sample.image.shape[1] / width, sample.image.shape[0] / height], 2)
        boxes = predictions.boxes[mine][shown] * factors
        texts = [f"{classes[n]} {s:.2f}" for n, s in zip(labels[shown], scores[shown], strict=True)]
        picture = draw_boxes(
            sample.image,
            np.concatenate([boxes, sample.boxes]),
            np.concatenate([labels[shown], sample.labels]),
            [*texts, *[""] * len(sample.boxes)],
            dashed=np.arange(len(texts) + len(sample.boxes)) >= len(texts),
        )
        drawn.append(torch.from_numpy(picture).permute(2, 0, 1))
    return drawn
