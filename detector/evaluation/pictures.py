"""An image twice: with its gt boxes, and with what was found in it."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from data.loader import DetectionDataset
from detector.evaluation.coco import CocoResult
from detector.evaluation.inference import Predictions
from detector.prediction.drawing import draw
from detector.predictor import ImageDetections

_MOST_PX = 640  # long side of each half: enough to read the labels, quick to write
_GAP_PX, _TITLE_PX = 8, 22


def gt_beside_found(
    dataset: DetectionDataset, row: int, predictions: Predictions, result: CocoResult
) -> NDArray[np.uint8]:
    """The image of a row with gt on the left and the detections from each class's best threshold on the
    right: uint8 [H, W, 3]. A class that has no such threshold is not shown."""
    records = dataset.records
    classes = records.classes
    thresholds = np.array([result.per_class[name].best_threshold for name in classes])
    sample = dataset.sample(0, row)
    image = Image.fromarray(sample.image)
    image.thumbnail((_MOST_PX, _MOST_PX))
    height, width = sample.original_size
    to_image = np.tile((image.width / width, image.height / height), 2)
    to_thumbnail = np.tile((image.width / sample.image.shape[1], image.height / sample.image.shape[0]), 2)

    mine = np.flatnonzero(predictions.rows == row)
    limits = thresholds[predictions.labels[mine]]
    mine = mine[(predictions.scores[mine] >= limits) & (limits >= 0)]
    labels = predictions.labels[mine]
    found = ImageDetections(
        predictions.boxes[mine] * to_image, predictions.scores[mine], labels, _names(classes, labels)
    )
    counted = ~sample.ignore
    gt = ImageDetections(
        sample.boxes[counted].astype(np.float64) * to_thumbnail,
        np.ones(counted.sum()),
        sample.labels[counted],
        _names(classes, sample.labels[counted]),
    )
    pixels = np.asarray(image)
    halves = [draw(pixels, gt, with_scores=False), draw(pixels, found)]
    return _beside(halves, ["gt", "found"])


def _names(classes: tuple[str, ...], labels: NDArray[np.int64]) -> tuple[str, ...]:
    return tuple(classes[label] for label in labels)


def _beside(halves: list[NDArray[np.uint8]], titles: list[str]) -> NDArray[np.uint8]:
    """Two pictures of one size, each under its title."""
    height, width, _ = halves[0].shape
    page = Image.new("RGB", (2 * width + _GAP_PX, height + _TITLE_PX), "white")
    canvas, font = ImageDraw.Draw(page), ImageFont.load_default(15)
    for i, (half, title) in enumerate(zip(halves, titles, strict=True)):
        left = i * (width + _GAP_PX)
        canvas.text((left + 4, 2), title, fill="black", font=font)
        page.paste(Image.fromarray(half), (left, _TITLE_PX))
    return np.array(page)
