"""Checks of classes and whole splits: names, counts, image sizes."""

from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from data.categories import plain_name, slips_among
from data.check.findings import Spot, spot_of_image
from data.sample import DetectionSet

_TYPED_RIGHT = 50  # a name must occur this many times for each occurrence of its misspelling
_FEW_BOXES, _FEWER_THAN_THE_MOST = 10, 20
_MOSTLY, _MUCH_IGNORED = 0.5, 1 / 3
_SIDES_VARY = 6.0
_SOME_IMAGES, _MANY_EMPTY, _HARDLY_ANY = 20, 1 / 3, 0.05


def counts(records: DetectionSet) -> NDArray[np.int64]:
    """Number of objects of each class, without ignored ones: [C]."""
    return np.bincount(records.labels[~records.ignore], minlength=len(records.classes))


def class_spots(sets: Mapping[str, DetectionSet]) -> Iterator[Spot]:
    """Classes that are alike, missing, or rare.

    Args:
        sets: the splits, each with the classes listed in its own annotations; "train" may be among them.
    """
    yield from _alike(sets)
    yield from _slips(sets)
    train = sets.get("train")
    if train is None or not len(train.boxes):
        return
    for split, records in sets.items():
        yield from _much_ignored(split, records)
    yield from _unannotated(sets)
    known, most = set(train.classes), int(counts(train).max())
    for name, count in zip(train.classes, counts(train).tolist(), strict=True):
        if count == 0:
            yield Spot("class-without-boxes", f"class '{name}' has no box in train", "train")
        elif count < _FEW_BOXES and count * _FEWER_THAN_THE_MOST <= most:
            text = f"class '{name}' has {count} of the {len(train.boxes)} boxes in train"
            yield Spot("class-rare", text, "train")
    for split, records in sets.items():
        if split == "train":
            continue
        if not counts(records).sum():
            yield Spot("no-boxes-to-find", f"{split} has no boxes", split)
            continue
        here = dict(zip(records.classes, counts(records).tolist(), strict=True))
        alike = {plain_name(name): name for name in here if name not in known}
        respelt = {alike[plain_name(n)] for n in known if not here.get(n) and plain_name(n) in alike}
        for name, count in here.items():
            if name not in known and name not in respelt and count:
                text = f"{split} has {count} boxes of class '{name}', which train does not list"
                yield Spot("class-left-out", text, split)
        for name, count in zip(train.classes, counts(train).tolist(), strict=True):
            if not here.get(name) and (other := alike.get(plain_name(name))):
                text = f"the class is '{other}' in {split}, but '{name}' in train"
                yield Spot("category-alike", text, split)
            elif name not in here:
                yield Spot("category-missing", f"{split} does not list the class '{name}' of train", split)
            elif count and not here[name]:
                yield Spot("class-not-evaluated", f"class '{name}' has no box in {split}", split)


def split_spots(split: str, records: DetectionSet) -> Iterator[Spot]:
    """Splits with mostly empty images, or with very different image sizes."""
    if not len(records):
        return
    empty = int((records.boxes_in_images == 0).sum())
    if _MOSTLY * len(records) < empty < len(records):
        yield Spot("mostly-empty", f"{empty} of the {len(records)} images of {split} have no box", split)
    longest = records.sizes.max(axis=1)
    small, large = int(longest.argmin()), int(longest.argmax())
    if longest[large] >= _SIDES_VARY * longest[small]:
        (h0, w0), (h1, w1) = records.sizes[small].tolist(), records.sizes[large].tolist()
        problem = f"is {w0} x {h0} px, but {records.files[large]} is {w1} x {h1} px"
        yield spot_of_image("sizes-vary", problem, split, records, small)


def _unannotated(sets: Mapping[str, DetectionSet]) -> Iterator[Spot]:
    """Unfinished annotation: intended background usually occurs in all splits, not only in train."""
    if not {"train", "val"} <= sets.keys():
        return
    bare, bare_val = (sets[split].boxes_in_images == 0 for split in ("train", "val"))
    enough = min(len(bare), len(bare_val)) >= _SOME_IMAGES
    if enough and bare.mean() > _MANY_EMPTY and bare_val.mean() < _HARDLY_ANY:
        text = (
            f"{bare.sum()} of the {len(bare)} images of train have no box, but only {bare_val.sum()} of the "
            f"{len(bare_val)} of val"
        )
        yield Spot("mostly-unannotated", text, "train")


def _much_ignored(split: str, records: DetectionSet) -> Iterator[Spot]:
    there = np.bincount(records.labels, minlength=len(records.classes))
    ignored = there - counts(records)
    for name, of_them, every in zip(records.classes, ignored.tolist(), there.tolist(), strict=True):
        if of_them >= _FEW_BOXES and of_them > _MUCH_IGNORED * every:
            text = f"{of_them} of the {every} boxes of class '{name}' in {split} are iscrowd or difficult"
            yield Spot("much-ignored", text, split)


def _slips(sets: Mapping[str, DetectionSet]) -> Iterator[Spot]:
    """Class names one typo away from a far more frequent one, or from one that replaces them elsewhere.

    The latter means: no split has both names. Each is reported at its first image.
    """
    total: Counter[str] = Counter()
    splits: dict[str, set[str]] = {}
    for split, records in sets.items():
        for name, count in zip(records.classes, counts(records).tolist(), strict=True):
            if count:
                total[name] += count
                splits.setdefault(name, set()).add(split)
    for pair in slips_among(splits.keys()):
        name, other = sorted(pair, key=lambda one: ("train" in splits[one], total[one]))
        few = total[name] < _FEW_BOXES and total[name] * _TYPED_RIGHT <= total[other]
        if not few and splits[name] & splits[other]:
            continue
        split = next(split for split in sets if split in splits[name])
        records = sets[split]
        box = int(np.flatnonzero(records.labels == records.classes.index(name))[0])
        boxes = f"{total[name]} box{'es' * (total[name] > 1)} in all"
        problem = f"has class '{name}' ({boxes}), which may be meant as '{other}' ({total[other]})"
        yield spot_of_image("names-alike", problem, split, records, records.row_of(box))


def _alike(sets: Mapping[str, DetectionSet]) -> Iterator[Spot]:
    spellings: dict[str, dict[str, str]] = {}
    for split, records in sets.items():
        for name in records.classes:
            spellings.setdefault(plain_name(name), {}).setdefault(name, split)
    for names in spellings.values():
        if len(names) > 1:
            listed = ", ".join(f"'{name}' ({split})" for name, split in names.items())
            yield Spot("names-alike", f"classes {listed}", next(iter(names.values())))
