"""Claim: augmented as in SSD, files become the network's input twice as fast as in torchvision's references.

Both read the same JPEG files and the same COCO annotation file, each in a single-threaded process, and
produce a normalised float32 batch. torchvision's side is its references/detection as published:
CocoDetection (PIL), its presets of transforms v2, and the GeneralizedRCNNTransform of its models, which
normalises, resizes and batches. Ours is DetectionDataset, collate and RetinaNet.normalise.
Run from the root of the repository: python -m benchmarks.data
"""

import contextlib
import json
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `python benchmarks/data.py`

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.transforms import v2
from torchvision.tv_tensors import BoundingBoxFormat, Mask

from benchmarks.measure import Call, Elsewhere, in_turns, parser, progress, report, section
from data.coco import load_coco
from data.images import read_image
from data.loader import DetectionDataset
from data.sample import Batch, collate
from data.transforms import Pipeline
from detector.builders.network import build_model
from detector.config import ModelConfig
from detector.retinanet import IMAGENET_MEAN, IMAGENET_STD
from doors import keep_freed_memory
from errors import InputError

SHORT, LONG = 500, 833  # of configs/coco_r50_aploss.yaml
BATCH = 8
BOXES = 7  # per image: COCO's mean
CPU = torch.device("cpu")

WHOLE_HEADER = ("augmentation", "ours, images/s", "torchvision, images/s", "ours / torchvision")
WHOLE_NOTE = (
    "From JPEG files to normalised float32 batches of {batch}, each in a process of one thread; {boxes} "
    "boxes per image; the short side becomes {short} px, or the long one {long}. Median, and half the "
    "interquartile range in per cent; the two run in turns and the ratio is the median over the turns. "
    "The augmentations are torchvision's presets: hflip flips, ssdlite first crops by IoU, ssd before "
    "that distorts colours and zooms out. torchvision: CocoDetection, the preset with PIL and "
    "transforms v2, GeneralizedRCNNTransform. Ours: the same steps from a YAML, collate, "
    "RetinaNet.normalise. Differences: ours resizes uint8 (averaging areas when it shrinks), "
    "torchvision float32 without averaging; our zoom-out shrinks into the size of the image, "
    "torchvision's enlarges the canvas up to 16 times in area; ours tries a crop 50 times and then does "
    "without, torchvision 40 times and then draws again. With a GPU, normalisation runs there, and "
    "torchvision's resizing too."
)
STAGES_HEADER = ("augmentation", "whose", "decode", "augment", "collate", "normalise", "whole path")
STAGES_NOTE = (
    "Each stage is timed by itself on the output of the one before. Our resizing counts as "
    "augmentation; torchvision's, like its normalisation, happens when it makes the batch, and its "
    "augmentation is the remainder of the whole."
)
FLIP: list[Any] = [{"HorizontalFlip": {"p": 0.5}}]
CROP: list[Any] = [{"IoUCrop": {"min_ious": [0.0, 0.1, 0.3, 0.5, 0.7, 0.9], "min_scale": 0.3}}]
DISTORT: list[Any] = [
    {"RandomBrightnessContrast": {"brightness_limit": 0.125, "contrast_limit": 0, "p": 0.5}},
    {"RandomBrightnessContrast": {"brightness_limit": 0, "contrast_limit": 0.5, "p": 0.5}},
    {"ColorJitter": {"brightness": 0, "contrast": 0, "saturation": 0.5, "hue": 0, "p": 0.5}},
    {"ColorJitter": {"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0.05, "p": 0.5}},
]
RESIZE: list[Any] = [{"ResizeWithin": {"short": SHORT, "long": LONG}}]
# torchvision's presets by name, as in a YAML configuration of ours.
PRESETS: dict[str, list[Any]] = {
    "hflip": [*FLIP, *RESIZE],
    "ssdlite": [*CROP, *FLIP, *RESIZE],
    "ssd": [*DISTORT, {"ZoomOut": {"ratio": 4.0, "p": 0.5}}, *CROP, *FLIP, *RESIZE],
}


@dataclass(frozen=True)
class Pictures:
    """A folder of JPEG files with random boxes."""

    folder: Path
    annotations: Path
    count: int
    text: str  # description


def make_pictures(folder: Path, count: int) -> None:
    """Write JPEG files of 640 x 480 or 480 x 640 px with the spectrum of photographs.

    Grey noise with power 1 / f^2 and a little sensor noise; colours are pale, as in photographs. At
    quality 90 such a file is about as large as one of COCO's.
    """
    rng = np.random.default_rng(0)
    for i in range(count):
        height, width = (480, 640) if i % 4 else (640, 480)
        frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
        frequency[0, 0] = np.inf
        planes = []
        for contrast in (55, 12, 12):
            noise = np.fft.rfft2(rng.standard_normal((height, width)))
            plane = np.fft.irfft2(noise / frequency, s=(height, width))
            planes.append(contrast * plane / plane.std() + rng.normal(0, 4, (height, width)))
        luminance, red, blue = planes
        pixels = np.stack([luminance + red, luminance - (red + blue) / 2, luminance + blue], axis=2) + 120
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        image.save(folder / f"{i:06d}.jpg", quality=90)


def annotate(folder: Path, target: Path, limit: int) -> Pictures:
    """Write a COCO file with `BOXES` boxes for each of the first `limit` JPEG files of a folder."""
    rng = np.random.default_rng(1)
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in (".jpg", ".jpeg"))[:limit]
    if not files:
        raise InputError(f"--images: {folder} holds no JPEG files")
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, file in enumerate(files, start=1):
        with Image.open(file) as image:
            width, height = image.size
        images.append({"id": number, "file_name": file.name, "width": width, "height": height})
        sides = rng.uniform(0.1, 0.5, (BOXES, 2)) * (width, height)
        corner = rng.uniform(0, 1, (BOXES, 2)) * ((width, height) - sides)
        annotations += [
            annotation(len(annotations) + k + 1, number, box)
            for k, box in enumerate(np.hstack([corner, sides]).tolist())
        ]
    write_coco(target, images, annotations)
    size_kb = sum(file.stat().st_size for file in files) / len(files) / 1e3
    return Pictures(folder, target, len(files), f"{len(files)} JPEG files, {size_kb:.0f} kB on average")


def annotation(number: int, image: int, box: list[float]) -> dict[str, Any]:
    area = box[2] * box[3]
    return {
        "id": number,
        "image_id": image,
        "category_id": number % 80 + 1,
        "bbox": box,
        "area": area,
        "iscrowd": 0,
    }


def write_coco(target: Path, images: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> None:
    categories = [{"id": k, "name": f"class {k}"} for k in range(1, 81)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    target.write_text(json.dumps(content), encoding="utf-8")


class Ours:
    """Our path, whole and stage by stage."""

    def __init__(self, pictures: Pictures, transforms: list[Any]) -> None:
        self.records = load_coco(pictures.annotations, pictures.folder)
        self.pipeline = Pipeline(transforms, 0.0, "benchmark")
        self.dataset = DetectionDataset(self.records, self.pipeline, seed=0)
        self.model = build_model(ModelConfig(backbone="resnet18"), 80, pretrained=False)
        self.epoch = 0
        self.rows = range(len(self.records))
        self.pixels = [self._read(row) for row in self.rows]
        self.samples = [self.dataset.sample(0, row) for row in self.rows]
        self.batches = [collate(self.samples[i : i + BATCH]) for i in self.rows[::BATCH]]

    def _read(self, row: int) -> NDArray[np.uint8]:
        height, width = self.records.sizes[row].tolist()
        return read_image(Path(self.records.files[row]), (height, width))

    def decode(self) -> None:
        for row in self.rows:
            self._read(row)

    def augment(self) -> None:
        self.epoch += 1
        for row in self.rows:
            boxes = self.records.boxes[self.records.offsets[row] : self.records.offsets[row + 1]]
            self.pipeline(self.pixels[row], boxes.astype(np.float32), self.epoch * len(self.rows) + row)

    def collate(self) -> None:
        for i in self.rows[::BATCH]:
            collate(self.samples[i : i + BATCH])

    def normalise(self) -> None:
        for batch in self.batches:
            self._input(batch)

    def whole(self) -> None:
        self.epoch += 1
        for i in self.rows[::BATCH]:
            self._input(collate([self.dataset.sample(self.epoch, row) for row in self.rows[i : i + BATCH]]))

    def _input(self, batch: Batch) -> Tensor:
        return self.model.normalise(batch.images, batch.sizes)


class Torchvision:
    """The path of torchvision's references/detection."""

    def __init__(self, pictures: Pictures, preset: str) -> None:
        dataset = CocoDetection(pictures.folder, pictures.annotations, transforms=_preset(preset))
        self.images = CocoDetection(pictures.folder, pictures.annotations)
        keys = ("boxes", "labels", "image_id")
        self.dataset = wrap_dataset_for_transforms_v2(dataset, target_keys=keys)
        self.model_transform = GeneralizedRCNNTransform(SHORT, LONG, list(IMAGENET_MEAN), list(IMAGENET_STD))
        self.rows = range(len(self.dataset))
        self.samples = [self.dataset[row] for row in self.rows]

    def decode(self) -> None:
        for row in self.rows:
            np.asarray(self.images._load_image(self.images.ids[row]))

    def batch(self) -> None:
        for i in self.rows[::BATCH]:
            self._input(self.samples[i : i + BATCH])

    def whole(self) -> None:
        for i in self.rows[::BATCH]:
            self._input([self.dataset[row] for row in self.rows[i : i + BATCH]])

    def _input(self, samples: list[Any]) -> Tensor:
        images, targets = zip(*samples, strict=True)
        batch, _ = self.model_transform(list(images), list(targets))
        return batch.tensors


def _preset(name: str) -> v2.Compose:
    """DetectionPresetTrain(data_augmentation=name, backend="pil", use_v2=True)."""
    steps: list[Any] = {
        "hflip": [v2.RandomHorizontalFlip(p=0.5)],
        "ssdlite": [v2.RandomIoUCrop(), v2.RandomHorizontalFlip(p=0.5)],
        "ssd": [
            v2.RandomPhotometricDistort(),
            v2.RandomZoomOut(fill=defaultdict(lambda: (123.0, 117.0, 104.0), {Mask: 0})),
            v2.RandomIoUCrop(),
            v2.RandomHorizontalFlip(p=0.5),
        ],
    }[name]
    return v2.Compose(
        [
            *steps,
            v2.ToImage(),
            v2.ToDtype(torch.float, scale=True),
            v2.ConvertBoundingBoxFormat(BoundingBoxFormat.XYXY),
            v2.SanitizeBoundingBoxes(),
            v2.ToPureTensor(),
        ]
    )


def our_calls(pictures: Pictures, preset: str) -> dict[str, Call]:
    """Our calls, in a process set up like that of train.py."""
    keep_freed_memory()
    torch.set_num_threads(1)
    ours = Ours(pictures, PRESETS[preset])
    return {
        "ours": ours.whole,
        "decode": ours.decode,
        "augment": ours.augment,
        "collate": ours.collate,
        "normalise": ours.normalise,
    }


def peer_calls(pictures: Pictures, preset: str) -> dict[str, Call]:
    """torchvision's calls."""
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(sys.stderr):  # pycocotools is chatty
        peer = Torchvision(pictures, preset)
    return {"peer": peer.whole, "peer decode": peer.decode, "peer batch": peer.batch}


def measure_preset(name: str, pictures: Pictures, repeats: int) -> tuple[list[str], list[list[str]]]:
    """Rows of the two tables: the whole paths, and each side's stages."""
    with Elsewhere(our_calls, pictures, name) as ours, Elsewhere(peer_calls, pictures, name) as peer:
        timings = in_turns({**ours.calls, **peer.calls}, repeats, CPU, warm_up=1)
    speeds = [
        f"{pictures.count / timings[side].median_s:.1f} ± {100 * timings[side].spread:.0f} %"
        for side in ("ours", "peer")
    ]
    whole = [name, *speeds, f"{timings['peer'].ratio_to(timings['ours']):.2f}"]
    progress("  ".join(whole))
    ms = {key: timing.median_s * 1e3 / pictures.count for key, timing in timings.items()}
    augment = ms["peer"] - ms["peer decode"] - ms["peer batch"]
    stages = [
        [name, "ours", *(f"{ms[k]:.2f}" for k in ("decode", "augment", "collate", "normalise", "ours"))],
        [
            name,
            "torchvision",
            f"{ms['peer decode']:.2f}",
            f"{augment:.2f}",
            f"{ms['peer batch']:.2f}",
            "with it",
            f"{ms['peer']:.2f}",
        ],
    ]
    return whole, stages


def main() -> None:
    options = parser("The data path against torchvision's reference pipeline.", repeats=5, device=False)
    options.add_argument("--images", type=Path, metavar="FOLDER", help="JPEG files to read (default: made)")
    options.add_argument("--count", type=int, default=64, help="at most so many of them (%(default)s)")
    arguments = options.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        given = arguments.images
        if given is None:
            given = folder / "pictures"
            given.mkdir()
            make_pictures(given, arguments.count)
        try:
            pictures = annotate(given, folder / "pictures.json", arguments.count)
        except InputError as error:
            options.error(str(error))
        measured = [measure_preset(preset, pictures, arguments.repeats) for preset in PRESETS]
        origin = "made on the spot" if arguments.images is None else "photographs"
        sections = [
            section(
                f"Data path: {pictures.text}, {origin}",
                WHOLE_HEADER,
                [whole for whole, _ in measured],
                WHOLE_NOTE.format(short=SHORT, long=LONG, batch=BATCH, boxes=BOXES),
            ),
            section(
                "Data path: ms per image, stage by stage",
                STAGES_HEADER,
                [row for _, stages in measured for row in stages],
                STAGES_NOTE,
            ),
        ]
    report(sections, arguments.output)


if __name__ == "__main__":
    main()
