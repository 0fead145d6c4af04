"""Checks settings against the sizes of the images that a checkpoint is used on."""

import logging

import numpy as np
from numpy.typing import NDArray

from detector.builders.data import build_pipeline
from detector.config import DataConfig

log = logging.getLogger(__name__)

OTHER_SIZE = 1.5  # objects larger or smaller by this factor have a size that was not learnt


def is_cut(tile: int | None, resized: NDArray[np.int64]) -> bool:
    """Whether any image is larger than eval.tile; arguments as for `warn_of_idle_tile`."""
    return tile is not None and bool((resized > tile).any())


def warn_of_idle_tile(tile: int | None, resized: NDArray[np.int64]) -> None:
    """Warn of an eval.tile that cuts no image.

    Args:
        resized: [I, 2], height and width in pixels of the images after data.transforms.eval.
    """
    if tile is None or is_cut(tile, resized):
        return
    height, width = resized[resized.prod(axis=1).argmax()].tolist()
    log.warning(
        "eval.tile=%d has no effect: the largest image is %d x %d px after data.transforms.eval (for a "
        "detector trained on full-size images, keep their size with 'data.transforms.eval=[]' "
        "data.image_size=null)",
        tile, width, height,
    )  # fmt: skip


def warn_of_scale(trained: DataConfig, now: DataConfig, sizes: NDArray[np.int64]) -> None:
    """Warn of images resized differently than in training's evaluation: object sizes were not learnt.

    Args:
        sizes: [I, 2], height and width in pixels of the files.
    """
    if (now.transforms.eval, now.image_size) == (trained.transforms.eval, trained.image_size):
        return
    then, here = (build_pipeline(data, training=False).sizes_of(sizes) for data in (trained, now))
    factor = float(np.median(here / then))
    if not 1 / OTHER_SIZE < factor < OTHER_SIZE:
        log.warning(
            "images are %.2g times as large (the median) as with the data.transforms.eval of the training, "
            "and objects of a size that was not learned are hardly found; leave data.transforms.eval and "
            "data.image_size as they were, unless data.transforms.train shows objects at this size, as "
            "crops do",
            factor,
        )  # fmt: skip
