"""Checks of boxes: position, size, duplicates."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from data.check.findings import BoxSpot, numbered
from data.sample import DetectionSet
from data.units import Written, parts_for_pixels, written_as

_TINY_PX = 2.0
_EDGE_PX = 1.0  # allows for rounding, and for coordinates that count from 1
_LEAST_INSIDE = 0.9
# The finding for each suspected convention.
_FINDINGS: dict[Written, str] = {
    "corners for sizes": "box-corners",
    "centres": "box-centres",
    "corners for centre and size": "box-corners-only",
    "corners": "box-not-centred",
    "y before x": "box-y-first",
}


def box_spots(
    split: str, records: DetectionSet, noun: str, evaluated_sizes: NDArray[np.int64], centred: bool
) -> Iterator[BoxSpot]:
    """Faults of the boxes that were not dropped while reading.

    Args:
        noun: see `BoxSpot`.
        evaluated_sizes: [I, 2] height and width of each image after the resizing of evaluation.
        centred: see `written_as`.
    """
    of_image = records.image_of_box
    height, width = records.sizes[of_image].T
    x0, y0, x1, y1 = records.boxes.T
    inside = np.stack(
        (x0.clip(0, width), y0.clip(0, height), x1.clip(0, width), y1.clip(0, height)), axis=1
    )  # [M, 4]
    sides = inside[:, 2:] - inside[:, :2]
    with np.errstate(over="ignore"):
        share = sides.prod(axis=1) / ((x1 - x0) * (y1 - y0))
    over = np.stack((-x0, -y0, x1 - width, y1 - height), axis=1).max(axis=1)
    scale = evaluated_sizes / records.sizes  # [I, 2] height, width
    seen = sides * scale[of_image][:, ::-1]  # [M, 2] width, height
    objects = ~records.ignore

    def spots(code: str, found: NDArray[np.bool_], problem: str, *values: NDArray) -> Iterator[BoxSpot]:
        for box in np.flatnonzero(found).tolist():
            yield BoxSpot(code, problem, values, split, records, noun, box)

    size = "of an image of {0} x {1} px"
    written = written_as(records.boxes, records.sizes[of_image], centred)
    code = _FINDINGS[written] if written is not None else None
    yield from spots(
        code or "box-partly-outside",
        (over > _EDGE_PX) if code else share < _LEAST_INSIDE,
        f"lies only {{2:.0%}} inside, {size}",
        width,
        height,
        share,
    )
    yield from spots(
        "box-over-edge",
        (share >= _LEAST_INSIDE) & (over > _EDGE_PX) & (code is None),
        f"extends {{2:.1f}} px beyond the edge {size}",
        width,
        height,
        over,
    )
    parts = parts_for_pixels(records.boxes)
    yield from spots(
        "box-normalised" if parts else "box-tiny",
        objects & (seen.min(axis=1) < _TINY_PX),
        "is {0:.1f} x {1:.1f} px after the resizing for evaluation",
        seen[:, 0],
        seen[:, 1],
    )
    whole = (x0 <= _EDGE_PX) & (y0 <= _EDGE_PX) & (x1 >= width - _EDGE_PX) & (y1 >= height - _EDGE_PX)
    yield from spots("box-whole-image", objects & whole, f"covers the whole {size}", width, height)
    yield from _repeated(split, records, noun, of_image)


def _repeated(split: str, records: DetectionSet, noun: str, of_image: NDArray[np.int64]) -> Iterator[BoxSpot]:
    """Boxes of an image with equal coordinates."""
    keys = np.column_stack((of_image, records.boxes, records.labels))
    order = np.lexsort(keys.T[::-1])
    same_place = (keys[order][1:, :5] == keys[order][:-1, :5]).all(axis=1)
    for first, second in zip(order[:-1][same_place].tolist(), order[1:][same_place].tolist(), strict=True):
        if records.ignore[first] or records.ignore[second]:
            continue
        label, number = records.labels[first], int(records.annotation_ids[first])
        same_class = label == records.labels[second]
        code = "box-duplicated" if same_class else "box-in-two-classes"
        other = "of the same class" if same_class else f"a {records.classes[label]}"
        problem = f"equals that of {numbered(noun, number)}, {_literal(other)}"
        yield BoxSpot(code, problem, (), split, records, noun, second)


def _literal(text: str) -> str:
    """Escape braces for use in a format string: class names may contain them."""
    return text.replace("{", "{{").replace("}", "}}")
