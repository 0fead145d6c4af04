"""Runs compiled loops on as many threads as PyTorch may use, each on a share of the values.

Python threads suffice, since the loops release the GIL; numba cannot use PyTorch's threads.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch

Result = TypeVar("Result")

LEAST = 1 << 18  # values per share; with fewer, the hand-over takes as long as the work


def shares(count: int, table_bytes: int = 0) -> list[slice]:
    """Split range(count) into one slice per PyTorch thread, or fewer; at least one.

    Args:
        table_bytes: memory that each share needs for itself. Limits the number of shares so that all but
            the first together take at most four bytes per value.
    """
    most = min(torch.get_num_threads(), count // LEAST, 1 + 4 * count // max(table_bytes, 1))
    size = -(-count // max(1, most))
    return [slice(start, min(start + size, count)) for start in range(0, count, max(1, size))] or [
        slice(0, 0)
    ]


def side_by_side(work: Callable[[slice], Result], parts: list[slice]) -> list[Result]:
    """Run work(part) for each of the parts, the first in this thread; returns the results in order.

    An exception in any of them is raised once all have ended.
    """
    if len(parts) == 1:
        return [work(parts[0])]
    others = [_pool().submit(work, part) for part in parts[1:]]
    try:
        first = work(parts[0])
    finally:
        rest = [other.exception() for other in others]  # waits: they work on this call's memory
    for error in rest:
        if error is not None:
            raise error
    return [first, *(other.result() for other in others)]


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="losses")


# Threads do not survive a fork; a pool without them would wait forever.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)
