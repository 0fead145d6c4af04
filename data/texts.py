"""Text files as the tools of all systems write them."""

import codecs
import re
from pathlib import Path

# Not str.splitlines, which also ends a line at characters that names of files may have.
_LINE_END = re.compile("\r\n|\r|\n")


def read_text(path: Path, errors: str = "strict") -> str:
    """The content of a file in UTF-8, with or without its mark, or in UTF-16 with it, as PowerShell writes.

    Args:
        errors: as for `bytes.decode`.

    Raises:
        OSError: it cannot be read.
        UnicodeDecodeError: it is neither.
    """
    content = path.read_bytes()
    of_utf_16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return content.decode("utf-16" if of_utf_16 else "utf-8-sig", errors)


def lines_of(path: Path) -> list[tuple[int, str]]:
    """The lines of a list that are not blank, with their numbers; a name need not be UTF-8 to be a file's.

    Raises:
        OSError, UnicodeDecodeError: as `read_text`.
    """
    lines = _LINE_END.split(read_text(path, "surrogateescape"))
    return [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]
