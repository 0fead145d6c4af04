"""Matching against a double loop over anchors and boxes, and the cases that matcher code gets wrong."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from detector import matcher
from detector.matcher import Matches, match
from detector.matcher_loops import BLOCK
from tests import oracles

Box = tuple[int, int, int, int]
fuzz = settings(deadline=None, database=None, derandomize=True, max_examples=150)

# Small whole pixels: ties are common, and float32 tells any two different IoUs apart.
corners, extents = st.integers(0, 10), st.integers(1, 10)
boxes = st.builds(lambda x, y, w, h: (x, y, x + w, y + h), corners, corners, extents, extents)
rows = st.tuples(boxes, st.sampled_from(["object", "object", "crowd", "padding"]))
thresholds = st.sampled_from([(0.5, 0.4), (0.5, 0.5), (0.7, 0.3), (0.25, 0.2)])


def pack(images: list[list[tuple[Box, str]]], width: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes [B, G, 4], valid and ignore [B, G], padded with boxes that would match everything."""
    gts = max(map(len, images)) if width is None else width
    padded = [rows + [((0, 0, 10, 10), "padding")] * (gts - len(rows)) for rows in images]
    boxes = torch.tensor([[box for box, _ in rows] for rows in padded]).reshape(len(images), gts, 4).float()
    kinds = [[kind for _, kind in rows] for rows in padded]
    valid = torch.tensor([[kind != "padding" for kind in mine] for mine in kinds], dtype=torch.bool)
    # Padding is marked as crowd as well: being padding must be enough.
    ignore = torch.tensor([[kind != "object" for kind in mine] for mine in kinds], dtype=torch.bool)
    return boxes, valid.reshape(len(images), gts), ignore.reshape(len(images), gts)


def run(
    anchors: list[Box], images: list[list[tuple[Box, str]]], iou: tuple[float, float], best: bool
) -> Matches:
    return match(torch.tensor(anchors).float(), *pack(images), *iou, best)


def assert_is_the_double_loops(
    matches: Matches,
    anchors: list[Box],
    images: list[list[tuple[Box, str]]],
    iou: tuple[float, float],
    best: bool,
) -> None:
    assert matches.status.dtype == torch.int8
    assert matches.gt_index.dtype == torch.int64
    for i, image in enumerate(images):
        objects = {g: box for g, (box, kind) in enumerate(image) if kind == "object"}
        crowds = [box for box, kind in image if kind == "crowd"]
        expected = oracles.match_image(anchors, objects, crowds, *iou, best)
        assert matches.status[i].tolist() == [m.status for m in expected]
        positive = matches.status[i] == 1
        assert matches.gt_index[i][positive].tolist() == [m.gt for m in expected if m.status == 1]


@fuzz
@given(
    anchors=st.lists(boxes, min_size=1, max_size=12),
    images=st.lists(st.lists(rows, max_size=5), min_size=1, max_size=3),
    iou=thresholds,
    best=st.booleans(),
    data=st.data(),
)
def test_matching_is_that_of_the_double_loop_whatever_the_blocks(
    anchors: list[Box],
    images: list[list[tuple[Box, str]]],
    iou: tuple[float, float],
    best: bool,
    data: st.DataObject,
) -> None:
    for box, kind in images[0]:  # gts that are anchors themselves: IoU 1, and ties
        if kind == "object" and data.draw(st.booleans()):
            anchors = [*anchors, box]
    compiled = run(anchors, images, iou, best)
    assert_is_the_double_loops(compiled, anchors, images, iou, best)
    for pairs in (1, 2 * len(images) * len(anchors), 1 << 22):  # one gt at a time, two at a time, all
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(matcher, "numba_works", lambda: False)
            patch.setattr(matcher, "_PAIRS_AT_ONCE", pairs)
            assert_is_the_double_loops(run(anchors, images, iou, best), anchors, images, iou, best)


@pytest.mark.parametrize("count", [2000, 5000, 4 * BLOCK])  # partial and whole blocks of the compiled loops
@pytest.mark.parametrize("best", [True, False])
def test_many_anchors_in_blocks_are_matched_as_all_at_once(
    monkeypatch: pytest.MonkeyPatch, count: int, best: bool
) -> None:
    """The compiled loops give all IoUs to the last bit, and so the same ties."""
    generator = torch.Generator().manual_seed(0)

    def some(*shape: int) -> Tensor:
        corner = torch.rand(*shape, 2, generator=generator) * 100
        return torch.cat((corner, corner + 5 + torch.rand(*shape, 2, generator=generator) * 40), dim=-1)

    anchors, gt_boxes = some(count), some(2, 23)
    gt_boxes[0, 1:4] = anchors[torch.tensor([1, count // 2, count - 1])]
    anchors[count // 3] = anchors[count - 1]  # equally good for that gt box, but in another block
    valid = torch.rand(2, 23, generator=generator) < 0.8
    ignore = torch.rand(2, 23, generator=generator) < 0.2
    valid[0, :4] = True
    ignore[0, :4] = False
    compiled = match(anchors, gt_boxes, valid, ignore, 0.5, 0.4, best)
    monkeypatch.setattr(matcher, "numba_works", lambda: False)
    whole = match(anchors, gt_boxes, valid, ignore, 0.5, 0.4, best)
    monkeypatch.setattr(matcher, "_PAIRS_AT_ONCE", 5 * 2 * count)
    parts = match(anchors, gt_boxes, valid, ignore, 0.5, 0.4, best)
    assert set(whole.status.unique().tolist()) == {-1, 0, 1}
    for other in (parts, compiled):
        assert torch.equal(other.status, whole.status)
        assert torch.equal(other.gt_index, whole.gt_index)


def test_forced_anchor_learns_the_gt_that_forced_it() -> None:
    """The anchor overlaps gt 0 more, but gt 1 has no better anchor; gt 0 has one of its own."""
    anchors = [(0, 0, 10, 10), (4, 0, 14, 10)]
    image = [((0, 0, 10, 10), "object"), ((12, 0, 22, 10), "object")]
    overlap = [oracles.iou(anchors[1], box) for box, _ in image]
    assert 0.5 > overlap[0] > overlap[1] > 0
    matches = run(anchors, [image], (0.5, 0.4), best=True)
    assert matches.status.tolist() == [[1, 1]]
    assert matches.gt_index.tolist() == [[0, 1]]
    assert run(anchors, [image], (0.5, 0.4), best=False).status.tolist() == [
        [1, -1 if overlap[0] >= 0.4 else 0]
    ]


def test_an_anchor_that_reaches_the_threshold_is_not_taken_away_by_force() -> None:
    """Anchor 1 is the best of gt 1, but fits gt 0 (IoU 2/3), although gt 0 has a better one."""
    anchors = [(0, 0, 10, 10), (2, 0, 12, 10)]
    image = [((0, 0, 10, 10), "object"), ((11, 0, 20, 10), "object")]
    matches = run(anchors, [image], (0.5, 0.4), best=True)
    assert matches.status.tolist() == [[1, 1]]
    assert matches.gt_index.tolist() == [[0, 0]]


@pytest.mark.parametrize("pairs", [1, 1 << 22])
def test_of_two_boxes_that_force_an_anchor_alike_the_first_has_it(
    pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether they are looked at together or one after the other."""
    monkeypatch.setattr(matcher, "_PAIRS_AT_ONCE", pairs)
    matches = run(
        [(0, 0, 10, 10)], [[((0, 0, 10, 3), "object"), ((0, 7, 10, 10), "object")]], (0.5, 0.4), True
    )
    assert (matches.status.tolist(), matches.gt_index.tolist()) == ([[1]], [[0]])


def test_all_anchors_that_are_equally_best_are_positive() -> None:
    matches = run(
        [(0, 0, 4, 4), (4, 0, 8, 4), (0, 40, 4, 44)], [[((2, 0, 6, 4), "object")]], (0.5, 0.2), True
    )
    assert matches.status.tolist() == [[1, 1, 0]]


def test_a_gt_that_overlaps_no_anchor_makes_nothing_positive() -> None:
    matches = run([(0, 0, 4, 4), (8, 8, 12, 12)], [[((20, 20, 30, 30), "object")]], (0.5, 0.4), True)
    assert matches.status.tolist() == [[0, 0]]


def test_thresholds_belong_to_positive_and_ignored() -> None:
    """IoU exactly 1/2 is positive, exactly 1/4 is not negative."""
    gt, anchors = (0, 0, 8, 8), [(0, 0, 8, 8), (0, 0, 8, 4), (0, 0, 4, 4), (0, 0, 3, 4)]
    assert run(anchors, [[(gt, "object")]], (0.5, 0.25), True).status.tolist() == [[1, 1, -1, 0]]


def test_anchors_mostly_in_a_crowd_take_no_part() -> None:
    """With more than half of their area in it; exactly half is background. An object in it still counts."""
    anchors = [(0, 0, 10, 10), (15, 0, 25, 10), (14, 0, 24, 10), (30, 0, 40, 10)]
    image = [((0, 0, 20, 20), "crowd"), ((0, 0, 10, 10), "object")]
    assert run(anchors, [image], (0.5, 0.4), True).status.tolist() == [[1, 0, -1, 0]]


@pytest.mark.parametrize("gts", [0, 3])
def test_images_without_boxes_are_background(gts: int) -> None:
    """G = 0, and nothing but padding."""
    matches = match(torch.tensor([[0.0, 0.0, 10.0, 10.0]] * 5), *pack([[], []], width=gts), 0.5, 0.4)
    assert matches.status.tolist() == [[0] * 5] * 2
    assert matches.gt_index.shape == (2, 5)
