"""Focal loss over all anchors that take part: the baseline that the ranking losses are held against."""

from torch import Tensor
from torchvision.ops import sigmoid_focal_loss


def focal_loss(logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Sigmoid focal loss (Lin et al., ICCV 2017), summed and divided by the number of positives.

    logits [any shape], targets integers of the same shape in {-1, 0, 1}, -1 takes no part -> scalar.
    """
    positive = targets == 1
    loss = sigmoid_focal_loss(logits.float(), positive.float(), alpha, gamma)
    return loss.masked_fill(targets < 0, 0).sum() / positive.sum().clamp(min=1)
