"""A head asked for a few anchors against the same head's whole maps."""

import pytest
import torch
from torch import Tensor

from detector.few_locations import numbered, surroundings
from detector.heads import Head

LEVELS = ((9, 14), (5, 7), (3, 4), (2, 2), (1, 1))  # height, width
PER_LOCATION = 3
ANCHORS = PER_LOCATION * sum(h * w for h, w in LEVELS)


def head_and_features(depth: int, norm: str = "none") -> tuple[Head, list[Tensor]]:
    torch.manual_seed(0)
    head = Head(5, 6 if norm == "none" else 32, depth, PER_LOCATION, 4, norm).double()
    for parameter in head.parameters():  # biases too: a location beyond the edge is 0, not the bias
        torch.nn.init.normal_(parameter, std=0.3)
    return head, [torch.randn(2, 5, *size, dtype=torch.float64, requires_grad=True) for size in LEVELS]


# Corners, edges, the middle, the last level's single location, and one anchor twice.
FEW = (
    torch.tensor([0, 0, 1, 1, 1, 0, 0]),
    torch.tensor([0, 41, 3 * (4 * 14 + 6) + 1, ANCHORS - 1, 3 * 126 + 2, ANCHORS - 4, 41]),
)
NONE = (torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))


@pytest.mark.parametrize("share", [0.0, 2.0], ids=["whole maps", "few locations"])
@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize("few", [FEW, NONE], ids=["some", "none"])
def test_a_head_of_anchors_is_the_heads_own_outputs_and_gradients(
    monkeypatch: pytest.MonkeyPatch, few: tuple[Tensor, Tensor], depth: int, share: float
) -> None:
    monkeypatch.setattr("detector.heads._FEW", share)
    head, features = head_and_features(depth)
    leaves = [*head.parameters(), *features]
    expected = head(features)[few]
    weights = torch.randn_like(expected)
    gradients = torch.autograd.grad((expected * weights).sum(), leaves)
    found = head.of_anchors(features, *few)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    # For no anchors, too: a parameter without a gradient would stall data-parallel training.
    for mine, its in zip(torch.autograd.grad((found * weights).sum(), leaves), gradients, strict=True):
        torch.testing.assert_close(mine, its, rtol=0, atol=1e-12)


def test_whole_maps_are_computed_for_many_anchors_and_with_a_norm_that_sees_the_whole_map() -> None:
    torch.manual_seed(1)
    every = (torch.arange(2).repeat_interleave(ANCHORS), torch.arange(ANCHORS).repeat(2))
    for norm, which in (("none", every), ("group", FEW)):
        head, features = head_and_features(1, norm)
        called = []
        head.output.register_forward_hook(lambda *_, called=called: called.append(1))
        torch.testing.assert_close(head.of_anchors(features, *which), head(features)[which])
        assert len(called) == 2 * len(LEVELS), norm


def test_few_locations_never_look_at_the_whole_maps() -> None:
    head, features = head_and_features(2)
    head.output.register_forward_hook(lambda *_: pytest.fail("the whole map"))
    head.of_anchors(features, FEW[0][:2], FEW[1][:2])


def test_surroundings_grow_by_a_location_to_each_side_and_are_numbered_over_all_levels() -> None:
    """By hand: the corner of a map of 3 x 4, and all of a map of 1 x 1."""
    wanted = [torch.zeros(1, 3, 4, dtype=torch.bool), torch.ones(1, 1, 1, dtype=torch.bool)]
    wanted[0][0, 0, 0] = True
    inputs, between, last = surroundings(wanted, 2)
    assert last is wanted
    assert between[0].int().tolist() == [[[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]]
    assert inputs[0].int().tolist() == [[[1, 1, 1, 0]] * 3]
    assert [level.tolist() for level in numbered(between)] == [
        [[[1, 2, 0, 0], [3, 4, 0, 0], [0, 0, 0, 0]]],
        [[[5]]],
    ]
