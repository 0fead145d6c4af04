"""Cross-entropy with hard negatives: a baseline in the papers of the ranking losses."""

import torch
from torch import Tensor
from torch.nn import functional as F

from detector.losses.batch_ranking import check_targets
from detector.losses.exchange import Exchange


def ce_ohem_loss(
    logits: Tensor, targets: Tensor, negatives_per_positive: float = 3.0, exchange: Exchange | None = None
) -> Tensor:
    """Sigmoid cross-entropy of the positives and of the hardest negatives, over the number of positives.

    Online hard example mining as in SSD (Liu et al., ECCV 2016) and the AP-loss papers' "CE-Loss +
    OHEM": of all negatives of the batch only those with the highest logits count,
    `negatives_per_positive` for each positive. A batch without positives uses as many as for one
    positive, and at least one, so that it teaches too.

    logits [any shape], targets integers of the same shape in {-1, 0, 1}, -1 ignored -> scalar.
    With `exchange`, sum and number are those of all processes; each selects hard negatives among
    its own.

    Raises:
        ValueError: the shapes differ, or a dtype is not supported.
    """
    check_targets(logits, targets)
    logits, targets = logits.float().reshape(-1), targets.reshape(-1)
    positives = logits[targets == 1]
    negatives = logits[targets == 0]
    count = len(positives)
    exchange = exchange or Exchange()
    everywhere = int(exchange.sum(torch.tensor(count, device=logits.device)))
    wanted = negatives_per_positive * count if everywhere else max(negatives_per_positive, 1)
    hardest = negatives.topk(round(min(wanted, len(negatives))), sorted=False).values
    # Without any positive, each process takes as many negatives as for one, and the losses are averaged.
    return exchange.sum_of_losses(
        (F.softplus(-positives).sum() + F.softplus(hardest).sum()) / (everywhere or exchange.size)
    )
