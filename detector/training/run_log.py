"""log.txt of a run: all output with timestamps, whatever happens to the terminal."""

import contextlib
import logging
from datetime import datetime
from pathlib import Path
from types import TracebackType

from errors import Bystander, InputError, Stopped, first_line

LOG = "log.txt"


class RunLog(logging.Handler):
    """While entered, logs warnings, and at the end how the run ended.

    Lines are kept in memory until there is a run folder; without one they are lost. Each process of a
    training has its own instance, and all write to one file. Write errors are ignored: metrics.jsonl and the
    checkpoints report a full disk.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._file: Path | None = None
        self._early: list[str] = []
        self._speaks = True

    def begin(self, folder: Path, speaks: bool = True) -> None:
        """Write to this folder from now on.

        Args:
            folder: the run folder.
            speaks: whether this process logs what all processes know.
        """
        self._file, self._speaks = folder / LOG, speaks
        for line in self._early:
            self._append(line)
        self._early.clear()

    def write(self, text: str) -> None:
        """Add a line, or several, with a timestamp."""
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
                if file.read(1) != b"\n":  # half a line, written while the disk was full
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
