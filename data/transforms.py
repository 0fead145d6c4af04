"""albumentations pipelines from the configuration; the only module that imports albumentations.

Besides albumentations' own transforms the YAML may name three of this module: `ResizeWithin`,
`ZoomOut` and `IoUCrop` (the last two after SSD, Liu et al., ECCV 2016).
"""

import difflib
import inspect
import os
import warnings
from collections.abc import Sequence
from functools import cache, partial
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask the network at import

import albumentations as A
import cv2
import numpy as np
from albumentations.core.bbox_utils import BboxProcessor, filter_bboxes
from numpy.typing import NDArray

from errors import InputError

# The loader's processes are the parallelism; OpenCV's own threads would fight with them.
cv2.setNumThreads(0)


class ResizeWithin(A.DualTransform):
    """Scale, keeping the ratio, so that the short side is `short` px but the long one at most `long`.

    Without `short` the long side becomes `long` px. With `long` a pair of numbers it is drawn anew,
    uniformly, for every image. Areas are averaged when shrinking.
    """

    def __init__(self, long: int | Sequence[int], short: int | None = None) -> None:
        super().__init__(p=1)
        least, most = (long, long) if isinstance(long, int) else long
        if not (isinstance(least, int) and isinstance(most, int) and 0 < least <= most) or (
            short is not None and short <= 0
        ):
            raise ValueError(
                f"sides must be whole numbers of pixels, in order, got long={long}, short={short}"
            )
        self.long = (least, most)
        self.short = short

    def get_params(self) -> dict[str, Any]:
        return {"long": self.py_random.randint(*self.long)}

    def apply(self, img: NDArray[np.uint8], long: int, **params: Any) -> NDArray[np.uint8]:
        height, width = img.shape[:2]
        return resize(img, *self.size(height, width, long))

    def size(self, height: int, width: int, long: int) -> tuple[int, int]:
        """What an image becomes, height and width, where its long side may have `long` px."""
        scale = long / max(height, width)
        if self.short is not None:
            scale = min(scale, self.short / min(height, width))
        return max(1, round(height * scale)), max(1, round(width * scale))

    def apply_to_bboxes(self, bboxes: NDArray[np.float32], **params: Any) -> NDArray[np.float32]:
        return bboxes  # relative coordinates


class ZoomOut(A.DualTransform):
    """Put the image somewhere on a mean-coloured canvas 1 to `ratio` times its size, then shrink it.

    SSD's "expand" augmentation: makes small objects. The result has the size of the input, so that
    no canvas of 16 times the pixels is made.
    """

    def __init__(self, ratio: float = 4.0, p: float = 0.5) -> None:
        super().__init__(p=p)
        if not ratio >= 1:
            raise ValueError(f"ratio must be at least 1, got {ratio}")
        self.ratio = ratio

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        height, width = params["shape"][:2]
        scale = 1 / self.py_random.uniform(1, self.ratio)
        left, top = (self.py_random.uniform(0, 1 - scale) for _ in range(2))
        # Whole pixels: the boxes have to go where the picture goes.
        h, w = max(1, round(height * scale)), max(1, round(width * scale))
        y, x = min(round(top * height), height - h), min(round(left * width), width - w)
        return {"place": (x, y, x + w, y + h)}

    def apply(self, img: NDArray[np.uint8], place: tuple[int, ...], **params: Any) -> NDArray[np.uint8]:
        x0, y0, x1, y1 = place
        canvas = np.empty_like(img)
        canvas[0] = (124, 116, 104)  # ImageNet's mean: 0 after normalisation
        canvas[1:] = canvas[0]  # whole rows: pixel by pixel takes a hundred times as long
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
    """SSD's random crop: its overlap with some object is at least one of `min_ious`, drawn at random.

    A crop has `min_scale` to 1 of each side, a ratio between 1:2 and 2:1, and the centre of at least
    one object. One of the draws is "leave the image as it is".
    """

    def __init__(
        self,
        min_ious: Sequence[float] = (0.0, 0.1, 0.3, 0.7, 0.9),
        min_scale: float = 0.3,
        trials: int = 50,
        p: float = 1.0,
    ) -> None:
        super().__init__(p=p)
        if not 0 < min_scale <= 1:
            raise ValueError(f"min_scale must be above 0 and at most 1, got {min_scale}")
        self.min_ious = tuple(min_ious)
        self.min_scale = min_scale
        self.trials = trials

    @property
    def targets_as_params(self) -> list[str]:
        return ["bboxes"]

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        whole = {"crop": (0.0, 0.0, 1.0, 1.0)}
        choice = self.py_random.randrange(len(self.min_ious) + 1)
        if choice == len(self.min_ious):
            return whole
        boxes = np.asarray(data["bboxes"], dtype=np.float64)  # [K, 4 + labels], relative
        boxes = boxes.reshape(len(boxes), -1)[:, :4] if len(boxes) else np.zeros((0, 4))
        height, width = params["shape"][:2]
        centre = (boxes[:, :2] + boxes[:, 2:]) / 2
        for _ in range(self.trials):
            w, h = (self.py_random.uniform(self.min_scale, 1) for _ in range(2))
            if not 0.5 <= (h * height) / (w * width) <= 2:
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


_LEAST_SIDE = 4  # pixels of an image, resized for evaluation
_OWN = {"ResizeWithin": ResizeWithin, "ZoomOut": ZoomOut, "IoUCrop": IoUCrop}


class Pipeline:
    """An augmentation pipeline whose result depends on its seed alone.

    Args:
        transforms: names, or {name: {parameter: value}}, in the order of application.
        min_visibility: boxes with a smaller part of their area left by a crop are dropped, unless they are
            ignored.
        key: where the list stands in the configuration, for errors.
        geometry: leave out what changes pixels alone: only the boxes are wanted, and these in less time.

    Attributes:
        has_no_side_up: whether an image is as likely to come out as its mirror image at the diagonal.

    Raises:
        InputError: a transform or a parameter does not exist, or a value does not fit.
    """

    def __init__(
        self,
        transforms: Sequence[str | dict[str, dict[str, Any] | None]],
        min_visibility: float,
        key: str,
        geometry: bool = False,
    ) -> None:
        steps = _made(transforms, key)
        if geometry:
            steps = [step for step in steps if not isinstance(step, A.ImageOnlyTransform)]
        # Both filters are needed: without them albumentations raises on boxes that rounding put
        # outside the image or left without area.
        boxes = A.BboxParams(
            format="pascal_voc",
            label_fields=["row"],
            clip=True,
            filter_invalid_bboxes=True,
            min_visibility=min_visibility,
            min_width=0.5,
            min_height=0.5,
        )
        with warnings.catch_warnings():  # a pipeline that moves no boxes is nothing to warn of
            warnings.filterwarnings("ignore", "Got processor for bboxes")
            self._compose = A.Compose(steps, bbox_params=boxes)
        processor = self._compose.processors["bboxes"]
        processor.filter = partial(_filter, processor)
        self._key = key
        # All eight ways to turn and mirror an image are equally likely: one more mirroring changes nothing.
        # Unless something comes behind that knows height from width, as a crop of 200 x 300 does.
        turned = [i for i, step in enumerate(steps) if isinstance(step, A.D4) and step.p == 1]
        self.has_no_side_up = bool(turned) and all(
            isinstance(step, _COMMUTE_WITH_TRANSPOSE) and getattr(step, "max_size_hw", None) is None
            for step in steps[turned[-1] :]
        )

    def __call__(
        self,
        image: NDArray[np.uint8],
        boxes: NDArray[np.float32],
        seed: int,
        ignored: NDArray[np.bool_] | None = None,
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.int64]]:
        """image [H, W, 3], boxes [M, 4] xyxy pixels -> image, the boxes left, and their rows.

        ignored: [M], the boxes in which nothing is background.
        """
        # albumentations repeats itself in every worker and epoch unless seeded by hand.
        self._compose.set_random_seed(seed)
        rows = np.arange(len(boxes))
        if ignored is not None:
            # Below 0, which `_filter` sees: a second label would take its time.
            rows[ignored] = ~rows[ignored]
        try:
            done = self._compose(image=image, bboxes=boxes, row=rows)
        except Exception as error:  # there is no end to what the transforms of others raise
            height, width = image.shape[:2]
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise InputError(
                f"{self._key}: the transforms fail on an image of {width} x {height} px ({reason})"
            ) from None
        if done["image"].dtype != np.uint8 or done["image"].shape[2:] != (3,):
            got = f"{done['image'].dtype} {list(done['image'].shape)}"
            raise InputError(
                f"{self._key}: the transforms give {got}, and uint8 [H, W, 3] is wanted; leave out "
                "Normalize, ToFloat, ToTensorV2 and the like: the model normalises by itself"
            )
        # Without boxes albumentations gives float64 and shape (0,).
        left = np.asarray(done["bboxes"], dtype=np.float32).reshape(-1, 4)
        rows = np.asarray(done["row"], dtype=np.int64)
        return done["image"], left, np.maximum(rows, ~rows)

    def sizes_of(self, sizes: NDArray[np.int64]) -> NDArray[np.int64]:
        """What images of these sizes become, [I, 2], height and width; of random resizing an example."""
        distinct, which = np.unique(sizes, axis=0, return_inverse=True)
        made = [self._size_of(height, width) for height, width in distinct.tolist()]
        return np.array(made, dtype=np.int64).reshape(-1, 2)[which.reshape(-1)]

    def check_that_it_resizes_only(self) -> None:
        """See that boxes can be scaled back by the size before and after alone.

        Raises:
            InputError: they cannot.
        """
        image, (height, width) = np.zeros((96, 64, 3), dtype=np.uint8), (96, 64)
        boxes = np.array([[6, 8, 40, 30], [20, 30, 58, 90]], dtype=np.float32)
        for seed in range(4):
            done, moved, rows = self(image, boxes, seed)
            if min(done.shape[:2]) < _LEAST_SIDE:
                raise InputError(
                    f"{self._key}: an image of {width} x {height} px becomes one of {done.shape[1]} x "
                    f"{done.shape[0]}, in which nothing is to be seen; let it be larger"
                )
            if len(rows) == len(boxes):
                factor = np.array([done.shape[1] / width, done.shape[0] / height])
                if (np.abs(moved - boxes * np.tile(factor, 2)) < 0.5).all():
                    continue
            raise InputError(
                f"{self._key}: these transforms crop, pad or move the picture; only resizing makes sense "
                "here, as what is found is scaled back to the image file"
            )

    def _size_of(self, height: int, width: int) -> tuple[int, int]:
        steps = self._compose.transforms
        if all(isinstance(step, ResizeWithin) and step.long[0] == step.long[1] for step in steps):
            for step in steps:  # in no time, as there may be many sizes
                height, width = step.size(height, width, step.long[0])
            return height, width
        image = np.zeros((height, width, 3), dtype=np.uint8)
        done = self(image, np.zeros((0, 4), dtype=np.float32), seed=0)[0]
        return done.shape[0], done.shape[1]


# Transforms that commute with mirroring an image at its diagonal (transposing it), as a rule.
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
    """The boxes that a step leaves, [M, 5] with their rows; of ignored ones, as little as is left of them.

    A crop within a crowd has but a small part of the crowd's box, and is no background for all that.
    """
    ignored, limits = (boxes[:, 4:] < 0).any(axis=1), processor.params
    if not ignored.any():
        return BboxProcessor.filter(processor, boxes, shape)
    regular = BboxProcessor.filter(processor, boxes[~ignored], shape)
    regions = filter_bboxes(boxes[ignored], shape, min_width=limits.min_width, min_height=limits.min_height)
    kept = [these for these in (regular, regions) if len(these)]
    return np.concatenate(kept) if kept else regular


def resize(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Resize to height x width px, averaging areas when shrinking (no aliasing)."""
    if (height, width) == image.shape[:2]:
        return image
    shrinks = height < image.shape[0] or width < image.shape[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (width, height), interpolation=method), dtype=np.uint8)


def resized_to(size: int, transforms: Sequence[Any], evaluation: Sequence[Any]) -> list[Any]:
    """Transforms whose every ResizeWithin is scaled as that of evaluation, for images of `size` px there.

    Args:
        size: the long side, or the most that it may have.
        transforms, evaluation: as for `Pipeline`; those to be changed, and those of evaluation.

    Raises:
        InputError: evaluation has no ResizeWithin with a size.
    """
    longs = [transform["ResizeWithin"].get("long") for transform in evaluation if _resizes(transform)]
    long = longs[-1] if longs else None
    long = long[-1] if isinstance(long, list) and long else long
    if not isinstance(long, int) or long < 1:
        raise InputError(
            "data.image_size scales the ResizeWithin of data.transforms, and data.transforms.eval has none"
        )

    def to_size(value: Any) -> Any:
        if isinstance(value, list):
            return [to_size(each) for each in value]
        return max(1, round(value * size / long)) if isinstance(value, int) else value

    return [
        {"ResizeWithin": {name: to_size(value) for name, value in transform["ResizeWithin"].items()}}
        if _resizes(transform)
        else transform
        for transform in transforms
    ]


def _resizes(transform: Any) -> bool:
    return isinstance(transform, dict) and isinstance(transform.get("ResizeWithin"), dict)


def scaled(
    image: NDArray[np.uint8], boxes: NDArray[np.float32], scale: float
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """An image [H, W, 3] with sides of `scale` times theirs, and its boxes [M, 4] xyxy."""
    height, width = image.shape[:2]
    done = resize(image, max(1, round(height * scale)), max(1, round(width * scale)))
    factor = np.array([done.shape[1] / width, done.shape[0] / height], dtype=np.float32)
    return done, boxes * np.tile(factor, 2)


def _made(transforms: Any, where: str) -> list[Any]:
    if not isinstance(transforms, list | tuple):
        raise InputError(f"{where}: a list of transforms is wanted, got {transforms!r}")
    return [_make(transform, f"{where}[{i}]") for i, transform in enumerate(transforms)]


def _make(transform: Any, where: str) -> Any:
    if isinstance(transform, str):
        transform = {transform: {}}
    if not isinstance(transform, dict) or len(transform) != 1:
        got = sorted(map(str, transform)) if isinstance(transform, dict) else repr(transform)
        raise InputError(f"{where}: one transform is wanted, got {got}")
    ((name, parameters),) = transform.items()
    kinds = _kinds()
    if name not in kinds:
        nearest = difflib.get_close_matches(str(name), kinds, n=1)
        hint = f"; did you mean '{nearest[0]}'?" if nearest else ""
        raise InputError(f"{where}: albumentations has no transform '{name}'{hint}")
    parameters = dict(parameters or {})
    if issubclass(kinds[name], A.BaseCompose) and "transforms" in parameters:
        parameters["transforms"] = _made(parameters["transforms"], f"{where}.{name}.transforms")
    try:
        # Not an error but a warning in albumentations: a misspelt parameter would be lost.
        made = _strict(kinds[name], parameters)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: {name}: {' '.join(str(error).split())}") from None
    wanted = set(getattr(made, "targets_as_params", ())) - {"image", "bboxes"}
    if wanted:
        raise InputError(
            f"{where}: {name} wants {', '.join(sorted(wanted))} beside the image and its boxes; leave it out"
        )
    return made


@cache
def _kinds() -> dict[str, type]:
    """All that may be named: transforms, and what chooses among or groups them."""
    bases = A.BasicTransform, A.BaseCompose
    theirs = {name: kind for name, kind in vars(A).items() if isinstance(kind, type)}
    unfit = *bases, A.DualTransform, A.ImageOnlyTransform, A.Compose, A.ReplayCompose
    return {
        name: kind for name, kind in theirs.items() if issubclass(kind, bases) and kind not in unfit
    } | _OWN


def _strict(kind: type, parameters: dict[str, Any]) -> Any:
    accepted = set(inspect.signature(kind).parameters)
    unknown = sorted(set(parameters) - accepted)
    if unknown:
        hint = ", with a space behind the colon" if ":" in str(unknown[0]) else ""
        raise ValueError(f"no parameter '{unknown[0]}'; it takes {', '.join(sorted(accepted))}{hint}")
    return kind(**parameters)


def _pixels(crop: tuple[float, ...], shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    height, width = shape[:2]
    x0, y0 = round(crop[0] * width), round(crop[1] * height)
    return x0, y0, max(x0 + 1, round(crop[2] * width)), max(y0 + 1, round(crop[3] * height))


def _iou(crop: NDArray[np.float64], boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    side = np.minimum(crop[2:], boxes[:, 2:]) - np.maximum(crop[:2], boxes[:, :2])
    intersection = side.clip(min=0).prod(axis=1)
    union = (crop[2:] - crop[:2]).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) - intersection
    return intersection / union
