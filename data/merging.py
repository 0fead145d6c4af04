"""Classes that are made of several classes of the annotations, or of one by another name."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np

from data.annotations import say_left_out
from data.sample import DetectionSet, is_listed, unlisted_id
from errors import InputError, some_of

ALL_OTHERS = "*"
Merge = Mapping[str, Sequence[str]]  # of each new class those it is made of


def classes_to_read(merge: Merge, classes: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """Which classes of the annotations make up these; None for all that there are."""
    if classes is None or any(ALL_OTHERS in olds for olds in merge.values()):
        return None
    return tuple(dict.fromkeys(old for name in classes for old in merge.get(name, (name,))))


def merged(records: DetectionSet, merge: Merge, classes: tuple[str, ...] | None, source: str) -> DetectionSet:
    """The same images with the new classes: those wanted, or all in the order in which they come up.

    A new class has the category id of the first of its parts. Boxes of classes that are not wanted go.

    Args:
        source: names the set in a warning.
    """
    new_names = _new_names(records.classes, merge)
    classes = tuple(dict.fromkeys(new_names)) if classes is None else classes
    label_of = np.array([classes.index(name) if name in classes else -1 for name in new_names], np.int64)
    labels = label_of[records.labels]
    kept = labels >= 0
    say_left_out(Counter(records.classes[label] for label in records.labels[~kept].tolist()), source)
    ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(kept, dtype=np.int64)])
    return replace(
        records,
        offsets=ends[records.offsets],
        boxes=records.boxes[kept],
        labels=labels[kept],
        ignore=records.ignore[kept],
        areas=records.areas[kept],
        annotation_ids=records.annotation_ids[kept],
        classes=classes,
        category_ids=tuple(_id_of(name, k, records, new_names, merge) for k, name in enumerate(classes)),
    )


def refuse_wrong_parts(merge: Merge, there: Collection[str]) -> None:
    """Raises InputError: a part is no class of the annotations, or a new name is one that is in no list."""
    parts = {old for olds in merge.values() for old in olds}
    for name, olds in merge.items():
        unknown = [old for old in olds if old not in there and old != ALL_OTHERS]
        if unknown:
            raise InputError(
                f"data.merge.{name}: the annotations have no class '{unknown[0]}'; they have "
                f"{some_of(sorted(there), 10)}"
            )
        if name in there and name not in parts and ALL_OTHERS not in olds:
            raise InputError(
                f"data.merge.{name}: the annotations have a class '{name}' as well; add it to its list, or "
                "take another name"
            )


def _id_of(name: str, k: int, records: DetectionSet, new_names: Sequence[str], merge: Merge) -> int:
    """The category id of the k-th of the new classes."""
    ids = zip(records.classes, records.category_ids, new_names, strict=True)
    found = {old: number for old, number, new in ids if new == name and is_listed(number)}
    in_order = [old for old in merge.get(name, ()) if old in found]
    return next((found[old] for old in [*in_order, *found]), unlisted_id(k))


def _new_names(classes: Sequence[str], merge: Merge) -> list[str]:
    names = {old: name for name, olds in merge.items() for old in olds}
    return [names.get(old, names.get(ALL_OTHERS, old)) for old in classes]
