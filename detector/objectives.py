"""Classification and boxes together: what each family of losses makes the total from."""

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
# of logits, targets and a value per positive: its regression loss, its quality
RankAndLocalise = Callable[[Tensor, Tensor, Tensor], ALRP]
RankAndSort = Callable[[Tensor, Tensor, Tensor], RankSort]
# logits [..., C], targets int8 alike, positives -> named parts of the loss, already weighted
Objective = Callable[[Tensor, Tensor, "Positives"], dict[str, Tensor]]

# A positive whose box misses its object altogether is a positive all the same.
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
    """A classification loss and a mean box error, neither of which knows the other."""
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

    Self-balancing (section 5 of its paper) brings the box part up to the total of both. The paper
    takes the factor from the last epoch and guesses the first one; here it is that of the step.
    """
    errors = giou_errors(*positives, std=box_std) / 2
    ranking, box = rank(logits, targets, errors.nan_to_num(nan=1.0).clamp(0, 1))
    # Boxes that are not finite are found with the loss: an error here would leave other processes waiting.
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
    """Rank & Sort, the quality of a positive being the IoU of its box.

    Self-balancing (section 4 of its paper) brings the box part up to the ranking and sorting parts.
    """
    boxes = decode(positives.deltas.detach(), positives.anchors, box_std)
    # NaN, as of every box that is not finite, comes out in the box part.
    iou = paired_iou(boxes, positives.gt_boxes).nan_to_num(nan=0.0).clamp(_LEAST_QUALITY, 1)
    ranking, sorting = rank(logits, targets, iou)
    box = mean_over_all(box_errors(*positives), exchange)
    parts = {"classification": ranking, "sorting": sorting, "box": box_weight * box}
    return parts | (_balance(ranking + sorting, box, box_weight) if self_balance else {})


def mean_over_all(errors: Tensor, exchange: Exchange) -> Tensor:
    """The mean of the errors [p] of all processes; 0 without any.

    With no positive this is still a sum over the network's output: every parameter gets a gradient.
    """
    # A tensor of a number would be copied to a GPU, and wait for it.
    count = exchange.sum(errors.new_full((), len(errors), dtype=torch.int64))
    return exchange.sum_of_losses(errors.sum() / count.clamp(min=1))


def _balance(wanted: Tensor, box: Tensor, box_weight: float) -> dict[str, Tensor]:
    """What the box part lacks of `wanted`, a part of its own, so the box part tells how good boxes are."""
    seen = box.detach()
    factor = torch.where(seen > 0, wanted.detach() / seen, 1)
    return {"balance": box_weight * (factor - 1) * box}
