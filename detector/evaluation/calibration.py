"""Calibration: monotone maps from scores to the probability that a detection is correct.

A ranking loss leaves the scale of the scores free; if it ranks class by class, that of each class separately.
The maps, one per class, are fitted on validation detections and keep the order within a class, so AP does
not change. Afterwards half of the detections with a score of 0.5 are right.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression
from scipy.special import expit

Floats = NDArray[np.float64]

_BINS = 32
# Minimum detections per bin: fewer would overfit. But in a small validation set, bins of 20 would drown the
# few right detections in wrong ones: there the minimum is a third of the right ones, and at least five.
_FEWEST, _FEWEST_OF_FEW = 20, 5
# Pseudo-detections added to each bin of a class, with the precision of all classes: a class that is rare in
# validation differs from the others no more than its detections justify.
_AS_ALL = 3
_LEAST, _MOST = np.finfo(np.float64).tiny, 1 - 2.0**-53  # the extreme scores with finite logits
_ROUNDING = 1e-9  # relative; exceeds the rounding error of map and inverse


@dataclass(frozen=True)
class Matched:
    """All detections of a set that are not ignored, and whether each is correct at IoU 0.5."""

    scores: Floats  # [D]
    correct: NDArray[np.bool_]  # [D]
    images: NDArray[np.int64]  # [D], index of the image in ascending order of image ids
    labels: NDArray[np.int64]  # [D]

    def of(self, rows: NDArray[np.bool_]) -> "Matched":
        """The detections selected by a mask [D]."""
        return Matched(self.scores[rows], self.correct[rows], self.images[rows], self.labels[rows])


@dataclass(frozen=True)
class ScoreMap:
    """A strictly rising map: linear in the logit of the score between knots, approaching 0 and 1 outside.

    Attributes:
        logits, probabilities: the knots, at least one; both ascending.
    """

    logits: tuple[float, ...]
    probabilities: tuple[float, ...]

    def __call__(self, scores: Floats) -> Floats:
        """scores [D] in [0, 1] -> probabilities [D] in the same order."""
        x = _logit(scores)
        first, last = self.logits[0], self.logits[-1]
        inside = np.interp(x, self.logits, self.probabilities)
        below = self.probabilities[0] * np.exp(np.minimum(x - first, 0))
        above = 1 - (1 - self.probabilities[-1]) * np.exp(np.minimum(last - x, 0))
        return np.where(x < first, below, np.where(x > last, above, inside))

    def inverse(self, probabilities: Floats) -> Floats:
        """probabilities [D] in [0, 1] -> the scores [D] that map to them."""
        p, first, last = probabilities, self.probabilities[0], self.probabilities[-1]
        with np.errstate(divide="ignore"):  # 0 and 1 are infinitely far away
            below = self.logits[0] + np.log(p / first)
            above = self.logits[-1] - np.log((1 - p) / (1 - last))
        inside = np.interp(p, self.probabilities, self.logits)
        scores = expit(np.where(p < first, below, np.where(p > last, above, inside)))
        # Slightly lower: a detection whose probability is the threshold must not fall below it by rounding.
        return scores * (1 - _ROUNDING)

    @property
    def steepest(self) -> float:
        """The largest slope: rise of the probability per unit of the score's logit."""
        inside = np.diff(self.probabilities) / np.diff(self.logits)
        return float(max(self.probabilities[0], 1 - self.probabilities[-1], *inside))


@dataclass(frozen=True)
class Calibration:
    """One map per class."""

    maps: tuple[ScoreMap, ...]  # [C]

    def __call__(self, scores: Floats, labels: NDArray[np.int64]) -> Floats:
        """scores [D] in [0, 1] of detections, and their labels [D] -> probabilities [D]."""
        return self._each(lambda of_class, mine: of_class(mine), scores, labels)

    def inverse(self, probabilities: Floats, labels: NDArray[np.int64]) -> Floats:
        """The inverse, for any shape; see `ScoreMap.inverse`."""
        return self._each(lambda of_class, mine: of_class.inverse(mine), probabilities, labels)

    def _each(
        self, apply: Callable[[ScoreMap, Floats], Floats], values: Floats, labels: NDArray[np.int64]
    ) -> Floats:
        found = np.empty_like(values, dtype=np.float64)
        for label in np.unique(labels):
            mine = labels == label
            found[mine] = apply(self.maps[label], values[mine])
        return found

    @property
    def steepest(self) -> float:
        """The largest slope of any map; see `ScoreMap.steepest`."""
        return max(one.steepest for one in self.maps)

    def as_plain(self) -> list[dict[str, list[float]]]:
        """Plain values, for a checkpoint."""
        return [{"logits": list(one.logits), "probabilities": list(one.probabilities)} for one in self.maps]

    @staticmethod
    def from_plain(values: Any, classes: int) -> "Calibration":
        """The inverse of `as_plain`; older checkpoints have a single map for all classes."""
        each: Sequence[dict[str, Any]] = [values] * classes if isinstance(values, dict) else values
        return Calibration(tuple(ScoreMap(tuple(v["logits"]), tuple(v["probabilities"])) for v in each))


def fit_calibration(matched: Matched, known: NDArray[np.bool_]) -> Calibration | None:
    """Fit the maps to detections; None if there are no detections.

    known: bool [C], which classes have gt boxes; the others use the map fitted to all classes.
    """
    if len(matched.scores) == 0:
        return None
    of_all = _fit(matched)
    maps = []
    for label, is_known in enumerate(known):
        mine = matched.labels == label
        own = is_known and mine.any() and not mine.all()
        maps.append(_fit(matched.of(mine), of_all) if own else of_all)
    return Calibration(tuple(maps))


def _fit(matched: Matched, of_all: ScoreMap | None = None) -> ScoreMap:
    """Fit a map to at least one detection.

    Isotonic regression (Zadrozny & Elkan, KDD 2002) over bins. Each step of its staircase becomes one
    knot, at the mean logit of its detections, so that the line between knots rises. The outer halves of the
    lowest and the highest step have no further step to rise to and stay almost flat: near-certainty is
    reached only outside the range of observed scores.
    """
    order = np.argsort(matched.scores, kind="stable")
    bins = np.split(order, _cuts(matched.scores[order], matched.correct[order]))
    sizes = np.array([len(rows) for rows in bins], dtype=np.float64)
    x = np.array([_logit(matched.scores[rows]).mean() for rows in bins])
    # A few detections prove nothing for certain: add half a success and half a failure, or pseudo-detections
    # with the precision of all classes at these scores.
    if of_all is None:
        likely, more = np.full(len(bins), 0.5), 1
    else:
        likely, more = np.array([of_all(matched.scores[rows]).mean() for rows in bins]), _AS_ALL
    right = np.array([matched.correct[rows].sum() for rows in bins])
    rate = (right + more * likely) / (sizes + more)
    stairs = isotonic_regression(rate, weights=sizes)
    starts = stairs.blocks[:-1]
    middle = np.add.reduceat(x * sizes, starts) / np.add.reduceat(sizes, starts)
    height = stairs.x[starts]
    # Knots may coincide if many scores are equal, and steps may differ only by rounding.
    distinct = np.concatenate(([True], (np.diff(middle) > 0) & (np.diff(height) > 1e-6)))
    knots, height = middle[distinct].tolist(), height[distinct].tolist()
    lowest, highest = _logit(matched.scores[order[[0, -1]]]).tolist()
    if lowest < knots[0]:
        knots, height = [lowest, *knots], [height[0] - _end_rise(height[0]), *height]
    if highest > knots[-1]:
        knots, height = [*knots, highest], [*height, height[-1] + _end_rise(height[-1])]
    if of_all is not None:
        _follow_beyond(knots, height, of_all)
    return ScoreMap(tuple(knots), tuple(height))


def _follow_beyond(knots: list[float], height: list[float], of_all: ScoreMap) -> None:
    """Add knots outside a class's own range, following the map of all classes but still strictly rising."""
    lowest, highest = knots[0], knots[-1]
    for x, y in zip(of_all.logits, of_all.probabilities, strict=True):
        if x > highest:
            knots.append(x)
            height.append(max(y, height[-1] + _end_rise(height[-1])))
    for x, y in zip(of_all.logits[::-1], of_all.probabilities[::-1], strict=True):
        if x < lowest:
            knots.insert(0, x)
            height.insert(0, min(y, height[0] - _end_rise(height[0])))


def _end_rise(height: float) -> float:
    """Rise over an outer half step: 1 % of the way to certainty, enough for the inverse to resolve scores."""
    return min(max(0.01 * height * (1 - height), 1e-6), height / 2, (1 - height) / 2)


def _cuts(scores: Floats, correct: NDArray[np.bool_]) -> list[int]:
    """Where to cut detections in ascending order of score into bins; never between equal scores.

    Bins are equal in the sum of their share of the right detections and their share of the wrong ones.
    There may be a hundred wrong detections near 0 for each right one: bins of equal count would be spent on
    those and leave one or two bins for all scores that matter.
    """
    right = int(correct.sum())
    fewest = min(max(right // 3, _FEWEST_OF_FEW), _FEWEST)
    share = np.where(correct, 1 / max(right, 1), 1 / max(len(correct) - right, 1)).cumsum()
    cuts = [0]
    wanted = np.searchsorted(share, share[-1] * np.arange(1, _BINS) / _BINS)
    for cut in np.searchsorted(scores, scores[wanted]):
        if cut - cuts[-1] >= fewest and len(correct) - cut >= fewest:
            cuts.append(int(cut))
    return cuts[1:]


def calibration_error(scores: Floats, correct: NDArray[np.bool_], bins: int = 20) -> float:
    """Detection calibration error: the mean gap between score and precision, in bins of the score.

    scores, correct [D] -> the mean gap over bins of equal width, weighted by their detections; 0 without
    any. Source: D-ECE, Kueppers et al. (CVPR workshops 2020), eq. 4, for the confidence alone.
    """
    if len(scores) == 0:
        return 0.0
    at = np.minimum((scores * bins).astype(np.int64), bins - 1)
    gaps = np.bincount(at, scores, bins) - np.bincount(at, correct.astype(np.float64), bins)
    return float(np.abs(gaps).sum() / len(scores))


def held_out_error(matched: Matched, known: NDArray[np.bool_]) -> float | None:
    """The calibration error of detections whose maps were fitted on the other half of the images.

    known: as for `fit_calibration`. None if one half has no detections.
    """
    half = np.unique(matched.images)[::2]
    first = np.isin(matched.images, half)
    probabilities = matched.scores.copy()
    for one, other in ((first, ~first), (~first, first)):
        fitted = fit_calibration(matched.of(other), known)
        if fitted is None:
            return None
        probabilities[one] = fitted(matched.scores[one], matched.labels[one])
    return calibration_error(probabilities, matched.correct)


def _logit(scores: Floats) -> Floats:
    scores = np.clip(scores, _LEAST, _MOST)
    return np.log(scores) - np.log1p(-scores)
