"""Head outputs -> detections: the highest-ranked anchors, decoded, clipped, and filtered by NMS."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import nms

from detector.boxes import clip, decode, is_empty
from detector.retinanet import HeadOutputs
from detector.soft_nms import soft_nms

_TRIED_FIRST = 4  # how many times the wanted number of boxes NMS is tried on first


@dataclass(frozen=True)
class Detections:
    """The detections of one image, best first."""

    boxes: Tensor  # float32 [D, 4], xyxy pixels
    scores: Tensor  # float64 [D], in [0, 1]: near 0 and 1, float32 would round scores into ties
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
    of the logits free. A `score_threshold` reduces their number, at a cost in AP.

    Args:
        sizes: int64 [B, 2], height and width of the images without padding, in pixels.
        box_std: float [4], as in `boxes.decode`.
        soft: Soft-NMS, which lowers scores where NMS drops boxes; nms_threshold is then ignored.
    """
    logits, anchor_index, labels = _top_of_each_level(outputs, topk_candidates)  # each [B, K]
    deltas = outputs.deltas.gather(1, anchor_index[..., None].expand(-1, -1, 4)).float()
    boxes = clip(decode(deltas, outputs.anchors[anchor_index], box_std), sizes)  # [B, K, 4]
    # Boxes in the padding are empty after clipping: NMS would not suppress them, as their IoU is 0.
    logits = logits.masked_fill(is_empty(boxes), -math.inf)
    if logits.device.type == "mps":  # MPS has no float64
        boxes, logits, labels = boxes.cpu(), logits.cpu(), labels.cpu()

    if soft:
        return _soft(boxes, logits, labels, score_threshold, detections_per_img)
    return [
        _hard(*of_image, score_threshold, nms_threshold, detections_per_img)
        for of_image in zip(boxes, logits, labels, strict=True)
    ]


def _hard(
    boxes: Tensor, logits: Tensor, labels: Tensor, score_threshold: float, iou_threshold: float, most: int
) -> Detections:
    """One image: boxes [K, 4], logits [K], labels [K]."""
    scores = logits.double().sigmoid()
    candidates = scores > score_threshold if score_threshold > 0 else logits != -math.inf
    boxes, logits, labels, scores = (x[candidates] for x in (boxes, logits, labels, scores))
    kept = best_of_nms(boxes, logits, labels, iou_threshold, most)
    return Detections(boxes[kept], scores[kept], labels[kept])


def _soft(
    boxes: Tensor, logits: Tensor, labels: Tensor, score_threshold: float, most: int
) -> list[Detections]:
    """All images: boxes [B, K, 4], logits [B, K], labels [B, K]."""
    index, log_scores = soft_nms(boxes, logits.double(), labels, most)
    scores = log_scores.exp()
    # Detections come best first and lower only the scores of later ones: the threshold can be applied last.
    kept = scores > score_threshold if score_threshold > 0 else log_scores > -math.inf
    detections = []
    for image, mask in enumerate(kept):
        taken = index[image, mask]
        detections.append(Detections(boxes[image, taken], scores[image, mask], labels[image, taken]))
    return detections


def best_of_nms(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float, most: int) -> Tensor:
    """The `most` best of the boxes that `nms_of_classes` keeps, in less time.

    A box is never dropped for a worse one, so which of the best are kept does not depend on the rest, and
    the time of NMS grows with the square of the number of boxes.
    """
    order = scores.argsort(descending=True, stable=True)
    among = _TRIED_FIRST * most
    while True:
        best = order[:among]
        kept = nms_of_classes(boxes[best], scores[best], labels[best], iou_threshold)
        if len(kept) >= most or among >= len(order):
            return best[kept[:most]]
        among *= _TRIED_FIRST


def nms_of_classes(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
    """Indices (int64, best first) of the boxes of an image that class-wise NMS keeps.

    Boxes are offset by class so that a single NMS serves all. In float32, as in torchvision's batched_nms,
    1,000 classes on 5,000 px would leave a precision of only one pixel.

    Args:
        boxes: [K, 4], xyxy pixels, none below 0.
        scores, labels: [K].
    """
    if boxes.shape[0] == 0:
        return torch.zeros(0, dtype=torch.int64, device=boxes.device)
    exact = boxes.double()
    apart = labels.double() * (exact.max() + 1)
    return nms(exact + apart[:, None], scores.double(), iou_threshold)


def _top_of_each_level(outputs: HeadOutputs, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (float32), anchor indices and labels of the k best (anchor, class) pairs of each level."""
    classes = outputs.logits.shape[2]
    found, first = [], 0
    for level in outputs.logits.split(outputs.level_sizes, dim=1):
        values, flat = _top(level, min(k, level.shape[1] * classes))
        found.append((values.float(), flat // classes + first, flat % classes))
        first += level.shape[1]
    logits, anchor_index, labels = zip(*found, strict=True)
    return torch.cat(logits, 1), torch.cat(anchor_index, 1), torch.cat(labels, 1)


def _top(level: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k highest values of each image of [B, n, C], in descending order, and their indices in n * C."""
    classes = level.shape[2]
    if level.device.type != "cpu" or k >= level.shape[1]:
        return level.flatten(1).topk(k, dim=1)
    # They are among the k anchors with the best top class: half the time on a CPU, more launches on a GPU.
    anchor = level.amax(2).topk(k, dim=1).indices
    values, flat = level.gather(1, anchor[..., None].expand(-1, -1, classes)).flatten(1).topk(k, dim=1)
    return values, anchor.gather(1, flat // classes) * classes + flat % classes
