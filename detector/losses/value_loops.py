"""Loops over the N values of a batch, one pass each; see machine_code.py."""

import numpy as np

from detector.losses.machine_code import Array, compiled_loop

_FEW = 1 << 12  # values whose bins stay in the nearest cache between two loops


@compiled_loop
def find_ones(targets: Array, words: Array, places: Array) -> tuple[int, int, int]:
    """How many ones, and the lowest and the highest target, or 0; fills their places, and one after these.

    words: uint64 [n, 4], the memory of as many of the targets as fill them. Most are nothing but zeros; four
    are looked at at once, since whether a single one is could not be foreseen where ones are many.
    """
    found, one, eight = np.uint64(0), np.uint64(1), np.uint64(8)
    low = high = np.int64(0)
    each = np.uint64(32 // targets.itemsize)  # targets in four words
    ones, bytes_shift = one, np.uint64(0)  # a one in each place of a word; the logarithm of the item's size
    for _ in range(8 // targets.itemsize - 1):
        ones = (ones << np.uint64(8 * targets.itemsize)) | one
    while (one << bytes_shift) < np.uint64(targets.itemsize):
        bytes_shift += one
    for k in range(np.uint64(len(words))):
        some = words[k, 0] | words[k, 1] | words[k, 2] | words[k, 3]
        if some == 0:
            continue
        if some & ~ones == 0:
            for j in range(4):
                word, first_byte = words[k, j], (k * np.uint64(4) + np.uint64(j)) * eight
                for byte in range(eight):  # of which those that begin a target can be one
                    places[found] = (first_byte + byte) >> bytes_shift
                    found += word & one
                    word >>= eight
        else:
            for i in range(k * each, k * each + each):
                target = np.int64(targets[i])
                places[found] = i
                found += np.uint64(target == 1)
                low, high = min(low, target), max(high, target)
    for i in range(np.uint64(len(words)) * each, np.uint64(len(targets))):
        target = np.int64(targets[i])
        places[found] = i
        found += np.uint64(target == 1)
        low, high = min(low, target), max(high, target)
    return found, low, max(high, np.int64(found > 0))


@compiled_loop
def count_beyond(bits: Array, without_sign: int, limit: int) -> int:
    """How many floats, by their bits, are farther from 0 than the one of the bits `limit`, or are NaN."""
    beyond = 0
    for i in range(len(bits)):
        beyond += (bits[i] & without_sign) > limit
    return beyond


@compiled_loop
def targets_of_quality(quality: Array, targets: Array) -> bool:
    """1 for what is above 0, 0 for 0 and -1 for -1; whether all of it is -1 or in [0, 1]."""
    wrong = 0
    for i in range(len(quality)):
        q = quality[i]
        targets[i] = np.int8(q > 0) - np.int8(q < 0)
        wrong += not ((q >= 0) & (q <= 1) | (q == -1))
    return wrong == 0


@compiled_loop
def find_bins(
    values: Array, targets: Array, edges: Array, cells: Array, grid: Array, bins: Array, totals: Array
) -> None:
    """The bin of each value whose target is 0, and count and sum of the values of a bin; bin 0 for others.

    The totals of bin 0 mean nothing: no step counts it.

    Cells, bins and totals of a few thousand values each have a loop: what one value looks up does not
    depend on the last, and the shorter a loop, the more of them the processor looks up at a time.
    """
    low, scale, last, one = grid[0], grid[1], grid[2], np.uint64(1)
    for first in range(0, len(values), _FEW):
        some, some_bins = values[first : first + _FEW], bins[first : first + _FEW]
        some_targets = targets[first : first + _FEW]
        for i in range(len(some)):
            some_bins[i] = np.int32(min(max((some[i] - low) * scale, low - low), last))
        for i in range(len(some)):
            x, cell = some[i], np.uint64(some_bins[i])
            found = np.uint64(cells[cell])
            # Two steps without a branch; few cells need more.
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
            some_bins[i] = found * np.uint64(some_targets[i] == 0)
        for i in range(len(some)):
            k = np.uint64(some_bins[i])
            totals[k, 0] += 1
            totals[k, 1] += some[i]


@compiled_loop
def pull(values: Array, bins: Array, line: Array, out: Array) -> None:
    """offset + slope x in each value's bin; out may lie where bins do."""
    for i in range(len(values)):
        k = np.uint64(bins[i])
        out[i] = max(line[k, 0] + line[k, 1] * np.float64(values[i]), 0.0)


@compiled_loop
def widen(bits: Array, wide: Array) -> None:
    """bfloat16 as float32, by their bits: uint16 -> uint32."""
    for i in range(len(bits)):
        wide[i] = np.uint32(bits[i]) << np.uint32(16)


@compiled_loop
def narrow(wide: Array, bits: Array) -> None:
    """The reverse for finite numbers, rounded to nearest and ties to even."""
    for i in range(len(bits)):
        odd = (wide[i] >> np.uint32(16)) & np.uint32(1)
        bits[i] = np.uint16((wide[i] + np.uint32(0x7FFF) + odd) >> np.uint32(16))
