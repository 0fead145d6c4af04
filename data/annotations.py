"""What all formats share: checks of the annotations, and packing them into a DetectionSet."""

import errno
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data.faults import DataFault, list_or_warn, lists_all, raise_or_collect
from data.images import read_size, read_stored, size_mismatch
from data.lookup import is_file
from data.sample import DetectionSet, is_listed
from data.units import AS_PARTS, parts_for_pixels
from errors import InputError, first_line, some_of

log = logging.getLogger(__name__)
# Up to this many images all headers are read up front, which takes seconds; in larger sets an image is
# checked when it is decoded.
_HEADERS_CHECKED = 20_000
_NAMES_SHOWN = 5
_MANY = 10  # fewer dropped boxes than this never raise
_CLASSES_SHOWN = 10


@dataclass(slots=True)
class Annotation:
    """One object as read from the source."""

    where: str  # for messages: "annotation 17 in annotations/train.json"
    box: tuple[float, float, float, float]  # xyxy pixels
    label: int
    ignore: bool = False
    area: float | None = None
    number: int = -1  # see DetectionSet.annotation_ids


_IF_MISSING = "put the file there, or remove its annotation"  # remedy for a missing image

# Files that identify a format, as globs below the folder of a set.
_SIGNS = {
    "yolo": ("data.yaml",),
    "voc": ("Annotations/*.xml", "*.xml"),
    "coco": ("annotations/*.json", "*.json", "*/_annotations.coco.json"),
}


@dataclass(slots=True)
class AnnotatedImage:
    """One image as read from the source."""

    id: int
    path: Path
    size: tuple[int, int]  # height, width
    objects: list[Annotation] = field(default_factory=list)


def require_folder(folder: Path, key: str, remedy: str) -> None:
    """Raises InputError unless the folder exists; `key` is the setting that names it."""
    if not folder.is_dir():
        if folder.exists():
            raise InputError(f"{key}: {folder} is a file, but must be a folder; {remedy}")
        seen_from = "" if folder.is_absolute() else f" in {Path.cwd()}"
        raise InputError(f"{key}: the folder {folder} does not exist{seen_from}; {remedy}")


def format_of(root: Path) -> str | None:
    """The data.format that a folder appears to have; None if unknown."""
    return next((kind for kind, signs in _SIGNS.items() if any(any(root.glob(sign)) for sign in signs)), None)


def of_cvat(root: Path) -> str:
    """What to do with a folder exported in CVAT's own format; "" for other folders."""
    try:
        with (root / "annotations.xml").open("rb") as file:
            is_cvats = b"<annotations" in file.read(1000)
    except OSError:
        return ""
    return "annotations.xml is in CVAT's own format; export the task as COCO 1.0" if is_cvats else ""


def looks_like(root: Path) -> str:
    """End of an error message about a folder not of data.format: which format it appears to have."""
    if hint := of_cvat(root):
        return f"; {hint}"
    kind = format_of(root)
    return f"; it looks like data.format={kind}" if kind else ""


def size_of_file(path: Path) -> tuple[int, int]:
    """Upright height and width of an image, for annotations that do not give its size.

    Raises:
        DataFault: the file is missing or not an image.
    """
    try:
        return read_size(path)
    except InputError as error:
        if is_file(path):
            raise DataFault("image-unreadable", str(error), path) from None
        raise DataFault("image-missing", f"{error}; {_IF_MISSING}", path) from None


def first_of(places: Sequence[str]) -> str:
    """The first place, followed by how many more there are."""
    return places[0] + (f", and {len(places) - 1} more," if len(places) > 1 else "")


def say_rotated(places: Sequence[str], faults: list[DataFault] | None) -> None:
    """Report rotated CVAT boxes: CVAT stores the box as it was before the rotation.

    Args:
        places: the rotated boxes, for messages.
        faults: see `list_or_warn`.
    """
    if places:
        has = "has" if len(places) == 1 else "have"
        message = (
            f"{first_of(places)} {has} a rotation, which is ignored: boxes are read as they were before "
            "they were rotated"
        )
        list_or_warn([DataFault("box-rotated", message)], faults, f"{message}; draw upright boxes instead")


def say_left_out(counts: Mapping[str, int], source: str) -> None:
    """Warn about objects left out because their class is not used; `counts` is by class name."""
    if counts:
        named = [f"{count} of '{name}'" for name, count in sorted(counts.items())]
        log.warning(
            "%s: left out objects of classes that are not used: %s", source, some_of(named, _CLASSES_SHOWN)
        )


def pack_set(
    images: Iterable[AnnotatedImage],
    classes: tuple[str, ...],
    category_ids: tuple[int, ...],
    source: str,
    sizes_checked: bool = False,
    faults: list[DataFault] | None = None,
    renumbered: bool = False,
) -> DetectionSet:
    """Check all images and boxes, drop boxes without area inside the image, and pack the rest.

    Args:
        source: name of the split in messages.
        sizes_checked: the sizes were just read from the files themselves.
        faults: collects faults instead of raising them: the image stays, the box is dropped. If faults of
            every kind are collected, boxes without area are listed as well.
        renumbered: see `DetectionSet.renumbered`.

    Raises:
        DataFault: an image is missing, unreadable or of another size; a box is reversed or has a NaN or
            infinite number.
        InputError: the boxes are not in pixels, or at least ten and more than half have no area inside their
            images.
    """
    images = list(images)
    if not sizes_checked:
        _check_files(images, source, faults)
    # Arrays from here on: there may be a million boxes.
    items = [item for image in images for item in image.objects]
    sizes = np.array([image.size for image in images], dtype=np.int64).reshape(-1, 2)
    of_image = np.repeat(np.arange(len(images)), [len(image.objects) for image in images])  # [M]
    boxes = np.array([item.box for item in items], dtype=np.float64).reshape(-1, 4)
    bad = ~(np.isfinite(boxes).all(axis=1) & (boxes[:, 2:] >= boxes[:, :2]).all(axis=1))
    reversed_too = int((boxes[:, 2:] < boxes[:, :2]).any(axis=1).sum()) - 1
    for k in np.flatnonzero(bad):
        raise_or_collect(_what_is_wrong(items[k], images[of_image[k]], reversed_too), faults)
    x0, y0, x1, y1 = boxes.T
    height, width = sizes[of_image].T
    kept = (np.minimum(x1, width) > np.maximum(x0, 0)) & (np.minimum(y1, height) > np.maximum(y0, 0))
    flat = ~kept & ~bad
    kept &= ~bad
    if lists_all(faults):
        faults += [_without_area(items[k], images[of_image[k]]) for k in np.flatnonzero(flat)]
    elif flat.any():
        _say_dropped(int(flat.sum()), len(items), {images[i].path.name for i in of_image[flat]}, source)
    if not lists_all(faults) and parts_for_pixels(boxes[kept]):
        raise InputError(f"{source}: nearly all boxes {AS_PARTS}; write them in pixels")
    areas = np.array([np.nan if item.area is None else item.area for item in items], dtype=np.float64)
    with np.errstate(over="ignore", invalid="ignore"):  # box coordinates may be huge floats
        areas = np.where(np.isnan(areas), (x1 - x0) * (y1 - y0), areas)
    counts = np.bincount(of_image[kept], minlength=len(images))
    return DetectionSet(
        files=np.array([str(image.path) for image in images], dtype=np.str_),
        image_ids=np.array([image.id for image in images], dtype=np.int64),
        sizes=sizes,
        offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)]),
        boxes=boxes[kept],
        labels=np.array([item.label for item in items], dtype=np.int64)[kept],
        ignore=np.array([item.ignore for item in items], dtype=np.bool_)[kept],
        areas=areas[kept],
        annotation_ids=np.array([item.number for item in items], dtype=np.int64)[kept],
        classes=classes,
        category_ids=category_ids,
        renumbered=renumbered,
    )


def _say_dropped(dropped: int, boxes: int, files: Collection[str], source: str) -> None:
    """Warn of boxes without area inside their images.

    Raises:
        InputError: they are most of the boxes.
    """
    if dropped >= _MANY and 2 * dropped > boxes:
        raise InputError(
            f"{source}: {dropped} of {boxes} boxes lie outside their images or have no area; were the images "
            "made smaller after they were annotated? (python -m data.check lists all of them)"
        )
    log.warning(
        "%s: dropped %d box%s without area inside the image (%s)",
        source, dropped, "" if dropped == 1 else "es", some_of(sorted(files), _NAMES_SHOWN),
    )  # fmt: skip


def join_sets(sets: list[DetectionSet], source: str) -> DetectionSet:
    """Join several splits into one. Images are renumbered if ids occur in more than one split.

    Raises:
        InputError: the splits have different classes.
    """
    first = sets[0]
    if len(sets) == 1:
        return first
    for other in sets[1:]:
        if other.classes != first.classes:
            raise InputError(
                f"{source}: the splits to be joined have different classes: {', '.join(first.classes)} and "
                f"{', '.join(other.classes)}; list them in data.classes"
            )
    image_ids = np.concatenate([s.image_ids for s in sets])
    meet = len(np.unique(image_ids)) < len(image_ids)
    if meet:
        image_ids = np.arange(1, len(image_ids) + 1)
    category_ids = _joined_ids([s.category_ids for s in sets])
    of_each = (pair for s in sets for pair in zip(s.category_ids, category_ids, strict=True))
    differ = any(is_listed(own) and own != joined for own, joined in of_each)
    starts = np.cumsum([0] + [len(s.boxes) for s in sets[:-1]])
    offsets = [np.zeros(1, np.int64)] + [s.offsets[1:] + at for s, at in zip(sets, starts, strict=True)]
    return DetectionSet(
        files=np.concatenate([s.files for s in sets]),
        image_ids=image_ids,
        sizes=np.concatenate([s.sizes for s in sets]),
        offsets=np.concatenate(offsets),
        boxes=np.concatenate([s.boxes for s in sets]),
        labels=np.concatenate([s.labels for s in sets]),
        ignore=np.concatenate([s.ignore for s in sets]),
        areas=np.concatenate([s.areas for s in sets]),
        annotation_ids=np.concatenate([s.annotation_ids for s in sets]),
        classes=first.classes,
        category_ids=category_ids,
        renumbered=meet or differ or any(s.renumbered for s in sets),
    )


def _joined_ids(each: list[tuple[int, ...]]) -> tuple[int, ...]:
    """Id of each class in the first set that lists it; 1, 2, ... if these ids are not distinct."""
    ids = tuple(next(filter(is_listed, of_class), of_class[0]) for of_class in zip(*each, strict=True))
    return ids if len(set(ids)) == len(ids) else tuple(range(1, len(ids) + 1))


def _check_files(images: list[AnnotatedImage], source: str, faults: list[DataFault] | None) -> None:
    missing = [image for image in images if not is_file(image.path)]
    more = f" (and {len(missing) - 1} more images)" if len(missing) > 1 and faults is None else ""
    for image in missing:
        code, problem = "image-missing", f"does not exist{more}; {_IF_MISSING}"
        if away := _away(image.path):
            code, problem = "image-unreadable", f"cannot be read{more}: {away}"
        message = f"image {image.path} {problem}"
        raise_or_collect(DataFault(code, message, image.path, image.id), faults)
    if len(images) > _HEADERS_CHECKED:
        return
    lost = {image.path for image in missing}
    as_stored: list[AnnotatedImage] = []  # turned by EXIF, annotated with the size before turning
    upright: list[AnnotatedImage] = []
    either: list[AnnotatedImage] = []
    for image in images:
        if image.path in lost:
            continue
        try:
            stored = read_stored(image.path)
        except InputError as error:
            raise_or_collect(DataFault("image-unreadable", str(error), image.path, image.id), faults)
            continue
        if image.size not in (stored.upright_size, stored.size):
            message = size_mismatch(image.path, image.size, stored.upright_size)
            raise_or_collect(DataFault("image-size-differs", message, image.path, image.id), faults)
        elif stored.turned:
            same = stored.upright_size == stored.size
            (either if same else upright if image.size == stored.upright_size else as_stored).append(image)
    if as_stored and not upright:
        _say_unclear(either, source, faults)


def _say_unclear(images: list[AnnotatedImage], source: str, faults: list[DataFault] | None) -> None:
    """Report images for which it is unclear whether the boxes refer to the stored or the upright pixels.

    Called if all images whose size reveals it were annotated as stored. The size of `images` does not reveal
    it: EXIF turns them by 180 degrees or mirrors them, or they are square.
    """
    problem = (
        "by half a turn, or mirrors it, or it is square; the boxes of other images fit the pixels as stored"
    )
    found = [
        DataFault("orientation-unclear", f"image {i.path} (id {i.id}): EXIF turns it {problem}", i.path, i.id)
        for i in images
    ]
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    first = (
        f"{source}: {found[0]}{more}; if its boxes are misplaced, remove its EXIF orientation"
        if found
        else ""
    )
    list_or_warn(found, faults, first)


def _away(path: Path) -> str:
    """Why it is unknown whether a file exists (e.g. its disk is away); "" if it is known to be missing."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: invalid name on any system
        return ""
    except OSError as error:
        return "" if error.errno in (errno.ENAMETOOLONG, errno.ELOOP) else error.strerror or first_line(error)
    return ""


def _what_is_wrong(item: Annotation, image: AnnotatedImage, reversed_too: int) -> DataFault:
    """The fault of a non-finite or reversed box; `reversed_too` is the number of other reversed boxes."""
    code = "box-reversed"
    if not np.isfinite(item.box).all():
        code, problem = "box-not-finite", "has a NaN or infinite number"
    elif item.box[2] < item.box[0]:
        problem = "is reversed: its right edge is left of its left edge (negative width)"
    else:
        problem = "is reversed: its lower edge is above its upper edge (negative height)"
    if code == "box-reversed" and reversed_too > 0:
        problem += f", and so are {reversed_too} more"
    return _fault_of_box(code, problem, item, image)


def _without_area(item: Annotation, image: AnnotatedImage) -> DataFault:
    x0, y0, x1, y1 = item.box
    if x1 > x0 and y1 > y0:
        return _fault_of_box("box-outside", "lies outside the image", item, image)
    return _fault_of_box("box-without-area", "has zero width or height", item, image)


def _fault_of_box(code: str, problem: str, item: Annotation, image: AnnotatedImage) -> DataFault:
    box = ", ".join(f"{float(v):g}" for v in item.box)
    return DataFault(
        code,
        f"{item.where}: box [{box}] (x0, y0, x1, y1) {problem} (image '{image.path.name}'). "
        "Fix or remove it.",
        image.path,
        image.id,
        item.number,
    )
