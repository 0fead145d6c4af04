"""Scoring a checkpoint: everything that is needed is in it."""

from dataclasses import dataclass
from pathlib import Path

from data.sample import DetectionSet
from detector.build import build_device, build_eval_loader, build_model, build_set, place
from detector.checkpoint import find_checkpoint, load_checkpoint, load_weights
from detector.config import Config, apply_overrides, parse_config
from detector.evaluation.calibration import Calibration
from detector.evaluation.inference import join_predictions
from detector.evaluation.score import Scores, predictions_of, score


@dataclass(frozen=True)
class CheckpointScores:
    """Scores, and what they were taken of."""

    file: Path
    config: Config
    records: DetectionSet
    scores: Scores


def evaluate_checkpoint(path: Path, overrides: list[str], split: str) -> CheckpointScores:
    """Score a checkpoint (best.pt of a run folder) on a split: "train", "val" or "test".

    Raises:
        InputError: the checkpoint, an override or the data is wrong.
    """
    file = find_checkpoint(path, "best.pt")
    content = load_checkpoint(file)
    config = parse_config(apply_overrides(content["config"], overrides), str(file))
    device = build_device(config.train.device)
    model = build_model(config.model, len(content["classes"]), pretrained=False)
    load_weights(model, content["model"], str(file))
    records = build_set(config.data, split, tuple(content["classes"]))
    loader = build_eval_loader(config, records, device)
    model = place(model, config.train, device)
    scores = score(config, records, join_predictions(list(predictions_of(config, model, loader, device))))
    fitted = content.get("calibration")
    if fitted and config.eval.calibrate:
        scores = scores.calibrated(Calibration.from_plain(fitted))
    return CheckpointScores(file, config, records, scores)
