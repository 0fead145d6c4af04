"""What the sizes of images say of the settings that a checkpoint is used with."""

import logging

import numpy as np
from numpy.typing import NDArray

from detector.builders.data import build_pipeline
from detector.config import Config, DataConfig

log = logging.getLogger(__name__)

_OTHER_SIZE = 1.5  # so many times as large


def tile_cuts_nothing(config: Config, sizes: NDArray[np.int64]) -> bool:
    """Whether no image is larger than eval.tile, which is said then.

    Args:
        sizes: [I, 2], height and width in pixels of the files.
    """
    if config.eval.tile is None:
        return True
    resized = build_pipeline(config.data, training=False).sizes_of(sizes)
    if (resized > config.eval.tile).any():
        return False
    height, width = resized[resized.prod(axis=1).argmax()].tolist()
    log.warning(
        "eval.tile=%d cuts nothing: the largest image is %d x %d px after data.transforms.eval "
        "('data.transforms.eval=[]' keeps images as large as they are)",
        config.eval.tile, width, height,
    )  # fmt: skip
    return True


def warn_of_scale(trained: DataConfig, now: DataConfig, sizes: NDArray[np.int64]) -> None:
    """Images that are resized otherwise than the training's evaluation did: objects of a size not learnt.

    Args:
        sizes: [I, 2], height and width in pixels of the files.
    """
    if (now.transforms.eval, now.image_size) == (trained.transforms.eval, trained.image_size):
        return
    then, here = (build_pipeline(data, training=False).sizes_of(sizes) for data in (trained, now))
    factor = float(np.median(here / then))
    if not 1 / _OTHER_SIZE < factor < _OTHER_SIZE:
        log.warning(
            "images are %.2g times as large as the training's data.transforms.eval makes them (the median), "
            "and objects of a size that was not learnt are hardly found; leave it as it was, or train so",
            factor,
        )  # fmt: skip
