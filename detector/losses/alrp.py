"""aLRP loss: one ranking of the anchors that balances classification and localisation.

Oksuz et al., "A Ranking-based, Balanced Loss Function Unifying Classification and Localisation in
Object Detection" (NeurIPS 2020). Here exact and in O((N + P) log P).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from detector.losses.batch_ranking import BatchRanking, check_ranking
from detector.losses.error_driven import error_driven
from detector.losses.exchange import Exchange
from detector.losses.uncompiled import uncompiled


class ALRP(NamedTuple):
    """The two parts of the loss, scalars in [0, 1]; their sum is the aLRP loss."""

    ranking_error: Tensor  # backpropagates to the logits
    localisation_error: Tensor  # backpropagates to the regression losses


@uncompiled
def alrp_loss(
    logits: Tensor,
    targets: Tensor,
    regression_losses: Tensor,
    delta: float = 1.0,
    exchange: Exchange | None = None,
) -> ALRP:
    """Mean over the positives of (negatives above + localisation errors above and own) / rank.

    With b_i negatives above positive i, E_i its regression loss, h_ik = H(f_k - f_i) the degree to
    which positive k ranks above i, and rank_i = 1 + sum_{k != i} h_ik + b_i:

        ranking error       mean_i b_i / rank_i
        localisation error  mean_i (E_i + sum_{k != i} h_ik E_k) / rank_i

    The update of the logits is error-driven: positive i gets -(b_i + sum_{k != i} h_ik E_k) / (P rank_i),
    0 where b_i = 0, and the negatives share the opposite in proportion to H(n_j - f_i). Through the
    negatives, a badly localised positive is pushed below a well localised one. The gradient of the
    regression losses is the true one with ranks held fixed.

    Args:
        logits, targets, delta, exchange: as for `ap_loss`.
        regression_losses: float [p], one value in [0, 1] per positive, in the order of the positives
            in the flattened targets, e.g. (1 - GIoU) / 2.

    Returns:
        The two parts, float32 (float64 for float64 logits); 0 when there is no positive.

    Raises:
        ValueError: as `ap_loss`, or regression_losses is not one value in [0, 1] per positive.
        NonFiniteLogits: a ranked logit is NaN, infinite or beyond 1e12 delta.

    Source: eqs. 8 to 10 of the paper; gradient: its section 4 (target error E_i / rank_i).
    """
    check_ranking(logits, targets, delta)
    if logits.device.type == "mps":  # MPS has no float64, which the prefix sums need
        parts = alrp_loss(logits.cpu(), targets.cpu(), regression_losses.cpu(), delta, exchange)
        return ALRP(*(part.to(logits.device) for part in parts))
    errors = regression_losses.detach().double()
    with torch.cuda.device_of(logits):  # Triton launches on the current device
        ranking, on_logits, localisation, on_errors = _errors_and_gradients(
            logits, targets, errors, delta, exchange or Exchange()
        )
    return ALRP(
        error_driven(logits, ranking, on_logits),
        error_driven(regression_losses, localisation, on_errors.to(regression_losses.dtype)),
    )


@torch.no_grad()
def _errors_and_gradients(
    logits: Tensor, targets: Tensor, own_errors: Tensor, delta: float, exchange: Exchange
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ranking error and its gradient, localisation error and its gradient."""
    ranking = BatchRanking(logits.reshape(-1), targets.reshape(-1), delta, exchange)
    if own_errors.shape != ranking.positives.shape:
        raise ValueError(
            f"regression_losses must have one value per positive, [{len(ranking.positives)}], got "
            f"{list(own_errors.shape)}"
        )
    if not bool(((own_errors >= 0) & (own_errors <= 1)).all()):
        raise ValueError("regression_losses must lie in [0, 1]")
    exact = ranking.f.dtype
    p = len(ranking)
    if p == 0:
        zero = logits.new_zeros((), dtype=exact)
        return zero, torch.zeros_like(logits), zero, own_errors
    errors = ranking.gather(own_errors)
    b = ranking.above_negatives
    rank = 0.5 + ranking.above_positives() + b  # i itself counts 1: 1/2 of it is in above_positives
    errors_above = (ranking.above_positives(errors) - errors / 2).clamp_min(0)
    update = torch.where(b > 0, (b + errors_above) / rank, 0)
    on_logits = ranking.gradient(update).view(logits.shape)
    # E_k enters the error of k itself, by 1 / rank_k, and that of every positive i below, by h_ik / rank_i.
    part = 1 / rank
    on_errors = ranking.own((part / 2 + ranking.pull_on_positives(part)) / p)
    localisation = ((errors + errors_above) / rank).mean()
    return (b / rank).mean().to(exact), on_logits, localisation.to(exact), on_errors
