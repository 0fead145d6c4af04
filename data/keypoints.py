"""Detects YOLO lines that are read as polygons but appear to be boxes with keypoints."""

from collections.abc import Sequence

import numpy as np

_LEAST_LINES = 30
_BEYOND = 0.1  # part of its side by which a point may lie outside the box
_SAME = 0.002  # rounding error of box corners, in parts of the image
_ROUNDING = 0.01  # part of the image by which a box may exceed it


class KeypointsSuspected:
    """Examines the polygons of a split line by line, until keypoints are ruled out.

    A line of a pose set is: class, cx, cy, w, h, then for each point x, y or x, y, visibility (0, 1 or 2).
    All lines have the same number of points; visible points lie in the box, and the box in the image.
    """

    def __init__(self) -> None:
        self._lines = self._boxes = 0
        self._shapes: set[tuple[int, int]] | None = None  # (points, numbers each) that fit all lines

    def look(self, coordinates: Sequence[float]) -> None:
        """Examine the numbers of one line, without its class."""
        self._lines += 1
        self._boxes += _is_parallelogram(coordinates)
        if self._shapes is None:
            numbers = len(coordinates) - 4
            self._shapes = {(numbers // d, d) for d in (2, 3) if numbers > 0 and numbers % d == 0}
        self._shapes = {shape for shape in self._shapes if _fits(coordinates, *shape)}

    @property
    def ruled_out(self) -> bool:
        """Whether a line cannot be keypoints, or most lines are the four corners of boxes, rotated or not."""
        boxes = self._lines >= _LEAST_LINES and 2 * self._boxes > self._lines
        return boxes or (self._shapes is not None and not self._shapes)

    @property
    def shape(self) -> tuple[int, int] | None:
        """(points, numbers per point) that the lines appear to have; None if they are polygons or too few."""
        if self._lines < _LEAST_LINES or self.ruled_out or not self._shapes:
            return None
        return max(self._shapes, key=lambda shape: shape[1])


def _is_parallelogram(coordinates: Sequence[float]) -> bool:
    if len(coordinates) != 8:
        return False
    corners = np.array(coordinates).reshape(4, 2)
    return bool((abs(corners[0] + corners[2] - corners[1] - corners[3]) < _SAME).all())


def _fits(coordinates: Sequence[float], count: int, numbers: int) -> bool:
    if len(coordinates) != 4 + count * numbers:
        return False
    centre, sides = np.array(coordinates[:2]), np.array(coordinates[2:4])
    if (abs(centre - 0.5) + sides / 2 > 0.5 + _ROUNDING).any():
        return False
    points = np.array(coordinates[4:]).reshape(count, numbers)
    seen = points[:, :2].any(axis=1)
    if numbers == 3:
        if not np.isin(points[:, 2], (0, 1, 2)).all():
            return False
        seen &= points[:, 2] > 0
    return bool((abs(points[seen, :2] - centre) <= (0.5 + _BEYOND) * sides).all())
