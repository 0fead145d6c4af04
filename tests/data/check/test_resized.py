"""Sizes after evaluation's resizing: exact for few sizes, near for many."""

import numpy as np

from data.check.resized import resized


def to_320(size: tuple[int, int]) -> tuple[int, int]:
    """ResizeWithin: {long: 320}."""
    scale = 320 / max(size)
    return round(size[0] * scale), round(size[1] * scale)


def test_few_sizes_are_tried_each_and_once() -> None:
    tried: list[tuple[int, int]] = []
    sizes = np.array([[480, 640], [640, 480], [480, 640], [100, 50]])
    found = resized(sizes, lambda size: tried.append(size) or to_320(size))
    assert found.tolist() == [[240, 320], [320, 240], [240, 320], [320, 160]]
    assert len(tried) == 3


def test_of_many_sizes_some_are_tried_and_the_rest_is_near() -> None:
    tried: list[tuple[int, int]] = []
    sizes = np.random.default_rng(0).integers(200, 700, (5000, 2))
    found = resized(sizes, lambda size: tried.append(size) or to_320(size))
    assert len(tried) <= 64
    wanted = np.array([to_320((h, w)) for h, w in sizes.tolist()])
    assert np.quantile(np.abs(found / wanted - 1), 0.95) < 0.15


def test_no_images_have_no_sizes() -> None:
    assert resized(np.zeros((0, 2), dtype=np.int64), to_320).shape == (0, 2)
