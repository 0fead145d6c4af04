"""Draws gt and detections on images, for TensorBoard."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from data.drawing import draw_boxes
from data.loader import DetectionDataset
from detector.evaluation.coco import CocoResult
from detector.evaluation.inference import Predictions

_MOST_PX = 640  # long side of each half: labels are readable, and writing is fast
_GAP_PX, _TITLE_PX = 8, 22


def gt_beside_found(
    dataset: DetectionDataset, row: int, predictions: Predictions, result: CocoResult
) -> NDArray[np.uint8]:
    """The image of a row twice: with gt on the left, and on the right with the detections that reach the best
    threshold of their class. uint8 [H, W, 3], each half at most 640 px."""
    classes = dataset.records.classes
    sample = dataset.sample(0, row)
    image = Image.fromarray(sample.image)
    image.thumbnail((_MOST_PX, _MOST_PX))
    pixels, size = np.asarray(image), np.array([image.width, image.height] * 2)

    counted = ~sample.ignore
    height, width = sample.image.shape[:2]
    labels = sample.labels[counted]
    gt_boxes = sample.boxes[counted] * (size / np.array([width, height] * 2))
    gt = draw_boxes(pixels, gt_boxes, labels, [classes[n] for n in labels])

    boxes, labels, texts = above_thresholds(predictions, row, result, sample.original_size)
    return _beside([gt, draw_boxes(pixels, boxes * size, labels, texts)], ["gt", "found"])


def above_thresholds(
    predictions: Predictions, row: int, result: CocoResult, size: tuple[int, int]
) -> tuple[NDArray[np.float64], NDArray[np.int64], list[str]]:
    """The detections in the image of a row that reach the best threshold of their class.

    Args:
        size: height and width of the image file, in pixels.

    Returns:
        boxes [D, 4] xyxy as fractions of width and height, labels [D], and the text for each.
    """
    names = list(result.per_class)
    thresholds = np.array([one.best_threshold for one in result.per_class.values()])
    mine = np.flatnonzero(predictions.rows == row)
    least = thresholds[predictions.labels[mine]]
    mine = mine[(predictions.scores[mine] >= least) & (least >= 0)]
    height, width = size
    labels, scores = predictions.labels[mine], predictions.scores[mine]
    texts = [f"{names[n]} {score:.2f}" for n, score in zip(labels, scores, strict=True)]
    return predictions.boxes[mine] / [width, height, width, height], labels, texts


def _beside(halves: list[NDArray[np.uint8]], titles: list[str]) -> NDArray[np.uint8]:
    """Two pictures of the same size side by side, each under its title."""
    height, width, _ = halves[0].shape
    page = Image.new("RGB", (2 * width + _GAP_PX, height + _TITLE_PX), "white")
    canvas, font = ImageDraw.Draw(page), ImageFont.load_default(15)
    for i, (half, title) in enumerate(zip(halves, titles, strict=True)):
        left = i * (width + _GAP_PX)
        canvas.text((left + 4, 2), title, fill="black", font=font)
        page.paste(Image.fromarray(half), (left, _TITLE_PX))
    return np.array(page)
