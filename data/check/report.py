"""The result of the data check, as records and as JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.check.classes import counts
from data.check.findings import Finding, hurts
from data.check.images import modes
from data.check.scan import ImageFacts
from data.sample import DetectionSet

_PLACE = ("text", "split", "image", "image_id", "annotation")


@dataclass(frozen=True)
class SplitSummary:
    """Statistics of a split."""

    images: int
    without_boxes: int
    boxes: int  # without ignored ones
    ignored: int  # crowd regions, difficult objects
    per_class: dict[str, int]
    smallest: tuple[int, int]  # width, height of the image with the fewest pixels
    largest: tuple[int, int]
    modes: dict[str, int]  # number of images of each Pillow mode; empty if none was decoded


@dataclass(frozen=True)
class LevelFit:
    """The boxes whose best anchor is on one level, or on any."""

    name: str
    boxes: int
    positive: float  # fraction of them with a positive anchor
    above_negative: float  # fraction with an anchor that is not negative


@dataclass(frozen=True)
class AnchorReport:
    """The anchors compared with the boxes as training sees them."""

    positive_iou: float
    negative_iou: float
    sizes: tuple[float, ...]  # sizes of all levels
    ratios: tuple[float, ...]
    levels: tuple[LevelFit, ...]  # first all levels together, then each
    box_sizes: NDArray[np.float64]  # [G] square root of the area, pixels
    box_ratios: NDArray[np.float64]  # [G] height / width
    suggestion: str | None  # YAML, if other anchors fit better
    suggested_positive: float | None


@dataclass(frozen=True)
class Report:
    """The complete result, for terminal, JSON and HTML."""

    title: str
    seconds: float
    decoded: bool
    findings: tuple[Finding, ...]
    splits: dict[str, SplitSummary]
    anchors: AnchorReport | None

    @property
    def hurts(self) -> bool:
        """Whether something would stop or harm training."""
        return hurts(self.findings)


def summarise(records: DetectionSet, facts: Sequence[ImageFacts]) -> SplitSummary:
    """Statistics of a split."""
    pixels = records.sizes.prod(axis=1)
    extremes = [records.sizes[k].tolist() for k in (pixels.argmin(), pixels.argmax())] if len(records) else []
    smallest, largest = [(width, height) for height, width in extremes] or [(0, 0)] * 2
    return SplitSummary(
        images=len(records),
        without_boxes=int((records.boxes_in_images == 0).sum()),
        boxes=int((~records.ignore).sum()),
        ignored=int(records.ignore.sum()),
        per_class=dict(zip(records.classes, counts(records).tolist(), strict=True)),
        smallest=smallest,
        largest=largest,
        modes=modes(facts),
    )


def as_json(report: Report) -> str:
    """The report as JSON, with every place of every finding."""
    anchors: dict[str, Any] | None = None
    if report.anchors is not None:
        anchors = asdict(report.anchors)
        for name in ("box_sizes", "box_ratios"):
            values = anchors.pop(name)
            quantiles = np.quantile(values, (0, 0.25, 0.5, 0.75, 1)) if len(values) else []
            anchors[f"{name}_quartiles"] = [round(float(v), 3) for v in quantiles]
    content = {
        "configuration": report.title,
        "ok": not report.hurts,
        "decoded": report.decoded,
        "seconds": round(report.seconds, 2),
        "splits": {name: asdict(split) for name, split in report.splits.items()},
        "anchors": anchors,
        "findings": [
            {
                "code": finding.code,
                "level": finding.kind.level.name.lower(),
                "what": finding.kind.what,
                "remedy": finding.kind.remedy,
                "count": len(finding.spots),
                "places": [
                    {k: v for k in _PLACE if (v := getattr(spot, k)) is not None} for spot in finding.spots
                ],
            }
            for finding in report.findings
        ],
    }
    return json.dumps(content, indent=2) + "\n"
