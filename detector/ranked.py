"""How much of the background a ranking loss still sees: a measure of training progress."""

import torch
from torch import Tensor

from detector.losses import Exchange


@torch.no_grad()
def ranked_share(
    logits: Tensor, targets: Tensor, *, delta: float, class_by_class: bool, exchange: Exchange
) -> Tensor:
    """The fraction of the negatives that a ranking loss gives a gradient: those within reach of a positive.

    A negative counts against a positive if its logit is above the positive's minus delta (for delta 0, ties
    count too), so the lowest positive decides which negatives count at all. 0 without positives.

    Args:
        logits: float [..., C].
        targets: int8 [..., C] in {-1, 0, 1}.
        delta: half-width of the soft step.
        class_by_class: each class is ranked separately.
        exchange: the processes that rank jointly; all of them must call this.

    Returns:
        A scalar in [0, 1] on the device of the logits.
    """
    logits, targets = logits.flatten(0, -2), targets.flatten(0, -2)  # [M, C]
    row, column = (targets == 1).nonzero(as_tuple=True)
    lowest = torch.full(logits.shape[1:], torch.inf, device=logits.device)
    lowest = lowest.scatter_reduce(0, column, logits[row, column].float(), "amin")  # [C]
    lowest = exchange.gather(lowest[None]).values.amin(0)
    if not class_by_class:
        lowest = lowest.amin().expand_as(lowest)  # a 0-dim tensor would be rounded to the logits' bfloat16
    negatives = targets == 0
    # With the plain step a tie counts 1/2.
    reached = logits >= lowest if delta == 0 else logits > lowest - delta
    ranked = torch.stack([(reached & negatives).sum(), negatives.sum()])
    ranked = exchange.sum(ranked)
    return ranked[0] / ranked[1].clamp(min=1)
