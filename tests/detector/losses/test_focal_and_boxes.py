"""Focal loss and box losses against torch's and torchvision's."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import generalized_box_iou, sigmoid_focal_loss

from detector.losses import ce_ohem_loss, focal, focal_loss, giou_errors, smooth_l1_errors

STD = torch.tensor([0.1, 0.1, 0.2, 0.2])
CODER = BoxCoder(weights=tuple((1 / STD).tolist()))


def positives(count: int = 40, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Predicted deltas, gt boxes and anchors [count, 4]; some predictions near, some far."""
    generator = torch.Generator().manual_seed(seed)

    def boxes() -> Tensor:
        corner = torch.rand(count, 2, generator=generator) * 40
        return torch.cat((corner, corner + 4 + torch.rand(count, 2, generator=generator) * 40), dim=1)

    gt_boxes, anchors = boxes(), boxes()
    noise = torch.randn(count, 4, generator=generator) * torch.linspace(0.01, 3, count)[:, None]
    return CODER.encode_single(gt_boxes, anchors) + noise, gt_boxes, anchors


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("alpha, gamma", [(0.25, 2.0), (0.6, 1.5)])
def test_focal_loss_is_torchvisions_over_the_number_of_positives(
    alpha: float, gamma: float, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 30, 3, generator=generator).to(dtype).requires_grad_()
    targets = torch.randint(-1, 2, logits.shape, generator=generator, dtype=torch.int8)
    ranked, wanted = logits[targets >= 0].float(), targets[targets >= 0].float()
    expected = sigmoid_focal_loss(ranked, wanted, alpha, gamma, "sum") / (targets == 1).sum()
    loss = focal_loss(logits, targets, alpha, gamma)
    torch.testing.assert_close(loss, expected)
    gradients = [torch.autograd.grad(value, logits)[0] for value in (loss, expected)]
    torch.testing.assert_close(*gradients)
    assert (gradients[0][targets == -1] == 0).all()
    logits.data[targets == -1] = torch.inf  # ignored logits take no part, whatever they are
    loss = focal_loss(logits, targets, alpha, gamma)
    torch.testing.assert_close(loss, expected)
    assert torch.autograd.grad(loss, logits)[0].equal(gradients[0])


def test_focal_loss_is_right_far_from_0_and_in_several_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the definition in float64, and its gradient by autograd."""
    monkeypatch.setattr(focal, "_ON_CPU", 100)
    logits = torch.linspace(-30, 30, 999).repeat(2).requires_grad_()
    targets = torch.arange(1998) % 2  # each logit as a positive and as a negative
    x = logits.detach().double().requires_grad_()
    p = torch.where(targets == 1, x, -x).sigmoid()
    log_p = F.logsigmoid(torch.where(targets == 1, x, -x))
    alpha = torch.where(targets == 1, 0.25, 0.75).double()
    expected = -(alpha * (1 - p).pow(2) * log_p).sum() / 999
    loss = focal_loss(3 * logits / 3, targets)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    (gradient,), (exact,) = torch.autograd.grad(5 * loss, logits), torch.autograd.grad(5 * expected, x)
    torch.testing.assert_close(gradient.double(), exact, rtol=3e-5, atol=1e-13)


def test_focal_loss_keeps_what_the_dtype_of_the_logits_holds() -> None:
    """float64: equal to torchvision's to the last digits. float16: no gradient of an easy negative is lost
    before the loss scale has been applied.
    """
    logits = torch.randn(500, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 4
    targets = (torch.arange(500) % 50 == 0).to(torch.int8)
    logits.requires_grad_()
    expected = sigmoid_focal_loss(logits, targets.double(), 0.3, 1.7, "sum") / 10
    loss = focal_loss(logits, targets, 0.3, 1.7)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(value, logits)[0] for value in (loss, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-11, atol=1e-16)
    half = torch.full((1000,), -6.0, dtype=torch.float16, requires_grad=True)
    targets = (torch.arange(1000) < 10).to(torch.int8)
    exact = half.detach().double().requires_grad_()
    scaled = [torch.autograd.grad(2.0**16 * focal_loss(x, targets), x)[0] for x in (half, exact)]
    assert scaled[0].dtype == torch.float16 and (scaled[1] / 2.0**16).half()[-1] == 0
    torch.testing.assert_close(scaled[0].double(), scaled[1], rtol=1e-3, atol=0)


def test_focal_loss_without_positives_is_the_sum_over_the_negatives() -> None:
    """Hand-computed: at logit 0 a negative costs (1 - alpha) (1/2)^gamma log 2."""
    loss = focal_loss(torch.zeros(5), torch.tensor([0, 0, 0, -1, -1]), alpha=0.25, gamma=2.0)
    assert loss.item() == pytest.approx(3 * 0.75 * 0.25 * math.log(2))


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_smooth_l1_is_torchs_mean_over_coded_coordinates(beta: float) -> None:
    """Oracle: torch's smooth_l1_loss on the deltas of torchvision's BoxCoder."""
    deltas, gt_boxes, anchors = positives()
    expected = F.smooth_l1_loss(deltas, CODER.encode_single(gt_boxes, anchors), beta=beta)
    torch.testing.assert_close(smooth_l1_errors(deltas, gt_boxes, anchors, STD, beta).mean(), expected)


def test_giou_errors_are_those_of_decoded_boxes() -> None:
    """Oracle: torchvision's pairwise generalized_box_iou of the boxes that its BoxCoder decodes."""
    deltas, gt_boxes, anchors = positives()
    pairwise = generalized_box_iou(CODER.decode_single(deltas, anchors), gt_boxes)
    errors = giou_errors(deltas, gt_boxes, anchors, STD)
    torch.testing.assert_close(errors, 1 - pairwise.diagonal(), rtol=1e-5, atol=1e-5)


def test_giou_loss_of_boxes_that_touch_at_a_corner() -> None:
    """Hand-computed: no overlap, union 200 of an enclosing 400, so 1 - (0 - 200 / 400)."""
    loss = giou_errors(
        torch.zeros(1, 4), torch.tensor([[10.0, 10, 20, 20]]), torch.tensor([[0.0, 0, 10, 10]]), STD
    )
    assert loss.item() == pytest.approx(1.5)


@pytest.mark.parametrize("name", ["smooth_l1", "giou"])
def test_box_losses_are_zero_at_the_wanted_boxes(name: str) -> None:
    _, gt_boxes, anchors = positives()
    deltas = CODER.encode_single(gt_boxes, anchors)
    assert box_loss(name, deltas, gt_boxes, anchors).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("name", ["smooth_l1", "giou"])
def test_box_losses_without_positives_are_zero_and_reach_the_network(name: str) -> None:
    """A weight behind the (empty) deltas must get a gradient, or data-parallel training hangs."""
    weight = torch.ones((), requires_grad=True)
    nothing = torch.zeros(0, 4)
    loss = box_loss(name, nothing * weight, nothing, nothing)
    loss.backward()
    assert loss.item() == 0
    assert weight.grad == 0


def box_loss(name: str, deltas: Tensor, gt_boxes: Tensor, anchors: Tensor) -> Tensor:
    if name == "giou":
        return giou_errors(deltas, gt_boxes, anchors, STD).sum() / max(1, len(deltas))
    return smooth_l1_errors(deltas, gt_boxes, anchors, STD, beta=1.0).sum() / max(1, len(deltas))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_cross_entropy_is_summed_in_float32_whatever_the_logits_are(dtype: torch.dtype) -> None:
    """A sum of thousands needs more digits than half precision has, and may exceed the range of float16."""
    generator = torch.Generator().manual_seed(0)
    logits = (20 * torch.randn(30_000, generator=generator)).to(dtype)
    targets = (torch.rand(30_000, generator=generator) < 0.2).to(torch.int8)
    torch.testing.assert_close(ce_ohem_loss(logits, targets), ce_ohem_loss(logits.float(), targets))


@pytest.mark.parametrize("loss", [focal_loss, ce_ohem_loss])
@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (torch.zeros(2, 3, 4, dtype=torch.int8), "differ in shape"),  # [B, C, N] for logits [B, N, C]
        (torch.zeros(2, 4, 3), "targets must be integers"),
        (torch.zeros(2, 4, 3, dtype=torch.bool), "targets must be integers"),
    ],
)
def test_targets_of_another_kind_are_refused(loss, targets: Tensor, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        loss(torch.zeros(2, 4, 3), targets)
