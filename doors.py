"""What the command-line programs share: how they end."""

import logging
import os
import sys
import threading
from collections.abc import Callable

from errors import Bystander, InputError, Stopped

# Read by torch as it starts: large tensors in large pages, which the system need not clear bit by bit.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

BAD_INPUT = 2
STOPPED = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, run it again
INTERRUPTED = 130


class _OneLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"{record.levelname.lower()}: {record.getMessage()}"


def _silent_where_raised_again(arguments: threading.ExceptHookArgs) -> None:
    # A full disk kills TensorBoard's writing thread, which then raises the error in the main thread too.
    if not issubclass(arguments.exc_type, OSError):
        threading.__excepthook__(arguments)


def run_door(main: Callable[[], None]) -> None:
    """Run a program: bad input ends in one line and exit code 2, a training that was stopped and has
    saved its state in 75, Ctrl-C elsewhere in 130."""
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    threading.excepthook = _silent_where_raised_again
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    except Bystander:
        sys.exit(BAD_INPUT)
    except Stopped as reason:
        print(reason, file=sys.stderr)
        sys.exit(STOPPED)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
