"""The input of an evaluation: gt boxes and detections of a set in flat arrays, whatever their source."""

import contextlib
import logging
import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np

from data.annotations import require_folder
from data.categories import named_categories
from data.coco import read_instances, read_json
from data.elsewhere import look_elsewhere
from data.inputs import RESULTS_MARK
from data.lookup import ImageFinder
from data.progress import reading
from data.sample import DetectionSet
from data.text_ids import as_listed
from data.units import AS_IF, AS_PARTS, parts_for_pixels, written_as
from detector.evaluation.inference import Predictions
from detector.evaluation.matching import Floats, FoundBoxes, GtBoxes, Ints
from errors import InputError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Material:
    """A set with its detections. Images are in ascending order of their ids; `images` of the boxes are
    indices in that order, and labels are indices into `classes`."""

    classes: tuple[str, ...]
    class_order: Ints  # [C] rank of each class by category id: the order in which COCO averages
    image_ids: tuple[Any, ...]  # [I]
    image_names: tuple[str, ...]  # [I] for display
    files: tuple[Path, ...] | None  # [I] None if the images are not available
    sizes: Ints | None  # [I, 2] height, width; None if unknown
    gt: GtBoxes
    gt_areas: Floats  # [M] as annotated, else the area of the box
    found: FoundBoxes

    def gt_totals(self) -> Ints:
        """Number of gt boxes of each class, without ignored ones: [C]."""
        return np.bincount(self.gt.labels[~self.gt.ignore], minlength=len(self.classes))


def material_of(records: DetectionSet, predictions: Predictions) -> Material:
    """A split with a model's detections, whose order is kept."""
    order = np.argsort(records.image_ids, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    gt_images = place[records.image_of_box]
    files = tuple(Path(records.files[row]) for row in order)
    p = predictions
    return Material(
        records.classes,
        np.argsort(np.argsort(records.category_ids)),
        tuple(records.image_ids[order].tolist()),
        tuple(file.name for file in files),
        files,
        records.sizes[order],
        GtBoxes(xywh(records.boxes), records.labels, records.ignore, gt_images),
        records.areas,
        FoundBoxes(xywh(p.boxes), p.labels, p.scores.astype(np.float64), place[p.rows]),
    )


def read_material(results_path: Path, annotations_path: Path, images: Path | None = None) -> Material:
    """Read a COCO results file and its instances file.

    Args:
        images: the folder that `file_name` is relative to; only needed for pictures.

    Raises:
        InputError: a file is missing or malformed, the results name an unknown image or category, or an
            image does not exist.
    """
    content = as_listed(read_instances(annotations_path), annotations_path)
    with _named_fields(str(annotations_path)) as at:
        image_records = {record["id"]: record for record in content["images"]}
        categories = named_categories(content)
        names = {record["id"]: str(record["name"]) for record in categories}
        _no_two(annotations_path, "image id", [record["id"] for record in content["images"]])
        _no_two(annotations_path, "category id", [record["id"] for record in categories])
        _no_two(annotations_path, "category name", list(names.values()))
        if not names:
            raise InputError(f"{annotations_path}: 'categories' is empty; there is nothing to score")
        for what, ids in (("image", image_records), ("category", names)):
            texts = [one for one in ids if isinstance(one, str)]
            if 0 < len(texts) < len(ids):
                raise InputError(
                    f"{annotations_path}: some {what} ids are strings, such as '{texts[0]}', but others are "
                    "not; use one kind"
                )
        image_ids, category_ids = sorted(image_records), sorted(names)
        places = {image: place for place, image in enumerate(image_ids)}
        labels = {category: label for label, category in enumerate(category_ids)}
        gt = []
        for position, record in enumerate(content["annotations"]):
            at[0] = f"annotation {record.get('id', f'at position {position}')}"
            box, area, crowd = _box(record), record.get("area"), record.get("iscrowd")
            area = float(-1 if area is None else area)
            if len(box) != 4 or not all(map(math.isfinite, (*box, area))) or min(box[2:]) < 0:
                raise ValueError(
                    "bbox must be four finite numbers without a negative side, and area a finite number"
                )
            if crowd not in (0, 1, None):  # the string "0" would be true in Python
                raise ValueError(f"iscrowd must be 0 or 1, got {crowd!r}")
            image, category = record["image_id"], record["category_id"]
            if image in places and category in labels:  # 'images' and 'categories' may list only a part
                area = box[2] * box[3] if area < 0 else area
                gt.append((box, labels[category], bool(crowd), places[image], area))
        files = None if images is None else _files(image_records, image_ids, images, annotations_path, at)
        sizes = _sizes(image_records, image_ids, at)
        if len(gt) < len(content["annotations"]):
            _say_what_is_left_out(annotations_path, len(gt), len(content["annotations"]))
    _refuse_ids_of_prediction(results_path, annotations_path, image_records)
    found = _read_results(results_path, annotations_path, places, labels)
    _warn_of_a_part(results_path, np.array([one[3] for one in gt], np.int64), found.images)
    _warn_of_units(found.xywh, found.images, sizes, results_path)
    gt_boxes = GtBoxes(
        np.array([one[0] for one in gt], np.float64).reshape(-1, 4),
        np.array([one[1] for one in gt], np.int64),
        np.array([one[2] for one in gt], np.bool_),
        np.array([one[3] for one in gt], np.int64),
    )
    _warn_of_units(gt_boxes.xywh, gt_boxes.images, sizes, annotations_path)
    return Material(
        tuple(names[category] for category in category_ids),
        np.arange(len(category_ids)),
        tuple(image_ids),
        tuple(Path(str(image_records[i].get("file_name", f"image {i}"))).name for i in image_ids),
        files,
        sizes,
        gt_boxes,
        np.array([one[4] for one in gt], np.float64),
        found,
    )


def _refuse_ids_of_prediction(path: Path, annotations_path: Path, image_records: dict[Any, Any]) -> None:
    """Refuse results of predict.py, which numbers its inputs: its ids rarely match those of the annotations.

    Raises:
        InputError: the images.json of predict.py beside the results names other images under these ids.
    """
    listing = path.parent / "images.json"
    if not (path.parent / RESULTS_MARK).exists() or not listing.is_file():
        return
    for record in read_json(listing)["images"]:
        meant = image_records.get(record["id"])
        name = None if meant is None else meant.get("file_name")
        if name is not None and PureWindowsPath(name).name != PureWindowsPath(record["file_name"]).name:
            raise InputError(
                f"{path}: image id {record['id']} is {record['file_name']} (in {listing.name} beside it), "
                f"but {name} in {annotations_path}; to write results with the ids of the data set, use "
                "evaluate.py RUN_DIR --results FILE"
            )


def _say_what_is_left_out(path: Path, used: int, given: int) -> None:
    listed = "of an image and a category that the file lists"
    if used == 0:
        raise InputError(f"{path}: none of the {given} annotations is {listed}; check the ids")
    log.warning("%s: left out %d of %d annotations, which are not %s", path, given - used, given, listed)


def _read_results(
    path: Path, annotations_path: Path, places: dict[Any, int], labels: dict[Any, int]
) -> FoundBoxes:
    results = read_json(path, "results file")
    if not isinstance(results, list):
        raise InputError(f"{path} is not a COCO results file, which must be a list of detections")
    # Accept ids in quotes that the annotations list as numbers.
    images, categories = ({str(number): number for number in listed} for listed in (places, labels))
    # In arrays from the start: as Python objects, five million detections would take gigabytes.
    boxes, scores, labels_of, images_of = array("d"), array("d"), array("q"), array("q")
    with _named_fields(str(path)) as place:
        for i, record in enumerate(reading(results, "detection", str(path))):
            place[0] = f"detection {i}"
            at = f"{path}: {place[0]}"
            image, category = (
                quoted.get(number, number) if isinstance(number, str) else number
                for quoted, number in ((images, record["image_id"]), (categories, record["category_id"]))
            )
            box, score = _box(record), float(record["score"])
            if image not in places:
                raise InputError(
                    f"{at} is for image id {image!r:.80}, which {annotations_path} does not list"
                )
            if category not in labels:
                raise InputError(
                    f"{at} has category id {category!r:.80}, which {annotations_path} does not list"
                )
            if len(box) != 4 or not all(map(math.isfinite, [*box, score])):
                raise InputError(f"{at}: bbox must be four finite numbers, and score a finite number")
            boxes.extend(box)
            scores.append(score)
            labels_of.append(labels[category])
            images_of.append(places[image])
    return FoundBoxes(
        np.array(boxes, np.float64).reshape(-1, 4),
        np.array(labels_of, np.int64),
        np.array(scores, np.float64),
        np.array(images_of, np.int64),
    )


def _warn_of_a_part(path: Path, with_gt: Ints, with_found: Ints) -> None:
    """Warn of results for few images, or for another split with shared ids: they look like a bad detector."""
    images = np.unique(with_gt)
    empty = len(images) - int(np.isin(images, with_found).sum())
    if len(with_found) and 2 * empty > len(images):
        log.warning(
            "%s: no detection in %d of the %d images that have gt boxes; are the results complete, and of "
                "this split?",
            path, empty, len(images),
        )  # fmt: skip


def _warn_of_units(boxes: Floats, images: Ints, sizes: Ints | None, path: Path) -> None:
    """Warn of boxes that seem to be in another unit or format. boxes: [N, 4], x, y, width, height."""
    corners = xyxy(boxes)
    wrong = ""
    if parts_for_pixels(corners):
        wrong = AS_PARTS
    elif sizes is not None and (written := written_as(corners, sizes[images])) is not None:
        wrong = f"reach outside their images {AS_IF[written]}"
    if wrong:
        log.warning("%s: the boxes %s; bbox is x, y, width, height in pixels", path, wrong)


def _box(record: Any) -> list[float]:
    box = record["bbox"]
    if not isinstance(box, list):  # e.g. a string, whose characters would be iterated
        raise TypeError(f"bbox is {box!r}")
    return [float(v) for v in box]


def _files(
    records: dict[Any, Any], ids: list[Any], folder: Path, source: Path, at: list[str]
) -> tuple[Path, ...]:
    require_folder(folder, "--images", "give the folder of the images")
    files, finder = [], ImageFinder(folder)
    for image in ids:
        at[0] = f"image id {image}"
        files.append(finder.find(str(records[image]["file_name"]), f"{at[0]} in {source}"))
    files = look_elsewhere(files, folder, str(source), "give {} as --images")
    missing = [file for file in files if not file.is_file()]
    if missing:
        more = f" (and {len(missing) - 1} more images)" if len(missing) > 1 else ""
        raise InputError(f"--images: image {missing[0]} does not exist{more}")
    return tuple(files)


def _no_two(path: Path, what: str, values: list[Any]) -> None:
    seen: set[Any] = set()
    for value in values:
        if value in seen:
            raise InputError(f"{path}: the {what} {value!r} is listed twice; each must be unique")
        seen.add(value)


def _sizes(records: dict[Any, Any], ids: list[Any], at: list[str]) -> Ints | None:
    sizes = np.zeros((len(ids), 2), np.int64)
    for place, image in enumerate(ids):
        at[0] = f"image id {image}"
        height, width = records[image].get("height"), records[image].get("width")
        if not isinstance(height, int) or not isinstance(width, int):
            return None
        sizes[place] = height, width
    return sizes


@contextlib.contextmanager
def _named_fields(source: str) -> Iterator[list[str]]:
    """Turn errors from malformed records into one line; yields a list whose only item names the record."""
    at = ["an entry"]
    try:
        yield at
    except KeyError as error:
        raise InputError(f"{source}: {at[0]} has no {error}") from None
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(f"{source}: {at[0]} is malformed: {error!s:.200}") from None


def xywh(boxes: Floats) -> Floats:
    """xyxy [N, 4] -> x, y, width, height."""
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def xyxy(boxes: Floats) -> Floats:
    """x, y, width, height [N, 4] -> x0, y0, x1, y1."""
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
