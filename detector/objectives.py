"""Objectives: how each family of losses combines classification and boxes into the total."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from detector.boxes import decode, paired_iou
from detector.losses import Exchange, giou_errors
from detector.losses.alrp import ALRP
from detector.losses.rank_sort import RankSort

ClassLoss = Callable[[Tensor, Tensor], Tensor]  # logits, targets in {-1, 0, 1} -> scalar
BoxErrors = Callable[[Tensor, Tensor, Tensor], Tensor]  # deltas, gt boxes, anchors [p, 4] -> [p]
# logits, targets and a value per positive (regression loss or quality) -> the parts of the loss
RankAndLocalise = Callable[[Tensor, Tensor, Tensor], ALRP]
RankAndSort = Callable[[Tensor, Tensor, Tensor], RankSort]
# logits [..., C], targets int8 [..., C], positives -> named parts of the loss, already weighted
Objective = Callable[[Tensor, Tensor, "Positives"], dict[str, Tensor]]

# A positive whose box misses its object stays a positive; a quality of 0 would make it a negative.
_LEAST_QUALITY = 1e-3


class Positives(NamedTuple):
    """The positive anchors of a batch, in the order of the flattened targets; float32 [p, 4] each."""

    deltas: Tensor
    gt_boxes: Tensor
    anchors: Tensor


def separate(
    logits: Tensor,
    targets: Tensor,
    positives: Positives,
    *,
    class_loss: ClassLoss,
    box_errors: BoxErrors,
    box_weight: float,
    exchange: Exchange,
) -> dict[str, Tensor]:
    """A classification loss and a mean box error, independent of each other."""
    box = mean_over_all(box_errors(*positives), exchange)
    return {"classification": class_loss(logits, targets), "box": box_weight * box}


def alrp(
    logits: Tensor,
    targets: Tensor,
    positives: Positives,
    *,
    rank: RankAndLocalise,
    box_std: Tensor,
    box_weight: float,
    self_balance: bool,
) -> dict[str, Tensor]:
    """aLRP with (1 - GIoU) / 2 as localisation error.

    Self-balancing (section 5 of the paper) scales the box part up to the total of both parts. The paper
    takes the factor from the last epoch, with a guess for the first; here it is computed in each step.
    """
    errors = giou_errors(*positives, std=box_std) / 2
    ranking, box = rank(logits, targets, errors.nan_to_num(nan=1.0).clamp(0, 1))
    # Non-finite boxes are detected through the loss: an error here would leave other processes waiting.
    box = box + 0 * errors.sum()
    parts = {"classification": ranking, "box": box_weight * box}
    return parts | (_balance(ranking + box, box, box_weight) if self_balance else {})


def rank_sort(
    logits: Tensor,
    targets: Tensor,
    positives: Positives,
    *,
    rank: RankAndSort,
    box_errors: BoxErrors,
    box_std: Tensor,
    box_weight: float,
    self_balance: bool,
    exchange: Exchange,
) -> dict[str, Tensor]:
    """Rank & Sort, with the IoU of its box as the quality of a positive.

    Self-balancing (section 4 of the paper) scales the box part up to the sum of ranking and sorting parts.
    """
    boxes = decode(positives.deltas.detach(), positives.anchors, box_std)
    # NaN, as for any non-finite box, shows up in the box part.
    iou = paired_iou(boxes, positives.gt_boxes).nan_to_num(nan=0.0).clamp(_LEAST_QUALITY, 1)
    ranking, sorting = rank(logits, targets, iou)
    box = mean_over_all(box_errors(*positives), exchange)
    parts = {"classification": ranking, "sorting": sorting, "box": box_weight * box}
    return parts | (_balance(ranking + sorting, box, box_weight) if self_balance else {})


def mean_over_all(errors: Tensor, exchange: Exchange) -> Tensor:
    """The mean of the errors [p] of all processes; 0 if there are none.

    Without positives this is still a sum over the network's output, so every parameter gets a gradient.
    """
    # new_full, since torch.tensor would copy the number to a GPU and wait for it.
    count = exchange.sum(errors.new_full((), len(errors), dtype=torch.int64))
    return exchange.sum_of_losses(errors.sum() / count.clamp(min=1))


def _balance(wanted: Tensor, box: Tensor, box_weight: float) -> dict[str, Tensor]:
    """What the box part lacks of `wanted`: a separate part, so that the box part still shows box quality."""
    seen = box.detach()
    factor = torch.where(seen > 0, wanted.detach() / seen, 1)
    return {"balance": box_weight * (factor - 1) * box}
