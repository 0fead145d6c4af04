"""Scores an exported file: only AP shows what a conversion to another precision costs."""

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data.sample import DetectionSet
from detector.config.file import keys_of
from detector.evaluation.calibration import Calibration
from detector.evaluation.checkpoint import (
    CheckpointScores,
    OpenCheckpoint,
    batches_to_score,
    checkpoint_scores,
    open_checkpoint,
    set_to_score,
)
from detector.evaluation.inference import detect_batches, join_predictions
from detector.evaluation.score import score
from detector.evaluation.tiling import build_tiling, warn_of_tiles
from detector.export.formats import FORMATS, INSTALL, ExportedFile, endings, format_of, refuse_elsewhere
from detector.export.metadata import resize_advice
from detector.postprocess import Detections
from errors import InputError, first_line

log = logging.getLogger(__name__)

OPTION = "--exported"
# Evaluation settings that are not fixed in the file.
_FREE = ("eval.backend", "eval.batch_size", "eval.tile", "eval.tile_overlap", "eval.tile_batch_size")


def score_exported(file: Path, model: Path, overrides: Sequence[str], split: str) -> CheckpointScores:
    """Score an exported file on a split of the data set of the checkpoint it was made from, on the CPU.

    Args:
        model: a checkpoint or a run folder, which defines data, classes and image sizes.

    Raises:
        InputError: the file cannot be run or does not match the checkpoint; and as `evaluate_checkpoint`.
    """
    fixed = [key for key in keys_of(overrides) if key.startswith("eval.") and key not in _FREE]
    if fixed:
        raise InputError(f"{fixed[0]}: {OPTION} {file} has its own value; set it in export.py")
    refuse_elsewhere(overrides, f"{OPTION} {file} is run on the CPU, in its own precision")
    c = open_checkpoint(model, [*overrides, "train.device=cpu", "train.amp=off"])
    exported = open_exported(file, c)
    records = set_to_score(c, overrides, split)
    warn_of_tiles(c.config, records)
    return _score(c, exported, file, records)


def open_exported(file: Path, c: OpenCheckpoint) -> ExportedFile:
    """Read a file of `export.py`, or one converted from such a file.

    Raises:
        InputError: it is missing, cannot be run here, or does not match the checkpoint.
    """
    form = format_of(file)
    if form is None:
        raise InputError(f"{OPTION}: {file} does not end in {endings()}")
    try:
        exported = FORMATS[form].read(file.read_bytes())
    except OSError as error:
        raise InputError(f"{OPTION}: {file} cannot be read: {error.strerror}") from None
    except ImportError as error:
        raise InputError(f"{OPTION}: {file} needs {error.name}: {INSTALL}") from None
    except Exception as error:  # each runtime raises its own
        raise InputError(f"{OPTION}: {file} cannot be run here: {first_line(error)}") from None
    told = exported.told
    if told.get("outputs", "detections") != "detections":
        raise InputError(
            f"{OPTION}: {file} was written with --raw and returns no detections; export it without --raw"
        )
    if told.get("classes", [*c.classes]) != [*c.classes]:
        others = ", ".join(told["classes"])
        raise InputError(
            f"{OPTION}: {file} finds the classes {others}, but {c.file} finds {', '.join(c.classes)}"
        )
    if told.get("resize", advice := resize_advice(c.config)) != advice:
        log.warning(
            "data.transforms.eval: %s was made for images resized with %s, but gets them resized with %s",
            file, json.dumps(told["resize"]), json.dumps(advice),
        )  # fmt: skip
    return exported


def _score(c: OpenCheckpoint, exported: ExportedFile, file: Path, records: DetectionSet) -> CheckpointScores:
    def detect(images: Tensor, sizes: Tensor) -> list[Detections]:
        """Detect per image size, without padding, which the file would treat as part of the image."""
        found: dict[int, Detections] = {}
        for size in sizes.unique(dim=0):
            rows = (sizes == size).all(dim=1).nonzero().squeeze(1)
            height, width = size.tolist()
            found.update(zip(rows.tolist(), run(images[rows, :, :height, :width]), strict=True))
        return [found[row] for row in range(len(sizes))]

    def run(images: Tensor) -> list[Detections]:
        try:
            boxes, scores, labels, counts = exported(images.contiguous().numpy())
        except Exception as error:  # each runtime raises its own
            raise InputError(f"{OPTION}: {file} cannot be run on these images: {first_line(error)}") from None
        if labels.max() >= len(c.classes):
            raise InputError(f"{OPTION}: {file} finds more classes than the {len(c.classes)} of {c.file}")
        if tiling is not None and calibration is not None:  # tiles are merged by raw scores, as in evaluation
            scores = calibration.inverse(scores.astype(np.float64), labels)
        arrays = [torch.from_numpy(array) for array in (boxes, scores, labels)]
        return [Detections(*(array[i, :n] for array in arrays)) for i, n in enumerate(counts.tolist())]

    told = exported.told.get("calibration")
    calibration = Calibration.from_plain(told, len(c.classes)) if told else None
    # Tiles are merged with the limits that the file applies to each of them.
    limits = {name: exported.told.get(name) for name in ("nms_threshold", "detections_per_img")}
    known = {name: limit for name, limit in limits.items() if limit is not None}
    tiling = build_tiling(c.config.eval.model_copy(update=known))
    batches = batches_to_score(c, records, file)
    found = join_predictions([*detect_batches(batches, c.device, detect, tiling)])
    if tiling is not None and calibration is not None:
        found = replace(found, scores=calibration(found.scores, found.labels))
    scores = score(c.config, records, found)
    # The file's scores are calibrated already, if it has a calibration: there is no error of raw scores.
    scores = replace(scores, calibration={"calibration_error": scores.calibration["calibration_error_raw"]})
    done = checkpoint_scores(c, file, records, scores)
    mine = dict(zip(c.classes, exported.told.get("thresholds", c.thresholds), strict=True))
    if mine == done.thresholds:
        return done
    log.warning(
        "%s has its own calibration or thresholds, not those of %s; it is scored with its own",
        file,
        c.file,
    )
    return replace(done, thresholds=mine, fitted=False)
