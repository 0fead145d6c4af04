"""aLRP, Rank & Sort and hard-negative cross-entropy against double loops over their definitions."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from detector.losses import (
    NonFiniteLogits,
    alrp_loss,
    ap_loss,
    ce_ohem_loss,
    rank_sort_loss,
    rank_sort_loss_of,
)
from tests import oracles

DELTAS = (0.0, 0.5, 1.0, 3.0)
pytestmark = pytest.mark.usefixtures("either_way")
fuzz = settings(deadline=None, database=None, derandomize=True, max_examples=100)
Case = tuple[list[float], list[float]]


@st.composite
def cases(draw: st.DrawFn, offsets: tuple[float, ...] = (0.0, 50.0, 1e4)) -> Case:
    """Logits and qualities (0 negative, -1 ignored), with ties and break points in both."""
    values = st.one_of(
        st.floats(-6, 6, width=32),
        st.integers(-4, 4).map(lambda k: k / 2),
        st.sampled_from([-1e4, 0.0, 1e4]),
    )
    qualities = st.one_of(
        st.just(0.0), st.just(-1.0), st.sampled_from([0.25, 0.5, 1.0]), st.floats(1 / 128, 1, width=32)
    )
    pairs = draw(st.lists(st.tuples(values, qualities), max_size=20))
    offset = draw(st.sampled_from(offsets))
    return [x + offset for x, _ in pairs], [q for _, q in pairs]


def tensors(case: Case, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, targets and the qualities of all elements."""
    quality = torch.tensor(case[1], dtype=torch.float64)
    return torch.tensor(case[0], dtype=dtype).requires_grad_(), quality.sign().to(torch.int8), quality


def random_case(count: int, positives: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(count, generator=generator) * 2
    quality = torch.zeros(count, dtype=torch.float64)
    quality[:positives] = torch.rand(positives, generator=generator).clamp(min=0.01).double()
    quality[positives : 2 * positives] = -1
    return (logits + quality.sign()).requires_grad_(), quality


def assert_near(actual: Tensor, expected: list[float] | float) -> None:
    """To 1e-6 relative, or to one rounding of a half-precision gradient."""
    info = torch.finfo(actual.dtype)
    half = info.bits == 16
    torch.testing.assert_close(
        actual.detach().double(),
        torch.tensor(expected, dtype=torch.float64).reshape(actual.shape),
        rtol=info.eps if half else 1e-6,
        atol=max(1e-9, info.smallest_normal * info.eps),
    )


def assert_alrp(logits: Tensor, targets: Tensor, errors: Tensor, delta: float) -> None:
    errors = errors.requires_grad_()
    loss = alrp_loss(logits, targets, errors, delta)
    grads = torch.autograd.grad(loss.ranking_error + loss.localisation_error, (logits, errors))
    expected = oracles.alrp_loss(logits.double().tolist(), targets.tolist(), errors.tolist(), delta)
    for actual, value in zip((*loss, *grads), expected, strict=True):
        assert_near(actual, value)


def assert_rank_sort(logits: Tensor, quality: Tensor, delta: float) -> None:
    loss = rank_sort_loss(logits, quality, delta)
    expected = oracles.rank_sort_loss(logits.double().tolist(), quality.tolist(), delta)
    ranking = torch.autograd.grad(loss.ranking_error, logits, retain_graph=True)
    sorting = torch.autograd.grad(loss.sorting_error, logits)
    for actual, value in zip((*loss, *ranking, *sorting), expected, strict=True):
        assert_near(actual, value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("delta", DELTAS)
@fuzz
@given(case=cases())
def test_alrp_follows_the_definition(case: Case, delta: float, dtype: torch.dtype) -> None:
    logits, targets, quality = tensors(case, dtype)
    assert_alrp(logits, targets, 1 - quality[targets == 1], delta)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("delta", DELTAS)
@fuzz
@given(case=cases())
def test_rank_sort_follows_the_definition(case: Case, delta: float, dtype: torch.dtype) -> None:
    logits, _, quality = tensors(case, dtype)
    assert_rank_sort(logits, quality, delta)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@fuzz
@given(case=cases())
def test_rank_sort_of_known_positives_is_the_same(case: Case, dtype: torch.dtype) -> None:
    """As the trainer calls it; equal to the bit."""
    logits, targets, quality = tensors(case, dtype)
    wide = rank_sort_loss(logits, quality)
    known = rank_sort_loss_of(logits, targets, quality[targets == 1])
    for one, other in zip(wide, known, strict=True):
        assert torch.equal(one, other)
        gradients = [torch.autograd.grad(part, logits, retain_graph=True)[0] for part in (one, other)]
        assert torch.equal(*gradients)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("delta", (0.0, 0.5, 1.0))
@fuzz
@given(case=cases(offsets=(0.0, 50.0)))
def test_half_precision_is_exact_up_to_the_rounding_of_the_gradient(
    case: Case, delta: float, dtype: torch.dtype
) -> None:
    """The oracle ranks the same rounded logits. Parts are checked alone: their sum would be rounded twice."""
    logits, targets, quality = tensors(case, dtype)
    errors = 1 - quality[targets == 1]
    ranking = alrp_loss(logits, targets, errors, delta).ranking_error
    expected = oracles.alrp_loss(logits.double().tolist(), targets.tolist(), errors.tolist(), delta)
    assert_near(torch.autograd.grad(ranking, logits)[0], expected[2])
    assert_rank_sort(logits, quality, delta)


@pytest.mark.parametrize("offset", [0.0, 50.0, 1e4])
def test_long_rankings_follow_the_definitions(offset: float) -> None:
    logits, quality = random_case(800, 60)
    logits = (logits.detach() + offset).requires_grad_()
    assert_rank_sort(logits, quality, 0.5)
    targets = quality.sign().to(torch.int8)
    assert_alrp(logits, targets, 1 - quality[targets == 1], 1.0)


def test_alrp_ranks_as_the_ap_loss_does_where_boxes_are_perfect() -> None:
    """No localisation error: the ranking part is the AP-loss without interpolation, gradient included."""
    logits, quality = random_case(500, 40)
    targets = quality.sign().to(torch.int8)
    alrp = alrp_loss(logits, targets, torch.zeros(40))
    ap = ap_loss(logits, targets, interpolated=False)
    torch.testing.assert_close(alrp.ranking_error, ap)
    assert alrp.localisation_error.item() == 0
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (alrp.ranking_error, ap)]
    torch.testing.assert_close(*gradients)


def test_sorted_positives_have_no_sorting_error_and_reversed_ones_move_together() -> None:
    """Hand-computed. Far apart in the right order: 0. Reversed, of qualities 1 and 1/2: see below."""
    right = rank_sort_loss(torch.tensor([9.0, 0.0]), torch.tensor([1.0, 0.5]))
    assert right.sorting_error.item() == 0
    logits = torch.tensor([0.0, 9.0], requires_grad=True)
    wrong = rank_sort_loss(logits, torch.tensor([1.0, 0.5]))
    # Above the best count half of itself and all of the other: (1/2 * 0 + 1 * 1/2) / (3/2) - 0 = 1/3.
    assert wrong.sorting_error.item() == pytest.approx(1 / 6)
    assert torch.autograd.grad(wrong.sorting_error, logits)[0].tolist() == pytest.approx([-1 / 6, 1 / 6])


@pytest.mark.parametrize("name", ["alrp", "rank_sort"])
def test_gradients_sum_to_zero_and_have_their_signs(name: str) -> None:
    logits, quality = random_case(600, 30)
    targets = quality.sign().to(torch.int8)
    if name == "alrp":
        total = alrp_loss(logits, targets, torch.full((30,), 0.3)).ranking_error
    else:
        total = rank_sort_loss(logits, quality).ranking_error
    (gradient,) = torch.autograd.grad(total, logits)
    assert float(gradient.double().sum()) == pytest.approx(0, abs=1e-6)
    assert (gradient[targets == 1] <= 0).all()
    assert (gradient[targets == 0] >= 0).all()
    assert (gradient[targets == -1] == 0).all()


@pytest.mark.parametrize("targets", [[], [0, 0], [-1, -1], [-1, 0]])
def test_without_positives_the_losses_are_zero_and_backpropagate(targets: list[int]) -> None:
    logits = torch.ones(len(targets), requires_grad=True)
    errors = torch.zeros(0, requires_grad=True)
    alrp = alrp_loss(logits, torch.tensor(targets, dtype=torch.int8), errors)
    rank_sort = rank_sort_loss(logits, torch.tensor(targets, dtype=torch.float32))
    total = sum((*alrp, *rank_sort), torch.zeros(()))
    total.backward()
    assert total.item() == 0
    assert logits.grad is not None
    assert (logits.grad == 0).all()
    turned = torch.ones(2, 3).t().requires_grad_()
    (2 * sum(rank_sort_loss(turned, torch.zeros(3, 2)))).backward()
    assert turned.grad is not None and (turned.grad == 0).all()


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda x: alrp_loss(x, torch.tensor([1, 0, 0]), torch.zeros(2)), "one value per positive"),
        (lambda x: alrp_loss(x, torch.tensor([1, 0, 0]), torch.tensor([1.5])), r"\[0, 1\]"),
        (lambda x: alrp_loss(x, torch.tensor([1, 0, 0]), torch.tensor([math.nan])), r"\[0, 1\]"),
        (lambda x: rank_sort_loss(x, torch.tensor([0.5, -0.5, 0])), "-1 or in"),
        (lambda x: rank_sort_loss(x, torch.tensor([0.5, math.nan, 0])), "-1 or in"),
        (lambda x: rank_sort_loss(x, torch.tensor([1, 0, 0])), "floating point"),
        (lambda x: rank_sort_loss(x, torch.tensor([0.5, 0])), "differ in shape"),
        (lambda x: rank_sort_loss_of(x, torch.tensor([1, 0, 0]), torch.ones(2)), "one value per positive"),
        (lambda x: rank_sort_loss_of(x, torch.tensor([1, 0, 0]), torch.zeros(1)), r"in \(0, 1\]"),
        (lambda x: rank_sort_loss_of(x, torch.tensor([1, 0, 0]), torch.tensor([math.nan])), r"in \(0, 1\]"),
    ],
)
def test_wrong_arguments_are_refused(call: Any, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        call(torch.zeros(3))


def test_a_logit_that_is_not_finite_is_named() -> None:
    with pytest.raises(NonFiniteLogits, match="a positive, at flat index 1"):
        rank_sort_loss(torch.tensor([0.0, math.nan]), torch.tensor([0.0, 1.0]))


@fuzz
@given(case=cases(offsets=(0.0,)), ratio=st.sampled_from([1.0, 3.0]))
def test_hard_negative_cross_entropy_follows_the_definition(case: Case, ratio: float) -> None:
    finite = [max(-50.0, min(x, 50.0)) for x in case[0]]
    logits, targets, _ = tensors((finite, case[1]), torch.float64)
    loss = ce_ohem_loss(logits, targets, ratio)
    expected = oracles.ce_ohem_loss(logits.tolist(), targets.tolist(), ratio)
    assert loss.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    loss.backward()  # must work even if nothing takes part


def test_more_hard_negatives_than_there_are_negatives_are_all_of_them() -> None:
    loss = ce_ohem_loss(torch.tensor([0.0, 2.0]), torch.tensor([1, 0]), 1e308)
    assert loss.item() == pytest.approx(math.log(2) + math.log1p(math.exp(2)))


def test_without_positives_there_is_a_hard_negative_whatever_the_ratio() -> None:
    """Even if the ratio allows few per positive: images without objects must teach that they have none."""
    loss = ce_ohem_loss(torch.tensor([0.0, 2.0]), torch.zeros(2, dtype=torch.int8), 0.1)
    assert loss.item() == pytest.approx(math.log1p(math.exp(2)))
