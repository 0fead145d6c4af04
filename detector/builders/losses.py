"""Builds matching and losses from the configuration."""

from functools import partial

import torch
from torch import Tensor

from detector.adaptive_matcher import match_adaptively
from detector.anchors import AnchorGenerator
from detector.config import Config, LossConfig
from detector.criterion import Criterion, GroundTruth, Matching
from detector.losses import (
    Exchange,
    alrp_loss,
    ap_loss,
    ce_ohem_loss,
    class_alrp_loss,
    class_ap_loss,
    class_rank_sort_loss_of,
    focal_loss,
    giou_errors,
    rank_sort_loss_of,
    smooth_l1_errors,
)
from detector.matcher import Matches, match
from detector.objectives import BoxErrors, ClassLoss, Objective, alrp, rank_sort, separate
from detector.ranked import ranked_share
from detector.retinanet import Outputs
from errors import InputError


def build_criterion(config: Config, device: torch.device, exchange: Exchange) -> Criterion:
    """The losses of training, computed over the processes of the exchange.

    Raises:
        InputError: the loss cannot be used for training.
    """
    matcher, gamma = config.matcher, config.loss.focal_gamma
    if config.loss.name == "focal" and 0 < gamma < 1:  # (1 - p) ** gamma has infinite slope at p = 1
        raise InputError(
            f"loss.focal_gamma must be 0 or at least 1, got {gamma:g}: in between, the gradient of a "
            "certain negative is NaN"
        )
    if matcher.name == "iou" and matcher.negative_iou == 0:
        raise InputError("matcher.negative_iou must be above 0: with 0 no anchor is negative")
    objective = build_objective(config.loss, box_std(config, device), exchange)
    share = None
    if config.loss.ranks:
        share = partial(
            ranked_share,
            delta=ranking_delta(config.loss),
            class_by_class=config.loss.class_by_class,
            exchange=exchange,
        )
    return Criterion(build_matching(config), objective, share)


def build_matching(config: Config) -> Matching:
    """The assignment of anchors to gt boxes."""
    matcher, shapes = config.matcher, config.model.anchors
    per_location = AnchorGenerator(shapes.sizes, shapes.ratios).per_location

    def by_iou(outputs: Outputs, gt: GroundTruth) -> Matches:
        thresholds = matcher.positive_iou, matcher.negative_iou
        return match(outputs.anchors, gt.boxes, gt.valid, gt.ignore, *thresholds, matcher.best_anchor)

    def adaptively(outputs: Outputs, gt: GroundTruth) -> Matches:
        anchors = outputs.anchors, outputs.level_sizes, per_location
        boxes = gt.boxes, gt.valid, gt.ignore
        return match_adaptively(*anchors, *boxes, matcher.candidates, matcher.best_anchor)

    return {"iou": by_iou, "atss": adaptively}[matcher.name]


def build_exchange(config: LossConfig) -> Exchange:
    """All processes of the training if there are several and loss.global_ranking is on."""
    several = torch.distributed.is_available() and torch.distributed.is_initialized()
    return Exchange(torch.distributed.group.WORLD if several and config.global_ranking else None)


def ranking_delta(config: LossConfig) -> float:
    """Half-width of the soft step: as configured, else as published."""
    published = 0.5 if config.name == "rank_sort" else 1.0
    return published if config.delta is None else config.delta


def build_objective(config: LossConfig, std: Tensor, exchange: Exchange) -> Objective:
    """The losses selected by the configuration."""
    box_errors: BoxErrors = (
        partial(giou_errors, std=std)
        if config.box == "giou"
        else partial(smooth_l1_errors, std=std, beta=config.smooth_l1_beta)
    )
    delta = ranking_delta(config)
    by_class = config.class_by_class
    if config.name == "alrp":
        return partial(
            alrp,
            rank=partial(class_alrp_loss if by_class else alrp_loss, delta=delta, exchange=exchange),
            box_std=std,
            box_weight=config.box_weight,
            self_balance=config.self_balance,
        )
    if config.name == "rank_sort":
        of_quality = class_rank_sort_loss_of if by_class else rank_sort_loss_of
        return partial(
            rank_sort,
            rank=partial(of_quality, delta=delta, exchange=exchange),
            box_errors=box_errors,
            box_std=std,
            box_weight=config.box_weight,
            self_balance=config.self_balance,
            exchange=exchange,
        )
    class_loss: ClassLoss
    if config.name == "focal":
        class_loss = partial(
            focal_loss, alpha=config.focal_alpha, gamma=config.focal_gamma, exchange=exchange
        )
    elif config.name == "ce_ohem":
        class_loss = partial(
            ce_ohem_loss, negatives_per_positive=config.negatives_per_positive, exchange=exchange
        )
    else:
        rank = class_ap_loss if by_class else ap_loss
        class_loss = partial(rank, delta=delta, interpolated=config.interpolated, exchange=exchange)
    return partial(
        separate,
        class_loss=class_loss,
        box_errors=box_errors,
        box_weight=config.box_weight,
        exchange=exchange,
    )


def box_std(config: Config, device: torch.device) -> Tensor:
    """The standard deviations of the four box deltas, float32 [4]."""
    return torch.tensor(config.model.box_std, device=device)
