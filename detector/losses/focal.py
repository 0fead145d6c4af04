"""Focal loss over all anchors that are not ignored: the baseline for the ranking losses."""

import torch
from torch import Tensor
from torch.nn import functional as F

from detector.losses.batch_ranking import check_targets
from detector.losses.error_driven import error_driven
from detector.losses.exchange import Exchange
from detector.losses.uncompiled import uncompiled

# Logits per block: temporaries stay in a CPU's cache, or small compared with a GPU's memory.
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

    logits [any shape], targets integers of the same shape in {-1, 0, 1}, -1 ignored -> scalar, float32
    (float64 for float64 logits). With `exchange`, sum and number are those of all processes. The gradient
    is computed with the loss and takes as much memory as the logits (twice as much for float16); there is
    no second derivative.

    Raises:
        ValueError: the shapes differ, or a dtype is not supported.
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
    """Both divided by the count. The gradient [N] has the dtype of the logits, but float32 for float16: most
    negatives' gradients are too small for float16 before a loss scale has been applied.
    """
    exact = torch.float64 if logits.dtype == torch.float64 else torch.float32
    gradient = torch.empty_like(logits, dtype=exact if logits.dtype == torch.float16 else None)
    value = logits.new_zeros((), dtype=exact)
    size = _ON_CPU if logits.device.type == "cpu" else _ELSEWHERE
    for part, wanted, out in zip(logits.split(size), targets.split(size), gradient.split(size), strict=True):
        # Treat all as positives: alpha (1 - p)^gamma * -log p with p = sigmoid(z). For a negative, z is
        # the negated logit and 1 - alpha replaces alpha.
        positive, z = wanted == 1, part.to(exact)
        z = torch.where(positive, z, -z)
        missing, log_p = torch.sigmoid(-z), F.logsigmoid(z)
        weight = torch.where(positive, z.new_full((), alpha), z.new_full((), 1 - alpha)).mul_(missing**gamma)
        loss = weight * log_p
        slope = log_p.mul_(gamma).mul_(torch.sigmoid(z)).sub_(missing).mul_(weight).div_(count)
        nothing = wanted < 0  # ignored whatever the value, even NaN
        value -= loss.masked_fill_(nothing, 0).sum()
        out.copy_(torch.where(positive, slope, -slope).masked_fill_(nothing, 0))
    return value / count, gradient
