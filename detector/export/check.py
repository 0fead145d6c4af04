"""Checks an exported file against the model it was made from, on real pictures if there are any."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from data.images import read_size, read_upright
from data.inputs import find_sources
from data.own_transforms import resize
from data.sample import Batch, Sample, collate
from detector.builders.data import build_pipeline, build_set
from detector.evaluation.checkpoint import OpenCheckpoint
from detector.export.agreement import NOTHING, SCORE, Agreement, Found, compare
from detector.export.formats import Run
from detector.retinanet import IMAGENET_MEAN, IMAGENET_STD
from errors import InputError

log = logging.getLogger(__name__)
Pixels = NDArray[np.uint8]

_IMAGES = 3  # default number of pictures: as many as in the batch of `batches`
_RAW = 1e-4  # tolerance relative to the largest output
_LOGIT = 1e-4  # rounding error of a logit, which calibration may amplify
_OF_SIGMOID = 0.25  # steepest slope of the sigmoid


@dataclass(frozen=True)
class Picture:
    """A picture for the check, with a name for messages."""

    name: str
    source: Path | Pixels  # a file, read on access, or uint8 [H, W, 3]

    @property
    def pixels(self) -> Pixels:
        """[H, W, 3]. Raises InputError: the file cannot be read."""
        return read_upright(self.source, self.name) if isinstance(self.source, Path) else self.source


def pictures(checkpoint: OpenCheckpoint, words: Sequence[str]) -> list[Picture]:
    """The pictures that the user names, the first of the validation set, or a generated one with a warning.

    Raises:
        InputError: a picture that the user names cannot be used.
    """
    if words:
        sources = [source for source in find_sources(words) if source.kind == "image"]
        if not sources:
            raise InputError(f"--check: {words[0]} contains no images")
        for source in sources:
            read_size(source.path)
        return [Picture(str(source.path), source.path) for source in sources]
    data = checkpoint.config.data
    try:
        if not Path(data.root).is_dir():  # or build_set would create the generated set
            raise InputError(f"the folder {data.root} does not exist")
        files = build_set(data, "val", checkpoint.classes).files[:_IMAGES]
        return [Picture(str(file), read_upright(Path(file), str(file))) for file in files]
    except InputError as error:
        log.warning(
            "checked on a generated picture only, because the validation set is not available (%s); set "
            "data.root=..., or give photographs with --check",
            error,
        )
        rng = np.random.default_rng(0)
        blots = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        pixels: Pixels = resize(blots, 480, 640)
        return [Picture("the generated picture", pixels)]


def batches(checkpoint: OpenCheckpoint, given: Sequence[Picture]) -> Iterator[tuple[str, Pixels]]:
    """Yield names and images uint8 [B, 3, H, W]: each picture alone, resized as in evaluation, and then three
    pictures in one batch of a different, odd size. If evaluation cuts tiles, the middle tile is used.
    """
    pipeline = build_pipeline(checkpoint.config.data, training=False)
    none = np.zeros((0, 4), dtype=np.float32)
    first: list[Pixels] = []
    for picture in given:
        pixels, *_ = pipeline(picture.pixels, none, seed=0)
        pixels = _middle(pixels, checkpoint.config.eval.tile)
        yield picture.name, stacked([pixels])
        first = [*first, pixels][:3]
    height, width = ((3 * side // 4) | 1 for side in first[0].shape[:2])
    three = [resize(first[i % len(first)], height, width) for i in range(3)]
    yield f"three pictures of {width} x {height} px, {given[0].name} first", stacked(three)


def _middle(pixels: Pixels, side: int | None) -> Pixels:
    """The central crop of an image [H, W, 3], at most `side` pixels in each direction; None: all of it."""
    if side is None:
        return pixels
    top, left = (max(0, extent - side) // 2 for extent in pixels.shape[:2])
    return pixels[top : top + side, left : left + side]


def stacked(images: Iterable[Pixels]) -> Pixels:
    """Images [H, W, 3] of one size -> [B, 3, H, W]."""
    return np.ascontiguousarray(np.stack(list(images)).transpose(0, 3, 1, 2))


def check_detections(checkpoint: OpenCheckpoint, run: Run, given: Sequence[Picture]) -> Agreement:
    """How closely the exported model and PyTorch's agree over all pictures.

    Raises:
        InputError: one finds something that the other does not.
    """
    total = NOTHING
    for name, images in batches(checkpoint, given):
        part = _agreement(checkpoint, run, images)
        if part.unexplained:
            # In flat areas scores tie to the last digit, and the order of ties is arbitrary.
            part = _agreement(checkpoint, run, _grained(images))
        if part.unexplained:
            raise InputError(
                f"{name}: the exported model and PyTorch's differ in {part.unexplained} of "
                f"{part.detections} detections, so nothing was written; please report it"
            )
        total += part
    if total.detections == 0:
        log.warning(
            "nothing was detected in the pictures of the check, so it proves little; give others with --check"
        )
    return total


def _agreement(checkpoint: OpenCheckpoint, run: Run, images: Pixels) -> Agreement:
    """The agreement of both in a batch."""
    settings, side = checkpoint.config.eval, max(images.shape[2:])
    both = zip(found_by_model(checkpoint, images), found_by(run, images), strict=True)
    score = score_tolerance(checkpoint)
    return reduce(add, (compare(one, other, side, settings, score) for one, other in both), NOTHING)


def score_tolerance(checkpoint: OpenCheckpoint) -> float:
    """How much rounding may change a score: the steeper the calibration, the more."""
    calibration = checkpoint.calibration
    return max(SCORE, _LOGIT * (_OF_SIGMOID if calibration is None else calibration.steepest))


def _grained(images: Pixels) -> Pixels:
    """The images with noise of up to two grey levels."""
    noise = np.random.default_rng(0).integers(-2, 3, images.shape)
    return (images + noise).clip(0, 255).astype(np.uint8)


def check_raw(checkpoint: OpenCheckpoint, run: Run, given: Sequence[Picture]) -> float:
    """The largest difference of an output, relative to the largest output.

    Raises:
        InputError: it exceeds rounding, or shapes differ.
    """
    worst = 0.0
    for name, images in batches(checkpoint, given):
        batch = as_batch(images)
        with torch.no_grad():
            outputs = checkpoint.model.eval()(batch.images, batch.sizes)
        expected = [outputs.logits, outputs.deltas, outputs.anchors]
        for what, one, other in zip(
            ("logits", "deltas", "anchors"), expected, run(normalised(images)), strict=True
        ):
            same = one.shape == other.shape
            apart = float(np.abs(one.numpy() - other).max() / (np.abs(other).max() or 1)) if same else np.inf
            if not apart <= _RAW:
                raise InputError(
                    f"{name}: the {what} of the exported model and of PyTorch's differ, so nothing was "
                    f"written; please report it"
                )
            worst = max(worst, apart)
    return worst


def found_by(run: Run, images: Pixels) -> list[Found]:
    """The detections of an exported model in images uint8 [B, 3, H, W]."""
    boxes, scores, labels, count = run(images)
    return [
        Found(boxes[i, :n].astype(np.float64), scores[i, :n].astype(np.float64), labels[i, :n])
        for i, n in enumerate(count)
    ]


def found_by_model(checkpoint: OpenCheckpoint, images: Pixels) -> list[Found]:
    """The detections of the checkpoint's model in images uint8 [B, 3, H, W], as in `evaluate.py`."""
    found = checkpoint.detect(as_batch(images))
    rows = [found.rows == i for i in range(len(images))]
    return [Found(found.boxes[mine], found.scores[mine], found.labels[mine]) for mine in rows]


def as_batch(images: Pixels) -> Batch:
    """Images uint8 [B, 3, H, W] as a batch of the loader."""
    height, width = images.shape[2:]
    return collate(
        [Sample.without_boxes(i, image.transpose(1, 2, 0), (height, width)) for i, image in enumerate(images)]
    )


def normalised(images: Pixels) -> NDArray[np.float32]:
    """uint8 [B, 3, H, W] -> float32, with the mean and standard deviation of the metadata."""
    mean, std = (np.array(v, dtype=np.float32)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    scaled: NDArray[np.float32] = (images.astype(np.float32) / np.float32(255) - mean) / std
    return scaled
