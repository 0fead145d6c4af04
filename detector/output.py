"""Files that a program writes where the user says: looked at before the work, so that nothing is lost."""

import re
from collections.abc import Iterable
from pathlib import Path

from errors import InputError

_HEAD = 256  # bytes of a file that tell what it is


def check_output(option: str, path: Path, earlier: str | None = None, inputs: Iterable[Path] = ()) -> None:
    """See that a file can be put there, and that none that is needed would be lost.

    Args:
        option: that names it, for errors.
        earlier: a regular expression for the beginning of what the program has written before: nothing
            else is replaced. None replaces what is no input.
        inputs: files that the program reads.

    Raises:
        InputError: there is no such folder, or the path is a folder, no regular file, an input or another
            file.
    """
    if not path.absolute().parent.is_dir():
        raise InputError(f"{option}: the folder {path.parent} does not exist")
    if not path.exists():
        return
    if path.is_dir():
        raise InputError(f"{option}: {path} is a folder; name a file")
    if not path.is_file():
        raise InputError(f"{option}: {path} is no file that could be replaced; name another")
    if any(given.is_file() and path.samefile(given) for given in inputs):
        raise InputError(f"{option}: {path} is read by this very command; name another file")
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD).decode(errors="replace")
    except OSError as error:
        raise InputError(f"{option}: {path} cannot be replaced: {error.strerror}") from None
    if earlier is not None and head and not re.match(earlier, head):
        raise InputError(f"{option}: {path} holds something else than an earlier output; name another file")
