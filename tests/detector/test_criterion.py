"""From head outputs and gt boxes to losses: hand-computed targets, weights, and batches without boxes."""

from functools import partial

import pytest
import torch
from torch import Tensor

from detector.anchors import AnchorGenerator
from detector.backbone import FeaturePyramid, ResNet
from detector.criterion import BoxLoss, ClassLoss, Criterion, GroundTruth, class_targets
from detector.heads import Head
from detector.losses import ap_loss, focal_loss, giou_loss, smooth_l1_loss
from detector.matcher import Matches
from detector.retinanet import HeadOutputs, RetinaNet

STD = torch.tensor([0.1, 0.1, 0.2, 0.2])
SMOOTH_L1: BoxLoss = partial(smooth_l1_loss, std=STD, beta=1.0)
ANCHORS = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10], [0, 0, 10, 6], [40, 40, 50, 50]])


def criterion(
    class_loss: ClassLoss = ap_loss, box_loss: BoxLoss = SMOOTH_L1, box_weight: float = 1.0
) -> Criterion:
    return Criterion(class_loss, box_loss, box_weight, 0.7, 0.4, best_anchor=True)


def two_images() -> GroundTruth:
    """Image 0: a box of class 2 on anchor 0; image 1: class 0 on anchor 1, a crowd on anchor 3."""
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 0, 0]], [[40, 40, 50, 50], [20, 0, 30, 10]]])
    return GroundTruth(
        boxes,
        labels=torch.tensor([[2, 0], [1, 0]]),
        valid=torch.tensor([[True, False], [True, True]]),
        ignore=torch.tensor([[False, False], [True, False]]),
    )


def no_boxes(images: int, gts: int) -> GroundTruth:
    nothing = torch.zeros(images, gts, dtype=torch.bool)
    return GroundTruth(torch.zeros(images, gts, 4), nothing.long(), nothing, nothing)


def outputs(logits: Tensor, deltas: Tensor) -> HeadOutputs:
    return HeadOutputs(logits, deltas, ANCHORS, (len(ANCHORS),))


def test_class_targets_by_hand() -> None:
    """Positive of class 2 and of class 0; negative; ignored."""
    status = torch.tensor([[1, 0, -1], [0, 1, 0]], dtype=torch.int8)
    matches = Matches(status, torch.tensor([[1, 0, 0], [0, 0, 0]]))
    targets, image, anchor = class_targets(matches, torch.tensor([[0, 2], [0, 1]]), classes=3)
    assert targets.dtype == torch.int8
    assert targets.tolist() == [[[0, 0, 1], [0, 0, 0], [-1, -1, -1]], [[0, 0, 0], [1, 0, 0], [0, 0, 0]]]
    assert list(zip(image.tolist(), anchor.tolist(), strict=True)) == [(0, 0), (1, 1)]


def test_losses_see_the_targets_and_the_positives() -> None:
    """Anchor 2 lies 6/10 in the box of anchor 0 (ignored between 0.4 and 0.7); anchor 3 is in the crowd."""
    seen: dict[str, list] = {}

    def class_loss(logits: Tensor, targets: Tensor) -> Tensor:
        seen["targets"] = targets.tolist()
        return logits.sum()

    def box_loss(deltas: Tensor, gt_boxes: Tensor, anchors: Tensor) -> Tensor:
        seen.update(deltas=deltas.tolist(), gt_boxes=gt_boxes.tolist(), anchors=anchors.tolist())
        return deltas.sum()

    deltas = torch.arange(32.0).view(2, 4, 4)
    losses = criterion(class_loss, box_loss)(outputs(torch.ones(2, 4, 3), deltas), two_images())
    out, off, on = [-1] * 3, [0] * 3, {0: [1, 0, 0], 2: [0, 0, 1]}
    assert seen["targets"] == [[on[2], off, out, off], [off, on[0], off, out]]
    assert seen["deltas"] == [deltas[0, 0].tolist(), deltas[1, 1].tolist()]
    assert seen["gt_boxes"] == seen["anchors"] == [ANCHORS[0].tolist(), ANCHORS[1].tolist()]
    assert losses.positives.item() == 2


def test_box_loss_is_weighted_and_total_is_the_sum() -> None:
    """Hand-computed: deltas of 1 where 0 is wanted cost 1/2 in smooth-L1; half precision is widened."""
    logits = torch.zeros(2, 4, 3)
    heads = outputs(logits, torch.ones(2, 4, 4, dtype=torch.bfloat16))
    losses = criterion(focal_loss, box_weight=3.0)(heads, two_images())
    assert losses.box.item() == pytest.approx(1.5)
    assert losses.box.dtype == torch.float32
    assert losses.total.item() == pytest.approx(losses.classification.item() + 1.5)


def test_only_positives_move_boxes_and_only_ranked_anchors_move_logits() -> None:
    logits = torch.zeros(2, 4, 3, requires_grad=True)
    deltas = torch.ones(2, 4, 4, requires_grad=True)
    criterion()(outputs(logits, deltas), two_images()).total.backward()
    assert deltas.grad is not None and logits.grad is not None
    moved_boxes = deltas.grad.abs().sum(2) > 0
    assert moved_boxes.tolist() == [[True, False, False, False], [False, True, False, False]]
    moved_logits = logits.grad.abs().sum(2) > 0
    assert moved_logits.tolist() == [[True, True, False, True], [True, True, True, False]]


def small_network() -> RetinaNet:
    torch.manual_seed(0)
    backbone = ResNet("resnet18", "batch", pretrained=False, frozen_stages=0)
    anchors = AnchorGenerator([[8 * 2**level] for level in range(2, 7)], [1.0])
    head = partial(Head, in_channels=8, width=8, depth=1, anchors=anchors.per_location)
    pyramid = FeaturePyramid(backbone.channels, 8, "c5")
    return RetinaNet(backbone, pyramid, head(outputs=3, prior=0.01), head(outputs=4), anchors)


@pytest.mark.parametrize("gts", [0, 2])
@pytest.mark.parametrize("class_loss", [ap_loss, focal_loss])
@pytest.mark.parametrize("box_loss", [SMOOTH_L1, partial(giou_loss, std=STD)])
def test_a_batch_without_boxes_trains(class_loss: ClassLoss, box_loss: BoxLoss, gts: int) -> None:
    """Every parameter gets a finite gradient: one without would stall data-parallel training."""
    network = small_network()
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    heads = network(images, torch.full((2, 2), 64))
    losses = criterion(class_loss, box_loss)(heads, no_boxes(2, gts))
    losses.total.backward()
    assert torch.isfinite(losses.total)
    assert losses.box.item() == 0
    assert losses.positives.item() == 0
    without = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []
