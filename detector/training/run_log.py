"""log.txt of a run: all that was said, with the time, whatever has become of the terminal."""

import contextlib
import logging
from datetime import datetime
from pathlib import Path
from types import TracebackType

from errors import Bystander, InputError, Stopped, first_line

LOG = "log.txt"


class RunLog(logging.Handler):
    """While entered, warnings are written, and at last how the run ended.

    What comes before there is a run folder is kept for it; without one all is forgotten. Each process of a
    training has its own, and all of them write into one file. What cannot be written is left out:
    metrics.jsonl and the checkpoints say that a disk is full.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._file: Path | None = None
        self._early: list[str] = []
        self._speaks = True

    def begin(self, folder: Path, speaks: bool = True) -> None:
        """Write into this folder from now on.

        speaks: of all processes the one that says what is known to all of them.
        """
        self._file, self._speaks = folder / LOG, speaks
        for line in self._early:
            self._append(line)
        self._early.clear()

    def write(self, text: str) -> None:
        """Add a line, or several, behind the time."""
        line = f"{datetime.now().astimezone().isoformat(' ', 'seconds')}  {text}\n"
        if self._file is None:
            self._early.append(line)
        else:
            self._append(line)

    def _append(self, line: str) -> None:
        assert self._file is not None
        with contextlib.suppress(OSError), self._file.open("ab+", buffering=0) as file:
            if end := file.tell():
                file.seek(end - 1)
                if file.read(1) != b"\n":  # a disk was full, and half a line is there
                    line = f"\n{line}"
            file.write(line.encode(errors="replace"))

    def emit(self, record: logging.LogRecord) -> None:
        self.write(f"{record.levelname.lower()}: {record.getMessage()}")

    def __enter__(self) -> "RunLog":
        logging.getLogger().addHandler(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        logging.getLogger().removeHandler(self)
        if error is None or self._file is None:
            return
        if isinstance(error, Bystander):
            if self._speaks:
                self.write("ended because another process has failed")
        elif isinstance(error, InputError):
            self.write(f"error: {error}")
        elif isinstance(error, Stopped):
            if str(error):
                self.write(str(error))
        else:
            self.write(f"error: {type(error).__name__}: {first_line(error)}")
