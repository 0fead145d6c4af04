"""AP-loss: 1 - average precision of the ranking of all anchors, with its error-driven gradient.

Chen et al., "Towards Accurate One-Stage Object Detection with AP-Loss" (CVPR 2019) and "AP-Loss for
Accurate One-Stage Object Detection" (TPAMI 2020). Here exact and in O((N + P) log P); the original
loops over the positives. docs/ranking.md has the definition and the derivation.
"""

from typing import Any

import torch
from torch import Tensor

from detector.losses.ranking import BinTotals, SoftSteps, blocks

# A narrower step would drown in the rounding of the break points.
MIN_DELTA = 1e-6


class NonFiniteLogits(ValueError):
    """A logit that takes part in a ranking is NaN or infinite."""


def ap_loss(logits: Tensor, targets: Tensor, delta: float = 1.0, interpolated: bool = True) -> Tensor:
    """One minus the average precision of the ranking of all logits.

    Args:
        logits: any floating dtype and shape. All elements are ranked together.
        targets: integer, same shape: 1 positive, 0 negative, -1 takes no part.
        delta: half-width of the soft step between two logits; 0 counts plainly, ties as a half.
        interpolated: use the precision envelope (the running maximum as the threshold rises).

    Returns:
        Scalar in [0, 1], float32 (float64 for float64 logits); 0 when there is no positive. Its
        backward pass hands the perceptron-like update of the papers, in the dtype of the logits:
        the gradient is defined, not derived, and sums to zero.

    Raises:
        ValueError: shapes differ, a dtype is wrong, a target is outside {-1, 0, 1}, or delta
            is neither 0 nor at least 1e-6.
        NonFiniteLogits: a ranked logit is NaN or infinite; the message names the first.
    """
    if logits.shape != targets.shape:
        raise ValueError(f"logits {tuple(logits.shape)} and targets {tuple(targets.shape)} differ in shape")
    if not logits.is_floating_point():
        raise ValueError(f"logits must be floating point, got {logits.dtype}")
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise ValueError(f"targets must be integers in {{-1, 0, 1}}, got {targets.dtype}")
    if delta != 0 and not delta >= MIN_DELTA:
        raise ValueError(f"delta must be 0 or at least {MIN_DELTA:g}, got {delta}")
    if logits.device.type == "mps":  # MPS has no float64, which the prefix sums need
        return ap_loss(logits.cpu(), targets.cpu(), delta, interpolated).to(logits.device)
    return _APLoss.apply(logits, targets, delta, interpolated)


class _APLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, delta: float, interpolated: bool) -> Tensor:
        loss, gradient = _loss_and_gradient(logits.reshape(-1), targets.reshape(-1), delta, interpolated)
        ctx.save_for_backward(gradient.view(logits.shape))
        ctx.dtype = logits.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * grad_outputs[0].to(gradient.dtype)).to(ctx.dtype), None, None, None


def _loss_and_gradient(
    logits: Tensor, targets: Tensor, delta: float, interpolated: bool
) -> tuple[Tensor, Tensor]:
    """logits [M], targets [M] -> scalar loss and the error-driven gradient [M].

    The gradient of float16 logits stays in float32 until it is multiplied by the loss scale: a
    negative's share is often too small for float16, and the scale itself too large.
    """
    exact = torch.float64 if logits.dtype == torch.float64 else torch.float32
    if targets.numel():
        low, high = torch.aminmax(targets)
        if low < -1 or high > 1:
            raise ValueError(f"targets must be in {{-1, 0, 1}}, got values from {int(low)} to {int(high)}")
    positives = (targets == 1).nonzero().squeeze(1)  # [P]
    if len(positives) == 0:
        return logits.new_zeros((), dtype=exact), torch.zeros_like(logits)

    f, order = logits[positives].to(exact).sort()
    if not torch.isfinite(f).all():
        _raise_not_finite(logits, targets)
    steps = SoftSteps(f, delta, len(logits))
    a = 0.5 + steps.counts_above(steps.totals(f, steps.bins_of(f)))  # [P] positives above, itself as 1
    bins, totals = _bin_negatives(steps, logits, targets, exact)
    if not torch.isfinite(totals.sums).all():
        _raise_not_finite(logits, targets)
    b = steps.counts_above(totals)  # [P] negatives above
    precision = a / (a + b)
    if interpolated:
        precision = precision.cummax(0).values  # f ascends: the best precision at or below
    error = 1 - precision
    p = len(positives)
    weights = torch.where(b > 0, error / b, 0) / p
    offset, slope = steps.lines(weights)

    gradient = torch.empty_like(logits, dtype=exact if logits.dtype == torch.float16 else None)
    for block in blocks(len(logits), logits.device):
        at = bins[block]
        slopes = slope.index_select(0, at)  # index_select takes int32 and is the fastest gather
        pull = slopes.mul_(logits[block]).add_(offset.index_select(0, at))
        # Bin 0 has no pull, but an ignored logit may be NaN, and NaN times 0 is NaN.
        gradient[block] = pull.clamp_min_(0).masked_fill_(targets[block] != 0, 0)
    gradient[positives[order]] = (-error / p).to(gradient.dtype)
    return error.mean().to(exact), gradient


def _bin_negatives(
    steps: SoftSteps, logits: Tensor, targets: Tensor, exact: torch.dtype
) -> tuple[Tensor, BinTotals]:
    """Bins of all elements, int32 [M] (0 for whatever is not a negative), and the negatives' totals."""
    bins = torch.empty(logits.shape, dtype=torch.int32, device=logits.device)
    totals = None
    for block in blocks(len(logits), logits.device):
        values = logits[block].to(exact)
        bins[block] = steps.bins_of(values).masked_fill_(targets[block] != 0, 0)
        part = steps.totals(values, bins[block])
        totals = part if totals is None else BinTotals(totals.counts + part.counts, totals.sums + part.sums)
    assert totals is not None
    return bins, totals


def _raise_not_finite(logits: Tensor, targets: Tensor) -> None:
    """Name the first ranked logit that is not finite; an ignored one may be anything."""
    bad = (~torch.isfinite(logits) & (targets >= 0)).nonzero().squeeze(1)
    if len(bad):
        first = int(bad[0])
        kind = "positive" if targets[first] == 1 else "negative"
        raise NonFiniteLogits(
            f"{len(bad)} of the ranked logits are not finite; the first is {float(logits[first])}, "
            f"a {kind}, at flat index {first}"
        )
