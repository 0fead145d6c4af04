"""The metrics of an evaluation as text."""

from collections.abc import Iterator, Sequence
from itertools import islice

from detector.evaluation.coco import COCO_NAMES, CocoResult
from detector.evaluation.error_breakdown import SHORT_NAMES


def metrics_table(result: CocoResult, extra: dict[str, float], title: str, most: int | None = None) -> str:
    """The 12 COCO metrics and others, then one line per class and the cost of each kind of error.

    Per class: AP, gt boxes, best F1 at IoU 0.5 with its precision and recall, and the score threshold.

    most: number of classes to show, those with the most gt boxes; default all.
    """
    there = result.commonest() or result.per_class
    shown = result.commonest(most) or dict(islice(there.items(), most))
    rows = [title, "  ".join(f"{name:>6}" for name in COCO_NAMES)]
    rows.append("  ".join(f"{result.summary[name]:6.3f}" for name in COCO_NAMES))
    if extra:
        rows.append("  ".join(f"{name} {value:.3f}" for name, value in extra.items()))
    width = max([5, *(len(name) for name in shown)])
    columns = ("AP", "AP50", "AP75", "gt", "best F1", "prec.", "recall", "at score")
    rows.append(f"{'class':{width}}" + "".join(f"  {column:>{max(6, len(column))}}" for column in columns))
    for name, one in shown.items():
        at = f"{one.best_threshold:8.3f}" if one.best_f1 > 0 else f"{'-':>8}"
        rows.append(
            f"{name:{width}}  {one.ap:6.3f}  {one.ap50:6.3f}  {one.ap75:6.3f}  {one.gt_boxes:6d}  "
            f"{one.best_f1:7.3f}  {one.best_precision:6.3f}  {one.best_recall:6.3f}  {at}"
        )
    if rest := len(there) - len(shown):
        rows.append(f"... and {rest} more, with fewer gt boxes (evaluate.py shows all)")
    if without := len(result.per_class) - len(there):
        rows.append(f"{without} class{'es' * (without > 1)} without gt boxes")
    if result.chosen:
        rows.append(f"at the thresholds {result.chosen.of}:")
        rows += _at_chosen(result, [*shown], width)
    costs = result.errors.costs()
    rows.append("AP50 that could be gained without each kind of error, and the number of errors:")
    rows.append("      " + "  ".join(f"{SHORT_NAMES[name]:>11}" for name in costs))
    rows.append("AP50  " + "  ".join(f"{cost.ap50:11.3f}" for cost in costs.values()))
    rows.append("count " + "  ".join(f"{cost.count:11d}" for cost in costs.values()))
    return "\n".join(rows)


def letters(count: int) -> list[str]:
    """Short column names: A to Z, then numbers."""
    return [chr(ord("A") + i) if i < 26 else str(i + 1) for i in range(count)]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with left-aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{cell:{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def _at_chosen(result: CocoResult, names: list[str], width: int) -> Iterator[str]:
    """A header, then a line for each of these classes."""
    columns = ("at score", "prec.", "recall", "F1", "right", "wrong", "missed")
    yield f"{'class':{width}}" + "".join(f"  {column:>8}" for column in columns)
    chosen = result.at_chosen()
    for name in names:
        one = chosen[name]
        cells = [f"{one.threshold:8.3f}"]
        cells += [f"{v:8.3f}" if v >= 0 else f"{'-':>8}" for v in (one.precision, one.recall, one.f1)]
        cells += [f"{count:8d}" for count in (one.right, one.wrong, one.missed)]
        yield "  ".join([f"{name:{width}}", *cells])
