"""IoUs computed without listing all anchors are the same as with the list; the search finds what fits."""

import pytest
import torch

from detector.anchor_fit import AnchorShapes, SeenBoxes, _thinned, level_ious, suggest
from detector.anchors import AnchorGenerator, pyramid_grids
from detector.boxes import pairwise_iou


def random_boxes(count: int, height: int, width: int, seed: int) -> torch.Tensor:
    """Boxes of all sizes, some reaching over the edges."""
    draws = torch.Generator().manual_seed(seed)
    centres = torch.rand(count, 2, generator=draws) * torch.tensor([width, height])
    sides = 2 ** (1 + 7 * torch.rand(count, 2, generator=draws))
    return torch.cat((centres - sides / 2, centres + sides / 2), dim=1)


@pytest.mark.parametrize("size", [(32, 32), (96, 160), (320, 224), (64, 416)])
def test_ious_are_those_with_the_list_of_all_anchors(size: tuple[int, int]) -> None:
    """Oracle: the IoU of every anchor of a level with every box."""
    shapes = AnchorShapes(((7, 20), (30, 45.3), (64, 90), (128, 181), (256, 362)), (0.5, 1.0, 1.7))
    boxes = random_boxes(300, *size, seed=sum(size))
    found = level_ious(SeenBoxes(boxes, torch.tensor(size).expand(300, 2)), shapes)
    grids = pyramid_grids(*size)
    anchors = AnchorGenerator(shapes.sizes, shapes.ratios)(size, grids, torch.device("cpu"))
    per_level = anchors.split([6 * rows * columns for rows, columns in grids])
    expected = torch.stack([pairwise_iou(boxes, level).amax(1) for level in per_level], dim=1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_flat_boxes_are_given_flat_anchors() -> None:
    """All boxes are 60 x 12 px; few of them reach an IoU of 0.5 with the default ratios."""
    draws = torch.Generator().manual_seed(1)
    corners = torch.rand(200, 2, generator=draws) * torch.tensor([250.0, 290.0])
    boxes = torch.cat((corners, corners + torch.tensor([60.0, 12.0])), dim=1)
    seen = SeenBoxes(boxes, torch.tensor([320, 320]).expand(200, 2))
    default = AnchorShapes(((32, 45), (64, 90), (128, 181), (256, 362), (512, 724)), (0.5, 1.0, 2.0))
    found = suggest(seen, default, 0.5)
    before, after = (level_ious(seen, shapes).amax(1) for shapes in (default, found))
    assert float((before >= 0.5).double().mean()) < 0.2
    assert float((after >= 0.5).double().mean()) > 0.98
    assert [len(level) for level in found.sizes] == [2] * 5 and len(found.ratios) == 3
    assert found.sizes[1:] == default.sizes[1:]  # levels that no box needs stay as they are


def test_what_fits_already_is_not_made_worse() -> None:
    """One shape of box, and an anchor of nearly that shape, which is not on the grid of the search."""
    seen = SeenBoxes(torch.tensor([[100.0, 103, 156, 153]] * 3), torch.tensor([[256, 256]] * 3))
    current = AnchorShapes(((32,), (53,), (128,), (256,), (512,)), (0.893,))
    suggested = level_ious(seen, suggest(seen, current, 0.5)).amax(1)
    assert (suggested >= level_ious(seen, current).amax(1)).all()


@pytest.mark.parametrize("sides", [(300, 30), (50, 50), (20, 21)])
@pytest.mark.parametrize("slots", [1, 3])
def test_no_anchor_is_suggested_twice(sides: tuple[int, int], slots: int) -> None:
    """Boxes of one shape need one size and one ratio: the other slots gain nothing from any value."""
    draws = torch.Generator().manual_seed(0)
    widths = torch.tensor(sides) + 5 * torch.rand(200, 2, generator=draws)
    centres = 100 + 300 * torch.rand(200, 2, generator=draws)
    boxes = torch.cat((centres - widths / 2, centres + widths / 2), dim=1)
    seen = SeenBoxes(boxes, torch.tensor([512, 512]).expand(200, 2))
    sizes = tuple(tuple(s * 2 ** (k / 3) for k in range(slots)) for s in (32, 64, 128, 256, 512))
    found = suggest(seen, AnchorShapes(sizes, (0.5, 1.0, 2.0)), 0.5)
    assert float((level_ious(seen, found).amax(1) >= 0.5).double().mean()) > 0.9
    assert len(set(found.ratios)) == 3
    assert [len(set(level)) for level in found.sizes] == [slots] * 5


def test_the_last_level_is_given_anchors_for_boxes_of_any_size() -> None:
    """2,400 px, although five times the last stride is only 640."""
    corners = 100 + 500 * torch.rand(50, 2, generator=torch.Generator().manual_seed(0))
    seen = SeenBoxes(torch.cat((corners, corners + 2400), 1), torch.tensor([4096, 4096]).expand(50, 2))
    default = AnchorShapes(((32, 45), (64, 90), (128, 181), (256, 362), (512, 724)), (0.5, 1.0, 2.0))
    assert level_ious(seen, suggest(seen, default, 0.5)).amax(1).min() > 0.8


def test_anchors_that_fit_are_left_alone() -> None:
    boxes = torch.tensor([[96.0, 96.0, 128.0, 128.0]])  # centred on a point of the finest grid
    shapes = AnchorShapes(((32,), (64,), (128,), (256,), (512,)), (1.0,))
    assert suggest(SeenBoxes(boxes, torch.tensor([[256, 256]])), shapes, 0.5) == shapes


def test_many_boxes_are_thinned_with_the_sizes_of_their_images() -> None:
    number = torch.arange(900)
    seen = SeenBoxes(number[:, None].float().expand(900, 4), number[:, None].expand(900, 2))
    thinned = _thinned(seen)
    assert len(thinned.boxes) == 800 and thinned.boxes[:, 0].long().equal(thinned.image_sizes[:, 0])
