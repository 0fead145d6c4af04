"""Two sets of detections: the same, the same but for rounding, or different."""

import numpy as np
import pytest

from detector.config import EvalConfig
from detector.export.agreement import Agreement, Found, compare

A, B, C = (0.0, 0.0, 10.0, 10.0), (50.0, 50.0, 70.0, 80.0), (100.0, 0.0, 130.0, 30.0)
HALF = (0.0, 0.0, 10.0, 20.0)  # IoU 0.5 with A


def found(*rows: tuple[tuple[float, ...], float, int]) -> Found:
    return Found(
        np.array([row[0] for row in rows]).reshape(-1, 4),
        np.array([row[1] for row in rows]),
        np.array([row[2] for row in rows], dtype=np.int64),
    )


def verdict(one: Found, other: Found, limit: int = 100) -> tuple[int, int]:
    """Numbers of detections in only one of the two: due to rounding, and unexplained; the same both ways."""
    settings = EvalConfig(nms_threshold=0.5, detections_per_img=limit)
    there, back = (compare(*pair, 320, settings) for pair in ((one, other), (other, one)))
    assert (there.by_rounding, there.unexplained) == (back.by_rounding, back.unexplained)
    return there.by_rounding, there.unexplained


def test_the_same_in_another_order_agrees_and_is_measured() -> None:
    one = found((A, 0.9, 0), (B, 0.5, 1))
    other = found(((50.0005, 50.0, 70.0, 80.0), 0.500001, 1), (A, 0.9, 0))
    agreement = compare(one, other, 320, EvalConfig())
    assert (agreement.detections, agreement.by_rounding, agreement.unexplained) == (2, 0, 0)
    assert agreement.box_px == pytest.approx(5e-4)
    assert agreement.score == pytest.approx(1e-6)
    assert verdict(found(), found()) == (0, 0)


@pytest.mark.parametrize(
    "other",
    [
        found(((0.002, 0.0, 10.0, 10.0), 0.9, 0), (B, 0.5, 1)),  # another box
        found((A, 0.90002, 0), (B, 0.5, 1)),  # another score
        found((A, 0.9, 1), (B, 0.5, 1)),  # another label
    ],
)
def test_another_detection_is_a_difference(other: Found) -> None:
    assert verdict(found((A, 0.9, 0), (B, 0.5, 1)), other) == (0, 2)


def test_what_a_limit_cuts_off_is_the_lowest_of_its_class() -> None:
    """The limit applies to scores before calibration: two that tie there may differ widely after it."""
    common = [((20.0 * i, 0.0, 20.0 * i + 9, 9.0), 0.9 - i / 20, 0) for i in range(9)]
    one, other = found(*common, (B, 0.7, 1)), found(*common, (C, 0.8, 2))
    assert verdict(one, other, limit=10) == (2, 0)
    assert verdict(one, other, limit=11) == (0, 2)  # neither was cut
    # A limit does not cut off the best of a class while it keeps others of it.
    assert verdict(found(*common, (B, 0.7, 1)), found(*common[1:], (B, 0.7, 1), (C, 0.8, 2)), limit=10) == (
        1,
        1,
    )


def test_rounding_may_move_a_large_box_and_a_steep_score_farther() -> None:
    large, moved = (0.0, 0.0, 300.0, 310.0), (0.002, 0.0, 300.0, 310.002)
    one, other = found((large, 0.9, 0)), found((moved, 0.90005, 0))
    assert compare(one, other, 320, EvalConfig()).unexplained == 2
    assert compare(one, other, 320, EvalConfig(), score=1e-4).unexplained == 0
    small = found(((0.002, 0.0, 30.0, 31.0), 0.9, 0))
    assert (
        compare(found(((0.0, 0.0, 30.0, 31.0), 0.9, 0)), small, 320, EvalConfig(), score=1e-4).unexplained
        == 2
    )


def test_one_too_many_is_a_difference() -> None:
    both = found((A, 0.9, 0), (A, 0.9, 0))
    assert verdict(found((A, 0.9, 0)), both) == (0, 1)
    assert verdict(found(), found((A, 0.9, 0))) == (0, 1)


def test_what_nms_decides_by_rounding_is_none() -> None:
    assert verdict(found((A, 0.9, 0), (HALF, 0.5, 0)), found((A, 0.9, 0))) == (1, 0)
    # This is not so between two classes, nor for the better of the two.
    assert verdict(found((A, 0.9, 0), (HALF, 0.5, 1)), found((A, 0.9, 0))) == (0, 1)
    assert verdict(found((A, 0.4, 0), (HALF, 0.5, 0)), found((A, 0.4, 0))) == (0, 1)


@pytest.mark.parametrize("height", [19.0, 21.0])
def test_nms_decides_nothing_by_rounding_far_from_its_threshold(height: float) -> None:
    """The IoU is 10/19 or 10/21."""
    other = (0.0, 0.0, 10.0, height)
    assert verdict(found((A, 0.9, 0), (other, 0.5, 0)), found((A, 0.9, 0))) == (0, 1)


def test_a_sliver_at_the_border_may_be_no_box() -> None:
    for width, expected in ((5e-4, (1, 0)), (5e-3, (0, 1))):
        sliver = (0.0, 0.0, width, 20.0)
        assert verdict(found((B, 0.9, 0), (sliver, 0.5, 0)), found((B, 0.9, 0))) == expected


def test_what_follows_from_it_is_none_either() -> None:
    """The box that only one of them keeps suppresses the next, which overlaps it but not the first."""
    lower = (0.0, 6.0, 10.0, 24.0)  # IoU 14 / 24 with HALF, 4 / 24 with A
    one, other = found((A, 0.9, 0), (HALF, 0.5, 0)), found((A, 0.9, 0), (lower, 0.4, 0))
    assert verdict(one, other) == (2, 0)


def test_what_the_limit_of_detections_decides_by_rounding_is_none() -> None:
    one, other = found((A, 0.9, 0), (B, 0.5, 1)), found((A, 0.9, 0), (C, 0.5, 1))
    assert verdict(one, other, limit=2) == (2, 0)
    assert verdict(one, other, limit=3) == (0, 2)


def test_a_sum_has_the_counts_of_both_and_the_largest_differences() -> None:
    one, other = Agreement(3, 1e-3, 2e-6, 1, 0), Agreement(4, 5e-4, 8e-6, 0, 2)
    assert one + other == other + one == Agreement(7, 1e-3, 8e-6, 1, 2)
