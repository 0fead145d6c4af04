"""How well the configured anchors fit the gt boxes as training sees them."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.cache import ImageCache
from data.loader import DetectionDataset
from data.sample import SIZE_DIVISOR, DetectionSet
from detector.anchor_fit import AnchorShapes, SeenBoxes, level_ious, suggest
from detector.builders.data import build_pipeline
from detector.config import Config

IMAGES = 200  # number of images examined
_ENOUGH, _DRAWS = (
    200,
    10,
)  # boxes; maximum draws of the augmentation, where crops leave fewer
_LITTLE_RECALL = 0.9
_WORTH_SAYING = 0.01  # gain in recall that makes other anchors worth suggesting


@dataclass(frozen=True)
class AnchorFit:
    """How well the configured anchors fit, and which would fit better."""

    seen: SeenBoxes
    shapes: AnchorShapes
    ious: Tensor  # [G, 5] best IoU of each box on each level
    positive_iou: float
    negative_iou: float
    by_iou: bool  # whether these thresholds decide what is positive (else each box has its own)
    suggested: AnchorShapes | None  # None if they would gain too little

    @property
    def best(self) -> Tensor:
        """The best IoU of each box with any anchor, [G]."""
        return self.ious.amax(1)

    @property
    def little(self) -> bool:
        """Whether so many boxes have no positive anchor that training suffers."""
        return self.by_iou and len(self.best) > 0 and recall(self.best, self.positive_iou) < _LITTLE_RECALL


def at_scale(fit: AnchorFit, scale: float) -> Tensor:
    """The best IoU of each box, [G], for images scaled as by schedule.image_scales."""
    sizes = (fit.seen.image_sizes * scale / SIZE_DIVISOR).ceil().clamp(min=1).long() * SIZE_DIVISOR
    return level_ious(SeenBoxes(fit.seen.boxes * scale, sizes), fit.shapes).amax(1)


def recall(best: Tensor, iou: float) -> float:
    """Fraction of the boxes [G] whose best anchor reaches an IoU."""
    return float((best >= iou).double().mean())


def seen_boxes(
    records: DetectionSet, config: Config, epoch: int = 0, images: int = IMAGES, training: bool = True
) -> SeenBoxes:
    """The gt boxes of some images, as training sees them in an epoch, or as evaluation does.

    No image is decoded. If crops leave few boxes, further draws are added: epoch + 2, epoch + 4 and so on.
    """
    pipeline = build_pipeline(config.data, training=training, geometry=True)
    dataset = DetectionDataset(records, pipeline, config.train.seed, cache=_Blank(records))
    rows = torch.randperm(len(records), generator=torch.Generator().manual_seed(0))[:images].tolist()
    there = sum(int((~records.ignore[records.boxes_of(row)]).sum()) for row in rows)
    boxes, sizes = [torch.zeros(0, 4)], [torch.zeros(0, 2, dtype=torch.int64)]
    samples = emptied = 0
    for draw in range(_DRAWS):
        for row in rows:
            sample = dataset.sample(epoch + 2 * draw, row)
            mine = torch.from_numpy(sample.boxes[~sample.ignore])
            padded = -(-torch.tensor(sample.image.shape[:2]) // SIZE_DIVISOR) * SIZE_DIVISOR
            if not records.ignore[records.boxes_of(row)].all():
                samples, emptied = samples + 1, emptied + (len(mine) == 0)
            boxes.append(mine)
            sizes.append(padded.expand(len(mine), 2))
        if sum(map(len, boxes)) >= min(_ENOUGH, there / 2):
            break
    return SeenBoxes(torch.cat(boxes), torch.cat(sizes), samples, emptied)


def measure_anchors(
    records: DetectionSet, config: Config, images: int = IMAGES, search: bool = True
) -> AnchorFit:
    """Measure how well the anchors fit; with `search` also look for better ones.

    The search uses other draws of the augmentation than the measurement.
    """
    seen = seen_boxes(records, config, epoch=0, images=images)
    shapes = AnchorShapes(
        tuple(tuple(row) for row in config.model.anchors.sizes), tuple(config.model.anchors.ratios)
    )
    positive = config.matcher.positive_iou
    ious, suggested = level_ious(seen, shapes), None
    others = seen_boxes(records, config, epoch=1, images=images) if search else seen
    if search and len(seen.boxes) and len(others.boxes):  # crops may leave no box
        other = suggest(others, shapes, positive)
        gain = recall(level_ious(seen, other).amax(1), positive) - recall(ious.amax(1), positive)
        suggested = other if gain >= _WORTH_SAYING else None
    by_iou = config.matcher.name == "iou"
    return AnchorFit(seen, shapes, ious, positive, config.matcher.negative_iou, by_iou, suggested)


class _Blank(ImageCache):
    """Replaces the images of a set by zeros where only the boxes matter."""

    def read(self, row: int) -> NDArray[np.uint8]:
        return np.zeros((*self._sizes[row], 3), dtype=np.uint8)
