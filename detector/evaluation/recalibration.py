"""A checkpoint whose scores are calibrated anew: for other settings of evaluation, or on another split."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from detector.checkpoint import find_checkpoint, load_checkpoint, save_checkpoint
from detector.evaluation.calibration import fit_calibration
from detector.evaluation.checkpoint import CheckpointScores, evaluate_checkpoint
from detector.output import check_output
from errors import InputError

OPTION = "--recalibrate"
_EARLIER = "PK"  # how a checkpoint begins, which is a zip file


def check_recalibrated(file: Path, model: Path) -> None:
    """Before the work. Raises InputError: the file cannot be written, or is the checkpoint that is read."""
    check_output(OPTION, file, _EARLIER, [find_checkpoint(model)])


def recalibrate(
    model: Path, overrides: Sequence[str], split: str, file: Path, with_ids: bool = False
) -> CheckpointScores:
    """Score a checkpoint on a split, and write it with the calibration and the thresholds that fit there.

    Args:
        overrides: of the configuration; those of `eval` go into the new checkpoint.
        with_ids: as for `evaluate_checkpoint`.

    Returns:
        What the new checkpoint scores, on the very split that it was fitted to.

    Raises:
        InputError: the checkpoint, an override or the data is wrong, the split has no gt boxes, nothing is
            found, or there is no space.
    """
    raw = evaluate_checkpoint(model, [*overrides, "eval.calibrate=false"], split, with_ids)
    known = raw.scores.coco.material.gt_totals() > 0
    calibration = fit_calibration(raw.scores.coco.matched, known) if known.any() else None
    if calibration is None:
        lacks = "holds no gt boxes" if not known.any() else "has nothing found in it"
        raise InputError(f"{OPTION}: the split {split} {lacks}, so there is nothing to calibrate by")
    scores = raw.scores.calibrated(calibration)
    content = load_checkpoint(raw.file)
    content.pop("training", None)  # the state of the optimizer: this one is for use
    content["config"]["eval"] = raw.config.eval.model_dump(mode="json") | {"calibrate": True}
    content["metrics"] = {**scores.coco.as_json(), **scores.extra}
    content["calibration"] = calibration.as_plain()
    save_checkpoint(file, content, then="try again")
    return replace(raw, scores=scores)
