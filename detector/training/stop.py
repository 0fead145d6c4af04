"""Being asked to stop: by a scheduler (SIGTERM, SIGUSR1), Ctrl-C, or a terminal that closes (SIGHUP)."""

import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT", "SIGHUP") if hasattr(signal, name)
)
# Launchers pass a signal on that their processes have had already from the terminal or the
# scheduler: only what comes later than this is a second request.
_SAME_REQUEST_S = 1.0


class StopRequest:
    """While entered, a first signal only sets a flag, and a second one ends the process at once.

    Nothing is done in the handler: saving there could meet a save half done.

    Args:
        speak: say what was understood; one process of a training does.
    """

    def __init__(self, speak: bool) -> None:
        self._speak = speak
        self.signal: str | None = None  # the name of the first
        self.served = (
            False  # the state is saved: the process is about to end, and more signals change nothing
        )
        self._since = 0.0
        self._handlers: dict[int, Any] = {}

    def __bool__(self) -> bool:
        return self.signal is not None

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():  # others cannot handle signals
            nohup = hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            heard = [number for number in SIGNALS if not (nohup and number == signal.SIGHUP)]
            self._handlers = {number: signal.signal(number, self._handle) for number in heard}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.signal is None:
            self.signal, self._since = name, time.monotonic()
            self._say(f"{name}: the state is saved after this step; a second signal ends at once")
        elif not self.served and time.monotonic() - self._since > _SAME_REQUEST_S:
            self._say(f"{name}: ended without saving; --resume continues from the last checkpoint")
            os._exit(128 + number)

    def _say(self, line: str) -> None:
        if self._speak:
            os.write(2, f"\n{line}\n".encode())  # print() may be what the signal came into
