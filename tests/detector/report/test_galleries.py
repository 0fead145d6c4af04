"""The pictures of the report: what is drawn where, on black images, and what the captions say."""

import base64
import io
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from detector.report.galleries import Galleries, _nearest, galleries
from tests.detector.report.test_facts import result_of, shown_at

SIDE = 480  # the size of the report's pictures: their pixels are those of the image
LANDMARK = (340, 112)  # x, y of a white square


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Galleries:
    """A cat found, one found below the threshold, and a cat where there is none."""
    file = tmp_path_factory.mktemp("galleries") / "a.png"
    pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
    x, y = LANDMARK
    pixels[y : y + 8, x : x + 8] = 255
    Image.fromarray(pixels).save(file)
    found, unsure, wrong = (100, 300, 60, 40), (300, 100, 20, 20), (200, 400, 30, 30)
    result = result_of([(0, 0, found), (0, 0, unsure)], [(0, 0, b) for b in (found, unsure, wrong)],
                       [0.9, 0.3, 0.95])  # fmt: skip
    result = replace(result, material=replace(result.material, files=(file, file, file)))
    return galleries(result, shown_at(result, [0.8, 0.8]))


def lit(jpeg: str, x: int, y: int) -> bool:
    """Whether anything is drawn there."""
    content = base64.b64decode(jpeg.removeprefix("data:image/jpeg;base64,"))
    pixels: NDArray[np.uint8] = np.asarray(Image.open(io.BytesIO(content)))
    assert pixels.shape == (SIDE, SIDE, 3)
    return bool(pixels[y, x].max() > 100)


def test_gt_stands_on_the_left_and_detections_on_the_right(drawn: Galleries) -> None:
    """Checked at the lower right corners, where there is no label."""
    (whole,) = drawn.worst
    assert (whole.title, whole.text) == ("F1 0.50: 1 right, 1 wrong, 1 not found", "a.jpg")
    corners = {"found": (160, 340), "unsure": (320, 120), "wrong": (230, 430)}
    left, right = ({name for name, at in corners.items() if lit(jpeg, *at)} for jpeg in whole.jpegs)
    assert left == {"found", "unsure"}
    assert right == {"found", "wrong"}


def test_boxes_of_a_crop_lie_where_they_lie_in_the_image(drawn: Galleries) -> None:
    """The crop is 96 px of the image wide, with the box in its middle; each px becomes 5 of the picture."""
    (missed,) = drawn.missed
    assert missed.title == "cat, 20 x 20 px: found with score 0.30, below the threshold 0.80"
    (jpeg,) = missed.jpegs
    assert lit(jpeg, 290, 290)  # the lower right corner
    x, y = (5 * (at + 4 - origin) for at, origin in zip(LANDMARK, (310 - 48, 110 - 48), strict=True))
    assert lit(jpeg, x, y)
    assert not lit(jpeg, 240, 240)
    (false,) = drawn.false
    assert false.title == "cat 0.95: no gt box there"
    assert lit(false.jpegs[0], 240 + 75, 240 + 75)


def test_what_is_near_a_missed_object_is_said() -> None:
    """Near the missed cats: a dog at IoU 1/3; a cat that fits another one, six pixels away; nothing."""
    gt = [
        (0, 0, (0, 0, 40, 40)),
        (0, 0, (200, 200, 40, 40)),
        (0, 0, (200, 206, 40, 40)),
        (0, 0, (400, 400, 9, 9)),
    ]
    result = result_of(gt, [(0, 1, (0, 20, 40, 40)), (0, 0, (200, 206, 40, 40))], [0.9, 0.95])
    assert result.matching.missed.tolist() == [True, True, False, True]
    assert _nearest(result, 0) == "nearest is dog at IoU 0.33, score 0.90"
    assert _nearest(result, 1) == "nearest is cat at IoU 0.74, score 0.95, which is matched to another object"
    assert _nearest(result, 3) == "nothing was detected near it at any score"
