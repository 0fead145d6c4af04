"""The warning about images of other sizes than those that a checkpoint was trained on."""

import logging
from typing import Any

import numpy as np
import pytest

from detector.config import DataConfig
from detector.evaluation.image_sizes import warn_of_scale


def resizing(transforms: list[Any] | None, image_size: int | None = None) -> DataConfig:
    return DataConfig.model_validate(
        {"format": "voc", "root": "set", "image_size": image_size, "transforms": {"eval": transforms}}
    )


@pytest.mark.parametrize(
    ("trained", "now", "factor"),
    [
        ([{"ResizeWithin": {"long": 320}}], [{"ResizeWithin": {"long": 320}}], None),
        ([{"ResizeWithin": {"long": 320}}], [{"ResizeWithin": {"long": 400}}], None),
        ([{"ResizeWithin": {"long": 320}}], [{"ResizeWithin": {"long": 640}}], "2 times"),
        ([{"ResizeWithin": {"long": 320}}], [], "4 times"),  # half of the images are of 1280 x 960
        ([], [{"ResizeWithin": {"long": 320}}], "0.25 times"),
    ],
)
def test_objects_of_a_size_that_was_not_learnt(
    trained: list[Any], now: list[Any], factor: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    sizes = np.array([[960, 1280], [960, 1280], [1280, 960], [200, 100], [4000, 3000]], dtype=np.int64)
    with caplog.at_level(logging.WARNING):
        warn_of_scale(resizing(trained), resizing(now), sizes)
    if factor is None:
        assert caplog.text == ""
    else:
        assert f"images are {factor} as large" in caplog.text
