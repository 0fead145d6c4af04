"""Small data sets on disk, written by the tests that use them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np


def write_image(path: Path, height: int = 48, width: int = 64, seed: int = 0) -> None:
    """A noisy picture; the file ending decides the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    assert cv2.imwrite(str(path), pixels)


def coco_dict(boxes: list[list[list[float]]], height: int = 48, width: int = 64) -> dict[str, Any]:
    """COCO instances: one entry of `boxes` per image, each a list of xywh boxes.

    Image ids are 10, 11, ...; classes alternate between "cat" (id 3) and "dog" (id 7).
    """
    images = [
        {"id": 10 + i, "file_name": f"{i}.png", "height": height, "width": width} for i in range(len(boxes))
    ]
    flat = [(10 + i, box) for i, mine in enumerate(boxes) for box in mine]
    annotations = [
        {
            "id": k,
            "image_id": image,
            "category_id": (3, 7)[k % 2],
            "bbox": box,
            "area": box[2] * box[3],
            "iscrowd": 0,
        }
        for k, (image, box) in enumerate(flat, start=1)
    ]
    categories = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_coco(root: Path, train: dict[str, Any], val: dict[str, Any]) -> Path:
    """Annotations and images of two splits, as the default configuration expects them."""
    for split, content in (("train", train), ("val", val)):
        path = root / "annotations" / f"{split}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
        for seed, image in enumerate(content["images"]):
            write_image(root / "images" / image["file_name"], image["height"], image["width"], seed)
    return root


def small_coco(root: Path, images: int = 6) -> Path:
    """A set on which training runs in seconds: every image has one cat and one dog, but the last has none."""
    boxes = [[[4.0 + i, 5.0, 20.0, 18.0], [30.0, 10.0 + i, 24.0, 20.0]] for i in range(images - 1)]
    content = coco_dict([*boxes, []])
    return write_coco(root, content, content)


def coco_of_sizes(root: Path, sizes: Sequence[tuple[int, int]]) -> Path:
    """An image of each height and width, with a cat and a dog, for training and for validation."""
    content = coco_dict([[[4.0, 5.0, 20.0, 18.0], [30.0, 10.0, 24.0, 20.0]] for _ in sizes])
    for image, (height, width) in zip(content["images"], sizes, strict=True):
        image.update(height=height, width=width)
    return write_coco(root, content, content)


# Random in shape, position and colour.
AUGMENTED = "data.transforms.train=[{HorizontalFlip: {p: 0.5}}, {IoUCrop: {}}, {ColorJitter: {p: 0.7}}]"

# Overrides that make a training run take a second: a ResNet-18 of 64 x 64 pixels.
TINY_MODEL = (
    "model.backbone=resnet18",
    "model.base_channels=8",
    "model.pretrained=false",
    "model.norm=batch",
    "model.frozen_stages=0",
    "model.pyramid_channels=16",
    "model.head_width=16",
    "model.head_depth=1",
    "train.batch_size=2",
    "train.amp=off",
    "train.device=cpu",
    "schedule.warmup_steps=2",
    "data.workers=0",
    "data.check=false",  # small_coco trains and validates on the same images
)


def voc_xml(
    objects: list[tuple[str, tuple[float, float, float, float], int]],
    height: int = 48,
    width: int = 64,
    name: str = "0.jpg",
) -> str:
    """A VOC annotation; each object is (class, (xmin, ymin, xmax, ymax), difficult)."""
    parts = "".join(
        f"<object><name>{kind}</name><difficult>{difficult}</difficult><bndbox><xmin>{box[0]}</xmin>"
        f"<ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"
        for kind, box, difficult in objects
    )
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation><filename>{name}</filename>{size}{parts}</annotation>"


def write_voc(root: Path, images: dict[str, str], splits: dict[str, list[str]]) -> Path:
    """`images` maps a stem to its XML; `splits` names the stems of each ImageSets/Main list."""
    for seed, (stem, xml) in enumerate(images.items()):
        path = root / "Annotations" / f"{stem}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(xml)
        write_image(root / "JPEGImages" / f"{stem}.jpg", seed=seed)
    for split, stems in splits.items():
        path = root / "ImageSets" / "Main" / f"{split}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{stem}\n" for stem in stems))
    return root
