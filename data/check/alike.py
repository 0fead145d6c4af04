"""Fingerprints that are nearly the same, found without comparing all of them with all.

Two of 256 bits that differ in fewer than sixteen have at least one of their sixteen bands of sixteen bits in
common, and only those with a band in common are compared.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

# Of 256 that may differ. Copies in another size or quality differ in 10 or less, other photographs in 70 or
# more.
_BITS = 15

Prints = NDArray[np.uint64]  # [I, 4], as `data.check.scan.fingerprint` makes them; zeros are like no other
Rows = NDArray[np.int64]


def near_links(prints: Prints) -> Iterator[tuple[int, int]]:
    """Pairs of rows that are nearly the same, enough of them to connect all that are, through others too."""
    rows = np.flatnonzero(prints.any(axis=1))
    for band in _bands(prints[rows]).T:
        order = band.argsort(kind="stable")
        starts = np.flatnonzero(np.diff(band[order])) + 1
        for run in np.split(rows[order], starts):
            if len(run) > 1:
                yield from _links_within(prints, run)


def _links_within(prints: Prints, rows: Rows) -> Iterator[tuple[int, int]]:
    """As `near_links`. What is reached is compared no more: of a still scene's frames none is left."""
    left = rows
    while len(left) > 1:
        reached, left = [int(left[0])], left[1:]
        while reached and len(left):
            row = reached.pop()
            near = _distances(prints[left], prints[row]) <= _BITS
            found = left[near].tolist()
            reached += found
            left = left[~near]
            for other in found:
                yield row, other


def near_pairs(one: Prints, other: Prints) -> Iterator[tuple[int, int]]:
    """(row of one, a row of other that is nearly the same) for each row of one that has such."""
    mine, theirs = (np.flatnonzero(prints.any(axis=1)) for prints in (one, other))
    found: dict[int, int] = {}
    for my_band, band in zip(_bands(one[mine]).T, _bands(other[theirs]).T, strict=True):
        order = band.argsort(kind="stable")
        starts, ends = (band[order].searchsorted(my_band, side) for side in ("left", "right"))
        for k in np.flatnonzero(ends > starts).tolist():
            row = int(mine[k])
            if row not in found:
                rows = theirs[order[starts[k] : ends[k]]]
                distances = _distances(other[rows], one[row])
                if distances.min() <= _BITS:
                    found[row] = int(rows[distances.argmin()])
    yield from sorted(found.items())


def _bands(prints: Prints) -> NDArray[np.uint16]:
    return np.ascontiguousarray(prints).view(np.uint16).reshape(-1, 16)


def _distances(prints: Prints, one: Prints) -> NDArray[np.int64]:
    """In how many bits each of [I, 4] differs from one [4]."""
    return np.bitwise_count(prints ^ one).sum(axis=1, dtype=np.int64)
