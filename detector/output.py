"""Output files: checked before the work starts, and written completely or not at all, so nothing is lost."""

import contextlib
import itertools
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TextIO

from errors import InputError

_HEAD = 256  # first bytes of a file, which identify it
_LONGEST = 255  # bytes of a file name, on most systems
TEMPORARY = ".tmp"  # suffix of files that will be renamed


def check_output(option: str, path: Path, earlier: str | None = None, inputs: Iterable[Path] = ()) -> None:
    """Check that a file can be written there without losing one that is needed.

    Args:
        option: the option that names the file, for errors.
        earlier: a regular expression that matches the beginning of this program's earlier outputs: nothing
            else is replaced. None replaces any file that is not an input.
        inputs: files that the program reads.

    Raises:
        InputError: the folder does not exist or is not writable, or the path is a folder, not a regular
            file, an input, or a file that is not an earlier output.
    """
    folder = path.absolute().parent
    if not folder.is_dir():
        raise InputError(f"{option}: the folder {path.parent} does not exist")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{option}: no permission to write in the folder {path.parent}")
    if not path.exists():
        return
    if path.is_dir():
        raise InputError(f"{option}: {path} is a folder; name a file")
    if not path.is_file():
        raise InputError(f"{option}: {path} is not a regular file and cannot be replaced; name another file")
    if any(given.is_file() and path.samefile(given) for given in inputs):
        raise InputError(f"{option}: {path} is also an input of this command; name another file")
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD).decode(errors="replace")
    except OSError as error:
        raise InputError(f"{option}: {path} cannot be replaced: {error.strerror}") from None
    if earlier is not None and head and not re.match(earlier, head):
        raise InputError(
            f"{option}: {path} exists and is not an earlier output of this program; name another file"
        )


def check_new_folder(option: str, folder: Path) -> None:
    """Check that a folder exists or can be created, and is writable.

    Raises:
        InputError: it is a file, or lies below one or below a dead link, or there is no permission.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{option}: {folder} is not a folder")
    refuse_dead_link(option, folder)
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise InputError(f"{option}: {folder} cannot be created, because {there} is not a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{option}: no permission to write in the folder {there}")


def refuse_dead_link(option: str, folder: Path) -> None:
    """Raises InputError: a folder is, or lies below, a dead link, e.g. to a disk that is not mounted."""
    for path in (folder, *folder.parents):
        if path.is_symlink() and not path.exists():
            raise InputError(f"{option}: {path} is a link to {path.readlink()}, which does not exist")


def numbered_folders(first: Path) -> Iterator[Path]:
    """NAME, NAME-2, NAME-3, ..."""
    return (
        first if number == 1 else first.with_name(f"{first.name}-{number}") for number in itertools.count(1)
    )


def name_that_fits(stem: str, ending: str) -> str:
    """stem + ending as a file name, with the stem truncated if the name would be too long."""
    whole = os.fsencode(stem + ending)
    if len(whole) <= _LONGEST:
        return stem + ending
    return os.fsencode(stem)[: _LONGEST - len(os.fsencode(ending))].decode(errors="ignore") + ending


def temporary_of(path: Path) -> Path:
    """The temporary file that this process writes first and then renames to `path`."""
    return path.with_name(name_that_fits(f".{path.name}", f".{os.getpid()}{TEMPORARY}"))


def discard(temporary: Path) -> None:
    """Remove a temporary file, if it exists.

    Errors of the disk are ignored: they have been reported already, or do not matter any more.
    """
    with contextlib.suppress(OSError):
        temporary.unlink()


def sync(path: Path) -> None:
    """Make a file, or the names in a folder, survive a power failure. Raises OSError: the system's error."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str, synced: bool = False) -> None:
    """As `write_bytes`, in UTF-8; synced: slower, but survives a power failure."""
    _write({path: [_encoded(text)]}, synced)


def write_pieces(path: Path, pieces: Iterable[str]) -> None:
    """As `write_text`, for pieces that need not be in memory at the same time."""
    _write({path: map(_encoded, pieces)})


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a file completely or not at all.

    Raises:
        InputError: no permission or no space.
    """
    _write({path: [content]})


def write_texts(folder: Path, texts: Mapping[str, str]) -> None:
    """Write several files, by name, to a folder, each as `write_text`; if there is no space, none.

    Raises:
        InputError: no permission or no space.
    """
    _write({folder / name: [_encoded(text)] for name, text in texts.items()})


def _write(contents: Mapping[Path, Iterable[bytes | memoryview]], synced: bool = False) -> None:
    temporaries = {path: temporary_of(path) for path in contents}
    try:
        for path, temporary in temporaries.items():
            with temporary.open("wb") as file:
                file.writelines(contents[path])
            if synced:
                sync(temporary)
        for path, temporary in temporaries.items():
            temporary.replace(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None
    finally:
        for temporary in temporaries.values():
            discard(temporary)  # also after Ctrl-C


def _encoded(text: str) -> bytes:
    """UTF-8; bytes of file names in other encodings pass through unchanged."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a lone surrogate from JSON
        return text.encode("utf-8", "backslashreplace")


def close_output(stream: TextIO | None = None) -> None:
    """Discard everything printed to the stream (default stdout) from now on: nobody reads it any more."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, (stream or sys.stdout).fileno())
    os.close(nowhere)


def print_last(line: str) -> None:
    """Print a program's last line to stderr; if that fails, the program's exit status does not change."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:  # e.g. the terminal has been closed
        close_output(sys.stderr)
