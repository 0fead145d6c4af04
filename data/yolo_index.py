"""data.yaml of a YOLO set: its classes, and the images of each split, on whichever machine it was written."""

import json
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from data.annotations import looks_like
from data.faults import DataFault, list_or_warn, lists_all, raise_or_collect
from data.images import IMAGE_SUFFIXES, OTHER_SUFFIXES, files_below, one_for_each_file
from data.lookup import (
    ImageFinder,
    Listing,
    NameTaken,
    as_spelt,
    ends_of,
    is_file,
    is_there,
    leads_out,
)
from data.texts import lines_of, read_text
from errors import InputError, reason_of

log = logging.getLogger(__name__)

_DARKNETS = "data/"  # Darknet's lists begin so, relative to its own folder; the set is in that folder


@dataclass(frozen=True)
class Index:
    """The content of data.yaml."""

    file: Path
    root: Path  # folder that the splits are relative to
    splits: dict[str, list[str]]
    names: tuple[str, ...]
    keypoints: int  # numbers after each box, in pose sets


def index_file(root: Path) -> Path:
    """data.yaml in a folder; a file is returned as it is, whatever its name."""
    return root if root.is_file() else root / "data.yaml"


def read_index(file: Path) -> Index:
    """Parse an index. Raises InputError if it is missing or malformed."""
    try:
        text = read_text(file)
        content = yaml.safe_load(text)
    except FileNotFoundError:
        raise InputError(
            f"data.root: {file} does not exist; a YOLO set must have "
            f"one{_how_to_make(file) or looks_like(file.parent)}"
        ) from None
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise InputError(f"{file} must be a mapping (with train, val, names), not a {type(content).__name__}")
    # All values as text: the class names "no" and 08 would not be.
    names = _names(yaml.load(text, yaml.BaseLoader).get("names"), file)
    if "nc" in content and not _is_number(content["nc"], len(names)):
        raise InputError(f"{file}: nc is {content['nc']!r}, but names has {len(names)}; correct one of them")
    known = ("path", "names", "nc", "download", "yaml_file", "channels")
    splits = {}
    for key, value in content.items():
        places = [value] if isinstance(value, str) else value
        if key not in known and isinstance(places, list) and all(isinstance(p, str) and p for p in places):
            splits[str(key)] = places
    shape = content.get("kpt_shape")
    if shape is not None and not (isinstance(shape, list) and all(type(n) is int and n > 0 for n in shape)):
        raise InputError(f"{file}: kpt_shape must be a list of whole numbers, got {shape!r}")
    base = file.parent / str(content.get("path") or "")
    # `path` is often that of another machine, or relative to a folder in Ultralytics' settings.
    return Index(
        file, base if base.is_dir() else file.parent, splits, names, math.prod(shape) if shape else 0
    )


def _is_number(value: Any, number: int) -> bool:
    try:
        return float(value) == number
    except (TypeError, ValueError):
        return False


def _how_to_make(file: Path) -> str:
    """How to get a data.yaml from an index of another name, or from the class list of an annotation tool."""
    root = file.parent
    others = sorted([*root.glob("*.yaml"), *root.glob("*.yml")])
    if len(others) == 1:
        return f"; if it is {others[0].name}, set data.root={others[0]}"
    listed = next((p for p in (root / "classes.txt", root / "obj.names") if p.is_file()), None)
    if listed is None:
        return ""
    names = [line.strip() for line in read_text(listed, "replace").splitlines() if line.strip()]
    images = next((name for name in ("images", "obj_train_data") if (root / name).is_dir()), ".")
    return f", with the two lines 'train: {images}' and 'names: {json.dumps(names)}' (of {listed.name})"


def _names(given: Any, file: Path) -> tuple[str, ...]:
    if isinstance(given, dict) and given and set(given) == set(map(str, range(len(given)))):
        given = [given[str(i)] for i in range(len(given))]
    if not isinstance(given, list) or not given or not all(isinstance(n, str) and n for n in given):
        raise InputError(f"{file}: names must list the classes, or map 0, 1, ... to them, got {given!r}")
    names = tuple(given)
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{file}: the class name '{name}' is listed twice")
    return names


def images_of(
    index: Index, split: str, labels: "LabelFiles", faults: list[DataFault] | None
) -> tuple[list[Path], list[Path]]:
    """The images of a split, sorted, each once; and the pictures in its folders whose format is not read.

    Raises:
        InputError: a place is missing, or there is no image.
    """
    found: list[Path] = []
    others: list[Path] = []
    for place in index.splits[split]:
        where = place_of(index, place)
        if where is None:
            hint = "; patterns are not supported: name a folder, or a .txt list" if "*" in place else ""
            how = "relative to" if leads_out(place) else "below"
            seen_from = "" if Path(place).is_absolute() else f" {how} {index.root}"
            raise InputError(f"{index.file}: '{split}: {place}' does not exist{seen_from}{hint}")
        own = index.root / place.removeprefix("../")
        if where != own and place.startswith("../") and is_there(own):
            log.warning("%s: '%s: %s' is %s, not %s", index.file, split, place, where, own)
        if _place_as_written(index, place) is None:
            log.warning("%s: '%s: %s' does not exist; %s is used instead", index.file, split, place, where)
        if where.is_dir():
            there = files_below(where)
            found += [path for path in there if path.suffix.lower() in IMAGE_SUFFIXES]
            others += [path for path in there if path.suffix.lower() in OTHER_SUFFIXES]
        elif where.suffix.lower() == ".txt":
            found += _listed(where, index, faults)
        else:
            raise InputError(
                f"{index.file}: '{split}: {place}' is neither a folder nor a .txt list of images"
            )
    _say_what_is_not_read(others, split, faults)
    if not found and faults and not lists_all(faults):
        raise faults[0]
    if not found:
        raise InputError(f"{index.file}: '{split}' contains no images ({', '.join(index.splits[split])})")
    chosen: dict[tuple[str, str], Path] = {}
    for key, path in zip(one_for_each_file(found), found, strict=True):
        # Labels are looked up by the path as written: of two paths to an image, only one may have labels.
        if key not in chosen or (not labels.of(chosen[key]).is_file() and labels.of(path).is_file()):
            chosen[key] = path
    return sorted(chosen.values()), others


class LabelFiles:
    """Finds the label files of images, ignoring case (.TXT too) and Unicode form of the name."""

    def __init__(self) -> None:
        self._listing = Listing()
        self._respelt: dict[Path, Path] = {}

    def of(self, image: Path) -> Path:
        """The label file of an image, or where it would be."""
        path = label_path(image)
        if path.is_file():
            return path
        alike = [entry for entry in self._listing.alike(path) if is_file(entry)]
        if len(alike) != 1:
            return path
        if alike[0].stem != path.stem:
            self._respelt[image] = alike[0]
        return alike[0]

    def warn(self, source: str) -> None:
        """Warn about names that were resolved to other files."""
        if self._respelt:
            image, file = next(iter(self._respelt.items()))
            log.warning(
                "%s: names of label files are spelt differently on disk (%d, such as %s for %s)",
                source, len(self._respelt), file.name, image.name,
            )  # fmt: skip


def label_path(image: Path) -> Path:
    """Replace the last folder `images` of the path by `labels`; without one, labels are beside the image."""
    parts = list(image.absolute().parts)
    at = next((i for i in range(len(parts) - 2, 0, -1) if parts[i] == "images"), None)
    if at is None:
        return image.with_suffix(".txt")
    # Only the tail is replaced, so that messages show the path as the user wrote it.
    tail = len(parts) - at
    if tail > len(image.parts):
        return Path(*parts[:at], "labels", *parts[at + 1 :]).with_suffix(".txt")
    return Path(*image.parts[:-tail], "labels", *parts[at + 1 :]).with_suffix(".txt")


def _say_what_is_not_read(pictures: list[Path], split: str, faults: list[DataFault] | None) -> None:
    """Report pictures in a folder of images whose format is not read."""
    if not pictures:
        return
    how = "convert it to JPEG or PNG"
    found = [
        DataFault(
            "image-not-read",
            f"{path} is left out: {path.suffix} files are not read from a folder; {how}",
            path,
        )
        for path in pictures
    ]
    more = f" and {len(pictures) - 1} more" * (len(pictures) > 1)
    warning = f"split {split}: left out {pictures[0]}{more}, which are not of a supported kind; {how}"
    list_or_warn(found, faults, warning)


def place_of(index: Index, place: str) -> Path | None:
    """The folder or list that an entry of a split refers to; None if there is none.

    For a path of another machine: its longest end that exists here, unless another entry resolves to the
    same.
    """
    there = _place_as_written(index, place)
    if there is not None or not leads_out(place):
        return there
    others = {name for places in index.splits.values() for name in places} - {place}
    here = _place_by_its_end(index, place)
    taken = (_place_as_written(index, other) or _place_by_its_end(index, other) for other in others)
    return None if here in taken else here


def _place_as_written(index: Index, place: str) -> Path | None:
    place = as_spelt(index.root, place)
    # Roboflow writes "../train/images" for a folder beside data.yaml.
    tries = [index.root / place, index.root / place.removeprefix("../"), index.file.parent / place]
    return next(filter(is_there, tries), None)


def _place_by_its_end(index: Index, place: str) -> Path | None:
    return next(filter(is_there, (index.file.parent.joinpath(*end) for end in ends_of(place))), None)


def _listed(file: Path, index: Index, faults: list[DataFault] | None) -> Iterator[Path]:
    try:
        lines = lines_of(file)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"list of images {file} cannot be read: {reason_of(error)}") from None
    finder = ImageFinder(index.root)
    missing: list[tuple[str, Path]] = []  # (what is wrong, expected path)
    for number, line in lines:
        darknets = line.startswith(_DARKNETS) and not is_there(index.root / _DARKNETS)
        name = line.removeprefix(_DARKNETS) if darknets else line
        if not name:
            continue
        tries = [folder / as_spelt(folder, name) for folder in (file.parent, index.root)]
        path = next(filter(is_file, tries), None)
        if path is None:
            is_folder = any(map(Path.is_dir, filter(is_there, tries)))
            what = "is a folder; name folders in data.yaml instead" if is_folder else "does not exist"
            message = f"{file}:{number}: image {name} {what}"
            try:
                path = finder.find(name, f"{file}:{number}")
            except NameTaken as fault:
                message = str(fault)
            except DataFault:
                pass
            if path is None or not is_file(path):
                missing.append((message, tries[0]))
                continue
        yield path
    finder.warn(str(file))
    more = f" (and {len(missing) - 1} more images)" if len(missing) > 1 and faults is None else ""
    for message, path in missing:
        text = f"{message}{more}; put the file there, or remove its line"
        raise_or_collect(DataFault("image-missing", text, path), faults)
