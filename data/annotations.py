"""What every source does with its annotations: check them, and pack them into a DetectionSet."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np

from data.images import read_size, size_mismatch
from data.sample import DetectionSet
from errors import InputError

log = logging.getLogger(__name__)
# Headers are read up front for sets that allow it in seconds; larger ones are checked on decoding.
_HEADERS_CHECKED = 20_000
_NAMES_SHOWN = 5


@dataclass
class Annotation:
    """One object as a source found it."""

    where: str  # names it in messages: "annotation 17 in annotations/train.json"
    box: tuple[float, float, float, float]  # xyxy pixels
    label: int
    ignore: bool = False
    area: float | None = None


@dataclass
class AnnotatedImage:
    """One image as a source found it."""

    id: int
    path: Path
    size: tuple[int, int]  # height, width
    objects: list[Annotation] = field(default_factory=list)


def inside(folder: Path, name: str, where: str) -> Path:
    """folder / name, refused if it leads out of the folder.

    Raises:
        InputError: the name is absolute or climbs out with '..'. Symbolic links are the user's own
            arrangement and may lead anywhere.
    """
    parts = PurePosixPath(name).parts + PureWindowsPath(name).parts
    if not name or ".." in parts or PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor:
        raise InputError(f"{where} names the image '{name}', which points outside {folder}")
    return folder / name


def require_folder(folder: Path, key: str) -> None:
    """Raises InputError unless the folder exists; `key` is where the user set it."""
    if not folder.is_dir():
        raise InputError(f"{key}: the folder {folder} does not exist")


def build_set(
    images: Iterable[AnnotatedImage], classes: tuple[str, ...], category_ids: tuple[int, ...], source: str
) -> DetectionSet:
    """Check all images and boxes, drop the boxes without area, pack the rest.

    Args:
        source: names the split in messages.

    Raises:
        InputError: an image is missing, unreadable or of another size; a box is NaN or reversed.
    """
    images = list(images)
    _check_files(images)
    offsets, boxes, labels, ignore, areas, empty = [0], [], [], [], [], []
    for image in images:
        height, width = image.size
        for item in image.objects:
            x0, y0, x1, y1 = item.box
            _check_box(item, image)
            if min(x1, width) <= max(x0, 0) or min(y1, height) <= max(y0, 0):
                empty.append(image.path.name)
                continue
            boxes.append(item.box)
            labels.append(item.label)
            ignore.append(item.ignore)
            areas.append((x1 - x0) * (y1 - y0) if item.area is None else item.area)
        offsets.append(len(boxes))
    if empty:
        names = ", ".join(sorted(set(empty))[:_NAMES_SHOWN])
        more = ", ..." if len(set(empty)) > _NAMES_SHOWN else ""
        log.warning(
            "%s: %d box%s without area inside the image dropped (%s%s)",
            source, len(empty), "" if len(empty) == 1 else "es", names, more,
        )  # fmt: skip
    return DetectionSet(
        files=np.array([str(image.path) for image in images], dtype=np.str_),
        image_ids=np.array([image.id for image in images], dtype=np.int64),
        sizes=np.array([image.size for image in images], dtype=np.int64).reshape(-1, 2),
        offsets=np.array(offsets, dtype=np.int64),
        boxes=np.array(boxes, dtype=np.float64).reshape(-1, 4),
        labels=np.array(labels, dtype=np.int64),
        ignore=np.array(ignore, dtype=np.bool_),
        areas=np.array(areas, dtype=np.float64),
        classes=classes,
        category_ids=category_ids,
    )


def join_sets(sets: list[DetectionSet], source: str) -> DetectionSet:
    """Several splits as one. Images are renumbered where their ids meet.

    Raises:
        InputError: the splits do not have the same classes.
    """
    first = sets[0]
    if len(sets) == 1:
        return first
    for other in sets[1:]:
        if other.classes != first.classes:
            raise InputError(
                f"{source}: the joined splits have different classes: "
                f"{', '.join(first.classes)} and {', '.join(other.classes)}; list them in data.classes"
            )
    image_ids = np.concatenate([s.image_ids for s in sets])
    if len(np.unique(image_ids)) < len(image_ids):
        image_ids = np.arange(1, len(image_ids) + 1)
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
        classes=first.classes,
        category_ids=first.category_ids,
    )


def _check_files(images: list[AnnotatedImage]) -> None:
    missing = [image.path for image in images if not image.path.is_file()]
    if missing:
        more = f" (and {len(missing) - 1} more images)" if len(missing) > 1 else ""
        raise InputError(f"image {missing[0]} does not exist{more}")
    if len(images) > _HEADERS_CHECKED:
        return
    for image in images:
        upright, stored = read_size(image.path)
        if image.size not in (upright, stored):
            raise InputError(size_mismatch(image.path, image.size, upright))


def _check_box(item: Annotation, image: AnnotatedImage) -> None:
    if not np.isfinite(item.box).all():
        problem = "has a NaN or infinite number"
    elif item.box[2] < item.box[0]:
        problem = "is reversed: its right side lies left of its left side (negative width)"
    elif item.box[3] < item.box[1]:
        problem = "is reversed: its lower side lies above its upper side (negative height)"
    else:
        return
    box = ", ".join(f"{float(v):g}" for v in item.box)
    raise InputError(
        f"{item.where}: box [{box}] (x0, y0, x1, y1) {problem} (image '{image.path.name}'). Fix or remove it."
    )
