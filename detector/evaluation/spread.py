"""Mean and spread over runs: of a recipe with several seeds, or of the folds of a cross-validation.

While `comparison` shows which of two detectors is better on the given images, this shows what to expect of a
recipe: the spread comes from the training itself and, over folds, from the images too.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from detector.evaluation.checkpoint import (
    OpenCheckpoint,
    open_checkpoint,
    score_checkpoint,
    set_to_score,
)
from detector.evaluation.coco import CocoResult, evaluate_files
from detector.evaluation.comparison import differing
from detector.evaluation.table import aligned, letters
from errors import InputError, some_of

log = logging.getLogger(__name__)

# Settings that differ between folds and seeds, or that do not change results.
_NO_RECIPE = (
    *("data.splits.", "data.annotations", "data.images", "data.on_error", "data.max_skipped", "train.seed"),
    *(
        "train.save_every",
        "train.eval_every",
        "train.log_every",
        "train.profile",
        "eval.batch_size",
        "eval.tile_batch_size",
        "eval.backend",
    ),
)
_METRICS = ("AP", "AP50", "AP75")


@dataclass(frozen=True)
class Spread:
    """Runs of one recipe.

    Attributes:
        names: names of the runs.
        images: number of images that each was scored on.
        metrics: AP, AP50 and AP75, one value per run; NaN without gt boxes.
        per_class: the AP of each class by name, likewise.
    """

    names: list[str]
    images: list[int]
    metrics: dict[str, list[float]]
    per_class: dict[str, list[float]]

    def as_json(self) -> dict[str, Any]:
        """Plain values; None instead of NaN."""
        return {
            "mean": _plain(self, _mean),
            "std": _plain(self, _deviation),
            "runs": [
                {"name": name, "images": images, **_plain(self, itemgetter(i))}
                for i, (name, images) in enumerate(zip(self.names, self.images, strict=True))
            ],
        }


def spread_of_checkpoints(paths: Sequence[Path], overrides: Sequence[str], split: str) -> Spread:
    """Score checkpoints (best.pt of run folders), each on the split of its own data set.

    Raises:
        InputError: a checkpoint, an override or the data is invalid, or a run has other classes.
    """
    opened = [open_checkpoint(path, overrides) for path in paths]
    for path, one in zip(paths, opened, strict=True):
        if set(one.classes) != set(opened[0].classes):
            raise InputError(
                f"{path} and {paths[0]} cannot be averaged: the classes of the former are "
                f"{some_of(one.classes, 9)}, of the latter {some_of(opened[0].classes, 9)}"
            )
    _warn_of_other_recipes(opened)
    sets = [set_to_score(one, overrides, split) for one in opened]
    results = [score_checkpoint(one, records).scores.coco for one, records in zip(opened, sets, strict=True)]
    return _spread([str(path) for path in paths], [len(records) for records in sets], results)


def _warn_of_twins(files: Sequence[Path]) -> None:
    if len({file.resolve() for file in files}) < len(files):
        log.warning("--mean: a run is given twice and counts twice")


def _warn_of_other_recipes(opened: Sequence[OpenCheckpoint]) -> None:
    """Warn of different recipes, or of one run given twice: their mean describes no recipe."""
    _warn_of_twins([one.file for one in opened])
    settings = differing([one.config for one in opened])
    keys = [key for key in settings[0] if not key.startswith(_NO_RECIPE)]
    if keys:
        what = some_of([f"{key} ({', '.join(str(one[key]) for one in settings)})" for key in keys], 3)
        log.warning("--mean: the runs differ in more than folds and seeds: %s", what)


def spread_of_files(results: Sequence[Path], annotations: Path) -> Spread:
    """As `spread_of_checkpoints`, for COCO results files.

    Raises:
        InputError: a file is missing or malformed.
    """
    _warn_of_twins(results)
    scored = [evaluate_files(path, annotations) for path in results]
    images = [len(one.material.image_ids) for one in scored]
    return _spread([str(path) for path in results], images, scored)


def spread_table(spread: Spread, title: str) -> str:
    """A row for each metric; a column for each run, then the mean and the standard deviation."""
    columns = letters(len(spread.names))
    rows = [["", *columns, "mean", "std"]]
    there = {name: each for name, each in spread.per_class.items() if not all(map(math.isnan, each))}
    lines = [*spread.metrics.items(), *((f"AP {name}", each) for name, each in there.items())]
    for name, values in lines:
        numbers = [*values, _mean(values), _deviation(values)]
        rows.append([name, *("-" if math.isnan(number) else f"{number:.3f}" for number in numbers)])
    return "\n".join(
        [
            f"{title}: mean and standard deviation over {len(spread.names)} runs",
            *(
                f"{letter}  {name} ({images} image{'s' * (images != 1)})"
                for letter, name, images in zip(columns, spread.names, spread.images, strict=True)
            ),
            *aligned(rows),
        ]
    )


def _spread(names: list[str], images: list[int], results: Sequence[CocoResult]) -> Spread:
    return Spread(
        names,
        images,
        {name: [_number(one.summary[name]) for one in results] for name in _METRICS},
        {name: [_number(one.per_class[name].ap) for one in results] for name in results[0].per_class},
    )


def _number(value: float) -> float:
    return math.nan if value < 0 else value  # -1 without gt boxes


def _mean(values: Sequence[float]) -> float:
    """The mean, ignoring NaN."""
    there = [value for value in values if not math.isnan(value)]
    return mean(there) if there else math.nan


def _deviation(values: Sequence[float]) -> float:
    """The sample standard deviation (n - 1), ignoring NaN."""
    there = [value for value in values if not math.isnan(value)]
    return stdev(there) if len(there) > 1 else math.nan


def _plain(spread: Spread, of: Callable[[list[float]], float]) -> dict[str, Any]:
    def plain(values: list[float]) -> float | None:
        number = of(values)
        return None if math.isnan(number) else number

    return {
        **{name: plain(values) for name, values in spread.metrics.items()},
        "per_class": {name: plain(values) for name, values in spread.per_class.items()},
    }
