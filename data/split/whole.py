"""A data set that is in one piece, and the files that name the parts of it: COCO, Pascal VOC, YOLO."""

import json
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
        sources: the files that say what is in the set, which no part may replace.
        rename: how to get them out of the way of the parts.
        file_of: the file that names the images of a part.
        text_of: its content, for rows of `records`.
        next_step: what to do with these files, for the names of the parts.
    """

    records: DetectionSet
    sources: tuple[Path, ...]
    rename: str
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
    if not path.exists():
        raise InputError(f"{path} does not exist")
    if path.name == "data.yaml":
        path = path.parent
    if path.is_file() and path.suffix.lower() == ".json":
        return _coco(path, images)
    if images is not None:
        raise InputError("--images is for a COCO instances file")
    if (path / "data.yaml").is_file():
        return _yolo(path)
    if (path / "Annotations").is_dir():
        return _voc(path)
    raise InputError(
        f"{path} is no COCO instances file (.json), no folder with Annotations/*.xml (VOC) and none with "
        "data.yaml (YOLO)"
    )


def _coco(path: Path, images: Path | None) -> WholeSet:
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise InputError(f"{path} has no list 'images'; a COCO instances file has one")
    if images is None:
        images = _images_of(path, content["images"])
    elif not images.is_dir():
        raise InputError(f"--images: the folder {images} does not exist")
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
        keys += ["data.splits.test=test"] * ("test" in parts)
        return _command("configs/cards.yaml", *keys)

    return WholeSet(
        records,
        (path,),
        "rename it, to all.json, say",
        lambda part: path.parent / f"{part}.json",
        text_of,
        next_step,
    )


def _images_of(path: Path, records: list[Any]) -> Path:
    """The folder of the images of a COCO file, near it."""
    here, above = path.parent, path.absolute().parent.parent
    above = Path(os.path.relpath(above)) if not path.is_absolute() else above
    name = str(records[0].get("file_name") or "") if records and isinstance(records[0], dict) else ""
    if not name:
        raise InputError(f"{path}: the first of its images has no 'file_name'")
    tries = [here / "images", above / "images", here, above]
    for folder in tries:
        if folder.is_dir() and not Path(name).is_absolute() and (folder / name).is_file():
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
    lists = sorted(path.stem for path in (root / "ImageSets" / "Main").glob("*.txt"))
    if lists:
        named = ", ".join(lists[:3]) + ", ..." * (len(lists) > 3)
        raise InputError(
            f"{root / 'ImageSets' / 'Main'} has lists already ({named}): the set is divided; move them away "
            "to divide it anew"
        )
    records = load_voc_images(root, names, str(folder))

    def next_step(parts: Sequence[str]) -> str:
        return _command("configs/bccd.yaml", f"data.root={root}", *_split_keys(parts))

    return WholeSet(
        records,
        (),
        "",
        lambda part: root / "ImageSets" / "Main" / f"{part}.txt",
        lambda rows: "".join(f"{names[row]}\n" for row in rows),
        next_step,
    )


def _yolo(root: Path) -> WholeSet:
    base, places = places_of(root)
    if "train" not in places:
        raise InputError(f"{root / 'data.yaml'} has no train, the images that are to be divided")
    if "val" in places and places["val"] != places.get("train"):
        raise InputError(
            f"{root / 'data.yaml'} has a split val already ({', '.join(places['val'])}); to divide train, "
            "take val out"
        )
    records = load_yolo(root, "train")

    def text_of(rows: Sequence[int]) -> str:
        files = [os.path.relpath(str(records.files[row]), base) for row in rows]
        return "".join(f"{Path(file).as_posix()}\n" for file in files)

    def next_step(parts: Sequence[str]) -> str:
        entries = "".join(f"\n{part}: {part}.txt" for part in parts)
        command = _command("configs/bccd.yaml", "data.format=yolo", f"data.root={root}", *_split_keys(parts))
        return f"put into {root / 'data.yaml'}, in place of what it says of these:{entries}\n{command}"

    return WholeSet(
        records,
        tuple(base / place for place in places["train"]),
        f"rename it, to all.txt, say, there and in {root / 'data.yaml'}",
        lambda part: base / f"{part}.txt",
        text_of,
        next_step,
    )


def _split_keys(parts: Sequence[str]) -> list[str]:
    return [f"data.splits.{part}={part if part in parts else 'null'}" for part in _ALL_PARTS]


def _command(config: str, *keys: str) -> str:
    return "python train.py " + " ".join(map(shlex.quote, (config, *keys)))
