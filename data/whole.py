"""A data set that is in one piece, and the files that name the parts of it: COCO, Pascal VOC, YOLO."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.coco import load_coco, read_json
from data.images import files_below
from data.sample import DetectionSet
from data.voc import load_voc_images
from data.yolo import load_yolo, places_of
from errors import InputError

_ALL_PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class WholeSet:
    """What was read, and how its parts are named.

    Attributes:
        file_of: the file that names the images of a part.
        text_of: its content, for rows of `records`.
        next_step: what to do with these files, for the names of the parts.
    """

    records: DetectionSet
    file_of: Callable[[str], Path]
    text_of: Callable[[Sequence[int]], str]
    next_step: Callable[[Sequence[str]], str]


def open_whole(path: Path, images: Path | None = None) -> WholeSet:
    """Read a set: a COCO instances file, a folder with Annotations/*.xml, or one with data.yaml.

    Args:
        images: COCO: the folder that file names are relative to; by default it is looked for.

    Raises:
        InputError: it is none of these, or anything in it is wrong.
    """
    if path.is_file() and path.suffix.lower() == ".json":
        return _coco(path, images)
    if images is not None:
        raise InputError("--images is for a COCO instances file")
    if (path / "data.yaml").is_file():
        return _yolo(path)
    if (path / "Annotations").is_dir():
        return _voc(path)
    if not path.exists():
        raise InputError(f"{path} does not exist")
    raise InputError(
        f"{path} is no COCO instances file (.json), no folder with Annotations/*.xml (VOC) and none with "
        "data.yaml (YOLO)"
    )


def _coco(path: Path, images: Path | None) -> WholeSet:
    content = read_json(path)
    images = images if images is not None else _images_of(path, content)
    records = load_coco(path, images)

    def text_of(rows: Sequence[int]) -> str:
        ids = {int(records.image_ids[row]) for row in rows}
        part = {
            "images": [record for record in content["images"] if record["id"] in ids],
            "annotations": [record for record in content["annotations"] if record["image_id"] in ids],
        }
        return json.dumps(content | part)

    def next_step(parts: Sequence[str]) -> str:
        root = Path(os.path.relpath(os.path.commonpath([path.parent.absolute(), images.absolute()])))
        keys = [f"data.root={root}"]
        annotations = os.path.relpath(path.parent / "{split}.json", root)
        folder = os.path.relpath(images, root)
        keys += [f"data.annotations={annotations}"] * (annotations != "annotations/{split}.json")
        keys += [f"data.images={folder}"] * (folder != "images")
        return "python train.py configs/cards.yaml " + " ".join(keys + _test_key(parts))

    return WholeSet(records, lambda part: path.parent / f"{part}.json", text_of, next_step)


def _images_of(path: Path, content: object) -> Path:
    """The folder of the images of a COCO file, near it."""
    here, above = path.parent, path.absolute().parent.parent
    above = Path(os.path.relpath(above)) if not path.is_absolute() else above
    records = content.get("images") if isinstance(content, dict) else None
    first = records[0] if isinstance(records, list) and records else None
    name = str(first.get("file_name")) if isinstance(first, dict) else ""
    tries = [above / "images", here / "images", here, above]
    for folder in tries:
        if name and (folder / name).is_file():
            return folder
    looked = ", ".join(map(str, tries))
    raise InputError(
        f"{path}: its first image, '{name}', is in none of {looked}; name the folder: --images DIR"
    )


def _voc(root: Path) -> WholeSet:
    folder = root / "Annotations"
    names = [
        path.relative_to(folder).with_suffix("").as_posix()
        for path in files_below(folder)
        if path.suffix == ".xml"
    ]
    if not names:
        raise InputError(f"{folder} holds no .xml files")
    records = load_voc_images(root, names, str(folder))

    def next_step(parts: Sequence[str]) -> str:
        return f"python train.py configs/bccd.yaml data.root={root} {_split_keys(parts)}"

    return WholeSet(
        records,
        lambda part: root / "ImageSets" / "Main" / f"{part}.txt",
        lambda rows: "".join(f"{names[row]}\n" for row in rows),
        next_step,
    )


def _yolo(root: Path) -> WholeSet:
    places = places_of(root)
    if "val" in places and places["val"] != places.get("train"):
        raise InputError(
            f"{root / 'data.yaml'} has a split val already ({', '.join(places['val'])}); to divide train, "
            "take val out"
        )
    records = load_yolo(root, "train")

    def text_of(rows: Sequence[int]) -> str:
        files = [os.path.relpath(str(records.files[row]), root) for row in rows]
        return "".join(f"{Path(file).as_posix()}\n" for file in files)

    def next_step(parts: Sequence[str]) -> str:
        entries = "".join(f"\n  {part}: {part}.txt" for part in parts)
        command = f"python train.py configs/bccd.yaml data.format=yolo data.root={root} {_split_keys(parts)}"
        return f"put into {root / 'data.yaml'}, in place of what it says of these:{entries}\n{command}"

    return WholeSet(records, lambda part: root / f"{part}.txt", text_of, next_step)


def _split_keys(parts: Sequence[str]) -> str:
    return " ".join(f"data.splits.{part}={part if part in parts else 'null'}" for part in _ALL_PARTS)


def _test_key(parts: Sequence[str]) -> list[str]:
    return ["data.splits.test=test"] if "test" in parts else []
