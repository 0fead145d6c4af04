"""A model on a split of a data set: predictions and all metrics."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from data.sample import Batch, DetectionSet
from detector.builders.device import build_amp
from detector.builders.losses import box_std
from detector.config import Config
from detector.evaluation.calibration import Calibration, calibration_error, held_out_error
from detector.evaluation.coco import CocoResult, evaluate_coco
from detector.evaluation.error_breakdown import error_breakdown
from detector.evaluation.inference import Predictions, predict_batches
from detector.evaluation.matching import match
from detector.evaluation.tiling import build_tiling
from detector.evaluation.voc import evaluate_voc
from detector.postprocess import detect
from detector.retinanet import RetinaNet


@dataclass(frozen=True)
class Scores:
    """A model's predictions and their metrics."""

    predictions: Predictions
    coco: CocoResult
    voc: dict[str, float]  # VOC07 and VOC12 for VOC sets, else empty
    calibration: dict[str, float]  # calibration errors, by name

    @property
    def extra(self) -> dict[str, float]:
        """The metrics beside COCO's."""
        return {**self.voc, **self.calibration}

    def calibrated(self, calibration: Calibration | None) -> "Scores":
        """The same with calibrated scores: AP does not change, since the order within a class does not.

        The detections stay in their order by uncalibrated score.
        """
        if calibration is None:
            return self
        found = self.coco.material.found
        scores = calibration(found.scores, found.labels)
        material = replace(self.coco.material, found=replace(found, scores=scores))
        per_class = {
            name: replace(one, best_threshold=float(of_class(np.array(one.best_threshold))))
            if one.best_threshold >= 0
            else one
            for (name, one), of_class in zip(self.coco.per_class.items(), calibration.maps, strict=True)
        }
        # Matching and errors use the order over all classes, which depends on the scale of each.
        matching = match(material.gt, material.found)
        errors = error_breakdown(material.gt, material.found, matching)
        coco = replace(self.coco, material=material, per_class=per_class, matching=matching, errors=errors)
        matched = coco.matched
        error = calibration_error(matched.scores, matched.correct)
        return Scores(
            replace(self.predictions, scores=material.found.scores),
            coco,
            self.voc,
            {**self.calibration, "calibration_error": error},
        )


def predict(
    config: Config, model: RetinaNet, batches: Iterable[Batch], device: torch.device
) -> Iterator[Predictions]:
    """A model's predictions for batches, one after another, with the evaluation settings.

    Raises:
        InputError: raised by `batches` if an image cannot be used.
    """
    settings = config.eval
    postprocess = partial(
        detect,
        box_std=box_std(config, device),
        score_threshold=settings.score_threshold,
        topk_candidates=settings.topk_candidates,
        nms_threshold=settings.nms_threshold,
        detections_per_img=settings.detections_per_img,
        soft=settings.nms == "soft",
    )
    amp, tiling = build_amp(config.train, device), build_tiling(settings)
    return predict_batches(model, batches, device, amp, postprocess, tiling, settings.flip)


def score(config: Config, records: DetectionSet, predictions: Predictions) -> Scores:
    """Score the predictions for all images of a set."""
    voc = {}
    if config.data.format == "voc":
        result = evaluate_voc(records, predictions)
        voc = {"VOC07": result.ap07, "VOC12": result.ap12}
    coco = evaluate_coco(records, predictions, config.eval.backend)
    matched = coco.matched
    errors = {"calibration_error_raw": calibration_error(matched.scores, matched.correct)}
    # On images that the map was not fitted to; on its own images it would look too good.
    held_out = held_out_error(matched, coco.material.gt_totals() > 0)
    if held_out is not None:
        errors["calibration_error_held_out"] = held_out
    return Scores(predictions, coco, voc, errors)
