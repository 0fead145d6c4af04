"""Head outputs -> detections: the best anchors by rank, decoded, clipped, and thinned out by NMS."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from detector.boxes import clip, decode
from detector.retinanet import HeadOutputs
from detector.soft_nms import soft_nms


@dataclass(frozen=True)
class Detections:
    """The detections of one image, best first."""

    boxes: Tensor  # float32 [D, 4], xyxy pixels
    scores: Tensor  # float64 [D], in [0, 1]: far from 0.5 float32 would round scores into ties
    labels: Tensor  # int64 [D]


@torch.no_grad()
def detect(
    outputs: HeadOutputs,
    sizes: Tensor,
    box_std: Tensor,
    score_threshold: float = 0.0,
    topk_candidates: int = 1000,
    nms_threshold: float = 0.5,
    detections_per_img: int = 100,
    soft: bool = False,
) -> list[Detections]:
    """Detections of every image of a batch, in pixels of the network's input.

    Candidates are chosen by rank within each pyramid level, because a ranking loss leaves the scale
    of the logits free; `score_threshold` is for those who want fewer, and costs AP.

    Args:
        sizes: int64 [B, 2], height and width of the images without padding, in pixels.
        box_std: float [4], as in `boxes.decode`.
        soft: Soft-NMS, which lowers scores where NMS drops boxes; nms_threshold means nothing then.
    """
    batch, _, classes = outputs.logits.shape
    logits, anchor_index, labels = _top_of_each_level(outputs, topk_candidates)  # each [B, K]
    deltas = outputs.deltas.float().gather(1, anchor_index[..., None].expand(-1, -1, 4))
    boxes = clip(decode(deltas, outputs.anchors[anchor_index], box_std), sizes)  # [B, K, 4]

    if soft:
        index, log_scores = soft_nms(boxes, logits.double(), labels, detections_per_img)
        scores = log_scores.exp()
        # The best come first: what the threshold drops has lowered none that it keeps.
        left = scores > score_threshold if score_threshold > 0 else log_scores > -math.inf
        each = zip(index, scores, left, boxes, labels, strict=True)
        return [Detections(b[i[k]], s[k], c[i[k]]) for i, s, k, b, c in each]

    scores = logits.double().sigmoid()
    image = torch.arange(batch, device=logits.device)[:, None].expand_as(labels)
    wanted = scores > score_threshold if score_threshold > 0 else torch.ones_like(scores, dtype=torch.bool)
    boxes, logits, scores, labels, image = (x[wanted] for x in (boxes, logits, scores, labels, image))
    # float32 whatever autocast made: NMS in half precision keeps other boxes.
    keep = batched_nms(boxes, logits, image * classes + labels, nms_threshold)
    per_image = (keep[image[keep] == i][:detections_per_img] for i in range(batch))
    return [Detections(boxes[k], scores[k], labels[k]) for k in per_image]


def _top_of_each_level(outputs: HeadOutputs, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits float32, anchor index and label of the k best (anchor, class) pairs of each level."""
    classes = outputs.logits.shape[2]
    found, first = [], 0
    for level in outputs.logits.float().split(outputs.level_sizes, dim=1):
        values, flat = level.flatten(1).topk(min(k, level.shape[1] * classes), dim=1)
        found.append((values, flat // classes + first, flat % classes))
        first += level.shape[1]
    logits, anchor_index, labels = zip(*found, strict=True)
    return torch.cat(logits, 1), torch.cat(anchor_index, 1), torch.cat(labels, 1)
