"""Soft-NMS: detections that overlap better ones of their class lose score instead of being dropped.

Bodla et al., "Soft-NMS - Improving Object Detection With One Line of Code" (ICCV 2017), in the linear form
without threshold: each selected detection multiplies the scores of the others of its class by 1 - IoU. So
there is nothing to tune, and no jump that rounding could decide.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from detector.boxes import pairwise_iou


def soft_nms(boxes: Tensor, logits: Tensor, labels: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Select the best detections of each image of a batch one by one, by their remaining scores.

    Handles all images and classes at once, in one step per selected detection.

    Args:
        boxes: float [B, K, 4], xyxy.
        logits: float [B, K], of the scores; minus infinity for non-candidates.
        labels: int64 [B, K].
        most: number of detections to select per image.

    Returns:
        index int64 [B, D], D = min(most, K), and the logarithms of the remaining scores [B, D], in
        descending order; minus infinity where there are no more.
    """
    left = F.logsigmoid(logits)  # in logarithms: a score near 1 would round to 1
    index, scores = [], []
    for _ in range(min(most, logits.shape[1])):
        score, best = left.max(dim=1, keepdim=True)
        index.append(best)
        scores.append(score)
        taken = boxes.gather(1, best[..., None].expand(-1, -1, 4))
        iou = pairwise_iou(taken, boxes).squeeze(1).clamp_max(1)
        rivals = labels == labels.gather(1, best)
        left = (left + torch.log1p(-iou.to(left.dtype) * rivals)).scatter(1, best, -math.inf)
    return torch.cat(index, 1), torch.cat(scores, 1)
