"""Loops over P thresholds and the bins between their break points; see machine_code.py."""

import numpy as np

from detector.losses.machine_code import Array, compiled_loop

# Three digits of 11 bits cover a float32.
RADIX, _DIGIT_BITS = 1 << 11, 11
_SOME = 1 << 10  # edges whose cells stay in the L1 cache between two loops


@compiled_loop
def sort_floats(bits: Array, pairs: Array, counts: Array, sorted_bits: Array, sorted_places: Array) -> None:
    """Radix sort of float32, given as bits uint32 [n], into sorted_bits, with their original indices.

    pairs: uint64 [2, n], scratch for a number and its index; counts: uint32 [3, RADIX], scratch. With the
    sign bit flipped, and all bits of negative numbers, the bits sort as unsigned integers like the floats.
    """
    n, top, every, mask = len(bits), np.uint32(1 << 31), np.uint32(0xFFFFFFFF), np.uint64(RADIX - 1)
    counts[:] = 0
    for i in range(n):
        key = np.uint64(bits[i] ^ (every if bits[i] & top else top))
        pairs[0, i] = key << np.uint64(32) | np.uint64(i)
        for digit in range(3):
            counts[digit, key >> np.uint64(digit * _DIGIT_BITS) & mask] += np.uint32(1)
    for digit in range(3):
        first, shift = np.uint32(0), np.uint64(32 + digit * _DIGIT_BITS)
        for value in range(RADIX):
            count = counts[digit, value]
            counts[digit, value] = first
            first += count
        given, taken, firsts = pairs[digit & 1], pairs[1 - (digit & 1)], counts[digit]
        for i in range(n):
            value = given[i] >> shift & mask
            taken[np.uint64(firsts[value])] = given[i]
            firsts[value] += np.uint32(1)
    for i in range(n):
        key = np.uint32(pairs[1, i] >> np.uint64(32))
        sorted_bits[i], sorted_places[i] = key ^ (top if key & top else every), np.uint32(pairs[1, i])


@compiled_loop
def break_points(centres: Array, delta: float, points: Array, eps: float) -> None:
    """See ranking.searched_break_points, for delta > 0; eps is that of the dtype.

    points: [3, P], filled with centres, starts and stops.

    A number that was rounded down is raised by 0.7 eps of itself: between 0.5 and 1.5 times the distance
    to the next number, so the sum rounds to that one.
    """
    up, p = centres.dtype.type(0.7 * eps), len(centres)
    for i in range(p):
        low, high = np.float64(centres[i]) - delta, np.float64(centres[i]) + delta
        start, stop = centres.dtype.type(low), centres.dtype.type(high)
        points[0, i] = centres[i]
        points[1, i] = start + up * abs(start) * (np.float64(start) < low)
        points[2, i] = stop + up * abs(stop) * (np.float64(stop) < high)


@compiled_loop
def make_keys(bits: Array) -> None:
    """Turn float bits in place into integers that sort like the floats, with -0 as 0. They compare faster."""
    sign, magnitude = bits.dtype.type(8 * bits.itemsize - 1), np.iinfo(bits.dtype).max
    for k in range(len(bits)):
        negative = bits[k] >> sign
        bits[k] = ((bits[k] & magnitude) ^ negative) - negative


@compiled_loop
def merge(points: Array, edges: Array, from_starts: Array, windows: Array) -> None:
    """Merge starts and stops into edges, noting which are starts; and locate the centres among the stops.

    points: [3, P], centres, starts and stops, each ascending, as keys of `make_keys`. So are the edges
    [2P + 1]; the last is an extra one above all numbers. windows: [2, P + 1], the last column unused: for
    each centre how many stops lie at or below it (begins), for each stop how many centres lie below (ends).

    A merge stalls on each of its comparisons. Here four run in parallel: both merges go up from the lowest
    and down from the highest, and meet after P steps, in which neither list can run out.
    """
    centres, starts, stops = points[0], points[1], points[2]
    begins, ends = windows[0], windows[1]
    p, one = np.uint64(len(stops)), np.uint64(1)
    low_start = low_centre = low_stop = np.uint64(0)
    high_start = high_centre = high_stop = p
    for k in range(p):
        start, stop = starts[low_start], stops[k - low_start]
        is_start = start <= stop
        edges[k], from_starts[k] = min(start, stop), is_start
        low_start += np.uint64(is_start)

        last = p + p - one - k
        start, stop = starts[high_start - one], stops[last - high_start]
        is_start = start > stop
        edges[last], from_starts[last] = max(start, stop), is_start
        high_start -= np.uint64(is_start)

        is_centre = centres[low_centre] < stops[low_stop]
        begins[low_centre if is_centre else p] = low_stop
        ends[p if is_centre else low_stop] = low_centre
        low_centre += np.uint64(is_centre)
        low_stop += np.uint64(not is_centre)

        is_centre = centres[high_centre - one] >= stops[high_stop - one]
        begins[high_centre - one if is_centre else p] = high_stop
        ends[p if is_centre else high_stop - one] = high_centre
        high_centre -= np.uint64(is_centre)
        high_stop -= np.uint64(not is_centre)
    edges[p + p] = np.iinfo(edges.dtype).max


@compiled_loop
def fill_cells(edges: Array, floats: Array, cells: Array, words: Array, grid: Array) -> None:
    """For each of the cells [C + 1], count the edges in lower cells; grid is filled with low, scale, last.

    edges: from `merge`; floats: the same memory, in which they are floats for a while. words: the memory of
    the cells as uint64.

    The cell of x is floor((x - low) * scale), clamped to [0, last]; this is monotone, rounding included. So
    a value lies above all edges of lower cells and below all of higher ones, and only the edges in its own
    cell have to be searched.
    """
    sign, magnitude = edges.dtype.type(8 * edges.itemsize - 1), np.iinfo(edges.dtype).max
    for k in range(len(edges) - 1):
        negative = edges[k] >> sign
        edges[k] = ((edges[k] ^ negative) - negative) | (negative & ~magnitude)
    low, last = floats[0], floats.dtype.type(len(cells) - 2)
    span = np.float64(floats[-2]) - np.float64(low)
    # With an edge beyond the largest number the span is infinite, and a scale of 0 would give NaN cells.
    scale = floats.dtype.type(np.float64(last) / span if 1e-30 < span < np.inf else 1.0)
    grid[0], grid[1], grid[2] = low, scale, last
    words[:] = 0
    one = np.uint64(1)
    places = np.empty(_SOME, np.int32)
    for first in range(0, len(edges) - 1, _SOME):  # in two loops, of which the first can be vectorised
        some = floats[first : min(first + _SOME, len(edges) - 1)]
        for k in range(len(some)):
            places[k] = np.int32(min((some[k] - low) * scale, last))
        for k in range(len(some)):
            cells[np.uint64(places[k]) + one] += 1
    for k in range(len(edges) - 1):
        negative = edges[k] >> sign  # back to keys, as in `make_keys`
        edges[k] = ((edges[k] & magnitude) ^ negative) - negative
    # A word multiplied by `ones`, a 1 for each of its cells, has in each cell the prefix sum up to it.
    lower, each = np.uint64(0), np.uint64(8 * cells.itemsize)
    ones, up_to_last = ~lower // ((one << each) - one), np.uint64(64) - each
    for k in range(len(words)):
        sums = words[k] * ones
        words[k] = sums + lower * ones
        lower += sums >> up_to_last


@compiled_loop
def counts_above(
    centres: Array, delta: float, starts: Array, totals: Array, integrals: Array, counts: Array
) -> None:
    """See SoftSteps.counts_above: the integral of the count above, from the highest edge down.

    integrals: [2P], scratch: at the starts, then at the stops. counts: [P], to be filled.
    """
    p, none, one, plain = np.uint64(len(centres)), np.uint64(0), np.uint64(1), delta == 0
    shift = np.array([delta, -delta])  # indexed by whether a step begins
    # The highest edge is a stop. Above it no step changes, so the integral begins there.
    i = p - one  # the highest remaining start; may go down to -1, which is never looked up
    higher, area = totals[p + p, 0], 0.0  # count of values above edge k, and its integral from there up
    upper = np.float64(centres[i]) + delta  # edge k + 1
    integrals[p + i] = higher if plain else 0.0
    for below in range(one, p + p):
        k = p + p - one - below
        start = np.uint64(starts[k])
        j = k - i - one  # the highest remaining stop
        at = j ^ ((i ^ j) & (none - start))  # i if start else j, without a branch
        edge = np.float64(centres[at]) + shift[start]
        count = totals[k + one, 0]
        area += higher * (upper - edge) + max(totals[k + one, 1] - count * edge, 0.0)
        higher += count
        upper = edge
        integrals[at + (p & (start - one))] = higher if plain else area
        i -= start
    if plain:
        for at in range(p):
            counts[at] = (integrals[at] + integrals[p + at]) / 2
    else:
        steepness = 0.5 / delta  # dividing each time would take as long as the rest of the loop
        for at in range(p):
            counts[at] = (integrals[at] - integrals[p + at]) * steepness


@compiled_loop
def imprecision(
    above_negatives: Array, above_positives: Array, interpolated: bool, errors: Array, mean: Array
) -> None:
    """See Backend.imprecision. mean: [1]."""
    best, total = np.inf, 0.0
    for i in range(len(errors)):
        error = above_negatives[i] / (above_positives[i] + 0.5 + above_negatives[i])
        if interpolated:
            error = best = min(best, error)
        errors[i] = error
        total += error
    mean[0] = total / len(errors)


@compiled_loop
def shares(errors: Array, above: Array, least: float, weights: Array) -> None:
    """See Backend.shares."""
    p = len(errors)
    for i in range(p):
        weights[i] = errors[i] / (max(above[i], least) * p)


@compiled_loop
def lines(centres: Array, delta: float, starts: Array, weights: Array, line: Array) -> None:
    """See SoftSteps.lines: offset and slope of the pull, built from the lowest edge up; line: [2P + 1, 2]."""
    i, one, above_all = np.uint64(0), np.uint64(1), np.uint64(2 * len(centres))
    rise = height = slope = 0.0
    # Both indexed by whether a step begins: a lookup is faster than a branch.
    shift, steepness = np.array([delta, -delta]), np.array([-0.5, 0.5]) / max(delta, 1e-300)
    line[:1] = 0.0
    lower = np.float64(centres[0]) - delta
    for k in range(above_all if delta == 0 else np.uint64(0)):
        start = np.uint64(starts[k])
        height += weights[i if start else k - i] / 2
        line[k + one, 0], line[k + one, 1] = height, 0.0
        i += start
    for k in range(above_all if delta != 0 else np.uint64(0)):
        start = np.uint64(starts[k])
        at = i if start else k - i
        edge = np.float64(centres[at]) + shift[start]
        height += slope * (edge - lower)
        rise += weights[at] * steepness[start]
        slope = max(rise, 0.0)
        line[k + one, 0], line[k + one, 1] = height - slope * edge, slope
        lower = edge
        i += start
    # Above the highest edge the slope is 0; a rounding residue would matter for values far above.
    line[above_all, 0], line[above_all, 1] = height, 0.0


@compiled_loop
def hand_out(errors: Array, order: Array, first: int, places: Array, factor: float, out: Array) -> None:
    """Write factor times the error of each positive of this process to its index in out.

    errors: [P] in ascending order of the logits; order: their indices before sorting, where this process's
    begin at `first`; places: the flat indices of this process's positives.
    """
    before, count = np.uint64(first), np.uint64(len(places))
    for k in range(len(order)):
        mine = np.uint64(order[k]) - before  # wraps to a huge number below `first`
        if mine < count:
            out[np.uint64(places[mine])] = factor * errors[k]
