"""The report as one printable HTML file, without scripts or external resources."""

import base64
import html
from collections.abc import Iterator, Mapping, Sequence

from data.check.charts import class_bars, histogram, series_colour
from data.check.findings import Finding
from data.check.pictures import Picture
from data.check.report import AnchorReport, Report, SplitSummary
from data.check.text import verdict

_GENERATOR = '<meta name="generator" content="aploss-detector data check">'
_PLACES_SHOWN = 50
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222 }
body { max-width: 1000px; margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.6em; margin-bottom: .2em }
h2 { font-size: 1.2em; margin-top: 2em; break-after: avoid }
h3 { font-size: 1em; margin: 0; break-after: avoid }
table { border-collapse: collapse }
td, th { padding: .25em .7em; border-bottom: 1px solid #ddd; text-align: right }
td:first-child, th:first-child { text-align: left; padding-left: 0 }
.finding { border-left: 6px solid; padding: .3em 0 .3em .9em; margin: 1em 0; break-inside: avoid-page }
.error { border-color: #d55e00 }
.warning { border-color: #e69f00 }
.note { border-color: #0072b2 }
.finding ul { margin: .3em 0; padding-left: 1.2em; font-size: .87em; overflow-wrap: anywhere }
.finding p { margin: 0 }
code, pre { font-family: ui-monospace, monospace; font-size: .9em }
pre { background: #f4f4f4; padding: .8em; overflow-x: auto }
svg { display: block; width: 100%; max-width: 760px; height: auto; font-family: system-ui, sans-serif }
svg + h3, svg + table { margin-top: 1.2em }
.key { display: inline-block; width: .9em; height: .9em; margin: 0 .3em 0 1em; vertical-align: -.1em }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(290px, 1fr)); gap: 1em }
.finding .gallery { grid-template-columns: repeat(auto-fill, minmax(200px, 1fr)); margin-top: .6em }
figure { margin: 0; break-inside: avoid }
figure img { width: 100% }
figcaption, .small { font-size: .82em; color: #555 }
@media print {
  body { margin: 0; max-width: none; print-color-adjust: exact; -webkit-print-color-adjust: exact }
}
"""


def page(report: Report, samples: Sequence[Picture], places: Mapping[str, Sequence[Picture]]) -> str:
    """The whole file.

    Args:
        samples: pictures of training images.
        places: pictures of the findings, by code.
    """
    title = f"Data check: {report.title}"
    body = "\n".join(
        [
            f"<h1>Data check</h1><p><code>{html.escape(report.title)}</code></p>",
            f"<p><strong>{html.escape(verdict(report))}</strong></p>",
            *(_finding(finding, places.get(finding.code, ())) for finding in report.findings),
            *_splits(report.splits),
            *(_anchors(report.anchors) if report.anchors and report.anchors.levels[0].boxes else ()),
            *_samples(samples),
        ]
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">{_GENERATOR}\n'
        f"<title>{html.escape(title)}</title>\n"
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>\n'
        f"<body>\n{body}\n</body></html>\n"
    )


def _finding(finding: Finding, pictures: Sequence[Picture]) -> str:
    kind, spots = finding.kind, finding.spots
    level = kind.level.name.lower()
    places = [f"<li>{html.escape(spot.text)}</li>" for spot in spots[:_PLACES_SHOWN]]
    if len(spots) > _PLACES_SHOWN:
        places.append(f"<li>and {len(spots) - _PLACES_SHOWN} more (all are in --json)</li>")
    return (
        f'<div class="finding {level}"><h3>{level}: {html.escape(kind.what)} '
        f"({len(spots)} x <code>{finding.code}</code>)</h3>"
        f"<ul>{''.join(places)}</ul><p>What to do: {html.escape(kind.remedy)}.</p>"
        f"{_gallery(pictures)}</div>"
    )


def _splits(splits: dict[str, SplitSummary]) -> Iterator[str]:
    yield "<h2>Splits</h2>"
    rows: list[tuple[str, ...]] = [
        (
            "",
            "images",
            "without boxes",
            "boxes",
            "ignored",
            "boxes per image",
            "smallest",
            "largest",
            "pixels",
        )
    ]
    for name, split in splits.items():
        kinds = ", ".join(f"{count} {mode}" for mode, count in split.modes.items()) or "not decoded"
        sizes = ("{} x {}".format(*size) for size in (split.smallest, split.largest))
        per_image = f"{split.boxes / max(1, split.images):.1f}"
        rows.append(
            (name, f"{split.images:,}", f"{split.without_boxes:,}", f"{split.boxes:,}", f"{split.ignored:,}",
             per_image, *sizes, kinds)
        )  # fmt: skip
    yield _table(rows)
    yield "<h2>Balance of the classes</h2>"
    keys = "".join(
        f'<span class="key" style="background:{series_colour(k)}"></span>{html.escape(name)}'
        for k, name in enumerate(splits)
    )
    yield f"<p>Share of the boxes of a split, and their number:{keys}</p>"
    yield class_bars({name: split.per_class for name, split in splits.items()})


def _anchors(anchors: AnchorReport) -> Iterator[str]:
    yield "<h2>Boxes and anchors</h2>"
    yield (
        f"<p>{anchors.levels[0].boxes:,} boxes of training images as they reach the network, after "
        "augmentation and resizing. Orange triangles: the anchors.</p>"
    )
    yield "<h3>Size: square root of the area, in pixels</h3>"
    yield histogram(anchors.box_sizes, anchors.sizes)
    yield "<h3>Ratio: height / width</h3>"
    yield histogram(anchors.box_ratios, anchors.ratios)
    rows: list[tuple[str, ...]] = [
        (
            "boxes whose best anchor is on",
            "boxes",
            f"reach IoU {anchors.positive_iou:g}",
            f"reach IoU {anchors.negative_iou:g}",
        )
    ]
    for level in anchors.levels:
        parts = [f"{100 * p:.1f} %" if level.boxes else "-" for p in (level.positive, level.above_negative)]
        rows.append(("any level" if level.name == "all" else level.name, f"{level.boxes:,}", *parts))
    yield _table(rows)
    if anchors.suggestion is not None and anchors.suggested_positive is not None:
        yield (
            f"<p>With these anchors {100 * anchors.suggested_positive:.1f} % would reach "
            f"IoU {anchors.positive_iou:g}:</p><pre>{html.escape(anchors.suggestion)}</pre>"
        )
    else:
        yield '<p class="small">A search for better sizes and ratios found none that are worth a change.</p>'


def _samples(samples: Sequence[Picture]) -> Iterator[str]:
    if not samples:
        return
    yield "<h2>What the network sees</h2>"
    yield "<p>Training images of the first epoch, augmented, with the boxes used for training.</p>"
    yield _gallery(samples)


def _gallery(pictures: Sequence[Picture]) -> str:
    return f'<div class="gallery">{"".join(map(_figure, pictures))}</div>' if pictures else ""


def _figure(picture: Picture) -> str:
    caption = html.escape(picture.caption)
    images = "".join(
        f'<img alt="{caption}" src="data:image/jpeg;base64,{base64.b64encode(jpeg).decode("ascii")}">'
        for jpeg in picture.jpegs
    )
    return f"<figure>{images}<figcaption>{caption}</figcaption></figure>"


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *rest = (
        "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row)
        for tag, row in (("th" if k == 0 else "td", row) for k, row in enumerate(rows))
    )
    lines = "".join(f"<tr>{row}</tr>" for row in rest)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>"
