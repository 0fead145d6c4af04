"""The Triton kernels of gpu.py, each with the function that launches it.

In kernels over values or steps, each program takes one block. Prefix sums along the steps are done by one
program that goes through them in chunks and carries the sums: several launches would cost more.
"""

from typing import Any

import torch
import triton
from torch import Tensor
from triton import language as tl

_BLOCK = 1024  # values per program
_STEPS = 128  # steps per program
_CHUNK, _WARPS = 2048, 8  # of the prefix sums along the steps


def try_out(device: torch.device) -> None:
    """Build and launch the kernels over the values; if that fails, Triton raises errors of many types.

    `find_bins` needs most from a GPU: before Volta there are no relaxed atomic additions.
    """
    value, line = torch.zeros(1, device=device), torch.zeros(1, 2, dtype=torch.float64, device=device)
    target, bins = (value.new_zeros(1, dtype=dtype) for dtype in (torch.int8, torch.int32))
    counts, sums = (value.new_zeros(1, 3, dtype=dtype) for dtype in (torch.int32, torch.float64))
    with torch.cuda.device_of(value):  # Triton launches on the current device
        find_bins(value, target, torch.full_like(value, torch.inf), bins, counts, sums)
        pull(value, bins, line, torch.empty_like(value))


def break_points(centres: Tensor, points: Tensor, delta: float) -> None:
    """See ranking.searched_break_points, for delta > 0: points [2, P], starts and stops."""
    p, eps = len(centres), torch.finfo(centres.dtype).eps
    _break_points[(triton.cdiv(p, _STEPS),)](centres, points, p, delta, 0.7 * eps, _STEPS)


@triton.jit(do_not_specialize=["p"])
def _break_points(  # type: ignore[no-untyped-def]
    centres, points, p, DELTA: tl.constexpr, UP: tl.constexpr, BLOCK: tl.constexpr
):
    # A number that was rounded down is raised by 0.7 eps of itself: between 0.5 and 1.5 times the distance
    # to the next number, so the sum rounds to that one.
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < p
    centre = tl.load(centres + at, mask=inside, other=0)
    exact = centre.to(tl.float64)
    low, high = exact - DELTA, exact + DELTA
    start, stop = low.to(centre.dtype), high.to(centre.dtype)
    start += tl.where(start.to(tl.float64) < low, UP * tl.abs(start), 0)
    stop += tl.where(stop.to(tl.float64) < high, UP * tl.abs(stop), 0)
    tl.store(points + at, start, mask=inside)
    tl.store(points + p + at, stop, mask=inside)


def merge(
    centres: Tensor,
    points: Tensor,
    search_edges: Tensor,
    edges: Tensor,
    origins: Tensor,
    windows: Tensor,
    delta: float,
) -> None:
    """Merge starts and stops into one order, and locate the centres among the stops.

    Fills search_edges and edges: the break points as the search sees them, and exactly; origins int32 [2P]:
    i where step i starts, -1 - i where it stops; windows int32 [2, P]: how many stops lie at or below
    centre i, and how many centres lie below stop i.
    """
    p = len(centres)
    _merge[(triton.cdiv(p, _STEPS),)](
        centres, points, search_edges, edges, origins, windows, p, p.bit_length(), delta, _STEPS
    )


@triton.jit(do_not_specialize=["p", "depth"])
def _merge(  # type: ignore[no-untyped-def]
    centres,
    points,
    search_edges,
    edges,
    origins,
    windows,
    p,
    depth,
    DELTA: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < p
    starts, stops = points, points + p
    centre = tl.load(centres + at, mask=inside, other=0)
    start, stop = tl.load(starts + at, mask=inside, other=0), tl.load(stops + at, mask=inside, other=0)
    exact = centre.to(tl.float64)
    below = at + _count_below(stops, start, p, depth, False)
    tl.store(search_edges + below, start, mask=inside)
    tl.store(edges + below, exact - DELTA, mask=inside)
    tl.store(origins + below, at, mask=inside)
    below = at + _count_below(starts, stop, p, depth, True)
    tl.store(search_edges + below, stop, mask=inside)
    tl.store(edges + below, exact + DELTA, mask=inside)
    tl.store(origins + below, -1 - at, mask=inside)
    tl.store(windows + at, _count_below(stops, centre, p, depth, True), mask=inside)
    tl.store(windows + p + at, _count_below(centres, stop, p, depth, False), mask=inside)


@triton.jit
def _count_below(numbers, limit, count, depth, EQUAL: tl.constexpr):  # type: ignore[no-untyped-def]
    """How many of the ascending numbers lie below each limit (EQUAL: at or below it); 2^depth > count."""
    found = tl.zeros_like(limit).to(tl.int32)
    step = 1 << (depth - 1)
    while step > 0:
        there = found + (step - 1)
        number = tl.load(numbers + there, mask=there < count, other=float("inf"))
        lower = (number <= limit) if EQUAL else (number < limit)
        found += tl.where(lower & (there < count), step, 0)
        step = step >> 1
    return found


def window_sums(
    centres: Tensor, weights: Tensor, windows: Tensor, before: Tensor, sums: Tensor, delta: float, below: bool
) -> None:
    """See window_loops.lay_out and window_sums; before: float64 [P + 1, 2], scratch."""
    p = len(centres)
    _sums_before[(1,)](centres, weights, before, sums, p, delta, _CHUNK, num_warps=_WARPS)
    _window_sums[(triton.cdiv(p, _STEPS),)](before, windows, sums, p, delta, below, _STEPS)


@triton.jit(do_not_specialize=["p"])
def _sums_before(  # type: ignore[no-untyped-def]
    centres, weights, before, places, p, DELTA: tl.constexpr, CHUNK: tl.constexpr
):
    zero = tl.sum(tl.zeros((CHUNK,), dtype=tl.float64))
    place, total, moment = zero, zero, zero
    tl.store(before, zero)
    tl.store(before + 1, zero)
    for first in range(0, p, CHUNK):
        at = first + tl.arange(0, CHUNK)
        inside = at < p
        centre = tl.load(centres + at, mask=inside, other=0).to(tl.float64)
        lower = tl.load(centres + at - 1, mask=inside & (at > 0), other=0).to(tl.float64)
        weight = tl.load(weights + at, mask=inside, other=0)
        gap = tl.where(inside & (at > 0), tl.minimum(centre - lower, 2 * DELTA), 0.0)
        places_here = place + tl.cumsum(gap, 0)
        pull = weight * places_here
        tl.store(places + at, places_here, mask=inside)
        tl.store(before + 2 * at + 2, total + tl.cumsum(weight, 0), mask=inside)
        tl.store(before + 2 * at + 3, moment + tl.cumsum(pull, 0), mask=inside)
        place += tl.sum(gap)
        total += tl.sum(weight)
        moment += tl.sum(pull)


@triton.jit(do_not_specialize=["p"])
def _window_sums(  # type: ignore[no-untyped-def]
    before, windows, sums, p, DELTA: tl.constexpr, BELOW: tl.constexpr, BLOCK: tl.constexpr
):
    """sums: holds the places on entry and the result on exit."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < p
    begin = before + 2 * tl.load(windows + at, mask=inside, other=0)
    end = before + 2 * tl.load(windows + p + at, mask=inside, other=0)
    begun, ended, place = tl.load(begin), tl.load(end), tl.load(sums + at, mask=inside, other=0)
    within = ended - begun
    rise = tl.zeros_like(within)
    if DELTA > 0:
        rise = (tl.load(end + 1) - tl.load(begin + 1) - within * place) / (2 * DELTA)
    if BELOW:
        result = begun + within / 2 - rise
    else:
        result = tl.load(before + 2 * p) - ended + within / 2 + rise
    tl.store(sums + at, tl.maximum(result, 0.0), mask=inside)


def counts_above(edges: Tensor, origins: Tensor, totals: Tensor, areas: Tensor, delta: float) -> None:
    """See SoftSteps.counts_above: areas [2, P], the integral of the count above, from each start and stop up.

    For delta = 0 the count above each start and stop.
    """
    _counts_above[(1,)](edges, origins, totals, areas, areas.shape[1], delta, _CHUNK, num_warps=_WARPS)


@triton.jit(do_not_specialize=["p"])
def _counts_above(  # type: ignore[no-untyped-def]
    edges, origins, totals, areas, p, DELTA: tl.constexpr, CHUNK: tl.constexpr
):
    zero = tl.sum(tl.zeros((CHUNK,), dtype=tl.float64))
    higher, area = zero, zero
    for first in range(0, 2 * p, CHUNK):
        k = 2 * p - 1 - first - tl.arange(0, CHUNK)  # from the highest edge down
        inside = k >= 0
        partly = inside & (k < 2 * p - 1)  # above the highest edge no step changes
        edge = tl.load(edges + k, mask=inside, other=0)
        upper = tl.load(edges + k + 1, mask=partly, other=0)
        count = tl.load(totals + k + 1, mask=inside, other=0)
        total = tl.load(totals + 2 * p + 1 + k + 1, mask=partly, other=0)
        # The count above the bin: summed over the bins one higher, so that nothing has to be subtracted.
        next_count = tl.load(totals + k + 2, mask=partly, other=0)
        beyond = higher + tl.cumsum(next_count, 0)
        origin = tl.load(origins + k, mask=inside, other=0)
        is_start = origin >= 0
        place = areas + tl.where(is_start, origin, p - 1 - origin)
        if DELTA == 0:
            tl.store(place, beyond + count, mask=inside)
        else:
            here = tl.where(partly, beyond * (upper - edge) + tl.maximum(total - count * edge, 0.0), 0.0)
            tl.store(place, area + tl.cumsum(here, 0), mask=inside)
            area += tl.sum(here)
        higher += tl.sum(next_count)


def lines(edges: Tensor, origins: Tensor, weights: Tensor, line: Tensor, delta: float) -> None:
    """See SoftSteps.lines: offset and slope of the pull, built from the lowest edge up; line: [2P + 1, 2]."""
    _lines[(1,)](edges, origins, weights, line, len(weights), delta, _CHUNK, num_warps=_WARPS)


@triton.jit(do_not_specialize=["p"])
def _lines(edges, origins, weights, line, p, DELTA: tl.constexpr, CHUNK: tl.constexpr):  # type: ignore[no-untyped-def]
    zero = tl.sum(tl.zeros((CHUNK,), dtype=tl.float64))
    steepness, height = zero, zero
    tl.store(line, zero)
    tl.store(line + 1, zero)
    for first in range(0, 2 * p, CHUNK):
        k = first + tl.arange(0, CHUNK)
        inside = k < 2 * p
        after = inside & (k > 0)
        step = _change(origins, weights, k, inside)
        if DELTA == 0:
            tl.store(line + 2 * k + 2, height + tl.cumsum(tl.abs(step), 0) / 2, mask=inside)
            tl.store(line + 2 * k + 3, tl.zeros_like(step), mask=inside)
            height += tl.sum(tl.abs(step)) / 2
        else:
            edge = tl.load(edges + k, mask=inside, other=0)
            lower = tl.load(edges + k - 1, mask=after, other=0)
            # Up to the edge the slope is that of the bin below: again no subtraction.
            step_before = _change(origins, weights, k - 1, after)
            slope_before = steepness + tl.cumsum(step_before, 0)
            rise = tl.where(after, tl.maximum(slope_before, 0.0) * (edge - lower), 0.0) / (2 * DELTA)
            slope = tl.maximum(slope_before + step, 0.0) / (2 * DELTA)
            slope = tl.where(k < 2 * p - 1, slope, 0.0)  # rounding residue matters for values far above
            at_edge = height + tl.cumsum(rise, 0)
            tl.store(line + 2 * k + 2, at_edge - slope * edge, mask=inside)
            tl.store(line + 2 * k + 3, slope, mask=inside)
            steepness += tl.sum(step_before)
            height += tl.sum(rise)


@triton.jit
def _change(origins, weights, k, inside):  # type: ignore[no-untyped-def]
    """The weight of the step that starts at edge k, or minus the weight of the step that stops there."""
    origin = tl.load(origins + k, mask=inside, other=0)
    is_start = origin >= 0
    weight = tl.load(weights + tl.where(is_start, origin, -1 - origin), mask=inside, other=0)
    return tl.where(is_start, weight, -weight)


def find_bins(
    logits: Tensor, targets: Tensor, search_edges: Tensor, bins: Tensor, counts: Tensor, sums: Tensor
) -> None:
    """Find the bin of each value whose target is 0 (bin 0 for others); count and sum the values per bin.

    counts: int32 [copies, 2P + 1], zeros; sums: float64, likewise. Bin 0 stays 0: no step counts it.
    """
    depth = len(search_edges).bit_length()
    _over(
        _find_bins,
        logits,
        targets,
        search_edges,
        bins,
        counts,
        sums,
        len(logits),
        depth,
        *reversed(sums.shape),
    )


@triton.jit(do_not_specialize=["n", "depth", "bins", "copies"])
def _find_bins(  # type: ignore[no-untyped-def]
    logits, targets, edges, found_bins, counts, sums, n, depth, bins, copies, BLOCK: tl.constexpr
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    target = tl.load(targets + at, mask=inside, other=-1)
    x = tl.load(logits + at, mask=inside, other=0).to(edges.dtype.element_ty)
    found = tl.zeros((BLOCK,), dtype=tl.int32)
    step = 1 << (depth - 1)
    while step > 0:
        edge = tl.load(edges + (found + (step - 1)))
        found += tl.where(edge <= x, step, 0)
        step = step >> 1
    found = tl.where(inside & (target == 0), found, 0)
    tl.store(found_bins + at, found, mask=inside)
    place = (at % copies) * bins + found
    tl.atomic_add(counts + place, 1, mask=found > 0, sem="relaxed")
    tl.atomic_add(sums + place, x.to(tl.float64), mask=found > 0, sem="relaxed")


def pull(logits: Tensor, bins: Tensor, line: Tensor, pulls: Tensor) -> None:
    """offset + slope x in each value's bin; pulls may share the memory of bins."""
    _over(_pull, logits, bins, line, pulls, len(logits))


@triton.jit(do_not_specialize=["n"])
def _pull(logits, bins, line, pulls, n, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    mine = line + 2 * tl.load(bins + at, mask=inside, other=0).to(tl.int64)
    x = tl.load(logits + at, mask=inside, other=0).to(tl.float64)
    result = tl.maximum(tl.load(mine) + tl.load(mine + 1) * x, 0.0)
    if pulls.dtype.element_ty != tl.float64:
        result = result.to(tl.float32)  # before bfloat16, as PyTorch rounds
    tl.store(pulls + at, result.to(pulls.dtype.element_ty), mask=inside)


def _over(kernel: Any, values: Tensor, *arguments: Any) -> None:
    if len(values):
        kernel[(triton.cdiv(len(values), _BLOCK),)](values, *arguments, _BLOCK)
