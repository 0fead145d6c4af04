"""The report for the terminal."""

from collections.abc import Iterator

from data.check.report import AnchorReport, Report, SplitSummary

_PLACES_SHOWN = 3
_CLASSES_SHOWN = 8


def lines(report: Report) -> Iterator[str]:
    """The splits, the anchors, then the findings, the most severe first."""
    for name, split in report.splits.items():
        yield f"{name:<8}  {_split(split)}"
    if report.anchors is not None and report.anchors.levels[0].boxes:
        yield f"anchors   {_anchors(report.anchors)}"
    for finding in report.findings:
        level = finding.kind.level.name.lower()
        yield ""
        yield f"{level:<8}  {len(finding.spots)} x {finding.code}: {finding.kind.what}"
        yield from (f"          {spot.text}" for spot in finding.spots[:_PLACES_SHOWN])
        if len(finding.spots) > _PLACES_SHOWN:
            yield f"          and {len(finding.spots) - _PLACES_SHOWN} more"
        yield f"          -> {finding.kind.remedy}"
    if report.anchors is not None and report.anchors.suggestion is not None:
        yield ""
        yield f"With these anchors {_percent(report.anchors.suggested_positive or 0)} would fit:"
        yield ""
        yield report.anchors.suggestion.rstrip()
    yield ""
    yield verdict(report)


def verdict(report: Report) -> str:
    """The last line of the report."""
    what = "annotations" if not report.decoded else "annotations and images"
    if not report.findings:
        return f"Nothing found in {what} ({report.seconds:.1f} s)."
    counts: dict[str, int] = {}
    for finding in report.findings:
        name = finding.kind.level.name.lower()
        counts[name] = counts.get(name, 0) + 1
    kinds = ", ".join(f"{n} {name}{'s' if n > 1 else ''}" for name, n in counts.items())
    end = "" if report.hurts else ": nothing that hurts training"
    return f"{kinds} in {what}{end} ({report.seconds:.1f} s)."


def _split(split: SplitSummary) -> str:
    share = {name: n / max(1, split.boxes) for name, n in split.per_class.items()}
    most = sorted(share, key=lambda name: -share[name])
    # The rarest classes too, as they are of most interest.
    told = [f"{name} {_percent(share[name])}" for name in most]
    if (left_out := len(most) - _CLASSES_SHOWN) > 0:
        told[_CLASSES_SHOWN - 2 : -2] = [f"{left_out} more"]
    ignored = f", {split.ignored} ignored" if split.ignored else ""
    return (
        f"{split.images} images, {split.without_boxes} of them without boxes; {split.boxes} boxes{ignored}: "
        f"{', '.join(told)}"
    )


def _anchors(anchors: AnchorReport) -> str:
    everything, *levels = anchors.levels
    of_levels = ", ".join(
        f"{level.name} {_percent(level.positive)} of {level.boxes}" for level in levels if level.boxes
    )
    return (
        f"{_percent(everything.positive)} of {everything.boxes} boxes, as augmented, reach IoU "
        f"{anchors.positive_iou:g} with an anchor, {_percent(everything.above_negative)} reach IoU "
        f"{anchors.negative_iou:g} ({of_levels})"
    )


def _percent(part: float) -> str:
    return f"{100 * part:.1f} %"
