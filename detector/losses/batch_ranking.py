"""The ranking of a batch: where each positive stands among all positives and all negatives.

All ranking losses are made of this. They differ in the error that they read off a positive's
standing, and share how it is given back: a negative takes from each positive the part it has in
the positive's error.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from detector.losses.exchange import Exchange
from detector.losses.ranking import BinTotals, SoftSteps, ascending, blocks

# A narrower step would drown in the rounding of the break points.
MIN_DELTA = 1e-6

# Picking single values out of a block pays where at most this part of it is wanted.
_SPARSE = 0.25


class NonFiniteLogits(ValueError):
    """A logit that takes part in a ranking is NaN or infinite."""


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
        positives: int64 [p], flat indices of this process's positives, ascending.
        above_positives: sum_k H(f_k - f_i), over all positives; i itself counts 1/2.
        above_negatives: sum_j H(n_j - f_i), over all negatives.

    Raises:
        NonFiniteLogits: a ranked logit is NaN or infinite; the message names the first.
    """

    def __init__(self, logits: Tensor, targets: Tensor, delta: float, exchange: Exchange) -> None:
        self._exchange = exchange
        self._logits = self._without_ignored_infinities(logits, targets)
        self._dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        # What is no negative: few, and kept by index, since a pass over all targets is dear.
        self._special = targets.nonzero().squeeze(1)
        self.positives = self._special[targets[self._special] == 1]  # [p]
        f, self._own = exchange.gather(logits[self.positives].to(self._dtype))
        self.f, self._order = ascending(f)
        if len(f) == 0:
            self.above_positives = self.above_negatives = f.double()
            return
        self._steps = SoftSteps(self.f, delta, len(logits))
        negatives = self._bin_negatives()
        self._positive_bins = self._steps.bins_of(self.f)
        positives = self._steps.totals(self.f, self._positive_bins)
        both = BinTotals(*map(torch.stack, zip(positives, negatives, strict=True)))
        self.above_positives, self.above_negatives = self._steps.counts_above(both)

    def __len__(self) -> int:
        """P, the number of positives of all processes."""
        return len(self.f)

    def gather(self, values: Tensor) -> Tensor:
        """values [p], in the order of `positives` -> float64 [P] of all processes, as f is ordered."""
        return self._exchange.gather(values.double()).values[self._order]

    def own(self, values: Tensor) -> Tensor:
        """The reverse: [P] in ascending order of f -> [p] in the order of `positives`."""
        unsorted = torch.empty_like(values)
        unsorted[self._order] = values
        return unsorted[self._own]

    def sum_above_positives(self, values: Tensor) -> Tensor:
        """sum_k v_k H(f_k - f_i) for non-negative values v [P], i itself as v_i / 2."""
        return self._steps.counts_above(self._steps.totals(self.f, self._positive_bins, values))

    def pull_on_positives(self, weights: Tensor) -> Tensor:
        """sum_i w_i H(f_k - f_i) for each positive k, k itself as w_k / 2; non-negative weights [P]."""
        offset, slope = self._steps.lines(weights)
        bins = self._positive_bins.long()
        return (offset[bins] + slope[bins] * self.f.double()).clamp_min(0)

    def gradient(self, errors: Tensor) -> Tensor:
        """The error-driven gradient of this process's logits, [M].

        errors: float64 [P], non-negative, 0 where no negative is above. Positive i gets -e_i / P, which
        the negatives share in proportion to H(n_j - f_i).

        float16 logits get a float32 gradient: a negative's share is often too small for float16.
        """
        logits, errors, above = self._logits, errors / len(self), self.above_negatives
        offset, slope = self._steps.lines(torch.where(above > 0, errors / above, 0))
        gradient = torch.empty_like(logits, dtype=self._dtype if logits.dtype == torch.float16 else None)
        for block, picked, bins in self._binned:
            values = logits[block]
            if picked is not None:
                values = values.index_select(0, picked)
            # index_select takes int32 and is the fastest gather.
            pull = offset.index_select(0, bins).addcmul_(slope.index_select(0, bins), values.double())
            pull.clamp_min_(0)
            if picked is None:
                gradient[block] = pull
            else:
                gradient[block].zero_().index_copy_(0, picked, pull.to(gradient.dtype))
        gradient.index_fill_(0, self._special, 0)
        gradient[self.positives] = self.own(-errors).to(gradient.dtype)
        return gradient

    def _bin_negatives(self) -> BinTotals:
        """Find the bin of every element, 0 for what is not a negative; the negatives' totals."""
        steps = self._steps
        self._binned: list[_BinnedBlock] = []
        totals = torch.zeros(2, 2 * len(self.f) + 1, dtype=torch.float64, device=self.f.device)
        parts = list(blocks(len(self._logits), self._logits.device))
        ends = torch.tensor([part.stop for part in parts], device=self._special.device)
        first = 0
        for block, last in zip(parts, torch.searchsorted(self._special, ends).tolist(), strict=True):
            values = self._logits[block].to(self._dtype)
            special = self._special[first:last] - block.start
            first = last
            # A negative below every step is counted by none and pulled by none.
            counted = (values >= steps.lowest).index_fill_(0, special, False)
            picked = None
            if int(counted.count_nonzero()) <= _SPARSE * len(values):
                picked = counted.nonzero().squeeze(1)
                values = values.index_select(0, picked)
                bins = steps.bins_of(values)
            else:
                bins = steps.bins_of(values).index_fill_(0, special, 0)
            self._binned.append(_BinnedBlock(block, picked, bins))
            totals += torch.stack(steps.totals(values, bins))
        return BinTotals(*self._exchange.sum(totals))

    def _without_ignored_infinities(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The logits, zeros in the place of those that take no part if any logit is not finite.

        Raises:
            NonFiniteLogits: one that takes part is not finite, here or in another process.
        """
        finite = logits.numel() == 0 or bool(torch.isfinite(torch.stack(torch.aminmax(logits))).all())
        bad = [] if finite else (~torch.isfinite(logits) & (targets >= 0)).nonzero().squeeze(1).tolist()
        everywhere = len(bad)
        if self._exchange.size > 1:
            everywhere = int(self._exchange.sum(torch.tensor(len(bad), device=logits.device)))
        if bad:
            kind = "positive" if targets[bad[0]] == 1 else "negative"
            raise NonFiniteLogits(
                f"{len(bad)} of the ranked logits are not finite; the first is {float(logits[bad[0]])}, "
                f"a {kind}, at flat index {bad[0]}"
            )
        if everywhere:
            raise NonFiniteLogits("a ranked logit of another process is not finite")
        return logits if finite else logits.masked_fill(targets < 0, 0)


class _BinnedBlock(NamedTuple):
    """A stretch of the logits and the bins of its values."""

    block: slice
    picked: Tensor | None  # int64, the places in the block that are looked at; None for all
    bins: Tensor  # int32, of these


def check_ranking(logits: Tensor, targets: Tensor, delta: float) -> None:
    """The checks that the ranking losses share.

    Raises:
        ValueError: shapes differ, a dtype is wrong, a target is outside {-1, 0, 1}, or delta
            is neither 0 nor at least 1e-6.
    """
    if logits.shape != targets.shape:
        raise ValueError(f"logits {tuple(logits.shape)} and targets {tuple(targets.shape)} differ in shape")
    if not logits.is_floating_point():
        raise ValueError(f"logits must be floating point, got {logits.dtype}")
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise ValueError(f"targets must be integers in {{-1, 0, 1}}, got {targets.dtype}")
    if delta != 0 and not delta >= MIN_DELTA:
        raise ValueError(f"delta must be 0 or at least {MIN_DELTA:g}, got {delta}")
    if targets.numel():
        low, high = torch.aminmax(targets)
        if low < -1 or high > 1:
            raise ValueError(f"targets must be in {{-1, 0, 1}}, got values from {int(low)} to {int(high)}")
