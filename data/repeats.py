"""Repeat factor sampling (Gupta et al., "LVIS", CVPR 2019, 3.4): images of rare classes come more often."""

import numpy as np
from numpy.typing import NDArray

from data.sample import DetectionSet


def repeat_factors(records: DetectionSet, share: float) -> NDArray[np.float64]:
    """How often each image is to come in an epoch, on average: float64 [I], at least 1.

    A class that a part f of the images have asks for sqrt(share / f) times, and an image comes as often as
    the class in it that asks for most. Regions that are ignored are of no class.

    Args:
        share: of the images, 0 to 1; classes that more of them have ask for nothing.
    """
    frequencies = class_frequencies(records)
    asked = np.sqrt(share / np.maximum(frequencies, 1 / max(len(records), 1)))
    factors = np.ones(len(records))
    counted = ~records.ignore
    np.maximum.at(factors, records.image_of_box[counted], asked[records.labels[counted]])
    return factors


def class_frequencies(records: DetectionSet) -> NDArray[np.float64]:
    """The part of the images that each class is in: float64 [C]."""
    classes = len(records.classes)
    pairs = np.unique((records.image_of_box * classes + records.labels)[~records.ignore])
    return np.bincount(pairs % classes, minlength=classes) / max(len(records), 1)


def draw_counts(factors: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.int64]:
    """How often each image comes in one epoch: a factor of 2.3 gives 2 or 3, and 2.3 on average.

    The sum is always `samples_of`, so that all epochs are equally long; in a small set its rounding moves the
    factors a little. What is beyond 1 is laid end to end, in a drawn order, and every whole number that it
    reaches across, from a drawn beginning, is one more (systematic sampling).
    """
    more, total = factors - 1, samples_of(factors) - len(factors)
    counts = np.ones(len(factors), dtype=np.int64)
    if total == 0:
        return counts
    order = rng.permutation(len(factors))
    ends = np.cumsum(more[order]) * (total / more.sum())
    ends[-1] = total  # exactly: a rounding error could cost a sample
    reached = np.floor(ends + rng.random()).astype(np.int64)
    counts[order] += np.diff(reached, prepend=0)
    return counts


def samples_of(factors: NDArray[np.float64]) -> int:
    """How many images come in an epoch."""
    return len(factors) + round(float((factors - 1).sum()))
