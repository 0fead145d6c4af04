"""The ranking of a batch: where each positive stands among all positives and all negatives.

All ranking losses are made of this. They differ in the error that they read off a positive's
standing, and share how it is given back: a negative takes from each positive the part it has in
the positive's error.
"""

from numbers import Real

import torch
from torch import Tensor

from detector.losses.backends import backend_of, in_given_order
from detector.losses.compiled import CompiledPairs
from detector.losses.exchange import Exchange
from detector.losses.sorting import SortedPositives

# A narrower step would drown in the rounding of the break points.
MIN_DELTA = 1e-6
# A wider one is all of float32's range, and its break points would be infinite.
MAX_DELTA = 1e30

# So many times delta from 0 the steps drown in the rounding of float64, and a loss would seem perfect.
_FARTHEST = 1e12


class NonFiniteLogits(ValueError):
    """A logit that takes part in a ranking is NaN, infinite, or too large to be told from others."""


class BatchRanking:
    """Positives and negatives of a batch, counted with the soft step H of half-width delta.

    "Positive i" runs over the P positives of all processes in ascending order of their logits f_i.
    Everything per positive is float64 [P].

    Args:
        logits: float [M].
        targets: integer [M]: 1 positive, 0 negative, -1 takes no part.
        delta: 0 or at least MIN_DELTA.
        exchange: the processes that rank together.

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
        del f  # with many positives every table counts
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
        """values [p], in the order of `positives` -> float64 [P] of all processes, as f is ordered."""
        return self._exchange.gather(values.double()).values.index_select(0, self._order)

    def own(self, values: Tensor) -> Tensor:
        """The reverse: [P] in ascending order of f -> [p] in the order of `positives`."""
        return in_given_order(values, self._order)[self._own]

    def imprecision(self, interpolated: bool) -> tuple[Tensor, Tensor]:
        """One minus the precision at each positive, [P], and its mean, []; see `Backend.imprecision`."""
        return self._backend.imprecision(self.above_negatives, self.above_positives(), interpolated)

    def above_positives(self, values: Tensor | None = None) -> Tensor:
        """sum_k v_k H(f_k - f_i) for non-negative values v [P], ones unless given; i itself as v_i / 2."""
        return self._steps.own_counts_above(values)

    def pull_on_positives(self, weights: Tensor) -> Tensor:
        """sum_i w_i H(f_k - f_i) for each positive k, k itself as w_k / 2; non-negative weights [P]."""
        return self._steps.own_pull(weights)

    def pairs(self, quality: Tensor) -> SortedPositives | CompiledPairs:
        """The positives of all processes, compared by their quality too: float64 [P], as f is ordered."""
        return self._backend.pairs(self._steps, self.f, quality)

    def gradient(self, errors: Tensor) -> Tensor:
        """The error-driven gradient of this process's logits, [M].

        errors: float64 [P], non-negative, 0 where no negative is above. Positive i gets -e_i / P, which
        the negatives share in proportion to H(n_j - f_i).

        float16 logits get a float32 gradient: a negative's share is often too small for float16.
        """
        weights = self._backend.shares(errors, self.above_negatives)
        half = self._logits.dtype == torch.float16
        gradient = self._negatives.pull(weights, self._dtype if half else self._logits.dtype)
        self._backend.hand_out(errors, self._order, self._own, self.positives, gradient)
        return gradient


def checked(logits: Tensor, targets: Tensor, delta: float, exchange: Exchange) -> tuple[Tensor, Tensor]:
    """Where the positives are among the targets [M], int32 or int64 [p], and the logits [M].

    Of these zeros in the place of those that take no part, if any is too far from 0 to be ranked.

    Raises:
        ValueError: a target is outside {-1, 0, 1}.
        NonFiniteLogits: a logit that takes part is too far from 0, or NaN, here or in another process.
    """
    # Plain steps compare, and what may overflow is a difference of two.
    farthest = _FARTHEST * delta if delta else 1e300
    positives, low, high, all_near = backend_of(logits.device).survey(logits, targets, farthest)
    if low < -1 or high > 1:
        raise ValueError(f"targets must be in {{-1, 0, 1}}, got {low if low < -1 else high:g}")
    bad = []
    if not all_near:
        near = logits.double().abs() <= farthest  # which NaN is not
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
    """The checks that the ranking losses share and that need no look at the numbers.

    Raises:
        ValueError: shapes differ, a dtype is wrong, or delta is neither 0 nor from 1e-6 to 1e30.
    """
    check_targets(logits, targets)
    if not isinstance(delta, Real) or (delta != 0 and not MIN_DELTA <= delta <= MAX_DELTA):
        raise ValueError(f"delta must be a number, 0 or {MIN_DELTA:g} to {MAX_DELTA:g}, got {delta!r:.80}")


def check_targets(logits: Tensor, targets: Tensor) -> None:
    """Raises ValueError: the shapes differ, or a dtype is not what a classification loss takes."""
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
