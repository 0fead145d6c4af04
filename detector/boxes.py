"""Boxes: IoU, encoding relative to anchors, clipping. Boxes are float xyxy in pixels of their image."""

import math

import torch
from torch import Tensor

# Upper limit of dw and dh: a box is at most 1000 / 16 times its anchor (Fast R-CNN's constant).
MAX_LOG_SCALE = math.log(1000.0 / 16)


def area(boxes: Tensor) -> Tensor:
    """boxes [..., 4] -> [...], in square pixels."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def is_empty(boxes: Tensor) -> Tensor:
    """boxes [..., 4] -> bool [...]: zero or negative width or height."""
    return (boxes[..., 2:] <= boxes[..., :2]).any(-1)


def pairwise_intersection(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """boxes1 [..., N, 4] and boxes2 [..., M, 4] -> intersection areas [..., N, M]."""
    width = torch.minimum(boxes1[..., :, None, 2], boxes2[..., None, :, 2])
    width = width.sub_(torch.maximum(boxes1[..., :, None, 0], boxes2[..., None, :, 0])).clamp_(min=0)
    height = torch.minimum(boxes1[..., :, None, 3], boxes2[..., None, :, 3])
    height = height.sub_(torch.maximum(boxes1[..., :, None, 1], boxes2[..., None, :, 1])).clamp_(min=0)
    return width.mul_(height)


def pairwise_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """boxes1 [..., N, 4] and boxes2 [..., M, 4] -> IoU [..., N, M]; 0 where both boxes are empty."""
    intersection = pairwise_intersection(boxes1, boxes2)
    union = area(boxes1)[..., :, None] + area(boxes2)[..., None, :] - intersection
    return intersection.div_(union.clamp_(min=torch.finfo(union.dtype).tiny))


def paired_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """IoU of boxes1 [P, 4] with boxes2 [P, 4], row by row: [P]."""
    return pairwise_iou(boxes1[:, None], boxes2[:, None]).flatten()


def encode(boxes: Tensor, anchors: Tensor, std: Tensor) -> Tensor:
    """Deltas (dx, dy, dw, dh) that turn anchors into boxes, each divided by its std (R-CNN encoding).

    boxes [..., 4], anchors [..., 4], std [4] -> [..., 4].
    """
    anchor_size = anchors[..., 2:] - anchors[..., :2]
    size = boxes[..., 2:] - boxes[..., :2]
    shift = (boxes[..., :2] + size / 2 - anchors[..., :2] - anchor_size / 2) / anchor_size
    return torch.cat((shift, (size / anchor_size).log()), dim=-1) / std


def decode(deltas: Tensor, anchors: Tensor, std: Tensor) -> Tensor:
    """The inverse of `encode`: deltas [..., 4], anchors [..., 4], std [4] -> boxes [..., 4]."""
    deltas = deltas * std
    anchor_size = anchors[..., 2:] - anchors[..., :2]
    centre = anchors[..., :2] + anchor_size / 2 + deltas[..., :2] * anchor_size
    half = deltas[..., 2:].clamp(max=MAX_LOG_SCALE).exp() * anchor_size / 2
    return torch.cat((centre - half, centre + half), dim=-1)


def clip(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Clip boxes [..., N, 4] to images whose height and width are sizes [..., 2], in pixels."""
    limit = sizes.flip(-1).repeat(*[1] * (sizes.dim() - 1), 2).unsqueeze(-2).to(boxes.dtype)  # w, h, w, h
    return torch.minimum(boxes.clamp(min=0), limit)
