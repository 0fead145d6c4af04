"""COCO instances JSON -> DetectionSet."""

import gc
import json
import math
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from data.annotations import AnnotatedImage, Annotation, image_inside, is_there, pack_set, require_folder
from data.faults import DataFault, raise_or_collect
from data.images import MOST_PIXELS
from data.sample import DetectionSet
from errors import InputError, some_of

_NAMES_SHOWN = 5
_NUMBERS = frozenset((int, float))  # what JSON's become; bool is another


def load_coco(
    annotations: Path,
    images: Path,
    classes: tuple[str, ...] | None = None,
    faults: list[DataFault] | None = None,
) -> DetectionSet:
    """Read an instances file. Category ids may have gaps, images may have no boxes.

    Args:
        annotations: the JSON file.
        images: the folder that `file_name` is relative to.
        classes: names of the categories to use, in this order; by default all, by ascending id.
            Objects of other categories are left out.
        faults: where all faults are collected; without it the first is raised.

    Raises:
        InputError: whatever is wrong with the file, its images or boxes.
    """
    require_folder(images, "data.images", "set data.images, the folder of the images below data.root")
    with _no_garbage_collection():
        content = read_instances(annotations, hint=partial(_others_than, annotations))
        return load_instances(content, annotations, images, classes, faults)


def read_instances(path: Path, hint: Callable[[], str] = str) -> dict[str, Any]:
    """The content of an instances file, whose three lists are there.

    Args:
        hint: what to do where the file does not exist.

    Raises:
        InputError: it is missing, unreadable, no JSON, or lacks a list.
    """
    content = read_json(path, hint=hint)
    for section in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(section), list):
            raise InputError(f"{path} has no list '{section}'; a COCO instances file has one")
    return content


def load_instances(
    content: dict[str, Any],
    annotations: Path,
    images: Path,
    classes: tuple[str, ...] | None = None,
    faults: list[DataFault] | None = None,
) -> DetectionSet:
    """As `load_coco`, of what `read_instances` has read."""
    known, labels, names = _categories(named_categories(content), classes, annotations, faults)
    found, refused = _images(content["images"], images, annotations, faults)
    source = str(annotations)
    _refuse_other_folder(found, images, annotations)
    for record in content["annotations"]:
        where = f"annotation {record.get('id', '?') if isinstance(record, dict) else record} in {source}"
        try:
            image_id = _whole(record, "image_id", where)
            category_id = _whole(record, "category_id", where)
            if not isinstance(image_id, int) or image_id not in found:
                if isinstance(image_id, Hashable) and image_id in refused:
                    continue
                raise DataFault(
                    "image-unlisted",
                    f"{where} belongs to image id {_shown(image_id)}, which is not listed in 'images'",
                    annotation=_number(record),
                )
            image = found[image_id]
            if not isinstance(category_id, Hashable) or category_id not in known:
                raise DataFault(
                    "category-unlisted",
                    f"{where} (image '{image.path.name}') has category id {_shown(category_id)}, which "
                    "is not listed in 'categories'",
                    image.path,
                    image.id,
                    _number(record),
                )
            if category_id in labels:
                image.objects.append(_annotation(record, where, labels[category_id], image))
        except DataFault as fault:
            raise_or_collect(fault, faults)
    return pack_set(found.values(), names, tuple(labels), source, faults=faults)


def _others_than(annotations: Path) -> str:
    """What to do where the file is not there."""
    there = sorted(path.name for path in annotations.parent.glob("*.json"))
    if not there:
        return "; set data.annotations=FILE, below data.root, with {split} for the name of the split"
    return f"; its folder has {some_of(there, _NAMES_SHOWN)} (set data.splits or data.annotations)"


def _shown(number: Any) -> str:
    """An id as it is written; one that is a text looks like the number that it is not."""
    return f"{number!r}, a text where a number is wanted" if isinstance(number, str) else str(number)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    # Millions of dicts and lists without a circle among them: to search these over and over for one takes a
    # quarter of the time.
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def read_json(path: Path, kind: str = "annotation file", hint: Callable[[], str] = str) -> Any:
    """The content of a JSON file. Raises InputError, calling it `kind`: missing (`hint` says what to do),
    unreadable or not JSON."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{kind} {path} does not exist{hint()}") from None
    except OSError as error:
        raise InputError(f"{kind} {path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{kind} {path} is not valid JSON{_how_it_begins(path)}: {error}") from None


def _how_it_begins(path: Path) -> str:
    """What else it may be: CSV, a page of HTML, nothing at all."""
    with path.open("rb") as file:
        start = file.read(200).decode("utf-8", "replace").strip()
    if not start:
        return ", it is empty"
    return "" if start[0] in "{[" else f", it begins with '{start.splitlines()[0][:40]}'"


def named_categories(content: dict[str, Any]) -> list[Any]:
    """The categories of a COCO file, but for Roboflow's heading.

    Its lists begin with the name of the project, as a category without boxes that is the supercategory of
    the others. In a set of one class that is often the very name of the class.
    """
    heading, *rest = content["categories"] or [None]
    if not isinstance(heading, dict) or heading.get("supercategory") != "none":
        return content["categories"]
    name, others = heading.get("name"), [record for record in rest if isinstance(record, dict)]
    if any(other.get("name") == name for other in others) and any(
        other.get("supercategory") == name for other in others
    ):
        used = (record.get("category_id") for record in content["annotations"] if isinstance(record, dict))
        if heading.get("id") not in used:
            return rest
    return content["categories"]


def _categories(
    records: list[Any], classes: tuple[str, ...] | None, source: Path, faults: list[DataFault] | None
) -> tuple[set[Any], dict[int, int], tuple[str, ...]]:
    """All category ids, those refused among them; the label of each that is used, by label; the names in
    that order."""
    ids: dict[str, int] = {}
    known: set[Any] = set()
    for record in records:
        where = f"a category in {source}"
        try:
            name, number = _name(record, "name", where), _whole(record, "id", where)
            if not isinstance(number, int):
                message = f"{where}: the id of '{name}' must be an integer, got {number!r}"
                raise DataFault("record-malformed", message)
            if name in ids or number in ids.values():
                message = f"{source}: category '{name}' (id {number}) stands twice; keep one of the two"
                raise DataFault("category-twice", message)
        except DataFault as fault:
            raise_or_collect(fault, faults)
            known |= _id_of_refused(record)
            continue
        ids[name] = number
        known.add(number)
    if classes is None:
        classes = tuple(sorted(ids, key=lambda name: ids[name]))
    for name in classes:
        if name not in ids:
            raise InputError(f"{source} has no category '{name}'; it has {', '.join(ids) or 'none'}")
    if not classes:
        raise InputError(f"{source} lists no categories")
    return known, {ids[name]: label for label, name in enumerate(classes)}, classes


def _images(
    records: list[Any], folder: Path, source: Path, faults: list[DataFault] | None
) -> tuple[dict[int, AnnotatedImage], set[Any]]:
    """The images by their ids, and the ids of those that were refused."""
    found: dict[int, AnnotatedImage] = {}
    refused: set[Any] = set()
    for record in records:
        try:
            image = _image(record, folder, source)
            if image.id in found:
                message = f"{source}: image id {image.id} stands twice"
                raise DataFault("image-id-twice", message, image.path, image.id)
        except DataFault as fault:
            raise_or_collect(fault, faults)
            refused |= _id_of_refused(record)
            continue
        found[image.id] = image
    return found, refused


def _refuse_other_folder(found: dict[int, AnnotatedImage], folder: Path, source: Path) -> None:
    """Where no image will be found because their names begin with folders: say so once."""
    first = next(iter(found.values()), None)
    if first is None or is_there(first.path):
        return
    name = first.path.relative_to(folder)
    near = sorted(path for place in (folder, folder.parent) for path in place.iterdir() if path.is_dir())
    for other in (*folder.parents[:2], source.parent, *near):
        if is_there(other / name):
            raise InputError(
                f"{source}: its images, such as {name}, are not in {folder} but in {other}; set data.images "
                "to that folder, as seen from data.root (. is data.root itself; of data.split: --images)"
            )


def _id_of_refused(record: Any) -> set[Any]:
    """What its annotations call it: they are not to be refused as well, for the same fault."""
    number = record.get("id") if isinstance(record, dict) else None
    return {number} if number is not None and isinstance(number, Hashable) else set()


def _image(record: Any, folder: Path, source: Path) -> AnnotatedImage:
    where = f"an image in {source}"
    number = _whole(record, "id", where)
    where = f"image id {_shown(number)} in {source}"
    path = image_inside(folder, _name(record, "file_name", where), where)
    size = (_whole(record, "height", where), _whole(record, "width", where))
    if (
        not isinstance(number, int)
        or abs(number) >= 2**63
        or not all(isinstance(v, int) and 0 < v <= MOST_PIXELS for v in size)
    ):
        message = f"{where}: the id must be an integer, the sides positive integers up to {MOST_PIXELS}"
        raise DataFault("record-malformed", message, path)
    return AnnotatedImage(number, path, size)


def _annotation(record: dict[str, Any], where: str, label: int, image: AnnotatedImage) -> Annotation:
    box, number = _field(record, "bbox", where), _number(record)
    if not isinstance(box, list) or len(box) != 4 or not _NUMBERS.issuperset(map(type, box)):
        raise DataFault(
            "record-malformed",
            f"{where}: bbox must be four numbers (x, y, width, height), got {box!r} "
            f"(image '{image.path.name}')",
            image.path,
            image.id,
            number,
        )
    x, y, width, height = map(_float, box)
    area, crowd = record.get("area"), record.get("iscrowd")
    if crowd not in (0, 1, None):  # "0" and NaN are true in Python
        message = f"{where}: iscrowd must be 0 or 1, got {crowd!r} (image '{image.path.name}')"
        raise DataFault("record-malformed", message, image.path, image.id, number)
    given = _float(area) if isinstance(area, int | float) and not area < 0 else None  # -1 stands for none
    if given is not None and not math.isfinite(given):
        message = f"{where}: area {area} is not a finite number (image '{image.path.name}')"
        raise DataFault("record-malformed", message, image.path, image.id, number)
    return Annotation(where, (x, y, x + width, y + height), label, bool(crowd), given, number)


def _number(record: dict[str, Any]) -> int:
    number = record.get("id")
    return number if isinstance(number, int) and abs(number) < 2**63 else -1


def _float(number: float) -> float:
    try:
        return float(number)
    except OverflowError:  # JSON's integers know no bounds
        return math.inf if number > 0 else -math.inf


def _field(record: Any, key: str, where: str) -> Any:
    if not isinstance(record, dict) or key not in record:
        raise DataFault("record-malformed", f"{where} has no '{key}'")
    return record[key]


def _name(record: Any, key: str, where: str) -> str:
    name = _field(record, key, where)
    if name is None or isinstance(name, dict | list) or not str(name).strip():
        raise DataFault("record-malformed", f"{where}: {key} must be a text, got {name!r}")
    return str(name)


def _whole(record: Any, key: str, where: str) -> Any:
    value = _field(record, key, where)
    # pandas writes 10.0.
    return int(value) if isinstance(value, float) and value.is_integer() else value
