"""Our own transforms in albumentations' interface: `ResizeWithin`, `ZoomOut` and `IoUCrop`.

The last two follow SSD (Liu et al., ECCV 2016).
"""

from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import Any

import albumentations as A
import cv2
import numpy as np
from numpy.typing import NDArray

# The loading processes already run in parallel; OpenCV's threads would compete with them.
cv2.setNumThreads(0)

_LARGEST_RATIO = 100  # beyond this nothing of the picture is visible

MEAN_COLOUR = (124, 116, 104)  # ImageNet mean: 0 after normalisation


class ResizeWithin(A.DualTransform):
    """Scale, keeping the aspect ratio, so that the short side is `short` px but the long side at most `long`.

    Without `short` the long side becomes `long` px. If `long` is a pair [least, most], it is drawn uniformly
    for every image. Shrinking averages areas.
    """

    def __init__(self, long: int | Sequence[int], short: int | None = None) -> None:
        super().__init__(p=1)
        pair: list[Any] = list(long) if isinstance(long, list | tuple) else [long, long]
        if len(pair) != 2:
            raise ValueError(f"long must be a number or a pair [least, most], got {long}")
        sides = pair if short is None else [*pair, short]
        if not all(type(side) is int and side > 0 for side in sides) or pair[0] > pair[1]:  # True is an int
            raise ValueError(
                f"sides must be whole numbers of pixels, in ascending order, got long={long}, short={short}"
            )
        self.long = (pair[0], pair[1])
        self.short = short

    def get_params(self) -> dict[str, Any]:
        return {"long": self.py_random.randint(*self.long)}

    def apply(self, img: NDArray[np.uint8], long: int, **params: Any) -> NDArray[np.uint8]:
        height, width = img.shape[:2]
        return resize(img, *self.size(height, width, long))

    def size(self, height: int, width: int, long: int) -> tuple[int, int]:
        """Resulting height and width of an image if its long side may be `long` px."""
        scale = long / max(height, width)
        if self.short is not None:
            scale = min(scale, self.short / min(height, width))
        return max(1, round(height * scale)), max(1, round(width * scale))

    def apply_to_bboxes(self, bboxes: NDArray[np.float32], **params: Any) -> NDArray[np.float32]:
        return bboxes  # relative coordinates


class ZoomOut(A.DualTransform):
    """Place the image at random on a mean-coloured canvas 1 to `ratio` times as large, and shrink that.

    SSD's "expand" augmentation, which makes objects small. The result has the size of the image, which is
    shrunk directly, so that no canvas with 16 times the pixels is allocated.
    """

    def __init__(self, ratio: float = 4.0, p: float = 0.5) -> None:
        super().__init__(p=p)
        if not (_is_number(ratio) and 1 <= ratio <= _LARGEST_RATIO):
            raise ValueError(f"ratio must be a number from 1 to {_LARGEST_RATIO}, got {ratio!r}")
        self.ratio = ratio

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        height, width = params["shape"][:2]
        scale = 1 / self.py_random.uniform(1, self.ratio)
        left, top = (self.py_random.uniform(0, 1 - scale) for _ in range(2))
        # Whole pixels, so that boxes and pixels move alike.
        h, w = max(1, round(height * scale)), max(1, round(width * scale))
        y, x = min(round(top * height), height - h), min(round(left * width), width - w)
        return {"place": (x, y, x + w, y + h)}

    def apply(self, img: NDArray[np.uint8], place: tuple[int, ...], **params: Any) -> NDArray[np.uint8]:
        x0, y0, x1, y1 = place
        canvas = np.empty_like(img)
        canvas[0] = MEAN_COLOUR
        canvas[1:] = canvas[0]  # whole rows: pixel by pixel is a hundred times slower
        canvas[y0:y1, x0:x1] = resize(img, y1 - y0, x1 - x0)
        return canvas

    def apply_to_bboxes(
        self, bboxes: NDArray[np.float32], place: tuple[int, ...], **params: Any
    ) -> NDArray[np.float32]:
        height, width = params["shape"][:2]
        x0, y0, x1, y1 = place
        moved = bboxes.copy()
        moved[:, [0, 2]] = (bboxes[:, [0, 2]] * (x1 - x0) + x0) / width
        moved[:, [1, 3]] = (bboxes[:, [1, 3]] * (y1 - y0) + y0) / height
        return moved


class IoUCrop(A.DualTransform):
    """SSD's random crop: its IoU with some object is at least a value drawn from `min_ious`.

    A crop has `min_scale` to 1 of each side, an aspect ratio between 1:2 and 2:1 or up to the image's own,
    and contains the centre of at least one object. One of the draws leaves the image as it is.
    """

    def __init__(
        self,
        min_ious: Sequence[float] = (0.0, 0.1, 0.3, 0.7, 0.9),
        min_scale: float = 0.3,
        trials: int = 50,
        p: float = 1.0,
    ) -> None:
        super().__init__(p=p)
        given: list[Any] = (
            [*min_ious] if isinstance(min_ious, Iterable) and not isinstance(min_ious, str) else []
        )
        if not given or not all(_is_number(one) and 0 <= one <= 1 for one in given):
            raise ValueError(f"min_ious must be a list of IoUs from 0 to 1, got {min_ious!r}")
        if not (_is_number(min_scale) and 0 < min_scale <= 1):
            raise ValueError(f"min_scale must be a number above 0 and at most 1, got {min_scale!r}")
        if not isinstance(trials, Integral) or isinstance(trials, bool) or trials < 1:
            raise ValueError(f"trials must be a whole number of at least 1, got {trials!r}")
        self.min_ious: tuple[float, ...] = tuple(given)
        self.min_scale: float = min_scale
        self.trials: int = trials

    @property
    def targets_as_params(self) -> list[str]:
        return ["bboxes"]

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        whole = {"crop": (0.0, 0.0, 1.0, 1.0)}
        choice = self.py_random.randrange(len(self.min_ious) + 1)
        if choice == len(self.min_ious):
            return whole
        boxes = np.asarray(data["bboxes"], dtype=np.float64)  # [K, 4 + rows], relative
        boxes = boxes.reshape(len(boxes), -1) if len(boxes) else np.zeros((0, 4))
        ignored = (boxes[:, 4:] < 0).any(axis=1)  # ignored regions need not be kept; see data/transforms.py
        boxes = boxes[~ignored, :4]
        height, width = params["shape"][:2]
        # SSD's range, extended to the ratio of a long image; otherwise hardly any crop of it would be
        # accepted.
        least, most = min(0.5, height / width), max(2.0, height / width)
        centre = (boxes[:, :2] + boxes[:, 2:]) / 2
        for _ in range(self.trials):
            w, h = (self.py_random.uniform(self.min_scale, 1) for _ in range(2))
            if not least <= (h * height) / (w * width) <= most:
                continue
            x, y = self.py_random.uniform(0, 1 - w), self.py_random.uniform(0, 1 - h)
            crop = np.array([x, y, x + w, y + h])
            if len(boxes) == 0:
                return {"crop": tuple(crop)}
            kept = ((centre > crop[:2]) & (centre < crop[2:])).all(axis=1)
            if kept.any() and _iou(crop, boxes).max() >= self.min_ious[choice]:
                return {"crop": tuple(crop)}
        return whole

    def apply(self, img: NDArray[np.uint8], crop: tuple[float, ...], **params: Any) -> NDArray[np.uint8]:
        x0, y0, x1, y1 = _pixels(crop, img.shape)
        return np.ascontiguousarray(img[y0:y1, x0:x1])

    def apply_to_bboxes(
        self, bboxes: NDArray[np.float32], crop: tuple[float, ...], **params: Any
    ) -> NDArray[np.float32]:
        height, width = params["shape"][:2]
        x0, y0, x1, y1 = _pixels(crop, (height, width))
        moved = bboxes.copy()
        moved[:, [0, 2]] = (bboxes[:, [0, 2]] * width - x0) / (x1 - x0)
        moved[:, [1, 3]] = (bboxes[:, [1, 3]] * height - y0) / (y1 - y0)
        return moved


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)  # YAML reads 1e1 as a string


def resize(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Resize to height x width px, averaging areas when shrinking (no aliasing)."""
    if (height, width) == image.shape[:2]:
        return image
    shrinks = height < image.shape[0] or width < image.shape[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (width, height), interpolation=method), dtype=np.uint8)


def scaled(
    image: NDArray[np.uint8], boxes: NDArray[np.float32], scale: float
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Scale an image [H, W, 3] and its boxes [M, 4] xyxy."""
    height, width = image.shape[:2]
    done = resize(image, max(1, round(height * scale)), max(1, round(width * scale)))
    factor = np.array([done.shape[1] / width, done.shape[0] / height], dtype=np.float32)
    return done, boxes * np.tile(factor, 2)


def _pixels(crop: tuple[float, ...], shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    height, width = shape[:2]
    x0, y0 = round(crop[0] * width), round(crop[1] * height)
    return x0, y0, max(x0 + 1, round(crop[2] * width)), max(y0 + 1, round(crop[3] * height))


def _iou(crop: NDArray[np.float64], boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    side = np.minimum(crop[2:], boxes[:, 2:]) - np.maximum(crop[:2], boxes[:, :2])
    intersection = side.clip(min=0).prod(axis=1)
    union = (crop[2:] - crop[:2]).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) - intersection
    return intersection / union
