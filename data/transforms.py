"""Augmentation: the transforms of a configuration, run from a seed."""

import random
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import albumentations as A
import numpy as np
from albumentations.core.bbox_utils import BboxProcessor, filter_bboxes
from numpy.typing import NDArray

from data.mosaic import Mosaic, Picture
from data.own_transforms import IoUCrop, ResizeWithin, ZoomOut
from data.transform_list import make_transforms, mosaic_of
from errors import InputError

_WHOLE = 0.999
_LEAST_SIDE = 4  # minimum side in pixels after the resizing of evaluation
_ODD_SIZES = ((61, 97), (400, 100), (100, 400), (1200, 1600))  # height, width


class Pipeline:
    """An augmentation pipeline whose result depends only on its input and the seed.

    Args:
        transforms: names, or {name: {parameter: value}}, in the order of application.
        min_visibility: boxes with a smaller fraction of their area left after a crop are dropped, unless
            ignored.
        key: configuration key of the list, for messages.
        geometry: skip transforms that change only pixel values; faster where only boxes are needed.

    Attributes:
        has_no_side_up: whether an image and its transpose are equally likely results.

    Raises:
        InputError: a transform or parameter does not exist, or a value is invalid.
    """

    def __init__(
        self,
        transforms: Sequence[str | dict[str, dict[str, Any] | None]],
        min_visibility: float,
        key: str,
        geometry: bool = False,
    ) -> None:
        self._mosaic = mosaic_of(transforms, key)
        # For an uncropped box albumentations may compute slightly less than 1.
        min_visibility = self._min_visibility = min(min_visibility, _WHOLE)
        steps = make_transforms(transforms, key, after=1 if self._mosaic else 0)
        if geometry:
            steps = [step for step in steps if not isinstance(step, A.ImageOnlyTransform)]
        # Both filters are needed: without them albumentations raises on boxes that rounding has moved outside
        # the image or left without area.
        boxes = A.BboxParams(
            format="pascal_voc",
            label_fields=["row"],
            clip=True,
            filter_invalid_bboxes=True,
            min_visibility=min_visibility,
            min_width=0.5,
            min_height=0.5,
        )
        with warnings.catch_warnings():  # a pipeline without spatial transforms is fine
            warnings.filterwarnings("ignore", "Got processor for bboxes")
            self._compose = A.Compose(steps, bbox_params=boxes)
        processor = self._compose.processors["bboxes"]
        processor.filter = partial(_filter, processor)
        self._key = key
        # With D4, all eight rotations and reflections are equally likely, so another transposition changes
        # nothing, unless a later step treats height and width differently, such as a crop of 200 x 300.
        turned = [i for i, step in enumerate(steps) if isinstance(step, A.D4) and step.p == 1]
        self.has_no_side_up = bool(turned) and all(
            isinstance(step, _COMMUTE_WITH_TRANSPOSE) and getattr(step, "max_size_hw", None) is None
            for step in steps[turned[-1] :]
        )

    def others(self, seed: int, epoch: int) -> int:
        """Number of extra images that the sample with this seed needs."""
        return Mosaic.OTHERS if self._mosaic is not None and self._mosaic.drawn(seed, epoch) else 0

    def __call__(
        self,
        image: NDArray[np.uint8],
        boxes: NDArray[np.float32],
        seed: int,
        ignored: NDArray[np.bool_] | None = None,
        others: Sequence[Picture] = (),
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.int64]]:
        """image [H, W, 3], boxes [M, 4] xyxy pixels -> image, remaining boxes, and their rows.

        Args:
            ignored: [M], boxes in which nothing counts as background.
            others: as many as `others()` returns. Row numbers continue through their boxes.
        """
        rows_of_picture: NDArray[np.int64] | None = None
        if self._mosaic is not None and others:
            mine = Picture(image, boxes, np.zeros(len(boxes), np.bool_) if ignored is None else ignored)
            (image, boxes, ignored), rows_of_picture = self._mosaic(
                [mine, *others], self._min_visibility, seed
            )
        # Without seeding, albumentations repeats its draws in every worker and epoch. Its own seeding gives
        # every transform the same seed, so that draws coincide: an image flipped one way is flipped both
        # ways. Here all transforms share one random stream.
        self._compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        rows = np.arange(len(boxes))
        if ignored is not None:
            # Negative rows mark ignored boxes for `_filter`; a second label field would be slower.
            rows[ignored] = ~rows[ignored]
        try:
            done = self._compose(image=image, bboxes=boxes, row=rows)
        except Exception as error:  # third-party transforms may raise anything
            height, width = image.shape[:2]
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise InputError(
                f"{self._key}: the transforms fail on an image of {width} x {height} px ({reason})"
            ) from None
        if done["image"].dtype != np.uint8 or done["image"].shape[2:] != (3,):
            got = f"{done['image'].dtype} {list(done['image'].shape)}"
            raise InputError(
                f"{self._key}: the transforms return {got}, but must return uint8 [H, W, 3]; leave out "
                "those that return floats or other channels: the model normalises images itself"
            )
        # Without boxes albumentations returns float64 of shape (0,).
        left = np.asarray(done["bboxes"], dtype=np.float32).reshape(-1, 4)
        rows = np.asarray(done["row"], dtype=np.int64)
        rows = np.maximum(rows, ~rows)
        return done["image"], left, rows if rows_of_picture is None else rows_of_picture[rows]

    def sizes_of(self, sizes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Resulting height and width, [I, 2], of images of these sizes; for random resizing, one example."""
        distinct, which = np.unique(sizes, axis=0, return_inverse=True)
        made = [self._size_of(height, width) for height, width in distinct.tolist()]
        return np.array(made, dtype=np.int64).reshape(-1, 2)[which.reshape(-1)]

    def check_that_it_resizes_only(self) -> None:
        """Check that boxes can be scaled back using the sizes alone, and that nothing is random.

        Raises:
            InputError: they cannot, or something is random.
        """
        if self._mosaic is not None:
            raise InputError(f"{self._key}: Mosaic is for training only; leave it out here")
        self._check_that_it_resizes(96, 64, seeds=32)  # many seeds, so that a random move occurs
        for height, width in _ODD_SIZES:  # padding to a multiple, or only of small images
            self._check_that_it_resizes(height, width, seeds=2)

    def _check_that_it_resizes(self, height: int, width: int, seeds: int) -> None:
        image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        parts = np.array([[0.1, 0.08, 0.6, 0.3], [0.3, 0.3, 0.9, 0.94]], dtype=np.float32)
        boxes = parts * np.array([width, height, width, height], dtype=np.float32)
        first: NDArray[np.uint8] | None = None
        for seed in range(seeds):
            done, moved, rows = self(image, boxes, seed)
            if min(done.shape[:2]) < _LEAST_SIDE:
                raise InputError(
                    f"{self._key}: an image of {width} x {height} px is shrunk to {done.shape[1]} x "
                    f"{done.shape[0]} px, too small to show anything; keep it larger"
                )
            if len(rows) == len(boxes):
                factor = np.array([done.shape[1] / width, done.shape[0] / height])
                if (np.abs(moved - boxes * np.tile(factor, 2)) < 0.5).all():
                    first = done if first is None else first
                    if not np.array_equal(done, first):
                        raise InputError(
                            f"{self._key}: these transforms are random; evaluation must see an image the "
                            "same way every time"
                        )
                    continue
            raise InputError(
                f"{self._key}: these transforms crop, pad or move the picture; only resizing makes sense "
                "here, since detections are scaled back to the image file"
            )

    def _size_of(self, height: int, width: int) -> tuple[int, int]:
        steps = self._compose.transforms
        if all(isinstance(step, ResizeWithin) and step.long[0] == step.long[1] for step in steps):
            for step in steps:  # without pixels: there may be many sizes
                height, width = step.size(height, width, step.long[0])
            return height, width
        image = np.zeros((height, width, 3), dtype=np.uint8)
        done = self(image, np.zeros((0, 4), dtype=np.float32), seed=0)[0]
        return done.shape[0], done.shape[1]


# Transforms that commute with transposing the image, in general.
_COMMUTE_WITH_TRANSPOSE = (
    A.ImageOnlyTransform,
    ResizeWithin,
    ZoomOut,
    IoUCrop,
    A.D4,
    A.HorizontalFlip,
    A.VerticalFlip,
    A.RandomRotate90,
    A.Transpose,
    A.LongestMaxSize,
    A.SmallestMaxSize,
    A.RandomScale,
    A.NoOp,
)


def _filter(processor: BboxProcessor, boxes: NDArray[Any], shape: Any) -> NDArray[Any]:
    """The boxes left after a step, [M, 5] with their rows; ignored ones whatever fraction of them is left.

    A crop within a crowd contains only a small part of the crowd's box, but still is not background.
    """
    ignored, limits = (boxes[:, 4:] < 0).any(axis=1), processor.params
    if not ignored.any():
        return BboxProcessor.filter(processor, boxes, shape)
    regular = BboxProcessor.filter(processor, boxes[~ignored], shape)
    regions = filter_bboxes(boxes[ignored], shape, min_width=limits.min_width, min_height=limits.min_height)
    kept = [these for these in (regular, regions) if len(these)]
    return np.concatenate(kept) if kept else regular
