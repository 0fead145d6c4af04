"""A model on a split of a data set: predictions and all metrics."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from data.loader import checked
from data.sample import Batch, DetectionSet
from detector.build import box_std, build_amp
from detector.config import Config
from detector.evaluation.coco import CocoResult, evaluate_coco
from detector.evaluation.inference import Predictions, predict
from detector.evaluation.voc import evaluate_voc
from detector.retinanet import RetinaNet
from errors import InputError


@dataclass(frozen=True)
class Scores:
    """What a model found, and what that is worth."""

    predictions: Predictions
    coco: CocoResult
    voc: dict[str, float]  # VOC07 and VOC12 for VOC sets, else empty


def score(
    config: Config,
    records: DetectionSet,
    model: RetinaNet,
    loader: Iterable[Batch | InputError],
    device: torch.device,
) -> Scores:
    """Run a model over the batches of a set and score it.

    Raises:
        InputError: an image cannot be used.
    """
    e = config.eval
    predictions = predict(
        model,
        checked(loader),
        device,
        build_amp(config.train, device),
        box_std(config, device),
        e.score_threshold,
        e.topk_candidates,
        e.nms_threshold,
        e.detections_per_img,
    )
    voc = {}
    if config.data.format == "voc":
        result = evaluate_voc(records, predictions)
        voc = {"VOC07": result.ap07, "VOC12": result.ap12}
    return Scores(predictions, evaluate_coco(records, predictions), voc)
