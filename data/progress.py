"""How far long work has come: a bar on a terminal, a line a minute in the log of a job that has none."""

import contextlib
import os
import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")

_EVERY = 60.0  # seconds


class Progress:
    """Counts what is done of `total`, which may grow; a context that takes the bar away at its end.

    Args:
        total: how many there are, as far as is known.
        unit: what is counted, such as image.
        title: stands before the figures.
        leave: let the bar stand when all is done.
    """

    def __init__(self, total: int, unit: str, title: str = "", leave: bool = True) -> None:
        self.total, self.count = total, 0
        self._unit, self._title = unit, title
        self._bar = tqdm(
            total=total,
            desc=title or None,
            unit=unit,
            leave=leave,
            disable=not has_room_for_a_bar(),
            dynamic_ncols=True,
        )
        self._began = self._told = time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def update(self) -> None:
        """One more is done."""
        self.count += 1
        self._bar.total = self.total
        self._bar.update()
        now = time.monotonic()
        if self._bar.disable and now - self._told >= _EVERY:
            self._told = now
            with contextlib.suppress(OSError):  # nobody reads it any more
                print(self._line(now - self._began), file=sys.stderr, flush=True)

    def over(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, each of which is done when the next is asked for."""
        with self:
            for item in items:
                yield item
                self.update()

    def _line(self, seconds: float) -> str:
        rate = self.count / seconds
        left = tqdm.format_interval(max(self.total - self.count, 0) / rate)
        before = f"{self._title}: " if self._title else ""
        many = f"{self.count} of {self.total} {self._unit}{'es' if self._unit.endswith('ch') else 's'}"
        return f"{before}{many}, {rate:.3g} a second, left {left}"


def has_room_for_a_bar() -> bool:
    """Whether stderr is a terminal with a width, which that of docker -t and script has not."""
    try:
        return sys.stderr.isatty() and os.get_terminal_size(sys.stderr.fileno()).columns > 0
    except (OSError, ValueError):
        return False
