"""Boxes are judged by their size after evaluation's resizing, however many sizes the images have."""

import numpy as np
import pytest

from data.check.annotations import annotation_spots
from data.sample import DetectionSet
from data.transforms import Pipeline

IMAGES = 500


@pytest.mark.parametrize(("side", "tiny"), [(2.05, 0), (1.95, IMAGES)])
def test_boxes_of_images_of_many_sizes_are_measured_exactly(side: float, tiny: int) -> None:
    """After resizing, all boxes have this side in pixels; under 2 is tiny."""
    sizes = np.random.default_rng(0).integers(200, 1600, (IMAGES, 2))
    scale = 640 / sizes.max(1, keepdims=True)
    scale = (sizes * scale).round() / sizes  # sides are whole pixels
    boxes = np.concatenate([np.full((IMAGES, 2), 10.0), 10 + side / scale[:, ::-1]], axis=1)
    labels = np.zeros(IMAGES, np.int64)
    records = DetectionSet(
        files=np.array([f"{k}.png" for k in range(IMAGES)]),
        image_ids=np.arange(IMAGES),
        sizes=sizes,
        offsets=np.arange(IMAGES + 1),
        boxes=boxes,
        labels=labels,
        ignore=labels.astype(bool),
        areas=np.ones(IMAGES),
        annotation_ids=np.arange(IMAGES),
        classes=("cat",),
        category_ids=(1,),
    )
    pipeline = Pipeline([{"ResizeWithin": {"long": 640}}], 0.0, "data.transforms.eval", True)
    spots = list(annotation_spots({"train": records}, "annotation", pipeline, paths=False, centred=False))
    assert sum(spot.code == "box-tiny" for spot in spots) == tiny
