"""Pictures for the report: the errors, and the best and worst images, with gt beside detections."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask

from data.drawing import draw_boxes
from data.images import read_image, read_upright
from detector.boxes import pairwise_iou
from detector.evaluation.coco import CocoResult
from detector.evaluation.matching import BACKGROUND_IOU, Floats, Ints, Kind
from detector.evaluation.material import Material, xyxy
from detector.report.facts import Shown, best_images, worst_false, worst_images, worst_missed

Pixels = NDArray[np.uint8]

_CROPS, _IMAGES = 12, 6  # per gallery
_LEAST_CROP = 96  # minimum side of a crop, in px of the image
_SIDE, _QUALITY = 480, 82  # of the JPEGs: longer side in px, and quality
_SCALE = 1.9  # of lines and letters, since the pictures are shown small

_WHAT = {
    Kind.CLASSIFICATION: "class wrong, gt is {gt} (IoU {iou:.2f})",
    Kind.LOCALISATION: "box wrong (IoU {iou:.2f})",
    Kind.BOTH: "class and box wrong, gt is {gt} (IoU {iou:.2f})",
    Kind.DUPLICATE: "second detection of the same object (IoU {iou:.2f})",
    Kind.BACKGROUND: "no gt box there",
}


@dataclass(frozen=True)
class Picture:
    """One entry of a gallery."""

    jpegs: tuple[str, ...]  # data: URLs, side by side
    title: str
    text: str


@dataclass(frozen=True)
class Galleries:
    """All galleries; some may be empty."""

    false: list[Picture]
    missed: list[Picture]
    worst: list[Picture]
    best: list[Picture]


def galleries(result: CocoResult, at: Shown) -> Galleries:
    """Read the images and draw the pictures of all galleries.

    Raises:
        InputError: an image cannot be read.
    """
    return Galleries(
        [_false(result, at, row) for row in worst_false(result, at, _CROPS).tolist()],
        [_missed(result, at, row) for row in worst_missed(result, at, _CROPS).tolist()],
        [_whole(result, at, image) for image in worst_images(at, _IMAGES).tolist()],
        [_whole(result, at, image) for image in best_images(at, _IMAGES).tolist()],
    )


def _false(result: CocoResult, at: Shown, row: int) -> Picture:
    m, matching = result.material, result.matching
    found, gt = m.found, matching.gt[row]
    kind = Kind(int(matching.kinds[row]))
    name = m.classes[m.gt.labels[gt]] if gt >= 0 else ""
    what = _WHAT[kind].format(gt=name, iou=matching.ious[row])
    title = f"{m.classes[found.labels[row]]} {found.scores[row]:.2f}"
    picture = _crop(result, at, int(found.images[row]), found.xywh[row], only=row)
    return Picture((picture,), f"{title}: {what}", m.image_names[found.images[row]])


def _missed(result: CocoResult, at: Shown, row: int) -> Picture:
    m, matching = result.material, result.matching
    label, image = int(m.gt.labels[row]), int(m.gt.images[row])
    found, usable = int(matching.found[row]), int(matching.usable[row])
    if found >= 0:
        what = f"found with score {m.found.scores[found]:.2f}, below the threshold {at.thresholds[label]:.2f}"
    elif usable >= 0 and matching.kinds[usable] == Kind.CLASSIFICATION:
        what = f"taken for {m.classes[m.found.labels[usable]]}, score {m.found.scores[usable]:.2f}"
    elif usable >= 0:
        what = f"nearest of its class at IoU {matching.ious[usable]:.2f}, score {m.found.scores[usable]:.2f}"
    else:
        what = _nearest(result, row)
    width, height = m.gt.xywh[row, 2:]
    picture = _crop(result, at, image, m.gt.xywh[row])
    title = f"{m.classes[label]}, {width:.0f} x {height:.0f} px: {what}"
    return Picture((picture,), title, m.image_names[image])


def _nearest(result: CocoResult, row: int) -> str:
    """Describe the nearest detection of a gt box that has none with only class or only box wrong."""
    m, matching = result.material, result.matching
    there = np.flatnonzero(m.found.images == m.gt.images[row])
    ious = pairwise_iou(
        torch.from_numpy(xyxy(m.gt.xywh[row : row + 1])), torch.from_numpy(xyxy(m.found.xywh[there]))
    ).numpy()[0]
    if ious.max(initial=0) < BACKGROUND_IOU:
        return "nothing was detected near it at any score"
    best = int(there[ious.argmax()])
    others = ", which is matched to another object" if matching.gt[best] not in (-1, row) else ""
    name, score = m.classes[m.found.labels[best]], m.found.scores[best]
    return f"nearest is {name} at IoU {ious.max():.2f}, score {score:.2f}{others}"


def _whole(result: CocoResult, at: Shown, image: int) -> Picture:
    m = result.material
    pixels = _read(m, image)
    gt = np.flatnonzero(m.gt.images == image)
    rows = np.flatnonzero((m.found.images == image) & at.found)
    rows = rows[np.argsort(-m.found.scores[rows], kind="stable")]
    few = len(gt) <= 12  # more names would hide the picture
    left = _jpeg(
        draw_boxes(
            pixels, xyxy(m.gt.xywh[gt]), m.gt.labels[gt],
            [m.classes[label] if few else "" for label in m.gt.labels[gt]],
            np.ones(len(gt), np.bool_), _SCALE,
        )
    )  # fmt: skip
    texts = _texts(m, rows) if len(rows) <= 12 else [""] * len(rows)
    right = _jpeg(draw_boxes(pixels, xyxy(m.found.xywh[rows]), m.found.labels[rows], texts, scale=_SCALE))
    counts = f"{at.right[image]} right, {at.wrong[image]} wrong, {at.unfound[image]} not found"
    return Picture((left, right), f"F1 {at.f1[image]:.2f}: {counts}", m.image_names[image])


def _crop(result: CocoResult, at: Shown, image: int, subject: Floats, only: int | None = None) -> str:
    """The surroundings of a box (xywh) with the boxes that overlap it: gt dashed, detections in solid lines.

    Args:
        only: the only detection to show; None shows all that reach the thresholds.
    """
    m = result.material
    pixels = _read(m, image)
    height, width = pixels.shape[:2]
    side = max(_LEAST_CROP, 2.2 * max(subject[2:]))
    x, y = np.clip(subject[:2] + subject[2:] / 2, 0, (width, height))
    x0, x1 = round(max(0, x - side / 2)), round(min(width, x + side / 2))
    y0, y1 = round(max(0, y - side / 2)), round(min(height, y + side / 2))
    gt = _near(subject, m.gt.xywh, np.flatnonzero(m.gt.images == image))
    rows = np.flatnonzero((m.found.images == image) & at.found)
    rows = _near(subject, m.found.xywh, rows) if only is None else np.array([only])
    boxes = np.concatenate([xyxy(m.found.xywh[rows]), xyxy(m.gt.xywh[gt])]) - [x0, y0, x0, y0]
    labels = np.concatenate([m.found.labels[rows], m.gt.labels[gt]])
    texts = [*_texts(m, rows), *(f"gt {m.classes[label]}" for label in m.gt.labels[gt])]
    dashed = np.arange(len(boxes)) >= len(rows)
    return _jpeg(draw_boxes(pixels[y0:y1, x0:x1], boxes, labels, texts, dashed, _SCALE))


def _near(subject: Floats, xywh: Floats, rows: Ints) -> Ints:
    """Those of the rows whose boxes overlap the subject, by descending IoU."""
    if len(rows) == 0:
        return rows
    overlap = mask.iou(subject[None], xywh[rows], np.zeros(len(rows), np.uint8))
    order = np.argsort(-overlap[0], kind="stable")
    return rows[order[overlap[0, order] >= BACKGROUND_IOU]]


def _texts(m: Material, rows: Ints) -> list[str]:
    return [f"{m.classes[m.found.labels[row]]} {m.found.scores[row]:.2f}" for row in rows]


def _read(m: Material, image: int) -> Pixels:
    assert m.files is not None
    file: Path = m.files[image]
    if m.sizes is None:
        return read_upright(file, str(file))
    return read_image(file, (int(m.sizes[image, 0]), int(m.sizes[image, 1])))


def _jpeg(pixels: Pixels) -> str:
    image = Image.fromarray(pixels)
    image.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(encoded.getvalue()).decode()
