"""The soft-rank kernel: how many values lie above each threshold, in linearithmic time.

H(u) = clamp(u / (2 delta) + 1/2, 0, 1) is the soft step of half-width delta (delta = 0: the plain
step, 1/2 at 0). Ranking losses need two sums over values x_j and thresholds t_i:

    count(t_i) = sum_j H(x_j - t_i)            how many values lie above a threshold
    pull(x_j)  = sum_i w_i H(x_j - t_i)        what the thresholds pass back to a value

Both are piecewise linear with the 2P break points t_i - delta and t_i + delta, which cut the line
into bins. One binary search per value finds its bin; the rest is arithmetic on tables of 2P rows.
No N x P matrix, no loop over thresholds. docs/ranking.md has the derivation.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

# Values are processed in blocks, so that the float64 temporaries stay small for any N and stay in
# a CPU's cache; a GPU needs few, large launches.
_BLOCK = {"cpu": 1 << 17, "cuda": 1 << 24}
_FEW = 512


def blocks(n: int, device: torch.device) -> Iterator[slice]:
    """Slices covering range(n), of a length that suits the device."""
    step = _BLOCK.get(device.type, 1 << 20)
    return (slice(start, min(start + step, n)) for start in range(0, n, step))


class SoftSteps:
    """P soft steps and the bins that their break points cut the real line into.

    Bin 0 lies below every break point: a value there is counted by no step and pulled by none.
    Bin k >= 1 begins at the k-th smallest break point. All tables are float64; "totals" [2, 2P + 1] are
    the count and the sum of the values in each bin; totals of disjoint sets of values add up.

    Args:
        thresholds: float [P], sorted ascending, P >= 1. float32 or float64: values given to
            `bins_of` must have the same dtype.
        delta: half-width of the step, >= 0, in units of the values.
        searches: roughly how many values `bins_of` will look up; a large table for few is a waste.
    """

    def __init__(self, thresholds: Tensor, delta: float, searches: int = 1 << 20) -> None:
        if delta < 0:
            raise ValueError(f"delta must not be negative, got {delta}")
        self.delta = float(delta)
        p, centre = len(thresholds), thresholds.double()
        edges = torch.cat((centre - self.delta, centre + self.delta))
        searched = torch.cat(searched_break_points(thresholds, self.delta))
        # Order by what the search sees, so that bins and tables agree to the last bit.
        self.search_edges, order = searched.sort(stable=True)  # [2P]
        self.edges = edges[order]  # [2P]
        where = torch.empty_like(order)
        where[order] = torch.arange(2 * p, device=order.device)
        self._start_bin, self._end_bin = where[:p], where[p:]
        self._grid: _Grid | None = None
        self._searches = searches
        self.dtype = thresholds.dtype
        self._thresholds = thresholds

    @property
    def lowest(self) -> float:
        """The lowest break point: all values below it are in bin 0. Synchronises with the device."""
        return float(self.search_edges[0])

    def bins_of(self, values: Tensor) -> Tensor:
        """The bin of each value [M]: int32 [M]. A value on a break point is in the bin it begins."""
        # A GPU's parallel search needs no grid, and for a few values it is a waste.
        if values.device.type != "cpu" or len(values) < _FEW:
            return torch.bucketize(values, self.search_edges, out_int32=True, right=True)
        if self._grid is None:
            self._grid = _Grid(self.search_edges, self._searches)
        return self._grid.bins_of(values)

    def own_bins(self) -> Tensor:
        """The bins of the thresholds themselves: int32 [P]."""
        return self.bins_of(self._thresholds)

    def own_counts_above(self, weights: Tensor | None = None) -> Tensor:
        """`counts_above` of the thresholds themselves, each counted with its weight (float64 [P]) or as 1."""
        return self.counts_above(self.totals(self._thresholds, self.own_bins(), weights))

    def own_pull(self, weights: Tensor) -> Tensor:
        """pull(t_k), see `lines`, at each threshold: float64 [P]."""
        offset, slope = self.lines(weights)
        bins = self.own_bins().long()
        return (offset[bins] + slope[bins] * self._thresholds.double()).clamp_min(0)

    def totals(self, values: Tensor, bins: Tensor, weights: Tensor | None = None) -> Tensor:
        """Count and sum per bin of one block of values [M]: float64 [2, 2P + 1].

        weights: float64 [M], non-negative: what each value counts, instead of 1.
        """
        zeros = torch.zeros(len(self.edges) + 1, dtype=torch.float64, device=values.device)
        # index_add_ rather than bincount's weights: it has a deterministic form on CUDA.
        if weights is not None:
            counts = zeros.index_add(0, bins, weights)
            return torch.stack((counts, zeros.index_add_(0, bins, weights * values)))
        counts = torch.bincount(bins, minlength=len(zeros)).double()
        if values.device.type == "cpu":  # scatter_add_ is deterministic there too, and twice as fast
            return torch.stack((counts, zeros.scatter_add_(0, bins.long(), values.double())))
        return torch.stack((counts, zeros.index_add_(0, bins, values.double())))

    def counts_above(self, totals: Tensor) -> Tensor:
        """sum_j H(x_j - t_i) for every threshold, from the totals of all values: float64 [P].

        H is the mean of the plain step over [t - delta, t + delta], so the sum is an integral of
        C(s) = #{x > s}. Integrating from the top down adds only non-negative terms that are no
        larger than the answer: the result is accurate relative to itself, wherever the values lie.
        """
        counts, sums = totals[:, 1:]
        above = counts.flip(0).cumsum(0).flip(0)  # values at or above each edge, [2P]
        if self.delta == 0:
            return (above[self._start_bin] + above[self._end_bin]) / 2
        beyond = above - counts
        width = torch.diff(self.edges, append=self.edges[-1:])
        # A value covers its own bin from the edge up to itself, and each lower bin completely.
        # Above the last edge no step changes, so the integral ends there.
        inside = (sums - counts * self.edges).clamp_min(0)
        inside[-1] = 0
        area = (beyond * width + inside).flip(0).cumsum(0).flip(0)
        return (area[self._start_bin] - area[self._end_bin]) / (2 * self.delta)

    def lines(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Offset and slope of pull(x) = sum_i w_i H(x - t_i) in every bin: two float64 [2P + 1].

        weights: float64 [P], non-negative. pull(x) = offset[bin of x] + slope[bin of x] * x.
        """
        steps = torch.zeros(2 * len(weights), dtype=torch.float64, device=weights.device)
        zero = steps.new_zeros(1)
        if self.delta == 0:
            steps[self._start_bin] = weights / 2
            steps[self._end_bin] = weights / 2
            offset = torch.cat((zero, steps.cumsum(0)))
            return offset, torch.zeros_like(offset)
        steps[self._start_bin] = weights / (2 * self.delta)
        steps[self._end_bin] = -weights / (2 * self.delta)
        slope = steps.cumsum(0).clamp_min(0)
        slope[-1] = 0  # exactly: a rounding residue would matter for values far above
        # pull at each edge, accumulated from the lowest edge up: again only non-negative terms.
        rise = slope[:-1] * torch.diff(self.edges)
        at_edge = torch.cat((zero, rise.cumsum(0)))
        return torch.cat((zero, at_edge - slope * self.edges)), torch.cat((zero, slope))


class _Grid:
    """Exact search in sorted edges by a uniform grid: torch's search on a CPU suffers many cache misses.

    cell(x) = floor((x - edges[0]) * scale) is monotone, rounding included. So a value whose cell holds
    no edge is above exactly the edges of lower cells: one table lookup. Only the values that share a
    cell with an edge, a few per cent, need a search.
    """

    _CELLS_PER_EDGE = 32

    def __init__(self, edges: Tensor, searches: int) -> None:
        self._edges = edges  # [E] sorted
        self._cells = max(1024, min(self._CELLS_PER_EDGE * len(edges), 2 * searches))
        low = float(edges[0])
        span = float(edges[-1]) - low
        self._scale = (self._cells - 2) / span if 1e-30 < span < math.inf else 1.0
        self._low = low - 1 / self._scale  # cell 0 is for values below the first edge
        occupied = torch.bincount(self._cell_of(edges), minlength=self._cells + 1).int()
        below = occupied.cumsum(0, dtype=torch.int32).sub_(occupied)
        self._table = below.masked_fill_(occupied > 0, -1)

    def _cell_of(self, values: Tensor) -> Tensor:
        return (values - self._low).mul_(self._scale).clamp_(0, self._cells).int()

    def bins_of(self, values: Tensor) -> Tensor:
        bins = self._table.index_select(0, self._cell_of(values))
        unsure = (bins < 0).nonzero().squeeze(1)
        if len(unsure):
            found = torch.bucketize(values[unsure], self._edges, out_int32=True, right=True)
            bins[unsure] = found
        return bins


def searched_break_points(thresholds: Tensor, delta: float) -> tuple[Tensor, ...]:
    """thresholds -+ delta for searching, in their dtype: each rounded up to a representable number.

    A search among values of this dtype then finds exactly the bins of the unrounded break points.
    """
    if delta == 0:  # a tie counts 1/2: it gets a bin of its own, [t, next number)
        return thresholds, _next(thresholds)
    exact = thresholds.double()
    return tuple(_smallest_at_or_above(exact + shift, thresholds.dtype) for shift in (-delta, delta))


def _smallest_at_or_above(edges: Tensor, dtype: torch.dtype) -> Tensor:
    rounded = edges.to(dtype)
    return torch.where(rounded.double() < edges, _next(rounded), rounded)


def _next(values: Tensor) -> Tensor:
    return torch.nextafter(values, torch.full_like(values, torch.inf))


def ascending(values: Tensor) -> tuple[Tensor, Tensor]:
    """values [P] sorted, and the int64 permutation that sorts them."""
    if values.device.type != "cpu":
        return values.sort()
    order = torch.from_numpy(values.detach().numpy().argsort())  # vectorised, unlike torch's
    return values.index_select(0, order), order


def soft_rank_sum(values: Tensor, thresholds: Tensor, delta: float) -> Tensor:
    """How many values lie above each threshold, counted with the soft step of half-width delta.

    values [N] and thresholds [P], any order, one floating dtype; returns float64 [P].
    Exact in O((N + P) log P); see docs/ranking.md for the derivation.
    """
    if len(thresholds) == 0:
        return thresholds.double()
    if thresholds.dtype in (torch.bfloat16, torch.float16):  # too coarse for break points
        return soft_rank_sum(values.float(), thresholds.float(), delta)
    ordered, order = ascending(thresholds)
    steps = SoftSteps(ordered, delta, len(values))
    result = torch.empty(len(thresholds), dtype=torch.float64, device=values.device)
    result[order] = steps.counts_above(steps.totals(values, steps.bins_of(values)))
    return result
