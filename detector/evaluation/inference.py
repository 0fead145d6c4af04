"""Runs a model over a set: detections in all images, in pixels of the files."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from data.sample import Batch
from detector.evaluation.tiling import Tiling
from detector.folding import plain_convolutions
from detector.mirror import look_twice
from detector.postprocess import Detections
from detector.retinanet import HeadOutputs, RetinaNet
from errors import InputError


@dataclass(frozen=True)
class Predictions:
    """Detections of a whole set in flat arrays; within an image by descending score of the network."""

    rows: NDArray[np.int64]  # [D] row of the image in the DetectionSet
    boxes: NDArray[np.float64]  # [D, 4] xyxy, pixels of the image file
    scores: NDArray[np.float64]  # [D]
    labels: NDArray[np.int64]  # [D]


def join_predictions(parts: Sequence[Predictions]) -> Predictions:
    """Concatenate the predictions of several batches."""
    return Predictions(
        np.concatenate([part.rows for part in parts]),
        np.concatenate([part.boxes for part in parts]),
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.labels for part in parts]),
    )


def best_first(found: Predictions) -> Predictions:
    """Sort the detections of each image by descending score, stably; the order of the images is kept."""
    image = np.cumsum(np.diff(found.rows, prepend=found.rows[:1]) != 0)
    order = np.lexsort((-found.scores, image))
    return Predictions(found.rows[order], found.boxes[order], found.scores[order], found.labels[order])


def for_inference(model: RetinaNet, amp: torch.dtype | None) -> RetinaNet:
    """A faster copy with bitwise identical results; its weights are read-only.

    Norms are folded into convolutions and weights cast to the autocast dtype once, instead of in every
    forward pass. That saves a tenth of the time for a small image on a CPU; a GPU, which waits for each
    operation, has 270 of them instead of 670 (ResNet-50).

    Args:
        amp: as for `predict_batches`.
    """
    ready = deepcopy(model).eval().requires_grad_(False)
    plain_convolutions(ready)
    if amp is not None:
        for module in ready.modules():
            if isinstance(module, nn.Conv2d) and module not in ready.pyramid.never_cast:
                module.to(amp)
    return ready


def predict_batches(
    model: RetinaNet,
    batches: Iterable[Batch],
    device: torch.device,
    amp: torch.dtype | None,
    postprocess: Callable[[HeadOutputs, Tensor], list[Detections]],
    tiling: Tiling | None = None,
    flip: bool = False,
) -> Iterator[Predictions]:
    """Detect objects in every image, as `detect_batches`. The model is left in evaluation mode.

    Args:
        amp: the dtype of autocast; None for no autocast.
        postprocess: maps head outputs and image sizes, int64 [B, 2], to detections.
        tiling: how large images are cut into tiles; None leaves them whole.
        flip: also use the mirror image of each image.

    Raises:
        InputError: the network's outputs are not finite.
    """
    model.eval()

    def detect(images: Tensor, sizes: Tensor) -> list[Detections]:
        with torch.autocast(device.type, amp or torch.bfloat16, enabled=amp is not None):
            outputs = look_twice(model, images, sizes) if flip else model(images, sizes)
        # NMS would silently drop NaN. Logits of -inf, which fp16 may give, are fine: they are a score of 0.
        extremes = torch.stack((outputs.logits.amax(), *outputs.deltas.aminmax()))
        if not extremes.isfinite().all():
            raise InputError(
                "the network returns NaN or infinite numbers: its weights are damaged, have grown too "
                "large (train with a lower optimizer.lr), or are too large for fp16 (try train.amp=off)"
            )
        return postprocess(outputs, sizes)

    return detect_batches(batches, device, detect, tiling)


@torch.no_grad()
def detect_batches(
    batches: Iterable[Batch],
    device: torch.device,
    detect: Callable[[Tensor, Tensor], list[Detections]],
    tiling: Tiling | None = None,
) -> Iterator[Predictions]:
    """Detect objects in every image; yields the predictions of one batch at a time.

    Args:
        detect: maps padded images, uint8 [B, 3, H, W], and their sizes, int64 [B, 2], to detections.
        tiling: how large images are cut into tiles; None leaves them whole.
    """
    for batch in batches:
        batch = batch.to(device)
        images, sizes = batch.images, batch.sizes
        found = tiling.detect(images, sizes, detect) if tiling else detect(images, sizes)
        factors = (batch.original_sizes / batch.sizes).flip(1).repeat(1, 2).cpu()  # x, y, x, y
        rows, boxes, scores, labels = [], [], [], []
        for index, factor, image in zip(batch.indices.tolist(), factors, found, strict=True):
            rows.append(np.full(len(image.labels), index))
            boxes.append((image.boxes.cpu() * factor).double().numpy())
            scores.append(image.scores.cpu().numpy())
            labels.append(image.labels.cpu().numpy())
        yield Predictions(
            np.concatenate(rows), np.concatenate(boxes), np.concatenate(scores), np.concatenate(labels)
        )
