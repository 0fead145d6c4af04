"""Opens checkpoints for use and scores them; a checkpoint contains everything needed."""

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from data.feed import checked
from data.progress import Progress
from data.sample import Batch, DetectionSet, is_listed
from detector.builders.data import build_eval_loader, build_set, transforms_of
from detector.builders.device import build_amp, build_device, cpu_is_fast_in_bf16
from detector.builders.network import build_model, place
from detector.checkpoint import find_checkpoint, load_checkpoint, load_weights
from detector.config import Config, DataConfig
from detector.config.file import apply_overrides, keys_of, parse_config
from detector.evaluation.calibration import Calibration
from detector.evaluation.coco_results import result_entry
from detector.evaluation.image_sizes import warn_of_scale
from detector.evaluation.inference import Predictions, best_first, for_inference, join_predictions
from detector.evaluation.score import Scores, predict, score
from detector.evaluation.tiling import warn_of_tiles
from detector.memory import memory_explained
from detector.retinanet import RetinaNet
from detector.weights import OF_TRAINING
from errors import InputError

log = logging.getLogger(__name__)

_DEFAULT_THRESHOLD = 0.5
_TRAIN_KEYS_USED = ("amp", "channels_last", "device")


@dataclass(frozen=True)
class OpenCheckpoint:
    """A model on its device, with everything that belongs to it."""

    file: Path
    config: Config
    trained: DataConfig  # as in training, without overrides
    model: RetinaNet
    device: torch.device
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    calibration: Calibration | None  # also None if eval.calibrate is off
    thresholds: tuple[float, ...]  # per class, the score with the best F1 in validation, or 0.5
    fitted_on: str | None  # digest of the set that thresholds and calibration come from; None in old files

    @cached_property
    def ready(self) -> RetinaNet:
        """The model optimised for inference, with fixed weights."""
        return for_inference(self.model, build_amp(self.config.train, self.device))

    def detect(self, batch: Batch) -> Predictions:
        """The model's detections in a batch, with calibrated scores, best first within each image."""
        (found,) = predict(self.config, self.ready, [batch], self.device)
        if self.calibration is None:
            return found
        return best_first(replace(found, scores=self.calibration(found.scores, found.labels)))


@dataclass(frozen=True)
class CheckpointScores:
    """Scores, and what was scored."""

    file: Path
    config: Config
    records: DetectionSet
    scores: Scores
    thresholds: dict[str, float]  # of the checkpoint, by class
    fitted: bool  # whether the thresholds were fitted on these very images

    def coco_results(self) -> list[dict[str, Any]]:
        """All detections as entries of a COCO results file, without classes that the gt does not list."""
        material = self.scores.coco.material
        found, ids = material.found, self.records.category_ids
        columns = (found.images, found.labels, found.xywh, found.scores)
        return [
            result_entry(material.image_ids[image], ids[label], box, score)
            for image, label, box, score in zip(*(c.tolist() for c in columns), strict=True)
            if is_listed(ids[label])
        ]


class ReadCheckpoint(NamedTuple):
    """The content of a checkpoint, with its configuration in training and with overrides."""

    file: Path
    content: dict[str, Any]
    trained: Config
    config: Config


def read_checkpoint(path: Path, overrides: Sequence[str]) -> ReadCheckpoint:
    """Read a checkpoint, or best.pt of a run folder.

    Raises:
        InputError: it is missing or damaged, or an override is invalid.
    """
    file = find_checkpoint(path)
    content = load_checkpoint(file)
    trained = parse_config(content["config"], str(file))
    config = parse_config(apply_overrides(content["config"], overrides), str(file), overrides)
    _refuse_other_classes(config, trained, content["classes"], file)
    _refuse_other_model(config, trained, file)
    return ReadCheckpoint(file, content, trained, config)


def open_checkpoint(path: Path, overrides: Sequence[str], device_key: str = "train.device") -> OpenCheckpoint:
    """Load the model of a checkpoint, or of best.pt of a run folder.

    Args:
        device_key: the setting with which the user chose the device, for messages.

    Raises:
        InputError: the checkpoint or an override is invalid, or the device does not exist or is full.
    """
    file, content, trained, config = read_checkpoint(path, overrides)
    changed = keys_of(overrides)
    _say_what_changes_nothing(changed, config)
    device = build_device(config.train.device, key=device_key)
    _say_what_is_slow(config, device, changed)
    model = build_model(config.model, len(content["classes"]), pretrained=False)
    load_weights(model, content["model"], str(file))
    fitted = content.get("calibration")
    calibration = Calibration.from_plain(fitted, len(content["classes"])) if fitted else None
    if calibration is not None and config.eval.calibrate:
        if config.eval.score_threshold not in (0, trained.eval.score_threshold):
            _say_what_is_cut(config.eval.score_threshold, calibration)
        _say_what_it_was_fitted_to(config, trained)
        _say_when_it_was_fitted(content, file)
    thresholds = _thresholds(content, calibration, trained, config)
    with memory_explained(device, f"run it elsewhere: {device_key}=cpu"):
        model = place(model, config.train, device)
    return OpenCheckpoint(
        file,
        config,
        trained.data,
        model,
        device,
        tuple(content["classes"]),
        tuple(content["category_ids"]),
        calibration if config.eval.calibrate else None,
        tuple(thresholds.get(name, _DEFAULT_THRESHOLD) for name in content["classes"]),
        content.get("fitted_on"),
    )


def _say_what_changes_nothing(changed: Sequence[str], config: Config) -> None:
    """Warn of overrides without effect. changed: the keys of the overrides."""
    idle = [key for key in changed if _is_of_training(key)]
    if idle:
        log.warning("%s: used only in training, without effect on a trained checkpoint", ", ".join(idle))
    if "eval.nms_threshold" in changed and not config.eval.nms_threshold_counts:
        log.warning("eval.nms_threshold has no effect with eval.nms=soft; set eval.nms=hard as well")


def _say_what_is_cut(score_threshold: float, calibration: Calibration) -> None:
    """Warn of what a threshold on raw scores means for calibrated ones."""
    worth = [float(one(np.array(score_threshold))) for one in calibration.maps]
    low, high = f"{min(worth):.2g}", f"{max(worth):.2g}"
    log.warning(
        "eval.score_threshold=%g applies to raw scores: detections with calibrated scores up to %s%s "
        "are lost; for a threshold on calibrated scores use predict.py --threshold, or found.above()",
        score_threshold, low, f" (for some classes {high})" if high != low else "",
    )  # fmt: skip


def _say_when_it_was_fitted(content: dict[str, Any], file: Path) -> None:
    """Warn of a calibration from another step than the weights."""
    step = content["step"]
    if (evaluated := content.get("evaluated", step)) != step:
        log.warning(
            "%s: its weights are from step %d, but its calibration and thresholds are from an "
            "evaluation at step %d; to fit them again, use evaluate.py --recalibrate FILE.pt",
            file, step, evaluated,
        )  # fmt: skip


def _thresholds(
    content: dict[str, Any], calibration: Calibration | None, trained: Config, now: Config
) -> dict[str, float]:
    """The best threshold of each class that has one, for raw or calibrated scores as `now` gives them."""
    best = _best_thresholds(content.get("metrics") or {})
    # The metrics refer to calibrated scores if eval.calibrate was on in training.
    if calibration is None or trained.eval.calibrate == now.eval.calibrate:
        return best
    maps = dict(zip(content["classes"], calibration.maps, strict=True))
    if not now.eval.calibrate:
        return {name: float(maps[name].inverse(np.array(score))) for name, score in best.items()}
    return {name: float(maps[name](np.array(score))) for name, score in best.items()}


def _say_what_it_was_fitted_to(config: Config, trained: Config) -> None:
    """Warn of settings that differ from those of the calibration.

    Soft-NMS gives other scores, and many more detections, than hard NMS; so do images of another size.
    """
    now, then = (_decides_on_scores(one) for one in (config, trained))
    if not config.eval.nms_threshold_counts:
        del now["eval.nms_threshold"]
    changed = [key for key in now if now[key] != then[key]]
    if changed:
        log.warning(
            "%s: scores and thresholds are calibrated for %s, and are too high or too low here; to fit "
            "them again, use evaluate.py --recalibrate FILE.pt",
            *(", ".join(f"{key}={one[key]}" for key in changed) for one in (now, then)),
        )


def _decides_on_scores(config: Config) -> dict[str, str]:
    return {
        "eval.nms": config.eval.nms,
        "eval.nms_threshold": str(config.eval.nms_threshold),
        "eval.tile": json.dumps(config.eval.tile),
        "eval.flip": json.dumps(config.eval.flip),
        "data.transforms.eval": json.dumps(transforms_of(config.data, training=False)),
    }


def _say_what_is_slow(config: Config, device: torch.device, changed: Sequence[str]) -> None:
    """Warn of a precision that was chosen for training, usually on a GPU, but is slow on this CPU.

    changed: the keys of the overrides.
    """
    amp = config.train.amp
    slow = amp == "fp16" or (amp == "bf16" and not cpu_is_fast_in_bf16())
    if device.type == "cpu" and slow and "train.amp" not in changed:
        log.warning(
            "train.amp=%s, as in the training, takes many times as long on this CPU as train.amp=off", amp
        )


def _is_of_training(key: str) -> bool:
    section, _, name = key.partition(".")
    if section == "train":
        return name not in _TRAIN_KEYS_USED
    return section in ("loss", "matcher", "optimizer", "run", "schedule") or key == "data.transforms.train"


def _refuse_other_classes(config: Config, trained: Config, classes: Sequence[str], file: Path) -> None:
    if config.data.classes not in (None, trained.data.classes, [*classes]):
        raise InputError(
            f"data.classes: {file} always finds all its classes, {', '.join(classes)}; leave the setting "
            "out (metrics and results are given per class)"
        )


def _refuse_other_model(config: Config, trained: Config, file: Path) -> None:
    """Refuse changed model settings: e.g. other anchors would load without error, but find nothing."""
    before, now = trained.model.model_dump(), config.model.model_dump()
    changed = [key for key in now if now[key] != before[key] and key not in OF_TRAINING]
    if changed:
        raise InputError(
            f"model.{changed[0]}: the weights of {file} only fit {before[changed[0]]!r}; leave the setting "
            "out"
        )


def _best_thresholds(metrics: dict[str, Any]) -> dict[str, float]:
    per_class = metrics.get("per_class", {})
    # If no detection was right, no threshold is better than another.
    return {n: float(one["best_f1_threshold"]) for n, one in per_class.items() if one.get("best_f1", 0) > 0}


def evaluate_checkpoint(path: Path, overrides: Sequence[str], split: str) -> CheckpointScores:
    """Score a checkpoint (best.pt of a run folder) on a split: "train", "val" or "test".

    Raises:
        InputError: the checkpoint, an override or the data is invalid.
    """
    c = open_checkpoint(path, overrides)
    return score_checkpoint(c, set_to_score(c, overrides, split))


def set_to_score(c: OpenCheckpoint, overrides: Sequence[str], split: str) -> DetectionSet:
    """A split with the classes of a checkpoint; warns if it contains images of the training.

    Raises:
        InputError: the data is invalid.
    """
    records = build_set(c.config.data, split, c.classes)
    # Training has checked its own splits; another one may, for example, belong to another fold.
    if f"data.splits.{split}" in keys_of(overrides):
        _warn_of_learnt_images(c, records)
    return records


def _warn_of_learnt_images(c: OpenCheckpoint, records: DetectionSet) -> None:
    try:
        learnt = {Path(file).resolve() for file in build_set(c.trained, "train", c.classes).files}
    except InputError:
        return  # the training data is gone
    shared = sum(Path(file).resolve() in learnt for file in records.files)
    if shared:
        log.warning(
            "%s was trained on %d of these %d images: it scores better on them than on others",
            c.file, shared, len(records),
        )  # fmt: skip


def score_checkpoint(c: OpenCheckpoint, records: DetectionSet) -> CheckpointScores:
    """Score an open checkpoint on a set of its classes.

    Raises:
        InputError: an image cannot be used, or memory runs out.
    """
    warn_of_scale(c.trained, c.config.data, records.sizes)
    warn_of_tiles(c.config, records)
    batches = batches_to_score(c, records, c.file)
    with memory_explained(
        c.device, "lower eval.batch_size (with tiles: eval.tile_batch_size), or set train.device=cpu"
    ):
        found = join_predictions(list(predict(c.config, c.ready, batches, c.device)))
    scores = score(c.config, records, found).calibrated(c.calibration)
    return checkpoint_scores(c, c.file, records, scores)


def batches_to_score(c: OpenCheckpoint, records: DetectionSet, file: Path) -> Iterable[Batch]:
    """Batches of the images of a set, with a progress bar. file: what is being scored."""
    loader = build_eval_loader(c.config, records, c.device)
    return Progress(len(loader), "batch", str(file), leave=False).over(checked(loader))


def checkpoint_scores(
    c: OpenCheckpoint, file: Path, records: DetectionSet, scores: Scores
) -> CheckpointScores:
    """Scores together with the thresholds of a checkpoint. file: what was scored."""
    thresholds = dict(zip(c.classes, c.thresholds, strict=True))
    return CheckpointScores(file, c.config, records, scores, thresholds, records.digest() == c.fitted_on)
