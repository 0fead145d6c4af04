"""Boxes in another format than the one they are read in are recognised; correct boxes are not reported."""

import numpy as np
import pytest

from data.units import parts_for_pixels, written_as

WIDTH, HEIGHT = 640, 480


def spread(x_range, y_range, count=40, sides=(30, 60), seed=0):
    """xyxy boxes with their upper left corners in these ranges; sides in pixels."""
    rng = np.random.default_rng(seed)
    corners = np.stack((rng.uniform(*x_range, count), rng.uniform(*y_range, count)), axis=1)
    return np.concatenate((corners, corners + rng.uniform(*sides, (count, 2))), axis=1)


def read_as_sizes(boxes):
    """What x0, y0, x1, y1 become when they are read as x, y, width, height."""
    return np.concatenate((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), axis=1)


EVERYWHERE = spread((0, 560), (0, 400))
CENTRED = np.tile([-10.0, -8, 670, 500], (40, 1))  # up to 5 % outside, as from an unclipped detector
WRITTEN_SO = {
    "everywhere": EVERYWHERE,
    "to the right only": spread((330, 560), (0, 40)),
    "below only": spread((0, 60), (300, 400)),
    "ten": EVERYWHERE[:10],
    "most of them in the middle": np.concatenate(
        (spread((90, 250), (60, 180)), spread((330, 560), (0, 40), 10))
    ),
    "one without an area": np.concatenate((EVERYWHERE, [[50.0, 40, 50, 40]])),
    "one of a hundred otherwise": spread((0, 560), (0, 400), 101),
}


@pytest.mark.parametrize("name", WRITTEN_SO)
def test_corners_that_were_written_as_sizes(name):
    boxes = read_as_sizes(WRITTEN_SO[name])
    if name == "one of a hundred otherwise":
        boxes[0] = (500, 400, 520, 410)
    assert written_as(boxes, np.tile([HEIGHT, WIDTH], (len(boxes), 1))) == "corners for sizes"


@pytest.mark.parametrize(
    "boxes",
    [
        EVERYWHERE,
        CENTRED,
        read_as_sizes(EVERYWHERE)[:9],  # too few to tell
        np.concatenate((read_as_sizes(EVERYWHERE), EVERYWHERE)),
        # As wide as x1 would be, but not as high as y1 would be: a panorama's objects, cut by its right edge.
        np.tile([300.0, 400, 760, 440], (40, 1)),
        np.tile([10.0, 10, 300, 200], (40, 1)),
    ],
    ids=["small", "large, over the edge", "few", "half of them", "flat", "upper left"],
)
def test_boxes_that_are_no_corners(boxes):
    assert written_as(boxes, np.tile([HEIGHT, WIDTH], (len(boxes), 1))) != "corners for sizes"


IN_PARTS = EVERYWHERE / [WIDTH, HEIGHT, WIDTH, HEIGHT]
SIDES = IN_PARTS[:, 2:] - IN_PARTS[:, :2]


@pytest.mark.parametrize(
    ("boxes", "parts"),
    [
        (IN_PARTS, True),
        (read_as_sizes(np.concatenate((IN_PARTS[:, :2] + SIDES / 2, SIDES), axis=1)), True),  # YOLO's centres
        (read_as_sizes(IN_PARTS), True),  # corners
        (np.concatenate((IN_PARTS, EVERYWHERE[:2])), True),
        (np.concatenate((IN_PARTS, EVERYWHERE[:20])), False),
        (IN_PARTS[:10], True),
        (IN_PARTS[:9], False),  # these may be dots
        (EVERYWHERE, False),
        (np.tile([0.0, 0, WIDTH, HEIGHT], (40, 1)), False),  # whole images
        (np.tile([0.0, 0, 1, 1], (40, 1)), True),  # the same as fractions
        (spread((100, 500), (100, 400), sides=(0.5, 1.0)), False),  # dots
    ],
)
def test_parts_of_the_image(boxes, parts):
    assert parts_for_pixels(boxes) == parts


def shifted(boxes, part):
    """Boxes moved by a fraction of their own sides."""
    return boxes + np.tile((boxes[:, 2:] - boxes[:, :2]) * part, 2)


AT_THE_EDGES = (
    spread((590, 600), (0, 400), 6, (30, 40)),
    spread((0, 8), (0, 400), 6),
    spread((9, 500), (415, 420), 6),
)
EDGES = np.concatenate((EVERYWHERE, *AT_THE_EDGES))
UPRIGHT = spread((0, 420), (500, 580), 20)  # of images of 480 x 640 px


@pytest.mark.parametrize(
    ("boxes", "size", "written"),
    [
        (shifted(EDGES, 0.5), (HEIGHT, WIDTH), "centres"),
        (shifted(EDGES, -0.5), (HEIGHT, WIDTH), "corners"),
        (UPRIGHT[:, [1, 0, 3, 2]], (WIDTH, HEIGHT), "y before x"),
        # As YOLO reads them: half of the second corner to either side of the first.
        (
            np.concatenate((EDGES[:, :2] - EDGES[:, 2:] / 2, EDGES[:, :2] + EDGES[:, 2:] / 2), axis=1),
            (HEIGHT, WIDTH),
            "corners for centre and size",
        ),
        (EDGES, (HEIGHT, WIDTH), None),
        (CENTRED, (HEIGHT, WIDTH), None),
        (shifted(EDGES, 0.5)[-9:], (HEIGHT, WIDTH), None),  # too few to tell
        # Objects cut off by the right edge but annotated whole, besides others at the left edge.
        (np.concatenate((EDGES, shifted(EDGES[40:46], 0.5))), (HEIGHT, WIDTH), None),
        (np.concatenate((shifted(EDGES, 0.5), EDGES[46:52])), (HEIGHT, WIDTH), None),
    ],
    ids=[
        "centres",
        "corners",
        "y first",
        "two corners",
        "as read",
        "all over the edge",
        "few",
        "cut",
        "half of them",
    ],
)
def test_boxes_that_would_all_lie_inside_otherwise(boxes, size, written):
    centred = written in ("corners", "corners for centre and size")
    sizes = np.tile(size, (len(boxes), 1))
    assert written_as(boxes, sizes, centred) == written
    if centred or written == "centres":
        assert written_as(boxes, sizes, not centred) is None


def test_two_ways_to_lie_inside_are_no_hint() -> None:
    """Boxes over the right edge that lie inside if read as centres, and also if x and y are swapped."""
    boxes = np.tile([[62.0, 20, 121, 60]], (12, 1))
    assert written_as(boxes, np.tile([[200, 100]], (12, 1))) is None
