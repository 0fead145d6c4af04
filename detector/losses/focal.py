"""Focal loss over all anchors that take part: the baseline that the ranking losses are held against."""

import torch
from torch import Tensor
from torch.nn import functional as F

from detector.losses.batch_ranking import check_targets
from detector.losses.error_driven import error_driven
from detector.losses.exchange import Exchange
from detector.losses.uncompiled import uncompiled

# Logits at a time: what is made of them stays in the caches of a CPU, and is little beside a GPU's memory.
_ON_CPU, _ELSEWHERE = 1 << 17, 1 << 22


@uncompiled
def focal_loss(
    logits: Tensor,
    targets: Tensor,
    alpha: float = 0.25,
    gamma: float = 2.0,
    exchange: Exchange | None = None,
) -> Tensor:
    """Sigmoid focal loss (Lin et al., ICCV 2017), summed and divided by the number of positives.

    logits [any shape], targets integers of the same shape in {-1, 0, 1}, -1 takes no part -> scalar, float32
    (float64 for float64 logits). With `exchange` the sum and the number are those of all processes. The
    gradient is computed with the loss, and takes as much memory as the logits (twice as much for float16);
    it has no gradient itself.

    Raises:
        ValueError: the shapes differ, or a dtype is another.
    """
    check_targets(logits, targets)
    exchange = exchange or Exchange()
    count = exchange.sum(torch.count_nonzero(targets == 1)).clamp(min=1)
    value, gradient = _sum_and_gradient(logits.detach().flatten(), targets.flatten(), alpha, gamma, count)
    return exchange.sum_of_losses(error_driven(logits, value, gradient.view(logits.shape)))


@torch.no_grad()
def _sum_and_gradient(
    logits: Tensor, targets: Tensor, alpha: float, gamma: float, count: Tensor
) -> tuple[Tensor, Tensor]:
    """Both divided by the count; the gradient [N] as the logits are, but float32 for float16: most negatives'
    are too small for that before a loss scale has been applied.
    """
    exact = torch.float64 if logits.dtype == torch.float64 else torch.float32
    gradient = torch.empty_like(logits, dtype=exact if logits.dtype == torch.float16 else None)
    value = logits.new_zeros((), dtype=exact)
    size = _ON_CPU if logits.device.type == "cpu" else _ELSEWHERE
    for part, wanted, out in zip(logits.split(size), targets.split(size), gradient.split(size), strict=True):
        # As if each were positive: -log p counts alpha (1 - p)^gamma times, p = sigmoid(z); of a negative z
        # is the logit with the other sign, and alpha what is left to 1.
        positive, z = wanted == 1, part.to(exact)
        z = torch.where(positive, z, -z)
        missing, log_p = torch.sigmoid(-z), F.logsigmoid(z)
        weight = torch.where(positive, z.new_full((), alpha), z.new_full((), 1 - alpha)).mul_(missing**gamma)
        loss = weight * log_p
        slope = log_p.mul_(gamma).mul_(torch.sigmoid(z)).sub_(missing).mul_(weight).div_(count)
        nothing = wanted < 0  # whatever is there, NaN too
        value -= loss.masked_fill_(nothing, 0).sum()
        out.copy_(torch.where(positive, slope, -slope).masked_fill_(nothing, 0))
    return value / count, gradient
