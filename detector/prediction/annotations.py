"""The detections of an image, and their export as annotations that tools can edit and training can read."""

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from data.inputs import Source
from detector.evaluation.coco_instances import categories, ids_in_file
from detector.evaluation.coco_results import in_list
from detector.predictor import ImageDetections

_NOT_OF_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class Result:
    """The detections in one image or frame."""

    source: Source
    frame: int | None  # number in the video, from 0
    size: tuple[int, int]  # height, width
    found: ImageDetections
    full: bool = False  # there may be more detections; see `Detector.is_full`
    kept: Path | None = None  # image file of a frame that was saved to the folder of results


def instances(
    results: Sequence[Result], classes: tuple[str, ...], category_ids: tuple[int, ...]
) -> Iterator[str]:
    """A COCO instances file of images, in pieces, since there may be millions of boxes.

    File names are relative to the folder that the user named, if that is unambiguous.
    """
    sharing = Counter(result.source.place for result in results)
    ids = ids_in_file(category_ids)
    images = []
    for number, result in enumerate(results, start=1):
        (height, width), source = result.size, result.source
        name = source.place if sharing[source.place] == 1 else source.path
        images.append({"id": number, "file_name": name.as_posix(), "width": width, "height": height})
    yield f'{{"info": {{}}, "images": {json.dumps(images)}, "annotations": ['
    yield from in_list(_boxes(results, ids), ", ")
    yield f'], "categories": {json.dumps(categories(ids, classes))}}}\n'


def _boxes(results: Sequence[Result], ids: Sequence[int]) -> Iterator[dict[str, Any]]:
    """The annotations of `instances`."""
    number = itertools.count(1)
    for image, result in enumerate(results, start=1):
        found = result.found
        for box, label, score in zip(found.boxes, found.labels, found.scores.tolist(), strict=True):
            (x0, y0), (width, height) = box[:2].tolist(), (box[2:] - box[:2]).tolist()
            yield {
                "id": next(number),
                "image_id": image,
                "category_id": ids[label],
                "bbox": [x0, y0, width, height],
                "area": width * height,
                "iscrowd": 0,
                "score": score,
            }


def yolo_lines(result: Result) -> str:
    """The label file of an image: class, centre and sides as fractions of the image's, one line per box."""
    boxes, (height, width) = result.found.boxes, result.size
    centred = np.concatenate(((boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]), axis=1)
    parts = (centred / (width, height, width, height)).tolist()
    return "".join(
        f"{label} {' '.join(f'{part:.6f}' for part in box)}\n"
        for label, box in zip(result.found.labels.tolist(), parts, strict=True)
    )


def voc(result: Result) -> str:
    """The XML file of an image in labelImg's format: corners in whole pixels, at least one pixel apart."""
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = _NOT_OF_XML.sub("?", result.source.path.name)
    size = ElementTree.SubElement(root, "size")
    for name, pixels in zip(("height", "width"), result.size, strict=True):
        ElementTree.SubElement(size, name).text = str(pixels)
    ElementTree.SubElement(size, "depth").text = "3"
    boxes = result.found.boxes.round().astype(int)
    boxes[:, :2] = boxes[:, :2].clip(max=(result.size[1] - 1, result.size[0] - 1))
    boxes[:, 2:] = boxes[:, 2:].clip(min=boxes[:, :2] + 1)
    for name, box in zip(result.found.names, boxes.tolist(), strict=True):
        node = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(node, "name").text = _NOT_OF_XML.sub("?", name)
        ElementTree.SubElement(node, "difficult").text = "0"
        corners = ElementTree.SubElement(node, "bndbox")
        for side, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True):
            ElementTree.SubElement(corners, side).text = str(value)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"
