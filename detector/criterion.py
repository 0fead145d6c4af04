"""Head outputs + gt boxes -> named losses."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from detector.matcher import Matches, match
from detector.retinanet import HeadOutputs

ClassLoss = Callable[[Tensor, Tensor], Tensor]  # logits, targets in {-1, 0, 1} -> scalar
BoxLoss = Callable[[Tensor, Tensor, Tensor], Tensor]  # deltas, gt boxes, anchors [P, 4] -> scalar


@dataclass(frozen=True)
class GroundTruth:
    """The gt boxes of a batch, padded to the same number G per image."""

    boxes: Tensor  # float32 [B, G, 4], xyxy pixels of the network's input
    labels: Tensor  # int64 [B, G]
    valid: Tensor  # bool [B, G], False for padding
    ignore: Tensor  # bool [B, G], True for regions that are neither object nor background


@dataclass(frozen=True)
class Losses:
    """The parts of the loss, each already weighted, and what they were taken over."""

    classification: Tensor
    box: Tensor
    positives: Tensor  # number of positive anchors in the batch

    @property
    def total(self) -> Tensor:
        return self.classification + self.box


class Criterion:
    """Matches anchors with gt boxes and takes the two losses.

    Args:
        class_loss: of logits [B, N, C] and targets int8 [B, N, C].
        box_loss: of the positives' deltas, gt boxes and anchors, each float32 [P, 4].
        box_weight: factor of the box loss.
        positive_iou, negative_iou, best_anchor: see `matcher.match`.
    """

    def __init__(
        self,
        class_loss: ClassLoss,
        box_loss: BoxLoss,
        box_weight: float,
        positive_iou: float,
        negative_iou: float,
        best_anchor: bool,
    ) -> None:
        self.class_loss = class_loss
        self.box_loss = box_loss
        self.box_weight = box_weight
        self.positive_iou = positive_iou
        self.negative_iou = negative_iou
        self.best_anchor = best_anchor

    def __call__(self, outputs: HeadOutputs, gt: GroundTruth) -> Losses:
        matches = match(
            outputs.anchors,
            gt.boxes,
            gt.valid,
            gt.ignore,
            self.positive_iou,
            self.negative_iou,
            self.best_anchor,
        )
        targets, image, anchor = class_targets(matches, gt.labels, outputs.logits.shape[2])
        gt_boxes = gt.boxes[image, matches.gt_index[image, anchor]]  # [P, 4]
        deltas = outputs.deltas[image, anchor].float()
        # With no positive this is still a sum over deltas: every parameter gets a gradient.
        box = self.box_weight * self.box_loss(deltas, gt_boxes, outputs.anchors[anchor])
        classification = self.class_loss(outputs.logits, targets)
        positives = torch.tensor(len(image), device=image.device)
        return Losses(classification, box, positives)


def class_targets(matches: Matches, labels: Tensor, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Targets int8 [B, N, C] in {-1, 0, 1}, and image and anchor index of the P positives.

    A positive anchor is 1 in the column of its gt's class and 0 in the others; an ignored one is -1
    throughout. labels int64 [B, G].
    """
    image, anchor = (matches.status == 1).nonzero(as_tuple=True)
    targets = matches.status.clamp(max=0)[..., None].repeat(1, 1, classes)
    targets[image, anchor, labels[image, matches.gt_index[image, anchor]]] = 1
    return targets, image, anchor
