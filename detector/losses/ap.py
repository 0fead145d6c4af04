"""AP-loss: 1 - average precision of the ranking of all anchors, with its error-driven gradient.

Chen et al., "Towards Accurate One-Stage Object Detection with AP-Loss" (CVPR 2019) and "AP-Loss for
Accurate One-Stage Object Detection" (TPAMI 2020). Here exact and in O((N + P) log P); the original
loops over the positives. docs/ranking.md has the definition and the derivation.
"""

import torch
from torch import Tensor

from detector.losses.batch_ranking import BatchRanking, check_ranking
from detector.losses.error_driven import error_driven
from detector.losses.exchange import Exchange
from detector.losses.uncompiled import uncompiled


@uncompiled
def ap_loss(
    logits: Tensor,
    targets: Tensor,
    delta: float = 1.0,
    interpolated: bool = True,
    exchange: Exchange | None = None,
) -> Tensor:
    """One minus the average precision of the ranking of all logits.

    Args:
        logits: any floating dtype and shape. All elements are ranked together.
        targets: integer, same shape: 1 positive, 0 negative, -1 ignored.
        delta: half-width of the soft step between two logits; 0 is the plain step, ties count 1/2.
        interpolated: use the precision envelope (the running maximum as the threshold rises).
        exchange: rank jointly with other processes, each with its own logits. Every process gets
            the loss of the global batch and the gradient of its own logits. DistributedDataParallel
            averages gradients, so multiply the loss by the number of processes before backward().

    Returns:
        Scalar in [0, 1], float32 (float64 for float64 logits); 0 when there is no positive. Its
        backward pass yields the perceptron-like update of the papers, in the dtype of the logits:
        the gradient is defined, not derived, and sums to zero.

    Raises:
        ValueError: shapes differ, a dtype is wrong, a target is outside {-1, 0, 1}, or delta
            is neither 0 nor in [1e-6, 1e30].
        NonFiniteLogits: a ranked logit is NaN, infinite or beyond 1e12 delta; the message names the first.
    """
    check_ranking(logits, targets, delta)
    if logits.device.type == "mps":  # MPS has no float64, which the prefix sums need
        return ap_loss(logits.cpu(), targets.cpu(), delta, interpolated, exchange).to(logits.device)
    with torch.cuda.device_of(logits):  # Triton launches on the current device
        value, gradient = _loss_and_gradient(logits, targets, delta, interpolated, exchange or Exchange())
    return error_driven(logits, value, gradient)


@torch.no_grad()
def _loss_and_gradient(
    logits: Tensor, targets: Tensor, delta: float, interpolated: bool, exchange: Exchange
) -> tuple[Tensor, Tensor]:
    ranking = BatchRanking(logits.reshape(-1), targets.reshape(-1), delta, exchange)
    exact = ranking.f.dtype
    if len(ranking) == 0:
        return logits.new_zeros((), dtype=exact), torch.zeros_like(logits)
    errors, mean = ranking.imprecision(interpolated)
    return mean.to(exact), ranking.gradient(errors).view(logits.shape)
