"""Pascal VOC folders (Annotations, ImageSets/Main, JPEGImages) -> DetectionSet."""

import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from data.annotations import (
    AnnotatedImage,
    Annotation,
    looks_like,
    pack_set,
    require_folder,
    say_left_out,
    say_rotated,
    size_of_file,
)
from data.categories import refuse_nearly_the_same
from data.faults import DataFault, list_or_warn, raise_or_collect
from data.images import IMAGE_SUFFIXES, MOST_PIXELS, files_below
from data.lookup import ImageFinder, as_spelt, inside, is_there
from data.progress import reading
from data.sample import DetectionSet
from data.texts import lines_of
from data.voc_pictures import Pictures
from errors import InputError, reason_of, some_of

_DIFFICULT = ("1", "true", "yes")


@dataclass(frozen=True)
class VocFolders:
    """The folders of a VOC set."""

    root: Path
    annotations: Path
    images: Path

    @property
    def lists(self) -> Path:
        return self.root / "ImageSets" / "Main"


def voc_folders(root: Path) -> VocFolders:
    """The folders of a set.

    These are Annotations, and JPEGImages or images (Label Studio); or one folder with all XML files and
    images, as labelImg and Roboflow write them.

    Raises:
        InputError: there are no such folders.
    """
    require_folder(root, "data.root (voc)", "a VOC set is a folder with Annotations and JPEGImages")
    annotations = root / "Annotations"
    if any(root.glob("[!.]*.xml")) and not any(annotations.glob("**/*.xml")):
        annotations = root
    if not annotations.is_dir():  # the search below is slow
        folders = {path.parent for path in root.glob("[!.]*/[!.]*.xml")}
        parts = sorted(folder for folder in folders if has_images(folder))
        named = some_of([part.name for part in parts], 3)
        of_parts = (
            f"; if the set has a folder for each split, name the folders in data.splits: here {named}"
            if parts
            else ""
        )
        other = of_parts or looks_like(root) or "; is it in another data.format?"
        require_folder(annotations, "data.root (voc)", f"a VOC set has its XML files in it{other}")
    images = next((place for place in (root / "JPEGImages", root / "images") if place.is_dir()), None)
    if images is None and has_images(annotations):
        images = annotations
    require_folder(images or root / "JPEGImages", "data.root (voc)", "a VOC set has its images in it")
    return VocFolders(root, annotations, images or root / "JPEGImages")


def has_images(folder: Path) -> bool:
    return any(path.suffix.lower() in IMAGE_SUFFIXES for path in folder.iterdir())


def folders_of_split(root: Path, split: str) -> tuple[VocFolders, str | None]:
    """The folders of a split, and the name of its list; None if they hold only this split (Roboflow)."""
    alone = root / split
    if alone.is_dir() and any(alone.glob("[!.]*.xml")):
        return VocFolders(alone, alone, alone), None
    if alone.is_dir() and not (alone / "ImageSets").is_dir():
        if (alone / "Annotations").is_dir():
            return voc_folders(alone), None
        if xml_files(alone):
            return VocFolders(alone, alone, alone), None
    folder, _, name = split.rpartition("/")
    return voc_folders(root / folder), name


def load_voc(
    root: Path,
    split: str,
    classes: tuple[str, ...] | None = None,
    faults: list[DataFault] | None = None,
) -> DetectionSet:
    """Read one split. Boxes are taken as (xmin, ymin, xmax, ymax), without a one-pixel offset.

    Difficult objects are marked `ignore`. Images are numbered from 1 in the order of the list.

    Args:
        root: folder with the lists in ImageSets/Main, and what `voc_folders` finds.
        split: name of a list in ImageSets/Main; "VOC2007/trainval" is the list trainval below root/VOC2007.
            Or a folder with the images and XML files of a split, as written by Roboflow.
        classes: names to use, in this order; objects of other classes are left out. By default all names
            found in root/Annotations, sorted.
        faults: collects all faults; if None, the first one is raised.

    Raises:
        InputError: anything is wrong with the folder, its files or boxes.
    """
    folders, name = folders_of_split(root, split)
    if name is None:
        names = stems_of_xml(folders.annotations)
        if folders.root == root:  # "." may contain the folders of other splits
            names = [name for name in names if "/" not in name]
        say_what_is_in_capitals(folders, faults)
    else:
        remedy = (
            "a VOC set has the lists of its splits in it, such as train.txt, with the name of an image on "
            "each line; python -m data.split makes them"
        )
        require_folder(folders.lists, "data.root (voc)", remedy)
        names = _read_list(folders.lists / f"{name}.txt", folders.annotations)
    return load_voc_images(folders, names, f"split {split}", classes, faults, whole=name is None)


def load_voc_images(
    folders: VocFolders,
    names: Sequence[str],
    source: str,
    classes: tuple[str, ...] | None = None,
    faults: list[DataFault] | None = None,
    whole: bool = False,
) -> DetectionSet:
    """Like `load_voc`, for images given by the names of their XML files without the suffix.

    Args:
        source: what messages call these images.
        whole: `names` lists all XML files; images without one are reported.
    """
    pictures, finder = Pictures(folders.images, folders.annotations, names), ImageFinder(folders.images)
    annotations = ImageFinder(folders.annotations)
    objects = _Objects(classes)
    images, parsed = [], set()
    for number, stem in enumerate(reading(names, "image", source), start=1):
        try:
            inside(folders.annotations, f"{stem}.xml", source)
            xml = annotations.find(f"{stem}.xml", source)
            stem = xml.relative_to(folders.annotations).with_suffix("").as_posix()
            tree = _read_xml(xml, _of_ending(stem))
            parsed.add(xml)
            file_name = pictures.of(xml, stem, tree, finder)
            image = AnnotatedImage(number, file_name, _size(tree, xml, file_name))
        except DataFault as fault:
            raise_or_collect(fault, faults)
            continue
        images.append(image)
        for position, node in enumerate(tree.iter("object"), start=1):
            where = f"object {position} in {xml}"
            try:
                objects.read(node, where, position, image)
            except DataFault as fault:
                fault.image, fault.image_id, fault.annotation = file_name, number, position
                raise_or_collect(fault, faults)
    finder.warn(source)
    annotations.warn(source)
    pictures.warn(source)
    if whole:
        pictures.say_what_has_no_xml({image.path for image in images}, faults)
    if classes is not None:
        refuse_nearly_the_same(classes, objects.met, source)
    say_left_out(objects.left_out, source)
    say_rotated(objects.rotated, faults)
    if classes is None:
        classes = voc_classes(folders.annotations, faults, objects.labels, parsed)
        final = [classes.index(name) for name in objects.labels]
        for item in (item for image in images for item in image.objects):
            item.label = final[item.label]
    ids = tuple(range(1, len(classes) + 1))
    return pack_set(images, classes, ids, source, faults=faults, renumbered=True)


class _Objects:
    """Reads the objects of XML files, and collects what is reported of all of them at the end.

    Args:
        classes: those to use; None for all.

    Attributes:
        labels: by class name; in order of occurrence if all classes are used, until all names are known: the
            XML trees of a large set would not fit in memory.
        met: class names found.
        left_out: number of objects by class, of classes that are not used.
        rotated: places of rotated boxes.
    """

    def __init__(self, classes: tuple[str, ...] | None) -> None:
        self.labels = {name: label for label, name in enumerate(classes or ())}
        self.met: set[str] = set()
        self.left_out: Counter[str] = Counter()
        self.rotated: list[str] = []
        self._takes_all = classes is None

    def read(self, node: ET.Element, where: str, position: int, image: AnnotatedImage) -> None:
        """Add an object to its image. Raises DataFault: it is malformed."""
        name = _text(node, "name", where)
        self.met.add(name)
        if not self._takes_all and name not in self.labels:
            self.left_out[name] += 1
            return
        label = self.labels.setdefault(name, len(self.labels))
        image.objects.append(_object(node, where, label, position))
        if _is_rotated(node):
            self.rotated.append(where)


def voc_classes(
    annotations: Path,
    faults: list[DataFault] | None = None,
    known: Iterable[str] = (),
    parsed: Container[Path] = (),
) -> tuple[str, ...]:
    """All class names in the XML files of a folder, sorted.

    Args:
        faults: as for `load_voc`.
        known: class names in the files of `parsed`.
        parsed: files to skip.
    """
    found = set(known)
    for path in xml_files(annotations):
        if path in parsed:
            continue
        try:
            nodes = list(_read_xml(path).iter("object"))
            for position, node in enumerate(nodes, start=1):
                found.add(_text(node, "name", f"object {position} in {path}"))
        except DataFault as fault:
            raise_or_collect(fault, faults)
    return tuple(sorted(found))


def xml_files(annotations: Path) -> list[Path]:
    """The .xml files in a folder tree."""
    return [path for path in files_below(annotations) if path.suffix == ".xml" and path.is_file()]


def stems_of_xml(annotations: Path) -> list[str]:
    """The names of all XML files without the suffix: "a", "cam1/b"."""
    return [path.relative_to(annotations).with_suffix("").as_posix() for path in xml_files(annotations)]


def in_capitals(annotations: Path) -> list[Path]:
    """The files with suffix .XML, .Xml and the like."""
    return [p for p in files_below(annotations) if p.suffix != ".xml" and p.suffix.lower() == ".xml"]


def say_what_is_in_capitals(folders: VocFolders, faults: list[DataFault] | None = None) -> None:
    """Report XML files with an upper-case suffix; faults: as for `load_voc`."""
    if capitals := in_capitals(folders.annotations):
        found = [
            DataFault(
                "annotation-not-read", f"{path} is left out; rename files that end in .XML to .xml", path
            )
            for path in capitals
        ]
        more = f" and {len(capitals) - 1} more" * (len(capitals) > 1)
        warning = f"left out {capitals[0]}{more}; rename files that end in .XML to .xml"
        list_or_warn(found, faults, warning)


def _read_list(path: Path, annotations: Path) -> list[str]:
    try:
        lines = lines_of(path)
    except FileNotFoundError:
        there = ", ".join(sorted(p.stem for p in path.parent.glob("*.txt"))) or "none"
        raise InputError(
            f"split list {path} does not exist; the lists there are: {there} (set data.splits)"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"split list {path} cannot be read: {reason_of(error)}") from None
    return list(dict.fromkeys(_stem(line, annotations) for _, line in lines))


def _stem(line: str, annotations: Path) -> str:
    """The image name in a line, without the second column of lists like aeroplane_train.txt."""
    name, *rest = line.rsplit(maxsplit=1)
    flag = rest in (["1"], ["0"], ["-1"]) and not (annotations / f"{line}.xml").is_file()
    name = as_spelt(annotations, f"{name if flag else line}.xml").removesuffix(".xml")
    if not _has_ending(name):
        return name
    # Some tools write image file names instead, with or without their folder.
    tries = [name, *(str(path.with_suffix("")) for path in (Path(name), Path(Path(name).name)))]
    return next((n for n in tries if is_there(annotations / f"{n}.xml")), name)


def _has_ending(name: str) -> bool:
    """Whether the name has the suffix of an image or XML file."""
    return Path(name).suffix.lower() in IMAGE_SUFFIXES | {".xml"}


def _of_ending(stem: str) -> str:
    return "; the lists of a VOC set name images without their extension" if _has_ending(stem) else ""


def _read_xml(path: Path, hint: str = "") -> ET.Element:
    """The root of an XML file; `hint` is the remedy if the file does not exist."""
    try:
        root = ET.parse(path).getroot()
    except FileNotFoundError:
        message = f"annotation file {path} does not exist{hint}; add one, or remove its name from the list"
        raise DataFault("annotation-unreadable", message) from None
    except OSError as error:
        raise DataFault("annotation-unreadable", f"{path} cannot be read: {error.strerror}") from None
    except (ET.ParseError, ValueError, LookupError) as error:  # LookupError: unknown encoding
        empty = path.is_file() and path.stat().st_size == 0
        message = f"{path} is empty" if empty else f"{path} is not valid XML: {error}"
        raise DataFault("annotation-unreadable", f"{message}; recreate the file, or remove it") from None
    if root.tag.startswith("{"):  # otherwise it would be read as an image without objects
        raise DataFault(
            "annotation-unreadable",
            f"{path}: its elements are in an XML namespace; remove xmlns from <annotation>",
        )
    return root


def _object(node: ET.Element, where: str, label: int, position: int) -> Annotation:
    x0, y0, x1, y1 = (_number(node, f"bndbox/{side}", where) for side in ("xmin", "ymin", "xmax", "ymax"))
    difficult = (node.findtext("difficult") or "").strip().lower() in _DIFFICULT
    return Annotation(where, (x0, y0, x1, y1), label, ignore=difficult, number=position)


def _is_rotated(node: ET.Element) -> bool:
    """Whether CVAT marks the box as rotated: it writes the box before rotation, and the angle in degrees."""
    for attribute in node.iter("attribute"):
        if (attribute.findtext("name") or "").strip() == "rotation":
            with suppress(ValueError):
                return float(attribute.findtext("value") or 0) % 180 != 0
    return False


def _size(tree: ET.Element, xml: Path, image: Path) -> tuple[int, int]:
    """Height and width from the XML; from the image if missing, 0 or None, as some tools write."""
    said = [(tree.findtext(f"size/{side}") or "").strip() for side in ("height", "width")]
    if any(text in ("", "None") or not text.strip("0.") for text in said):
        return size_of_file(image)
    return _side(tree, "height", xml), _side(tree, "width", xml)


def _side(tree: ET.Element, side: str, xml: Path) -> int:
    value = _number(tree, f"size/{side}", str(xml))
    if not 1 <= value <= MOST_PIXELS:
        message = f"{xml}: size/{side} is {value:g}, not a number of pixels"
        raise DataFault("record-malformed", message)
    return int(value)


def _text(node: ET.Element, tag: str, where: str) -> str:
    text = node.findtext(tag)
    if text is None or not text.strip():
        raise DataFault("record-malformed", f"{where} has no <{tag}>")
    return text.strip()


def _number(node: ET.Element, tag: str, where: str) -> float:
    text = _text(node, tag, where)
    try:
        return float(text)
    except ValueError:
        raise DataFault("record-malformed", f"{where}: <{tag}> is not a number: '{text}'") from None
