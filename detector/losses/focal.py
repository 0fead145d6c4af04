"""Focal loss over all anchors that take part: the baseline that the ranking losses are held against."""

from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from detector.losses.exchange import Exchange


def focal_loss(
    logits: Tensor,
    targets: Tensor,
    alpha: float = 0.25,
    gamma: float = 2.0,
    exchange: Exchange | None = None,
) -> Tensor:
    """Sigmoid focal loss (Lin et al., ICCV 2017), summed and divided by the number of positives.

    logits [any shape], targets integers of the same shape in {-1, 0, 1}, -1 takes no part -> scalar.
    With `exchange` the sum and the number are those of all processes.
    """
    positive, out = targets == 1, targets < 0
    # Once for what is infinite, whose gradient would be NaN behind any mask, and once for the rest.
    loss = sigmoid_focal_loss(logits.float().masked_fill(out, 0), positive.float(), alpha, gamma)
    exchange = exchange or Exchange()
    return exchange.sum_of_losses(loss.masked_fill(out, 0).sum() / exchange.sum(positive.sum()).clamp(min=1))
