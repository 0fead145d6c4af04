"""COCO instances JSON -> DetectionSet."""

import gc
import json
import math
import shlex
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from data.annotations import (
    AnnotatedImage,
    Annotation,
    first_of,
    format_of,
    pack_set,
    require_folder,
    say_left_out,
    say_rotated,
    size_of_file,
)
from data.categories import named_categories, used_categories
from data.elsewhere import look_elsewhere
from data.faults import DataFault, list_or_warn, raise_or_collect
from data.images import MOST_PIXELS
from data.lookup import ImageFinder
from data.progress import reading
from data.records import field_of, id_of_refused, shown, text_of, whole_of
from data.sample import DetectionSet
from data.text_ids import with_numbers
from errors import InputError, some_of

_ROBOFLOWS = "_annotations.coco.json"
_NAMES_SHOWN = 5
# Keys that files of these tools have and COCO files do not.
_TOOLS = {"LabelMe": {"shapes"}, "Supervisely": {"objects", "size"}, "V7": {"item", "annotations"}}
_NUMBERS = frozenset((int, float))  # types of JSON numbers in Python; bool is not among them


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
        classes: names of the categories to use, in this order; by default all, by ascending id. Objects of
            other categories are left out.
        faults: collects all faults; if None, the first one is raised.

    Raises:
        InputError: anything is wrong with the file, its images or boxes.
    """
    if not images.is_dir() and annotations.is_file():
        root = annotations.parent.parent  # data.root, unless data.annotations is set; then no hint
        remedy = _other_layout(root) or "set data.images to the folder of the images, relative to data.root"
        require_folder(images, "data.images", remedy)
    with _no_garbage_collection():
        content = read_instances(annotations, hint=partial(_others_than, annotations))
        return load_instances(content, annotations, images, classes, faults)


def read_instances(path: Path, hint: Callable[[], str] = str) -> dict[str, Any]:
    """The content of an instances file; its three lists are guaranteed to exist.

    Args:
        hint: gives the remedy for the message if the file does not exist.

    Raises:
        InputError: the file is missing, unreadable, not JSON, or lacks a list.
    """
    content = read_json(path, hint=hint)
    if (tool := _of_a_tool(content)) is not None:
        raise InputError(f"{path} is in {tool}'s own format; export the project as COCO, or convert it")
    for section in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(section), list):
            raise InputError(f"{path} has no list '{section}', which a COCO instances file must have")
    for image in content["images"]:
        if isinstance(image, dict) and "file_name" not in image and "coco_url" in image:
            image["file_name"] = image["coco_url"]  # LVIS: URLs that end in the file name
    return content


def tool_of(path: Path) -> str | None:
    """The annotation tool whose own format a file has; None for other files."""
    try:
        return _of_a_tool(read_json(path))
    except InputError:
        return None


def _of_a_tool(content: Any) -> str | None:
    """The annotation tool whose own format this is (most have one file per image); None otherwise."""
    if isinstance(content, list):
        return "Label Studio" if content and isinstance(content[0], dict) and "data" in content[0] else None
    for tool, keys in _TOOLS.items():
        if isinstance(content, dict) and keys <= content.keys() and "images" not in content:
            return tool
    return None


def load_instances(
    content: dict[str, Any],
    annotations: Path,
    images: Path,
    classes: tuple[str, ...] | None = None,
    faults: list[DataFault] | None = None,
) -> DetectionSet:
    """Like `load_coco`, for content from `read_instances`, which is not changed."""
    content, renumbered = with_numbers(content, annotations)
    known, labels, names, others = used_categories(named_categories(content), classes, annotations, faults)
    left_out: Counter[str] = Counter()
    unused: list[str] = []  # annotations with ignore: 1
    rotated: list[str] = []  # places of rotated boxes
    found, refused = _images(content["images"], images, annotations, faults)
    source = str(annotations)
    for record in reading(content["annotations"], "annotation", source):
        where = f"annotation {record.get('id', '?') if isinstance(record, dict) else record} in {source}"
        image = None
        try:
            image_id = whole_of(record, "image_id", where)
            category_id = whole_of(record, "category_id", where)
            if not isinstance(image_id, int) or image_id not in found:
                if isinstance(image_id, Hashable) and image_id in refused:
                    continue
                raise DataFault(
                    "image-unlisted",
                    f"{where} belongs to image id {shown(image_id)}, which is not listed in 'images'",
                )
            image = found[image_id]
            if record.get("ignore") and not record.get("iscrowd"):
                unused.append(where)
            if not isinstance(category_id, Hashable) or category_id not in known:
                raise DataFault(
                    "category-unlisted",
                    f"{where} (image '{image.path.name}') has category id {shown(category_id)}, which "
                    "is not listed in 'categories'",
                )
            if category_id in labels:
                image.objects.append(_annotation(record, where, labels[category_id], image))
                if _is_rotated(record):
                    rotated.append(where)
            elif category_id in others:
                left_out[others[category_id]] += 1
        except DataFault as fault:
            fault.annotation = _number(record) if isinstance(record, dict) else None
            if image is not None:
                fault.image, fault.image_id = image.path, image.id
            raise_or_collect(fault, faults)
    say_left_out(left_out, source)
    _say_ignore_is_unused(unused, faults)
    say_rotated(rotated, faults)
    return pack_set(found.values(), names, tuple(labels), source, faults=faults, renumbered=renumbered)


def _say_ignore_is_unused(places: list[str], faults: list[DataFault] | None) -> None:
    """Report annotations with `ignore`: pycocotools uses only iscrowd, and so do the metrics here."""
    if not places:
        return
    message = f"{first_of(places)} has ignore: 1, which has no effect; to leave a region out, use iscrowd: 1"
    list_or_warn([DataFault("ignore-unused", message)], faults, message)


def _is_rotated(record: dict[str, Any]) -> bool:
    """Whether CVAT marks the box as rotated: it writes the box before rotation, and the angle in degrees."""
    attributes = record.get("attributes")
    turn = attributes.get("rotation") if isinstance(attributes, dict) else None
    return isinstance(turn, int | float) and turn % 180 != 0


def _others_than(annotations: Path) -> str:
    """What to do if the annotation file does not exist."""
    there = sorted(path.name for path in annotations.parent.glob("[!.]*.json"))
    if not there:
        beside = sorted(path.name for path in annotations.parent.parent.glob("[!.]*.json"))
        if annotations.name in beside:
            higher = annotations.parent.parent / annotations.name
            return (
                f"; {higher} does: set data.annotations relative to data.root, with {{split}} for the name "
                "of the split"
            )
        remedy = "set data.annotations=FILE, relative to data.root, with {split} for the name of the split"
        return f"; {_other_layout(annotations.parent.parent) or remedy}"
    if len(there) == 1:
        whole = shlex.quote(str(annotations.with_name(there[0])))
        return f"; its folder has only {there[0]}; to divide that into splits: python -m data.split {whole}"
    return f"; its folder has {some_of(there, _NAMES_SHOWN)} (set data.splits or data.annotations)"


def _other_layout(root: Path) -> str:
    """What to set for a folder whose layout data.annotations and data.images do not match; "" if unknown."""
    kind = format_of(root)
    return of_roboflow(root) or (f"it looks like data.format={kind}" if kind not in (None, "coco") else "")


def of_roboflow(root: Path) -> str:
    """The settings for Roboflow's layout, a folder per split with images and annotations; "" for others."""
    there = {path.parent.name for path in root.glob(f"*/{_ROBOFLOWS}")}
    if "train" not in there:
        return ""
    val = next((name for name in ("val", "valid", "test") if name in there), None)
    if val is None:
        return f"divide this set: python -m data.split {shlex.quote(str(root / 'train' / _ROBOFLOWS))}"
    return (
        f"it looks like an export of Roboflow: set data.annotations={{split}}/{_ROBOFLOWS} "
        f"data.images={{split}} data.splits.train=train data.splits.val={val} "
        f"data.splits.test={'test' if 'test' in there else 'null'}"
    )


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    # Parsing makes millions of dicts and lists without reference cycles; searching them for cycles again and
    # again would take a quarter of the time.
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def read_json(path: Path, kind: str = "annotation file", hint: Callable[[], str] = str) -> Any:
    """The content of a JSON file.

    Args:
        kind: what messages call the file.
        hint: gives the remedy for the message if the file does not exist.

    Raises:
        InputError: the file is missing, unreadable or not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{kind} {path} does not exist{hint()}") from None
    except OSError as error:
        raise InputError(f"{kind} {path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{kind} {path} is not valid JSON{_how_it_begins(path)}: {error}") from None


def _how_it_begins(path: Path) -> str:
    """Hint at what the file is instead: its first line (CSV, an HTML page), or that it is empty."""
    with path.open("rb") as file:
        start = file.read(200).decode("utf-8", "replace").strip()
    if not start:
        return ", it is empty"
    return "" if start[0] in "{[" else f", it begins with '{start.splitlines()[0][:40]}'"


def _images(
    records: list[Any], folder: Path, source: Path, faults: list[DataFault] | None
) -> tuple[dict[int, AnnotatedImage], set[Any]]:
    """The images by id, and the ids of refused image records."""
    named: dict[int, tuple[dict[str, Any], Path]] = {}
    refused: set[Any] = set()
    finder = ImageFinder(folder)
    for record in records:
        try:
            number, path = _named(record, finder, source)
            if number in named:
                message = f"{source}: image id {number} is listed twice"
                raise DataFault("image-id-twice", message, path, number)
        except DataFault as fault:
            raise_or_collect(fault, faults)
            refused |= id_of_refused(record)
            continue
        named[number] = record, path
    finder.warn(str(source))
    remedy = "set data.images to {} (relative to data.root, which itself is .; for data.split: --images)"
    paths = look_elsewhere([path for _, path in named.values()], folder, str(source), remedy)
    found: dict[int, AnnotatedImage] = {}
    for (number, (record, _)), path in zip(named.items(), paths, strict=True):
        try:
            found[number] = AnnotatedImage(number, path, _size(record, path, _where(number, source)))
        except DataFault as fault:
            raise_or_collect(fault, faults)
            refused.add(number)
    return found, refused


def _where(number: Any, source: Path) -> str:
    return f"image id {shown(number)} in {source}"


def _named(record: Any, finder: ImageFinder, source: Path) -> tuple[int, Path]:
    """Id and file of an image."""
    number = whole_of(record, "id", f"an image in {source}")
    where = _where(number, source)
    path = finder.find(text_of(record, "file_name", where), where)
    if not isinstance(number, int) or abs(number) >= 2**63:
        wanted = "fit 64 bits" if isinstance(number, int) else "be an integer"
        raise DataFault("record-malformed", f"{where}: the id must {wanted}; renumber the images", path)
    return number, path


def _size(record: dict[str, Any], path: Path, where: str) -> tuple[int, int]:
    """Height and width as annotated; if missing or 0, read from the file."""
    if not all(record.get(side) for side in ("height", "width")):
        return size_of_file(path)
    height, width = (whole_of(record, side, where) for side in ("height", "width"))
    for side, value in (("height", height), ("width", width)):
        if type(value) is not int or not 0 < value <= MOST_PIXELS:
            message = f"{where}: {side} must be a number of pixels up to {MOST_PIXELS}, got {value!r}"
            raise DataFault("record-malformed", message, path)
    return height, width


def _box(record: dict[str, Any], where: str) -> Any:
    """The box as written (x, y, width, height); if there is none, the box around the polygons."""
    box, polygons = record.get("bbox"), record.get("segmentation")
    if not box and isinstance(polygons, dict):
        raise DataFault(
            "record-malformed", f"{where} has no 'bbox'; add one, since RLE masks are not decoded"
        )
    if box or not isinstance(polygons, list) or not polygons:
        return field_of(record, "bbox", where)
    points = [polygon for polygon in polygons if isinstance(polygon, list)]
    xs, ys = ([value for polygon in points for value in polygon[side::2]] for side in (0, 1))
    if not xs or not ys or not _NUMBERS.issuperset(map(type, xs + ys)):
        return field_of(record, "bbox", where)
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


def _annotation(record: dict[str, Any], where: str, label: int, image: AnnotatedImage) -> Annotation:
    box = _box(record, where)
    if not isinstance(box, list) or len(box) != 4 or not _NUMBERS.issuperset(map(type, box)):
        raise DataFault(
            "record-malformed",
            f"{where}: bbox must be four numbers (x, y, width, height), got {box!r} "
            f"(image '{image.path.name}')",
        )
    x, y, width, height = map(_float, box)
    area, crowd = record.get("area"), record.get("iscrowd")
    if crowd not in (0, 1, None):  # "0" and NaN are truthy in Python
        message = f"{where}: iscrowd must be 0 or 1, got {crowd!r} (image '{image.path.name}')"
        raise DataFault("record-malformed", message)
    given = _float(area) if isinstance(area, int | float) and not area < 0 else None  # -1 means "not given"
    if given is not None and not math.isfinite(given):
        message = f"{where}: area {area} is not a finite number (image '{image.path.name}')"
        raise DataFault("record-malformed", message)
    return Annotation(where, (x, y, x + width, y + height), label, bool(crowd), given, _number(record))


def _number(record: dict[str, Any]) -> int:
    number = record.get("id")
    return number if isinstance(number, int) and abs(number) < 2**63 else -1


def _float(number: float) -> float:
    try:
        return float(number)
    except OverflowError:  # JSON integers are unbounded
        return math.inf if number > 0 else -math.inf
