"""The soft-rank kernel: its two sums against double loops, its binning against torch's search."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from detector.losses.compiled import CompiledSteps
from detector.losses.ranking import SoftSteps, blocks, soft_rank_sum
from tests import oracles

DELTAS = (0.0, 0.5, 1.0, 3.0)
fuzz = settings(deadline=None, database=None, derandomize=True, max_examples=100)

# Anywhere, on a grid of halves (ties, break points), or far apart.
numbers = st.one_of(
    st.floats(-6, 6, width=32), st.integers(-4, 4).map(lambda k: k / 2), st.sampled_from([-1e4, 1e4])
)
offsets = st.sampled_from([0.0, 50.0, -1e4])


def shifted(values: list[float], offset: float, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.tensor(values, dtype=dtype) + offset


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("delta", DELTAS)
@fuzz
@given(values=st.lists(numbers, max_size=20), marks=st.lists(numbers, max_size=12), offset=offsets)
def test_soft_rank_sum_counts_what_the_double_loop_counts(
    values: list[float], marks: list[float], offset: float, delta: float, dtype: torch.dtype
) -> None:
    x, thresholds = shifted(values, offset, dtype), shifted(marks, offset, dtype)
    result = soft_rank_sum(x, thresholds, delta)
    expected = oracles.soft_rank_sums(x.tolist(), thresholds.tolist(), delta)
    assert result.dtype == torch.float64
    torch.testing.assert_close(result, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("delta", DELTAS)
@fuzz
@given(data=st.data(), marks=st.lists(numbers, min_size=1, max_size=12), offset=offsets)
def test_lines_pull_as_the_double_loop_pulls(
    data: st.DataObject, marks: list[float], offset: float, delta: float
) -> None:
    x = shifted(data.draw(st.lists(numbers, max_size=20)), offset)
    size = len(marks)
    weights = data.draw(st.lists(st.floats(0, 1), min_size=size, max_size=size))
    thresholds = shifted(sorted(marks), offset)
    steps = SoftSteps(thresholds, delta)
    offset_of, slope_of = steps.lines(torch.tensor(weights, dtype=torch.float64))
    bins = steps.bins_of(x).long()
    expected = oracles.pulls(x.tolist(), thresholds.tolist(), weights, delta)
    torch.testing.assert_close(
        offset_of[bins] + slope_of[bins] * x.double(),
        torch.tensor(expected, dtype=torch.float64),
        rtol=1e-9,
        atol=1e-9,
    )


def test_a_long_soft_rank_sum_far_from_zero_keeps_its_digits() -> None:
    """A million values near 1e4; the oracle is the N x P matrix in float64."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(1_000_000, generator=generator) * 3 + 1e4
    thresholds = torch.tensor([1e4 + 8, 1e4, 1e4 - 8, 1e4 + 14.5])
    expected = ((values.double() - thresholds.double()[:, None]) / 2 + 0.5).clamp(0, 1).sum(1)
    torch.testing.assert_close(soft_rank_sum(values, thresholds, 1.0), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("delta", DELTAS)
def test_values_very_far_above_do_not_drown_the_near_ones(delta: float) -> None:
    """Hand-computed: each far value counts one, the tie a half, whatever lies far below nothing."""
    values = torch.tensor([3e38, 1e30, 0.0, -1e30])
    assert soft_rank_sum(values, torch.tensor([0.0]), delta).tolist() == [2.5]


def test_far_above_all_steps_the_pull_is_the_sum_of_the_weights() -> None:
    """Any slope left over by rounding would be multiplied by 1e30 there."""
    weights = torch.rand(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    marks = torch.arange(50.0)
    for lines in (
        torch.stack(SoftSteps(marks, 3.0).lines(weights), 1),
        CompiledSteps(marks, 3.0).lines(weights),
    ):
        offset, slope = lines[-1].tolist()
        assert slope == 0
        assert offset == pytest.approx(weights.sum().item(), rel=1e-12)


def neighbourhood(edges: Tensor) -> Tensor:
    """Every edge, its two neighbours among the numbers of its dtype, and points far away and in between."""
    infinity = torch.full_like(edges, math.inf)
    between = (edges[1:] + edges[:-1]) / 2
    far = torch.tensor([-3e38, -1e4, -0.0, 1e4, 3e38], dtype=edges.dtype)
    return torch.cat((edges, edges.nextafter(infinity), edges.nextafter(-infinity), between, far))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("delta", [0.1, 0.5, 1.0, 3.0])
@fuzz
@given(marks=st.lists(numbers, min_size=1, max_size=12), offset=offsets)
def test_bins_are_those_of_a_search_on_and_beside_every_break_point(
    marks: list[float], offset: float, delta: float, dtype: torch.dtype
) -> None:
    """Oracle: torch.bucketize of the exact (float64) values among the float64 break points."""
    thresholds = shifted(sorted(marks), offset, dtype)
    edges = torch.cat((thresholds.double() - delta, thresholds.double() + delta)).sort().values
    values = neighbourhood(edges.to(dtype))
    bins = SoftSteps(thresholds, delta).bins_of(values)
    assert bins.dtype == torch.int32
    assert torch.equal(bins.long(), torch.bucketize(values.double(), edges, right=True))


def test_bins_of_many_values_are_those_of_a_search() -> None:
    """Oracle: torch.bucketize. Most values fall in cells of the grid that hold no break point."""
    generator = torch.Generator().manual_seed(0)
    for spread in (1e-3, 1.0, 1e3):
        thresholds = (torch.randn(300, generator=generator) * spread).sort().values
        values = torch.randn(100_000, generator=generator) * 2 * spread
        edges = torch.cat((thresholds.double() - 0.5, thresholds.double() + 0.5)).sort().values
        bins = SoftSteps(thresholds, 0.5).bins_of(values)
        assert torch.equal(bins.long(), torch.bucketize(values.double(), edges, right=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("threshold", [-1e4, -1.0, 0.0, 1e-30, 7.0])
def test_the_plain_step_gives_a_tie_a_bin_of_its_own(threshold: float, dtype: torch.dtype) -> None:
    thresholds = torch.tensor([threshold], dtype=dtype)
    infinity = torch.tensor(math.inf, dtype=dtype)
    values = torch.cat((thresholds.nextafter(-infinity), thresholds, thresholds.nextafter(infinity)))
    assert SoftSteps(thresholds, 0.0).bins_of(values).tolist() == [0, 1, 2]


def test_totals_are_counts_and_sums_per_bin() -> None:
    """Break points -1, 1 and 2, 4 (delta 1), so five bins; a value on one is in the bin that starts there."""
    steps = SoftSteps(torch.tensor([0.0, 3.0]), 1.0)
    values = torch.tensor([-5.0, -1.0, 0.5, 1.0, 3.0, 3.5, 4.0, 9.0])
    totals = steps.totals(values, steps.bins_of(values))
    assert totals.tolist() == [[1, 2, 1, 2, 2], [-5, -0.5, 1, 6.5, 13]]
    assert totals.dtype == torch.float64


@pytest.mark.parametrize("delta", DELTAS)
def test_totals_of_shares_add_up_to_the_totals_of_all(delta: float) -> None:
    """Oracle: the double loop over all values. This lets the ranking run over blocks and over processes."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(90, generator=generator) * 3
    thresholds = torch.randn(10, generator=generator).sort().values
    steps = SoftSteps(thresholds, delta)
    parts = [steps.totals(part, steps.bins_of(part)) for part in (values[:40], values[40:41], values[41:])]
    expected = oracles.soft_rank_sums(values.tolist(), thresholds.tolist(), delta)
    above = steps.counts_above(torch.stack(parts).sum(0))
    torch.testing.assert_close(above.tolist(), expected, rtol=1e-9, atol=1e-9)


def test_blocks_cover_everything_once_whatever_the_remainder() -> None:
    device = torch.device("cpu")
    step = next(blocks(1 << 30, device)).stop
    for n in (0, 1, step - 1, step, step + 1, 3 * step + 7):
        slices = list(blocks(n, device))
        assert [s.start for s in slices] == [0, *(s.stop for s in slices)][:-1]
        assert (slices[-1].stop if slices else 0) == n
        assert all(0 < s.stop - s.start <= step for s in slices)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_thresholds_at_the_end_of_the_numbers(dtype: torch.dtype) -> None:
    """After the largest number comes infinity, and no grid is that wide."""
    most = torch.finfo(dtype).max
    x = torch.cat((torch.linspace(-5, 5, 600, dtype=dtype), torch.tensor([most, -most], dtype=dtype)))
    marks = torch.tensor([most, 1.0, -most], dtype=dtype)
    expected = oracles.soft_rank_sums(x.tolist(), marks.tolist(), 0.0)
    assert soft_rank_sum(x, marks, 0.0).tolist() == expected


def test_no_threshold_gives_no_sum() -> None:
    assert soft_rank_sum(torch.zeros(3), torch.zeros(0), 1.0).tolist() == []


def test_negative_delta_is_refused() -> None:
    with pytest.raises(ValueError, match=r"delta must not be negative, got -1"):
        soft_rank_sum(torch.zeros(3), torch.zeros(1), -1.0)
