"""Box arithmetic against torchvision's."""

import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import box_area, box_iou, clip_boxes_to_image

from detector.boxes import area, clip, decode, encode, pairwise_intersection, pairwise_iou
from tests import oracles

STD = torch.tensor([0.1, 0.1, 0.2, 0.2])
CODER = BoxCoder(weights=tuple((1 / STD).tolist()))


def random_boxes(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Boxes of 1 to 50 px within about 100 px, of which many overlap."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(*shape, 2, generator=generator) * 60
    return torch.cat((corner, corner + 1 + torch.rand(*shape, 2, generator=generator) * 49), dim=-1).to(dtype)


def test_iou_and_area_are_torchvisions_image_by_image() -> None:
    boxes1, boxes2 = random_boxes(3, 20), random_boxes(3, 30, seed=1)
    expected = torch.stack([box_iou(one, other) for one, other in zip(boxes1, boxes2, strict=True)])
    torch.testing.assert_close(pairwise_iou(boxes1, boxes2), expected)
    torch.testing.assert_close(area(boxes1), torch.stack([box_area(boxes) for boxes in boxes1]))


def test_one_set_is_compared_with_the_boxes_of_every_image() -> None:
    boxes, anchors = random_boxes(2, 4), random_boxes(7, seed=1)
    expected = [
        [[oracles.intersection(b, a) for a in anchors.tolist()] for b in mine] for mine in boxes.tolist()
    ]
    torch.testing.assert_close(pairwise_intersection(boxes, anchors), torch.tensor(expected))
    assert pairwise_iou(boxes, anchors).shape == (2, 4, 7)


def test_iou_of_empty_boxes_is_zero() -> None:
    point, box = torch.tensor([[5.0, 5.0, 5.0, 5.0]]), torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    assert pairwise_iou(point, point).item() == 0
    assert pairwise_iou(point, box).item() == 0
    assert pairwise_iou(box, box).item() == 1


def test_iou_does_not_write_to_its_arguments() -> None:
    boxes = random_boxes(5)
    before = boxes.clone()
    pairwise_iou(boxes, boxes)
    assert torch.equal(boxes, before)


def test_coding_is_torchvisions() -> None:
    boxes, anchors = random_boxes(50), random_boxes(50, seed=1)
    deltas = encode(boxes, anchors, STD)
    torch.testing.assert_close(deltas, CODER.encode_single(boxes, anchors), rtol=1e-4, atol=1e-4)
    noise = torch.randn(50, 4, generator=torch.Generator().manual_seed(2)) * 3
    torch.testing.assert_close(
        decode(deltas + noise, anchors, STD),
        CODER.decode_single(deltas + noise, anchors),
        rtol=1e-4,
        atol=1e-3,
    )


def test_decode_inverts_encode() -> None:
    boxes, anchors = random_boxes(2, 50, dtype=torch.float64), random_boxes(50, seed=1, dtype=torch.float64)
    torch.testing.assert_close(decode(encode(boxes, anchors, STD), anchors, STD), boxes)


def test_decoded_boxes_stay_finite_whatever_the_network_says() -> None:
    """The cut is torchvision's: 1000 / 16 times the anchor."""
    anchors = torch.tensor([[0.0, 0.0, 16.0, 16.0]])
    boxes = decode(torch.tensor([[0.0, 0.0, 1e6, 1e6]]), anchors, STD)
    torch.testing.assert_close(boxes, torch.tensor([[-492.0, -492.0, 508.0, 508.0]]))


def test_zero_deltas_are_the_anchor() -> None:
    anchors = random_boxes(10)
    torch.testing.assert_close(decode(torch.zeros(10, 4), anchors, STD), anchors)


@pytest.mark.parametrize("height, width", [(30, 90), (90, 30)])
def test_clip_is_torchvisions(height: int, width: int) -> None:
    boxes = random_boxes(40) * 1.5 - 20
    clipped = clip(boxes, torch.tensor([height, width]))
    torch.testing.assert_close(clipped, clip_boxes_to_image(boxes, (height, width)))


def test_clip_takes_the_size_of_each_image() -> None:
    boxes = torch.tensor([-5.0, -5.0, 200.0, 200.0]).expand(2, 3, 4)
    clipped = clip(boxes, torch.tensor([[10, 20], [30, 40]]))
    assert clipped[:, 0].tolist() == [[0, 0, 20, 10], [0, 0, 40, 30]]
    assert clipped.shape == (2, 3, 4)
