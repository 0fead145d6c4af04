"""Matching anchors with gt boxes by IoU: which anchor is positive, negative, or takes no part."""

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
    """What every anchor of every image is to learn."""

    status: Tensor  # int8 [B, N]: 1 positive, 0 negative, -1 ignored
    gt_index: Tensor  # int64 [B, N]: row of the matched gt box in its image; only for positives


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

    An anchor is positive when its best IoU reaches `positive_iou`, negative below `negative_iou`,
    ignored between. With `best_anchor` each gt keeps its best anchors (ties included) as positives
    even below the threshold, unless an anchor already belongs to another gt by `positive_iou`, or
    another gt that it is the best for overlaps it more. A gt that overlaps no anchor has none.
    An anchor that is not positive, with more than half of its area in an ignored gt (iscrowd), is
    ignored: nobody knows what is there.

    Args:
        anchors: float [N, 4] xyxy pixels.
        gt_boxes: float [B, G, 4] xyxy pixels, padded.
        gt_valid: bool [B, G], False for padding.
        gt_ignore: bool [B, G], True for crowd regions.

    A gt box far smaller or larger than all anchors fits many of them equally well, and has them all as its
    best: a dozen positives and more for an object that none of them fits.

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
    """Of each anchor the IoU with the gt box that it overlaps most, and which that is; and the same of the gt
    boxes that it is the best anchor of: float and int64 [B, N] each. 0 where there is none.

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
    """As `_best`, on a CPU and in float32."""
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
    """Which anchors [N, 4] have more than half of their area in one of the boxes [B, G, 4] that are crowds
    (bool [B, G]): bool [B, N].
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
    """The gt boxes in parts, to bound the memory; for_each_box: how many numbers each is compared with."""
    step = max(1, _PAIRS_AT_ONCE // max(1, batch * for_each_box))
    return (slice(start, start + step) for start in range(0, gts, step))
