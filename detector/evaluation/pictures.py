"""Images with gt and detections drawn on them."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torchvision.utils import draw_bounding_boxes

from data.loader import DetectionDataset
from detector.evaluation.coco import CocoResult
from detector.evaluation.inference import Predictions

_GT_COLOUR, _FOUND_COLOUR = "#ffffff", "#ff5a00"


def pictures(
    dataset: DetectionDataset,
    rows: Iterable[int],
    predictions: Predictions,
    result: CocoResult,
    enlarge: int = 1,
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
        drawn.append(draw(image, gt_boxes, boxes[shown], labels[shown], scores[shown], classes))
    return drawn


def draw(
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
