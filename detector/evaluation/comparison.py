"""Compares runs, with the uncertainty due to the particular images they are scored on.

Paired bootstrap (Efron & Tibshirani 1993, chapters 8 and 13): images are resampled with replacement, the
same ones for all runs, and every metric is computed on each resample. The percentiles of a metric over the
resamples give its interval. The interval of the difference of two runs, found the same way, is far narrower:
an image that is hard for one run is hard for the other.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.sample import DetectionSet
from detector.config import Config
from detector.config.fields import leaf_values
from detector.evaluation.checkpoint import open_checkpoint, score_checkpoint, set_to_score
from detector.evaluation.coco import evaluate_files
from detector.evaluation.table import aligned, letters
from detector.evaluation.tally import Tally, average_precision, tally_of
from errors import InputError

RESAMPLES = 1000
CONFIDENCE = 0.95
_SEED = 0
# Images with a class (or with any gt box): below this, intervals are unreliable. With five images, one in
# seven differences between equal detectors excludes 0, instead of one in twenty.
_FEW = 10
_ACROSS = 3  # most runs shown as columns; more runs are shown as rows
_CLASSES = 8  # most classes with a column if runs are rows
_SETTINGS = 6  # most settings shown per run in the table; the JSON has all
_OF_THE_PLACE = ("run.", "data.root", "data.workers", "data.cache", "train.device", "train.log_every")


@dataclass(frozen=True)
class Interval:
    """A value with its confidence interval."""

    value: float
    low: float
    high: float
    few: bool = False  # too few images: resampling them cannot show what others would have given

    @property
    def excludes_zero(self) -> bool:
        return not self.few and (self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class RunResult:
    """One run: AP, AP50 and AP75, and the AP of each class by name."""

    name: str
    metrics: dict[str, Interval]
    per_class: dict[str, Interval]
    differences: dict[str, Interval]  # to the first run; empty for that one
    per_class_differences: dict[str, Interval]
    settings: dict[str, Any] = field(default_factory=dict)  # by key, where the runs differ


@dataclass(frozen=True)
class Comparison:
    """Runs on the same images."""

    runs: list[RunResult]
    images: int

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "images": self.images,
            "resamples": RESAMPLES,
            "confidence": CONFIDENCE,
            "runs": [
                {"name": run.name, "settings": run.settings, **_plain(run.metrics)}
                | {"per_class": _plain(run.per_class)}
                | (
                    {
                        "difference": {
                            **_plain(run.differences, True),
                            "per_class": _plain(run.per_class_differences, True),
                        }
                    }
                    if run.differences
                    else {}
                )
                for run in self.runs
            ],
        }


def compare_checkpoints(paths: Sequence[Path], overrides: Sequence[str], split: str) -> Comparison:
    """Score checkpoints (best.pt of run folders) on the same split; the first one is the baseline.

    Raises:
        InputError: a checkpoint, an override or the data is invalid, or a run has other data.
    """
    opened = [open_checkpoint(path, overrides) for path in paths]
    sets = [set_to_score(c, overrides, split) for c in opened]
    for path, records in zip(paths, sets, strict=True):
        difference = _difference(sets[0], records)
        if difference:
            raise InputError(
                f"{path} cannot be compared with {paths[0]}: {difference}; compare runs of the same data "
                "set, or set data.root and data.splits for all of them (for folds use --mean)"
            )
    scored = (score_checkpoint(c, records).scores for c, records in zip(opened, sets, strict=True))
    tallies = [tally_of(scores.coco.material) for scores in scored]
    compared = compare([str(path) for path in paths], tallies)
    settings = differing([c.config for c in opened])
    runs = [replace(run, settings=own) for run, own in zip(compared.runs, settings, strict=True)]
    return replace(compared, runs=runs)


def differing(configs: Sequence[Config]) -> list[dict[str, Any]]:
    """For each configuration, the training settings that are not the same in all, by dotted key."""
    plain = [leaf_values(config) for config in configs]
    keys = [key for key in plain[0] if not key.startswith(_OF_THE_PLACE)]
    several = [key for key in keys if any(values[key] != plain[0][key] for values in plain)]
    return [{key: values[key] for key in several} for values in plain]


def compare_files(results: Sequence[Path], annotations: Path) -> Comparison:
    """As `compare_checkpoints`, for COCO results files.

    Raises:
        InputError: a file is missing or malformed.
    """
    tallies = [tally_of(evaluate_files(path, annotations).material) for path in results]
    return compare([str(path) for path in results], tallies)


def compare(names: Sequence[str], tallies: Sequence[Tally]) -> Comparison:
    """Metrics, intervals, and differences to the first, for runs tallied on the same images.

    Raises:
        InputError: there are no gt boxes.
    """
    first = tallies[0]
    images = len(first.image_ids)
    if first.gt_counts.sum() == 0:
        raise InputError("there are no gt boxes to compare with")
    counts = draws(images)
    there = first.gt_counts > 0  # [I, K]
    few = [int(there.any(1).sum()) < _FEW] * 3 + (there.sum(0) < _FEW).tolist()
    values = []  # [1 + R, 3 + K] each
    for tally in tallies:
        # Each run orders classes by its own category ids, which may differ from the first run's.
        columns = [tally.classes.index(name) for name in first.classes]
        values.append(_metrics(average_precision(tally, counts)[:, :, columns]))
    runs = []
    for i, (name, mine) in enumerate(zip(names, values, strict=True)):
        own = _intervals(mine, few, first.classes, least=0)
        differences = _intervals(mine - values[0], few, first.classes, least=-1) if i else ({}, {})
        runs.append(RunResult(name, *own, *differences))
    return Comparison(runs, images)


def draws(images: int) -> NDArray[np.int32]:
    """Counts per resample and image: [1 + R, I]. The first row is all ones, the rest are bootstrap draws."""
    rng = np.random.default_rng(_SEED)
    counts = np.ones((1 + RESAMPLES, images), dtype=np.int32)
    for row in counts[1:]:
        row[:] = np.bincount(rng.integers(0, images, images), minlength=images)
    return counts


def comparison_table(comparison: Comparison, title: str) -> str:
    """A column for each run and each difference to the first; with many runs a row each, best first."""
    runs = comparison.runs
    columns = letters(len(runs))
    across = len(runs) <= _ACROSS
    rows = _runs_across(runs, columns) if across else _runs_down(runs, columns)
    more = 0 if across else len(_classes_there(runs)) - _CLASSES
    return "\n".join(
        [
            f"{title}: {comparison.images} images, {100 * CONFIDENCE:g} % intervals of {RESAMPLES} resamples",
            *(f"{letter}  {run.name}{_told(run)}" for letter, run in zip(columns, runs, strict=True)),
            *aligned(rows),
            *([f"and the AP of {more} more classes (use --output FILE.json for all)"] if more > 0 else []),
            "** the interval of the difference excludes 0, as one in twenty does by chance (not marked for "
            f"classes in fewer than {_FEW} images)",
        ]
    )


def _classes_there(runs: list[RunResult]) -> list[str]:
    """The classes with gt boxes, the same for all runs."""
    return [name for name, one in runs[0].per_class.items() if not np.isnan(one.value)]


def _runs_across(runs: list[RunResult], names: list[str]) -> list[list[str]]:
    """A header, then a row for each metric and class."""
    rows = [["", *names, *(f"{name} - A" for name in names[1:])]]
    for name in runs[0].metrics:
        own, others = [r.metrics[name] for r in runs], [r.differences[name] for r in runs[1:]]
        rows.append([name, *map(_cell, own), *map(_difference_cell, others)])
    for name in _classes_there(runs):
        own = [r.per_class[name] for r in runs]
        others = [r.per_class_differences[name] for r in runs[1:]]
        rows.append([f"AP {name}", *map(_cell, own), *map(_difference_cell, others)])
    return rows


def _runs_down(runs: list[RunResult], names: list[str]) -> list[list[str]]:
    """A row for each run, by falling AP, with the AP of some classes; the JSON has the intervals of all."""
    classes = _classes_there(runs)[:_CLASSES] if len(runs[0].per_class) > 1 else []
    rows = [["", "AP", "AP - A", "AP50", "AP75", *(f"AP {name}" for name in classes)]]
    for name, run in sorted(zip(names, runs, strict=True), key=lambda pair: -pair[1].metrics["AP"].value):
        difference = _difference_cell(run.differences["AP"]) if run.differences else ""
        others = [run.metrics["AP50"], run.metrics["AP75"], *(run.per_class[name] for name in classes)]
        plain = ["-" if np.isnan(one.value) else f"{one.value:.3f}" for one in others]
        rows.append([name, _cell(run.metrics["AP"]), difference, *plain])
    return rows


def _told(run: RunResult) -> str:
    """The settings that distinguish a run, shown after its name."""
    plain = (
        (key, value if isinstance(value, str) else json.dumps(value)) for key, value in run.settings.items()
    )
    settings = [f"{key}={value}" for key, value in plain]
    return f"  {' '.join(settings[:_SETTINGS])}{' ...' * (len(settings) > _SETTINGS)}" if settings else ""


def _cell(one: Interval) -> str:
    return "-" if np.isnan(one.value) else f"{one.value:.3f} [{one.low:.3f}, {one.high:.3f}]"


def _difference_cell(one: Interval) -> str:
    if np.isnan(one.value):
        return "-"
    return f"{one.value:+.3f} [{one.low:+.3f}, {one.high:+.3f}]" + " *" * one.excludes_zero


def _metrics(ap: NDArray[np.float64]) -> NDArray[np.float64]:
    """[R, T, K] -> AP, AP50, AP75 and the AP of each class: [R, 3 + K]; NaN without gt boxes."""
    there = ~np.isnan(ap[:, 0])  # [R, K]
    per_threshold = np.where(there[:, None], ap, 0).sum(2) / np.maximum(there.sum(1), 1)[:, None]  # [R, T]
    per_threshold[~there.any(1)] = np.nan
    of_all = (per_threshold.mean(1), per_threshold[:, 0], per_threshold[:, 5])
    return np.concatenate((np.stack(of_all, axis=1), ap.mean(1)), axis=1)


def _intervals(
    values: NDArray[np.float64], few: list[bool], classes: tuple[str, ...], least: float
) -> tuple[dict[str, Interval], dict[str, Interval]]:
    """Intervals over all classes, and of each class, from the values [1 + R, 3 + K]: row 0 is the metric
    itself, the others are the resamples.

    The resamples scatter about their mean as the metric does about the truth. But they are biased upwards,
    since an image drawn twice agrees with itself. So they are shifted to have the metric as their mean.

    Args:
        few: [3 + K], whether a column has too few images.
        least: the lowest possible value; the highest is 1.
    """
    tail = (1 - CONFIDENCE) / 2
    found = []
    for column, is_few in zip(values.T, few, strict=True):
        drawn = column[1:][~np.isnan(column[1:])]  # a rare class may be missing from a draw
        if np.isnan(column[0]) or not len(drawn):
            found.append(Interval(np.nan, np.nan, np.nan))
            continue
        ends = np.quantile(drawn, (tail, 1 - tail)) - (drawn.mean() - column[0])
        low, high = ends.clip(least, 1)
        found.append(Interval(float(column[0]), float(low), float(high), is_few))
    return dict(zip(("AP", "AP50", "AP75"), found[:3], strict=True)), dict(
        zip(classes, found[3:], strict=True)
    )


def _plain(intervals: dict[str, Interval], of_differences: bool = False) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for name, one in intervals.items():
        if np.isnan(one.value):
            plain[name] = None
            continue
        plain[name] = {"value": one.value, "low": one.low, "high": one.high}
        if of_differences:
            plain[name]["excludes_zero"] = one.excludes_zero
    return plain


def _difference(first: DetectionSet, other: DetectionSet) -> str | None:
    """How two sets differ, in words; None if they have the same images with the same gt boxes."""
    if set(first.classes) != set(other.classes):
        return (
            f"its classes are {', '.join(other.classes)}, but those of the first are "
            f"{', '.join(first.classes)}"
        )
    if len(first) != len(other):
        return f"it has {len(other)} images, but the first has {len(first)}"
    for mine, theirs in zip(other.files, first.files, strict=True):
        if Path(mine).name != Path(theirs).name:
            return f"its images differ, e.g. {mine} and {theirs}"
    # The order of the classes may differ: `compare` goes by name.
    labels = np.array([first.classes.index(name) for name in other.classes])[other.labels]
    same = (
        np.array_equal(first.image_ids, other.image_ids)
        and np.array_equal(first.offsets, other.offsets)
        and np.array_equal(first.boxes, other.boxes)
        and np.array_equal(first.labels, labels)
        and np.array_equal(first.ignore, other.ignore)
    )
    return None if same else "the gt boxes of the same images differ"
