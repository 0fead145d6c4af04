"""What the command-line programs share: how they end."""

import logging
import sys
import threading
from collections.abc import Callable

from errors import InputError


class _OneLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"{record.levelname.lower()}: {record.getMessage()}"


def _silent_where_raised_again(arguments: threading.ExceptHookArgs) -> None:
    # A full disk kills TensorBoard's writing thread, which then raises the error in the main thread too.
    if not issubclass(arguments.exc_type, OSError):
        threading.__excepthook__(arguments)


def run_door(main: Callable[[], None]) -> None:
    """Run a program: bad input ends in one line and exit code 2, Ctrl-C in 130."""
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    threading.excepthook = _silent_where_raised_again
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; a training run continues with --resume", file=sys.stderr)
        sys.exit(130)
