"""The generated demo set: pictures of rotated shapes on busy backgrounds, in COCO format on disk.

It replaces photographs where none are available, and has what makes them hard: textured backgrounds, clutter,
small and half-hidden objects, pictures without objects, and classes of very unequal frequency. Colour and
texture carry no information about the class. Every picture depends on (seed, split, number) alone, so a
larger set begins with the pictures of a smaller one.
"""

import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from data.shapes_scene import CLASSES, Picture, draw_scene
from errors import InputError

CATEGORY_IDS = (1, 3, 7, 8, 20)  # of the classes, with gaps, as in COCO

_FORMAT_VERSION = 2
_SPLITS = ("train", "val")


@dataclass(frozen=True)
class ShapesSpec:
    """Parameters of the set; equal specs give equal sets.

    Attributes:
        train_images, val_images: pictures per split.
        size_px: width of a picture. The height is always 0.8 of it, so that batches need no padding.
        seed: selects the pictures.
        imbalance: class frequencies are raised to this power. 0 makes all classes equally frequent; 1 makes
            the first class 20 times as frequent as the last, 2 makes it 400 times.
    """

    train_images: int = 1300
    val_images: int = 200
    size_px: int = 160
    seed: int = 0
    imbalance: float = 0.5


def ensure_shapes(root: Path, spec: ShapesSpec) -> None:
    """Write the set under `root`, unless the same set is already there.

    root/shapes.json holds the spec, root/annotations/{train,val}.json COCO instances and
    root/images/{train,val}/*.jpg the pictures; file names are relative to the folder of the split. An
    annotation's `area` is that of its box, so that COCO's size ranges mean the same for all classes.

    The set appears under `root` complete or not at all. The same spec gives the same files byte for byte,
    given the same versions of NumPy and OpenCV.

    Raises:
        InputError: the spec is invalid, `root` holds anything else (which is left untouched), or it cannot be
            written.
    """
    _check_spec(spec)
    try:
        if _is_there(root, spec):
            return
        root.parent.mkdir(parents=True, exist_ok=True)
        count = spec.train_images + spec.val_images
        print(f"{root}: creating the demo data set, {count} generated images", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{root.name}-") as workshop:
            made = Path(workshop, "set")  # one level down: TemporaryDirectory itself is mode 0700
            _write_set(made, spec)
            try:
                made.rename(root)
            except OSError:  # another process may have been faster
                if not _is_there(root, spec):
                    raise
    except OSError as error:
        raise InputError(
            f"{root}: the demo data set cannot be written here ({error.strerror or error}). Free some space "
            "or choose another data.root."
        ) from error


def draw_picture(spec: ShapesSpec, split: str, number: int) -> Picture:
    """Draw picture `number` (from 1) of `split` ("train" or "val")."""
    stream = np.random.default_rng((spec.seed, _SPLITS.index(split), number))
    return draw_scene(stream, spec.size_px, spec.imbalance)


def _check_spec(spec: ShapesSpec) -> None:
    for name, least in (("train_images", 1), ("val_images", 1), ("size_px", 64), ("seed", 0)):
        if getattr(spec, name) < least:
            raise InputError(f"demo data set: {name} is {getattr(spec, name)}, must be >= {least}.")
    if not 0 <= spec.imbalance <= 10:
        raise InputError(f"demo data set: imbalance is {spec.imbalance}, must be in 0..10.")


def _is_there(root: Path, spec: ShapesSpec) -> bool:
    """Whether the wanted set is at `root`; raises InputError if something else is."""
    if not root.exists():
        return False
    if not root.is_dir():
        raise InputError(f"{root} is a file, not a folder. Choose another data.root.")
    try:
        found = json.loads((root / "shapes.json").read_text())
    except FileNotFoundError:
        if any(root.iterdir()):
            raise InputError(
                f"{root} contains something other than the demo data set, and is left as it is. For a data "
                "set of your own set data.format=coco, voc or yolo; for the demo data set choose another "
                "data.root."
            ) from None
        return False
    except ValueError:
        found = None
    if found != _describe(spec):
        raise InputError(
            f"{root}: the demo data set there was created with other settings. Remove the folder or choose "
            "another data.root."
        )
    return True


def _describe(spec: ShapesSpec) -> dict[str, Any]:
    return {"format_version": _FORMAT_VERSION, "spec": asdict(spec)}


def _write_set(root: Path, spec: ShapesSpec) -> None:
    (root / "annotations").mkdir(parents=True)
    for split, count in zip(_SPLITS, (spec.train_images, spec.val_images), strict=True):
        folder = root / "images" / split
        folder.mkdir(parents=True)
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number in range(1, count + 1):
            picture = draw_picture(spec, split, number)
            height, width = picture.image.shape[:2]
            name = f"{split}_{number:05d}.jpg"
            _, jpeg = cv2.imencode(".jpg", picture.image, [cv2.IMWRITE_JPEG_QUALITY, 90])
            # Not cv2.imwrite, which does not say why it failed.
            (folder / name).write_bytes(jpeg.tobytes())
            images.append({"id": number, "file_name": name, "width": width, "height": height})
            for (x1, y1, x2, y2), label in zip(picture.boxes, picture.labels, strict=True):
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": CATEGORY_IDS[label],
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "area": (x2 - x1) * (y2 - y1),
                        "iscrowd": 0,
                    }
                )
        categories = [
            {"id": id_, "name": name, "supercategory": "shape"}
            for id_, name in zip(CATEGORY_IDS, CLASSES, strict=True)
        ]
        coco = {
            "info": {"description": f"Generated shapes, {split} split", "version": "1.0"},
            "images": images,
            "annotations": annotations,
            "categories": categories,
        }
        (root / "annotations" / f"{split}.json").write_text(json.dumps(coco))
    (root / "shapes.json").write_text(json.dumps(_describe(spec), indent=2) + "\n")
