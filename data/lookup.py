"""Files by the names that annotations give them, which other systems may have written."""

import logging
import re
import unicodedata
from pathlib import Path

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
        raise DataFault("image-outside", f"{where} names the image '{name}', which points outside {folder}")
    return folder / name


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


class ImageFinder:
    """The images of a set, in a folder and those below it.

    Windows writes backslashes and sees no difference of case, macOS writes a letter and its accent apart, and
    annotation tools write where an image was on their own disk.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._there: dict[Path, dict[str, list[Path]]] = {}  # the files of folders, by what their names share
        self._respelt: dict[Path, str] = {}
        self._elsewhere: dict[Path, str] = {}

    def find(self, name: str, where: str) -> Path:
        """The file that is meant, or the one of the very name where there is none.

        Raises:
            DataFault: the name leads out of the folder, and no image in it has its last part for a name, or
                another image is taken for that already.
        """
        try:
            inside(self._folder, name, where)
        except DataFault:
            path = self._alike(self._folder / re.split(r"[/\\]", name)[-1])
            if path is None:
                raise
            other = self._elsewhere.setdefault(path, name)
            if other != name:
                message = f"{where} names the image '{name}', another one '{other}': both would be {path}"
                raise DataFault("image-outside", message) from None
            return path
        path = self._folder / as_spelt(self._folder, name)
        if is_file(path):
            return path
        alike = self._alike(path)
        if alike is not None:
            self._respelt[alike] = name
        return path if alike is None else alike

    def _alike(self, path: Path) -> Path | None:
        """The one file of this name, whatever its case and however its accents are written."""
        folder = path.parent
        if folder not in self._there:
            self._there[folder] = {}
            try:
                files = [*folder.iterdir()]
            except OSError:  # none, or a name that is too long
                files = []
            for file in files:
                self._there[folder].setdefault(_without_case(file.name), []).append(file)
        found = self._there[folder].get(_without_case(path.name), [])
        exact = [file for file in found if file.name == path.name] or found
        return exact[0] if len(exact) == 1 and is_file(exact[0]) else None

    def warn(self, source: str) -> None:
        """Say what was taken for what."""
        outside = f"file names lead out of {self._folder}; images of these names in it are used"
        for found, what in ((self._elsewhere, outside), (self._respelt, "names of files differ in case")):
            if found:
                path, name = next(iter(found.items()))
                log.warning("%s: %s (%d, such as '%s' for %s)", source, what, len(found), name, path.name)


def _without_case(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
