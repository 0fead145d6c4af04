"""What evaluation's resizing makes of image sizes."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

_MOST_SIZES = 64  # that are tried; there may be thousands

Resize = Callable[[tuple[int, int]], tuple[int, int]]  # height, width -> height, width


def resized(sizes: NDArray[np.int64], resize: Resize) -> NDArray[np.int64]:
    """The size of each image after resizing, int64 [I, 2]; sizes [I, 2], height and width.

    With more than 64 sizes those between are scaled as the nearest one that was tried.
    """
    if not len(sizes):
        return sizes
    different, of_image = np.unique(sizes, axis=0, return_inverse=True)
    # Evenly through the sorted sizes.
    tried = np.unique(np.linspace(0, len(different) - 1, _MOST_SIZES).round().astype(np.int64))
    after = np.array([resize((int(h), int(w))) for h, w in different[tried]])
    if len(tried) == len(different):
        return after[of_image.reshape(-1)]
    logs, known = np.log(different), np.log(different[tried])
    nearest = np.abs(logs[:, None] - known[None]).sum(axis=2).argmin(axis=1)
    scaled = different * after[nearest] / different[tried][nearest]
    return scaled.round().clip(1).astype(np.int64)[of_image.reshape(-1)]
