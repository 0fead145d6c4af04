"""The Python API: images -> boxes, scores and class names, from nothing but a checkpoint."""

import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from data.drawing import draw_boxes
from data.images import read_size, read_upright, rgb_pixels
from data.inputs import VIDEO_SUFFIXES
from data.lookup import is_there
from data.order import like_batches
from data.sample import Sample, collate
from detector.boxes import pairwise_iou
from detector.builders.data import build_pipeline
from detector.evaluation.checkpoint import OpenCheckpoint, open_checkpoint
from detector.evaluation.image_sizes import warn_of_idle_tile, warn_of_scale
from detector.evaluation.inference import Predictions
from errors import InputError, some_of

_KINDS = "a path, the bytes of a file, an array, a PIL image or a tensor"
ImageLike = str | Path | bytes | NDArray[np.uint8] | Image.Image | Tensor


@dataclass(frozen=True, eq=False)  # comparing arrays gives no single truth value
class ImageDetections:
    """The detections of one image, best first."""

    boxes: NDArray[np.float64]  # [D, 4] xyxy, pixels of the image as given
    scores: NDArray[np.float64]  # [D] in [0, 1]: the probability of being right, if calibrated
    labels: NDArray[np.int64]  # [D] index into the detector's classes
    names: tuple[str, ...]  # class name of each detection
    thresholds: Mapping[str, float] = field(default_factory=dict, repr=False)  # the detector's, by class
    size: tuple[int, int] | None = field(default=None, repr=False)  # height, width of the image

    def __len__(self) -> int:
        return len(self.scores)

    def __str__(self) -> str:
        """The number of detections and the best of them, for `print`."""
        best = some_of(
            [f"{name} {score:.2f}" for name, score in zip(self.names, self.scores, strict=True)], 5
        )
        return f"{len(self)} detection{'s' * (len(self) != 1)}{f': {best}' if best else ''}"

    def above(
        self, threshold: float | Sequence[float] | NDArray[np.float64] | Mapping[str, float]
    ) -> "ImageDetections":
        """The detections that score at least the threshold: one number for all classes, one per class in
        their order, or a mapping by name; classes not named use the detector's own, as in predict.py.

        Raises:
            InputError: the number of thresholds is not that of the classes, a threshold is not a number, or
                a class is unknown.
        """
        if isinstance(threshold, Mapping):
            unknown = [name for name in threshold if self.thresholds and name not in self.thresholds]
            if unknown:
                raise InputError(
                    f"thresholds: there is no class '{unknown[0]}'; the classes are "
                    f"{', '.join(self.thresholds)}"
                )
            given = _numbers([*threshold.values()])
            usual = {**self.thresholds, **dict(zip(threshold, given.tolist(), strict=True))}
            wanted = np.array([usual.get(name, 0.0) for name in self.names], dtype=np.float64)
        else:
            wanted = _numbers(threshold)
            if wanted.ndim:
                classes = len(self.thresholds) or max(len(wanted), self.labels.max(initial=-1) + 1)
                if len(wanted) != classes:
                    raise InputError(f"thresholds: {len(wanted)} are given, but there are {classes} classes")
            wanted = wanted[self.labels] if wanted.ndim else wanted
        return self._at((self.scores >= wanted).nonzero()[0])

    def one_per_object(self, iou_threshold: float = 0.5) -> "ImageDetections":
        """NMS across classes: one box for an object that looks like several classes. Drops detections whose
        IoU with a better one of another class exceeds the threshold; boxes of one class are not compared.
        """
        boxes = torch.from_numpy(self.boxes)
        rivals = (pairwise_iou(boxes, boxes).numpy() > iou_threshold) & (self.labels[:, None] != self.labels)
        kept: list[int] = []
        for row, its_rivals in enumerate(rivals):
            if not its_rivals[kept].any():
                kept.append(row)
        return self._at(np.array(kept, dtype=np.int64))

    def _at(self, rows: NDArray[np.int64]) -> "ImageDetections":
        return replace(
            self,
            boxes=self.boxes[rows],
            scores=self.scores[rows],
            labels=self.labels[rows],
            names=tuple(self.names[row] for row in rows),
        )

    def draw(self, image: ImageLike, enlarge: bool = False) -> Image.Image:
        """Draw boxes, class names and scores, the best on top, on the image that these were found in; RGB.

        Args:
            enlarge: enlarge images less than about 340 pixels wide and high by a whole number, so that names
                are readable.

        Raises:
            InputError: the image cannot be read, is of an unsupported kind, or has another size.
        """
        texts = [f"{name} {score:.2f}" for name, score in zip(self.names, self.scores, strict=True)]
        pixels = _pixels(image, "the image")
        if self.size is not None and pixels.shape[:2] != self.size:
            turned = pixels.shape[:2] == self.size[::-1]
            how = "; PIL's ImageOps.exif_transpose turns it upright, as is done with files" if turned else ""
            raise InputError(
                f"the image is {pixels.shape[1]} x {pixels.shape[0]} px, but these detections are of an "
                f"image of {self.size[1]} x {self.size[0]} px{how}"
            )
        return Image.fromarray(draw_boxes(pixels, self.boxes, self.labels, texts, enlarge=enlarge))

    def as_dicts(self) -> list[dict[str, Any]]:
        """Plain values for JSON: box, score, label and name of each detection."""
        columns = (self.boxes.tolist(), self.scores.tolist(), self.labels.tolist(), self.names)
        return [
            dict(zip(("box", "score", "label", "name"), one, strict=True))
            for one in zip(*columns, strict=True)
        ]


class Detector:
    """A trained detector. It finds what `evaluate.py` finds in the same images: bitwise the same in the same
    batches; in other batches matrix products are rounded differently.

    Attributes:
        classes: class names.
        category_ids: category ids of the classes, as in the training annotations.
        thresholds: float64 [C], for `above`: the score of each class with the best F1 in validation; 0.5
            if unknown. One near 0 lets almost anything pass; predict.py warns of it.
        calibrated: whether a score is the fraction of detections that are right, as fitted in validation.
        batch_size: images that go through the network together.
    """

    def __init__(self, checkpoint: OpenCheckpoint) -> None:
        self._checkpoint = checkpoint
        self._pipeline = build_pipeline(checkpoint.config.data, training=False)
        self.classes = checkpoint.classes
        self.category_ids = checkpoint.category_ids
        self._thresholds = np.array(checkpoint.thresholds)
        self.calibrated = checkpoint.calibration is not None
        self._batch_size = checkpoint.config.eval.batch_size
        self._usual: dict[str, float] = {}
        self._process = os.getpid()

    @property
    def batch_size(self) -> int:
        return self._batch_size

    @batch_size.setter
    def batch_size(self, images: int) -> None:
        if isinstance(images, bool) or not isinstance(images, int | np.integer) or images < 1:
            raise InputError(f"batch_size must be a whole number of at least 1, got {images!r:.80}")
        self._batch_size = int(images)

    @property
    def thresholds(self) -> NDArray[np.float64]:
        return self._thresholds

    @thresholds.setter
    def thresholds(self, scores: Sequence[float] | NDArray[np.float64]) -> None:
        if np.asarray(scores).dtype.kind not in "fiu":
            raise InputError("thresholds must be a list of numbers, one for each class in order")
        numbers = _numbers(scores).copy()
        if numbers.shape != (len(self.classes),):
            got = "a single number" if numbers.ndim == 0 else len(numbers)
            raise InputError(f"thresholds: expected one for each of {len(self.classes)} classes, got {got}")
        self._thresholds = numbers

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._process = os.getpid()  # a copy unpickled in this process belongs to it

    @classmethod
    def load(cls, path: str | Path, device: str = "auto", overrides: Sequence[str] = ()) -> "Detector":
        """The detector of a checkpoint file, or of best.pt in a run folder.

        Args:
            device: auto (a GPU if there is one), cpu, cuda, cuda:1, mps.
            overrides: changes to the configuration in the checkpoint, e.g. ["eval.nms_threshold=0.6"].

        Raises:
            InputError: the checkpoint or an override is invalid, an override sets the device, or the device
                does not exist.
        """
        if isinstance(overrides, str):
            raise InputError(f"overrides must be a list, [{overrides!r}], got a string")
        if any(word.startswith("train.device=") for word in overrides):
            raise InputError(
                "train.device: the device is not a setting here; give it as device (predict.py: --device)"
            )
        return cls(open_checkpoint(Path(path), [*overrides, f"train.device={device}"], "device"))

    @overload
    def __call__(self, images: ImageLike) -> ImageDetections: ...  # type: ignore[overload-overlap]

    @overload
    def __call__(self, images: Iterable[ImageLike]) -> list[ImageDetections]: ...

    def __call__(self, images: ImageLike | Iterable[ImageLike]) -> ImageDetections | list[ImageDetections]:
        """Detect objects in one image or several; several are batched by similar shape.

        Args:
            images: a path or the bytes of a file (turned upright by its EXIF), uint8 [H, W, 3] RGB, a PIL
                image or a torch uint8 [3, H, W] RGB; grey ones are [H, W] or have 1 channel; or an iterable
                of these.

        Raises:
            InputError: an image cannot be read, or is of an unsupported kind.
        """
        if isinstance(images, str | Path | bytes | np.ndarray | Image.Image | Tensor):
            return self._detect([images], ["the image"])[0]
        if not isinstance(images, Iterable) or isinstance(images, bytearray | io.IOBase):
            raise InputError(f"images must be {_KINDS}, or several of these, got {type(images).__name__}")
        return self._list(list(images))

    def _list(self, images: list[ImageLike], first: int = 0) -> list[ImageDetections]:
        """first: the number of the first image, for messages."""
        names = [f"image {number}" for number in range(first, first + len(images))]
        sizes = np.array([_size(*pair) for pair in zip(images, names, strict=True)], dtype=np.int64)
        found: dict[int, ImageDetections] = {}
        for rows in self.batches_of(sizes):
            batch = self._detect([images[row] for row in rows], [names[row] for row in rows])
            found.update(zip(rows, batch, strict=True))
        return [found[row] for row in range(len(images))]

    def stream(self, images: Iterable[ImageLike]) -> Iterator[ImageDetections]:
        """Detect objects in any number of images, e.g. camera frames, `batch_size` at a time; with a
        batch_size of 1, each as it comes.

        Args, raises: as for calling the detector with a list, which holds all images in memory.
        """
        if isinstance(images, str | Path | bytes | np.ndarray | Image.Image | Tensor):
            raise InputError(f"stream: expected several images, got one ({type(images).__name__})")
        every, first = iter(images), 0
        while some := list(islice(every, self.batch_size)):
            yield from self._list(some, first)
            first += len(some)

    def batches_of(self, sizes: NDArray[np.int64]) -> list[list[int]]:
        """Group images of these sizes ([I, 2], height and width) into batches of indices."""
        return like_batches(self._pipeline.sizes_of(sizes.reshape(-1, 2)), self.batch_size)

    def warn_of_sizes(self, sizes: NDArray[np.int64]) -> None:
        """Warn of settings that do not suit images of these sizes ([I, 2], height and width)."""
        opened = self._checkpoint
        warn_of_scale(opened.trained, opened.config.data, sizes)
        warn_of_idle_tile(opened.config.eval.tile, self._pipeline.sizes_of(sizes))

    def is_full(self, found: ImageDetections, least: float) -> bool:
        """Whether eval.detections_per_img may have cut off detections of an image scoring at least `least`.

        Only a guess if classes are calibrated separately, as the limit applies to raw scores.

        Args:
            found: all detections of the image, unfiltered.
        """
        most = self._checkpoint.config.eval.detections_per_img
        return len(found) >= most and bool(found.scores.min() >= least)

    def _detect(self, images: Sequence[ImageLike], names: Sequence[str]) -> list[ImageDetections]:
        """Detections in images that form one batch."""
        if os.getpid() != self._process and torch.get_num_threads() > 1:
            raise InputError(
                "the detector was loaded before this process was forked, and PyTorch's threads do not "
                "survive a fork: it would wait forever. Load it in each process, or call "
                "torch.set_num_threads(1)"
            )
        samples = [self._sample(i, *pair) for i, pair in enumerate(zip(images, names, strict=True))]
        predictions = self._checkpoint.detect(collate(samples))
        usual = dict(zip(self.classes, self.thresholds.tolist(), strict=True))
        if usual != self._usual:  # all results share one dict: thousands of copies would fill the memory
            self._usual = usual
        return [self._of_image(predictions, row, sample.original_size) for row, sample in enumerate(samples)]

    def _sample(self, index: int, image: ImageLike, name: str) -> Sample:
        pixels = _pixels(image, name)
        resized, _, _ = self._pipeline(pixels, np.zeros((0, 4), dtype=np.float32), seed=0)
        height, width = pixels.shape[:2]
        return Sample.without_boxes(index, resized, (height, width))

    def _of_image(self, predictions: Predictions, row: int, size: tuple[int, int]) -> ImageDetections:
        mine = predictions.rows == row
        labels = predictions.labels[mine]
        names = tuple(self.classes[label] for label in labels)
        boxes, scores = predictions.boxes[mine], predictions.scores[mine]
        return ImageDetections(boxes, scores, labels, names, self._usual, size)


def _numbers(values: Any) -> NDArray[np.float64]:
    """One number or a list of them, as an array. Raises InputError: they are not numbers."""
    try:
        numbers = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        numbers = np.full((), np.nan)
    if np.isnan(numbers).any() or numbers.ndim > 1:
        raise InputError("thresholds must be numbers, but one is not")
    return numbers


def _remedy(image: NDArray[np.uint8] | Tensor, shape: list[int]) -> str:
    """What to do with an array or tensor of an unsupported kind, as the end of a sentence."""
    if len(shape) == 4:
        return "; give several images as a list"
    if len(shape) == 3 and 4 in (shape[0], shape[2]):
        return "; leave out the fourth channel"
    if len(shape) == 3 and isinstance(image, np.ndarray) and shape[0] in (1, 3):
        return "; transpose it: .transpose(1, 2, 0)"
    if len(shape) == 3 and isinstance(image, Tensor) and shape[2] in (1, 3):
        return "; permute it: .permute(2, 0, 1)"
    if "float" in str(image.dtype):
        return "; multiply values from 0 to 1 by 255 and convert them to uint8"
    return ""


def _size(image: ImageLike, name: str) -> tuple[int, int]:
    """Height and width; those of a file are read from its header."""
    if isinstance(image, str | Path):
        return read_size(Path(image))
    if isinstance(image, Image.Image):
        return image.height, image.width
    height, width = _pixels(image, name).shape[:2]
    return height, width


def _pixels(image: ImageLike, name: str) -> NDArray[np.uint8]:
    """uint8 [H, W, 3] RGB."""
    if isinstance(image, str | Path):
        path = Path(image)
        if (is_there(path) and path.is_dir()) or path.suffix.lower() in VIDEO_SUFFIXES:
            raise InputError(
                f"{image} is not an image; predict.py accepts folders and videos, but here give their images"
            )
        return read_upright(path, str(image))
    if isinstance(image, bytes):
        return read_upright(io.BytesIO(image), "in the bytes" + f" of {name}" * (name != "the image"))
    if isinstance(image, Image.Image):
        return rgb_pixels(image, name)
    if isinstance(image, Tensor):
        sides = list(image.shape)
        if str(image.dtype) != "torch.uint8" or not (
            len(sides) == 2 or (len(sides) == 3 and sides[0] in (1, 3))
        ):
            kind = f"{str(image.dtype).removeprefix('torch.')} {sides}"
            wanted = "uint8 [3, H, W], or grey [H, W]"
            raise InputError(f"{name}: a tensor must be {wanted}, got {kind}{_remedy(image, sides)}")
        image = (image if image.ndim == 2 else image.permute(1, 2, 0)).cpu().numpy()
    elif not isinstance(image, np.ndarray):
        raise InputError(f"{name} must be {_KINDS}, got {type(image).__name__}")
    shape = image.shape
    if image.dtype != np.uint8 or not (len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3))):
        wanted, kind = "uint8 [H, W, 3] RGB, or grey [H, W]", f"{image.dtype} {list(shape)}"
        raise InputError(f"{name}: an array must be {wanted}, got {kind}{_remedy(image, list(shape))}")
    image = image if image.ndim == 3 else image[:, :, None]
    if 0 in image.shape:
        raise InputError(f"{name} has no pixels: {image.shape[1]} x {image.shape[0]}")
    if image.shape[2] == 1:
        return np.repeat(image, 3, axis=2)
    return np.require(image, requirements=["C", "W"])  # PyTorch warns of read-only arrays
