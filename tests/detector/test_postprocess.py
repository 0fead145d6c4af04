"""Head outputs -> detections, against a loop written from the definition."""

import math

import pytest
import torch
from torch import Tensor
from torchvision.ops import batched_nms, nms

from detector.postprocess import Detections, _top, best_of_nms, detect, nms_of_classes
from detector.retinanet import HeadOutputs
from detector.soft_nms import soft_nms
from tests.oracles import iou

CLASSES = 3
LEVELS = (40, 12, 3)
SIZES = torch.tensor([[60, 90], [80, 50]])  # height, width
STD = torch.tensor([0.1, 0.1, 0.2, 0.2])


def outputs(seed: int = 0) -> HeadOutputs:
    """Random heads over overlapping anchors, some beyond the border.

    Logits are distinct multiples of 1/64: ties cannot occur, and adding a whole number is exact.
    """
    generator = torch.Generator().manual_seed(seed)
    total = sum(LEVELS)
    steps = torch.stack([torch.randperm(total * CLASSES, generator=generator) for _ in SIZES])
    logits = (steps - 80).reshape(len(SIZES), total, CLASSES) / 64
    deltas = torch.randn(len(SIZES), total, 4, generator=generator)
    centres = torch.rand(total, 2, generator=generator) * 80
    half = 6 + torch.rand(total, 2, generator=generator) * 12
    return HeadOutputs(logits, deltas, torch.cat((centres - half, centres + half), 1), LEVELS)


def detect_by_loops(
    heads: HeadOutputs, image: int, threshold: float, k: int, nms: float, most: int, soft: bool = False
) -> list[tuple[float, int, list[float]]]:
    """(score, label, box), best first: each step in float64, as in the definition."""
    height, width = SIZES[image].tolist()
    candidates, first = [], 0
    for count in heads.level_sizes:
        pairs = [(n, c) for n in range(first, first + count) for c in range(CLASSES)]
        pairs.sort(key=lambda pair: -heads.logits[image, pair[0], pair[1]].item())
        candidates += pairs[:k]
        first += count
    found = []
    for n, label in candidates:
        score = 1 / (1 + math.exp(-heads.logits[image, n, label].item()))
        x0, y0, x1, y1 = heads.anchors[n].tolist()
        d = [delta * std for delta, std in zip(heads.deltas[image, n].tolist(), STD.tolist(), strict=True)]
        cx, cy = (x0 + x1) / 2 + d[0] * (x1 - x0), (y0 + y1) / 2 + d[1] * (y1 - y0)
        w, h = (x1 - x0) * math.exp(d[2]), (y1 - y0) * math.exp(d[3])
        box = [
            min(max(v, 0.0), limit)
            for v, limit in (
                (cx - w / 2, width), (cy - h / 2, height), (cx + w / 2, width), (cy + h / 2, height)
            )
        ]  # fmt: skip
        if score > threshold and box[2] > box[0] and box[3] > box[1]:  # not entirely in the padding
            found.append((score, label, box))
    found.sort(key=lambda item: -item[0])
    kept: list[tuple[float, int, list[float]]] = []
    while soft and found:  # soft NMS only: hard NMS follows below
        best = max(found, key=lambda item: item[0])
        found.remove(best)
        kept.append(best)
        found = [
            (score * (1 - iou(best[2], box)) if label == best[1] else score, label, box)
            for score, label, box in found
        ]
        found = [item for item in found if item[0] > threshold]
    for item in found:
        if all(item[1] != other[1] or iou(item[2], other[2]) <= nms for other in kept):
            kept.append(item)
    return kept[:most]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("threshold", "k", "nms", "most"), [(0, 1000, 0.5, 1000), (0.3, 25, 0.3, 12)])
def test_detections_equal_the_definition(seed: int, threshold: float, k: int, nms: float, most: int) -> None:
    heads = outputs(seed)
    for image, found in enumerate(detect(heads, SIZES, STD, threshold, k, nms, most)):
        expected = detect_by_loops(heads, image, threshold, k, nms, most)
        assert len(expected) > 10
        assert found.labels.tolist() == [label for _, label, _ in expected]
        assert found.scores.tolist() == pytest.approx([score for score, _, _ in expected], abs=1e-12)
        torch.testing.assert_close(
            found.boxes, torch.tensor([box for _, _, box in expected]), atol=1e-3, rtol=0
        )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("threshold", "k", "most"), [(0, 1000, 60), (0.3, 25, 12), (0.3, 25, 1000)])
def test_soft_nms_equals_the_definition(seed: int, threshold: float, k: int, most: int) -> None:
    heads = outputs(seed)
    for image, found in enumerate(detect(heads, SIZES, STD, threshold, k, 0.5, most, soft=True)):
        expected = detect_by_loops(heads, image, threshold, k, 0.5, most, soft=True)
        assert len(expected) > 10
        assert found.labels.tolist() == [label for _, label, _ in expected]
        assert found.scores.tolist() == pytest.approx([score for score, _, _ in expected], abs=1e-6)
        torch.testing.assert_close(
            found.boxes, torch.tensor([box for _, _, box in expected]), atol=1e-3, rtol=0
        )


def test_nms_is_exact_with_many_classes_on_large_images() -> None:
    """Oracle: NMS of each class separately, in float64."""
    generator = torch.Generator().manual_seed(0)
    corner = 4980 * torch.rand(60, 2, generator=generator)[torch.randint(60, (3000,), generator=generator)]
    corner += 8 * torch.rand(3000, 2, generator=generator)
    boxes = torch.cat((corner, corner + 12 + 8 * torch.rand(3000, 2, generator=generator)), 1)
    scores, labels = torch.randn(3000, generator=generator), torch.randint(1000, (3000,), generator=generator)
    labels[::2] = 999
    apart = [
        at[nms(boxes[at].double(), scores[at].double(), 0.5)]
        for at in (torch.nonzero(labels == label).squeeze(1) for label in labels.unique())
    ]
    expected = torch.cat(apart)
    found = nms_of_classes(boxes, scores, labels, 0.5)
    assert found.tolist() == expected[scores[expected].argsort(descending=True)].tolist()
    assert nms_of_classes(boxes[:0], scores[:0], labels[:0], 0.5).tolist() == []


@pytest.mark.parametrize("most", [1, 3, 20, 1000])
@pytest.mark.parametrize("threshold", [0.05, 0.5])
def test_the_best_of_nms_are_the_first_of_all_that_it_keeps(threshold: float, most: int) -> None:
    """Boxes overlap heavily, so that many have to be tried, and scores are often equal."""
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(600, 2, generator=generator) * 30
    boxes = torch.cat((corner, corner + 20 + torch.rand(600, 2, generator=generator) * 10), 1)
    scores = torch.randint(0, 40, (600,), generator=generator).float()
    labels = torch.randint(0, 3, (600,), generator=generator)
    every = nms_of_classes(boxes, scores, labels, threshold)
    assert best_of_nms(boxes, scores, labels, threshold, most).tolist() == every[:most].tolist()
    assert best_of_nms(boxes[:0], scores[:0], labels[:0], threshold, most).tolist() == []


@pytest.mark.parametrize("k", [1, 7, 60, 240])
def test_the_top_of_a_level_is_that_of_all_its_numbers(k: int) -> None:
    level = torch.randn(2, 60, 4, generator=torch.Generator().manual_seed(0))
    level[:, 5] += 3  # several classes of one anchor
    values, flat = _top(level, k)
    expected = level.flatten(1).topk(k, dim=1)
    assert values.equal(expected.values) and flat.equal(expected.indices)


def test_soft_nms_by_hand() -> None:
    """IoU 1/2 halves a score; another class, an identical box, and boxes without area."""
    boxes = torch.tensor(
        [[0.0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 5], [0, 0, 10, 10], [3, 3, 3, 3], [3, 3, 3, 3]]
    )
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5, 0.3], dtype=torch.float64)
    labels = torch.tensor([0, 0, 1, 0, 0, 0])
    index, left = soft_nms(boxes[None], scores.logit()[None], labels[None], 9)
    assert index[0, :5].tolist() == [0, 2, 4, 1, 5]
    assert left.exp()[0].tolist() == pytest.approx([0.9, 0.7, 0.5, 0.4, 0.3, 0.0])


def test_soft_nms_tells_scores_apart_that_round_to_one() -> None:
    """And what is not a candidate does not become a detection."""
    boxes = torch.arange(6.0)[:, None] * 20 + torch.tensor([0.0, 0, 10, 10])
    logits = torch.tensor([18.0, 40, -math.inf, 50, -800, 45], dtype=torch.float64)
    index, left = soft_nms(boxes[None], logits[None], torch.zeros(1, 6, dtype=torch.int64), 6)
    assert index[0, :5].tolist() == [3, 5, 1, 0, 4]
    assert left[0, 4] == -800
    assert left[0, 5] == -math.inf


def test_high_scores_are_told_apart_after_soft_nms_as_well() -> None:
    """In float32 the sigmoids of 18, 20, 22 and 24 are all 1."""
    anchors = torch.arange(4.0)[:, None] * 20 + torch.tensor([0.0, 0, 10, 10])
    heads = HeadOutputs(torch.tensor([18.0, 20, 22, 24])[None, :, None], torch.zeros(1, 4, 4), anchors, (4,))
    (found,) = detect(heads, torch.tensor([[100, 100]]), STD, soft=True)
    assert found.scores.dtype == torch.float64
    assert len(found.scores) == 4 and (found.scores.diff() < 0).all()


def test_soft_nms_loses_no_score_that_rounds_to_zero() -> None:
    """A ranking loss leaves the scale free: e to the power of -800 is 0 in float64."""
    anchors = torch.arange(3.0)[:, None] * 20 + torch.tensor([0.0, 0, 10, 10])
    logits = torch.tensor([-900.0, -1000, -800])[None, :, None]
    heads = HeadOutputs(logits, torch.zeros(1, 3, 4), anchors, (3,))
    (found,) = detect(heads, torch.tensor([[100, 100]]), STD, soft=True)
    assert found.boxes.tolist() == anchors[[2, 0, 1]].tolist()


def equal(one: Detections, other: Detections) -> bool:
    return one.boxes.equal(other.boxes) and one.labels.equal(other.labels)


@pytest.mark.parametrize("shift", [-1000.0, -20.0, 50.0, 1000.0])
def test_a_constant_on_all_logits_changes_no_selection(shift: float) -> None:
    """A ranking loss leaves the scale free: even where all scores round to 0 or 1, the rank decides."""
    heads = outputs()
    expected = detect(heads, SIZES, STD, topk_candidates=20, detections_per_img=15)
    found = detect(
        heads._replace(logits=heads.logits + shift), SIZES, STD, topk_candidates=20, detections_per_img=15
    )
    assert all(equal(one, other) for one, other in zip(found, expected, strict=True))


def test_threshold_zero_loses_nothing() -> None:
    """Without NMS and limits, every pair of anchor and class comes back, whatever its score."""
    heads = outputs()
    heads = heads._replace(logits=heads.logits - 2000, deltas=torch.zeros_like(heads.deltas))
    for found in detect(heads, SIZES.new_full(SIZES.shape, 100), STD, 0.0, 10**6, 1.0, 10**6):
        assert len(found.labels) == sum(LEVELS) * CLASSES
        assert found.labels.bincount().tolist() == [sum(LEVELS)] * CLASSES


def test_nms_is_per_class_and_per_image_as_torchvisions() -> None:
    heads = outputs()
    everything = detect(heads, SIZES, STD, 0.0, 10**6, 1.0, 10**6)
    for raw, found in zip(everything, detect(heads, SIZES, STD, 0.0, 10**6, 0.5, 10**6), strict=True):
        keep = batched_nms(raw.boxes, raw.scores.float(), raw.labels, 0.5)
        assert len(keep) < len(raw.labels)
        assert found.boxes.equal(raw.boxes[keep]) and found.labels.equal(raw.labels[keep])


def test_detections_per_image_keeps_the_best() -> None:
    heads = outputs()
    for few, many in zip(
        detect(heads, SIZES, STD, detections_per_img=4), detect(heads, SIZES, STD), strict=True
    ):
        assert len(few.labels) == 4 and few.scores.equal(many.scores[:4])
        assert (many.scores.diff() < 0).all()


def test_boxes_are_clipped_to_their_own_image() -> None:
    heads = outputs()
    for found, (height, width) in zip(detect(heads, SIZES, STD), SIZES.tolist(), strict=True):
        limit = torch.tensor([width, height, width, height])
        assert (found.boxes >= 0).all() and (found.boxes <= limit).all()
        assert (found.boxes == limit).any() and (found.boxes == 0).any()


@pytest.mark.parametrize("soft", [False, True])
def test_boxes_in_the_padding_are_none(soft: bool) -> None:
    """Clipped, they have no width: two equal ones would both be kept, as their IoU is 0 / 0."""
    anchors = torch.tensor([[40.0, 0, 60, 20], [40.0, 0, 60, 20], [10.0, 0, 30, 20]])
    heads = HeadOutputs(torch.tensor([3.0, 3.0, 1.0])[None, :, None], torch.zeros(1, 3, 4), anchors, (3,))
    (found,) = detect(heads, torch.tensor([[40, 40]]), STD, soft=soft)
    assert found.boxes.tolist() == [[10.0, 0.0, 30.0, 20.0]]


def one_box(logits: list[float]) -> Tensor:
    return torch.tensor(logits)[:, None, None]  # [B, 1, 1]


def test_images_without_detections_give_empty_tensors() -> None:
    """The first image has one anchor above the threshold, the second none."""
    heads = HeadOutputs(one_box([2.0, -2.0]), torch.zeros(2, 1, 4), torch.tensor([[5.0, 6, 25, 36]]), (1,))
    first, second = detect(heads, SIZES, STD, score_threshold=0.5)
    assert first.boxes.tolist() == [[5.0, 6.0, 25.0, 36.0]] and first.labels.tolist() == [0]
    assert second.boxes.shape == (0, 4) and second.scores.shape == (0,) and second.labels.shape == (0,)


def test_half_precision_heads_give_float32_boxes() -> None:
    heads = outputs()
    half = heads._replace(logits=heads.logits.bfloat16(), deltas=heads.deltas.bfloat16())
    rounded = half._replace(logits=half.logits.float(), deltas=half.deltas.float())
    for one, other in zip(detect(half, SIZES, STD), detect(rounded, SIZES, STD), strict=True):
        assert one.boxes.dtype == torch.float32 and equal(one, other)
