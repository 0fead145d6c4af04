"""Finds nearly equal fingerprints without comparing all pairs.

Two fingerprints of 256 bits that differ in fewer than sixteen bits agree in at least one of their sixteen
bands of sixteen bits, so only those with a common band are compared. Pictures of one layout, such as
documents or objects in front of a white wall, have many common bands that mean little; where that would take
more comparisons than all pairs, all pairs are compared, as matrix products.
"""

import re
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

# Maximum number of differing bits of 256. Copies in another size or quality differ in 10 or fewer, other
# photographs in 70 or more.
_BITS = 15
_BANDS = 16
_FEW = 64  # rows with a common band; for more of them a matrix is computed
_BLOCK = 128  # rows of such a matrix
_LIKE = 256 - 2 * _BITS  # least product of the signs of nearly equal fingerprints

Prints = NDArray[np.uint64]  # [I, 4], from `data.check.scan.fingerprint`; zero rows match nothing
Rows = NDArray[np.int64]
Pairs = tuple[Rows, Rows]  # [L] rows of one set, and of the other


# Roboflow exports the versions that it makes of dog.jpg, rotated or mirrored, as dog_jpg.rf.HASH.jpg.
_VERSION = re.compile(r"(.+)\.rf\.[0-9A-Za-z_-]{8,}(\.[^.]*)?")


def source_of(name: str) -> str | None:
    """The common part of the file names of a photograph's Roboflow versions; None for other names."""
    version = _VERSION.fullmatch(name)
    return version[1] if version else None


def near_groups(prints: Prints) -> Rows:
    """Group of each row, int64 [I]: nearly equal fingerprints share a group, also by way of others."""
    groups = np.arange(len(prints))
    rows = np.flatnonzero(prints.any(axis=1))
    if _all_is_less(prints, rows, prints, rows):
        return groups_linked(groups, _links(prints, rows, groups))
    for band in range(_BANDS):
        common = _InCommon(prints, rows, prints, rows, band)
        links = []
        # Frames of one camera have most bands in common: they are linked by the first.
        for one, other in common.few():
            wanted = (one < other) & (groups[one] != groups[other])
            links.append(_near(prints, prints, (one[wanted], other[wanted])))
        for run, _ in common.many():
            links += _links(prints, run, groups)
        groups = groups_linked(groups, links)
    return groups


def near_pairs(one: Prints, other: Prints) -> list[tuple[int, int]]:
    """(row of `one`, a nearly equal row of `other`) for each row of `one` that has any."""
    mine, theirs = (np.flatnonzero(prints.any(axis=1)) for prints in (one, other))
    found, left = [], mine
    for band in range(_BANDS):
        common = _InCommon(one, left, other, theirs, band)
        near = [_near(one, other, pairs) for pairs in common.few(of_many=True)]
        # Matched rows are not compared again: of the frames of a still scene none is left for the next band.
        left = np.setdiff1d(left, np.concatenate([rows for rows, _ in near]))
        found += near
    if _all_is_less(one, left, other, theirs):
        found += [_near(one, other, pairs) for pairs in _nearest(one, left, other, theirs)]
    else:
        for band in range(_BANDS):
            for rows, run in _InCommon(one, left, other, theirs, band).many():
                found += [_near(one, other, pairs) for pairs in _nearest(one, rows, other, run)]
    rows, others = (np.concatenate(side) for side in zip(*found, strict=True))
    order = np.lexsort((others, _distances(one[rows], other[others]), rows))
    nearest = order[np.unique(rows[order], return_index=True)[1]]
    return list(zip(rows[nearest].tolist(), others[nearest].tolist(), strict=True))


class _InCommon:
    """Pairs of rows of two sets that agree in one band."""

    def __init__(self, one: Prints, mine: Rows, other: Prints, theirs: Rows, band: int) -> None:
        my_bits, bits = _bits_of(one[mine], band), _bits_of(other[theirs], band)
        my_order, order = my_bits.argsort(kind="stable"), bits.argsort(kind="stable")
        self._mine, self._theirs = mine[my_order], theirs[order]
        self._starts, self._ends = (
            bits[order].searchsorted(my_bits[my_order], side) for side in ("left", "right")
        )
        self._sizes = self._ends - self._starts

    def __len__(self) -> int:
        """The number of pairs."""
        return int(self._sizes.sum())

    def few(self, of_many: bool = False) -> Iterator[Pairs]:
        """Pairs of rows that agree with at most _FEW others; with `of_many` also _FEW pairs per other row.

        Yields one pair per row at a time: all pairs of a large set would take a gigabyte.
        """
        at = np.flatnonzero((self._sizes <= _FEW) | of_many)
        for further in range(_FEW):
            at = at[further < self._sizes[at]]
            yield self._mine[at], self._theirs[self._starts[at] + further]

    def many(self) -> Iterator[Pairs]:
        """For rows that agree with more than _FEW others: the rows with equal bands, and these others."""
        at = np.flatnonzero(self._sizes > _FEW)
        for alike in np.split(at, np.flatnonzero(np.diff(self._starts[at])) + 1) if len(at) else ():
            yield self._mine[alike], self._theirs[self._starts[alike[0]] : self._ends[alike[0]]]


def _all_is_less(one: Prints, mine: Rows, other: Prints, theirs: Rows) -> bool:
    """Whether comparing all pairs takes fewer comparisons than the bands."""
    pairs = sum(len(_InCommon(one, mine, other, theirs, band)) for band in range(_BANDS))
    return pairs > len(mine) * len(theirs)


def _links(prints: Prints, rows: Rows, groups: Rows) -> Iterator[Pairs]:
    """Links that connect nearly equal rows which are not in one group yet."""
    if (groups[rows] == groups[rows[0]]).all():
        return
    signs, left = _signs(prints[rows]), np.arange(len(rows))
    groups = np.unique(groups[rows], return_inverse=True)[1]
    while len(left):
        # The largest group first: of the frames of a still scene none is left to compare with the next.
        group, sizes = np.unique(groups[left], return_inverse=True, return_counts=True)[1:]
        if len(sizes) == 1:
            return
        left = left[np.lexsort((group, -sizes[group]))]
        heads = left[:_BLOCK]
        one_group = groups[heads[0]] == groups[heads[-1]]
        others = left[groups[left] != groups[heads[0]]] if one_group else left
        near = signs[heads] @ signs[others].T >= _LIKE
        found = near.any(axis=0)
        near = near[:, found]
        links = [(heads[near.argmax(axis=0)], others[found])]  # each with the first head that it is near to
        if not one_group:  # heads that are near to the same row
            label = connected_components(near.astype(np.float32) @ near.T.astype(np.float32))[1]
            links.append((heads[np.unique(label, return_index=True)[1][label]], heads))
        for one, other in links:
            yield rows[one], rows[other]
        groups, left = groups_linked(groups, links), left[_BLOCK:]


def _nearest(one: Prints, mine: Rows, other: Prints, theirs: Rows) -> Iterator[Pairs]:
    """Pairs each of `mine` with the nearest of `theirs`."""
    signs = _signs(other[theirs])
    for first in range(0, len(mine), _BLOCK):
        rows = mine[first : first + _BLOCK]
        yield rows, theirs[(_signs(one[rows]) @ signs.T).argmax(axis=1)]


def _near(one: Prints, other: Prints, pairs: Pairs) -> Pairs:
    """The pairs that are nearly equal."""
    near = _distances(one[pairs[0]], other[pairs[1]]) <= _BITS
    return pairs[0][near], pairs[1][near]


def groups_linked(groups: Rows, links: Iterable[Pairs]) -> Rows:
    """Groups, each a number below I, after merging those of linked rows: int64 [I]."""
    one, other = (np.concatenate(side) for side in zip((groups[:0],) * 2, *links, strict=True))
    count = len(groups)
    graph = coo_array((np.ones(len(one), dtype=np.bool_), (groups[one], groups[other])), shape=(count, count))
    return connected_components(graph, directed=False)[1].astype(np.int64)[groups]


def _bits_of(prints: Prints, band: int) -> NDArray[np.uint16]:
    return np.ascontiguousarray(prints).view(np.uint16).reshape(-1, _BANDS)[:, band].copy()


def _signs(prints: Prints) -> NDArray[np.float32]:
    """1 or -1 for each bit, [I, 256]; a dot product is 256 - 2 * (number of differing bits)."""
    bits = np.unpackbits(np.ascontiguousarray(prints).view(np.uint8).reshape(-1, 32), axis=1)
    return bits.astype(np.float32) * 2 - 1


def _distances(one: Prints, other: Prints) -> NDArray[np.int64]:
    """Number of differing bits of each pair of rows of [L, 4]: int64 [L]."""
    return np.bitwise_count(one ^ other).sum(axis=1, dtype=np.int64)
