"""A checkpoint ready for use, and its score: everything that is needed is in it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.feed import checked
from data.sample import Batch, DetectionSet
from detector.build import build_device, build_eval_loader, build_model, build_set, place
from detector.checkpoint import find_checkpoint, load_checkpoint, load_weights
from detector.config import Config
from detector.config_file import apply_overrides, parse_config
from detector.evaluation.calibration import Calibration
from detector.evaluation.inference import Predictions, join_predictions
from detector.evaluation.score import Scores, predict, score
from detector.memory import memory_explained
from detector.retinanet import RetinaNet

_DEFAULT_THRESHOLD = 0.5


@dataclass(frozen=True)
class OpenCheckpoint:
    """A model on its device, and what belongs to it."""

    file: Path
    config: Config
    model: RetinaNet
    device: torch.device
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    calibration: Calibration | None  # None as well where it is not wanted
    thresholds: tuple[float, ...]  # of each class the score with the best F1 in validation, or 0.5

    def detect(self, batch: Batch) -> Predictions:
        """What the model finds in a batch, with calibrated scores."""
        (found,) = predict(self.config, self.model, [batch], self.device)
        if self.calibration is None:
            return found
        return replace(found, scores=self.calibration(found.scores))


@dataclass(frozen=True)
class CheckpointScores:
    """Scores, and what they were taken of."""

    file: Path
    config: Config
    records: DetectionSet
    scores: Scores


def open_checkpoint(path: Path, overrides: Sequence[str], device_key: str = "train.device") -> OpenCheckpoint:
    """Load a checkpoint, or best.pt of a run folder.

    Args:
        device_key: where the user has set the device, for messages.

    Raises:
        InputError: the checkpoint or an override is wrong, or the device is not there or full.
    """
    file = find_checkpoint(path)
    content = load_checkpoint(file)
    config = parse_config(apply_overrides(content["config"], list(overrides)), str(file))
    device = build_device(config.train.device, key=device_key)
    model = build_model(config.model, len(content["classes"]), pretrained=False)
    load_weights(model, content["model"], str(file))
    fitted = content.get("calibration")
    calibration = Calibration.from_plain(fitted) if fitted else None
    # The metrics are of calibrated scores where the training was told to calibrate.
    trained = parse_config(content["config"], str(file)).eval.calibrate
    thresholds = _best_thresholds(content.get("metrics", {}))
    if calibration is not None and trained != config.eval.calibrate:
        thresholds = {} if trained else {k: float(calibration(np.array(t))) for k, t in thresholds.items()}
    with memory_explained(device, f"let it run elsewhere: {device_key}=cpu"):
        model = place(model, config.train, device)
    return OpenCheckpoint(
        file,
        config,
        model,
        device,
        tuple(content["classes"]),
        tuple(content["category_ids"]),
        calibration if config.eval.calibrate else None,
        tuple(thresholds.get(name, _DEFAULT_THRESHOLD) for name in content["classes"]),
    )


def _best_thresholds(metrics: dict[str, Any]) -> dict[str, float]:
    per_class = metrics.get("per_class", {})
    # Where nothing was found that is right, no threshold is better than another.
    return {n: float(one["best_f1_threshold"]) for n, one in per_class.items() if one.get("best_f1", 0) > 0}


def evaluate_checkpoint(path: Path, overrides: list[str], split: str) -> CheckpointScores:
    """Score a checkpoint (best.pt of a run folder) on a split: "train", "val" or "test".

    Raises:
        InputError: the checkpoint, an override or the data is wrong.
    """
    c = open_checkpoint(path, overrides)
    return score_checkpoint(c, build_set(c.config.data, split, c.classes))


def score_checkpoint(c: OpenCheckpoint, records: DetectionSet) -> CheckpointScores:
    """Score an open checkpoint on a set of its classes.

    Raises:
        InputError: an image cannot be used, or the memory does not suffice.
    """
    loader = build_eval_loader(c.config, records, c.device)
    with memory_explained(c.device, "set a lower eval.batch_size, or train.device=cpu"):
        found = join_predictions(list(predict(c.config, c.model, checked(loader), c.device)))
    return CheckpointScores(
        c.file, c.config, records, score(c.config, records, found).calibrated(c.calibration)
    )
