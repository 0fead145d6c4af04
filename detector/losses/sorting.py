"""The soft-rank sum among positives that also differ in quality, without a P x P matrix.

Rank & Sort compares every positive with those of lower and those of higher quality. Both are sums
over pairs ordered in two ways, by logit and by quality. Two different quality ranks have a highest
bit in which they differ; all pairs with the same such bit take one pass of prefix sums. So
O(P log P) for each of log P bits replaces P^2.
"""

import torch
from torch import Tensor


class SortedPositives:
    """Positives in ascending order of their logits, for sums over pairs by quality.

    k is above i to the degree H(f_k - f_i), the soft step of half-width delta.

    Args:
        f: float [P], sorted ascending, P >= 1.
        quality: [P].
        delta: half-width of the step; 0 is the plain step, 1/2 where f_k = f_i.
    """

    def __init__(self, f: Tensor, quality: Tensor, delta: float) -> None:
        self._delta, self._given = delta, (f, quality)
        distinct, self._rank = quality.unique(return_inverse=True)  # equal qualities share a rank
        self._bits = (len(distinct) - 1).bit_length()
        exact = f.double()
        self._f = exact - exact[len(f) // 2]  # near 0, so that the sums of f lose no digits
        # For each i the index in f where the step from 0 to 1 begins and where it ends.
        self._begin = torch.searchsorted(self._f, self._f - delta, right=delta > 0)
        self._end = torch.searchsorted(self._f, self._f + delta, right=delta == 0)

    def sums_of_worse(self, values: Tensor) -> Tensor:
        """sum_k v_k H(f_k - f_i) over the k with q_k < q_i: values float64 [P, V] -> [P, V]."""
        result = torch.zeros_like(values)
        for bit in range(self._bits):
            better = (self._rank >> bit & 1).bool()
            self._add(result, values, ~better, better, self._rank >> (bit + 1))
        return result

    def sums_of_no_worse(self, values: Tensor, of_worse: Tensor) -> Tensor:
        """The same over the k with q_k >= q_i, k = i as v_i / 2; of_worse: the result of `sums_of_worse`."""
        result = torch.zeros_like(values)
        every = torch.ones_like(self._rank, dtype=torch.bool)
        self._add(result, values, every, every, self._rank)
        for bit in range(self._bits):
            better = (self._rank >> bit & 1).bool()
            self._add(result, values, better, ~better, self._rank >> (bit + 1))
        return result

    def pull_of_better(self, weights: Tensor) -> Tensor:
        """sum_i w_i H(f_k - f_i) over the i with q_i > q_k: float64 [P] -> [P]."""
        # These i lie below k and are better: the same sum with logits and qualities negated.
        f, quality = self._given
        mirrored = SortedPositives(-f.flip(0), -quality.flip(0), self._delta)
        return mirrored.sums_of_worse(weights.flip(0)[:, None]).flip(0).squeeze(1)

    def _add(self, result: Tensor, values: Tensor, sources: Tensor, targets: Tensor, group: Tensor) -> None:
        """Add to each target i the sum of v_k H(f_k - f_i) over the sources k of its group."""
        p = len(group)
        source, target = sources.nonzero().squeeze(1), targets.nonzero().squeeze(1)
        # Sources sorted by group, then by f; integer keys keep ties exact.
        keys, order = (group[source] * p + source).sort()
        source = source[order]
        v, f = values[source], self._f[source, None]
        zero = v.new_zeros(1, v.shape[1])
        sums = torch.cat((zero, v.cumsum(0)))  # [S + 1, V]
        first = group[target] * p
        begin = torch.searchsorted(keys, first + self._begin[target])
        end = torch.searchsorted(keys, first + self._end[target])
        above = sums[torch.searchsorted(keys, first + p)] - sums[end]
        within = sums[end] - sums[begin]
        if self._delta == 0:
            result[target] += above + within / 2
            return
        moments = torch.cat((zero, (v * f).cumsum(0)))
        start = self._f[target, None] - self._delta
        rise = (moments[end] - moments[begin] - within * start) / (2 * self._delta)
        result[target] += above + rise.clamp_min(0)
