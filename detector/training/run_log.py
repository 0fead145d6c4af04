"""log.txt of a run: all that was said, with the time, whatever has become of the terminal."""

import contextlib
import logging
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from types import TracebackType

from errors import Bystander, InputError, Stopped, first_line

LOG = "log.txt"


class RunLog(logging.Handler):
    """While entered, warnings are written too, those of before with them; and at last how the run ended.

    What cannot be written is left out: metrics.jsonl and the checkpoints say that a disk is full.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(logging.WARNING)
        self._file = folder / LOG

    def write(self, text: str) -> None:
        """Add a line, or several, behind the time."""
        now = datetime.now().astimezone().isoformat(" ", "seconds")
        with contextlib.suppress(OSError), self._file.open("a", encoding="utf-8", errors="replace") as file:
            file.write(f"{now}  {text}\n")

    def emit(self, record: logging.LogRecord) -> None:
        self.write(f"{record.levelname.lower()}: {record.getMessage()}")

    def __enter__(self) -> "RunLog":
        root = logging.getLogger()
        for handler in root.handlers:
            if isinstance(handler, _Early):
                for record in handler.records:
                    self.emit(record)
                handler.records.clear()
        root.addHandler(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        logging.getLogger().removeHandler(self)
        if isinstance(error, InputError | Stopped | Bystander):
            if str(error):
                self.write(f"{'' if isinstance(error, Stopped) else 'error: '}{error}")
        elif error is not None:
            self.write(f"error: {type(error).__name__}: {first_line(error)}")


class _Early(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@contextlib.contextmanager
def early_warnings() -> Iterator[None]:
    """Keep what is said before there is a run folder, for its log."""
    handler = _Early()
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
