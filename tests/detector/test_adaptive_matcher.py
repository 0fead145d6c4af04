"""ATSS against a double loop written from its algorithm, and cases computed by hand."""

import pytest
import torch
from torch import Tensor

from detector import matcher
from detector.adaptive_matcher import match_adaptively
from detector.anchors import AnchorGenerator, pyramid_grids
from tests import oracles

SIZE = (96, 128)
SIZES = [[12.0, 20.0], [24.0, 40.0], [48.0, 80.0], [96.0, 160.0], [192.0, 320.0]]


def pyramid(ratios: list[float]) -> tuple[Tensor, tuple[int, ...], int]:
    """Anchors of a small image, their number on each level, and their number at a location."""
    grids = pyramid_grids(*SIZE)
    generator = AnchorGenerator(SIZES, ratios)
    anchors = generator(SIZE, grids, torch.device("cpu"))
    return anchors, tuple(h * w * generator.per_location for h, w in grids), generator.per_location


def nested(anchors: Tensor, level_sizes: tuple[int, ...], per_location: int) -> list[list[list[tuple]]]:
    """The anchors as nested lists: by level, then by location."""
    return [
        [[tuple(box) for box in place] for place in level.view(-1, per_location, 4).tolist()]
        for level in anchors.split(level_sizes)
    ]


def some_boxes(batch: int, gts: int, seed: int) -> Tensor:
    """float32 [batch, gts, 4]: sides of 2 to 100 px, among which ties are unlikely."""
    generator = torch.Generator().manual_seed(seed)
    sides = 2 * 50 ** torch.rand(batch, gts, 2, generator=generator)
    middle = torch.rand(batch, gts, 2, generator=generator) * torch.tensor([SIZE[1], SIZE[0]])
    return torch.cat((middle - sides / 2, middle + sides / 2), dim=-1)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    ("ratios", "candidates", "best"),
    [([0.5, 1.0, 2.0], 9, True), ([1.0], 9, False), ([1.0], 4, True), ([1.0, 2.0], 1000, True)],
)
def test_matching_is_that_of_the_double_loop_whatever_the_blocks(
    ratios: list[float], candidates: int, best: bool, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    anchors, level_sizes, per_location = pyramid(ratios)
    boxes = some_boxes(2, 7, seed)
    boxes[:, 5] = boxes[:, 1]  # the first of equal boxes counts, even if the other is in another block
    generator = torch.Generator().manual_seed(100 + seed)
    valid = torch.rand(2, 7, generator=generator) < 0.8
    crowd = torch.rand(2, 7, generator=generator) < 0.3
    expected = []
    for i in range(2):
        real, crowds = {}, []
        for g, box in enumerate(boxes[i].tolist()):
            if valid[i, g] and crowd[i, g]:
                crowds.append(tuple(box))
            elif valid[i, g]:
                real[g] = tuple(box)
        levels = nested(anchors, level_sizes, per_location)
        expected.append(oracles.match_image_adaptively(levels, real, crowds, candidates, best))
    of_three = 2 * 3 * max(len(anchors) // per_location, 20 * candidates * per_location)
    for pairs in (1 << 22, 1, of_three):  # all gts at once, one at a time, three at a time
        monkeypatch.setattr(matcher, "_PAIRS_AT_ONCE", pairs)
        matches = match_adaptively(
            anchors, level_sizes, per_location, boxes, valid, crowd, candidates, best_anchor=best
        )
        assert matches.status.dtype == torch.int8
        assert matches.gt_index.dtype == torch.int64
        for i, of_image in enumerate(expected):
            assert matches.status[i].tolist() == [m.status for m in of_image]
            positive = matches.status[i] == 1
            assert matches.gt_index[i][positive].tolist() == [m.gt for m in of_image if m.status == 1]


def test_an_anchor_that_two_boxes_claim_goes_to_the_one_that_it_overlaps_more() -> None:
    """One level with one location: its anchor is a candidate of both boxes, and the best of each alone."""
    anchors = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    boxes = torch.tensor([[[0.0, 0.0, 10.0, 6.0], [0.0, 0.0, 10.0, 9.0]]])
    valid = torch.ones(1, 2, dtype=torch.bool)
    matches = match_adaptively(anchors, (1,), 1, boxes, valid, ~valid)
    assert (matches.status.tolist(), matches.gt_index.tolist()) == ([[1]], [[1]])


def test_a_box_without_a_centre_in_it_has_its_best_anchor_unless_that_is_turned_off() -> None:
    anchors, level_sizes, per_location = pyramid([1.0])
    boxes = torch.tensor([[[9.5, 9.5, 14.0, 14.0]]])  # between the locations at 8 and 16 px
    valid = torch.ones(1, 1, dtype=torch.bool)

    def positives(best: bool) -> list[int]:
        matches = match_adaptively(anchors, level_sizes, per_location, boxes, valid, ~valid, best_anchor=best)
        return (matches.status[0] == 1).nonzero().squeeze(1).tolist()

    overlaps = [oracles.iou(tuple(boxes[0, 0].tolist()), tuple(anchor)) for anchor in anchors.tolist()]
    assert positives(best=True) == [i for i, overlap in enumerate(overlaps) if overlap == max(overlaps)]
    assert positives(best=False) == []


def test_a_box_that_no_candidate_overlaps_has_no_anchor() -> None:
    """It lies between anchors smaller than their stride: without overlap there is no best anchor."""
    anchors = torch.tensor([[x - 2.0, y - 2, x + 2, y + 2] for y in (0, 16) for x in (0, 16)])
    valid = torch.ones(1, 1, dtype=torch.bool)
    matches = match_adaptively(anchors, (4,), 1, torch.tensor([[[7.0, 7, 9, 9]]]), valid, ~valid)
    assert matches.status.tolist() == [[0, 0, 0, 0]]


@pytest.mark.parametrize("gts", [0, 3])
def test_images_without_boxes_are_background(gts: int) -> None:
    """G = 0, and nothing but padding."""
    anchors, level_sizes, per_location = pyramid([1.0])
    boxes, valid = torch.zeros(2, gts, 4), torch.zeros(2, gts, dtype=torch.bool)
    matches = match_adaptively(anchors, level_sizes, per_location, boxes, valid, valid)
    assert not matches.status.any()
    assert matches.gt_index.shape == (2, len(anchors))
