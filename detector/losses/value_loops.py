"""Loops over the N values of a batch, one pass each; see machine_code.py."""

import numpy as np

from detector.losses.machine_code import Array, compiled_loop

FEW = 1 << 12  # values whose bins stay in the L1 cache between two loops


@compiled_loop
def find_ones(targets: Array, words: Array, places: Array) -> tuple[int, int, int]:
    """The number of ones, min(lowest target, 0) and max(highest target, 0). Fills places with the indices of
    the ones; up to two elements after them are overwritten.

    words: uint64 [n, 4], the memory of the targets, as far as they fill whole rows. Most are all zeros; four
    are tested at once, since the branch for a single one is unpredictable where ones are many.

    If all bytes of a word are 0 or 1, its product with 0x0101.. has their sum in the highest byte. If a
    single byte is 1, the product with 0x0001..07 has the index of that byte there.
    """
    found, one, eight, top = np.uint64(0), np.uint64(1), np.uint64(8), np.uint64(56)
    every_byte, numbers = np.uint64(0x0101010101010101), np.uint64(0x0001020304050607)
    low = high = np.int64(0)
    each = np.uint64(32 // targets.itemsize)  # targets in four words
    ones, bytes_shift = one, np.uint64(0)  # a 1 in every item of a word; log2 of the item size in bytes
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
                word, first = words[k, j], (k * np.uint64(4) + np.uint64(j)) * eight
                at = found
                found += word * every_byte >> top
                # Write two without a branch, whether they exist or not; few words have more.
                second = word & (word - one)
                places[at] = (first + ((word & -word) * numbers >> top)) >> bytes_shift
                at += one
                places[at] = (first + ((second & -second) * numbers >> top)) >> bytes_shift
                rest = second & (second - one)
                while rest != 0:
                    at += one
                    places[at] = (first + ((rest & -rest) * numbers >> top)) >> bytes_shift
                    rest &= rest - one
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
    """How many floats, given as bits, are NaN or farther from 0 than the float whose bits are `limit`."""
    beyond = 0
    for i in range(len(bits)):
        beyond += (bits[i] & without_sign) > limit
    return beyond


@compiled_loop
def targets_of_quality(quality: Array, targets: Array) -> bool:
    """Fill targets with the signs of the qualities; returns whether all of these are -1 or in [0, 1]."""
    wrong = 0
    for i in range(len(quality)):
        q = quality[i]
        targets[i] = np.int8(q > 0) - np.int8(q < 0)
        wrong += not ((q >= 0) & (q <= 1) | (q == -1))
    return wrong == 0


@compiled_loop
def find_bins(
    values: Array,
    bits: Array,
    targets: Array,
    edges: Array,
    cells: Array,
    grid: Array,
    scratch: Array,
    bins: Array,
    totals: Array,
) -> None:
    """Find the bin of each value whose target is 0 (bin 0 for others); count and sum the values per bin.

    bits: the memory of the values as integers; edges, cells, grid: of `fill_cells`; scratch: [3, FEW + 1] of
    the edges' dtype. The totals of bin 0 are meaningless: no step counts it.

    Works on a few thousand values at a time in very short loops: lookups of different values are
    independent, and the shorter the loop, the more of them the processor overlaps.
    """
    low, scale, last, one = grid[0], grid[1], grid[2], np.uint64(1)
    keys, places, unsure = scratch[0], scratch[1], scratch[2]
    sign, magnitude = edges.dtype.type(8 * edges.itemsize - 1), np.iinfo(edges.dtype).max
    for first in range(0, len(values), FEW):
        some, some_bins = values[first : first + FEW], bins[first : first + FEW]
        some_bits, some_targets = bits[first : first + FEW], targets[first : first + FEW]
        for i in range(len(some)):
            places[i] = np.int32(min(max((some[i] - low) * scale, low - low), last))
        for i in range(len(some)):  # as in `make_keys`
            negative = some_bits[i] >> sign
            keys[i] = ((some_bits[i] & magnitude) ^ negative) - negative
        # One step without a branch. Few values lie above the next edge as well: list these.
        count = np.uint64(0)
        for i in range(len(some)):
            key, found = keys[i], np.uint64(cells[np.uint64(places[i])])
            found += np.uint64(edges[found] <= key)
            some_bins[i], unsure[count] = found, i
            count += np.uint64(edges[found] <= key)
        for j in range(count):
            i = np.uint64(unsure[j])
            key, found, end = keys[i], np.uint64(some_bins[i]), np.uint64(cells[np.uint64(places[i]) + one])
            while found < end:
                middle = (found + end) >> one
                if edges[middle] <= key:
                    found = middle + one
                else:
                    end = middle
            some_bins[i] = found
        for i in range(len(some)):
            some_bins[i] *= some_targets[i] == 0
        for i in range(len(some)):
            k = np.uint64(some_bins[i])
            totals[k, 0] += 1
            totals[k, 1] += some[i]


@compiled_loop
def pull(values: Array, bins: Array, line: Array, out: Array) -> None:
    """offset + slope x in each value's bin; out may share the memory of bins."""
    for i in range(len(values)):
        k = np.uint64(bins[i])
        out[i] = max(line[k, 0] + line[k, 1] * np.float64(values[i]), 0.0)


@compiled_loop
def widen(bits: Array, wide: Array) -> None:
    """bfloat16 to float32, as bits: uint16 -> uint32."""
    for i in range(len(bits)):
        wide[i] = np.uint32(bits[i]) << np.uint32(16)


@compiled_loop
def narrow(wide: Array, bits: Array) -> None:
    """float32 to bfloat16 for finite numbers, rounded to nearest, ties to even."""
    for i in range(len(bits)):
        odd = (wide[i] >> np.uint32(16)) & np.uint32(1)
        bits[i] = np.uint16((wide[i] + np.uint32(0x7FFF) + odd) >> np.uint32(16))
