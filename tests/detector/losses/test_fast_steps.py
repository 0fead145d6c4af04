"""The soft steps in compiled loops and in Triton against those in PyTorch, which double loops have checked.

Where there is no GPU, Triton's interpreter runs its kernels (tests/conftest.py asks for it).
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from detector.losses import backends
from detector.losses.compiled import (
    CompiledNegatives,
    CompiledSteps,
    all_within,
    ascending,
    positives_of,
)
from detector.losses.negatives import Negatives
from detector.losses.ranking import SoftSteps, searched_break_points
from detector.losses.step_loops import break_points

fuzz = settings(deadline=None, database=None, derandomize=True, max_examples=60)
numbers = st.one_of(
    st.floats(-6, 6, width=32), st.integers(-4, 4).map(lambda k: k / 2), st.sampled_from([-1e4, 1e4, 3e38])
)
offsets = st.sampled_from([0.0, 50.0, -1e4])


GPU = torch.device("cuda" if torch.cuda.is_available() else "cpu")
with_triton = pytest.mark.skipif(find_spec("triton") is None, reason="there is no Triton")


def _interpreter_counts() -> bool:
    """Older versions of Triton's interpreter convert one-element arrays to int, which NumPy 2.4 refuses."""
    import triton

    numpy_is, triton_is = (tuple(map(int, library.__version__.split(".")[:2])) for library in (np, triton))
    return numpy_is < (2, 4) or triton_is >= (3, 7)


with_kernels = pytest.mark.skipif(
    find_spec("triton") is None or (GPU.type == "cpu" and not _interpreter_counts()),
    reason="there is no Triton, or its interpreter is too old for this NumPy",
)


@pytest.fixture
def short_blocks() -> Iterator[None]:
    """Makes even a few numbers take several programs and chunks."""
    from detector.losses import kernels

    with pytest.MonkeyPatch.context() as patch:
        for name, length in (("_BLOCK", 16), ("_STEPS", 4), ("_CHUNK", 8)):
            patch.setattr(kernels, name, length)
        yield


def check_loops(thresholds: Tensor, logits: Tensor, targets: Tensor, delta: float) -> None:
    plain, fast = SoftSteps(thresholds, delta), CompiledSteps(thresholds, delta)
    negatives = Negatives(plain, logits, targets), CompiledNegatives(fast, logits, targets)
    check_that_all_agrees((plain, fast), negatives, logits.dtype)


def check_kernels(thresholds: Tensor, logits: Tensor, targets: Tensor, delta: float) -> None:
    from detector.losses.gpu import GpuNegatives, GpuSteps

    thresholds, logits, targets = (x.to(GPU) for x in (thresholds, logits, targets))
    plain, fast = SoftSteps(thresholds, delta), GpuSteps(thresholds, delta)
    assert torch.equal(fast.search_edges[: 2 * len(thresholds)], plain.search_edges)
    negatives = Negatives(plain, logits, targets), GpuNegatives(fast, logits, targets)
    check_that_all_agrees((plain, fast), negatives, logits.dtype)


def check_that_all_agrees(steps: Any, both_negatives: Any, dtype: torch.dtype) -> None:
    (plain, fast), (negatives, fast_negatives) = steps, both_negatives
    counts, fast_counts = negatives.count(), fast_negatives.count()
    # What lies below all steps does not matter; the rest must be counted exactly.
    assert torch.equal(fast_counts[0, 1:], counts[0, 1:])
    torch.testing.assert_close(fast_counts[1, 1:], counts[1, 1:], rtol=1e-12, atol=1e-9)
    above = plain.counts_above(counts)
    torch.testing.assert_close(fast.counts_above(fast_counts), above, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(fast.counts_above(fast_counts.contiguous()), above, rtol=1e-9, atol=1e-9)
    weights = torch.linspace(0, 1, len(above), dtype=torch.float64, device=above.device)
    for each in (None, weights):
        ours, theirs = fast.own_counts_above(each), plain.own_counts_above(each)
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(fast.own_pull(weights), plain.own_pull(weights), rtol=1e-9, atol=1e-9)
    pull = negatives.pull(weights, dtype)
    torch.testing.assert_close(fast_negatives.pull(weights, dtype), pull, rtol=1e-6, atol=1e-9)


marks_of_a_case = st.lists(numbers.filter(lambda x: abs(x) < 1e30), min_size=1, max_size=12)
values_of_a_case = st.lists(st.tuples(numbers, st.integers(-1, 1)), max_size=30)
Values = list[tuple[float, int]]


def tensors(
    marks: list[float], values: Values, offset: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Thresholds, logits and targets."""
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    thresholds = torch.tensor(sorted(marks), dtype=exact) + offset
    logits = (torch.tensor([x for x, _ in values], dtype=exact) + offset).clamp(-3e38, 3e38).to(dtype)
    targets = torch.tensor([t for _, t in values], dtype=torch.int8)
    return thresholds, torch.where(logits.isfinite(), logits, 0), targets


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("delta", [0.0, 0.5, 1.0])
@fuzz
@given(marks=marks_of_a_case, values=values_of_a_case, offset=offsets)
def test_compiled_steps_are_those_in_pytorch(
    marks: list[float], values: Values, offset: float, delta: float, dtype: torch.dtype
) -> None:
    check_loops(*tensors(marks, values, offset, dtype), delta)


@with_kernels
@pytest.mark.usefixtures("short_blocks")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@settings(
    fuzz,
    max_examples=10,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    marks=marks_of_a_case,
    values=values_of_a_case,
    offset=offsets,
    delta=st.sampled_from([0.0, 0.5, 1.0, 3.0]),
)
def test_triton_steps_are_those_in_pytorch(
    marks: list[float], values: Values, offset: float, delta: float, dtype: torch.dtype
) -> None:
    check_kernels(*tensors(marks, values, offset, dtype), delta)


@with_kernels
@pytest.mark.usefixtures("short_blocks")
@pytest.mark.parametrize("delta", [0.0, 0.3])
def test_triton_steps_are_those_in_pytorch_for_many_positives(delta: float) -> None:
    """Ties, several programs and chunks, and values in a layout that is not contiguous."""
    generator = torch.Generator().manual_seed(0)
    marks = torch.randn(70, generator=generator).mul(4).round().div(4).sort().values
    logits = torch.randn(400, generator=generator)[::2]
    check_kernels(marks, logits, (torch.arange(200) % 7 - 6).clamp_max(0).to(torch.int8), delta)


@pytest.mark.parametrize("spread", [1e-3, 1.0, 1e3])
def test_break_points_that_crowd_in_one_cell_are_told_apart(spread: float) -> None:
    """One positive far off makes the cells coarse: thousands of break points share one."""
    generator = torch.Generator().manual_seed(0)
    marks = torch.cat((torch.randn(3000, generator=generator) * spread, torch.tensor([3e4])))
    logits = torch.randn(20_000, generator=generator) * 2 * spread
    targets = (torch.arange(20_000) % 7 - 6).clamp_max(0).to(torch.int8)
    check_loops(marks.sort().values, logits, targets, 0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("delta", [1e-6, 0.1, 1.0, 1e4])
def test_break_points_are_rounded_up_and_to_the_next_number_only(delta: float, dtype: torch.dtype) -> None:
    """torch.nextafter; every magnitude, both signs, and break points at zero and at powers of two."""
    generator = torch.Generator().manual_seed(0)
    exponents = torch.randint(-30, 30, (100_000,), generator=generator)
    marks = torch.randn(100_000, generator=generator, dtype=torch.float64) * 10.0**exponents
    near = torch.tensor([0.0, -0.0, 1e-45, delta, -delta, 1 - delta, 2 - delta, 4 + delta, 3.4e38, -3.4e38])
    thresholds = torch.cat((marks, torch.randn(100_000, generator=generator), near)).to(dtype)
    points = thresholds.new_empty(3, len(thresholds))
    break_points(thresholds.numpy(), delta, points.numpy(), torch.finfo(dtype).eps)
    assert torch.equal(points, torch.stack((thresholds, *searched_break_points(thresholds, delta))))


@pytest.mark.parametrize("delta", [0.0, 1.0])
def test_positives_very_far_apart_count_each_other_as_the_near_ones_do(delta: float) -> None:
    """Hand-computed: -1e30, then 0 and 0 that tie, 0.5, and 1e30."""
    steps = CompiledSteps(torch.tensor([-1e30, 0.0, 0.0, 0.5, 1e30]), delta)
    step = 0.75 if delta else 1.0  # H(0.5)
    above = [4.5, 2 + step, 2 + step, 1.5 + 2 * (1 - step), 0.5]
    assert steps.own_counts_above().tolist() == above
    assert steps.own_pull(torch.ones(5, dtype=torch.float64)).tolist() == [5 - each for each in above]


def test_what_was_not_counted_or_is_pulled_already_is_not_pulled() -> None:
    """The values would be looked up in memory that holds something else by then."""
    steps = CompiledSteps(torch.zeros(1), 1.0)
    negatives = CompiledNegatives(steps, torch.zeros(3), torch.zeros(3, dtype=torch.int8))
    weights = torch.ones(1, dtype=torch.float64)
    with pytest.raises(AssertionError):
        negatives.pull(weights, torch.float32)
    negatives.count()
    assert negatives.pull(weights, torch.float32).tolist() == [0.5] * 3
    with pytest.raises(AssertionError):
        negatives.pull(weights, torch.float32)


def test_more_edges_than_sixteen_bits_count() -> None:
    generator = torch.Generator().manual_seed(0)
    marks = torch.randn(40_000, generator=generator).sort().values
    logits = torch.randn(60_000, generator=generator)
    check_loops(marks, logits, torch.zeros(60_000, dtype=torch.int8), 1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mark", [0.0, -0.0])
def test_zero_ties_with_minus_zero_and_with_no_neighbour(mark: float, dtype: torch.dtype) -> None:
    tiny = torch.finfo(dtype).smallest_normal
    logits = torch.tensor([0.0, -0.0, tiny, -tiny], dtype=dtype)
    steps = CompiledSteps(torch.tensor([mark], dtype=dtype), 0.0)
    counts = CompiledNegatives(steps, logits, torch.zeros(4, dtype=torch.int8)).count()
    assert steps.counts_above(counts).tolist() == [2]  # each zero counts one half


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("size", [0, 1, 7, 8, 1003])
def test_positives_are_the_ones(size: int, dtype: torch.dtype) -> None:
    """Oracle: nonzero. Few and many positives, also after the last whole word, and a layout with gaps."""
    generator = torch.Generator().manual_seed(size)
    for shares in ((1, 1, 1), (1, 1, 60), (0, 1, 1), (0, 9, 1), (0, 40, 1), (0, 0, 1)):  # of -1, 0 and 1
        one_of = torch.tensor([-1, 0, 1]).repeat_interleave(torch.tensor(shares)).to(dtype)
        targets = one_of[torch.randint(len(one_of), (2 * size,), generator=generator)]
        targets[-1:] = 1
        for these in (targets, targets[1:], targets[:size], targets[1 - 2 * size :: 2]):
            positives, low, high = positives_of(these)
            assert torch.equal(positives.long(), (these == 1).nonzero().squeeze(1))
            assert (low, high) == (min([0, *these.tolist()]), max([0, *these.tolist()]))
            for at in range(0, len(these), max(1, len(these) // 5)):  # in the whole words, and after the last
                for wrong in (2, -2, 127, -128):
                    damaged = these.clone()
                    damaged[at] = wrong
                    _, low, high = positives_of(damaged)
                    assert wrong in (low, high)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("farthest", [1e12, 1.0, 1e-6 * 1e12, 0.1, 3e4, 7e4, 1e300])
def test_what_lies_too_far_out_is_seen_in_any_dtype(farthest: float, dtype: torch.dtype) -> None:
    """Oracle: Python's comparison, for the numbers next to the limit and at the ends of the dtype's range."""
    tiny, most = torch.finfo(dtype).tiny, torch.finfo(dtype).max
    around = torch.tensor([farthest, farthest / 2, min(2 * farthest, most), 0.0, tiny, most], dtype=dtype)
    infinity = torch.tensor(torch.inf, dtype=dtype)
    near = torch.cat((around, torch.nextafter(around, infinity), torch.nextafter(around, -infinity)))
    for value in [*torch.cat((near, -near)).tolist(), torch.nan, torch.inf, -torch.inf]:
        values = torch.zeros(20, dtype=dtype)
        values[11] = value
        for these in (values, values.view(10, 2)[:, 1]):
            assert all_within(these, farthest) == (abs(value) <= farthest)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1, 2047, 5000])
def test_positives_are_sorted_and_none_is_lost(size: int, dtype: torch.dtype) -> None:
    """Of either sign and every magnitude, with ties, zeros of both signs and subnormal numbers."""
    generator = torch.Generator().manual_seed(size)
    exponents = torch.randint(-46, 38, (size,), generator=generator)
    values = (torch.randn(size, generator=generator).double() * 10.0**exponents).to(dtype)
    values[::7] = torch.tensor([0.0, -0.0, 1.5, -1.5, 1e-45], dtype=dtype).repeat(size)[: len(values[::7])]
    ordered, order = ascending(values)
    assert torch.equal(ordered, values.sort().values)
    assert torch.equal(values[order], ordered)
    assert torch.equal(order.sort().values.long(), torch.arange(size))


@with_triton
def test_where_triton_cannot_build_pytorch_ranks(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """For example a container image without a C compiler, which is needed at the first launch."""
    from detector.losses import kernels

    def refuse(device: torch.device) -> None:
        raise RuntimeError("Failed to find C compiler.\nPlease specify one")

    kernels.try_out(GPU)  # the real one works
    monkeypatch.setattr(kernels, "try_out", refuse)
    backends._triton_works.cache_clear()
    for _ in range(2):
        assert type(backends.backend_of(torch.device("cuda:3"))) is backends.Backend
    backends._triton_works.cache_clear()
    (record,) = caplog.records
    assert "Failed to find C compiler" in record.message and "\n" not in record.message


def test_where_numba_does_not_import_pytorch_ranks(tmp_path: Path) -> None:
    """For example beside a NumPy that is too new for it."""
    (tmp_path / "numba").mkdir()
    (tmp_path / "numba" / "__init__.py").write_text("raise ImportError('Numba needs NumPy 2.4 or less')")
    script = (
        "import torch; from detector.losses import ap_loss;"
        "print(float(ap_loss(torch.tensor([0., 2, 2.5, 5]), torch.tensor([0, 0, 1, 1]))))"
    )
    paths = os.pathsep.join((str(tmp_path), str(Path(__file__).parents[3])))
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and float(done.stdout) == pytest.approx(1 / 18), done.stderr
    assert done.stderr.count("\n") == 1 and "Numba needs NumPy 2.4 or less" in done.stderr


def test_where_machine_code_cannot_be_kept_the_loss_is_computed_all_the_same(tmp_path: Path) -> None:
    """As on a full disk: here no file may be larger than a kilobyte."""
    script = (
        "import resource, torch; from detector.losses import ap_loss;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY));"
        "print(float(ap_loss(torch.tensor([0., 2, 2.5, 5]), torch.tensor([0, 0, 1, 1]))))"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[3]),
        "NUMBA_CACHE_DIR": str(tmp_path / "kept"),
    }
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0 and float(done.stdout) == pytest.approx(1 / 18), done.stderr
    assert not list((tmp_path / "kept").rglob("*.nbc"))
