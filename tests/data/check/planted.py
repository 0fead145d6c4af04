"""A clean set, and the faults that tests plant in it, each with its finding's code and words of its text."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from detector.config.file import apply_overrides, parse_config
from detector.training.data_check import Examination, examine
from tests.builders import write_image

Damage = Callable[[Path], None]
HEIGHT, WIDTH = 96, 128
# Boxes that the default anchors fit; in each image they are shifted a little.
BOXES = ((8.0, 8.0, 40.0, 40.0), (64.0, 32.0, 48.0, 52.0))
IMAGES = {"train": (1, 2, 3, 4), "val": (5, 6)}  # image ids; files 1.png, 2.png, ...


def write_clean(root: Path) -> Path:
    """Two splits in COCO's layout: a cat and a dog in every image; no two images are alike."""
    for split, ids in IMAGES.items():
        content: dict[str, Any] = {
            "images": [{"id": i, "file_name": f"{i}.png", "height": HEIGHT, "width": WIDTH} for i in ids],
            "annotations": [
                {"id": 10 * i + k, "image_id": i, "category_id": k, "bbox": [x + i, y, w, h], "iscrowd": 0}
                for i in ids
                for k, (x, y, w, h) in enumerate(BOXES)
            ],
            "categories": [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}],
        }
        path = root / "annotations" / f"{split}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
        for i in ids:
            write_image(root / "images" / f"{i}.png", HEIGHT, WIDTH, seed=i)
    return root


def examined(root: Path, *words: str, decode: bool = True) -> Examination:
    values = {"data": {"format": "coco", "root": str(root)}}
    return examine(parse_config(apply_overrides(values, list(words)), "the test"), "the test", decode)


def edited(change: Callable[[dict[str, Any]], Any], *splits: str) -> Damage:
    """Damage that changes the content of annotation files (by default train's)."""

    def damage(root: Path) -> None:
        for split in splits or ("train",):
            path = root / "annotations" / f"{split}.json"
            content = json.loads(path.read_text())
            change(content)
            path.write_text(json.dumps(content))

    return damage


def box(*bbox: float, number: int = 20) -> Damage:
    """Give an annotation (by default 20, the cat in image 2 of train) this box: x, y, width, height."""

    def change(content: dict[str, Any]) -> None:
        next(a for a in content["annotations"] if a["id"] == number)["bbox"] = list(bbox)

    return edited(change)


def added(number: int, image: int, category: int, bbox: tuple[float, ...] = BOXES[0]) -> dict[str, Any]:
    return {"id": number, "image_id": image, "category_id": category, "bbox": list(bbox)}


def pixels(change: Callable[[Image.Image], Image.Image], name: str = "2.png", **saved: Any) -> Damage:
    """Damage that replaces an image by what `change` makes of it."""

    def damage(root: Path) -> None:
        path = root / "images" / name
        change(Image.open(path)).save(path, **saved)

    return damage


def two_pages(root: Path) -> None:
    with Image.open(root / "images" / "2.png") as image:
        image.save(root / "images" / "2.tif", save_all=True, append_images=[Image.new("RGB", image.size)])
    path = root / "annotations" / "train.json"
    path.write_text(path.read_text().replace("2.png", "2.tif"))


def copied(source: str, target: str, noise: int = 0) -> Damage:
    """Save one image's pixels, each value changed by at most `noise`, as another file (with other bytes)."""

    def damage(root: Path) -> None:
        image = np.array(Image.open(root / "images" / source)).astype(int)
        image += np.random.default_rng(0).integers(-noise, noise + 1, image.shape)
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / "images" / target, compress_level=1)

    return damage


def both(*damages: Damage) -> Damage:
    return lambda root: [damage(root) for damage in damages] and None


def replaced(content: bytes) -> Damage:
    return lambda root: (root / "images" / "2.png").write_bytes(content) and None


def truncated(root: Path) -> None:
    path = root / "images" / "2.png"
    path.write_bytes(path.read_bytes()[:5000])


def same_boxes_in(one: int, other: int) -> Damage:
    def change(content: dict[str, Any]) -> None:
        of_one = [a for a in content["annotations"] if a["image_id"] == one]
        of_other = [a for a in content["annotations"] if a["image_id"] == other]
        for a, b in zip(of_one, of_other, strict=True):
            b["bbox"] = a["bbox"]

    return edited(change)


def a_third_class(name: str, *splits: str) -> Damage:
    """A further class, with one box in each of the splits."""

    def change(content: dict[str, Any]) -> None:
        content["categories"].append({"id": 2, "name": name})
        image = content["images"][0]["id"]
        content["annotations"].append(added(900 + image, image, 2, (20.0, 10.0, 44.0, 41.0)))

    return edited(change, *splits)


def in_folders(root: Path) -> None:
    """Images 2 and 3 become a/same.png and b/same.png."""
    for number, folder in ((2, "a"), (3, "b")):
        (root / "images" / folder).mkdir()
        (root / "images" / f"{number}.png").rename(root / "images" / folder / "same.png")
        edited(lambda c, n=number, f=folder: c["images"][n - 1].update(file_name=f"{f}/same.png"))(root)


def versions(root: Path) -> None:
    """Name images 2 and 5 as Roboflow names versions of one photograph."""
    for number, split in ((2, "train"), (5, "val")):
        name = f"a_jpg.rf.{number:010}.png"
        (root / "images" / f"{number}.png").rename(root / "images" / name)
        edited(lambda c, n=number, name=name: _image(c, n).update(file_name=name), split)(root)


def _image(content: dict[str, Any], number: int) -> dict[str, Any]:
    return next(image for image in content["images"] if image["id"] == number)


def enlarged(root: Path) -> None:
    write_image(root / "images" / "2.png", 8 * HEIGHT, 8 * WIDTH, seed=2)
    edited(lambda c: c["images"][1].update(height=8 * HEIGHT, width=8 * WIDTH))(root)


def many_cats(root: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        for k in range(80):
            content["annotations"].append(added(300 + k, 1, 0, (k % 10, k // 10, 40.0 + k % 7, 41.0)))

    edited(change)(root)


def many_crowds(root: Path) -> None:
    """Add 12 cats that are marked as crowds."""

    def change(content: dict[str, Any]) -> None:
        for k in range(12):
            crowd = added(300 + k, 1, 0, (k % 10, k // 10, 40.0 + k % 7, 41.0))
            content["annotations"].append({**crowd, "iscrowd": 1})

    edited(change)(root)


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


TWO = ("2.png", "id 2", "train")
FAULTS: dict[str, tuple[str, Damage, tuple[str, ...]]] = {
    "a missing image": ("image-missing", lambda r: (r / "images/2.png").unlink(), ("2.png",)),
    "no image at all": ("image-unreadable", replaced(b"?"), ("2.png",)),
    "a truncated image": ("image-unreadable", truncated, ("2.png",)),
    "another size": (
        "image-size-differs", edited(lambda c: c["images"][1].update(width=640)), ("2.png", "640"),
    ),
    "a path outside": (
        "image-outside", edited(lambda c: c["images"].append({"id": 9, "file_name": "../x.png"})), ("id 9",),
    ),
    "an image whose height is a text": (
        "record-malformed",
        edited(lambda c: c["images"].append({"id": 9, "file_name": "x.png", "width": 3, "height": "4"})),
        ("image id 9", "height"),
    ),
    "an image id twice": ("image-id-twice", edited(lambda c: c["images"].append(c["images"][1])), ("id 2",)),
    "train in val": (
        "image-in-both", copied("2.png", "5.png"), ("5.png", "id 5, val", "2.png (id 2, train)"),
    ),
    "nearly train in val": (
        "near-duplicate-in-both", copied("2.png", "5.png", noise=4), ("5.png", "2.png (id 2, train)"),
    ),
    "versions of one photograph": (
        "versions-in-both",
        versions,
        ("a_jpg.rf.0000000005", "photograph as", "rf.0000000002", "train"),
    ),
    "an image twice": (
        "image-twice", both(copied("2.png", "3.png"), same_boxes_in(2, 3)), ("3.png", "2.png (id 2, train)"),
    ),
    "an image twice, other boxes": ("image-twice-differing", copied("2.png", "3.png"), ("3.png", "2.png")),
    "the name of another": ("same-name-other-image", in_folders, ("b/same.png", "a/same.png")),
    "a turned image": (
        "image-turned",
        pixels(lambda i: i.transpose(Image.Transpose.ROTATE_90), exif=exif(6)),
        ("uses it upright", *TWO),
    ),
    "a turned image, annotated as stored": (
        "image-as-stored", pixels(lambda i: i, exif=exif(6)), ("its boxes fit", *TWO),
    ),
    "a grey image": ("image-not-rgb", pixels(lambda i: i.convert("L")), ("mode L", *TWO)),
    "a transparent image": ("image-not-rgb", pixels(lambda i: i.convert("RGBA")), ("mode RGBA", *TWO)),
    "sixteen bits": (
        "image-not-rgb",
        pixels(lambda i: Image.fromarray(np.array(i.convert("L")).astype(np.uint16) * 257)),
        ("mode I;16", *TWO),
    ),
    "a turned image of another size": (
        "image-size-differs",
        both(
            pixels(lambda i: i, exif=exif(6)),
            edited(lambda c: c["images"][1].update(width=126)),
        ),
        ("2.png", "126 x 96"),
    ),
    "two pages": ("image-many-pages", two_pages, ("has 2 pages", "2.tif")),
    "twelve bits in sixteen": (
        "range-unused",
        pixels(lambda i: Image.fromarray(np.array(i.convert("L")).astype(np.uint16) * 16)),
        ("mode I;16", "no brighter than", *TWO),
    ),
    "a rotation": (
        "box-rotated",
        edited(lambda c: [a.update(attributes={"rotation": 30}) for a in c["annotations"] if a["id"] == 20]),
        ("annotation 20", "has a rotation"),
    ),
    "a huge image": ("sizes-vary", enlarged, ("1024 x 768", "128 x 96")),
    "a negative width": ("box-reversed", box(50, 8, -20, 30), ("annotation 20", "2.png", "negative width")),
    "a NaN": ("box-not-finite", box(float("nan"), 8, 20, 30), ("annotation 20", "2.png")),
    "three numbers": ("record-malformed", box(8, 20, 30), ("annotation 20", "2.png", "[8, 20, 30]")),
    "no width": ("box-without-area", box(50, 8, 0, 30), ("annotation 20", "2.png")),
    "outside": ("box-outside", box(200, 8, 40, 40), ("annotation 20", "2.png")),
    "half outside": ("box-partly-outside", box(108, 8, 40, 40), ("annotation 20", "50%", *TWO)),
    "over the edge": ("box-over-edge", box(91, 8, 40, 40), ("annotation 20", "3.0 px", *TWO)),
    "tiny": (
        "box-tiny",
        edited(lambda c: c["annotations"].append(added(99, 5, 0, (70, 5, 1.5, 30))), "val"),
        ("annotation 99", "1.5 x 30.0 px", "5.png", "id 5", "val"),
    ),
    "whole image": ("box-whole-image", box(0, 0, WIDTH, HEIGHT), ("annotation 20", *TWO)),
    "a box twice": (
        "box-duplicated",
        edited(lambda c: c["annotations"].append(added(99, 2, 0, (10.0, *BOXES[0][1:])))),
        ("annotation 99", "annotation 20", *TWO),
    ),
    "a box in two classes": (
        "box-in-two-classes",
        edited(lambda c: c["annotations"].append(added(99, 2, 1, (10.0, *BOXES[0][1:])))),
        ("annotation 99", "annotation 20, a cat", *TWO),
    ),
    "an unknown category": (
        "category-unlisted",
        edited(lambda c: c["annotations"].append(added(99, 2, 7))),
        ("annotation 99", "2.png"),
    ),
    "an unknown image": (
        "image-unlisted",
        edited(lambda c: c["annotations"].append(added(99, 77, 0))),
        ("annotation 99", "77"),
    ),
    "a class twice": (
        "category-twice",
        edited(lambda c: c["categories"].append({"id": 5, "name": "cat"})),
        ("'cat'", "id 5"),
    ),
    "a class without boxes": (
        "class-without-boxes",
        edited(lambda c: c["categories"].append({"id": 2, "name": "cow"}), "train", "val"),
        ("'cow'", "train"),
    ),
    "classes alike": ("names-alike", a_third_class("Dogs ", "train", "val"), ("'dog'", "'Dogs '")),
    "a class in val only": ("class-left-out", a_third_class("cow", "val"), ("val", "'cow'", "1 boxes")),
    "a class in train only": ("category-missing", a_third_class("cow", "train"), ("val", "'cow'")),
    "a rare class": ("class-rare", many_cats, ("'dog'", "4 of the 88")),
    "mostly crowds": ("much-ignored", many_crowds, ("12 of the 16", "'cat'", "train")),
    "no objects to find": (
        "no-boxes-to-find", edited(lambda c: c.update(annotations=[]), "val"), ("val has no boxes",),
    ),
    "no objects": (
        "mostly-empty", edited(lambda c: c.update(annotations=c["annotations"][:2])), ("3 of the 4", "train"),
    ),
}  # fmt: skip
