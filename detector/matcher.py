"""Matching anchors with gt boxes by IoU: which anchors are positive, negative or ignored."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from detector import matcher_loops
from detector.boxes import area, pairwise_intersection, pairwise_iou
from detector.losses.machine_code import numba_works

# IoU is computed for at most this many (image, gt, anchor) triples at once: about 100 MB at peak.
_PAIRS_AT_ONCE = 1 << 22


class Matches(NamedTuple):
    """The training target of every anchor of every image."""

    status: Tensor  # int8 [B, N]: 1 positive, 0 negative, -1 ignored
    gt_index: Tensor  # int64 [B, N]: row of the matched gt box in its image; valid only for positives


@torch.no_grad()
def match(
    anchors: Tensor,
    gt_boxes: Tensor,
    gt_valid: Tensor,
    gt_ignore: Tensor,
    positive_iou: float,
    negative_iou: float,
    best_anchor: bool = True,
) -> Matches:
    """Match the anchors of a batch with its gt boxes.

    An anchor is positive if its best IoU reaches `positive_iou`, negative below `negative_iou`,
    ignored in between. With `best_anchor` each gt also gets its best anchors (ties included) as
    positives below the threshold, except anchors that reach `positive_iou` with another gt, or that
    are also the best of another gt with a higher IoU. A gt that overlaps no anchor gets none.
    A non-positive anchor with more than half of its area in a crowd gt (iscrowd) is ignored, since
    its content is unknown.

    Args:
        anchors: float [N, 4] xyxy pixels.
        gt_boxes: float [B, G, 4] xyxy pixels, padded.
        gt_valid: bool [B, G], False for padding.
        gt_ignore: bool [B, G], True for crowd regions.

    Note: a gt box far smaller or larger than all anchors ties with many of them as its best: a dozen or
    more positives for an object that none of them fits.

    Source: Ren et al., "Faster R-CNN" (2015), 3.1.2; Chen et al., "AP-Loss" (2019), 5.1.
    """
    objects = gt_valid & ~gt_ignore
    compiled = anchors.device.type == "cpu" and anchors.dtype == gt_boxes.dtype == torch.float32
    find = _best_compiled if compiled and numba_works() else _best
    best_iou, best_gt, forced_iou, forced_gt = find(anchors, gt_boxes, objects, best_anchor)
    status = torch.where(best_iou < negative_iou, 0, -1).to(torch.int8)
    status[in_crowds(anchors, gt_boxes, gt_valid & gt_ignore)] = -1
    positive = best_iou >= positive_iou
    forced = (forced_iou > 0) & ~positive
    status[positive | forced] = 1
    return Matches(status, torch.where(forced, forced_gt, best_gt))


def _best(
    anchors: Tensor, gt_boxes: Tensor, objects: Tensor, best_anchor: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For each anchor, the highest IoU with a gt box and the index of that box; and the same among only the
    gt boxes that it is a best anchor of: float and int64 [B, N] each. 0 where there is none.

    objects: bool [B, G], the gt boxes that count.
    """
    batch, gts = objects.shape
    shape = (batch, len(anchors))
    best_iou = torch.zeros(shape, device=anchors.device)
    best_gt = torch.zeros(shape, dtype=torch.int64, device=anchors.device)
    forced_iou, forced_gt = best_iou.clone(), best_gt.clone()
    for block in gt_blocks(batch, gts, len(anchors)):
        iou = pairwise_iou(gt_boxes[:, block], anchors)  # [B, g, N]
        iou.masked_fill_(~objects[:, block, None], -1)
        iou_of_anchor, gt = iou.max(dim=1)
        better = iou_of_anchor > best_iou
        best_iou = torch.where(better, iou_of_anchor, best_iou)
        best_gt = torch.where(better, gt + block.start, best_gt)
        if best_anchor:
            iou_of_gt = iou.amax(dim=2, keepdim=True)
            iou.masked_fill_((iou < iou_of_gt) | (iou <= 0), -1)
            iou_of_anchor, gt = iou.max(dim=1)
            better = iou_of_anchor > forced_iou
            forced_iou = torch.where(better, iou_of_anchor, forced_iou)
            forced_gt = torch.where(better, gt + block.start, forced_gt)
    return best_iou, best_gt, forced_iou, forced_gt


def _best_compiled(
    anchors: Tensor, gt_boxes: Tensor, objects: Tensor, best_anchor: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Same as `_best`, for float32 on a CPU."""
    batch, gts = objects.shape
    count = len(anchors)
    sides, given = torch.empty(5, count).numpy(), anchors.numpy().T
    sides[:4], sides[4] = given, (given[2] - given[0]) * (given[3] - given[1])
    ious = torch.empty(2, batch, count)
    gt_index = torch.empty(2, batch, count, dtype=torch.int32)
    for numbers in (ious, gt_index):
        numbers.numpy().fill(0)
    scratch = (
        torch.empty(matcher_loops.BLOCK).numpy(),
        torch.empty(-(-count // matcher_loops.BLOCK) + 1, gts, dtype=torch.int32).numpy(),
    )
    for image in range(batch):
        mine = gt_boxes[image].contiguous().numpy(), objects[image].numpy()
        best, forced = ((ious[k, image].numpy(), gt_index[k, image].numpy()) for k in range(2))
        matcher_loops.match_image(sides, *mine, best_anchor, *scratch, *best, *forced)
    best_gt, forced_gt = gt_index.long()
    return ious[0], best_gt, ious[1], forced_gt


def in_crowds(anchors: Tensor, gt_boxes: Tensor, crowds: Tensor) -> Tensor:
    """Whether more than half of an anchor's area lies in one of the crowd boxes: bool [B, N].

    anchors [N, 4], gt_boxes [B, G, 4]; crowds: bool [B, G], which boxes are crowds.
    """
    batch, gts = crowds.shape
    found = torch.zeros(batch, len(anchors), dtype=torch.bool, device=anchors.device)
    if not bool(crowds.any()):
        return found
    half = 0.5 * area(anchors)
    for block in gt_blocks(batch, gts, len(anchors)):
        covered = pairwise_intersection(gt_boxes[:, block], anchors) > half
        found |= (covered & crowds[:, block, None]).any(dim=1)
    return found


def gt_blocks(batch: int, gts: int, for_each_box: int) -> Iterator[slice]:
    """Slices of the gt boxes that bound the memory; for_each_box: how many numbers each box needs."""
    step = max(1, _PAIRS_AT_ONCE // max(1, batch * for_each_box))
    return (slice(start, start + step) for start in range(0, gts, step))
