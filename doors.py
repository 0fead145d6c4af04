"""What the command-line programs share: how they end."""

import logging
import sys
from collections.abc import Callable

from errors import InputError


class _OneLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"{record.levelname.lower()}: {record.getMessage()}"


def run_door(main: Callable[[], None]) -> None:
    """Run a program: bad input ends in one line and exit code 2, Ctrl-C in 130."""
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; a training run continues with --resume", file=sys.stderr)
        sys.exit(130)
