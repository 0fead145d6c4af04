"""Duplicate images: in training and evaluation, or within a split."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.check.alike import near_pairs, source_of
from data.check.findings import Spot, spot_of_image
from data.images import one_for_each_file
from data.sample import DetectionSet

_BY_CHANCE = 0.1  # fraction of a split's images
Place = tuple[str, int]  # split, row


def path_spots(sets: Mapping[str, DetectionSet]) -> Iterator[Spot]:
    """Files that are listed twice."""
    keys = {split: one_for_each_file(map(Path, records.files)) for split, records in sets.items()}
    yield from repeat_spots(sets, keys, "is the same file as")


def repeat_spots(
    sets: Mapping[str, DetectionSet], keys: Mapping[str, Sequence[Hashable]], same: str
) -> Iterator[Spot]:
    """Images with equal keys.

    Args:
        keys: for each split, a key per image; None equals nothing.
        same: how messages say it, e.g. "has the same pixels as".
    """
    places: dict[Hashable, list[Place]] = {}
    for split, of_split in keys.items():
        for row, key in enumerate(of_split):
            if key is not None:
                places.setdefault(key, []).append((split, row))
    # If one contains all of the other, that is deliberate.
    val, test = ({key for key in keys.get(split, ()) if key is not None} for split in ("val", "test"))
    apart = not (val <= test or test <= val)
    for alike in places.values():
        if len(alike) > 1:
            yield from _repeated(sets, alike, same, apart)


def _repeated(sets: Mapping[str, DetectionSet], alike: list[Place], same: str, apart: bool) -> Iterator[Spot]:
    """The duplicates among images with equal keys; `apart`: validation and test should share no image."""
    trained, validated = ([place for place in alike if place[0] == split] for split in ("train", "val"))
    for split in dict.fromkeys(split for split, _ in alike):
        mine = [place for place in alike if place[0] == split]
        if split != "train" and trained:
            yield _spot("image-in-both", sets, mine[0], trained[0], same)
        elif split == "test" and validated and apart:
            yield _spot("image-in-val-and-test", sets, mine[0], validated[0], same)
        for place in mine[1:]:
            differs = not _same_boxes(sets[split], mine[0][1], place[1])
            code = "image-twice-differing" if differs else "image-twice"
            yield _spot(code, sets, place, mine[0], same)


def _spot(code: str, sets: Mapping[str, DetectionSet], place: Place, other: Place, same: str) -> Spot:
    split, row = place
    records, there = sets[split], sets[other[0]]
    where = f"{there.files[other[1]]} (id {there.image_ids[other[1]]}, {other[0]})"
    return spot_of_image(code, f"{same} {where}", split, records, row, other)


def _same_boxes(records: DetectionSet, one: int, other: int) -> bool:
    def sorted_boxes(row: int) -> NDArray:
        mine = records.boxes_of(row)
        boxes = np.column_stack((records.labels[mine], records.boxes[mine]))
        return boxes[np.lexsort(boxes.T)]

    return np.array_equal(sorted_boxes(one), sorted_boxes(other))


def version_spots(sets: Mapping[str, DetectionSet]) -> Iterator[Spot]:
    """Evaluation images that by their names are versions of training photographs (Roboflow).

    A few are coincidence: photographs of different origin may both be called image1.
    """
    made: dict[str, int] = {}
    for row, file in enumerate(sets["train"].files.tolist() if "train" in sets else ()):
        if (source := source_of(Path(file).name)) is not None:
            made.setdefault(source, row)
    for split, records in sets.items():
        names = [Path(file).name for file in records.files.tolist()] if split != "train" else []
        pairs = [(row, made[source]) for row, name in enumerate(names) if (source := source_of(name)) in made]
        if len(pairs) > _BY_CHANCE * len(names):
            for row, near in pairs:
                same = "is, judging by its name, a version of the same photograph as"
                yield _spot("versions-in-both", sets, (split, row), ("train", near), same)


def near_spots(sets: Mapping[str, DetectionSet], prints: Mapping[str, NDArray[np.uint64]]) -> Iterator[Spot]:
    """Evaluation images whose fingerprint is nearly that of a training image.

    Args:
        prints: for each split, uint64 [I, 4]; zero rows match nothing. See data/check/scan.py.
    """
    if "train" not in sets:
        return
    for split in sets:
        if split != "train":
            for row, near in near_pairs(prints[split], prints["train"]):
                yield _spot(
                    "near-duplicate-in-both", sets, (split, row), ("train", near), "looks nearly the same as"
                )
