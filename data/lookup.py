"""Files by the names that annotations give them, which other systems may have written."""

import logging
import re
import unicodedata
from pathlib import Path
from urllib.parse import unquote

from data.faults import DataFault

log = logging.getLogger(__name__)
# A name that begins at a root or drive or has a part '..', on any system. Path objects take 20 times longer.
_LEADS_OUT = re.compile(r"[/\\]|[A-Za-z]:|(.*[/\\])?\.\.([/\\]|\Z)", re.DOTALL)


def inside(folder: Path, name: str, where: str) -> Path:
    """folder / name, refused if it leads out of the folder.

    Raises:
        DataFault: the name is absolute or climbs out with '..'. Symbolic links are the user's own
            arrangement and may lead anywhere.
    """
    if not name or _LEADS_OUT.match(name):
        raise _outside(folder, name, where)
    return folder / name


def _outside(folder: Path, name: str, where: str) -> DataFault:
    return DataFault("image-outside", f"{where} names the image '{name}', which points outside {folder}")


def as_spelt(folder: Path, name: str) -> str:
    """The name below the folder as it is there: with slashes for Windows' backslashes, or macOS' accents."""
    if "\\" not in name and name.isascii():
        return name
    slashed = name.replace("\\", "/")
    forms = [name, slashed, *(unicodedata.normalize(form, slashed) for form in ("NFC", "NFD"))]
    return next((form for form in forms if is_there(folder / form)), slashed)


def is_there(path: Path) -> bool:
    """Whether a file or folder exists; a name that is too long for one is that of none."""
    try:
        return path.exists()
    except OSError:
        return False


def is_file(path: Path) -> bool:
    """Whether a file exists; as `is_there`."""
    try:
        return path.is_file()
    except OSError:
        return False


def entries_of(folder: Path) -> list[Path]:
    """What is in a folder; nothing if it is none."""
    try:
        return [*folder.iterdir()]
    except OSError:
        return []


def leads_out(name: str) -> bool:
    """Whether a name begins at a root or drive, climbs out with '..', or is an address."""
    return "://" in name or _LEADS_OUT.match(name) is not None


def ends_of(name: str) -> list[list[str]]:
    """The ends of a path of any system, or of an address, in parts: the longest first."""
    ends = []
    for spelling in dict.fromkeys((name, unquote(name))):
        told = spelling.rpartition("?d=")[2]  # Label Studio's /data/local-files/?d=cam/1.jpg
        parts = _parts(told.partition("?")[0] if "://" in told else told)
        ends += [parts[k:] for k in range(len(parts))]
    return sorted(ends, key=len, reverse=True)


class NameTaken(DataFault):
    """The image that a name would stand for has been taken for another name already."""


class Listing:
    """What folders hold, each looked at once: by what the spellings of a name have in common."""

    def __init__(self) -> None:
        self._there: dict[Path, dict[str, list[Path]]] = {}

    def alike(self, path: Path) -> list[Path]:
        """All in the folder of the path that has its name, whatever the case and the writing of accents."""
        folder = path.parent
        if folder not in self._there:
            self._there[folder] = {}
            for entry in entries_of(folder):
                self._there[folder].setdefault(without_case(entry.name), []).append(entry)
        return self._there[folder].get(without_case(path.name), [])


class ImageFinder:
    """The images of a set, in a folder and those below it.

    Windows writes backslashes and sees no difference of case, macOS writes a letter and its accent apart, and
    annotation tools write where an image was on their own disk.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._listing = Listing()
        self._given: dict[Path, tuple[str, bool]] = {}  # by what name; whether its own
        self._respelt: dict[Path, str] = {}
        self._elsewhere: dict[Path, str] = {}

    def find(self, name: str, where: str) -> Path:
        """The file that is meant, or the one of the very name where there is none.

        Raises:
            DataFault: the name leads out of the folder, and no image in it has its last parts for a name.
            NameTaken: one has, and is taken for another already.
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
        """The path, if no other name stands for it; two that are exact may, as ./a.jpg and a.jpg."""
        other, was_exact = self._given.setdefault(path, (name, exact))
        if other != name and not (exact and was_exact):
            message = f"{where} names '{name}', and another entry '{other}', but both would be {path}"
            raise NameTaken("image-name-taken", message)
        return path

    def _of_another_place(self, name: str, where: str) -> Path:
        """The image of a path of another disk, or of an address: as much of its end as the folder has."""
        path = next(filter(None, map(self._alike, ends_of(name))), None)
        if path is None:
            if "://" in name:
                message = f"{where} names the image '{name}', a URL; download it into {self._folder}"
                raise DataFault("image-outside", message)
            raise _outside(self._folder, name, where)
        self._elsewhere.setdefault(path, name)
        return self._only_of(path, name, where, exact=False)

    def _alike(self, parts: list[str]) -> Path | None:
        """The one file of this path in the folder, whatever its case and however its accents are written."""
        path = self._folder
        for part in parts:
            found = self._listing.alike(path / part)
            exact = [entry for entry in found if entry.name == part] or found
            if len(exact) != 1:
                return None
            (path,) = exact
        return path if is_file(path) else None

    def warn(self, source: str) -> None:
        """Say what was taken for what."""
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
    """Of a path in any system, from where it no longer leads out."""
    parts = [part for part in re.split(r"[/\\]", name) if part not in ("", ".")]
    return parts[max((k for k, part in enumerate(parts, 1) if part == ".."), default=0) :]


def without_case(name: str) -> str:
    """What spellings of a name have in common that macOS or Windows take for one."""
    return unicodedata.normalize("NFC", name).casefold()
