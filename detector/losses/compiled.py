"""The soft steps of ranking.py on a CPU, by the loops of value_loops.py, step_loops.py and window_loops.py.

`CompiledSteps` and `CompiledNegatives` give the same results as `SoftSteps` and `Negatives`. The large arrays
are allocated by torch, so that its allocator sees the memory. docs/ranking.md has the formulas.
"""

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detector.losses import ranking, step_loops, value_loops, window_loops
from detector.losses.machine_code import Array
from detector.losses.ranking import blocks, searched_break_points
from detector.losses.sharing import shares, side_by_side

# Cells of the search grid per break point: with 4, few cells hold three or more.
_CELLS_PER_EDGE = 4
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes
_MOST_CELLS = 1 << 23  # so that float32 represents every cell number


def positives_of(targets: Tensor) -> tuple[Tensor, int, int]:
    """The indices of the targets [M] that are 1, ascending: int32 [p] (int64 if M exceeds int32); and the
    lowest and the highest target (at most and at least 0).
    """
    every = targets.numpy()
    places = torch.empty(len(every) + 2, dtype=torch.int32 if len(every) < 1 << 31 else torch.int64)
    words = np.empty((0, 4), np.uint64)
    if targets.is_contiguous():
        each = 32 // every.itemsize
        words = every[: len(every) // each * each].view(np.uint64).reshape(-1, 4)
    count, low, high = value_loops.find_ones(every, words, places.numpy())
    return places[:count].clone(), low, high


def all_within(values: Tensor, farthest: float) -> bool:
    """Whether no value [M] is NaN or farther than `farthest` from 0."""
    limit, without_sign = _bits_within(farthest, values.dtype)
    every = values.detach().view(_INTEGERS[values.element_size()]).numpy().view(limit.dtype)

    def beyond(share: slice) -> int:
        return value_loops.count_beyond(every[share], without_sign, limit)

    return not any(side_by_side(beyond, shares(len(every))))


@cache
def _bits_within(farthest: float, dtype: torch.dtype) -> tuple[Any, Any]:
    """The bits of the largest number <= farthest, and the mask of all bits but the sign; unsigned."""
    nearest = torch.tensor(farthest, dtype=dtype)
    integer = _INTEGERS[dtype.itemsize]
    # The bits of positive floats sort like the floats, with infinity and then NaN on top.
    bits = int(nearest.view(integer)) - (float(nearest) > farthest)
    kind = np.dtype(f"u{dtype.itemsize}").type
    return kind(bits), kind(torch.iinfo(integer).max)


def targets_of_quality(quality: Tensor) -> Tensor | None:
    """See Backend.targets_of_quality."""
    targets = torch.empty(len(quality), dtype=torch.int8)
    return targets if value_loops.targets_of_quality(quality.numpy(), targets.numpy()) else None


def ascending(values: Tensor) -> tuple[Tensor, Tensor]:
    """values [P] sorted, and the permutation that sorts them; six times as fast as comparing."""
    if len(values) < step_loops.RADIX or values.dtype != torch.float32:
        return ranking.ascending(values)
    pairs = torch.empty(2, len(values), dtype=torch.int64).numpy().view(np.uint64)
    counts = torch.empty(3, step_loops.RADIX, dtype=torch.int32)
    ordered, order = torch.empty_like(values), torch.empty_like(values, dtype=torch.int32)
    arrays = (counts, ordered.view(torch.int32), order)
    step_loops.sort_floats(_unsigned(values.view(torch.int32)), pairs, *map(_unsigned, arrays))
    return ordered, order


def imprecision(
    above_negatives: Tensor, above_positives: Tensor, interpolated: bool
) -> tuple[Tensor, Tensor]:
    """See Backend.imprecision."""
    errors, mean = torch.empty_like(above_negatives), above_negatives.new_empty(1)
    counts = above_negatives.numpy(), above_positives.numpy()
    step_loops.imprecision(*counts, interpolated, errors.numpy(), mean.numpy())
    return errors, mean[0]


def shares_of(errors: Tensor, above: Tensor, least: float) -> Tensor:
    """See Backend.shares; least: lower bound of the divisor."""
    weights = torch.empty_like(errors)
    step_loops.shares(errors.numpy(), above.numpy(), least, weights.numpy())
    return weights


def hand_out(errors: Tensor, order: Tensor, own: slice, places: Tensor, out: Tensor) -> None:
    """See Backend.hand_out."""
    arrays = errors.numpy(), order.numpy(), own.start, places.numpy()
    step_loops.hand_out(*arrays, -1 / len(errors), out.numpy())


class CompiledSteps:
    """P soft steps on a CPU: `counts_above`, `own_counts_above` and `own_pull` are those of `SoftSteps`.

    In memory, totals and lines keep the two numbers of a bin side by side.

    Attributes:
        centres: [P], the thresholds.
        delta: half-width of the step.
        windows: uint32 [2, P + 1]: the range of thresholds within delta of each; see `step_loops.merge`.
    """

    def __init__(self, thresholds: Tensor, delta: float) -> None:
        self.dtype = thresholds.dtype
        self.centres, self.delta = thresholds.numpy(), float(delta)
        p = len(self.centres)
        points = thresholds.new_empty(3, p)
        if delta == 0:
            torch.stack((thresholds, *searched_break_points(thresholds, 0.0)), out=points)
        else:
            step_loops.break_points(self.centres, self.delta, points.numpy(), torch.finfo(self.dtype).eps)
        keys = points.view(_INTEGERS[self.dtype.itemsize])
        step_loops.make_keys(keys.view(-1).numpy())
        # The searched edges, until `grid` takes them: saves memory when there are many thresholds.
        self._edges: Tensor | None = keys.new_empty(2 * p + 1)
        # True where a step begins at an edge, False where it ends.
        self._starts = torch.empty(2 * p, dtype=torch.bool).numpy()
        self.windows = _unsigned(torch.empty(2, p + 1, dtype=torch.int32))
        step_loops.merge(keys.numpy(), self._edges.numpy(), self._starts, self.windows)

    def own_counts_above(self, weights: Tensor | None = None) -> Tensor:
        """`counts_above` of the thresholds themselves, each counted with its weight (float64 [P]) or as 1."""
        if weights is not None:
            return self._own(weights, below=False)
        p = len(self.centres)
        counts, before = torch.empty(p, dtype=torch.float64), torch.empty(p + 1, dtype=torch.float64)
        begins, ends = self.windows
        window_loops.window_counts(self.centres, self.delta, begins, ends, before.numpy(), counts.numpy())
        return counts

    def own_pull(self, weights: Tensor) -> Tensor:
        """pull(t_k), see `lines`, at each threshold: float64 [P]."""
        return self._own(weights, below=True)

    def _own(self, weights: Tensor, below: bool) -> Tensor:
        p = len(self.centres)
        sums, before = torch.empty(p, dtype=torch.float64), torch.empty(p + 1, 2, dtype=torch.float64)
        begins, ends = self.windows
        window_loops.lay_out(self.centres, self.delta, sums.numpy())
        window_loops.window_sums(
            self.delta, weights.numpy(), begins, ends, before.numpy(), below, sums.numpy()
        )
        return sums

    def counts_above(self, totals: Tensor) -> Tensor:
        """sum_j H(x_j - t_i) for every threshold, from the totals of all values: float64 [P]."""
        p = len(self.centres)
        integrals, counts = (torch.empty(n, dtype=torch.float64) for n in (2 * p, p))
        pairs = totals.t().contiguous()  # no copy, unless they were summed over processes
        arrays = self._starts, pairs.numpy(), integrals.numpy(), counts.numpy()
        step_loops.counts_above(self.centres, self.delta, *arrays)
        return counts

    def lines(self, weights: Tensor, out: Tensor | None = None) -> Tensor:
        """Offset and slope of pull(x) = sum_i w_i H(x - t_i) in every bin: float64 [2P + 1, 2], or `out`."""
        lines = torch.empty(len(self._starts) + 1, 2, dtype=torch.float64) if out is None else out
        step_loops.lines(self.centres, self.delta, self._starts, weights.numpy(), lines.numpy())
        return lines

    @property
    def totals_bytes(self) -> int:
        """The size of `no_totals`."""
        return 16 * (len(self._starts) + 1)

    def no_totals(self) -> Tensor:
        """Zeros for every bin, float64 [2, 2P + 1]."""
        totals = torch.empty(len(self._starts) + 1, 2, dtype=torch.float64)
        # torch.zeros would wake torch's threads, which then spin on the cores that ours need.
        totals.numpy().fill(0)
        return totals.t()

    def grid(self, searches: int) -> tuple[Array, Array, Array]:
        """The lookup tables for `find_bins`; call once. A fine grid for few searches would be a waste."""
        assert self._edges is not None
        edges, self._edges = self._edges.numpy(), None
        fineness = max(1024, min(_CELLS_PER_EDGE * len(edges), searches // 2, _MOST_CELLS))
        # uint16 where it suffices: half the memory, and more of it fits in the cache.
        kind = np.uint16 if len(edges) < 1 << 16 else np.uint32
        words = torch.empty(fineness * np.dtype(kind).itemsize // 8 + 1, dtype=torch.int64).numpy()
        cells, scale = words.view(kind), np.empty(3, self.centres.dtype)
        step_loops.fill_cells(edges, edges.view(self.centres.dtype), cells, words.view(np.uint64), scale)
        return edges, cells, scale


class CompiledPairs:
    """Positives on a CPU that also differ in quality; interface and results of `sorting.SortedPositives`.

    Args:
        steps: of the positives' logits.
        quality: float64 [P], in the order of the steps.
    """

    def __init__(self, steps: CompiledSteps, quality: Tensor) -> None:
        self._steps, self._quality = steps, quality.numpy()
        narrow = quality.float()  # quality usually was float32, which sorts ten times as fast
        _, order = ascending(narrow if torch.equal(narrow.double(), quality) else quality)
        self._order = order.numpy().astype(np.uint32, copy=False)
        self._places = torch.empty_like(quality).numpy()
        window_loops.lay_out(steps.centres, steps.delta, self._places)

    def sums_of_worse(self, values: Tensor) -> Tensor:
        """sum_k v_k H(f_k - f_i) over the k with q_k < q_i: non-negative float64 [P, 2] -> [P, 2]."""
        return self._sums(values, self._order, below=False)

    def sums_of_no_worse(self, values: Tensor, of_worse: Tensor) -> Tensor:
        """The same over the k with q_k >= q_i, k = i as v_i / 2; of_worse: the result of `sums_of_worse`."""
        of_all = [self._steps.own_counts_above(column.contiguous()) for column in values.unbind(1)]
        return torch.maximum(torch.stack(of_all, 1) - of_worse, values / 2)

    def pull_of_better(self, weights: Tensor) -> Tensor:
        """sum_i w_i H(f_k - f_i) over the i with q_i > q_k: non-negative float64 [P] -> [P]."""
        values = torch.stack((weights, torch.zeros_like(weights)), 1)
        return self._sums(values, self._order[::-1].copy(), below=True)[:, 0]

    def _sums(self, values: Tensor, order: Array, below: bool) -> Tensor:
        sums, tree = torch.empty_like(values), values.new_zeros(len(values) + 1, 4)
        begins, ends = self._steps.windows
        window_loops.sums_of_earlier(
            self._places,
            self._steps.delta,
            self._quality,
            order,
            values.numpy(),
            begins,
            ends,
            tree.numpy(),
            below,
            sums.numpy(),
        )
        return sums


class CompiledNegatives:
    """The negatives of a batch on a CPU: same arguments, methods and results as `Negatives`.

    For float32 logits the bins occupy the memory that the gradient will use: none beyond it is needed. A NaN
    would be looked up outside the tables; `batch_ranking.checked` lets none through.
    """

    def __init__(self, steps: CompiledSteps, logits: Tensor, targets: Tensor) -> None:
        # Detached, as no_grad holds only in the thread that entered it.
        self._steps, self._logits, self._targets = steps, logits.detach(), targets
        # Kept from `count` until `pull` reuses their memory: writing to fresh memory costs more.
        self._bins: Tensor | None = None
        self._totals: Tensor | None = None

    def count(self) -> Tensor:
        """Find the bin of every negative; returns count and sum per bin, float64 [2, 2P + 1].

        `pull` overwrites the result.
        """
        edges, cells, scale = self._steps.grid(self._logits.numel())
        self._bins = torch.empty(self._logits.numel(), dtype=torch.int32)
        bins, targets = self._bins.numpy(), self._targets.numpy()

        def find(share: slice) -> Tensor:
            totals, scratch = self._steps.no_totals(), np.empty((3, value_loops.FEW + 1), edges.dtype)
            pairs = totals.t().numpy()
            for block in self._parts(share):
                values = self._values(block)
                given = values, values.view(edges.dtype), targets[block], edges, cells, scale
                value_loops.find_bins(*given, scratch, bins[block], pairs)
            return totals

        totals, *others = side_by_side(find, shares(len(bins), self._steps.totals_bytes))
        for other in others:
            np.add(totals.numpy(), other.numpy(), out=totals.numpy())  # see `no_totals`
        self._totals = totals.t()
        return totals

    def pull(self, weights: Tensor, dtype: torch.dtype) -> Tensor:
        """sum_i w_i H(n_j - t_i) for every negative j, 0 for all others: [M] of dtype. Call once."""
        assert self._bins is not None, "counted first, and pulled once"
        bins, self._bins = self._bins, None
        working, lines = self._steps.dtype, self._steps.lines(weights, self._totals).numpy()
        in_place = dtype == working == torch.float32
        pulls = bins.view(dtype) if in_place else torch.empty_like(bins, dtype=dtype)

        def give(share: slice) -> None:
            for block in self._parts(share):
                mine = pulls[block]
                out = mine if dtype == working else torch.empty_like(mine, dtype=working)
                value_loops.pull(self._values(block), _unsigned(bins[block]), lines, out.numpy())
                if dtype == torch.bfloat16:
                    value_loops.narrow(_unsigned(out.view(torch.int32)), _bits(mine))
                elif dtype != working:
                    mine.copy_(out)

        side_by_side(give, shares(self._logits.numel()))
        return pulls

    def _parts(self, share: slice) -> list[slice]:
        """The whole share if no conversion is needed, else blocks of it."""
        if self._logits.dtype == self._steps.dtype:
            return [share]
        parts = blocks(share.stop - share.start, self._logits.device)
        return [slice(share.start + part.start, share.start + part.stop) for part in parts]

    def _values(self, block: slice) -> Array:
        """The logits of a block, in the dtype of the steps."""
        values = self._logits[block]
        if values.dtype != torch.bfloat16 or self._steps.dtype != torch.float32:
            return values.to(self._steps.dtype).numpy()
        wide = torch.empty_like(values, dtype=torch.float32)
        value_loops.widen(_bits(values), _unsigned(wide.view(torch.int32)))
        return wide.numpy()


def _bits(values: Tensor) -> Array:
    """The bits of bfloat16 numbers as uint16, since NumPy has no bfloat16."""
    return values.view(torch.int16).numpy().view(np.uint16)


def _unsigned(integers: Tensor) -> Array:
    """int32 viewed as uint32: for an index that may be negative numba adds a comparison."""
    return integers.numpy().view(np.uint32)
