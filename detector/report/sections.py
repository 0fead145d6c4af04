"""The sections of the report, as HTML."""

from collections.abc import Iterable, Sequence
from html import escape

import numpy as np

from detector.evaluation.calibration import calibration_error
from detector.evaluation.coco import COCO_NAMES, CocoResult
from detector.evaluation.curves import curves as over_thresholds
from detector.evaluation.matching import Floats, Ints
from detector.evaluation.tally import RECALLS
from detector.report import svg
from detector.report.facts import (
    Shown,
    calibration_curve,
    score_histogram,
    score_range,
    score_steps,
    size_counts,
)
from detector.report.galleries import Galleries, Picture

_MATRIX = 20  # most classes in a confusion matrix
_NONE = "\N{EN DASH}"
_AT = ((0, "IoU 0.5", svg.BLUE), (5, "0.75", svg.VERMILION), (8, "0.9", svg.GREEN))

_ERRORS = {
    "classification": ("class wrong", "on an object of another class, IoU at least 0.5"),
    "localisation": ("box wrong", "on an object of its class, IoU from 0.1 to 0.5"),
    "both": ("class and box wrong", "near an object of another class, IoU from 0.1 to 0.5"),
    "duplicate": ("duplicate", "on an object that a better detection has found"),
    "background": ("background", "on nothing, IoU up to 0.1"),
    "missed": ("missed", "gt boxes without even a detection of which only the class or the box is wrong"),
    "false_positives": ("all false detections", "if every right detection ranked above every wrong one"),
    "false_negatives": ("all gt boxes not found", "not counted"),
}


def summary(result: CocoResult, facts: Sequence[tuple[str, str]], extra: dict[str, float]) -> str:
    """What was scored, and the 12 COCO metrics."""
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts)
    numbers = _table(COCO_NAMES, [[_value(result.summary[name]) for name in COCO_NAMES]])
    more = "; ".join(f"{name.replace('_', ' ')} {_value(value)}" for name, value in extra.items())
    return _section("Summary", f"<dl>{rows}</dl>{numbers}" + (f"<p>{escape(more)}</p>" if more else ""))


def errors(result: CocoResult) -> str:
    """What each kind of error costs in AP50."""
    costs = result.errors.costs()
    kinds = [name for name in costs if name not in ("false_positives", "false_negatives")]
    chart = svg.bars(
        [(_ERRORS[name][0], costs[name].ap50, f"+{costs[name].ap50:.3f}", svg.BLUE) for name in kinds],
        "AP50 gained without the errors of each kind",
    )
    rows = [
        [escape(_ERRORS[name][0]), escape(_ERRORS[name][1]), f"{cost.count:,}", f"+{cost.ap50:.3f}"]
        for name, cost in costs.items()
    ]
    table = _table(("kind", "detections (or gt boxes) that are", "count", "AP50"), rows, words=2)
    text = (
        f"AP50 is {_value(result.errors.ap50)}. Each bar shows how much it would gain without errors of "
        "that kind, with all others unchanged (TIDE, Bolya et al. 2020). The bars do not add up, because "
        "errors hide one another. Detections of all scores are counted."
    )
    return _section("What holds AP50 back", f"<p>{text}</p>{_figure(chart)}{table}")


def classes(result: CocoResult) -> str:
    """One line per class."""
    head = ("class", "gt", "detections", "AP", "AP50", "AP75", "best F1", "threshold", "precision", "recall")
    rows = [
        [
            escape(name), f"{one.gt_boxes:,}", f"{one.detections:,}",
            *map(_value, (one.ap, one.ap50, one.ap75, one.best_f1, one.told_threshold,
                          one.best_precision, one.best_recall)),
        ]
        for name, one in result.per_class.items()
    ]  # fmt: skip
    text = (
        "The threshold is the score with the best F1 at IoU 0.5; precision and recall are for detections "
        "with at least that score."
    )
    return _section("Classes", f"<p>{text}</p>{_table(head, rows)}{_at_chosen(result)}")


def _at_chosen(result: CocoResult) -> str:
    if not result.chosen:
        return ""
    head = ("class", "threshold", "precision", "recall", "F1", "right", "wrong", "missed")
    rows = [
        [escape(name), *map(_value, (one.threshold, one.precision, one.recall, one.f1)),
         f"{one.right:,}", f"{one.wrong:,}", f"{one.missed:,}"]
        for name, one in result.at_chosen().items()
    ]  # fmt: skip
    text = (
        f"At the thresholds {result.chosen.of}, which confusion, calibration, sizes and pictures below use "
        "too."
    )
    return f"<p>{text}</p>{_table(head, rows)}"


def curves(result: CocoResult) -> str:
    """Precision over recall: the mean over classes, then each class."""
    known = [label for label, one in enumerate(result.per_class.values()) if one.gt_boxes > 0]
    figures = []
    if len(known) > 1:
        chart = _curve_axes("precision over recall, mean of the classes")
        for at, label, style in _AT:
            _curve(chart, result.precision[at][:, known].mean(axis=1), style, label)
        figures.append(_figure(chart.svg(), "mean of the classes"))
    names = list(result.per_class)
    for k in known:
        one = result.per_class[names[k]]
        chart = _curve_axes(f"precision over recall, {names[k]}")
        for at, label, style in _AT:
            _curve(chart, result.precision[at, :, k], style, label)
        best = np.array([one.best_recall]), np.array([one.best_precision])
        chart.points(*best, svg.Style("#000000"), "best F1")
        figures.append(_figure(chart.svg(), f"{names[k]}, AP {_value(one.ap)}"))
    text = (
        "Interpolated as COCO does. Curves that end early lack recall; a wide gap between 0.5 and 0.75 "
        "means that objects are found, but with loose boxes."
    )
    return _section("Precision and recall", f"<p>{text}</p>{_grid(figures)}")


def thresholds(result: CocoResult) -> str:
    """Precision, recall and F1 over the score threshold, class by class."""
    across, steps = _score_axis(result), score_steps(result.matched)
    marks = {name: (one.told_threshold, one.best_f1) for name, one in result.per_class.items()}
    if result.chosen:
        marks = {name: (one.threshold, one.f1) for name, one in result.at_chosen().items()}
    figures = []
    for one in over_thresholds(result, steps):
        there = one.right + one.wrong > 0  # precision is undefined without detections
        if not there.any():
            continue
        chart = svg.Chart(across, svg.Axis(""), f"over the threshold, {one.name}", 300, 240)
        for values, style, label in (
            (one.precision, svg.BLUE, "precision"),
            (one.recall, svg.VERMILION, "recall"),
            (one.f1, svg.GREEN, "F1"),
        ):
            chart.line(steps[there], values[there], style, label)
        threshold, f1 = marks[one.name]
        if f1 > 0:
            chart.points(np.array([threshold]), np.array([f1]), svg.Style("#000000"), "threshold")
        figures.append(_figure(chart.svg(), f"{one.name}, threshold {_value(threshold)}"))
    text = (
        "Precision, recall and F1 at IoU 0.5 of the detections with at least each score. A flat top of F1 "
        "means that the threshold matters little; a higher threshold trades recall for precision."
    )
    return _section("Choosing a threshold", f"<p>{text}</p>{_grid(figures)}")


def matrix(result: CocoResult, table: Ints) -> str:
    """Which class is confused with which. table: from `confusion`."""
    names, sums = list(result.per_class), table.sum(axis=1)
    text = (
        "Detections with at least the threshold of their class, at IoU 0.5; shades show the share of the "
        "row. Row 'nothing': detections on nothing, or on an object that already has a detection, of its "
        "own or of another class. Column 'nothing': gt boxes not found."
    )
    if len(names) > _MATRIX:
        off = table.copy()
        np.fill_diagonal(off, 0)
        off[-1] = off[:, -1] = 0
        often = np.sort(np.argsort(-(off.sum(axis=0) + off.sum(axis=1))[:-1], kind="stable")[:_MATRIX])
        picked = [*often.tolist(), len(names)]
        table, sums, names = table[np.ix_(picked, picked)], sums[picked], [names[k] for k in often]
        text += f" The {_MATRIX} classes that are confused most often are shown."
    labels = [*names, "nothing"]
    chart = svg.heat_map(labels, labels, table, sums, "confusion matrix: gt in rows, detections in columns")
    return _section("Confusion", f"<p>{text}</p>{_figure(chart)}")


def scores(result: CocoResult, at: Shown) -> str:
    """The scores of right and wrong detections, and their calibration."""
    matched = result.matched
    edges, right, wrong = score_histogram(matched)
    most = max(10.0, float(max(right.max(), wrong.max())))
    decades = tuple(10.0**k for k in range(int(np.log10(most)) + 1))
    chart = svg.Chart(
        _score_axis(result), svg.Axis("detections", 0.5, most, decades, log=True), "scores, right and wrong"
    )
    chart.steps(edges, np.maximum(right, 0.5), svg.BLUE, "right", filled=True)
    chart.steps(edges, np.maximum(wrong, 0.5), svg.VERMILION, "wrong")
    figures = [_figure(chart.svg(), "scores of right and wrong detections")]
    text = (
        "Right means matched at IoU 0.5. The further apart the two are, the better a single threshold "
        "separates them."
    )
    if len(matched.scores) and matched.scores.min() >= 0 and matched.scores.max() <= 1:
        score, share, counts = calibration_curve(matched)
        chart = svg.Chart(
            svg.Axis("score"), svg.Axis("share that is right"), "share that is right, over the score"
        )
        chart.line(np.array([0.0, 1.0]), np.array([0.0, 1.0]), svg.GREY, "score = probability")
        chart.line(score, share, svg.BLUE)
        radii = 3 + 5 * np.log10(counts) / max(1.0, float(np.log10(counts.max())))
        chart.points(score, share, svg.BLUE, "detections (more: larger)", radii)
        mine = matched.scores >= at.thresholds[matched.labels]
        errors = calibration_error(matched.scores[mine], matched.correct[mine])
        of_all = calibration_error(matched.scores, matched.correct)
        caption = (
            f"calibration, error {errors:.3f} at or above the thresholds, {of_all:.3f} for all detections"
        )
        figures.append(_figure(chart.svg(), caption))
        text += (
            " On the dashed line a score is the probability of being right; below it, scores are too high."
        )
    return _section("Scores", f"<p>{text}</p>{_grid(figures)}")


def sizes(result: CocoResult, at: Shown) -> str:
    """Results for COCO's three sizes."""
    rows = []
    bounds = {"small": "up to 32²", "medium": "32² to 96²", "large": "96² and more"}
    for name, (total, found) in size_counts(result, at).items():
        part = f"{found:,} ({found / total:.0%})" if total else _NONE
        ap, ar = result.summary[f"AP{name[0]}"], result.summary[f"AR{name[0]}"]
        rows.append([name, bounds[name], f"{total:,}", part, _value(ap), _value(ar)])
    head = ("size", "area in px", "gt", "found at the threshold", "AP", "AR")
    text = "By the annotated area, in pixels of the image file. AP and AR are means over IoU 0.5 to 0.95."
    return _section("Sizes", f"<p>{text}</p>{_table(head, rows, words=2)}")


def pictures(shown: Galleries | None) -> str:
    """The galleries, or the reason why there are none."""
    if shown is None:
        text = "No pictures: the images were not available (give their folder with --images DIR)."
        return _section("Pictures", f"<p>{text}</p>")
    legend = (
        "<p>Dashed lines: gt. Solid lines: detections with their scores. Each class has its own colour. "
        "Only boxes that overlap the one in question are shown.</p>"
    )
    return (
        _section("Worst false detections", legend + _gallery(shown.false, "crops"))
        + _section("Worst misses", legend + _gallery(shown.missed, "crops"))
        + _section("Worst images", _pairs() + _gallery(shown.worst, "pairs"))
        + _section("Best images", _pairs() + _gallery(shown.best, "pairs"))
    )


def _pairs() -> str:
    return (
        "<p>Left: gt, dashed; right: detections at or above the thresholds. Sorted by the F1 of the "
        "image.</p>"
    )


def _gallery(entries: Sequence[Picture], kind: str) -> str:
    if not entries:
        return "<p>None.</p>"
    parts = []
    for entry in entries:
        images = "".join(f'<img alt="{escape(entry.title)}" src="{jpeg}">' for jpeg in entry.jpegs)
        caption = f"<b>{escape(entry.title)}</b><br>{escape(entry.text)}"
        parts.append(f'<figure><div class="images">{images}</div><figcaption>{caption}</figcaption></figure>')
    return f'<div class="{kind}">{"".join(parts)}</div>'


def _score_axis(result: CocoResult) -> svg.Axis:
    low, high = score_range(result.matched)
    return svg.Axis("score", low, high, tuple(np.linspace(low, high, 6).round(2).tolist()))


def _curve_axes(what: str) -> svg.Chart:
    return svg.Chart(svg.Axis("recall"), svg.Axis("precision"), what, 300, 240)


def _curve(chart: svg.Chart, precision: Floats, style: svg.Style, label: str) -> None:
    """Draw the curve down to 0 where recall ends."""
    reached = min(int((precision > 0).sum()) + 1, len(precision))
    chart.line(RECALLS[:reached], precision[:reached], style, label)


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>\n"


def _figure(content: str, caption: str = "") -> str:
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure>{content}{below}</figure>"


def _grid(figures: Iterable[str]) -> str:
    return f'<div class="charts">{"".join(figures)}</div>'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """Cells are HTML; the first `words` columns are text, the others numbers."""
    heads = "".join(f'<th class="{"t" if k < words else "n"}">{escape(h)}</th>' for k, h in enumerate(head))
    body = "".join(
        "<tr>"
        + "".join(f'<td class="{"t" if k < words else "n"}">{cell}</td>' for k, cell in enumerate(row))
        + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'


def _value(value: float) -> str:
    """Three decimals; a dash for COCO's -1, which means undefined."""
    return _NONE if value == -1 else f"{value:.3f}"
