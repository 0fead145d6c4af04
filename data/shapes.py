"""The generated demo set: pictures of rotated shapes on busy backgrounds, in COCO format on disk.

It stands in for photographs where none are at hand, and keeps what makes them hard: textured
backgrounds, clutter that is no object, small and half-hidden objects, pictures without any object,
and classes of very unequal frequency. Colour and texture say nothing about the class. Every picture
depends on (seed, split, number) alone, so a larger set begins with the pictures of a smaller one.
"""

import json
import math
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from data.shapes_paint import Stencil, blend, colours, make_stencil, noise, paint, photograph
from errors import InputError


@dataclass(frozen=True)
class ShapesSpec:
    """What the set is made from; two equal specs give the same set.

    train_images, val_images: pictures per split.
    size_px: width of a picture. The height is 0.8 of it for all, so that no batch is padded.
    seed: chooses the pictures.
    imbalance: 0 makes all classes equally frequent, 1 the first 20 times as frequent as the last,
        2 already 400 times: class frequencies are raised to this power.
    """

    train_images: int = 1300
    val_images: int = 200
    size_px: int = 160
    seed: int = 0
    imbalance: float = 0.5


@dataclass(frozen=True)
class Picture:
    """One drawn picture with its objects.

    image: [H, W, 3] uint8, BGR as OpenCV writes it.
    boxes: [K, 4] float64, xyxy pixels, tight around all that is drawn of an object (outline
        included, parts that a later object hides as well), clipped to the image.
    labels: [K] int64, index into CLASSES.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray


def _ngon(corners: int, inner: float = 1.0) -> np.ndarray:
    """A polygon around 0, [corners, 2]; odd corners lie at radius `inner`, even ones at 1."""
    angle = np.arange(corners) * (2 * math.pi / corners)
    radius = np.where(np.arange(corners) % 2 == 0, 1.0, inner)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


# The closed curves of each class, scaled to look equally large. A second curve inside is a hole.
_CURVES = {
    "circle": (_ngon(72),),
    "square": (1.2 * _ngon(4),),
    "triangle": (1.25 * _ngon(3),),
    "star": (1.25 * _ngon(10, inner=0.42),),
    "ring": (1.05 * _ngon(72), 0.58 * _ngon(72)),
}
CLASSES: tuple[str, ...] = tuple(_CURVES)  # from the most frequent to the rarest
CATEGORY_IDS = (1, 3, 7, 8, 20)  # with gaps, as in COCO

_FORMAT_VERSION = 2
_SPLITS = ("train", "val")


def class_frequencies(imbalance: float) -> np.ndarray:
    """Probability per class, [len(CLASSES)] float64: geometric, first : last = 20**imbalance."""
    weights = 20.0 ** (-imbalance * np.linspace(0, 1, len(CLASSES)))
    return weights / weights.sum()


def ensure_shapes(root: Path, spec: ShapesSpec) -> None:
    """Write the set under `root` unless the same one is already there.

    root/shapes.json holds the spec, root/annotations/{train,val}.json COCO instances and
    root/images/{train,val}/*.jpg the pictures, named there relative to their split's folder. An
    annotation's `area` is that of its box, so COCO's size ranges mean the same for all classes.

    The set appears under `root` complete or not at all. Files are the same byte for byte for the
    same spec, given the same versions of NumPy and OpenCV.

    Raises InputError where the spec makes no sense, where `root` holds anything else (which is left
    untouched), and where it cannot be written.
    """
    _check_spec(spec)
    root = Path(root)
    try:
        if _is_there(root, spec):
            return
        root.parent.mkdir(parents=True, exist_ok=True)
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
            f"{root}: the demo data set cannot be written here ({error.strerror or error}). "
            "Make room or choose another data.root."
        ) from error


def draw_picture(spec: ShapesSpec, split: str, number: int) -> Picture:
    """Draw picture `number` (from 1) of `split` ("train" or "val")."""
    stream = np.random.default_rng((spec.seed, _SPLITS.index(split), number))
    # Streams of their own: what lies on a picture changes neither its background nor its noise.
    scenery, things, camera = stream.spawn(3)
    canvas = _draw_background(scenery, spec.size_px)
    boxes, labels = _draw_objects(canvas, things, spec)
    return Picture(photograph(canvas, camera), boxes, labels)


def _check_spec(spec: ShapesSpec) -> None:
    for name, least in (("train_images", 1), ("val_images", 1), ("size_px", 64), ("seed", 0)):
        if getattr(spec, name) < least:
            raise InputError(f"demo data set: {name} is {getattr(spec, name)}, must be >= {least}.")
    if not 0 <= spec.imbalance <= 10:
        raise InputError(f"demo data set: imbalance is {spec.imbalance}, must be in 0..10.")


def _is_there(root: Path, spec: ShapesSpec) -> bool:
    """Whether the wanted set is at `root`; raises InputError where something else is."""
    if not root.exists():
        return False
    if not root.is_dir():
        raise InputError(f"{root} is a file, not a folder. Choose another data.root.")
    try:
        found = json.loads((root / "shapes.json").read_text())
    except FileNotFoundError:
        if any(root.iterdir()):
            raise InputError(
                f"{root} holds something else than the demo data set, and is left as it is. "
                "Choose another data.root."
            ) from None
        return False
    except ValueError:
        found = None
    if found != _describe(spec):
        raise InputError(
            f"{root}: the demo data set there was made with other settings. "
            "Remove the folder or choose another data.root."
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
            # Not cv2.imwrite, which says nothing of why it could not write.
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


# --- the scene ------------------------------------------------------------------------------------
# A canvas is [H, W, 3] float32 BGR in 0..255 and is drawn on in place. A colour is [3] of the same.

_EMPTY_FRACTION = 0.08
_MAX_OBJECTS = 8
_MIN_OBJECT_PX = 24
_MAX_OBJECT_FRACTION = 0.4  # of the long side
_MIN_VISIBLE = 0.65  # of its pixels in the picture, whatever later objects hide
_MIN_INSIDE = 0.8  # of an object's pixels when it is placed
_SHADOW_STRENGTH = 0.35


def _draw_background(rng: np.random.Generator, size_px: int) -> np.ndarray:
    """A new canvas with texture and with clutter that is no object."""
    width, height = size_px, round(0.8 * size_px)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    angle = rng.uniform(0, 2 * math.pi)
    along = math.cos(angle) * x + math.sin(angle) * y
    texture = noise(rng, height, width, coarsest_px=int(rng.integers(24, 97)))
    kind = rng.choice(("noise", "gradient", "stripes", "blotches"))
    if kind == "noise":
        mix = texture
    elif kind == "gradient":
        mix = 0.75 * (along - along.min()) / np.ptp(along) + 0.25 * texture
    elif kind == "stripes":
        wave = np.sin(along * (2 * math.pi / rng.uniform(9, 48)) + rng.uniform(0, 14) * texture)
        mix = 0.5 + 0.5 * np.clip(wave * rng.uniform(0.8, 3), -1, 1)
    else:
        mix = np.clip((texture - rng.uniform(0.4, 0.6)) * rng.uniform(4, 14) + 0.5, 0, 1)
    ground = colours(rng, 1, most_saturated=0.65)[0]
    # Two colours not too far apart, or nothing could stand out from both.
    other = np.clip(ground + rng.normal(0, 28, 3), 8, 247).astype(np.float32)
    canvas = blend(ground, other, mix)
    grain = noise(rng, height, width, coarsest_px=6) - 0.5
    canvas += np.float32(rng.uniform(4, 22)) * grain[..., None]

    for _ in range(rng.integers(0, 3)):
        size = math.exp(rng.uniform(math.log(10), math.log(0.3 * size_px)))
        _draw_clutter(canvas, rng, _blob(rng, size), outlined=rng.random() < 0.3)
    for _ in range(rng.integers(0, 5)):
        _draw_clutter(canvas, rng, _stroke(rng, rng.uniform(0.15, 0.7) * size_px))
    for _ in range(rng.integers(0, 8)):
        _draw_clutter(canvas, rng, _blob(rng, rng.uniform(2, 6)))
    return canvas


def _draw_clutter(
    canvas: np.ndarray, rng: np.random.Generator, curve: np.ndarray, outlined: bool = False
) -> None:
    height, width = canvas.shape[:2]
    centre = rng.uniform((0, 0), (width, height))
    outline_px = 1.5 if outlined else 0.0
    paint(canvas, make_stencil([curve + centre], outline_px, width, height), rng)


def _draw_objects(
    canvas: np.ndarray, rng: np.random.Generator, spec: ShapesSpec
) -> tuple[np.ndarray, np.ndarray]:
    """Draw this picture's objects; returns their boxes [K, 4] and labels [K]."""
    height, width = canvas.shape[:2]
    wanted = 0 if rng.random() < _EMPTY_FRACTION else rng.integers(1, _MAX_OBJECTS + 1)
    light = rng.uniform(0, 2 * math.pi)
    shadow_px = rng.uniform(1, 6) * np.array([math.cos(light), math.sin(light)])
    shadow = (shadow_px, _SHADOW_STRENGTH if rng.random() < 0.6 else 0.0)
    boxes, labels = [], []
    visible: list[np.ndarray] = []  # per object: its visible pixels [H, W] bool
    least: list[float] = []  # and how many of them must stay so
    for label in rng.choice(len(CLASSES), size=wanted, p=class_frequencies(spec.imbalance)):
        # The size is drawn once, or crowded pictures would favour small objects.
        largest = _MAX_OBJECT_FRACTION * spec.size_px
        size = math.exp(rng.uniform(math.log(_MIN_OBJECT_PX), math.log(largest)))
        for _ in range(40):
            stencil = _place(rng, CLASSES[label], size, width, height)
            solid = np.zeros((height, width), bool)
            solid[stencil.window] = stencil.alpha > 0.5
            left = [mask & ~solid for mask in visible]
            if stencil.inside >= _MIN_INSIDE and all(
                np.count_nonzero(mask) >= pixels for mask, pixels in zip(left, least, strict=True)
            ):
                break
        else:
            continue  # no room left
        paint(canvas, stencil, rng, *shadow)
        visible = [*left, solid]
        least.append(_MIN_VISIBLE * np.count_nonzero(solid))
        boxes.append(stencil.box)
        labels.append(label)
    return np.array(boxes, np.float64).reshape(-1, 4), np.array(labels, np.int64)


def _place(rng: np.random.Generator, name: str, size: float, width: int, height: int) -> Stencil:
    """A shape about `size` pixels across, turned and stretched, somewhere in the picture."""
    first, second = rng.uniform(0, 2 * math.pi, 2)
    stretch = np.diag([1.0, rng.uniform(0.78, 1.0)])
    transform = 0.5 * size * _rotation(first) @ stretch @ _rotation(second)
    margin = 0.3 * size
    centre = rng.uniform((margin, margin), (width - margin, height - margin))
    # Thin enough that an outlined circle is no ring.
    outline_px = max(1.0, rng.uniform(0.02, 0.05) * size) if rng.random() < 0.35 else 0.0
    curves = [curve @ transform.T + centre for curve in _CURVES[name]]
    return make_stencil(curves, outline_px, width, height)


def _blob(rng: np.random.Generator, size: float) -> np.ndarray:
    """An irregular closed curve around 0, about `size` pixels across, [48, 2]."""
    angle = np.linspace(0, 2 * math.pi, 48, endpoint=False)
    radius = 1 + sum(
        rng.uniform(0.1, 0.3) * np.cos(k * angle + rng.uniform(0, 2 * math.pi)) for k in (2, 3, 4)
    )
    curve = np.stack([radius * np.cos(angle), rng.uniform(0.4, 1) * radius * np.sin(angle)], axis=1)
    return 0.5 * size * curve @ _rotation(rng.uniform(0, 2 * math.pi))


def _stroke(rng: np.random.Generator, length: float) -> np.ndarray:
    """A bent line around 0 as a thin closed curve, [48, 2]."""
    bend = np.linspace(0, rng.normal(0, 1.2), 24) + rng.uniform(0, 2 * math.pi)
    step = np.stack([np.cos(bend), np.sin(bend)], axis=1)
    line = np.cumsum(step, axis=0) * (length / 24)
    side = step[:, ::-1] * (0.5, -0.5) * rng.uniform(1, 4)
    return np.concatenate([line + side, (line - side)[::-1]]) - line.mean(axis=0)


def _rotation(angle: float) -> np.ndarray:
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([[cos, -sin], [sin, cos]])
