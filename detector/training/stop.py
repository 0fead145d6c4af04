"""Being asked to stop: by a scheduler (SIGTERM, SIGUSR1), Ctrl-C, or a terminal that closes (SIGHUP)."""

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
# Launchers pass a signal on that their processes have had already from the terminal or the
# scheduler: only what comes later than this is a second request.
_SAME_REQUEST_S = 1.0
_LONGEST_WRITE_S = 0.5
_TO_END_S = 5.0  # from a saved state to the end of the process
_NO_MORE = 0  # no signal has this number


def deaf_at_the_end() -> None:
    """Let no further signal change how a process ends whose state is saved."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _deaf_for_a_while(handler: Any) -> Callable[[int, FrameType | None], None]:
    """A handler for a process that is about to end; if it goes on all the same, this one has its turn."""
    until = time.monotonic() + _TO_END_S

    def handle(number: int, frame: FrameType | None) -> None:
        if time.monotonic() >= until:
            signal.signal(number, handler)
            signal.raise_signal(number)

    return handle


class CutShort(BaseException):
    """What was waited for is not needed any more: see `StopRequest.cutting_short`."""


class StopRequest:
    """While entered, a first signal only sets a flag, and a second one ends the process at once.

    A thread listens, as Python calls handlers in the main one alone, and not before that has its next turn:
    which the other processes of a training, or a long operation of PyTorch, may keep from it for minutes.
    Nothing is saved on a signal itself, as that could meet a save half done.

    Args:
        speak: say what was understood; one process of a training does.
        log: where it is written down as well.
        processes: of the training; if one of several is lost, the others cannot end their step.
    """

    def __init__(self, speak: bool, log: Callable[[str], None] | None = None, processes: int = 1) -> None:
        self._speak = speak
        self._if = ", unless a process is lost" if processes > 1 else ""
        self._log = log
        self.signal: str | None = None  # the name of the first
        self.served = (
            False  # the state is saved: the process is about to end, and more signals change nothing
        )
        self._cutting_short = False
        self._since: float | None = None  # when the thread has heard the first
        self._handlers: dict[int, Any] = {}

    def __bool__(self) -> bool:
        return self.signal is not None

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():  # others cannot handle signals
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
            self._mouth.send(bytes([_NO_MORE]))  # closing says nothing while loading processes hold a copy
            self._listener.join()
            self._mouth.close()
            self._ear.close()

    @contextmanager
    def cutting_short(self) -> Iterator[None]:
        """Inside, the first signal ends what is done or waited for, a disk that does not answer say.

        Raises:
            CutShort: there is one, or was before.
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
                if number in SIGNALS:  # whatever has a handler is written down
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
        """Where somebody reads: a pipe that is full, or a terminal that has gone, must not hold this up."""
        with suppress(OSError):
            if self._speak and select.select([], [2], [], 0)[1]:
                os.write(2, f"\n{line}\n".encode())
        if self._log is not None:  # nor a disk that does not answer
            writer = threading.Thread(target=self._log, args=(line,), daemon=True)
            writer.start()
            writer.join(_LONGEST_WRITE_S)
