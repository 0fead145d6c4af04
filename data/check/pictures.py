"""Pictures for the page: samples as the network sees them, and places where something was found."""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from data.check.findings import AnySpot, BoxSpot, Finding, Spot
from data.colours import Colour, colour
from data.images import read_image
from data.loader import DetectionDataset
from data.sample import DetectionSet
from data.transforms import Pipeline
from errors import InputError

_SAMPLES, _SAMPLE_SIDE = 12, 560  # number of pictures, and their long side in pixels
_PLACES, _PLACE_SIDE = 4, 400  # likewise, for each kind of finding
_TRIED = 100  # there may be a million places
_LEAST_VIEW = 64  # pixels of the image shown around a box
_SURROUNDINGS = 2.0  # view, in multiples of the box's longer side
_NAMED = 12  # at most so many boxes are labelled; more labels would hide the picture
_GREY: Colour = (128, 128, 128)
_OUTSIDE: Colour = (225, 225, 225)  # beyond the image


@dataclass(frozen=True)
class Picture:
    """One drawing, or several side by side."""

    jpegs: tuple[bytes, ...]
    caption: str


@dataclass(frozen=True)
class Drawn:
    """A box to draw."""

    box: NDArray[np.float64]  # [4] xyxy pixels
    ink: Colour
    text: str = ""  # none if empty
    width: int = 2


def sample_pictures(records: DetectionSet, pipeline: Pipeline, seed: int) -> list[Picture]:
    """Some images of the first epoch, drawn at random; unreadable ones are skipped."""
    dataset = DetectionDataset(records, pipeline, seed)
    pictures: list[Picture] = []
    for row in np.random.default_rng(0).permutation(len(records)).tolist():
        if len(pictures) == _SAMPLES:
            break
        try:
            sample = dataset.sample(0, row)
        except InputError:
            continue
        height, width = sample.image.shape[:2]
        boxes = [
            _of_a_box(box, int(label), bool(ignored), records)
            for box, label, ignored in zip(sample.boxes, sample.labels, sample.ignore, strict=True)
        ]
        jpeg = draw(sample.image, boxes, _SAMPLE_SIDE)
        pictures.append(Picture((jpeg,), f"{_name(records, row)}, {width} x {height} px"))
    return pictures


def place_pictures(findings: Sequence[Finding], sets: Mapping[str, DetectionSet]) -> dict[str, list[Picture]]:
    """Pictures of some places of each finding, by code, of different images as far as possible.

    Places that are not in the sets, such as boxes refused while reading, and unreadable images are skipped.
    """
    rows = {split: {str(file): k for k, file in enumerate(records.files)} for split, records in sets.items()}
    pictures = {one.code: list(islice(_pictures(one.spots, sets, rows), _PLACES)) for one in findings}
    return {code: some for code, some in pictures.items() if some}


def _pictures(
    spots: Sequence[AnySpot], sets: Mapping[str, DetectionSet], rows: Mapping[str, Mapping[str, int]]
) -> Iterator[Picture]:
    seen: set[str | None] = set()
    firsts: list[AnySpot] = []
    others: list[AnySpot] = []
    for spot in spots[:_TRIED]:
        (others if spot.image in seen else firsts).append(spot)
        seen.add(spot.image)
    for spot in (*firsts, *others):
        row = rows.get(spot.split or "", {}).get(spot.image or "")
        if row is None or (isinstance(spot, Spot) and spot.annotation is not None):
            continue
        with suppress(InputError):
            yield _around_a_box(spot, row) if isinstance(spot, BoxSpot) else _whole(spot, sets, row)


def _around_a_box(spot: BoxSpot, row: int) -> Picture:
    """The box with its label and surroundings, also beyond the image; other boxes have no labels."""
    records = spot.records
    pixels = _read(records, row)
    size = np.array(pixels.shape[1::-1], dtype=np.float64)  # width, height
    box = records.boxes[spot.box]
    side = max(_LEAST_VIEW, _SURROUNDINGS * float((box[2:] - box[:2]).max()))
    centre = (box[:2] + box[2:]) / 2
    # At most one image size beyond the image.
    low = np.maximum(centre - side / 2, np.minimum(0, box[:2])).clip(-size, size - 1)
    high = np.minimum(centre + side / 2, np.maximum(size, box[2:])).clip(low + 1, 2 * size)
    (x0, y0), (width, height) = low.tolist(), (high - low).tolist()
    scale = _PLACE_SIDE / max(width, height)
    image = Image.fromarray(pixels)
    less = max(1, int(1 / scale))
    extent = tuple(v / less for v in (x0, y0, x0 + width, y0 + height))
    view = image.reduce(less).transform(
        (max(1, round(width * scale)), max(1, round(height * scale))),
        Image.Transform.EXTENT,
        extent,
        Image.Resampling.BILINEAR,
        fillcolor=_OUTSIDE,
    )
    others = (k for k in range(len(records.boxes))[records.boxes_of(row)] if k != spot.box)
    boxes = [Drawn(records.boxes[k], colour(int(records.labels[k]))) for k in others]
    label, ignored = int(records.labels[spot.box]), bool(records.ignore[spot.box])
    boxes.append(_of_a_box(box, label, ignored, records, width=4))
    moved = [Drawn((one.box - [x0, y0, x0, y0]) * scale, one.ink, one.text, one.width) for one in boxes]
    return Picture((draw(np.asarray(view), moved, _PLACE_SIDE),), _name(records, row))


def _whole(spot: Spot, sets: Mapping[str, DetectionSet], row: int) -> Picture:
    """An image with its boxes, beside the similar image, if there is one."""
    assert spot.split is not None
    places = [(spot.split, row), *([spot.other] if spot.other is not None else [])]
    jpegs = []
    for split, k in places:
        records = sets[split]
        boxes = [
            _of_a_box(records.boxes[b], int(records.labels[b]), bool(records.ignore[b]), records)
            for b in range(len(records.boxes))[records.boxes_of(k)]
        ]
        if len(boxes) > _NAMED:
            boxes = [Drawn(one.box, one.ink) for one in boxes]
        jpegs.append(draw(_read(records, k), boxes, _PLACE_SIDE))
    names = [f"{_name(sets[split], k)} ({split})" for split, k in places]
    return Picture(tuple(jpegs), " and ".join(names))


def _of_a_box(
    box: NDArray[np.float64], label: int, ignored: bool, records: DetectionSet, width: int = 2
) -> Drawn:
    ink, more = (_GREY, " (ignored)") if ignored else (colour(label), "")
    return Drawn(box, ink, records.classes[label] + more, width)


def _read(records: DetectionSet, row: int) -> NDArray[np.uint8]:
    height, width = (int(v) for v in records.sizes[row])
    return read_image(Path(records.files[row]), (height, width))


def _name(records: DetectionSet, row: int) -> str:
    return str(records.files[row]).replace("\\", "/").rsplit("/", 1)[-1]


def draw(pixels: NDArray[np.uint8], boxes: Sequence[Drawn], longest: int) -> bytes:
    """uint8 [H, W, 3] RGB -> a JPEG with a long side of `longest` px, with boxes, the last on top."""
    image = Image.fromarray(pixels)
    scale = longest / max(image.size)
    image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    canvas, font = ImageDraw.Draw(image), ImageFont.load_default(15)
    far = np.array(image.size * 2, dtype=np.float64)  # clip: huge boxes take forever to draw
    for one in boxes:
        x0, y0, x1, y1 = (round(float(v)) for v in (one.box * scale).clip(-far, 2 * far))
        corners = (x0, y0, max(x0, x1 - 1), max(y0, y1 - 1))
        wide = (corners[0] - 1, corners[1] - 1, corners[2] + 1, corners[3] + 1)
        canvas.rectangle(wide, outline=(0, 0, 0), width=one.width + 2)
        canvas.rectangle(corners, outline=one.ink, width=one.width)
        if not one.text:
            continue
        at = (max(x0, 0) + 3, max(y0, 0) + 1)
        left, top, right, bottom = canvas.textbbox(at, one.text, font=font)
        canvas.rectangle((left - 2, top - 1, right + 1, bottom + 1), fill=one.ink)
        light = sum(one.ink) > 330
        canvas.text(at, one.text, fill=(0, 0, 0) if light else (255, 255, 255), font=font)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80)
    return file.getvalue()
