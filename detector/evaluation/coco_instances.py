"""A set as a COCO instances file, with the images, boxes and ids that training and evaluation use."""

import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any

from data.sample import DetectionSet, is_listed
from detector.evaluation.coco_results import in_list

_WRITER = "python -m data.convert"
# How a file of `instances_pieces` begins.
BEGINNING = rf'\{{"info": \{{"description": "{_WRITER}'


def instances_pieces(records: DetectionSet, names: Sequence[str]) -> Iterator[str]:
    """The file as pycocotools and `load_coco` read it, in pieces, since there may be millions of boxes.

    Annotation ids start at 1, as pycocotools ignores an id of 0. Ignored regions are written as crowds.

    Args:
        names: of the image files, relative to the folder of the images.
    """
    ids = ids_in_file(records.category_ids)
    yield f'{{"info": {{"description": "{_WRITER}"}},\n"images": [\n'
    yield from in_list(_images(records, names), ",\n")
    yield '],\n"annotations": [\n'
    yield from in_list(_annotations(records, ids), ",\n")
    yield f'],\n"categories": {json.dumps(categories(ids, records.classes))}}}\n'


def _images(records: DetectionSet, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    ids, sizes = records.image_ids.tolist(), records.sizes.tolist()
    for number, name, (height, width) in zip(ids, names, sizes, strict=True):
        yield {"id": number, "file_name": name, "width": width, "height": height}


def _annotations(records: DetectionSet, ids: Sequence[int]) -> Iterator[dict[str, Any]]:
    images = records.image_ids[records.image_of_box]
    columns = (images, records.boxes, records.labels, records.areas, records.ignore)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    for number, (image, (x0, y0, x1, y1), label, area, ignore) in enumerate(rows, start=1):
        yield {
            "id": number,
            "image_id": image,
            "category_id": ids[label],
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "area": area,
            "iscrowd": int(ignore),
        }


def ids_in_file(category_ids: Sequence[int]) -> list[int]:
    """The ids of the classes, with unused ids for classes that the annotations do not list."""
    free = itertools.count(max((i for i in category_ids if is_listed(i)), default=0) + 1)
    return [i if is_listed(i) else next(free) for i in category_ids]


def categories(ids: Sequence[int], classes: Sequence[str]) -> list[dict[str, Any]]:
    return [{"id": i, "name": name} for i, name in zip(ids, classes, strict=True)]
