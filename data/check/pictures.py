"""Pictures for the page: samples as the network sees them, and places where something was found."""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.check.findings import AnySpot, BoxSpot, Finding, Spot
from data.colours import Colour
from data.drawing import draw_boxes
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
_LABELLED, _NAMED = 100, 12  # most boxes with labels, in a sample and in a place; more would hide it
_OUTSIDE: Colour = (225, 225, 225)  # beyond the image


@dataclass(frozen=True)
class Picture:
    """One drawing, or several side by side."""

    jpegs: tuple[bytes, ...]
    caption: str


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
        texts = _names_of(sample.labels, sample.ignore, records, _LABELLED)
        jpeg = _drawn(
            sample.image, sample.boxes.astype(np.float64), sample.labels, sample.ignore, texts, _SAMPLE_SIDE
        )
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
    others = [k for k in range(len(records.boxes))[records.boxes_of(row)] if k != spot.box]
    mine = [spot.box, *others]  # the first is drawn on top
    labels, ignored = records.labels[mine], records.ignore[mine]
    texts = [*_names_of(labels[:1], ignored[:1], records, 1), *[""] * len(others)]
    boxes = (records.boxes[mine] - [x0, y0, x0, y0]) * scale
    jpeg = _drawn(np.asarray(view), boxes, labels, ignored, texts, _PLACE_SIDE)
    return Picture((jpeg,), _name(records, row))


def _whole(spot: Spot, sets: Mapping[str, DetectionSet], row: int) -> Picture:
    """An image with its boxes, beside the similar image, if there is one."""
    assert spot.split is not None
    places = [(spot.split, row), *([spot.other] if spot.other is not None else [])]
    jpegs = []
    for split, k in places:
        records = sets[split]
        mine = records.boxes_of(k)
        boxes, labels, ignored = records.boxes[mine], records.labels[mine], records.ignore[mine]
        texts = _names_of(labels, ignored, records, _NAMED)
        jpegs.append(_drawn(_read(records, k), boxes, labels, ignored, texts, _PLACE_SIDE))
    names = [f"{_name(sets[split], k)} ({split})" for split, k in places]
    return Picture(tuple(jpegs), " and ".join(names))


def _names_of(
    labels: NDArray[np.int64], ignored: NDArray[np.bool_], records: DetectionSet, most: int
) -> list[str]:
    """The label of each box; empty ones for more than `most` boxes."""
    if len(labels) > most:
        return [""] * len(labels)
    return [
        records.classes[label] + " (ignored)" * bool(left_out)
        for label, left_out in zip(labels, ignored, strict=True)
    ]


def _read(records: DetectionSet, row: int) -> NDArray[np.uint8]:
    height, width = (int(v) for v in records.sizes[row])
    return read_image(Path(records.files[row]), (height, width))


def _name(records: DetectionSet, row: int) -> str:
    return str(records.files[row]).replace("\\", "/").rsplit("/", 1)[-1]


def _drawn(
    pixels: NDArray[np.uint8],
    boxes: NDArray[np.float64],
    labels: NDArray[np.int64],
    ignored: NDArray[np.bool_],
    texts: Sequence[str],
    longest: int,
) -> bytes:
    """uint8 [H, W, 3] RGB -> a JPEG with a long side of `longest` px; ignored boxes are dashed.

    The other arguments are those of `draw_boxes`.
    """
    image = Image.fromarray(pixels)
    scale = longest / max(image.size)
    image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    drawn = draw_boxes(np.asarray(image), boxes * scale, labels, texts, ignored, enlarge=False)
    file = io.BytesIO()
    Image.fromarray(drawn).save(file, "JPEG", quality=80)
    return file.getvalue()
