"""Loops over thresholds that count each other; as they are sorted, this needs no bins. See machine_code.py.

The window of threshold t_i holds the thresholds that count in part for it: the ascending centres begins[i]
to ends[i] - 1, which lie within delta of t_i (`step_loops.merge`). A sum over a window is the difference of
two prefix sums. These use the places of `lay_out` instead of the centres, which may lie far from 0.
"""

import numpy as np

from detector.losses.machine_code import Array, compiled_loop


@compiled_loop
def lay_out(centres: Array, delta: float, places: Array) -> None:
    """Places: distances from the lowest of the ascending centres, with gaps cut to at most 2 delta.

    No window of `merge` reaches across a wider gap, and sums of places lose no digits even if the centres
    lie far apart.
    """
    place, lower = 0.0, np.float64(centres[0])
    for k in range(len(centres)):
        centre = np.float64(centres[k])
        place += min(centre - lower, 2 * delta)
        lower = centre
        places[k] = place


@compiled_loop
def window_sums(
    delta: float,
    weights: Array,
    begins: Array,
    ends: Array,
    before: Array,
    below: bool,
    out: Array,
) -> None:
    """sum_k w_k H(t_k - t_i) for each of the ascending centres t_i; below: sum_k w_k H(t_i - t_k).

    begins, ends: of `merge`. before: [P + 1, 2], filled with the prefix sums of weights and of weights times
    place. out: [P], the places of `lay_out` on entry, the result on exit.
    """
    p, steepness = len(out), 0.5 / delta if delta > 0 else 0.0
    total = moment = 0.0
    for k in range(p):
        before[k, 0], before[k, 1] = total, moment
        total += weights[k]
        moment += weights[k] * out[k]
    before[p, 0], before[p, 1] = total, moment
    for i in range(p):
        begin, end = begins[i], ends[i]
        within = before[end, 0] - before[begin, 0]
        rise = (before[end, 1] - before[begin, 1] - within * out[i]) * steepness
        if below:
            out[i] = max(before[begin, 0] + within / 2 - rise, 0.0)
        else:
            out[i] = max(total - before[end, 0] + within / 2 + rise, 0.0)


@compiled_loop
def window_counts(
    centres: Array, delta: float, begins: Array, ends: Array, before: Array, out: Array
) -> None:
    """`lay_out` followed by `window_sums` with weights of 1 and below=False; the result is in `out`.

    before: [P + 1], filled with the prefix sums of the places.
    """
    p, steepness = np.uint64(len(out)), 0.5 / delta if delta > 0 else 0.0
    place, moment, lower = 0.0, 0.0, np.float64(centres[0])
    for k in range(p):
        centre = np.float64(centres[k])
        place += min(centre - lower, 2 * delta)
        lower = centre
        out[k], before[k] = place, moment
        moment += place
    before[p] = moment
    for i in range(p):
        # Signed for AVX2's conversion to floats, unsigned as indices.
        begin, end = np.int64(begins[i]), np.int64(ends[i])
        within = np.float64(end - begin)
        rise = (before[np.uint64(end)] - before[np.uint64(begin)] - within * out[i]) * steepness
        out[i] = max(np.float64(np.int64(p) - end) + within / 2 + rise, 0.0)


@compiled_loop
def sums_of_earlier(
    places: Array,
    delta: float,
    quality: Array,
    order: Array,
    values: Array,
    begins: Array,
    ends: Array,
    tree: Array,
    below: bool,
    sums: Array,
) -> None:
    """sum_k v_k H(t_k - t_i) over the k of another quality that come before i in `order`; see window_sums.

    places: of `lay_out`. order: [P], by rising or falling quality. values, sums: [P, 2], two sums at once.
    tree: [P + 1, 4] zeros, a Fenwick tree (Fenwick, 1994) over the centres, with the values, and the values
    times place, of those visited so far.
    """
    p, one = np.uint64(len(places)), np.uint64(1)
    steepness = 0.5 / delta if delta > 0 else 0.0
    total_a = total_b = 0.0
    first = np.uint64(0)
    while first < p:
        last, mine = first, quality[order[first]]
        while last < p and quality[order[last]] == mine:
            i = np.uint64(order[last])
            begin, end = np.uint64(begins[i]), np.uint64(ends[i])
            begun_a = begun_b = within_a = within_b = moment_a = moment_b = 0.0
            # Tree nodes common to both prefixes cancel, so they are skipped.
            while end > begin:
                within_a += tree[end, 0]
                within_b += tree[end, 1]
                moment_a += tree[end, 2]
                moment_b += tree[end, 3]
                end &= end - one
            while begin > end:
                within_a -= tree[begin, 0]
                within_b -= tree[begin, 1]
                moment_a -= tree[begin, 2]
                moment_b -= tree[begin, 3]
                begun_a += tree[begin, 0]
                begun_b += tree[begin, 1]
                begin &= begin - one
            while end > 0:
                begun_a += tree[end, 0]
                begun_b += tree[end, 1]
                end &= end - one
            rise_a = (moment_a - within_a * places[i]) * steepness
            rise_b = (moment_b - within_b * places[i]) * steepness
            if below:
                sums[i, 0] = max(begun_a + within_a / 2 - rise_a, 0.0)
                sums[i, 1] = max(begun_b + within_b / 2 - rise_b, 0.0)
            else:
                sums[i, 0] = max(total_a - begun_a - within_a / 2 + rise_a, 0.0)
                sums[i, 1] = max(total_b - begun_b - within_b / 2 + rise_b, 0.0)
            last += one
        while first < last:
            i = np.uint64(order[first])
            a, b = values[i, 0], values[i, 1]
            total_a += a
            total_b += b
            at = i + one
            while at <= p:
                tree[at, 0] += a
                tree[at, 1] += b
                tree[at, 2] += a * places[i]
                tree[at, 3] += b * places[i]
                at += at & (~at + one)
            first += one
