"""What a user names -> the images and videos in it: files, folders, patterns, standard input."""

import glob
import itertools
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data.images import PICTURE_SUFFIXES, files_below, one_for_each_file
from data.lookup import is_there
from data.texts import lines_of
from errors import InputError, reason_of, some_of

log = logging.getLogger(__name__)

VIDEO_SUFFIXES = frozenset(
    {
        ".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv",
        ".ts", ".webm", ".wmv",
    }
)  # fmt: skip
STDIN = "-"
LIST_SUFFIX = ".txt"
RESULTS_MARK = ".predictions"  # marker file in each results folder of predict.py


@dataclass(frozen=True)
class Source:
    """One image or video."""

    kind: Literal["image", "video", "stdin"]
    path: Path  # path to open; "stdin" for standard input
    place: Path  # relative to the folder that the user named; results use the same relative path


def find_sources(words: Sequence[str]) -> list[Source]:
    """The images and videos that the words name, in their order, each once.

    Args:
        words: files, with any suffix; .txt lists of files and folders; folders, searched recursively for
            images, videos, and pictures that may have to be converted first; patterns with * ? [ or **; "-"
            for an image on standard input.

    Raises:
        InputError: a word matches nothing, or nothing usable.
    """
    found: dict[tuple[str, str], Source] = {}  # by (real folder, name)
    for word in words:
        if not word:
            raise InputError(
                "an input is empty, perhaps from a variable that is not set; for the current folder write ."
            )
        if word == STDIN:
            found.setdefault(("", STDIN), Source("stdin", Path("stdin"), Path("stdin")))
            continue
        path = Path(word)
        places, above = [path], path.parent
        if path.suffix.lower() == LIST_SUFFIX and path.is_file():
            places = _listed(path)
            above = Path(os.path.commonpath([place.absolute().parent for place in places]))
        if path.exists() and not path.is_file() and not path.is_dir():
            raise InputError(f"{word} is a pipe or a device; to read an image from standard input, give -")
        if not path.exists():
            above = _above_pattern(path)
            matched = [Path(name) for name in sorted(glob.glob(word, recursive=True))]  # noqa: PTH207
            # No .txt files: they may be labels; lists must be named explicitly.
            places = [p for p in _without_results(above, matched) if p.suffix.lower() != LIST_SUFFIX]
            if not places:
                missing = "matches nothing" if glob.has_magic(word) else "does not exist"
                if "=" in word:
                    missing = "is neither a file nor a setting such as eval.nms=hard"
                if word.isdecimal():
                    missing += "; cameras are not supported, and classes are given by name: --classes car,bus"
                if "://" in word:
                    missing = "is not a file; URLs, streams and cameras are not supported"
                if matched:
                    missing = "matches only results of predict.py and .txt files; name each list explicitly"
                raise InputError(f"{word} {missing}")
        sources = [source for place in places for source in _sources(place, above)]
        if not sources:
            endings = ", ".join(sorted(s[1:] for s in PICTURE_SUFFIXES | VIDEO_SUFFIXES))
            raise InputError(f"{word} contains no images or videos ({endings})")
        for key, source in zip(one_for_each_file(one.path for one in sources), sources, strict=True):
            found.setdefault(key, source)
    return list(found.values())


def _listed(file: Path) -> list[Path]:
    """The paths in a list, one per line, relative to the current folder or to that of the list."""
    try:
        lines = lines_of(file)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read: {reason_of(error)}") from None
    found = []
    for number, name in lines:
        path = next((path for path in (Path(name), file.parent / name) if is_there(path)), None)
        if path is None:
            raise InputError(f"{file}:{number}: {name} does not exist; a .txt file lists images and videos")
        found.append(path)
    if not found:
        raise InputError(f"{file} is empty: it lists no images or videos")
    return found


def _above_pattern(pattern: Path) -> Path:
    """The folder that contains all matches of a pattern."""
    plain = itertools.takewhile(lambda part: not glob.has_magic(part), pattern.parts[:-1])
    return Path(*plain)


def _without_results(folder: Path, files: list[Path]) -> list[Path]:
    """The files that are not results of predict.py, which may be in the same folder as its inputs."""
    folders = {file if file.is_dir() else file.parent for file in files}  # patterns also match folders
    places = {place for one in folders for place in (one, *one.parents)}
    below = {place for place in places if place.is_relative_to(folder)} - {folder}
    results = {place for place in below if (place / RESULTS_MARK).exists()}
    if not results:
        return files
    named = some_of([str(place) for place in sorted(results)], 3)
    log.warning("%s contains results of predict.py, which are left out: %s", folder, named)
    return [file for file in files if results.isdisjoint((file, *file.parents))]


def _sources(path: Path, above: Path) -> Iterable[Source]:
    """The images and videos at a path; `above` is the common folder of everything named together with it."""
    if not path.is_dir():
        kind: Literal["image", "video"] = "video" if path.suffix.lower() in VIDEO_SUFFIXES else "image"
        # Without "..", which a pattern may contain: results would leave their folder.
        relative = path if path.is_relative_to(above) else path.absolute()  # a list may name files elsewhere
        below = [part for part in relative.relative_to(above).parts if part != ".."]
        yield Source(kind, path, Path(*below))
        return
    for file in _without_results(path, files_below(path)):
        place = file.relative_to(path)
        if file.suffix.lower() in PICTURE_SUFFIXES:
            yield Source("image", file, place)
        elif file.suffix.lower() in VIDEO_SUFFIXES and not _is_code(file):
            yield Source("video", file, place)


def _is_code(file: Path) -> bool:
    """Whether a .ts or .mts file is TypeScript, not an MPEG transport stream (packets start with 0x47)."""
    if file.suffix.lower() not in (".ts", ".mts"):
        return False
    try:
        with file.open("rb") as content:
            start = content.read(5)
    except OSError:
        return False
    return b"G" not in (start[:1], start[4:])
