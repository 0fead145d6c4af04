"""Repeat factor sampling (Gupta et al., "LVIS", CVPR 2019, 3.4): images of rare classes are repeated."""

import numpy as np
from numpy.typing import NDArray

from data.sample import DetectionSet


def repeat_factors(records: DetectionSet, share: float) -> NDArray[np.float64]:
    """Average number of occurrences of each image per epoch: float64 [I], at least 1.

    A class found in a fraction f of the images has factor sqrt(share / f); an image has the largest factor of
    its classes. Ignored regions do not count.

    Args:
        share: fraction of the images, 0 to 1; classes found in more of them are not repeated.
    """
    frequencies = class_frequencies(records)
    asked = np.sqrt(share / np.maximum(frequencies, 1 / max(len(records), 1)))
    factors = np.ones(len(records))
    counted = ~records.ignore
    np.maximum.at(factors, records.image_of_box[counted], asked[records.labels[counted]])
    return factors


def class_frequencies(records: DetectionSet) -> NDArray[np.float64]:
    """Fraction of the images that contain each class: float64 [C]."""
    classes = len(records.classes)
    pairs = np.unique((records.image_of_box * classes + records.labels)[~records.ignore])
    return np.bincount(pairs % classes, minlength=classes) / max(len(records), 1)


def draw_counts(factors: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Number of occurrences of each image in one epoch: a factor of 2.3 gives 2 or 3, and 2.3 on average.

    The sum is always `samples_of`, so that all epochs have the same length; in a small set its rounding
    shifts the factors slightly. Systematic sampling: the excesses over 1 are laid end to end in random order,
    from a random start, and each whole number that an image's segment reaches adds one occurrence.
    """
    more, total = factors - 1, samples_of(factors) - len(factors)
    counts = np.ones(len(factors), dtype=np.int64)
    if total == 0:
        return counts
    order = rng.permutation(len(factors))
    ends = np.cumsum(more[order]) * (total / more.sum())
    ends[-1] = total  # exactly: a rounding error could lose a sample
    reached = np.floor(ends + rng.random()).astype(np.int64)
    counts[order] += np.diff(reached, prepend=0)
    return counts


def samples_of(factors: NDArray[np.float64]) -> int:
    """Number of samples per epoch."""
    return len(factors) + round(float((factors - 1).sum()))
