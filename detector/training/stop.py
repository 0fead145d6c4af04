"""Requests to stop: from a scheduler (SIGTERM, SIGUSR1), Ctrl-C, or a closed terminal (SIGHUP)."""

import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT", "SIGHUP") if hasattr(signal, name)
)
# Launchers forward signals that their processes have already received from the terminal or the scheduler:
# only a signal later than this counts as a second request.
_SAME_REQUEST_S = 1.0
_LONGEST_WRITE_S = 0.5
_TO_END_S = 5.0  # seconds from the saved state to the end of the process
_NO_MORE = 0  # no signal has this number


def deaf_at_the_end() -> None:
    """Ignore all further signals while a process ends whose state is saved."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _deaf_for_a_while(handler: Any) -> Callable[[int, FrameType | None], None]:
    """A handler that ignores signals for _TO_END_S; if the process still runs then, restores `handler`."""
    until = time.monotonic() + _TO_END_S

    def handle(number: int, frame: FrameType | None) -> None:
        if time.monotonic() >= until:
            signal.signal(number, handler)
            signal.raise_signal(number)

    return handle


class CutShort(BaseException):
    """What was waited for is no longer needed; see `StopRequest.cutting_short`."""


class StopRequest:
    """While entered, the first signal only sets a flag, and a second one ends the process at once.

    A thread listens, because Python runs handlers only in the main thread, when it next executes bytecode;
    waiting for another process or a long PyTorch operation may delay that for minutes. Nothing is saved in a
    handler, which might interrupt a save.

    Args:
        speak: print a line when a signal is received; for one process of a training.
        log: function that logs that line as well.
        processes: number of processes; if one of several is lost, the others cannot finish their step.
    """

    def __init__(self, speak: bool, log: Callable[[str], None] | None = None, processes: int = 1) -> None:
        self._speak = speak
        self._if = ", unless a process is lost" if processes > 1 else ""
        self._log = log
        self.signal: str | None = None  # name of the first signal
        self.served = False  # the state is saved and the process about to end; further signals change nothing
        self._cutting_short = False
        self._since: float | None = None  # time at which the thread received the first
        self._handlers: dict[int, Any] = {}

    def __bool__(self) -> bool:
        return self.signal is not None

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():  # other threads cannot handle signals
            self._ear, self._mouth = socket.socketpair()
            self._mouth.setblocking(False)
            self._listener = threading.Thread(target=self._listen, name="signals", daemon=True)
            self._listener.start()
            self._before = signal.set_wakeup_fd(self._mouth.fileno(), warn_on_full_buffer=False)
            nohup = hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            heard = [number for number in SIGNALS if not (nohup and number == signal.SIGHUP)]
            self._handlers = {number: signal.signal(number, self._handle) for number in heard}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handlers:
            for number, handler in self._handlers.items():
                signal.signal(number, _deaf_for_a_while(handler) if self.served else handler)
            signal.set_wakeup_fd(self._before)
            self._mouth.setblocking(True)
            self._mouth.send(bytes([_NO_MORE]))  # closing would not wake it: loading processes hold a copy
            self._listener.join()
            self._mouth.close()
            self._ear.close()

    @contextmanager
    def cutting_short(self) -> Iterator[None]:
        """Inside, the first signal interrupts any work or waiting, e.g. for a disk that does not respond.

        Raises:
            CutShort: a signal arrives, or has arrived before.
        """
        self._cutting_short = True
        try:
            if self:
                raise CutShort
            yield
        finally:
            self._cutting_short = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.signal = self.signal or signal.Signals(number).name
        if self._cutting_short:
            self._cutting_short = False
            raise CutShort

    def _listen(self) -> None:
        while True:
            for number in self._ear.recv(64):
                if number == _NO_MORE:
                    return
                if number in SIGNALS:  # other signals with a handler arrive here too
                    self._hear(number)

    def _hear(self, number: int) -> None:
        name, now = signal.Signals(number).name, time.monotonic()
        if self._since is None:
            self.signal, self._since = self.signal or name, now
            self._say(f"{name}: saving the state after this step{self._if}; a second signal ends at once")
        elif not self.served and now - self._since > _SAME_REQUEST_S:
            self._say(f"{name}: ended without saving; --resume continues from the last checkpoint")
            os._exit(128 + number)

    def _say(self, line: str) -> None:
        """Print and log a line without blocking on a full pipe, a closed terminal or an unresponsive disk."""
        with suppress(OSError):
            if self._speak and select.select([], [2], [], 0)[1]:
                os.write(2, f"\n{line}\n".encode())
        if self._log is not None:  # may block, too
            writer = threading.Thread(target=self._log, args=(line,), daemon=True)
            writer.start()
            writer.join(_LONGEST_WRITE_S)
