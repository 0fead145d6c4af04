"""Text files as the tools of all systems write them."""

import codecs
from pathlib import Path


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
