"""Flip test-time augmentation: averages the outputs for an image and its mirror image, anchor by anchor."""

import torch
from torch import Tensor
from torch.nn import functional as F

from detector.anchors import STRIDES, pyramid_grids
from detector.retinanet import HeadOutputs, RetinaNet


def look_twice(model: RetinaNet, images: Tensor, sizes: Tensor) -> HeadOutputs:
    """Like the model's forward: uint8 [B, 3, H, W] and int64 [B, 2] -> the mean of both passes, float32.

    Averaging before NMS costs only the second forward pass. Anchors lie at the left edges of their cells, so
    those of the leftmost cells have no mirror image and use the first pass alone.
    """
    x = model.normalise(images, sizes)
    # Pad to whole cells on all levels, so that the mirror image of an anchor is an anchor.
    x = F.pad(x, (0, -x.shape[-1] % STRIDES[-1]))
    one, other = model.look(x), model.look(x.flip(-1))
    grids = pyramid_grids(x.shape[-2], x.shape[-1])
    logits = _mean(one.logits.float(), other.logits.float(), grids, one.level_sizes)
    turned = other.deltas.float() * torch.tensor([-1, 1, 1, 1], device=x.device)  # dx points the other way
    deltas = _mean(one.deltas.float(), turned, grids, one.level_sizes)
    return HeadOutputs(logits, deltas, one.anchors, one.level_sizes)


def _mean(one: Tensor, other: Tensor, grids: list[tuple[int, int]], level_sizes: tuple[int, ...]) -> Tensor:
    """The mean of outputs [B, N, K] and those of the mirror images, matched anchor by anchor."""
    parts = []
    pairs = zip(one.split(level_sizes, dim=1), other.split(level_sizes, dim=1), strict=True)
    for (height, width), (level, in_mirror) in zip(grids, pairs, strict=True):
        own, seen = (v.unflatten(1, (height, width, -1)) for v in (level, in_mirror))  # [B, h, w, A, K]
        there = torch.cat((own[:, :, :1], seen[:, :, 1:].flip(2)), dim=2)  # column c is W - c in the mirror
        parts.append(((own + there) / 2).flatten(1, 3))
    return torch.cat(parts, dim=1)
