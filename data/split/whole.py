"""An undivided data set, and the files that list its parts: COCO, Pascal VOC, YOLO."""

import json
import logging
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.annotations import of_cvat
from data.coco import load_instances, of_roboflow, read_instances, tool_of
from data.faults import DataFault, Raised
from data.lookup import ImageFinder, is_file
from data.sample import DetectionSet
from data.split.division import FAULTS_SHOWN
from data.text_ids import as_listed, numbers_of
from data.texts import lines_of
from data.voc import (
    has_images,
    in_capitals,
    load_voc_images,
    say_what_is_in_capitals,
    stems_of_xml,
    voc_folders,
)
from data.yolo import load_yolo
from data.yolo_index import index_file, read_index
from errors import InputError, some_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WholeSet:
    """An undivided set, and how its parts are written.

    Attributes:
        records: the annotations of the set.
        sources: the files that define the set, which no part may overwrite.
        rename: how to move them out of the way.
        file_of: part -> the file that lists its images.
        text_of: rows of `records` -> content of that file.
        next_step: names of the parts, number of folds if any -> what to do with the files.
    """

    records: DetectionSet
    sources: tuple[Path, ...]
    rename: str
    file_of: Callable[[str], Path]
    text_of: Callable[[Sequence[int]], str]
    next_step: Callable[[Sequence[str], int | None], str]


def open_whole(path: Path, images: Path | None = None) -> WholeSet:
    """Read a set: a COCO instances file, a folder with Annotations/*.xml, or one with data.yaml.

    Args:
        images: COCO: the folder that file names are relative to; by default it is searched for.

    Raises:
        InputError: it is none of these, or anything in it is wrong.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist")
    if path.name in ("data.yaml", "Annotations"):
        path = path.parent
    if hint := of_cvat(path):
        raise InputError(f"{path}: {hint}")
    files = sorted(path.glob("[!.]*.json")) + sorted(path.glob("annotations/[!.]*.json"))
    is_voc = (path / "Annotations").is_dir() or (path.is_dir() and any(path.glob("[!.]*.xml")))
    # labelImg writes a classes.txt beside its XML files too.
    signs = ("data.yaml",) if is_voc else ("data.yaml", "classes.txt", "obj.names")
    is_yolo = path.suffix in (".yaml", ".yml") or any((path / name).is_file() for name in signs)
    if len(files) == 1 and not is_voc and not is_yolo:
        path = files[0]
    if path.is_file() and path.suffix.lower() == ".json":
        whole = _coco(path, images)
    elif images is not None:
        raise InputError("--images is for a COCO instances file")
    elif is_yolo:
        whole = _yolo(path)
    elif is_voc:
        whole = _voc(path)
    elif hint := of_roboflow(path):
        raise InputError(f"{path} is not a COCO instances file (.json); {hint}")
    else:
        raise InputError(
            f"{path} is neither a COCO instances file (.json), nor a folder with Annotations/*.xml (VOC) or "
            f"data.yaml (YOLO){_beside(path, files)}"
        )
    if not len(whole.records):
        raise InputError(f"{path} lists no images")
    if not len(whole.records.boxes):
        raise InputError(f"{path}: no image has a box; check that the annotations are where they belong")
    return whole


def _beside(path: Path, files: Sequence[Path]) -> str:
    """What is there instead and what to do about it; "" if unknown."""
    if files:
        if tool := tool_of(files[0]):
            return f"; {files[0].name} is in {tool}'s own format; export the project as COCO, or convert it"
        return f"; for COCO give the file: {files[0]}"
    folders = sorted({file.parent for file in path.glob("[!.]*/[!.]*.xml")})
    if not folders:
        return ""
    named = some_of([folder.name for folder in folders], 3)
    if not any(has_images(folder) for folder in folders):
        return (
            f"; {named} has XML files: rename it to Annotations, and the folder of the images to JPEGImages"
        )
    return (
        f"; folders in it have XML files ({named}): move these into {path / 'Annotations'}, and the images "
        "into JPEGImages beside it, keeping each folder as it is"
    )


def _read(read: Callable[[Raised], DetectionSet]) -> DetectionSet:
    """Run a reader that must find no fault.

    Raises:
        InputError: there are faults. All of them are logged, because python -m data.check examines only
            divided sets.
    """
    faults = Raised()
    records = read(faults)
    if not faults:
        return records
    first, *others = dict.fromkeys(map(str, faults))  # without repetitions
    for fault in others[:FAULTS_SHOWN]:
        log.warning("%s", fault)
    more = f" (and {len(others)} more fault{'s' * (len(others) > 1)}, see above)" if others else ""
    raise InputError(f"{first}{more}")


def _coco(path: Path, images: Path | None) -> WholeSet:
    content = as_listed(read_instances(path), path)
    if images is None:
        images = _images_of(path, content["images"])
    elif not images.is_dir():
        raise InputError(f"--images: the folder {images} does not exist")
    records = _read(lambda faults: load_instances(content, path, images, faults=faults))

    numbers: dict[Any, int] = {**numbers_of(content["images"])}
    keys = {"images": "id", "annotations": "image_id"}
    image_of = {
        section: [numbers.get(record[key], record[key]) for record in content[section]]
        for section, key in keys.items()
    }
    if not set(image_of["annotations"]) <= set(records.image_ids.tolist()):
        raise AssertionError("annotations would be lost")

    def text_of(rows: Sequence[int]) -> str:
        ids = {int(records.image_ids[row]) for row in rows}
        part = {
            section: [record for record, image in zip(content[section], images, strict=True) if image in ids]
            for section, images in image_of.items()
        }
        return json.dumps(content | part)

    def next_step(parts: Sequence[str], folds: int | None) -> str:
        root = Path(os.path.commonpath([path.parent.absolute(), images.absolute()]))
        root = root if path.is_absolute() else Path(os.path.relpath(root))
        keys = [f"data.root={root}"]
        annotations = os.path.relpath(path.parent / "{split}.json", root)
        folder = os.path.relpath(images, root)
        keys += [f"data.annotations={annotations}"] * (annotations != "annotations/{split}.json")
        keys += [f"data.images={folder}"] * (folder != "images")
        return _commands(*keys, parts=parts, folds=folds)

    return WholeSet(
        records,
        (path,),
        "rename it, for example to all.json",
        lambda part: path.parent / f"{part}.json",
        text_of,
        next_step,
    )


def _images_of(path: Path, records: list[Any]) -> Path:
    """The folder of the images of a COCO file, in or near its folder."""
    here, above = path.parent, path.absolute().parent.parent
    above = Path(os.path.relpath(above)) if not path.is_absolute() else above
    if not records:
        raise InputError(f"{path} lists no images")
    name = records[0].get("file_name") if isinstance(records[0], dict) else None
    if not isinstance(name, str) or not name:
        raise InputError(f"{path}: the first of its images has no 'file_name'")
    tries, outside = (
        [here / "images", above / "images", here, above, here / "data"],
        None,
    )  # FiftyOne
    part = path.stem.removeprefix("instances_")  # CVAT's layout: images/default
    tries += [folder / "images" / part for folder in (here, above)]
    for folder in tries:
        try:
            if folder.is_dir() and is_file(ImageFinder(folder).find(name, f"the first image of {path}")):
                return folder
        except DataFault as fault:  # the name is a path on another disk
            outside = fault
    if outside is not None:
        raise outside
    looked = ", ".join(map(str, tries))
    raise InputError(
        f"{path}: its first image, '{name}', was not found in {looked}; give its folder: --images DIR"
    )


def _voc(root: Path) -> WholeSet:
    folders = voc_folders(root)
    names = stems_of_xml(folders.annotations)
    if not names:
        capitals = (
            " (.XML files are not read: rename them to .xml)" if in_capitals(folders.annotations) else ""
        )
        raise InputError(f"{folders.annotations} contains no .xml files{capitals}")
    lists = sorted(path.stem for path in folders.lists.glob("[!.]*.txt") if not _is_of_all(path, names))
    if lists:
        raise InputError(
            f"{folders.lists} already has lists ({some_of(lists, 3)}), so the set is divided; move them "
            "away to divide it again"
        )
    say_what_is_in_capitals(folders)
    records = _read(
        lambda faults: load_voc_images(folders, names, str(folders.annotations), faults=faults, whole=True)
    )

    def next_step(parts: Sequence[str], folds: int | None) -> str:
        return _commands("data.format=voc", f"data.root={root}", parts=parts, folds=folds)

    return WholeSet(
        records,
        (),
        "",
        lambda part: folders.lists / f"{part}.txt",
        lambda rows: "".join(f"{names[row]}\n" for row in rows),
        next_step,
    )


def _is_of_all(file: Path, names: Sequence[str]) -> bool:
    """Whether a list names all XML files, like CVAT's default.txt; in lists of a class 1 or -1 follows."""
    try:
        listed = {line for _, line in lines_of(file)}
    except (OSError, UnicodeDecodeError):
        return False
    return set(names) in (listed, {line.rpartition(" ")[0].strip() for line in listed})


def _yolo(root: Path) -> WholeSet:
    content = read_index(index_file(root))
    index, base, places = content.file, content.root, content.splits
    if "train" not in places:
        raise InputError(f"{index} has no train, which names the images to be divided")
    if "val" in places and places["val"] != places["train"]:
        raise InputError(
            f"{index} already has a split val ({', '.join(places['val'])}); to divide train, remove val"
        )
    records = _read(lambda faults: load_yolo(root, "train", faults=faults))

    def text_of(rows: Sequence[int]) -> str:
        files = [os.path.relpath(str(records.files[row]), base) for row in rows]
        return "".join(f"{Path(file).as_posix()}\n" for file in files)

    def next_step(parts: Sequence[str], folds: int | None) -> str:
        entries = "".join(f"\n{part}: {part}.txt" for part in parts)
        commands = _commands("data.format=yolo", f"data.root={root}", parts=parts, folds=folds)
        return f"write this into {index}, in place of its entries for these splits:{entries}\n{commands}"

    return WholeSet(
        records,
        tuple(base / place for place in places["train"]),
        f"rename it, for example to all.txt, there and in {index}",
        lambda part: base / f"{part}.txt",
        text_of,
        next_step,
    )


def _commands(*keys: str, parts: Sequence[str], folds: int | None) -> str:
    """The commands that train on the parts: one, or one for each fold and one for their mean."""
    test = ["data.splits.test=test"] * ("test" in parts)  # train and val have their default names
    words = ["configs/own.yaml", *keys, *test]
    if folds is None:
        return _line("train.py", *words)
    runs = [f"runs/fold{k}" for k in range(1, folds + 1)]
    lines = [
        _line("train.py", *words, f"data.splits.train=train{k}", f"data.splits.val=val{k}", f"run.dir={run}")
        for k, run in enumerate(runs, 1)
    ]
    return "\n".join([*lines, _line("evaluate.py", *runs, "--mean")])


def _line(*words: str) -> str:
    return "python " + " ".join(map(shlex.quote, words))
