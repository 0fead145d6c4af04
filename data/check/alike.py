"""Fingerprints that are nearly the same, found without comparing all of them with all.

Two of 256 bits that differ in fewer than sixteen have at least one of their sixteen bands of sixteen bits in
common, and only those with a band in common are compared.
"""

import re
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

# Of 256 that may differ. Copies in another size or quality differ in 10 or less, other photographs in 70 or
# more.
_BITS = 15

Prints = NDArray[np.uint64]  # [I, 4], as `data.check.scan.fingerprint` makes them; zeros are like no other
Rows = NDArray[np.int64]


# Roboflow's exports call the versions that it makes of dog.jpg, turned or mirrored, dog_jpg.rf.HASH.jpg.
_VERSION = re.compile(r"(.+)\.rf\.[0-9A-Za-z_-]{8,}(\.[^.]*)?")


def source_of(name: str) -> str | None:
    """What the versions of one photograph have in common in the names of their files; None for others."""
    version = _VERSION.fullmatch(name)
    return version[1] if version else None


def groups_linked(count: int, links: list[tuple[int, int]]) -> Rows:
    """The group of each of `count` rows, int64: those that are linked, through others too, are in one."""
    one, other = np.array(links, dtype=np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(links), dtype=np.bool_), (one, other)), shape=(count, count))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def near_links(prints: Prints) -> list[tuple[int, int]]:
    """Pairs of rows that are nearly the same, enough of them to connect all that are, through others too."""
    rows = np.flatnonzero(prints.any(axis=1))
    links: list[tuple[int, int]] = []
    for band in _bands(prints[rows]).T:
        # The frames of one camera have most bands in common: what is connected already is not compared again.
        groups = groups_linked(len(prints), links)
        order = band.argsort(kind="stable")
        starts = np.flatnonzero(np.diff(band[order])) + 1
        for run in np.split(rows[order], starts):
            if len(run) > 1 and (groups[run] != groups[run[0]]).any():
                links += _links_within(prints, run, groups)
    return links


def _links_within(prints: Prints, rows: Rows, groups: Rows) -> Iterator[tuple[int, int]]:
    """As `near_links`. What is reached is compared no more: of a still scene's frames none is left."""
    left = rows
    while len(left) > 1:
        reached = left[groups[left] == groups[left[0]]]
        left = left[groups[left] != groups[left[0]]]
        while len(reached) and len(left):
            found = np.zeros(len(left), dtype=np.bool_)
            # One of the fewer against all of the others at a time.
            if len(reached) < len(left):
                for row in reached.tolist():
                    near = ~found & (_distances(prints[left], prints[row]) <= _BITS)
                    found |= near
                    for other in left[near].tolist():
                        yield row, other
            else:
                for k, row in enumerate(left.tolist()):
                    distances = _distances(prints[reached], prints[row])
                    nearest = int(distances.argmin())
                    if distances[nearest] <= _BITS:
                        found[k] = True
                        yield int(reached[nearest]), row
            joined = np.isin(groups[left], groups[left[found]])
            reached, left = left[joined], left[~joined]


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
