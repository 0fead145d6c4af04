"""Matching by ATSS: each gt box gets its own IoU threshold, from the anchors around it."""

import torch
from torch import Tensor

from detector.boxes import paired_iou
from detector.matcher import Matches, gt_blocks, in_crowds


@torch.no_grad()
def match_adaptively(
    anchors: Tensor,
    level_sizes: tuple[int, ...],
    per_location: int,
    gt_boxes: Tensor,
    gt_valid: Tensor,
    gt_ignore: Tensor,
    candidates: int = 9,
    best_anchor: bool = True,
) -> Matches:
    """Match the anchors of a batch with its gt boxes by adaptive training sample selection.

    The candidates of a gt box are the anchors at the locations nearest to its centre, on each pyramid level.
    A candidate is positive if its IoU reaches the mean plus the standard deviation of all candidates' IoUs
    and its centre lies in the box. An anchor claimed by several boxes goes to the one with the highest IoU.
    All other anchors are negative: with a single threshold, none between two is ignored.

    Args:
        anchors: float [N, 4] xyxy pixels, ordered by level, then location; the anchors of a location share
            one centre.
        level_sizes: anchors per pyramid level; sums to N.
        per_location: anchors per location.
        gt_boxes: float [B, G, 4] xyxy pixels, padded.
        gt_valid: bool [B, G], False for padding.
        gt_ignore: bool [B, G], True for crowd regions, whose anchors are ignored as in `matcher.match`.
        candidates: locations per level.
        best_anchor: a gt box without a positive candidate, e.g. one smaller than the stride with no centre
            in it, gets the candidates with the highest IoU (ties included). Not in the paper.

    Source: Zhang et al., "Bridging the Gap Between Anchor-based and Anchor-free Detection via Adaptive
    Training Sample Selection" (CVPR 2020), Algorithm 1; several anchors per location as in its code.
    """
    batch, gts = gt_valid.shape
    if gts == 0:
        status = torch.zeros(batch, len(anchors), dtype=torch.int8, device=anchors.device)
        return Matches(status, status.long())
    # About ten numbers per candidate are held at a time, and three per location.
    for_each_box = max(len(anchors) // per_location, 4 * candidates * len(level_sizes) * per_location)
    most = anchors.new_full((batch, len(anchors)), -1)  # highest IoU among the boxes that claim an anchor
    owner = torch.zeros_like(most, dtype=torch.int64)
    for block in gt_blocks(batch, gts, for_each_box):
        boxes = gt_boxes[:, block]
        near = _nearest(anchors, level_sizes, per_location, boxes, candidates)
        iou, positive = _claims(near, anchors, boxes, best_anchor)
        positive &= (gt_valid & ~gt_ignore)[:, block, None]
        most_here, owner_here = _settled(near, iou, positive, len(anchors))
        wins = most_here > most  # ties go to the first box
        owner = torch.where(wins, owner_here + block.start, owner)
        most = torch.where(wins, most_here, most)
    taken = most >= 0
    status = torch.where(in_crowds(anchors, gt_boxes, gt_valid & gt_ignore), -1, 0).to(torch.int8)
    return Matches(status.masked_fill_(taken, 1), owner)


def _nearest(
    anchors: Tensor, level_sizes: tuple[int, ...], per_location: int, gt_boxes: Tensor, candidates: int
) -> Tensor:
    """Anchor indices at the locations of each level nearest to the boxes [B, g, 4]: int64 [B, g, K]."""
    middles = _centres(gt_boxes)[:, :, None]
    of_location = torch.arange(per_location, device=anchors.device)
    found, first = [], 0
    for size in level_sizes:
        centres = _centres(anchors[first : first + size : per_location])
        distance = (middles - centres).square_().sum(3)  # [B, g, locations]
        places = distance.topk(min(candidates, len(centres)), largest=False).indices
        found.append(first + (places[..., None] * per_location + of_location).flatten(2))
        first += size
    return torch.cat(found, dim=2)


def _claims(near: Tensor, anchors: Tensor, gt_boxes: Tensor, best_anchor: bool) -> tuple[Tensor, Tensor]:
    """The IoU of the candidates [B, g, K] with their boxes [B, g, 4], and which are positive."""
    theirs, boxes = anchors[near], gt_boxes[:, :, None].expand(*near.shape, 4)
    iou = paired_iou(theirs.flatten(0, 2), boxes.flatten(0, 2)).view(near.shape)
    spread = iou.std(2, correction=min(1, near.shape[2] - 1))  # sample deviation, as in the paper's code
    reached = iou >= (iou.mean(2) + spread)[..., None]
    centres = _centres(theirs)
    inside = ((centres > boxes[..., :2]) & (centres < boxes[..., 2:])).all(3)
    positive = reached & inside & (iou > 0)
    if best_anchor:
        best = (iou == iou.amax(2, keepdim=True)) & (iou > 0)
        positive = torch.where(positive.any(2, keepdim=True), positive, best)
    return iou, positive


def _centres(boxes: Tensor) -> Tensor:
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def _settled(near: Tensor, iou: Tensor, positive: Tensor, anchors: int) -> tuple[Tensor, Tensor]:
    """From claims [B, g, K]: the highest IoU claiming each anchor, -1 for none, and its box; [B, N] each."""
    batch, gts, _ = near.shape
    claims = torch.where(positive, iou, -1).flatten(1)
    places = near.flatten(1)
    most = claims.new_full((batch, anchors), -1).scatter_reduce(1, places, claims, "amax")
    gt = torch.arange(gts, device=near.device)[None, :, None].expand_as(near).flatten(1)
    # Ties go to the first box.
    wins = claims == most.gather(1, places)
    owner = gt.new_full((batch, anchors), gts).scatter_reduce(1, places, torch.where(wins, gt, gts), "amin")
    return most, owner
