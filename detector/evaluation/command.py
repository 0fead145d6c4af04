"""The command of evaluate.py: scores one run in detail, or several side by side."""

import json
import logging
import os
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

from detector.checkpoint import save_checkpoint
from detector.evaluation.checkpoint import evaluate_checkpoint
from detector.evaluation.coco import Chosen, CocoResult, evaluate_material
from detector.evaluation.coco_results import BEGINNING, results_text
from detector.evaluation.comparison import compare_checkpoints, compare_files, comparison_table
from detector.evaluation.material import read_material
from detector.evaluation.recalibration import OPTION, check_recalibrated, recalibrate
from detector.evaluation.spread import spread_of_checkpoints, spread_of_files, spread_table
from detector.evaluation.table import metrics_table
from detector.export.scoring import OPTION as EXPORTED
from detector.export.scoring import score_exported
from detector.output import check_output, write_text
from detector.report.page import check_report_folder, write_report
from detector.thresholds import chosen_thresholds, parse_thresholds
from errors import InputError

log = logging.getLogger(__name__)

# How files written by --output begin: metrics, a comparison, or a mean.
_EARLIER = r'\{\s*"(AP"|images": *\d|mean": *\{)'


@dataclass(frozen=True)
class Wanted:
    """The parsed command line."""

    models: list[Path]
    overrides: list[str]
    split: str | None
    predictions: list[Path]
    annotations: Path | None
    images: Path | None
    output: Path | None
    results: Path | None
    report: Path | None
    recalibrated: Path | None
    mean: bool
    threshold: str | None
    exported: Path | None

    @property
    def several(self) -> bool:
        return len(self.models) > 1 or len(self.predictions) > 1


def evaluate(wanted: Wanted) -> None:
    """Score what the command line names, print the table, and write the JSON and the report."""
    _check(wanted)
    if wanted.several:
        _write_metrics(wanted, *_side_by_side(wanted))
        return
    one = _score(wanted)
    if not any(of_class.gt_boxes for of_class in one.result.per_class.values()):
        log.warning("there are no gt boxes to score against, so all metrics are -1")
    _write_metrics(wanted, {**one.result.as_json(), **one.extra}, one.table(), one)


def _check(wanted: Wanted) -> None:
    """Checks before the work. Raises InputError: options contradict each other, or a file is not writable."""
    w = wanted
    if os.environ.get("WORLD_SIZE", "1") not in ("", "0", "1"):
        raise InputError("evaluate.py runs in a single process; start it with python, not with torchrun")
    _check_that_outputs_differ(w)
    for option, file, earlier in (("--output", w.output, _EARLIER), ("--results", w.results, BEGINNING)):
        if file is None:
            continue
        check_output(option, file, earlier)
    if w.output is not None and w.output.suffix.lower() == ".csv":
        raise InputError(
            f"--output: {w.output} would contain JSON; name it .json (for tables use --report DIR)"
        )
    if w.predictions or w.annotations is not None:
        if not w.predictions or w.annotations is None or w.models:
            raise InputError("--predictions and --annotations must be given together, and without a model")
        if w.overrides:
            raise InputError(
                f"{w.overrides[0]}: settings apply only to a model; existing results are scored as they are"
            )
        if w.split is not None:
            raise InputError(
                "--split selects a split of a checkpoint's data set; with --annotations leave it out"
            )
    elif not w.models:
        raise InputError("give a run folder or a checkpoint, or --predictions with --annotations")
    if w.exported is not None:
        if len(w.models) != 1:
            raise InputError(f"{EXPORTED} FILE needs the checkpoint that it was exported from: give that too")
        if w.recalibrated is not None:
            raise InputError(f"{OPTION} is for checkpoints; recalibrate the checkpoint, and export it again")
    if w.threshold is not None:
        parse_thresholds(w.threshold)
        if w.several:
            raise InputError("--threshold is for a single run or results file: give only one")
        if w.recalibrated is not None:
            raise InputError(f"--threshold: {OPTION} fits the thresholds again; leave --threshold out")
    if w.mean and not w.several:
        raise InputError("--mean needs several runs or results files: give at least two")
    if w.images is not None and (w.report is None or not w.predictions):
        raise InputError("--images is for the pictures of --predictions with --report")
    if w.results is not None:
        if len(w.models) != 1:
            raise InputError("--results writes the detections of a single checkpoint: give one")
    if w.recalibrated is not None:
        if len(w.models) != 1:
            raise InputError(f"{OPTION} is for a single checkpoint: give one")
        if w.recalibrated.suffix != ".pt":
            raise InputError(f"{OPTION}: {w.recalibrated} does not end in .pt, as checkpoints do")
        check_recalibrated(w.recalibrated, w.models[0])
    if w.report is not None:
        if w.several:
            raise InputError("--report is for a single run: give only one")
        check_report_folder(w.report)


def _check_that_outputs_differ(w: Wanted) -> None:
    named = {"--output": w.output, "--results": w.results, OPTION: w.recalibrated, "--report": w.report}
    outputs = {option: path.resolve() for option, path in named.items() if path is not None}
    for (one, file), (other, same) in combinations(outputs.items(), 2):
        if file == same:
            raise InputError(f"{one} and {other} are both {named[other]}; name two different files")
        if other == "--report" and same in file.parents:
            raise InputError(
                f"{one}: {named[one]} is in the folder of --report, which is only for the report; choose "
                "another place"
            )


def _side_by_side(wanted: Wanted) -> tuple[dict[str, Any], str]:
    """Several checkpoints or results files, compared or averaged: as JSON and as a table."""
    w, split = wanted, wanted.split or "val"
    title = f"split {split}" if w.annotations is None else str(w.annotations)
    if w.mean:
        spread = (
            spread_of_checkpoints(w.models, w.overrides, split)
            if w.annotations is None
            else spread_of_files(w.predictions, w.annotations)
        )
        return spread.as_json(), spread_table(spread, title)
    compared = (
        compare_checkpoints(w.models, w.overrides, split)
        if w.annotations is None
        else compare_files(w.predictions, w.annotations)
    )
    return compared.as_json(), comparison_table(compared, title)


@dataclass(frozen=True)
class Scored:
    """The scores of one checkpoint or results file."""

    title: str
    facts: list[tuple[str, str]]  # for the head of the report
    result: CocoResult
    extra: dict[str, float]
    results: str | None = None  # content of the COCO results file, if requested
    recalibrated: dict[str, Any] | None = None  # content of the recalibrated checkpoint, if requested

    def table(self) -> str:
        return metrics_table(self.result, self.extra, self.title)


def _score(wanted: Wanted) -> Scored:
    """Score one checkpoint or one results file."""
    if wanted.annotations is not None:
        (results,) = wanted.predictions
        result = evaluate_material(read_material(results, wanted.annotations, wanted.images))
        result = _at_chosen(result, wanted.threshold, {})
        return Scored(str(results), [("annotations", str(wanted.annotations))], result, {})

    (model,), split = wanted.models, wanted.split or "val"
    content = None
    if wanted.exported is not None:
        done = score_exported(wanted.exported, model, wanted.overrides, split)
    elif wanted.recalibrated is None:
        done = evaluate_checkpoint(model, wanted.overrides, split)
    else:
        done, content = recalibrate(model, wanted.overrides, split)
    if wanted.results is not None and done.records.renumbered:
        data = [word for word in wanted.overrides if word.startswith("data.")]
        log.warning(
            "--results: the ids of images and classes in that file differ from those of the annotations, "
            "if those have any; to write the ground truth with the same ids, use python -m data.convert %s "
            "--split %s --output FILE",
            shlex.join([str(model), *data]), split,
        )  # fmt: skip
    of_split = f"{split} of {done.config.data.root}"
    of_file = [("checkpoint", str(done.file))]
    if wanted.exported is not None:
        of_file = [("exported file", str(done.file)), ("checkpoint", str(model))]
    result = done.scores.coco
    if content is None and (wanted.threshold is not None or not done.fitted):
        result = _at_chosen(result, wanted.threshold, done.thresholds)
    return Scored(
        f"{done.file}, split {of_split} ({len(done.records)} images)",
        [*of_file, ("split", of_split)],
        result,
        done.scores.extra,
        results_text(done.coco_results()) if wanted.results is not None else None,
        content,
    )


def _at_chosen(result: CocoResult, threshold: str | None, usual: Mapping[str, float]) -> CocoResult:
    """The result at thresholds that are not fitted to it.

    Args:
        threshold: the value of --threshold; if None, the usual thresholds are used, if there are any.
        usual: default thresholds by class; classes without one use the best threshold of the result.

    Raises:
        InputError: a class does not exist.
    """
    if threshold is None and not usual:
        return result
    best = dict(zip(result.per_class, result.best_thresholds.tolist(), strict=True))
    rest = "of the checkpoint" if usual else "with the best F1 on these images"
    if threshold is None:
        return replace(result, chosen=Chosen({name: usual[name] for name in best}, rest))
    least = parse_thresholds(threshold)
    chosen = chosen_thresholds(least, {name: usual.get(name, best[name]) for name in best})
    all_given = "" in least or best.keys() <= least.keys()
    return replace(result, chosen=Chosen(chosen, "given" if all_given else f"given, else {rest}"))


def _write_metrics(wanted: Wanted, content: dict[str, Any], text: str, one: Scored | None = None) -> None:
    """Write the JSON and other requested files and print the table; a failure to write one skips no other."""
    metrics = partial(write_text, text=json.dumps(content, indent=2) + "\n")
    files: list[tuple[str, Path | None, Callable[[Path], Path | None]]] = [
        ("metrics", wanted.output, metrics)
    ]
    if one is not None:
        if one.recalibrated is not None:
            checkpoint = partial(save_checkpoint, content=one.recalibrated, then="try again")
            files.append(("checkpoint", wanted.recalibrated, checkpoint))
        if one.results is not None:
            files.append(("results", wanted.results, partial(write_text, text=one.results)))
        name = f"Evaluation of {wanted.exported or [*wanted.models, *wanted.predictions][0]}"
        report = partial(write_report, title=name, facts=one.facts, result=one.result, extra=one.extra)
        files.append(("report", wanted.report, report))
    failures: list[InputError] = []
    try:
        for what, file, write in files:
            if file is None:
                continue
            try:
                text += f"\n{what}: {write(file) or file}"
            except InputError as error:
                failures.append(error)
    finally:
        print(text)  # last, as the reader of the pipe may be gone (| head)
    for other in failures[1:]:
        log.warning("%s", other)
    if failures:
        raise failures[0]
