"""Precision and recall over the score threshold."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from detector.evaluation.coco import CocoResult
from detector.evaluation.matching import Floats, Ints, Kind


@dataclass(frozen=True)
class Curve:
    """Counts of one class at IoU 0.5: the detections that reach each of N thresholds."""

    name: str
    gt_boxes: int
    right: Ints  # [N]
    wrong: Ints  # [N]

    @property
    def precision(self) -> Floats:
        """[N], 0 without detections."""
        return self.right / np.maximum(self.right + self.wrong, 1)

    @property
    def f1(self) -> Floats:
        """[N]"""
        return 2 * self.right / (self.right + self.wrong + self.gt_boxes)

    @property
    def recall(self) -> Floats:
        """[N]"""
        return self.right / self.gt_boxes


def curves(result: CocoResult, thresholds: Floats, most: int | None = None) -> Iterator[Curve]:
    """The curves of the classes that have gt boxes; at most `most`, those with the most gt boxes.

    thresholds [N]: score thresholds.
    """
    found, matching = result.material.found, result.matching
    counted = matching.kinds != Kind.IGNORED
    shown = result.commonest(most)
    for label, (name, one) in enumerate(result.per_class.items()):
        if name in shown:
            mine = counted & (found.labels == label)
            every = np.sort(found.scores[mine])
            right = np.sort(found.scores[mine & matching.correct])
            reached = len(every) - np.searchsorted(every, thresholds, side="left")
            hits = len(right) - np.searchsorted(right, thresholds, side="left")
            yield Curve(name, one.gt_boxes, hits, reached - hits)
