"""Images divided into parts: what stays together, what each part gets, and what is to be said of it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.check.scan import scan
from data.sample import DetectionSet
from data.split.partition import groups_of, partition
from errors import InputError

_LEAST_OF_SHARE = 0.8
_APART = "--fast divides what looks alike, and folders without --keep-folders"


@dataclass(frozen=True)
class Division:
    """The part of each image.

    Attributes:
        shares: of each part, what it should have of all images.
        part: int64 [I], a position among the shares.
        counts: int64 [I, C], boxes of each class.
        groups: int64 [I], equal for images that stay together.
    """

    shares: dict[str, float]
    part: NDArray[np.int64]
    counts: NDArray[np.int64]
    groups: NDArray[np.int64]
    classes: tuple[str, ...]

    def rows(self, *names: str) -> list[int]:
        """The images of these parts."""
        parts = list(self.shares)
        return np.flatnonzero(np.isin(self.part, [parts.index(name) for name in names])).tolist()

    def lines(self) -> Iterator[str]:
        """What each part holds, and how many images stay with others."""
        width = max(map(len, self.shares))
        for k, name in enumerate(self.shares):
            mine = self.counts[self.part == k].sum(axis=0).tolist()
            boxes = ", ".join(f"{n} {label}" for label, n in zip(self.classes, mine, strict=True))
            images = int((self.part == k).sum())
            yield f"{name:<{width}}  {images} image{'s' * (images != 1)}: {boxes}"
        together = len(self.groups) - len(np.unique(self.groups))
        if together:
            yield f"kept on one side: {together} image{'s' * (together != 1)} like another, or in its folder"

    def short(self) -> Iterator[str]:
        """Of each part that has much less than its share, a line that says so."""
        for k, (name, share) in enumerate(self.shares.items()):
            images, wanted = int((self.part == k).sum()), share * len(self.part)
            if images < _LEAST_OF_SHARE * wanted and images + 1 < wanted:
                yield (
                    f"{name} has {images / len(self.part):.0%} of the images, not {share:.0%}: too many must "
                    f"stay together ({_APART})"
                )


def divide(
    records: DetectionSet, shares: dict[str, float], seed: int, keep_folders: bool, fast: bool
) -> Division:
    """Share out the images of a set.

    Args:
        shares: of each part; they add up to 1.
        seed: decides between equals.
        keep_folders: keep the images of a folder together.
        fast: decode no image, and so see no likeness.

    Raises:
        InputError: an image cannot be read, or nothing is left for a part.
    """
    counts = np.zeros((len(records), len(records.classes)), dtype=np.int64)
    of_image = np.repeat(np.arange(len(records)), np.diff(records.offsets))
    np.add.at(counts, (of_image[~records.ignore], records.labels[~records.ignore]), 1)
    files = [Path(file) for file in records.files.tolist()]
    keys = [[str(file.resolve()) for file in files]]
    if keep_folders:
        keys.append([str(file.parent) for file in files])
    prints = np.zeros((len(records), 4), dtype=np.uint64) if fast else _fingerprints(records)
    groups = groups_of(prints, *keys)
    part = partition(counts, groups, list(shares.values()), seed)
    for k, name in enumerate(shares):
        if not (part == k).any():
            count = len(np.unique(groups))
            raise InputError(
                f"nothing is left for {name}: {len(part)} images make {count} group{'s' * (count != 1)} that "
                f"must stay together; take a larger share or fewer folds, or divide these as well ({_APART})"
            )
    return Division(shares, part, counts, groups, records.classes)


def _fingerprints(records: DetectionSet) -> NDArray[np.uint64]:
    facts = scan(records, "images")
    problem = next((one.problem for one in facts if one.problem is not None), None)
    if problem is not None:
        raise InputError(f"{problem}; replace it or take it out of the set (--fast decodes none)")
    return np.stack([one.fingerprint for one in facts])
