"""Lines of a pose set are recognised by where their points lie; tests/data/test_yolo.py has whole sets."""

import pytest

from data.keypoints import KeypointsSuspected

BOX = (0.3, 0.4, 0.2, 0.1)  # cx, cy, w, h: x from 0.2 to 0.4, y from 0.35 to 0.45


def shape_of(*lines):
    suspected = KeypointsSuspected()
    for line in lines:
        suspected.look(line)
    assert suspected.ruled_out == (suspected.shape is None and len(lines) >= 30)
    return suspected.shape


@pytest.mark.parametrize(
    ("line", "shape"),
    [
        ((*BOX, 0.21, 0.36, 2, 0.39, 0.44, 1), (2, 3)),
        ((*BOX, 0.19, 0.36, 2, 0.41, 0.455, 1), (2, 3)),  # slightly outside the box
        ((*BOX, 0.21, 0.36, 2, 0.46, 0.44, 1), None),  # further outside
        ((*BOX, 0.21, 0.36, 2, 0.39, 0.47, 1), None),
        ((*BOX, 0.21, 0.36, 2, 0, 0, 0), (2, 3)),  # an unseen point
        ((*BOX, 0.21, 0.36, 2, 0.9, 0.9, 0), (2, 3)),  # unseen, wherever it lies
        ((*BOX, 0.21, 0.36, 2, 0.39, 0.44, 3), None),  # not a visibility
        ((*BOX, 0.21, 0.36, 2, 0.39, 0.44, 0.5), None),
        ((*BOX, 0.21, 0.36, 0.39, 0.44), (2, 2)),
        ((*BOX, 0.21, 0.36, 0, 0), (2, 2)),
        ((*BOX, 0, 0.36, 0.39, 0.44), None),  # only (0, 0) means unseen
        ((0.9, 0.4, 0.21, 0.1, 0.9, 0.4, 0.9, 0.4), (2, 2)),  # outside by a rounding error
        ((0.9, 0.4, 0.3, 0.1, 0.9, 0.4, 0.9, 0.4), None),
        ((0.05, 0.4, 0.2, 0.1, 0.05, 0.4, 0.05, 0.4), None),
        ((0.7, 0.35, 0.8, 0.35, 0.8, 0.45), None),  # a triangle
    ],
)
def test_a_line_that_comes_thirty_times(line, shape):
    assert shape_of(*[line] * 30) == shape
    assert shape is None or shape_of(*[line] * 29) is None


def test_all_lines_have_as_many_points():
    two, three = (*BOX, 0.21, 0.36, 0.39, 0.44), (*BOX, 0.21, 0.36, 0.39, 0.44, 0.3, 0.4)
    assert shape_of(*[two] * 30, three) is None


@pytest.mark.parametrize("turned", [0.0, 0.2])
def test_boxes_by_their_corners_are_no_poses_wherever_they_lie(turned):
    """In the middle of the image, four corners could be read as a box with two points in it."""
    lines = []
    for k in range(60):
        x, y, w, h = 0.36 + k / 1000, 0.48 - k / 900, 0.08 + k / 1000, 0.1
        lines.append(
            (x, y, x + w, y + turned * w, x + w - turned * h, y + turned * w + h, x - turned * h, y + h)
        )
    assert shape_of(*lines) is None
    poses = [(*line[:-2], 0.4, 0.45) for line in lines]  # the fourth corner moved
    assert shape_of(*poses) == shape_of(*poses, lines[0]) == (2, 2)  # one such line may be chance
