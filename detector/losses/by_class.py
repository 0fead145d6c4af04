"""The ranking losses class by class: each class is ranked separately, and the losses are averaged.

The COCO and VOC metrics average over classes too. Ranked together, a class with 85 % of the boxes makes up
85 % of the loss; ranked separately, all classes weigh the same and never compete.

Here logits and targets are always [..., C]. A class without positives in the batch (of all processes) is
left out, its negatives included, but its logits are still checked.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from detector.losses.alrp import ALRP, alrp_loss
from detector.losses.ap import ap_loss
from detector.losses.batch_ranking import check_ranking, checked
from detector.losses.exchange import Exchange
from detector.losses.rank_sort import RankSort, rank_sort_loss_of
from detector.losses.uncompiled import uncompiled

# Takes the logits and targets of one class [...], and a mask bool [p] of the positives of this class.
_Loss = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]


@uncompiled
def class_ap_loss(
    logits: Tensor,
    targets: Tensor,
    delta: float = 1.0,
    interpolated: bool = True,
    exchange: Exchange | None = None,
) -> Tensor:
    """The mean of `ap_loss` over the classes that have positives.

    Args, returns, raises: as `ap_loss`; logits and targets are [..., C].
    """
    exchange = exchange or Exchange()

    def of_class(logits: Tensor, targets: Tensor, _: Tensor) -> tuple[Tensor]:
        return (ap_loss(logits, targets, delta, interpolated, exchange),)

    return _mean(of_class, logits, targets, delta, exchange)[0]


@uncompiled
def class_alrp_loss(
    logits: Tensor,
    targets: Tensor,
    regression_losses: Tensor,
    delta: float = 1.0,
    exchange: Exchange | None = None,
) -> ALRP:
    """The mean of `alrp_loss` over the classes that have positives; their boxes weigh the same, too.

    Args, returns, raises: as `alrp_loss`; logits and targets are [..., C].
    """
    exchange = exchange or Exchange()

    def of_class(logits: Tensor, targets: Tensor, chosen: Tensor) -> ALRP:
        return alrp_loss(logits, targets, regression_losses[chosen], delta, exchange)

    return ALRP(*_mean(of_class, logits, targets, delta, exchange, regression_losses))


@uncompiled
def class_rank_sort_loss_of(
    logits: Tensor, targets: Tensor, quality: Tensor, delta: float = 0.5, exchange: Exchange | None = None
) -> RankSort:
    """The mean of `rank_sort_loss_of` over the classes that have positives.

    Args, returns, raises: as `rank_sort_loss_of`; logits and targets are [..., C].
    """
    exchange = exchange or Exchange()

    def of_class(logits: Tensor, targets: Tensor, chosen: Tensor) -> RankSort:
        return rank_sort_loss_of(logits, targets, quality[chosen], delta, exchange)

    return RankSort(*_mean(of_class, logits, targets, delta, exchange, quality))


def _mean(
    loss: _Loss,
    logits: Tensor,
    targets: Tensor,
    delta: float,
    exchange: Exchange,
    per_positive: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """The mean of each part of the loss over the classes that have positives in any process.

    per_positive: the loss's extra input, one per positive, in their order in the flattened targets.
    """
    check_ranking(logits, targets, delta)
    if logits.dim() < 2:
        raise ValueError(f"logits must be [..., C], the anchors and their classes, got {list(logits.shape)}")
    # Check all classes: a bad logit would otherwise go unnoticed until its class has a positive.
    every = logits.detach().reshape(-1), targets.reshape(-1)
    if logits.device.type == "mps":  # as in the losses
        every = every[0].cpu(), every[1].cpu()
    places, _ = checked(*every, delta, exchange)
    if per_positive is not None and len(per_positive) != len(places):
        raise ValueError(f"expected one value per positive, [{len(places)}], got {list(per_positive.shape)}")
    count = targets.shape[-1]
    classes = places.long().remainder_(max(count, 1))
    present = exchange.sum(torch.bincount(classes, minlength=count)).nonzero().squeeze(1).tolist()
    classes = classes.to(logits.device)
    if not present:
        return loss(logits, targets, classes == 0)
    # Indexing each column would create a full-size gradient of the logits for every class.
    columns = logits.unbind(-1)
    losses = [loss(columns[c], targets[..., c], classes == c) for c in present]
    return tuple(torch.stack(part).mean() for part in zip(*losses, strict=True))
