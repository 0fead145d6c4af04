"""Text files as written by tools on any system."""

import codecs
import re
from pathlib import Path

# Not str.splitlines: it also splits at characters that are allowed in file names.
_LINE_END = re.compile("\r\n|\r|\n")


def read_text(path: Path, errors: str = "strict") -> str:
    """The content of a file in UTF-8, with or without BOM, or in UTF-16 with BOM, as PowerShell writes it.

    Args:
        errors: as for `bytes.decode`.

    Raises:
        OSError: the file cannot be read.
        UnicodeDecodeError: it has another encoding.
    """
    content = path.read_bytes()
    of_utf_16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return content.decode("utf-16" if of_utf_16 else "utf-8-sig", errors)


def lines_of(path: Path) -> list[tuple[int, str]]:
    """The non-blank lines of a list, with their numbers; file names that are not UTF-8 are preserved.

    Raises:
        OSError, UnicodeDecodeError: see `read_text`.
    """
    lines = _LINE_END.split(read_text(path, "surrogateescape"))
    return [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]
