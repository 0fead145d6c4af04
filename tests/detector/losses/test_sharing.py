"""The work of the compiled loops shared among threads."""

import multiprocessing
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from detector.losses import ap_loss, value_loops
from detector.losses.sharing import shares, side_by_side


@pytest.fixture
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("four_threads")
@pytest.mark.parametrize(
    "count, table_bytes, parts",
    [
        (0, 0, 1),
        (1, 0, 1),
        (1 << 18, 0, 1),
        (1 << 19, 0, 2),
        (2_000_003, 0, 4),
        (2_000_003, 3_200_000, 3),
    ],
)
def test_shares_cover_everything_once(count: int, table_bytes: int, parts: int) -> None:
    dealt = shares(count, table_bytes)
    assert len(dealt) == parts
    assert [i for part in dealt for i in (part.start, part.stop)][1:-1:2] == [p.start for p in dealt[1:]]
    assert (dealt[0].start, dealt[-1].stop) == (0, count)


def test_results_come_in_order_and_the_work_is_done_by_several_threads() -> None:
    together = threading.Barrier(3, timeout=60)  # broken unless all three are at work at once

    def work(part: slice) -> tuple[int, int]:
        together.wait()
        return part.start, threading.get_ident()

    results = side_by_side(work, [slice(i, i + 1) for i in range(3)])
    assert [start for start, _ in results] == [0, 1, 2]
    assert len({thread for _, thread in results}) == 3


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_of_one_is_raised_when_all_have_ended(failing: int) -> None:
    ended = []

    def work(part: slice) -> None:
        if part.start == failing:
            raise ValueError("of one")
        time.sleep(0.2)
        ended.append(part.start)

    with pytest.raises(ValueError, match="of one"):
        side_by_side(work, [slice(i, i + 1) for i in range(3)])
    assert sorted(ended) == [i for i in range(3) if i != failing]


def _in_a_fork() -> None:
    assert side_by_side(lambda part: part.start, [slice(0, 1), slice(1, 2)]) == [0, 1]


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own() -> None:
    _in_a_fork()  # so that this process has threads
    child = multiprocessing.get_context("fork").Process(target=_in_a_fork)
    child.start()
    child.join(120)
    assert child.exitcode == 0


@pytest.mark.usefixtures("four_threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_the_loss_does_not_depend_on_the_number_of_threads(dtype: torch.dtype) -> None:
    """Oracle: one thread, which the double loops have checked. Shares are unequal and have several blocks."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1_500_001, generator=generator).to(dtype)
    targets = torch.zeros(1_500_001, dtype=torch.int8)
    targets[torch.randperm(1_500_001, generator=generator)[:600]] = torch.tensor(
        [1, 1, -1] * 200, dtype=torch.int8
    )
    results = []
    for threads in (4, 1):
        torch.set_num_threads(threads)
        assert len(shares(len(logits))) == threads
        leaf = logits.clone().requires_grad_()
        loss = ap_loss(leaf, targets)
        results.append((loss.detach(), torch.autograd.grad(loss, leaf)[0]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-7 if dtype != torch.float64 else 1e-12, atol=0)


def test_bfloat16_is_widened_and_narrowed_as_torch_does() -> None:
    every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    wide = torch.empty(len(every))
    bits = every.view(torch.int16).numpy().view(np.uint16)
    value_loops.widen(bits, wide.view(torch.int32).numpy().view(np.uint32))
    assert torch.equal(wide.view(torch.int32), every.float().view(torch.int32))

    generator = torch.Generator().manual_seed(0)
    exponents = torch.randint(-45, 38, (100_000,), generator=generator)
    numbers = (torch.randn(100_000, generator=generator).double() * 10.0**exponents).float()
    halfway = (every.view(torch.int16).int() << 16 | 1 << 15).view(torch.float32)  # between two neighbours
    numbers = torch.cat((numbers, halfway, torch.zeros(1), -torch.zeros(1)))
    numbers = numbers[numbers.isfinite()]
    narrow = torch.empty(len(numbers), dtype=torch.bfloat16)
    out = narrow.view(torch.int16).numpy().view(np.uint16)
    value_loops.narrow(numbers.view(torch.int32).numpy().view(np.uint32), out)
    assert torch.equal(narrow.view(torch.int16), numbers.to(torch.bfloat16).view(torch.int16))
