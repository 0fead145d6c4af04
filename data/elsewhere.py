"""Images that are not where the annotations say, but in subfolders or in another folder."""

import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from data.images import files_below
from data.lookup import entries_of, is_file, without_case
from errors import InputError

log = logging.getLogger(__name__)
_SAMPLED = 20  # how many images are looked for in other folders


def look_elsewhere(paths: Sequence[Path], folder: Path, source: str, remedy: str) -> list[Path]:
    """The files of the images of a set. If at least one path exists, all paths are returned unchanged.

    Otherwise images are looked up in subfolders that their names omit, provided that no name is ambiguous. If
    all are in a single other folder, the user is asked to set it.

    Args:
        paths: expected paths, all below `folder`.
        source: name of the set in messages.
        remedy: what to do if the images are in another folder; {} is replaced by that folder.

    Raises:
        InputError: the images are in another folder, or in several candidates.
    """
    some = paths[:: max(1, len(paths) // _SAMPLED)]
    if not some or any(map(is_file, some)) or any(map(is_file, paths)):
        return [*paths]
    below = _below(folder, paths)
    meant = {k: files[0] for k, files in enumerate(below) if len(files) == 1}
    # The folders that the names would have to be relative to.
    places = {file.parents[len(paths[k].relative_to(folder).parts) - 1] for k, file in meant.items()}
    # With two files of one name, one could be trained on with the boxes of the other.
    if max(map(len, below)) == 1 and len(places) > 1 and 2 * len(meant) > len(paths):
        log.warning(
            "%s: %d images were found in subfolders of %s that their names leave out, such as %s",
            source, len(meant), folder, next(iter(meant.values())).relative_to(folder),
        )  # fmt: skip
        return [meant.get(k, path) for k, path in enumerate(paths)]
    _refuse_another(some, folder, places, source, remedy)
    return [*paths]


def _refuse_another(some: Sequence[Path], folder: Path, below: set[Path], source: str, remedy: str) -> None:
    """Raises InputError if most of these images are in a folder near by."""
    names = [path.relative_to(folder) for path in some]
    near = sorted(path for place in (folder, folder.parent) for path in entries_of(place) if path.is_dir())
    fitting: dict[Path, tuple[Path, Path]] = {}  # resolved folder -> (folder as found, an image in it)
    for other in (*folder.parents[:2], Path(source).parent, *near, *sorted(below)):
        there = [name for name in names if is_file(other / name)]
        if 2 * len(there) > len(names):
            fitting.setdefault(other.resolve(), (other, there[0]))
    if fitting:
        others = " and in ".join(str(other) for other, _ in fitting.values())
        _, name = next(iter(fitting.values()))
        what = remedy.format("that folder")
        if len(fitting) > 1:
            what = f"{remedy.format('the right one')}, or include the folders in the names"
        where = f"are not in {folder} but in {others}"
        raise InputError(f"{source}: its images, such as {name}, {where}; {what}")


def _below(folder: Path, paths: Sequence[Path]) -> list[list[Path]]:
    """For each path: all files in the folder tree whose path ends like it, ignoring case."""
    below: dict[str, list[Path]] = {}
    with suppress(InputError, OSError):  # folders without permission, or a disk that is away
        for file in files_below(folder):
            below.setdefault(without_case(file.name), []).append(file)

    def ends_as(file: Path, path: Path) -> bool:
        parts = path.relative_to(folder).parts
        return [*map(without_case, file.parts[-len(parts) :])] == [*map(without_case, parts)]

    return [
        [file for file in below.get(without_case(path.name), []) if ends_as(file, path)] for path in paths
    ]
