"""From head outputs and gt boxes to losses: hand-computed targets, weights, and batches without boxes."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from detector.anchors import AnchorGenerator
from detector.backbone import FeaturePyramid, ResNet
from detector.criterion import Criterion, GroundTruth, Losses, Matched, class_targets
from detector.heads import Head
from detector.losses import (
    Exchange,
    alrp_loss,
    ap_loss,
    ce_ohem_loss,
    focal_loss,
    giou_errors,
    rank_sort_loss_of,
    smooth_l1_errors,
)
from detector.matcher import Matches, match
from detector.objectives import BoxErrors, ClassLoss, Objective, Positives, alrp, rank_sort, separate
from detector.retinanet import HeadOutputs, Outputs, RetinaNet

STD = torch.tensor([0.1, 0.1, 0.2, 0.2])
SMOOTH_L1: BoxErrors = partial(smooth_l1_errors, std=STD, beta=1.0)
GIOU: BoxErrors = partial(giou_errors, std=STD)
ANCHORS = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10], [0, 0, 10, 6], [40, 40, 50, 50]])


def losses_of(objective: Objective, outputs: HeadOutputs, gt: GroundTruth) -> Losses:
    criterion = Criterion(by_iou, objective)
    return criterion([criterion.match(outputs, gt)])


def by_iou(outputs: Outputs, gt: GroundTruth) -> Matches:
    return match(outputs.anchors, gt.boxes, gt.valid, gt.ignore, 0.7, 0.4, best_anchor=True)


def two_parts(
    class_loss: ClassLoss = ap_loss, box_errors: BoxErrors = SMOOTH_L1, box_weight: float = 1.0
) -> Objective:
    return partial(
        separate, class_loss=class_loss, box_errors=box_errors, box_weight=box_weight, exchange=Exchange()
    )


# One objective for each loss.name and loss.box of the configuration.
OBJECTIVES: dict[str, Objective] = {
    **{
        f"{loss.__name__} {name}": two_parts(loss, errors)
        for loss in (ap_loss, focal_loss, ce_ohem_loss)
        for name, errors in (("smooth_l1", SMOOTH_L1), ("giou", GIOU))
    },
    "alrp": partial(alrp, rank=alrp_loss, box_std=STD, box_weight=1.0, self_balance=True),
    "rank_sort": partial(
        rank_sort,
        rank=rank_sort_loss_of,
        box_errors=GIOU,
        box_std=STD,
        box_weight=1.0,
        self_balance=True,
        exchange=Exchange(),
    ),
}


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
    """Anchor 2 has IoU 6/10 with the box on anchor 0 (ignored from 0.4 to 0.7); anchor 3 is in the crowd."""
    seen: dict[str, list] = {}

    def spy(logits: Tensor, targets: Tensor, positives: Positives) -> dict[str, Tensor]:
        seen["targets"] = targets.tolist()
        seen.update({name: value.tolist() for name, value in positives._asdict().items()})
        return {"classification": logits.sum(), "box": positives.deltas.sum()}

    deltas = torch.arange(32.0).view(2, 4, 4)
    losses = losses_of(spy, outputs(torch.ones(2, 4, 3), deltas), two_images())
    out, off, on = [-1] * 3, [0] * 3, {0: [1, 0, 0], 2: [0, 0, 1]}
    assert seen["targets"] == [[on[2], off, out, off], [off, on[0], off, out]]
    assert seen["deltas"] == [deltas[0, 0].tolist(), deltas[1, 1].tolist()]
    assert seen["gt_boxes"] == seen["anchors"] == [ANCHORS[0].tolist(), ANCHORS[1].tolist()]
    assert losses.positives.item() == 2


def test_box_loss_is_weighted_and_total_is_the_sum() -> None:
    """Hand-computed: deltas of 1 where 0 is wanted cost 1/2 in smooth-L1; half precision is widened."""
    logits = torch.zeros(2, 4, 3)
    heads = outputs(logits, torch.ones(2, 4, 4, dtype=torch.bfloat16))
    losses = losses_of(two_parts(focal_loss, box_weight=3.0), heads, two_images())
    assert losses.parts["box"].item() == pytest.approx(1.5)
    assert losses.parts["box"].dtype == torch.float32
    assert losses.total.item() == pytest.approx(losses.parts["classification"].item() + 1.5)


def worse_above_better() -> tuple[Tensor, Tensor]:
    """Logits and deltas: the box of `two_images` that is half as wide as wanted is ranked first."""
    deltas = torch.zeros(2, 4, 4)
    deltas[1, 1, 2] = math.log(0.5) / 0.2
    deltas[1, 1, 0] = -0.25 / 0.1
    logits = torch.full((2, 4, 3), -9.0)
    logits[0, 0, 2], logits[1, 1, 0] = 9.0, 18.0
    return logits, deltas


def test_rank_sort_sorts_by_iou_and_balances_the_boxes() -> None:
    """Hand-computed. Box 0 is perfect, box 1 half as wide: IoU 1 and 1/2, 1 - GIoU 0 and 1/2.

    The worse is ranked far above the better, both above the negatives: the sorting error is that of
    `test_sorted_positives...`, 1/6, and the boxes' mean error of 1/4 is balanced to it.
    """
    logits, deltas = worse_above_better()
    parts = losses_of(OBJECTIVES["rank_sort"], outputs(logits, deltas), two_images()).parts
    assert parts["classification"].item() == 0
    assert parts["sorting"].item() == pytest.approx(1 / 6)
    assert parts["box"].item() == pytest.approx(1 / 4)
    assert parts["balance"].item() == pytest.approx(1 / 6 - 1 / 4)


@pytest.mark.parametrize(("name", "wanted"), [("rank_sort", 1 / 6), ("alrp", 3 / 16)])
def test_the_boxes_are_balanced_and_then_weighted(name: str, wanted: float) -> None:
    """The totals are those of the tests next to this one."""
    logits, deltas = worse_above_better()
    objective = partial(OBJECTIVES[name], box_weight=3.0)
    parts = losses_of(objective, outputs(logits, deltas), two_images()).parts
    assert float(parts["box"] + parts["balance"]) == pytest.approx(3 * wanted)


def test_a_positive_whose_box_misses_its_object_stays_a_positive_to_rank_sort() -> None:
    """Without it there would be no positive below the negative that scores in between."""
    logits, deltas = worse_above_better()
    deltas[1, 1, 0] = 500.0
    logits[1, 1, 0], logits[1, 0, 0] = 0.0, 5.0
    parts = losses_of(OBJECTIVES["rank_sort"], outputs(logits, deltas), two_images()).parts
    assert parts["classification"].item() > 0.1


def test_the_ranked_share_is_measured_where_it_is_asked_for_and_losses_can_be_kept() -> None:
    logits, deltas = worse_above_better()
    heads, asked = outputs(logits.requires_grad_(), deltas), []

    def share(logits: Tensor, targets: Tensor) -> Tensor:
        asked.append(targets)
        return torch.tensor(0.25)

    measuring = Criterion(by_iou, two_parts(), share)
    batch = [measuring.match(heads, two_images())]
    assert measuring(batch).ranked_share is None and not asked
    losses = measuring(batch, measure=True)
    assert losses.ranked_share == 0.25 and len(asked) == 1
    assert losses.total.requires_grad and not losses.detach().total.requires_grad


def test_alrp_brings_the_boxes_up_to_the_total() -> None:
    """Hand-computed. Separated positives: ranking error 0, so the box part stays as it is.

    For the boxes above, (1 - GIoU) / 2 is 0 and 1/4. The worse one (rank 1) has an error of 1/4, the
    better one below it (rank 2) half of that: 3/16 in the mean.
    """
    logits, deltas = worse_above_better()
    parts = losses_of(OBJECTIVES["alrp"], outputs(logits, deltas), two_images()).parts
    assert parts["classification"].item() == 0
    assert parts["box"].item() == pytest.approx(3 / 16)
    assert parts["balance"].item() == 0
    logits[0, 3] = 12.0  # three negatives above the better one: rank 5 with an error of 3/5
    parts = losses_of(OBJECTIVES["alrp"], outputs(logits, deltas), two_images()).parts
    assert parts["classification"].item() == pytest.approx(3 / 10)
    assert parts["box"].item() == pytest.approx((1 / 4 + 1 / 20) / 2)
    assert parts["balance"].item() == pytest.approx(3 / 10)


@pytest.mark.parametrize("name", ["alrp", "rank_sort"])
def test_balancing_scales_the_gradient_of_the_boxes_and_nothing_else(name: str) -> None:
    """By the factor that brings the box part to what it is balanced to; the rest is as without balancing."""
    logits, deltas = worse_above_better()
    logits[0, 3] = 12.0
    logits.requires_grad_(), deltas.requires_grad_()
    plain = partial(OBJECTIVES[name], self_balance=False)
    losses = [losses_of(one, outputs(logits, deltas), two_images()) for one in (OBJECTIVES[name], plain)]
    (of_logits, of_deltas), (plain_logits, plain_deltas) = (
        torch.autograd.grad(one.total, (logits, deltas), retain_graph=True) for one in losses
    )
    parts = losses[1].parts
    wanted = losses[1].total - (parts["box"] if name == "rank_sort" else 0)
    assert of_logits.equal(plain_logits)
    torch.testing.assert_close(of_deltas, plain_deltas * (wanted / parts["box"]).detach())


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_boxes_that_are_not_finite_are_found_in_the_total(name: str, value: float) -> None:
    """An exception here, amid collective operations, would leave the other processes waiting."""
    logits, deltas = worse_above_better()
    deltas[0, 0, 0] = value
    losses = losses_of(OBJECTIVES[name], outputs(logits, deltas), two_images())
    assert not torch.isfinite(losses.total)
    assert torch.isfinite(losses.parts["classification"])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_only_positives_move_boxes_and_only_ranked_anchors_move_logits(name: str) -> None:
    logits = torch.zeros(2, 4, 3, requires_grad=True)
    deltas = torch.ones(2, 4, 4, requires_grad=True)
    losses_of(OBJECTIVES[name], outputs(logits, deltas), two_images()).total.backward()
    assert deltas.grad is not None and logits.grad is not None
    moved_boxes = deltas.grad.abs().sum(2) > 0
    assert moved_boxes.tolist() == [[True, False, False, False], [False, True, False, False]]
    moved_logits = logits.grad.abs().sum(2) > 0
    ranked = torch.tensor([[True, True, False, True], [True, True, True, False]])
    if name.startswith("ce_ohem"):  # only the hardest negatives
        assert not (moved_logits & ~ranked).any()
    else:
        assert moved_logits.tolist() == ranked.tolist()


def small_network() -> RetinaNet:
    torch.manual_seed(0)
    backbone = ResNet("resnet18", "batch", pretrained=False, frozen_stages=0)
    anchors = AnchorGenerator([[8 * 2**level] for level in range(2, 7)], [1.0])
    head = partial(Head, in_channels=8, width=8, depth=1, anchors=anchors.per_location)
    pyramid = FeaturePyramid(backbone.channels, 8, "c5")
    return RetinaNet(backbone, pyramid, head(outputs=3, prior=0.01), head(outputs=4), anchors)


@pytest.mark.parametrize("gts", [0, 2])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_batch_without_boxes_trains(name: str, gts: int) -> None:
    """Every parameter gets a finite gradient: one without would stall data-parallel training."""
    network = small_network()
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    heads = network(images, torch.full((2, 2), 64))
    losses = losses_of(OBJECTIVES[name], heads, no_boxes(2, gts))
    losses.total.backward()
    assert torch.isfinite(losses.total)
    assert losses.parts["box"].item() == 0
    assert losses.positives.item() == 0
    without = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []


def test_positives_of_all_batches_are_counted() -> None:
    def matched(positives: int) -> Matched:
        of_each = torch.zeros(positives, 4)
        targets = torch.zeros(1, 5, 2, dtype=torch.int8)
        return Matched(torch.zeros(1, 5, 2), targets, Positives(of_each, of_each, of_each))

    criterion = Criterion(None, lambda logits, *_: {"a": logits.sum()})
    assert criterion([matched(1), matched(3)]).positives.item() == 4
