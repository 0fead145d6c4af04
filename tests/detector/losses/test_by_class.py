"""Losses class by class against the double loops over the definitions, one class after the other."""

import pytest
import torch
from torch import Tensor

from detector.losses import (
    NonFiniteLogits,
    ap_loss,
    class_alrp_loss,
    class_ap_loss,
    class_rank_sort_loss_of,
    rank_sort_loss_of,
)
from tests import oracles

pytestmark = pytest.mark.usefixtures("either_way")
CLASSES = 4
Columns = list[tuple[list[float], list[int], list[float]]]


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Logits, targets [3, 50, 4] and a value for each positive; the last class has no positives."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 50, CLASSES, generator=generator) * 2
    draws = torch.rand(logits.shape, generator=generator)
    targets = (draws < 0.07).to(torch.int8) - (draws > 0.9).to(torch.int8)
    targets[..., 3].clamp_(max=0)
    values = torch.rand(int((targets == 1).sum()), generator=generator).clamp(min=0.01)
    return (logits + targets).requires_grad_(), targets, values


def columns(logits: Tensor, targets: Tensor, values: Tensor) -> Columns:
    """For each class with positives: logits, targets, and the values of its positives."""
    wide = torch.zeros(targets.shape)
    wide[targets == 1] = values
    each = [
        (x.tolist(), t.tolist(), v[t == 1].tolist())
        for x, t, v in zip(*(y.detach().reshape(-1, CLASSES).T for y in (logits, targets, wide)), strict=True)
    ]
    assert [len(kept) > 1 for _, _, kept in each] == [True, True, True, False]
    return each[:3]


def side_by_side(gradients: list[list[float]]) -> Tensor:
    """The gradient of the mean loss from those of the columns; the last class has none."""
    every = torch.tensor([*gradients, [0.0] * 150], dtype=torch.float64) / 3
    return every.T.reshape(3, 50, CLASSES)


def assert_near(actual: Tensor, expected: Tensor | list[float]) -> None:
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(actual.detach().double(), expected, rtol=1e-6, atol=1e-9)


def mean(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).mean()


def test_ap_is_the_mean_over_the_classes_with_positives() -> None:
    logits, targets, values = batch()
    loss = class_ap_loss(logits, targets)
    each = [oracles.ap_loss(x, t, 1.0, True) for x, t, _ in columns(logits, targets, values)]
    errors, gradients = zip(*each, strict=True)
    assert_near(loss, mean(errors))
    assert_near(torch.autograd.grad(loss, logits)[0], side_by_side(list(gradients)))


def test_alrp_is_the_mean_over_the_classes_with_positives() -> None:
    """The weight of a box depends on the number of boxes of its class, too."""
    logits, targets, values = batch()
    values.requires_grad_()
    loss = class_alrp_loss(logits, targets, values)
    grads = torch.autograd.grad(loss.ranking_error + loss.localisation_error, (logits, values))
    each = [oracles.alrp_loss(x, t, e, 1.0) for x, t, e in columns(logits, targets, values)]
    ranking, localisation, on_logits, on_values = zip(*each, strict=True)
    assert_near(loss.ranking_error, mean(ranking))
    assert_near(loss.localisation_error, mean(localisation))
    assert_near(grads[0], side_by_side(list(on_logits)))
    classes = (targets == 1).nonzero()[:, 2]
    for c in range(3):
        assert_near(3 * grads[1][classes == c], on_values[c])


def test_rank_sort_is_the_mean_over_the_classes_with_positives() -> None:
    logits, targets, values = batch()
    loss = class_rank_sort_loss_of(logits, targets, values)
    each = []
    for x, t, q in columns(logits, targets, values):
        left = iter(q)
        quality = [next(left) if target == 1 else float(target) for target in t]
        each.append(oracles.rank_sort_loss(x, quality, 0.5))
    ranking, sorting, *gradients = zip(*each, strict=True)
    assert_near(loss.ranking_error, mean(ranking))
    assert_near(loss.sorting_error, mean(sorting))
    for part, expected in zip(loss, gradients, strict=True):
        assert_near(torch.autograd.grad(part, logits, retain_graph=True)[0], side_by_side(list(expected)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_one_class_is_ranked_as_all_together(dtype: torch.dtype) -> None:
    """Equal to the bit, even in half precision."""
    logits, targets, values = batch()
    logits = logits[..., :1].detach().to(dtype).requires_grad_()
    targets = targets[..., :1]
    values = values[: int((targets == 1).sum())]
    pairs = [
        (class_ap_loss(logits, targets), ap_loss(logits, targets)),
        *zip(
            class_rank_sort_loss_of(logits, targets, values),
            rank_sort_loss_of(logits, targets, values),
            strict=True,
        ),
    ]
    for one, other in pairs:
        assert torch.equal(one, other)
        gradients = [torch.autograd.grad(part, logits, retain_graph=True)[0] for part in (one, other)]
        assert torch.equal(*gradients)


@pytest.mark.parametrize("shape", [(0, 4), (2, 7, 4), (5, 0)])
def test_without_positives_all_are_zero_and_have_a_gradient(shape: tuple[int, ...]) -> None:
    logits, targets = torch.ones(shape, requires_grad=True), torch.zeros(shape, dtype=torch.int8)
    none = torch.zeros(0, requires_grad=True)
    parts = [
        class_ap_loss(logits, targets),
        *class_alrp_loss(logits, targets, none),
        *class_rank_sort_loss_of(logits, targets, none),
    ]
    assert [part.item() for part in parts] == [0] * 5
    torch.stack(parts).sum().backward()
    for leaf in (logits, none):
        assert leaf.grad is not None and not leaf.grad.any()


def test_what_cannot_be_ranked_is_refused() -> None:
    logits, targets, values = batch()
    with pytest.raises(ValueError, match="differ in shape"):
        class_ap_loss(logits, targets[..., :3])
    for index in ((0, 0), (0, 0, 0)):  # the classes of one anchor, and a single number
        with pytest.raises(ValueError, match=r"logits must be \[..., C\], the anchors"):
            class_ap_loss(logits[index], targets[index])
    for loss in (class_alrp_loss, class_rank_sort_loss_of):
        with pytest.raises(
            ValueError, match=rf"expected one value per positive, \[{len(values)}\], got \[3\]"
        ):
            loss(logits, targets, values[:3])
        with pytest.raises(ValueError, match=r"must lie in .0, 1\]"):
            loss(logits, targets, 2 * values.detach() / values.max())


def test_classes_without_positives_are_looked_at_too() -> None:
    """Otherwise the weights of such a class could be NaN for as long as it has no positives."""
    logits, targets = torch.zeros(5, 2), torch.tensor([[1, 0]] * 2 + [[0, 0]] * 3)
    logits[4, 1] = torch.nan
    losses = (
        class_ap_loss,
        *(lambda x, t, f=f: f(x, t, torch.ones(2))[0] for f in (class_alrp_loss, class_rank_sort_loss_of)),
    )
    for loss in losses:
        with pytest.raises(NonFiniteLogits, match="flat index 9"):
            loss(logits, targets)
    targets[4, 1] = 7
    with pytest.raises(ValueError, match="got 7"):
        class_ap_loss(logits.nan_to_num(), targets)
    targets[4, 1] = -1
    assert class_ap_loss(logits, targets).item() == class_ap_loss(logits.nan_to_num(), targets).item()
