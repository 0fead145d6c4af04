"""Recalibrates the scores of a checkpoint, for other evaluation settings or on another split."""

import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from detector.checkpoint import find_checkpoint, load_checkpoint
from detector.config.file import apply_overrides
from detector.evaluation.calibration import fit_calibration
from detector.evaluation.checkpoint import CheckpointScores, evaluate_checkpoint
from detector.output import check_output
from errors import InputError

OPTION = "--recalibrate"
_MARK = "recalibrated"  # key in the checkpoint


def check_recalibrated(file: Path, model: Path) -> None:
    """Check before the work. Raises InputError: the file is not writable, or no earlier output of this."""
    check_output(OPTION, file, inputs=[find_checkpoint(model)])
    if file.exists() and not (zipfile.is_zipfile(file) and load_checkpoint(file).get(_MARK)):
        raise InputError(
            f"{OPTION}: {file} exists and is not an earlier output of this option; name another file"
        )


def recalibrate(model: Path, overrides: Sequence[str], split: str) -> tuple[CheckpointScores, dict[str, Any]]:
    """Score a checkpoint on a split, and fit its calibration and thresholds to this split.

    Args:
        overrides: of the configuration; those of `eval` and of the image size in evaluation are stored in
            the new checkpoint.

    Returns:
        The scores of the new checkpoint on the split that it was fitted to, and its content for
        `save_checkpoint`.

    Raises:
        InputError: the checkpoint, an override or the data is invalid, the split has no gt boxes, or nothing
            is detected.
    """
    if not apply_overrides({}, overrides).get("eval", {}).get("calibrate", True):
        raise InputError(
            f"eval.calibrate=false: {OPTION} fits the calibration, which this setting turns "
            "off; leave the setting out"
        )
    raw = evaluate_checkpoint(model, [*overrides, "eval.calibrate=false"], split)
    known = raw.scores.coco.material.gt_totals() > 0
    calibration = fit_calibration(raw.scores.coco.matched, known) if known.any() else None
    if calibration is None:
        lacks = "has no gt boxes" if not known.any() else "has no detections"
        raise InputError(f"{OPTION}: the split {split} {lacks}, so there is nothing to calibrate with")
    scores = raw.scores.calibrated(calibration)
    content = load_checkpoint(raw.file)
    content.pop("training", None)  # the optimizer state: the new checkpoint is for inference
    content[_MARK] = True
    now = raw.config.model_dump(mode="json")
    content["config"]["eval"] = now["eval"] | {"calibrate": True}
    # These determine the images that the scores were fitted on.
    content["config"]["data"]["image_size"] = now["data"]["image_size"]
    content["config"]["data"]["transforms"]["eval"] = now["data"]["transforms"]["eval"]
    content["metrics"] = {**scores.coco.as_json(), **scores.extra}
    content["calibration"] = calibration.as_plain()
    content["evaluated"] = content["step"]
    content["fitted_on"] = raw.records.digest()
    return replace(raw, scores=scores), content
