"""How much of the background a ranking loss still looks at: a measure of how far the training is."""

import torch
from torch import Tensor

from detector.losses import Exchange


@torch.no_grad()
def ranked_share(
    logits: Tensor, targets: Tensor, *, delta: float, class_by_class: bool, exchange: Exchange
) -> Tensor:
    """The part of the negatives that a ranking loss gives a gradient: those that reach a positive's step.

    A negative counts against a positive if it is more than -delta above it (with a delta of 0 at a tie as
    well), so the lowest positive says which negatives count at all. 0 without positives.

    Args:
        logits: float [..., C].
        targets: int8 [..., C] in {-1, 0, 1}.
        delta: half-width of the soft step.
        class_by_class: each class is ranked by itself.
        exchange: the processes that rank together; all must call.

    Returns:
        a scalar on the device of the logits, in [0, 1].
    """
    logits, targets = logits.flatten(0, -2), targets.flatten(0, -2)  # [M, C]
    row, column = (targets == 1).nonzero(as_tuple=True)
    lowest = torch.full(logits.shape[1:], torch.inf, device=logits.device)
    lowest = lowest.scatter_reduce(0, column, logits[row, column].float(), "amin")  # [C]
    lowest = exchange.gather(lowest[None]).values.amin(0)
    if not class_by_class:
        lowest = lowest.amin().expand_as(lowest)  # not a scalar, which would be rounded to bfloat16 logits
    negatives = targets == 0
    # Without a soft step a tie counts a half.
    reached = logits >= lowest if delta == 0 else logits > lowest - delta
    ranked = torch.stack([(reached & negatives).sum(), negatives.sum()])
    ranked = exchange.sum(ranked)
    return ranked[0] / ranked[1].clamp(min=1)
