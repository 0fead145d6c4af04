"""Classes merged from several classes of the annotations, or renamed."""

import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np

from data.annotations import say_left_out
from data.categories import plain_name, say_what_is_missing
from data.sample import DetectionSet, is_listed, unlisted_id
from errors import InputError, some_of

log = logging.getLogger(__name__)

ALL_OTHERS = "*"
Merge = Mapping[str, Sequence[str]]  # new class -> the classes it is made of


def merged(
    parts: Sequence[DetectionSet],
    merge: Merge,
    classes: tuple[str, ...] | None,
    source: str,
    strict: bool,
) -> list[DetectionSet]:
    """The same images with the new classes: `classes`, or all in order of appearance.

    A new class has the category id of the first class in its list. Boxes of other classes are dropped.

    Args:
        parts: sets that will be joined, with all classes of their annotations.
        source: name of the parts in messages.
        strict: every class in the lists of `merge` must exist in the parts, as for the training set.

    Raises:
        InputError: the merging does not fit the annotations or the wanted classes.
    """
    there = {name for part in parts for name in part.classes}
    takers = {old: new for new, olds in merge.items() for old in olds}
    _refuse_wrong_parts(merge, takers, there, source, strict)

    def new_name(old: str) -> str:
        return takers.get(old, takers.get(ALL_OTHERS, old))

    new_names = [[new_name(old) for old in part.classes] for part in parts]
    for name in classes or ():
        taken = name in takers or name in there
        if taken and name not in merge and (taker := new_name(name)) != name:
            remedy = f"remove it from the list of data.merge.{taker}"
            if name not in takers:  # taken by *
                remedy = f"to keep it as a class of its own add '{name}: [{name}]' to data.merge"
            raise InputError(
                f"data.merge.{taker} merges the class '{name}', which data.classes or the model lists; "
                f"{remedy}, or leave it out of data.classes"
            )
    if classes is not None:
        for names in filter(None, new_names):  # a VOC folder without objects has no classes
            say_what_is_missing(classes, dict.fromkeys(names), source)
    elif all({*names} == {*new_names[0]} for names in new_names):
        classes = tuple(dict.fromkeys(new_names[0]))
    return [
        _with_classes(part, names, classes or tuple(dict.fromkeys(names)), merge, source)
        for part, names in zip(parts, new_names, strict=True)
    ]


def _with_classes(
    records: DetectionSet, new_names: list[str], classes: tuple[str, ...], merge: Merge, source: str
) -> DetectionSet:
    label_of = np.array([classes.index(name) if name in classes else -1 for name in new_names], np.int64)
    labels = label_of[records.labels]
    kept = labels >= 0
    say_left_out(Counter(records.classes[label] for label in records.labels[~kept].tolist()), source)
    return replace(
        records.with_boxes(kept),
        labels=labels[kept],
        classes=classes,
        category_ids=tuple(_id_of(name, k, records, new_names, merge) for k, name in enumerate(classes)),
        renumbered=True,
    )


def _refuse_wrong_parts(
    merge: Merge, takers: Collection[str], there: Collection[str], source: str, strict: bool
) -> None:
    """Raises InputError for classes that do not exist; `takers` has all classes in the lists of `merge`."""
    alike = {plain_name(name): name for name in there if name not in takers}
    for name, olds in merge.items():
        for old in olds:
            if old in there or old == ALL_OTHERS:
                continue
            slip = alike.get(plain_name(old))
            hint = f", but '{slip}'" if slip else ""
            missing = (
                f"data.merge.{name}: {source} has no class '{old}'{hint}; its classes are "
                f"{some_of(sorted(there), 10)}"
            )
            if strict or slip:
                raise InputError(missing)
            log.warning(missing)
        if name in there and name not in takers and ALL_OTHERS not in olds:
            raise InputError(
                f"data.merge.{name}: {source} also has a class '{name}'; add it to that list, or choose "
                "another name"
            )


def _id_of(name: str, k: int, records: DetectionSet, new_names: Sequence[str], merge: Merge) -> int:
    """The category id of the k-th new class."""
    ids = zip(records.classes, records.category_ids, new_names, strict=True)
    found = {old: number for old, number, new in ids if new == name and is_listed(number)}
    in_order = [old for old in merge.get(name, ()) if old in found]
    return next((found[old] for old in [*in_order, *found]), unlisted_id(k))
