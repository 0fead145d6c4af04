"""The ranking of a batch: where each positive stands among all positives and all negatives.

All ranking losses are built on this. They differ in the error they derive from a positive's rank,
and share how it is passed back: each negative receives the part of a positive's error that it causes.
"""

from numbers import Real

import torch
from torch import Tensor

from detector.losses.backends import backend_of, in_given_order
from detector.losses.compiled import CompiledPairs
from detector.losses.exchange import Exchange
from detector.losses.sorting import SortedPositives

# A narrower step would be lost in the rounding of the break points.
MIN_DELTA = 1e-6
# A wider one would cover float32's whole range, with infinite break points.
MAX_DELTA = 1e30

# In units of delta. Farther from 0 float64 rounding swallows the steps, and the loss would look perfect.
_FARTHEST = 1e12


class NonFiniteLogits(ValueError):
    """A ranked logit is NaN, infinite, or too large to be distinguished from others."""


class BatchRanking:
    """Positives and negatives of a batch, counted with the soft step H of half-width delta.

    "Positive i" runs over the P positives of all processes in ascending order of their logits f_i.
    Everything per positive is float64 [P].

    Args:
        logits: float [M].
        targets: integer [M]: 1 positive, 0 negative, -1 ignored.
        delta: 0 or at least MIN_DELTA.
        exchange: the processes that rank jointly.

    Attributes:
        positives: int32 or int64 [p], flat indices of this process's positives, ascending.
        above_negatives: sum_j H(n_j - f_i), over all negatives.

    Raises:
        ValueError: a target is outside {-1, 0, 1}.
        NonFiniteLogits: a ranked logit is NaN, infinite or beyond 1e12 delta; the message names the first.
    """

    def __init__(self, logits: Tensor, targets: Tensor, delta: float, exchange: Exchange) -> None:
        self._exchange, self._backend = exchange, backend_of(logits.device)
        self.positives, self._logits = checked(logits, targets, delta, exchange)
        self._dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        f, self._own = exchange.gather(logits.index_select(0, self.positives).to(self._dtype))
        self.f, self._order = self._backend.ascending(f)
        del f  # saves memory when there are many positives
        if len(self.f) == 0:
            self.above_negatives = self.f.double()
            return
        self._steps, self._negatives = self._backend.steps_and_negatives(self.f, delta, self._logits, targets)
        totals = exchange.sum(self._negatives.count())
        self.above_negatives = self._steps.counts_above(totals)

    def __len__(self) -> int:
        """P, the number of positives of all processes."""
        return len(self.f)

    def gather(self, values: Tensor) -> Tensor:
        """values [p], in the order of `positives` -> float64 [P] of all processes, in the order of f."""
        return self._exchange.gather(values.double()).values.index_select(0, self._order)

    def own(self, values: Tensor) -> Tensor:
        """The inverse of `gather`: [P] in the order of f -> [p] in the order of `positives`."""
        return in_given_order(values, self._order)[self._own]

    def imprecision(self, interpolated: bool) -> tuple[Tensor, Tensor]:
        """One minus the precision at each positive, [P], and its mean, []; see `Backend.imprecision`."""
        return self._backend.imprecision(self.above_negatives, self.above_positives(), interpolated)

    def above_positives(self, values: Tensor | None = None) -> Tensor:
        """sum_k v_k H(f_k - f_i) for values v [P] >= 0, default 1; k = i counts v_i / 2."""
        return self._steps.own_counts_above(values)

    def pull_on_positives(self, weights: Tensor) -> Tensor:
        """sum_i w_i H(f_k - f_i) for each positive k, with weights [P] >= 0; i = k counts w_k / 2."""
        return self._steps.own_pull(weights)

    def pairs(self, quality: Tensor) -> SortedPositives | CompiledPairs:
        """The positives of all processes, compared by quality too: float64 [P], in the order of f."""
        return self._backend.pairs(self._steps, self.f, quality)

    def gradient(self, errors: Tensor) -> Tensor:
        """The error-driven gradient of this process's logits, [M].

        errors: float64 [P], non-negative, 0 where no negative ranks above. Positive i gets -e_i / P, and
        the negatives share the opposite in proportion to H(n_j - f_i).

        float16 logits get a float32 gradient: a negative's share is often too small for float16.
        """
        weights = self._backend.shares(errors, self.above_negatives)
        half = self._logits.dtype == torch.float16
        gradient = self._negatives.pull(weights, self._dtype if half else self._logits.dtype)
        self._backend.hand_out(errors, self._order, self._own, self.positives, gradient)
        return gradient


def checked(logits: Tensor, targets: Tensor, delta: float, exchange: Exchange) -> tuple[Tensor, Tensor]:
    """The indices of the positives among the targets [M], int32 or int64 [p], and the logits [M].

    If any logit is too far from 0 to be ranked, ignored logits are replaced by 0.

    Raises:
        ValueError: a target is outside {-1, 0, 1}.
        NonFiniteLogits: a ranked logit is too far from 0, or NaN, here or in another process.
    """
    # Plain steps only compare logits; the limit keeps the difference of two from overflowing.
    farthest = _FARTHEST * delta if delta else 1e300
    positives, low, high, all_near = backend_of(logits.device).survey(logits, targets, farthest)
    if low < -1 or high > 1:
        raise ValueError(f"targets must be in {{-1, 0, 1}}, got {low if low < -1 else high:g}")
    bad = []
    if not all_near:
        near = logits.double().abs() <= farthest  # False for NaN
        bad = (~near & (targets >= 0)).nonzero().squeeze(1).tolist()
    everywhere = len(bad)
    if exchange.size > 1:
        everywhere = int(exchange.sum(torch.tensor(len(bad), device=logits.device)))
    if bad:
        kind = "positive" if targets[bad[0]] == 1 else "negative"
        raise NonFiniteLogits(
            f"{len(bad)} of the ranked logits are not finite, or beyond {farthest:g}; the first is "
            f"{float(logits[bad[0]])}, a {kind}, at flat index {bad[0]}"
        )
    if everywhere:
        raise NonFiniteLogits(f"a ranked logit of another process is not finite, or beyond {farthest:g}")
    return positives, logits if all_near else logits.masked_fill(targets < 0, 0)


def check_ranking(logits: Tensor, targets: Tensor, delta: float) -> None:
    """Checks shared by the ranking losses that do not read the values.

    Raises:
        ValueError: shapes differ, a dtype is wrong, or delta is neither 0 nor in [1e-6, 1e30].
    """
    check_targets(logits, targets)
    if not isinstance(delta, Real) or (delta != 0 and not MIN_DELTA <= delta <= MAX_DELTA):
        raise ValueError(f"delta must be a number, 0 or {MIN_DELTA:g} to {MAX_DELTA:g}, got {delta!r:.80}")


def check_targets(logits: Tensor, targets: Tensor) -> None:
    """Raises ValueError: the shapes differ, or a classification loss does not accept a dtype."""
    if logits.shape != targets.shape:
        raise ValueError(
            f"logits {tuple(logits.shape)} and targets {tuple(targets.shape)} differ in shape: each logit "
            "needs a target, 0 or 1 for each class (torch.nn.functional.one_hot)"
        )
    if logits.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise ValueError(f"logits must be floating point of 16, 32 or 64 bits, got {logits.dtype}")
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise ValueError(
            f"targets must be integers in {{-1, 0, 1}}, got {targets.dtype}; convert zeros and ones with "
            "targets.long()"
        )
