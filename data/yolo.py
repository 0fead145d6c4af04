"""YOLO folders (data.yaml, images/, labels/) as Ultralytics reads them -> DetectionSet."""

import math
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from data.annotations import AnnotatedImage, Annotation, pack_set, say_left_out
from data.categories import BY_NAME
from data.faults import DataFault, list_or_warn, raise_or_collect
from data.images import IMAGE_SUFFIXES, PICTURE_SUFFIXES, files_below, read_size
from data.keypoints import KeypointsSuspected
from data.lookup import entries_of, without_case
from data.progress import reading
from data.sample import DetectionSet
from data.texts import read_text
from data.yolo_index import Index, LabelFiles, images_of, index_file, label_path, place_of, read_index
from errors import InputError, reason_of

_TOLERANCE = 0.01  # beyond [0, 1], as in Ultralytics; larger values must be pixels


def load_yolo(
    root: Path,
    split: str,
    classes: tuple[str, ...] | None = None,
    faults: list[DataFault] | None = None,
) -> DetectionSet:
    """Read one split. Class indices become category ids; images are numbered from 1, sorted by path.

    Args:
        root: the folder with data.yaml, or such a file under another name.
        split: a key of data.yaml whose value is a folder of images (searched recursively), a .txt list of
            images, or a list of these. The labels of .../images/a.jpg are in .../labels/a.txt; an image
            without label file has no boxes.
        classes: names to use, in this order; objects of other classes are left out. By default all.
        faults: collects all faults; if None, the first one is raised.

    Raises:
        InputError: anything is wrong with the folder, its files or boxes.
    """
    index = read_index(index_file(root))
    if split not in index.splits:
        raise _no_split(index, split, root)
    classes = index.names if classes is None else classes
    unknown = [name for name in classes if name not in index.names]
    if unknown:
        raise InputError(
            f"{index.file} has no class '{unknown[0]}'; its classes are {', '.join(index.names)} {BY_NAME}"
        )
    category_ids = tuple(index.names.index(name) for name in classes)
    labels = {category: label for label, category in enumerate(category_ids)}
    finder = LabelFiles()
    paths, not_read = images_of(index, split, finder, faults)
    label_files = [finder.of(path) for path in paths]
    images, labelled = [], _Labels(index, labels, faults)
    pairs = list(zip(paths, label_files, strict=True))
    for number, (path, label_file) in enumerate(reading(pairs, "image", f"split {split}"), start=1):
        try:
            size = read_size(path)
        except InputError as error:
            raise_or_collect(DataFault("image-unreadable", str(error), path, number), faults)
            continue
        image = AnnotatedImage(number, path, size)
        images.append(image)
        labelled.read(label_file, image)
    _say_keypoints(labelled.keypoints, split, index, faults)
    _labels_of_several(split, paths, label_files, faults)
    finder.warn(f"split {split}")
    _no_labels(split, paths, label_files, faults)
    _labels_without_images(index, split, paths, [*label_files, *map(finder.of, not_read)], faults)
    say_left_out(labelled.left_out, f"split {split}")
    _say_twice(split, labelled.twice, faults)
    source = f"split {split}"
    return pack_set(images, classes, category_ids, source, sizes_checked=True, faults=faults, renumbered=True)


class _Labels:
    """Reads label files, and collects what is reported at the end for all of them.

    Args:
        index: the data.yaml of the set.
        labels: category -> label of the used classes.
        faults: as for `load_yolo`.
    """

    def __init__(self, index: Index, labels: Mapping[int, int], faults: list[DataFault] | None) -> None:
        self._index, self._labels, self._faults = index, labels, faults
        self.left_out: Counter[str] = Counter()  # number of objects by class
        self.twice: list[DataFault] = []
        self.keypoints = KeypointsSuspected()

    def read(self, file: Path, image: AnnotatedImage) -> None:
        """Add the objects of a label file to its image."""
        height, width = image.size
        seen = set()
        for line, fields in _label_lines(file, image, self._faults):
            where = f"{file}:{line}"
            try:
                category, (x0, y0, x1, y1) = _parse(fields, self._index, where)
            except DataFault as fault:
                fault.image, fault.image_id, fault.annotation = image.path, image.id, line
                raise_or_collect(fault, self._faults)
                continue
            if len(fields) > 5 and not self._index.keypoints and not self.keypoints.ruled_out:
                self.keypoints.look([float(field) for field in fields[1:]])
            if (category, x0, y0, x1, y1) in seen:
                message = f"{where}: an earlier line has the same class and box. Remove this one."
                self.twice.append(DataFault("box-duplicated", message, image.path, image.id, line))
                continue
            seen.add((category, x0, y0, x1, y1))
            if category not in self._labels:
                self.left_out[self._index.names[category]] += 1
            else:
                box = (x0 * width, y0 * height, x1 * width, y1 * height)
                image.objects.append(Annotation(where, box, self._labels[category], number=line))


def _no_split(index: Index, split: str, root: Path) -> InputError:
    # Other keys have string values too, such as a licence.
    there = [
        name
        for name, places in index.splits.items()
        if any(place_of(index, p) or _is_path(p) for p in places)
    ]
    remedy = "set data.splits"
    if there == ["train"]:
        remedy += f", or divide the set: python -m data.split {shlex.quote(str(root))}"
    return InputError(
        f"{index.file} has no split '{split}'; its splits are: {', '.join(there) or 'none'} ({remedy})"
    )


def _is_path(text: str) -> bool:
    return text.endswith(".txt") or ("/" in text and "://" not in text)


def _no_labels(
    split: str, paths: list[Path], label_files: list[Path], faults: list[DataFault] | None
) -> None:
    if any(file.is_file() for file in label_files):
        _labels_beside(split, paths, label_files, faults)
        return
    message = f"split {split} has no labels; the labels of {paths[0]} are expected in {label_files[0]}"
    beside = next((file for path in paths if (file := path.with_suffix(".txt")).is_file()), None)
    if beside is not None:
        message += f" ({beside} is not used, because a folder above it is called images)"
    elif (other := _labels_by_another_name(label_files[0])) is not None:
        message += f"; {other} is not used: rename it to labels"
    list_or_warn([DataFault("labels-missing", message, paths[0])], faults, message)


def _labels_by_another_name(label_file: Path) -> Path | None:
    """A folder named Labels or label instead of labels; None if there is none."""
    above = next((folder.parent for folder in label_file.parents if folder.name == "labels"), None)
    others = [] if above is None else sorted(entries_of(above))
    return next((path for path in others if path.name.lower() in ("labels", "label") and path.is_dir()), None)


def _labels_beside(
    split: str, paths: list[Path], label_files: list[Path], faults: list[DataFault] | None
) -> None:
    """Report images whose label file is beside the image, where it is not looked for."""
    lost = [
        (path, path.with_suffix(".txt"))
        for path, file in zip(paths, label_files, strict=True)
        if file.parent != path.parent and not file.is_file() and path.with_suffix(".txt").is_file()
    ]
    why = "is not used, because a folder above it is called images"
    found = [DataFault("label-beside", f"{file} {why}", path) for path, file in lost]
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    where = label_path(lost[0][0]).parent if lost else ""
    list_or_warn(found, faults, f"split {split}: {found[0]}{more}; move it to {where}" if found else "")


def _say_twice(split: str, twice: list[DataFault], faults: list[DataFault] | None) -> None:
    lines = "1 line that repeats a box" if len(twice) == 1 else f"{len(twice)} lines that repeat a box"
    names = [fault.image.with_suffix(".txt").name for fault in twice if fault.image]
    more = ", ..." if len(set(names)) > 1 else ""
    list_or_warn(twice, faults, f"split {split}: dropped {lines} ({''.join(names[:1])}{more})")


def _say_keypoints(
    found: KeypointsSuspected, split: str, index: Index, faults: list[DataFault] | None
) -> None:
    if found.shape is None:
        return
    points, numbers = found.shape
    message = (
        f"split {split}: what is read as polygons looks like boxes with {points} keypoints; if so, add "
        f"'kpt_shape: [{points}, {numbers}]' to {index.file}"
    )
    list_or_warn([DataFault("keypoints-as-polygons", message)], faults, message)


def _labels_of_several(
    split: str, paths: list[Path], label_files: list[Path], faults: list[DataFault] | None
) -> None:
    """Report images that share a label file, as a.jpg and a.png do: all get the same boxes."""
    first: dict[Path, Path] = {}
    shared = []
    for path, label_file in zip(paths, label_files, strict=True):
        one = first.setdefault(label_file, path)
        if one.name != path.name and label_file.is_file():
            message = f"{label_file} is the label file of both {one} and {path.name}"
            shared.append(DataFault("label-shared", message, path))
    if shared:
        more = f", and {len(shared) - 1} more" if len(shared) > 1 else ""
        warning = f"split {split}: {shared[0]}{more}: the boxes are in both images; rename one"
        list_or_warn(shared, faults, warning)


def _labels_without_images(
    index: Index, split: str, paths: list[Path], label_files: list[Path], faults: list[DataFault] | None
) -> None:
    """Report label files in the split's folders without image: it is lost, or its format is not read.

    For a list, the folders are those of its images; other images there may belong to other lists.
    """
    known = {_plain(path) for path in label_files}
    places = [place_of(index, place) for place in index.splits[split]]
    folders = [where for where in places if where is not None and where.is_dir()]
    if len(folders) < len(places):
        listed = sorted({path.parent for path in paths} - set(folders))
        pictures = (
            p for folder in listed for p in entries_of(folder) if p.suffix.lower() in PICTURE_SUFFIXES
        )
        known |= {_plain(label_path(path)) for path in pictures}
        folders += listed
    there: dict[str, Path] = {}
    for where in folders:
        folder = label_path(where / "any.jpg").parent
        if folder != where and folder.is_dir():  # beside images there may be any kind of text file
            inside = files_below(folder) if where in places else entries_of(folder)
            texts = [path for path in inside if path.suffix.lower() == ".txt" and path.name != "classes.txt"]
            there |= {_plain(path): path for path in texts}
    alone = [there[name] for name in sorted(there.keys() - known)]
    if alone:
        kinds = ", ".join(sorted(IMAGE_SUFFIXES))
        found = [DataFault("label-without-image", f"{path} has no image ({kinds})", path) for path in alone]
        files = "1 label file has" if len(alone) == 1 else f"{len(alone)} label files have"
        more = ", ..." if len(alone) > 1 else ""
        list_or_warn(
            found, faults, f"split {split}: {files} no image; these boxes are left out ({alone[0]}{more})"
        )


def _plain(path: Path) -> str:
    return without_case(str(path.absolute()))


def _label_lines(
    file: Path, image: AnnotatedImage, faults: list[DataFault] | None
) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields of each non-blank line."""
    try:
        text = read_text(file)
    except FileNotFoundError:
        return
    except (OSError, UnicodeDecodeError) as error:
        message = f"label file {file} cannot be read: {reason_of(error)}"
        raise_or_collect(DataFault("annotation-unreadable", message, image.path, image.id), faults)
        return
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield number, line.split()


def _why(count: int, index: Index) -> str:
    """Likely cause of a wrong number of fields, as the end of a sentence; "" if unknown."""
    if count == 6 and not index.keypoints:
        return "; the sixth looks like a detection score: leave it out"
    if count > 6 and count % 3 == 2 and not index.keypoints:
        points = (count - 5) // 3
        return f"; if {points} keypoints follow each box, add 'kpt_shape: [{points}, 3]' to {index.file}"
    return ""


def _why_no_number(field: str, index: Index) -> str:
    """Likely cause of a field that is not a number, as the end of a sentence; "" if unknown."""
    if "," in field:
        return "; separate numbers with spaces, and write decimals with a point"
    number = next((number for number, name in enumerate(index.names) if name == field), None)
    return "" if number is None else f"; write the number of the class, {number}"


def _parse(fields: list[str], index: Index, where: str) -> tuple[int, tuple[float, float, float, float]]:
    """Class index and xyxy box, relative to the image size."""
    numbers = []
    for field in fields:
        try:
            numbers.append(float(field))
        except ValueError:
            why = _why_no_number(field, index)
            raise DataFault("record-malformed", f"{where}: '{field}' is not a number{why}") from None
    count, classes = len(numbers), len(index.names)
    polygon = count >= 7 and count % 2 == 1 and not index.keypoints
    if not polygon and count != 5 + index.keypoints:
        wanted = (
            f"class, cx, cy, w, h and {index.keypoints} numbers of kpt_shape"
            if index.keypoints
            else "class, cx, cy, w, h, or class and the x, y of at least three points"
        )
        raise DataFault(
            "record-malformed", f"{where}: {count} numbers; expected {wanted}{_why(count, index)}"
        )
    category, coordinates = numbers[0], numbers[1:] if polygon else numbers[1:5]
    if not (0 <= category < classes and category.is_integer()):  # also refuses NaN
        raise DataFault(
            "category-unlisted",
            f"{where}: class {fields[0]} is not one of 0 to {classes - 1}, the classes of {index.file}",
        )
    for field, value in zip(fields[1:], coordinates, strict=False):
        if not -_TOLERANCE <= value <= 1 + _TOLERANCE:  # also refuses NaN
            raise DataFault(
                "box-not-relative" if math.isfinite(value) else "box-not-finite",
                f"{where}: {field} lies outside [0, 1]; coordinates are fractions of the image's width and "
                "height" + f" (keypoints need a kpt_shape in {index.file})" * (polygon and value == 2),
            )
    if polygon:
        xs, ys = coordinates[::2], coordinates[1::2]
        return int(category), (min(xs), min(ys), max(xs), max(ys))
    cx, cy, w, h = coordinates
    return int(category), (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
