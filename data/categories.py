"""The categories of a COCO file, and the classes of a training among them."""

import logging
import re
from collections.abc import Collection, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from data.faults import DataFault, raise_or_collect
from data.records import id_of_refused, text_of, whole_of
from data.sample import unlisted_id
from errors import InputError, some_of

log = logging.getLogger(__name__)

BY_NAME = (
    "(classes are matched by name with those of the model or of data.classes: rename them in one of the two)"
)


class Categories(NamedTuple):
    """The categories of a file, by id."""

    known: set[Any]  # all ids, including those of refused records
    labels: dict[int, int]  # category id -> label of the used ones, in label order
    classes: tuple[str, ...]  # names of the used ones
    others: dict[int, str]  # names of the unused ones


def named_categories(content: dict[str, Any]) -> list[Any]:
    """The categories of a COCO file, without the heading that Roboflow adds.

    Roboflow's list begins with the project name, as a category without boxes that is the supercategory of all
    others. In a set with one class it often has the same name as that class.
    """
    heading, *rest = content["categories"] or [None]
    if not isinstance(heading, dict) or heading.get("supercategory") != "none":
        return content["categories"]
    name, others = heading.get("name"), [record for record in rest if isinstance(record, dict)]
    above_all = bool(others) and all(other.get("supercategory") == name for other in others)
    # In other files a supercategory may be a class of its own, even if this file has no boxes of it.
    if above_all and (any(other.get("name") == name for other in others) or _is_roboflows(content)):
        used = (record.get("category_id") for record in content["annotations"] if isinstance(record, dict))
        if heading.get("id") not in used:
            return rest
    return content["categories"]


def _is_roboflows(content: dict[str, Any]) -> bool:
    return "roboflow" in str(content.get("info")).lower()


def used_categories(
    records: list[Any], classes: tuple[str, ...] | None, source: Path, faults: list[DataFault] | None
) -> Categories:
    """Parse the category records and select the used ones: `classes`, or all by ascending id."""
    ids: dict[str, int] = {}
    known: set[Any] = set()
    for record in records:
        where = f"a category in {source}"
        try:
            name, number = text_of(record, "name", where), whole_of(record, "id", where)
            if not isinstance(number, int):
                message = f"{where}: the id of '{name}' must be an integer, got {number!r}"
                raise DataFault("record-malformed", message)
            if name in ids or number in ids.values():
                message = f"{source}: category '{name}' (id {number}) is listed twice; keep one of the two"
                raise DataFault("category-twice", message)
        except DataFault as fault:
            raise_or_collect(fault, faults)
            known |= id_of_refused(record)
            continue
        ids[name] = number
        known.add(number)
    if classes is None:
        classes = tuple(sorted(ids, key=lambda name: ids[name]))
    if not classes:
        if faults:  # every record was refused
            raise InputError(str(faults[-1]))
        raise InputError(f"{source} lists no categories")
    say_what_is_missing(classes, ids, source)
    numbers = [ids.get(name, unlisted_id(k)) for k, name in enumerate(classes)]
    labels = {number: label for label, number in enumerate(numbers)}
    others = {number: name for name, number in ids.items() if number not in labels}
    return Categories(known, labels, classes, others)


def plain_name(name: str) -> str:
    """Normalized name: the same for "Traffic Light", "traffic_light" and "traffic-lights "."""
    plain = re.sub(r"[\s_-]+", "", name).casefold()
    return plain.removesuffix("s") if len(plain) > 3 else plain  # O and Os are two elements


def a_slip_apart(one: str, other: str) -> bool:
    """Whether two names differ by one typo: a letter added, dropped or replaced, or two neighbours swapped.

    Numbers and single letters used as numbers do not count: lane 1 and lane 2, type a and type b are two
    classes.
    """
    a, b = plain_name(one), plain_name(other)
    if abs(len(a) - len(b)) > 1 or min(len(a), len(b)) < 3 or max(len(a), len(b)) < 4:
        return False
    if a == b or _without_numbers(one) == _without_numbers(other):
        return False
    same = next((k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    a, b = a[same:], b[same:]
    return a[1:] == b[1:] or a == b[1:] or a[1:] == b or (a[2:] == b[2:] and a[:2] == b[1::-1])


def _without_numbers(name: str) -> str:
    words = re.sub(r"[\s_-]+", " ", name).casefold()
    return re.sub(r"\d|\b([a-z]|[ivx]+)\b", "", words).strip()


def slips_among(names: Collection[str]) -> Iterator[tuple[str, str]]:
    """Pairs of names that differ by one typo, each once, without comparing all pairs."""
    near: dict[str, list[str]] = {}
    for name in names:
        plain = plain_name(name)
        for key in {plain, *(plain[:k] + plain[k + 1 :] for k in range(len(plain)))}:
            near.setdefault(key, []).append(name)
    pairs = {pair for group in near.values() for pair in combinations(sorted(group), 2)}
    yield from sorted(pair for pair in pairs if a_slip_apart(*pair))


def refuse_nearly_the_same(classes: tuple[str, ...], there: Collection[str], source: Path | str) -> None:
    """Raises InputError if a class is not listed but another with nearly the same name is."""
    alike = {plain_name(name): name for name in there if name not in classes}
    for name in classes:
        if name not in there and plain_name(name) in alike:
            raise _lacking(name, f", but '{alike[plain_name(name)]}'", there, source)


def _lacking(name: str, hint: str, there: Collection[str], source: Path | str) -> InputError:
    return InputError(
        f"{source} has no category '{name}'{hint}; its classes are {some_of([*there], 10) or 'none'} "
        f"{BY_NAME}"
    )


def say_what_is_missing(classes: tuple[str, ...], there: Collection[str], source: Path | str) -> None:
    """Warn about classes that a file does not list: it may list only the classes that it has boxes of.

    Raises:
        InputError: it lists none of the classes, or one of them under nearly the same name.
    """
    refuse_nearly_the_same(classes, there, source)
    missing = [name for name in classes if name not in there]
    if len(missing) == len(classes):
        raise _lacking(missing[0], "", there, source)
    if missing:
        used = set(classes)
        slips = ((name, other) for name in missing[:5] for other in there if other not in used)
        meant = [f"'{other}' for '{name}'" for name, other in slips if a_slip_apart(name, other)]
        log.warning(
            "%s does not list %s, and so has no boxes of %s; its classes are %s%s",
            source, some_of([f"'{name}'" for name in missing], 5), "these" if len(missing) > 1 else "it",
            some_of([*there], 10), f" (is {some_of(meant, 3)} a typo?)" if meant else "",
        )  # fmt: skip
