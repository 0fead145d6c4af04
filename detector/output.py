"""Where programs write: checked before the work, and files whole or not at all, so that nothing is lost."""

import contextlib
import itertools
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TextIO

from errors import InputError

_HEAD = 256  # bytes of a file that tell what it is
_LONGEST = 255  # bytes of a name, on most systems
TEMPORARY = ".tmp"  # the ending of files that are to be renamed


def check_output(option: str, path: Path, earlier: str | None = None, inputs: Iterable[Path] = ()) -> None:
    """See that a file can be put there, and that none that is needed would be lost.

    Args:
        option: that names it, for errors.
        earlier: a regular expression for the beginning of what the program has written before: nothing
            else is replaced. None replaces what is no input.
        inputs: files that the program reads.

    Raises:
        InputError: there is no such folder or no permission, or the path is a folder, no regular file, an
            input or another file.
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
    """See that a folder is there or can be made, and written to.

    Raises:
        InputError: it is a file, or lies below one or a link to nothing, or there is no permission.
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
    """Raises InputError: a folder is, or lies below, a link to what is not there, as a disk that is away."""
    for path in (folder, *folder.parents):
        if path.is_symlink() and not path.exists():
            raise InputError(f"{option}: {path} is a link to {path.readlink()}, which does not exist")


def numbered_folders(first: Path) -> Iterator[Path]:
    """NAME, NAME-2, NAME-3 and so on."""
    return (
        first if number == 1 else first.with_name(f"{first.name}-{number}") for number in itertools.count(1)
    )


def name_that_fits(stem: str, ending: str) -> str:
    """The two as the name of a file, the stem cut off where that would be longer than a name may be."""
    whole = os.fsencode(stem + ending)
    if len(whole) <= _LONGEST:
        return stem + ending
    return os.fsencode(stem)[: _LONGEST - len(os.fsencode(ending))].decode(errors="ignore") + ending


def temporary_of(path: Path) -> Path:
    """The file that this process writes first, to be renamed."""
    return path.with_name(name_that_fits(f".{path.name}", f".{os.getpid()}{TEMPORARY}"))


def discard(temporary: Path) -> None:
    """Remove a file that was to be renamed, if it is there.

    A disk that has failed, or is read-only by now, has been told of, or does not matter any more.
    """
    with contextlib.suppress(OSError):
        temporary.unlink()


def sync(path: Path) -> None:
    """Let a file, or the names in a folder, outlive a power failure. Raises OSError: as the system says."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str, synced: bool = False) -> None:
    """As `write_bytes`, in UTF-8; synced: so that it outlives a power failure, which takes its time."""
    _write({path: [_encoded(text)]}, synced)


def write_pieces(path: Path, pieces: Iterable[str]) -> None:
    """As `write_text`, of pieces that need not be in memory together."""
    _write({path: map(_encoded, pieces)})


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a whole file or nothing.

    Raises:
        InputError: no permission or no space.
    """
    _write({path: [content]})


def write_texts(folder: Path, texts: Mapping[str, str]) -> None:
    """Write several files of a folder, by their names, each as `write_text`; none where there is no space.

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
            discard(temporary)  # Ctrl-C leaves none either


def _encoded(text: str) -> bytes:
    """UTF-8; names of files in other encodings go through as they are."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half a character in JSON
        return text.encode("utf-8", "backslashreplace")


def close_output(stream: TextIO | None = None) -> None:
    """Let what is printed from now on, to stdout unless given, go nowhere: nobody reads it any more."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, (stream or sys.stdout).fileno())
    os.close(nowhere)


def print_last(line: str) -> None:
    """A program's last line, to stderr: where it cannot be said, how the program ends does not change."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:  # a terminal that has been closed
        close_output(sys.stderr)
