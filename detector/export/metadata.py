"""The metadata that an exported file needs for its outputs to be interpretable."""

import json
from typing import Any

import detector
from detector.builders.data import transforms_of
from detector.config import Config
from detector.evaluation.checkpoint import OpenCheckpoint
from detector.retinanet import IMAGENET_MEAN, IMAGENET_STD

PROJECT = "aploss-detector"


def metadata(checkpoint: OpenCheckpoint, raw: bool) -> dict[str, str]:
    """Names and values, each value as JSON; docs/export.md lists them."""
    config, calibration = checkpoint.config, checkpoint.calibration
    values: dict[str, Any] = {
        "project": PROJECT,
        "version": detector.__version__,
        "outputs": "raw" if raw else "detections",
        "classes": checkpoint.classes,
        "category_ids": checkpoint.category_ids,
        "thresholds": checkpoint.thresholds,
        "calibrated": calibration is not None,
        "calibration": None if calibration is None else calibration.as_plain(),
        "resize": resize_advice(config),
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
        "box_std": config.model.box_std,
        "score_threshold": config.eval.score_threshold,
        "topk_candidates": config.eval.topk_candidates,
        "nms": config.eval.nms,
        "nms_threshold": config.eval.nms_threshold if config.eval.nms_threshold_counts else None,
        "detections_per_img": config.eval.detections_per_img,
        "tile": config.eval.tile,
        "tile_overlap": None if config.eval.tile is None else config.eval.tile_overlap,
    }
    return {name: json.dumps(value) for name, value in values.items()}


def resize_advice(config: Config) -> list[Any]:
    """How evaluation resizes an image, in order; e.g. [{"ResizeWithin": {"long": 320}}]."""
    return [
        {step: {}} if isinstance(step, str) else step for step in transforms_of(config.data, training=False)
    ]
