"""Finds files by the names in annotations, which may have been written on other systems."""

import logging
import re
import unicodedata
from pathlib import Path
from urllib.parse import unquote

from data.faults import DataFault

log = logging.getLogger(__name__)
# A name that begins at a root or drive or has a part "..", on any system. Path objects are 20 times slower.
_LEADS_OUT = re.compile(r"[/\\]|[A-Za-z]:|(.*[/\\])?\.\.([/\\]|\Z)", re.DOTALL)


def inside(folder: Path, name: str, where: str) -> Path:
    """folder / name, refused if it leads out of the folder.

    Symbolic links are the user's choice and may lead anywhere.

    Raises:
        DataFault: the name is absolute or has a part "..".
    """
    if not name or _LEADS_OUT.match(name):
        raise _outside(folder, name, where)
    return folder / name


def _outside(folder: Path, name: str, where: str) -> DataFault:
    return DataFault("image-outside", f"{where} names the image '{name}', which points outside {folder}")


def as_spelt(folder: Path, name: str) -> str:
    """The name as it exists below the folder: slashes for Windows backslashes, its Unicode form."""
    if "\\" not in name and name.isascii():
        return name
    slashed = name.replace("\\", "/")
    forms = [name, slashed, *(unicodedata.normalize(form, slashed) for form in ("NFC", "NFD"))]
    return next((form for form in forms if is_there(folder / form)), slashed)


def is_there(path: Path) -> bool:
    """Whether a file or folder exists; False for names that are too long."""
    try:
        return path.exists()
    except OSError:
        return False


def is_file(path: Path) -> bool:
    """Whether a file exists; False for names that are too long."""
    try:
        return path.is_file()
    except OSError:
        return False


def entries_of(folder: Path) -> list[Path]:
    """The entries of a folder; none if it is not a readable folder."""
    try:
        return [*folder.iterdir()]
    except OSError:
        return []


def leads_out(name: str) -> bool:
    """Whether a name begins at a root or drive, has a part "..", or is a URL."""
    return "://" in name or _LEADS_OUT.match(name) is not None


def ends_of(name: str) -> list[list[str]]:
    """All ends of a path of any system, or of a URL, as lists of parts, longest first."""
    ends = []
    for spelling in dict.fromkeys((name, unquote(name))):
        told = spelling.rpartition("?d=")[2]  # Label Studio's /data/local-files/?d=cam/1.jpg
        parts = _parts(told.partition("?")[0] if "://" in told else told)
        ends += [parts[k:] for k in range(len(parts))]
    return sorted(ends, key=len, reverse=True)


class NameTaken(DataFault):
    """The image that a name refers to was already found under another name."""


class Listing:
    """Folder contents, each read once, indexed by names without case and Unicode form."""

    def __init__(self) -> None:
        self._there: dict[Path, dict[str, list[Path]]] = {}

    def alike(self, path: Path) -> list[Path]:
        """All entries in the folder of the path with its name, ignoring case and Unicode form."""
        folder = path.parent
        if folder not in self._there:
            self._there[folder] = {}
            for entry in entries_of(folder):
                self._there[folder].setdefault(without_case(entry.name), []).append(entry)
        return self._there[folder].get(without_case(path.name), [])


class ImageFinder:
    """The images of a set, in a folder tree.

    Names may differ from the files: Windows writes backslashes and ignores case, macOS decomposes accented
    letters, and annotation tools write the path on their own disk.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._listing = Listing()
        self._given: dict[Path, tuple[str, bool]] = {}  # path -> (name used, whether it is exact)
        self._respelt: dict[Path, str] = {}
        self._elsewhere: dict[Path, str] = {}

    def find(self, name: str, where: str) -> Path:
        """The file that a name refers to; if there is none, the path of that exact name.

        Raises:
            DataFault: the name leads out of the folder, and no end of it matches an image in the folder.
            NameTaken: the image was already found under another name.
        """
        if leads_out(name):
            return self._of_another_place(name, where)
        path = inside(self._folder, as_spelt(self._folder, name), where)
        if is_file(path):
            return self._only_of(path, name, where, exact=True)
        spellings = dict.fromkeys((name, unquote(name)))
        alike = next(filter(None, (self._alike(_parts(spelling)) for spelling in spellings)), None)
        if alike is None:
            return path
        self._respelt.setdefault(alike, name)
        return self._only_of(alike, name, where, exact=False)

    def _only_of(self, path: Path, name: str, where: str, exact: bool) -> Path:
        """The path, unless another name was used for it. Two exact names may be: ./a.jpg and a.jpg."""
        other, was_exact = self._given.setdefault(path, (name, exact))
        if other != name and not (exact and was_exact):
            message = f"{where} names '{name}', and another entry '{other}', but both would be {path}"
            raise NameTaken("image-name-taken", message)
        return path

    def _of_another_place(self, name: str, where: str) -> Path:
        """The image for a path of another disk or a URL: the longest end of it that exists in the folder."""
        path = next(filter(None, map(self._alike, ends_of(name))), None)
        if path is None:
            if "://" in name:
                message = f"{where} names the image '{name}', a URL; download it into {self._folder}"
                raise DataFault("image-outside", message)
            raise _outside(self._folder, name, where)
        self._elsewhere.setdefault(path, name)
        return self._only_of(path, name, where, exact=False)

    def _alike(self, parts: list[str]) -> Path | None:
        """The unique file at this path in the folder, ignoring case and Unicode form."""
        path = self._folder
        for part in parts:
            found = self._listing.alike(path / part)
            exact = [entry for entry in found if entry.name == part] or found
            if len(exact) != 1:
                return None
            (path,) = exact
        return path if is_file(path) else None

    def warn(self, source: str) -> None:
        """Warn about names that were resolved to other files."""
        outside = (
            f"file names lead out of {self._folder}; the images of the same names in that folder are used"
        )
        for found, what in (
            (self._elsewhere, outside),
            (self._respelt, "file names are spelt differently on disk"),
        ):
            if found:
                path, name = next(iter(found.items()))
                log.warning("%s: %s (%d, such as '%s' for %s)", source, what, len(found), name, path.name)


def _parts(name: str) -> list[str]:
    """The parts of a path of any system, after the last ".."."""
    parts = [part for part in re.split(r"[/\\]", name) if part not in ("", ".")]
    return parts[max((k for k, part in enumerate(parts, 1) if part == ".."), default=0) :]


def without_case(name: str) -> str:
    """A form that is equal for all spellings that macOS or Windows treat as the same name."""
    return unicodedata.normalize("NFC", name).casefold()
