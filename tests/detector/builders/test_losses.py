"""Building the losses from the configuration: settings reach them; what cannot be trained with is refused."""

import math
from contextlib import nullcontext
from typing import Any, Literal

import pytest
import torch

from detector.adaptive_matcher import match_adaptively
from detector.anchors import AnchorGenerator, pyramid_grids
from detector.builders.losses import build_criterion, build_objective
from detector.config import AnchorConfig, Config, DataConfig, LossConfig, MatcherConfig, ModelConfig
from detector.criterion import GroundTruth
from detector.losses import Exchange
from detector.matcher import match
from detector.objectives import Positives
from detector.retinanet import HeadOutputs
from errors import InputError


@pytest.mark.parametrize(
    ("words", "logits", "classification"),
    [
        ({"interpolated": False}, [30.0, 20, 10, 0], 1 - (1 + 2 / 3 + 3 / 4) / 3),
        ({}, [30.0, 20, 10, 0], 1 - (1 + 3 / 4 + 3 / 4) / 3),
        ({"delta": 20}, [30.0, 20, 10, 0], 1 - (1 / 1.25 + 2.25 / 3 + 2.75 / 3.75) / 3),
        (
            {"name": "focal", "focal_alpha": 0.7, "focal_gamma": 3},
            [0.0] * 4,
            (3 * 0.7 + 0.3) * 0.5**3 * math.log(2) / 3,
        ),
        ({"name": "ce_ohem", "negatives_per_positive": 0.1}, [0.0] * 4, math.log(2)),
    ],
)
def test_the_settings_of_a_loss_reach_it(
    words: dict[str, Any], logits: list[float], classification: float
) -> None:
    """By hand: three positives and a negative; deltas of 1 where 0 is wanted cost 1 - beta / 2 each."""
    loss = LossConfig(box_weight=3, smooth_l1_beta=0.2, **words)
    objective = build_objective(loss, torch.tensor([0.1, 0.1, 0.2, 0.2]), Exchange())
    targets = torch.tensor([1, 0, 1, 1], dtype=torch.int8)[:, None]
    boxes = torch.tensor([[0.0, 0, 10, 10]]).expand(3, 4)
    parts = objective(torch.tensor(logits)[:, None], targets, Positives(torch.ones(3, 4), boxes, boxes))
    assert float(parts["classification"]) == pytest.approx(classification, abs=1e-6)
    assert float(parts["box"]) == pytest.approx(3 * (1 - 0.2 / 2))


def test_focal_loss_without_a_gradient_is_refused_for_training() -> None:
    """For training only: a checkpoint trained with this setting can still be evaluated."""
    for name, gamma, refused in (("focal", 0.5, True), ("focal", 0.0, False), ("ap", 0.5, False)):
        config = Config(data=DataConfig(format="coco"), loss=LossConfig(name=name, focal_gamma=gamma))
        expected = (
            pytest.raises(InputError, match=r"loss\.focal_gamma must be 0 or") if refused else nullcontext()
        )
        with expected:
            build_criterion(config, torch.device("cpu"), Exchange())


@pytest.mark.parametrize("best", [True, False])
@pytest.mark.parametrize("name", ["iou", "atss"])
def test_anchors_are_matched_as_configured(name: Literal["iou", "atss"], best: bool) -> None:
    """Six anchors per location, and one box that contains no anchor's centre."""
    config = Config(
        data=DataConfig(format="coco"),
        model=ModelConfig(anchors=AnchorConfig(sizes=[[12.0 * s, 20.0 * s] for s in (1, 2, 4, 8, 16)])),
        matcher=MatcherConfig(name=name, positive_iou=0.6, negative_iou=0.3, candidates=4, best_anchor=best),
    )
    grids = pyramid_grids(96, 128)
    anchors = AnchorGenerator(config.model.anchors.sizes, [0.5, 1, 2])((96, 128), grids, torch.device("cpu"))
    sizes = tuple(6 * height * width for height, width in grids)
    outputs = HeadOutputs(torch.zeros(1, len(anchors), 1), torch.zeros(1, len(anchors), 4), anchors, sizes)
    boxes = torch.tensor([[[10.0, 12, 60, 50], [70, 20, 90, 60], [9.5, 9.5, 14, 14]]])
    valid, ignore = torch.ones(1, 3, dtype=torch.bool), torch.tensor([[False, True, False]])
    gt = GroundTruth(boxes, torch.zeros(1, 3, dtype=torch.int64), valid, ignore)
    if name == "iou":
        expected = match(anchors, boxes, valid, ignore, 0.6, 0.3, best)
    else:
        expected = match_adaptively(anchors, sizes, 6, boxes, valid, ignore, 4, best)
    found = build_criterion(config, torch.device("cpu"), Exchange()).matching(outputs, gt)
    assert torch.equal(found.status, expected.status)
    assert torch.equal(found.gt_index, expected.gt_index)
    assert (found.gt_index[found.status == 1] == 2).any() == best


def test_a_matcher_that_leaves_no_negative_is_refused_for_training() -> None:
    config = Config(data=DataConfig(format="coco"), matcher=MatcherConfig(negative_iou=0))
    with pytest.raises(InputError, match=r"matcher\.negative_iou must be above 0"):
        build_criterion(config, torch.device("cpu"), Exchange())
