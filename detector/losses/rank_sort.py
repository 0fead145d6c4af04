"""Rank & Sort loss: positives above negatives, and among themselves in the order of their quality.

Oksuz et al., "Rank & Sort Loss for Object Detection and Instance Segmentation" (ICCV 2021). The
ranking part is exact in O((N + P) log P), the sorting part in O(P log P), or O(P log^2 P) without numba.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from detector.losses.backends import backend_of
from detector.losses.batch_ranking import BatchRanking, check_ranking
from detector.losses.compiled import CompiledPairs
from detector.losses.error_driven import two_error_driven
from detector.losses.exchange import Exchange
from detector.losses.sorting import SortedPositives
from detector.losses.uncompiled import uncompiled


class RankSort(NamedTuple):
    """The two parts of the loss, scalars in [0, 1], each with a gradient of its own."""

    ranking_error: Tensor  # what negatives above positives cost
    sorting_error: Tensor  # what positives of low quality above those of high quality cost


@uncompiled
def rank_sort_loss(
    logits: Tensor, quality: Tensor, delta: float = 0.5, exchange: Exchange | None = None
) -> RankSort:
    """Mean ranking error and mean sorting error over the positives.

    With b_i negatives and a_i = sum_k H(f_k - f_i) positives above positive i (itself as 1/2), q_i its
    quality and B_i the positives k with q_k >= q_i:

        ranking error   r_i = b_i / (a_i + b_i)
        sorting error   s_i = mean of 1 - q_k over the positives above i, weighted by H(f_k - f_i),
                              minus the same over those of them in B_i

    Error-driven update: positive i gets -r_i / P, shared by the negatives in proportion to
    H(n_j - f_i), and -s_i / P, shared in proportion to H(f_k - f_i) by the positives k outside B_i,
    which should not be above it.

    Args:
        logits: any floating dtype and shape. All elements are ranked together.
        quality: float, same shape: the target score of a positive in (0, 1], e.g. the IoU of its
            box; 0 for negatives, -1 for ignored elements.
        delta: half-width of the soft step between two logits; 0 is the plain step, ties count 1/2.
        exchange: as for `ap_loss`.

    Returns:
        The two parts, float32 (float64 for float64 logits); 0 when there is no positive. Each of
        their gradients sums to zero.

    Raises:
        ValueError: as `ap_loss`, or a quality is neither -1 nor in [0, 1].
        NonFiniteLogits: a ranked logit is NaN, infinite or beyond 1e12 delta.

    Source: eqs. 5 to 9 of the paper; that i itself counts 1/2 follows its published code.
    """
    if not quality.is_floating_point():
        raise ValueError(f"quality must be floating point, got {quality.dtype}")
    targets, flat = _targets(quality.detach()), quality.detach().reshape(-1)
    return _rank_sort(logits, targets, lambda places: flat.index_select(0, places), delta, exchange)


@uncompiled
def rank_sort_loss_of(
    logits: Tensor, targets: Tensor, quality: Tensor, delta: float = 0.5, exchange: Exchange | None = None
) -> RankSort:
    """`rank_sort_loss` for known targets: needs no quality tensor as large as the logits.

    Args:
        targets: as for `ap_loss`.
        quality: float [p], one in (0, 1] per positive, in the order of the positives in the flattened
            targets.

    Raises:
        ValueError: as `ap_loss`, or quality is not one value in (0, 1] per positive.
    """
    quality = quality.detach()
    if not bool(((quality > 0) & (quality <= 1)).all()):
        raise ValueError("quality must lie in (0, 1]")

    def of_positives(places: Tensor) -> Tensor:
        if quality.shape != places.shape:
            raise ValueError(
                f"quality must have one value per positive, [{len(places)}], got {list(quality.shape)}"
            )
        return quality

    return _rank_sort(logits, targets, of_positives, delta, exchange)


def _rank_sort(
    logits: Tensor,
    targets: Tensor,
    quality_at: Callable[[Tensor], Tensor],
    delta: float,
    exchange: Exchange | None,
) -> RankSort:
    """quality_at: maps the flat indices [p] of positives to their quality, float [p]."""
    check_ranking(logits, targets, delta)
    if logits.device.type == "mps":  # MPS has no float64, which the prefix sums need

        def there(places: Tensor) -> Tensor:
            return quality_at(places.to(logits.device)).cpu()

        parts = _rank_sort(logits.cpu(), targets.cpu(), there, delta, exchange)
        return RankSort(*(part.to(logits.device) for part in parts))
    with torch.cuda.device_of(logits):  # Triton launches on the current device
        ranking, sorting, gradient, positives, of_each = _errors_and_gradients(
            logits, targets, quality_at, delta, exchange or Exchange()
        )
    return RankSort(*two_error_driven(logits, (ranking, sorting), gradient, positives, of_each))


def _targets(quality: Tensor) -> Tensor:
    """1, 0 or -1 for positive, negative and ignored, as int8 of the same shape.

    Raises:
        ValueError: a quality is neither -1 nor in [0, 1].
    """
    targets = backend_of(quality.device).targets_of_quality(quality.reshape(-1))
    if targets is None:
        raise ValueError("quality must be -1 or in [0, 1]")
    return targets.view(quality.shape)


@torch.no_grad()
def _errors_and_gradients(
    logits: Tensor,
    targets: Tensor,
    quality_at: Callable[[Tensor], Tensor],
    delta: float,
    exchange: Exchange,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Ranking and sorting error, the gradient of their sum, the flat indices of the positives [p], and the
    gradient of each of the two errors at these, [2, p].
    """
    ranking = BatchRanking(logits.reshape(-1), targets.reshape(-1), delta, exchange)
    own_quality, exact = quality_at(ranking.positives), ranking.f.dtype
    p = len(ranking)
    if p == 0:
        zero = logits.new_zeros((), dtype=exact)
        nothing = logits.new_zeros(logits.shape)  # contiguous, like the gradient below
        return zero, zero, nothing, ranking.positives, logits.new_zeros(2, 0)
    b = ranking.above_negatives
    error = b / (ranking.above_positives() + b)
    gradient = ranking.gradient(error)
    quality_of = ranking.gather(own_quality)
    sorting, update = _sorting(ranking.pairs(quality_of), quality_of)
    of_each = torch.stack((ranking.own(error), ranking.own(-update))).div_(-p)
    places = ranking.positives.long()
    gradient[places] = of_each.sum(0).to(gradient.dtype)
    errors = error.mean().to(exact), sorting.mean().to(exact)
    return *errors, gradient.view(logits.shape), places, of_each


def _sorting(positives: SortedPositives | CompiledPairs, quality: Tensor) -> tuple[Tensor, Tensor]:
    """Sorting error of every positive, and the update of all positives; float64 [P] each.

    Over the positives above i that are no worse, let A_0 be the sum of 1 and A_1 that of 1 - q_k, both
    weighted by H(f_k - f_i); W_0 and W_1 are the same over those that are worse. The error is

        (A_1 + W_1) / (A_0 + W_0) - A_1 / A_0  =  W_0 / (A_0 + W_0) (W_1 / W_0 - A_1 / A_0)

    where the second form does not cancel when the error is small.
    """
    lacking = torch.stack((torch.ones_like(quality), 1 - quality), dim=1)  # [P, 2]
    worse = positives.sums_of_worse(lacking)
    no_worse = positives.sums_of_no_worse(lacking, worse)
    total = worse[:, 0]
    part = total / (total + no_worse[:, 0])
    gap = worse[:, 1] / total - no_worse[:, 1] / no_worse[:, 0]
    errors = torch.where(total > 0, part * gap.clamp_min(0), 0)
    # Each worse positive k receives the part of i's error that it causes.
    shares = torch.where(total > 0, errors / total, 0)
    return errors, positives.pull_of_better(shares) - errors
