"""Progress of long work: a bar on a terminal, a line per minute in a log.

The first line comes after ten seconds: someone who waits wants to know what for.
"""

import contextlib
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")

_SELDOM_LONG = 3.0  # seconds before a bar is shown for work that is usually short
_FIRST, _EVERY = 10.0, 60.0  # seconds before the first line, and between lines
_AT_ONCE = 100  # items per progress update


class Progress:
    """Counts progress towards `total`, which may grow; a context manager that closes the bar.

    Args:
        total: number of items, as far as known.
        unit: what is counted, e.g. "image".
        title: shown before the numbers.
        leave: keep the bar on screen when done.
        delay: seconds before the bar is shown, for work that is usually short.
    """

    def __init__(
        self, total: int, unit: str, title: str = "", leave: bool = True, delay: float = 0.0
    ) -> None:
        self.total, self.count = total, 0
        self._unit, self._title = unit, title
        self._bar: tqdm[Any] | None = None
        if has_room_for_a_bar():  # without a terminal, tqdm would only cost a multiprocessing lock
            self._bar = tqdm(
                total=total, desc=title or None, unit=unit, leave=leave, dynamic_ncols=True, delay=delay
            )
        self._began = time.monotonic()
        self._due = self._began + _FIRST

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, count: int = 1) -> None:
        """Count more items as done."""
        self.count += count
        if self._bar is not None:
            self._bar.total = self.total
            self._bar.update(count)
            return
        now = time.monotonic()
        if now >= self._due:
            self._due = now + _EVERY
            with contextlib.suppress(OSError):  # stderr is closed
                print(self._line(now - self._began), file=sys.stderr, flush=True)

    def over(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield the items; each counts as done when the next is requested."""
        with self:
            for item in items:
                yield item
                self.update()

    def _line(self, seconds: float) -> str:
        rate = self.count / seconds
        left = tqdm.format_interval(max(self.total - self.count, 0) / rate)
        before = f"{self._title}: " if self._title else ""
        many = f"{self.count} of {self.total} {self._unit}{'es' if self._unit.endswith(('ch', 's')) else 's'}"
        return f"{before}{many}, {rate:.3g} a second, left {left}"


def told_if_long(items: Iterable[Item], total: int, unit: str, title: str) -> Iterator[Item]:
    """Yield the items of work that is usually short; arguments as for `Progress`."""
    return Progress(total, unit, title, leave=False, delay=_SELDOM_LONG).over(items)


def reading(items: Sequence[Item], unit: str, what: str) -> Iterator[Item]:
    """Yield annotation records with progress: large sets have a million, read at the start of every program.

    Only the first process of torchrun reports.
    """
    if os.environ.get("RANK", "0") not in ("", "0"):
        yield from items
        return
    with Progress(len(items), unit, f"reading {what}", leave=False, delay=_SELDOM_LONG) as progress:
        for first in range(0, len(items), _AT_ONCE):
            some = items[first : first + _AT_ONCE]
            yield from some
            progress.update(len(some))


def has_room_for_a_bar() -> bool:
    """Whether stderr is a terminal with a known width; those of docker -t and script have none."""
    try:
        return sys.stderr.isatty() and os.get_terminal_size(sys.stderr.fileno()).columns > 0
    except (OSError, ValueError):
        return False
