"""Interruption of predict.py: what was found is kept, whatever the signal."""

import signal
import sys
import threading
from types import FrameType
from typing import Any


class Termination:
    """Handles signals of schedulers and of a closing terminal like Ctrl-C: what was found is kept.

    Further signals are ignored while the tables are being written.
    """

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}
        self._held = False
        self._asked: int | None = None
        self._listens = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> "Termination":
        if self._listens:
            for name in ("SIGTERM", "SIGUSR1", "SIGHUP", "SIGINT"):
                number = getattr(signal, name, None)
                if number is not None and signal.getsignal(number) != signal.SIG_IGN:  # nohup
                    self._before[number] = signal.signal(number, self._end)
        return self

    def _end(self, number: int, _: FrameType | None) -> None:
        self._asked = number
        if not self._held:
            self._held = True  # schedulers repeat signals, and impatient users press Ctrl-C again
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            sys.exit(128 + number)

    def hold_back(self) -> None:
        """Do not interrupt from now on: the results are being written."""
        self._held = True

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._asked is not None and kind is None:
            sys.exit(128 + self._asked)
