"""The AP-loss against a double loop over its definition, and the facts that follow from it."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from detector.losses import NonFiniteLogits, ap_loss
from detector.losses import ranking as ranking_module
from tests import oracles

DELTAS = (0.0, 0.5, 1.0, 3.0)
Case = tuple[list[float], list[int]]
pytestmark = pytest.mark.usefixtures("either_way")
fuzz = settings(deadline=None, database=None, derandomize=True, max_examples=100)


@st.composite
def cases(draw: st.DrawFn, offsets: tuple[float, ...] = (0.0, 50.0, 1e4, -1e4)) -> Case:
    """Logits and targets: anywhere, heavily tied on a grid of halves (break points), or far apart."""
    value = draw(
        st.sampled_from(
            [
                st.floats(-6, 6, width=32),
                st.integers(-4, 4).map(lambda k: k / 2),
                st.sampled_from([-1e4, -1.0, 0.0, 0.25, 1e4]),
            ]
        )
    )
    target = st.sampled_from(
        draw(st.sampled_from([(0, 1), (-1, 0, 1), (0, 0, 0, 1), (0,), (1,), (-1,), (-1, 0)]))
    )
    pairs = draw(st.lists(st.tuples(value, target), max_size=24))
    offset = draw(st.sampled_from(offsets))
    return [x + offset for x, _ in pairs], [t for _, t in pairs]


def loss_and_gradient(logits: Tensor, targets: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    logits = logits.detach().requires_grad_()
    loss = ap_loss(logits, targets, **options)
    (gradient,) = torch.autograd.grad(loss, logits)
    return loss.detach(), gradient


def random_case(count: int = 400, positives: int = 30, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A shuffled ranking in which positives, negatives and ignored overlap."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, generator=generator) * 2
    targets = torch.zeros(count, dtype=torch.int8)
    targets[:positives], targets[positives : 2 * positives] = 1, -1
    return logits + targets, targets


def assert_agrees(logits: Tensor, targets: Tensor, delta: float, interpolated: bool) -> None:
    """Loss and gradient equal the oracle's, relative to 1e-6 or to the rounding of the logits' dtype."""
    loss, gradient = loss_and_gradient(logits, targets, delta=delta, interpolated=interpolated)
    flat = logits.double().reshape(-1).tolist()
    expected, entries = oracles.ap_loss(flat, targets.reshape(-1).tolist(), delta, interpolated)
    assert gradient.dtype == logits.dtype
    assert gradient.shape == logits.shape
    assert loss.shape == ()
    assert loss.dtype == (torch.float64 if logits.dtype == torch.float64 else torch.float32)
    assert math.isclose(float(loss), expected, rel_tol=1e-6, abs_tol=1e-9)
    half = logits.dtype in (torch.float16, torch.bfloat16)
    info = torch.finfo(logits.dtype)
    expected_gradient = torch.tensor(entries, dtype=torch.float64).reshape(logits.shape)
    torch.testing.assert_close(
        gradient.double(),
        expected_gradient,
        rtol=info.eps if half else 1e-6,
        atol=info.smallest_normal * info.eps if half else 1e-10,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("delta", DELTAS)
@fuzz
@given(case=cases(), interpolated=st.booleans())
def test_value_and_gradient_follow_the_definition(
    case: Case, delta: float, interpolated: bool, dtype: torch.dtype
) -> None:
    logits, targets = torch.tensor(case[0], dtype=dtype), torch.tensor(case[1], dtype=torch.int8)
    assert_agrees(logits, targets, delta, interpolated)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@fuzz
@given(case=cases(offsets=(0.0, 50.0)), delta=st.sampled_from(DELTAS), interpolated=st.booleans())
def test_half_precision_is_exact_up_to_the_rounding_of_the_gradient(
    case: Case, delta: float, interpolated: bool, dtype: torch.dtype
) -> None:
    """The oracle ranks the same rounded logits."""
    logits, targets = torch.tensor(case[0], dtype=dtype), torch.tensor(case[1], dtype=torch.int8)
    assert_agrees(logits, targets, delta, interpolated)


@pytest.mark.parametrize("interpolated", [True, False])
@pytest.mark.parametrize("offset", [0.0, 50.0, 1e4])
def test_a_long_ranking_follows_the_definition(offset: float, interpolated: bool) -> None:
    logits, targets = random_case(count=1500, positives=60)
    assert_agrees(logits + offset, targets, 1.0, interpolated)


def test_hand_computed_case() -> None:
    """delta 1: one negative half a unit above the only positive gives b = 3/4 and a = 1."""
    loss, gradient = loss_and_gradient(torch.tensor([0.0, 0.5, -1.0, 9.0]), torch.tensor([1, 0, 0, -1]))
    assert loss.item() == pytest.approx(3 / 7)
    assert gradient.tolist() == pytest.approx([-3 / 7, 3 / 7, 0, 0])


@pytest.mark.parametrize("block", [1, 7, 20])
def test_block_length_changes_nothing(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for count in (19, 20, 21, 40, 41):
        logits, targets = random_case(count, positives=5)
        whole = loss_and_gradient(logits, targets)
        with monkeypatch.context() as patch:
            patch.setitem(ranking_module._BLOCK, "cpu", block)
            torch.testing.assert_close(loss_and_gradient(logits, targets), whole, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("target_dtype", [torch.int8, torch.int64])
def test_shape_and_layout_do_not_matter(target_dtype: torch.dtype) -> None:
    logits, targets = random_case(count=2 * 25 * 4)
    targets = targets.to(target_dtype)
    loss, gradient = loss_and_gradient(logits, targets)
    # The layout of a channels-last head: [B, C, N] in memory, seen as [B, N, C].
    shaped = logits.view(2, 4, 25).transpose(1, 2), targets.view(2, 4, 25).transpose(1, 2)
    strided = logits.repeat_interleave(3)[::3], targets.repeat_interleave(3)[::3]
    assert not shaped[0].is_contiguous() and not strided[0].is_contiguous()
    for view, restore in ((shaped, lambda g: g.transpose(1, 2).reshape(-1)), (strided, lambda g: g)):
        same_loss, same_gradient = loss_and_gradient(*view)
        assert same_gradient.shape == view[0].shape
        torch.testing.assert_close(same_loss, loss)
        torch.testing.assert_close(restore(same_gradient), gradient)


def test_a_single_logit_without_dimension_has_loss_zero() -> None:
    loss, gradient = loss_and_gradient(torch.tensor(2.0), torch.tensor(1))
    assert (loss.item(), gradient.item(), gradient.shape) == (0, 0, ())


@pytest.mark.parametrize("shape", [(0,), (2, 0, 3)])
def test_nothing_to_rank_has_loss_zero_and_a_gradient(shape: tuple[int, ...]) -> None:
    loss, gradient = loss_and_gradient(torch.zeros(shape), torch.zeros(shape, dtype=torch.int8))
    assert (loss.item(), gradient.shape) == (0, shape)


@fuzz
@given(case=cases(), delta=st.sampled_from(DELTAS), interpolated=st.booleans())
def test_gradient_balances_and_has_the_right_signs(case: Case, delta: float, interpolated: bool) -> None:
    logits, targets = torch.tensor(case[0], dtype=torch.float64), torch.tensor(case[1], dtype=torch.int8)
    loss, gradient = loss_and_gradient(logits, targets, delta=delta, interpolated=interpolated)
    assert 0 <= loss <= 1
    assert abs(gradient.sum()) < 1e-9
    assert gradient[targets == 1].sum().item() == pytest.approx(-loss.item(), abs=1e-9)
    assert (gradient[targets == 1] <= 0).all()
    assert (gradient[targets == 0] >= 0).all()
    assert (gradient[targets == -1] == 0).all()


@fuzz
@given(case=cases(), delta=st.sampled_from(DELTAS))
def test_interpolation_never_raises_the_loss(case: Case, delta: float) -> None:
    logits, targets = torch.tensor(case[0], dtype=torch.float64), torch.tensor(case[1], dtype=torch.int8)
    assert ap_loss(logits, targets, delta) <= ap_loss(logits, targets, delta, interpolated=False) + 1e-12


@pytest.mark.parametrize("delta", DELTAS)
def test_adding_a_constant_changes_nothing(delta: float) -> None:
    logits, targets = random_case()
    expected = loss_and_gradient(logits.double(), targets, delta=delta)
    # Whole powers of two keep the differences of float32 logits exact in float64.
    for constant in (-1024.0, 3.0, 16384.0):
        moved = loss_and_gradient(logits.double() + constant, targets, delta=delta)
        torch.testing.assert_close(moved, expected, rtol=1e-9, atol=1e-12)


def test_permuting_the_logits_permutes_the_gradient() -> None:
    logits, targets = random_case()
    logits = (logits * 4).round() / 4  # with ties
    loss, gradient = loss_and_gradient(logits, targets)
    order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(1))
    permuted_loss, permuted_gradient = loss_and_gradient(logits[order], targets[order])
    torch.testing.assert_close(permuted_loss, loss)
    torch.testing.assert_close(permuted_gradient, gradient[order], rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("nuisance", [0.0, 1e4, -1e4, math.nan, math.inf, -math.inf])
def test_an_ignored_logit_gets_nothing_and_changes_nothing(nuisance: float) -> None:
    logits, targets = random_case()
    logits = torch.where(targets == -1, torch.tensor(nuisance), logits)
    ranked = targets >= 0
    loss, gradient = loss_and_gradient(logits, targets)
    without_loss, without = loss_and_gradient(logits[ranked], targets[ranked])
    torch.testing.assert_close(loss, without_loss)
    torch.testing.assert_close(gradient[ranked], without, rtol=1e-6, atol=1e-10)
    assert (gradient[~ranked] == 0).all()


@pytest.mark.parametrize("delta", DELTAS)
def test_a_negative_below_the_margin_gets_exactly_nothing(delta: float) -> None:
    logits, targets = random_case()
    edge = (logits[targets == 1].min() - delta).float()
    beneath = torch.stack([edge.nextafter(torch.tensor(-math.inf)), edge - 0.1, edge - 1e4])
    targets = torch.cat((targets, torch.zeros(4, dtype=torch.int8)))
    _, gradient = loss_and_gradient(torch.cat((logits, beneath, edge[None] + 0.01)), targets, delta=delta)
    assert (gradient[-4:-1] == 0).all()
    assert gradient[-1] > 0 or delta == 0


@pytest.mark.parametrize("delta", DELTAS)
def test_loss_is_zero_exactly_when_separated_by_the_margin(delta: float) -> None:
    targets = torch.tensor([1, 1, 0, 0])
    apart = loss_and_gradient(torch.tensor([delta, delta + 2, -0.01, -7.0]), targets, delta=delta)
    too_near = ap_loss(torch.tensor([delta, delta + 2, 0.01, -7.0]), targets, delta)
    assert apart[0] == 0 and (apart[1] == 0).all()
    assert too_near > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_gradient_scales_with_what_comes_from_above(dtype: torch.dtype) -> None:
    logits, targets = random_case()
    logits = logits.to(dtype).requires_grad_()
    (once,) = torch.autograd.grad(ap_loss(logits, targets), logits)
    (thrice,) = torch.autograd.grad(ap_loss(logits, targets) * 3, logits)
    torch.testing.assert_close(thrice, once * 3)


@pytest.mark.parametrize("factor", [1 / 3, 0.7])
def test_a_factor_from_above_is_not_rounded_to_bfloat16(factor: float) -> None:
    """1 / 3 would become 0.15 % larger, and classification that much heavier than the boxes."""
    logits, targets = random_case()
    logits = logits.bfloat16()
    _, gradient = loss_and_gradient(logits, targets)
    inputs = logits.clone().requires_grad_()
    (scaled,) = torch.autograd.grad(factor * ap_loss(inputs, targets), inputs)
    assert torch.equal(scaled, (gradient.float() * factor).bfloat16())


def test_loss_scaling_keeps_small_gradients_in_half_precision() -> None:
    """The initial scale of torch's GradScaler, 2^16, is itself beyond float16; the oracle is float32."""
    targets = torch.zeros(300_000, dtype=torch.int8)
    targets[:20] = 1
    logits = torch.full(targets.shape, -4.0)  # an untrained head: each negative gets a tiny share
    scaled = []
    for dtype in (torch.float32, torch.float16):
        leaf = logits.to(dtype).requires_grad_()
        scaled += torch.autograd.grad(ap_loss(leaf, targets) * 2.0**16, leaf)
    torch.testing.assert_close(scaled[1].float(), scaled[0], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("target, kind", [(1, "a positive"), (0, "a negative")])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_non_finite_logit_is_named(value: float, target: int, kind: str, dtype: torch.dtype) -> None:
    targets = torch.tensor([[1, 0, -1], [target, 0, 1]])
    logits = torch.tensor([[1.0, 0.5, math.nan], [value, 0.0, 2.0]], dtype=dtype)
    with pytest.raises(
        NonFiniteLogits, match=rf"1 of the ranked .* first is {value}, {kind}, at flat index 3"
    ):
        ap_loss(logits, targets)


@pytest.mark.parametrize(
    "far, delta, dtype",
    [
        (1.1e12, 1.0, torch.float32),
        (1e16, 1.0, torch.float64),
        (3e38, 1.0, torch.bfloat16),
        (torch.finfo(torch.float64).max, 1.0, torch.float64),
        (torch.finfo(torch.float64).max, 0.0, torch.float64),
    ],
)
def test_a_logit_too_far_to_be_told_from_others_is_named(
    far: float, delta: float, dtype: torch.dtype
) -> None:
    """A diverged training must not seem perfect: steps would drown in rounding, or the search overflow."""
    targets = torch.tensor([1, 0, 0, 1, -1])
    logits = torch.tensor([-far, 0.0, 1.0, far / 2, torch.inf], dtype=dtype)
    with pytest.raises(NonFiniteLogits, match=r"are not finite, or beyond .*e.*; the first is -"):
        ap_loss(logits, targets, delta)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_largest_numbers_are_ranked_by_the_plain_step(dtype: torch.dtype) -> None:
    """The break point above the largest number (`nan_to_num` of an infinite logit) is infinite."""
    most = torch.finfo(dtype).max if dtype == torch.float32 else 1e300
    logits = torch.tensor([most, -most, 0.0, most, 1.0, -most], dtype=dtype)
    assert_agrees(logits, torch.tensor([1, 1, 0, 0, 1, 0], dtype=torch.int8), 0.0, interpolated=False)
    assert_agrees(logits[:2], torch.tensor([1, 1], dtype=torch.int8), 0.0, interpolated=True)


def test_logits_as_far_as_may_be_are_ranked_exactly() -> None:
    """The negatives 0 and 1 lie above one positive, none above the other: precisions 2/4 and 1."""
    targets = torch.tensor([1, 0, 0, 1])
    logits = torch.tensor([-9e11, 0.0, 1.0, 4.5e11])
    assert float(ap_loss(logits, targets, interpolated=False)) == pytest.approx(0.25, rel=1e-4)


@pytest.mark.parametrize(
    "logits, targets, delta, message",
    [
        (torch.zeros(3), torch.tensor([0, 1, 2]), 1.0, "must be in .*, got 2$"),
        (torch.zeros(3), torch.tensor([-2, 1, 0]), 1.0, "must be in .*, got -2$"),
        (torch.zeros(3), torch.zeros(4, dtype=torch.int8), 1.0, r"\(3,\).*\(4,\)"),
        (torch.zeros(3), torch.zeros(3, 1, dtype=torch.int8), 1.0, "differ in shape"),
        (torch.zeros(3), torch.zeros(3), 1.0, "targets must be integers.*float32"),
        (torch.zeros(3), torch.zeros(3, dtype=torch.bool), 1.0, "targets must be integers.*bool"),
        (torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int8), 1.0, "logits must be floating"),
        (torch.zeros(3).to(torch.float8_e5m2), torch.zeros(3, dtype=torch.int8), 1.0, "of 16, 32 or 64 bits"),
        (
            torch.zeros(3),
            torch.zeros(3, dtype=torch.int8),
            -0.1,
            "delta must be a number, 0 or 1e-06 to .*, got -0.1",
        ),
        (torch.zeros(3), torch.zeros(3, dtype=torch.int8), torch.ones(()), "number, .*, got tensor"),
        (
            torch.zeros(3),
            torch.zeros(3, dtype=torch.int8),
            1e39,
            "delta must be a number, 0 or 1e-06 to .*, got 1e.39",
        ),
    ],
)
def test_wrong_arguments_are_refused(logits: Tensor, targets: Tensor, delta: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ap_loss(logits, targets, delta)


@pytest.mark.parametrize("delta, reached", [(0.0, 0.0), (1.0, 1e-6)])
def test_descent_separates_what_a_line_can_separate(delta: float, reached: float) -> None:
    """As the perceptron theorem promises; a soft step nears its margin ever more slowly, a plain one ends."""
    points = torch.rand(60, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    height = points @ torch.tensor([0.6, -0.8])
    apart = (height - 0.3).abs() > 0.1
    points, targets = points[apart], (height[apart] > 0.3).long()
    weights = torch.tensor([0.0, 1.0], requires_grad=True)  # worse than chance
    start = ap_loss(points @ weights, targets, delta).item()
    for _ in range(1000):
        loss = ap_loss(points @ weights, targets, delta)
        if loss <= reached:
            break
        (gradient,) = torch.autograd.grad(loss, weights)
        weights = (weights - 10 * gradient).detach().requires_grad_()
    assert start > 0.5
    assert loss <= reached
    assert ap_loss(points @ weights, targets, delta=0.0) == 0  # no negative above any positive
