"""Divides images into parts: what stays together, what each part gets, and how it is reported."""

import logging
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.check.alike import source_of
from data.check.scan import ImageFacts, scan
from data.sample import DetectionSet
from data.split.partition import groups_of, partition
from errors import InputError, some_of

log = logging.getLogger(__name__)
FAULTS_SHOWN = 50
_CLASSES_SHOWN = 20
_LEAST_OF_SHARE, _MOST_OF_SHARE = 0.8, 1.3
_APART = "--fast separates images that look alike; without --keep-folders, folders are divided too"


@dataclass(frozen=True)
class Division:
    """The assignment of images to parts.

    Attributes:
        shares: wanted fraction of the images for each part.
        part: int64 [I], part of each image, as a position in `shares`.
        counts: int64 [I, C], boxes of each class.
        groups: int64 [I], equal for images that stay together.
        apart: int64 [I], the part of each image if nothing had to stay together.
        versions: number of images kept together with another because of their names, see
            `data.check.alike.source_of`.
    """

    shares: dict[str, float]
    part: NDArray[np.int64]
    counts: NDArray[np.int64]
    groups: NDArray[np.int64]
    apart: NDArray[np.int64]
    versions: int
    classes: tuple[str, ...]

    def rows(self, *names: str) -> list[int]:
        """The rows of the images of these parts."""
        parts = list(self.shares)
        return np.flatnonzero(np.isin(self.part, [parts.index(name) for name in names])).tolist()

    def lines(self) -> Iterator[str]:
        """What each part contains, and how many images stay with others."""
        width = max(map(len, self.shares))
        for k, name in enumerate(self.shares):
            mine = self.counts[self.part == k].sum(axis=0).tolist()
            boxes = [f"{n} {label}" for label, n in zip(self.classes, mine, strict=True)]
            if len(boxes) > _CLASSES_SHOWN:
                common = sorted(range(len(mine)), key=lambda label: -mine[label])[:_CLASSES_SHOWN]
                left = sum(mine) - sum(mine[label] for label in common)
                boxes = [*(boxes[c] for c in common), f"{left} of {len(mine) - len(common)} other classes"]
            images = int((self.part == k).sum())
            yield f"{name:<{width}}  {images} image{'s' * (images != 1)}: {', '.join(boxes)}"
        together = len(self.groups) - len(np.unique(self.groups))
        if together:
            yield (
                f"kept together: {together} image{'s' * (together != 1)} with a similar one, or with one of "
                "the same folder"
            )
        if self.versions:
            yield (
                f"{self.versions} of them because their names say that they are versions of one photograph "
                "(NAME.rf.HASH)"
            )

    def shortcomings(self) -> Iterator[str]:
        """A line for each part that is far from its share, or lacks classes that others have."""
        for k, (name, share) in enumerate(self.shares.items()):
            if _is_far_off(self.part == k, share):
                images = f"{name} has {(self.part == k).mean():.0%} of the images, not {share:.0%}"
                if _is_far_off(self.apart == k, share):
                    yield f"{images}, so that each part has some of every class, if there are enough"
                else:
                    yield f"{images}, because too many must stay together ({_APART})"
            there = self.counts[self.part == k].any(axis=0) | ~self.counts.any(axis=0)
            if not there.all():
                lacking = [label for label, some in zip(self.classes, there, strict=True) if not some]
                yield (
                    f"{name} has no {some_of(lacking, 5)}: too few images have any, or they must stay "
                    "together"
                )


def _is_far_off(mine: NDArray[np.bool_], share: float) -> bool:
    images, wanted = int(mine.sum()), share * len(mine)
    too_few, too_many = images < _LEAST_OF_SHARE * wanted, images > _MOST_OF_SHARE * wanted
    return (too_few or too_many) and abs(images - wanted) > 1


def divide(
    records: DetectionSet, shares: dict[str, float], seed: int, keep_folders: bool, fast: bool
) -> Division:
    """Divide the images of a set.

    Args:
        shares: fraction for each part; they sum to 1.
        seed: breaks ties.
        keep_folders: keep the images of a folder together.
        fast: decode no image, and so detect no similar images.

    Raises:
        InputError: an image cannot be read, or a part would be empty.
    """
    counts = np.zeros((len(records), len(records.classes)), dtype=np.int64)
    np.add.at(counts, (records.image_of_box[~records.ignore], records.labels[~records.ignore]), 1)
    files = [Path(file) for file in records.files.tolist()]
    named = [source_of(file.name) for file in files]
    versions = Counter(name for name in named if name is not None)
    keys: list[Sequence[Hashable]] = [[str(file.resolve()) for file in files], named]
    if keep_folders:
        keys.append([str(file.parent) for file in files])
    prints = np.zeros((len(records), 4), dtype=np.uint64)
    if not fast:
        facts = _facts(records)
        prints = np.stack([one.fingerprint for one in facts])
        keys.append([one.digest for one in facts])  # because flat pictures have no fingerprint
    groups = groups_of(prints, *keys)
    part = apart = partition(counts, groups, list(shares.values()), seed)
    alone = np.arange(len(records))
    if (groups != alone).any():
        apart = partition(counts, alone, list(shares.values()), seed)
    for k, name in enumerate(shares):
        if not (part == k).any():
            count = len(np.unique(groups))
            raise InputError(
                f"nothing is left for {name}: {len(part)} images form {count} group{'s' * (count != 1)} "
                "that must stay together; use a larger share or fewer folds, or divide the groups too "
                f"({_APART})"
            )
    same = versions.total() - len(versions)
    return Division(shares, part, counts, groups, apart, same, records.classes)


def _facts(records: DetectionSet) -> list[ImageFacts]:
    facts = scan(records, "images")
    problems = [one.problem for one in facts if one.problem is not None]
    if not problems:
        return facts
    for problem in problems[1:FAULTS_SHOWN]:
        log.warning("%s", problem)
    rest = len(problems) - 1
    more = f" ({rest} more like it, see above)" if rest else ""
    remedy = "replace damaged images or remove them from the set (--fast decodes none)"
    raise InputError(f"{problems[0]}{more}; {remedy}")
