"""Decodes every image of a split once: is it readable, which pixel format, its fingerprints."""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.fft import dctn

from data.images import ImageHeader, read_header, read_image
from data.progress import Progress
from data.sample import DetectionSet
from errors import InputError

_AHEAD = 64  # images submitted to the threads at a time, so that results do not pile up
_FLAT = 6.0  # standard deviation of the grey levels below which all pictures look alike


@dataclass(frozen=True)
class ImageFacts:
    """What is known about an image after decoding. Its pixels are not kept."""

    header: ImageHeader | None
    problem: str | None  # why it is unreadable
    brightest: int  # maximum of the pixels as training sees them, 0 to 255
    digest: bytes | None  # hash of the pixels as training sees them, 16 bytes
    fingerprint: NDArray[np.uint64]  # [4] nearly equal for images that look the same; 0 for flat ones


def scan(records: DetectionSet, title: str) -> list[ImageFacts]:
    """Decode all images on all cores, showing progress.

    OpenCV, Pillow and hashlib release the GIL while they work, so threads suffice.
    """
    work = zip(records.files.tolist(), records.sizes.tolist(), strict=True)
    with Progress(len(records), "image", title) as bar, ThreadPoolExecutor(_cores()) as pool:
        return list(_scanned(pool, work, bar))


def _scanned(
    pool: ThreadPoolExecutor, work: Iterator[tuple[str, list[int]]], bar: Progress
) -> Iterator[ImageFacts]:
    while ahead := list(islice(work, _AHEAD)):
        for facts in pool.map(_look, ahead):
            bar.update()
            yield facts


def _look(job: tuple[str, list[int]]) -> ImageFacts:
    path, (height, width) = Path(job[0]), job[1]
    header: ImageHeader | None = None
    try:
        header = read_header(path)
        # The image's own size if the annotated one is wrong, which is reported elsewhere.
        known = (height, width) in (header.upright, header.stored)
        pixels = read_image(path, (height, width) if known else header.upright)
    except InputError as error:
        return ImageFacts(header, str(error), 0, None, np.zeros(4, dtype=np.uint64))
    digest = hashlib.blake2b(repr(pixels.shape).encode(), digest_size=16)
    digest.update(pixels.data)
    return ImageFacts(header, None, int(pixels.max()), digest.digest(), fingerprint(pixels))


def fingerprint(pixels: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """256 bits that change little with the size and compression of a picture: uint64 [4].

    Each bit says whether one of the lowest DCT frequencies is above their median, after "pHash" (Zauner,
    "Implementation and benchmarking of perceptual image hash functions", 2010).

    Args:
        pixels: uint8 [H, W, 3] RGB.
    """
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (64, 64), interpolation=cv2.INTER_AREA).astype(np.float32)
    if small.std() < _FLAT:
        return np.zeros(4, dtype=np.uint64)
    low = dctn(small, norm="ortho")[:17, :17].flatten()[1:257]  # without the mean (DC)
    return np.packbits(low > np.median(low)).view(np.uint64)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 2
