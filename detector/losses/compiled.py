"""The soft steps of ranking.py on a CPU, in loops that numba compiles: one pass where PyTorch takes ten.

`CompiledSteps` and `CompiledNegatives` give what `SoftSteps` and `Negatives` give. All that the loops fill
is allocated by torch, so that its allocator sees the memory. The formulas stand in docs/ranking.md.
"""

from collections.abc import Callable
from functools import cache, partial, wraps
from importlib.util import find_spec
from typing import Any, ParamSpec, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detector.losses import ranking
from detector.losses.ranking import BinTotals, blocks, searched_break_points

# There may be no wheel for a machine or a Python: ranking.py does the work then.
_NUMBA = find_spec("numba") is not None
Array = NDArray[Any]
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def usable(values: Tensor) -> bool:
    """Whether the compiled loops can work on a tensor."""
    return _NUMBA and values.device.type == "cpu"


def _compiled(loop: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Compile at the first call, and keep the machine code for the next process."""

    @cache
    def fast() -> Callable[Arguments, Result]:
        from numba import njit  # takes a second, which only training should pay

        compiler = partial(njit, nogil=True, error_model="numpy")
        try:
            made = compiler(cache=True)(loop)
        except RuntimeError:  # nowhere to keep the machine code: neither beside this file nor at home
            made = compiler()(loop)
        return cast(Callable[Arguments, Result], made)

    @wraps(loop)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        return fast()(*args, **kwargs)

    return call


def positives_of(targets: Tensor) -> Tensor:
    """The places of the ones among targets [M]: int32 (int64 if M is beyond that) [p], ascending."""
    count = _count_ones(targets.numpy())
    places = torch.empty(count + 1, dtype=torch.int32 if len(targets) < 1 << 31 else torch.int64)
    _ones(targets.numpy(), places.numpy())
    return places[:count]


def ascending(values: Tensor) -> tuple[Tensor, Tensor]:
    """values [P] sorted, and the order that sorts them; a sixth of the time of comparing them."""
    n = len(values)
    if n < _RADIX or values.dtype != torch.float32:
        return ranking.ascending(values)
    bits = values.view(torch.int32)
    # As unsigned integers these order as the floats do.
    keys = bits ^ (bits >> 31 | torch.iinfo(torch.int32).min)
    order = torch.arange(n, dtype=torch.int32)
    counts = torch.empty(_RADIX, dtype=torch.int64)
    for shift in _SHIFTS:
        found = torch.empty_like(keys), torch.empty_like(order)
        _sort_by_digit(
            _unsigned(keys), order.numpy(), shift, counts.numpy(), _unsigned(found[0]), found[1].numpy()
        )
        keys, order = found
    return values.index_select(0, order), order


class CompiledSteps:
    """P soft steps on a CPU: as `SoftSteps`, with its arguments, methods and results."""

    def __init__(self, thresholds: Tensor, delta: float) -> None:
        if delta < 0:
            raise ValueError(f"delta must not be negative, got {delta}")
        self.dtype = thresholds.dtype
        self._centres, self._delta = thresholds.numpy(), float(delta)
        p = len(thresholds)
        starts, stops = searched_break_points(thresholds, self._delta)
        starts = torch.cat((starts, starts.new_tensor([torch.inf])))
        self._edges = thresholds.new_empty(2 * p)  # as a search sees them
        self._starts = torch.empty(2 * p, dtype=torch.bool)  # whether a step begins at an edge, or ends
        self._grid: tuple[Array, Array, Array] | None = None  # the latest
        self._own_bins: Tensor | None = None
        _merge(starts.numpy(), stops.numpy(), self._edges.numpy(), self._starts.numpy())

    def own_bins(self) -> Tensor:
        """The bins of the thresholds themselves: int32 [P]."""
        if self._own_bins is None:
            self._own_bins = self._find_own(self.no_totals())
        return self._own_bins

    def own_totals(self, weights: Tensor | None = None) -> BinTotals:
        """Counts and sums of the thresholds over the bins, each as its weight (float64 [P]) or once."""
        totals = self.no_totals()
        if weights is None:
            self._find_own(totals)
        else:
            _add(self._centres, self.own_bins().numpy(), weights.numpy(), *totals.numpy())
        return BinTotals(*totals)

    def _find_own(self, totals: Tensor) -> Tensor:
        p = len(self._centres)
        bins, everyone = torch.empty(p, dtype=torch.int32), np.zeros(p, dtype=np.int8)
        _find(self._centres, everyone, *(self._grid or self.grid(p)), bins.numpy(), *totals.numpy())
        self._grid = None  # memory that is not needed again
        return bins

    def counts_above(self, totals: BinTotals) -> Tensor:
        """sum_j H(x_j - t_i) for every threshold, from the totals of all values: float64 [P]."""
        above = torch.empty(len(self._centres), dtype=torch.float64)
        starts, counts, sums = self._starts.numpy(), totals.counts.numpy(), totals.sums.numpy()
        _counts_above(self._centres, self._delta, starts, counts, sums, above.numpy())
        return above

    def lines(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Offset and slope of pull(x) = sum_i w_i H(x - t_i) in every bin: two float64 [2P + 1]."""
        lines = torch.empty(2, len(self._edges) + 1, dtype=torch.float64)
        offset, slope = lines.numpy()
        _lines(self._centres, self._delta, self._starts.numpy(), weights.numpy(), offset, slope)
        return lines[0], lines[1]

    def no_totals(self) -> Tensor:
        """Zeros for every bin, float64 [2, 2P + 1]."""
        return torch.zeros(2, len(self._edges) + 1, dtype=torch.float64)

    def grid(self, searches: int) -> tuple[Array, Array, Array]:
        """What `_find` looks values up in; a fine one for few searches is a waste."""
        fineness = max(1024, min(_CELLS_PER_EDGE * len(self._edges), searches // 2))
        narrow = len(self._edges) < 1 << 16  # half the memory, and more of it in the cache
        cells = torch.empty(fineness + 1, dtype=torch.int16 if narrow else torch.int32).numpy()
        cells = cells.view(np.uint16 if narrow else np.uint32)
        edges, scale = self._edges.numpy(), np.empty(3, self._centres.dtype)
        _fill_cells(edges, cells, scale)
        self._grid = edges, cells, scale
        return self._grid


class CompiledNegatives:
    """The negatives of a batch on a CPU: as `Negatives`, with its arguments, methods and results.

    The bins of float32 logits lie where their gradient will: no memory beyond the gradient's own.
    """

    def __init__(self, steps: CompiledSteps, logits: Tensor, targets: Tensor) -> None:
        self._steps, self._logits, self._targets = steps, logits, targets
        self._bins = torch.empty(len(logits), dtype=torch.int32)

    def count(self) -> Tensor:
        """Find the bin of every negative; counts and sums of each bin's, float64 [2, 2P + 1]."""
        steps, totals = self._steps, self._steps.no_totals()
        grid = steps.grid(len(self._logits))
        for block in _parts(self._logits, steps.dtype):
            values, targets = self._logits[block].to(steps.dtype), self._targets[block]
            _find(values.numpy(), targets.numpy(), *grid, self._bins[block].numpy(), *totals.numpy())
        return totals

    def pull(self, weights: Tensor, dtype: torch.dtype) -> Tensor:
        """sum_i w_i H(n_j - t_i) for every negative j, 0 for what is none: [M] of dtype. To be had once."""
        working = self._steps.dtype
        offset, slope = self._steps.lines(weights)
        in_place = dtype == working == torch.float32
        pulls = self._bins.view(dtype) if in_place else torch.empty(len(self._logits), dtype=dtype)
        for block in _parts(self._logits, dtype):
            values, out = self._logits[block].to(working), pulls[block].to(working)
            _pull(values.numpy(), _unsigned(self._bins[block]), offset.numpy(), slope.numpy(), out.numpy())
            if dtype != working:
                pulls[block] = out
        return pulls


def _parts(values: Tensor, dtype: torch.dtype) -> list[slice]:
    """Everything at once where nothing has to be converted, else blocks."""
    return [slice(0, len(values))] if values.dtype == dtype else list(blocks(len(values), values.device))


def _unsigned(indices: Tensor) -> Array:
    """int32 as uint32: an index that may be negative costs numba a comparison more."""
    return indices.numpy().view(np.uint32)


# Cells of the search grid for each break point: few of them then hold three and more.
_CELLS_PER_EDGE = 4


@_compiled
def _count_ones(targets: Array) -> int:
    count = 0
    for i in range(len(targets)):
        count += targets[i] == 1
    return count


@_compiled
def _ones(targets: Array, places: Array) -> None:
    """Their places, and after them one that means nothing: a branch could not be foreseen."""
    found = 0
    for i in range(len(targets)):
        places[found] = i
        found += targets[i] == 1


# Three digits of 11 bits make a float32.
_RADIX, _SHIFTS = 1 << 11, (0, 11, 22)


@_compiled
def _sort_by_digit(
    keys: Array, places: Array, shift: int, counts: Array, sorted_keys: Array, sorted_places: Array
) -> None:
    """Order keys and their places by one digit; what is equal there stays in the order it had."""
    counts[:] = 0
    for i in range(len(keys)):
        counts[(np.int64(keys[i]) >> shift) & (len(counts) - 1)] += 1
    first = 0
    for digit in range(len(counts)):
        count = counts[digit]
        counts[digit] = first
        first += count
    for i in range(len(keys)):
        digit = (np.int64(keys[i]) >> shift) & (len(counts) - 1)
        at = counts[digit]
        counts[digit] = at + 1
        sorted_keys[at], sorted_places[at] = keys[i], places[i]


@_compiled
def _merge(starts: Array, stops: Array, edges: Array, from_starts: Array) -> None:
    """Starts and stops in order, and which of them are starts; after the last start stands one to spare."""
    i = 0
    for k in range(len(edges)):
        start, stop = starts[i], stops[k - i]
        from_start = (start <= stop) & (i < len(stops))
        edges[k], from_starts[k] = min(start, stop), from_start
        i += from_start  # no branch: it could not be foreseen


@_compiled
def _fill_cells(edges: Array, cells: Array, grid: Array) -> None:
    """How many edges lie in lower cells, for each of the cells [C + 1]; grid: low, scale, last.

    The cell of x >= low is floor(min((x - low) * scale, last)), which never falls as x rises, rounding
    included. So a value lies above all edges of lower cells and below all of higher ones, and what is left
    of a search takes place in its own cell.
    """
    low, last = edges[0], edges.dtype.type(len(cells) - 2)
    span = np.float64(edges[-1]) - np.float64(low)
    scale = edges.dtype.type(np.float64(last) / span if span > 1e-30 else 1.0)
    cells[:] = 0
    for k in range(len(edges)):
        cells[np.uint64(min((edges[k] - low) * scale, last)) + np.uint64(1)] += 1
    lower = np.uint32(0)
    for k in range(len(cells)):
        lower += cells[k]
        cells[k] = lower
    grid[0], grid[1], grid[2] = low, scale, last


@_compiled
def _find(
    values: Array,
    targets: Array,
    edges: Array,
    cells: Array,
    grid: Array,
    bins: Array,
    counts: Array,
    sums: Array,
) -> None:
    """The bin of each value whose target is 0, and what the values of a bin add up to; bin 0 for others.

    That of bin 0 means nothing: no step counts it.
    """
    low, scale, last, top, one = grid[0], grid[1], grid[2], edges[-1], np.uint64(1)
    for i in range(len(values)):
        x = values[i]
        found = np.uint64(len(edges))
        if x < low:
            found = np.uint64(0)
        elif x < top:
            cell = np.uint64(min((x - low) * scale, last))
            found = np.uint64(cells[cell])
            # Two steps without a branch, which the processor could not foresee; few cells need more.
            found += np.uint64(edges[found] <= x)
            found += np.uint64(edges[found] <= x)
            if edges[found] <= x:
                end = np.uint64(cells[cell + one])
                while found < end:
                    middle = (found + end) >> one
                    if edges[middle] <= x:
                        found = middle + one
                    else:
                        end = middle
        found *= np.uint64(targets[i] == 0)  # a branch could not be foreseen
        bins[i] = found
        counts[found] += 1
        sums[found] += x


@_compiled
def _add(values: Array, bins: Array, weights: Array, counts: Array, sums: Array) -> None:
    for i in range(len(values)):
        counts[bins[i]] += weights[i]
        sums[bins[i]] += weights[i] * values[i]


@_compiled
def _counts_above(
    centres: Array, delta: float, starts: Array, counts: Array, sums: Array, above: Array
) -> None:
    """See SoftSteps.counts_above: the integral of the values above, from the highest edge down."""
    i = j = len(centres) - 1
    higher, area, upper = 0.0, 0.0, 0.0  # values in bins above edge k, integral from there, edge k + 1
    for k in range(2 * len(centres) - 1, -1, -1):
        start = starts[k]
        at = i if start else j  # no branch: neither could be foreseen
        edge = np.float64(centres[at]) + (-delta if start else delta)
        if delta == 0:
            area = higher + counts[k + 1]
        elif k < 2 * len(centres) - 1:
            area += higher * (upper - edge) + max(sums[k + 1] - counts[k + 1] * edge, 0.0)
        higher += counts[k + 1]
        upper = edge
        from_stop = (area + above[at]) / 2 if delta == 0 else (area - above[at]) / (2 * delta)
        above[at] = from_stop if start else area
        i -= start
        j -= not start


@_compiled
def _lines(centres: Array, delta: float, starts: Array, weights: Array, offset: Array, slope: Array) -> None:
    """See SoftSteps.lines: slope and value of the pull, grown from the lowest edge up."""
    i = 0
    rise = height = lower = 0.0
    offset[0] = slope[0] = 0.0
    for k in range(2 * len(centres)):
        start = starts[k]
        at = i if start else k - i  # no branch: neither could be foreseen
        edge = np.float64(centres[at]) + (-delta if start else delta)
        weight = weights[at]
        if delta == 0:
            height += weight / 2
        else:
            if k > 0:
                height += max(rise, 0.0) * (edge - lower)
            rise += (weight if start else -weight) / (2 * delta)
        slope[k + 1] = max(rise, 0.0)
        offset[k + 1] = height - slope[k + 1] * edge
        lower = edge
        i += start


@_compiled
def _pull(values: Array, bins: Array, offset: Array, slope: Array, out: Array) -> None:
    """offset + slope x in each value's bin; out may lie where bins do."""
    for i in range(len(values)):
        k = np.uint64(bins[i])
        out[i] = max(offset[k] + slope[k] * np.float64(values[i]), 0.0)
