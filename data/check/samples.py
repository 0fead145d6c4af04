"""Training images as the network sees them, augmented, with their boxes drawn."""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data.colours import colour
from data.loader import DetectionDataset
from data.sample import DetectionSet, Sample
from data.transforms import Pipeline
from errors import InputError

_SHOWN = 12
_LONGEST = 560  # pixels of a picture's long side


@dataclass(frozen=True)
class Picture:
    """A drawn sample."""

    jpeg: bytes
    name: str  # of the file
    size: tuple[int, int]  # width, height that the network gets


def sample_pictures(records: DetectionSet, pipeline: Pipeline, seed: int) -> list[Picture]:
    """Some images of the first epoch, drawn at random; those that cannot be read are passed over."""
    dataset = DetectionDataset(records, pipeline, seed)
    pictures: list[Picture] = []
    for row in np.random.default_rng(0).permutation(len(records)).tolist():
        if len(pictures) == _SHOWN:
            break
        try:
            sample = dataset.sample(0, row)
        except InputError:
            continue
        height, width = sample.image.shape[:2]
        name = str(records.files[row]).replace("\\", "/").rsplit("/", 1)[-1]
        pictures.append(Picture(_draw(sample, records.classes), name, (width, height)))
    return pictures


def _draw(sample: Sample, classes: tuple[str, ...]) -> bytes:
    image = Image.fromarray(sample.image)
    scale = _LONGEST / max(image.size)
    image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    canvas, font = ImageDraw.Draw(image), ImageFont.load_default(15)
    for box, label, ignored in zip(sample.boxes * scale, sample.labels, sample.ignore, strict=True):
        x0, y0, x1, y1 = (round(float(v)) for v in box)
        corners = (x0, y0, max(x0, x1 - 1), max(y0, y1 - 1))
        ground = (128, 128, 128) if ignored else colour(int(label))
        wide = (corners[0] - 1, corners[1] - 1, corners[2] + 1, corners[3] + 1)
        canvas.rectangle(wide, outline=(0, 0, 0), width=4)
        canvas.rectangle(corners, outline=ground, width=2)
        text = f"{classes[label]} (ignored)" if ignored else classes[label]
        left, top, right, bottom = canvas.textbbox((x0 + 3, y0 + 1), text, font=font)
        canvas.rectangle((left - 2, top - 1, right + 1, bottom + 1), fill=ground)
        light = sum(ground) > 330
        canvas.text((x0 + 3, y0 + 1), text, fill=(0, 0, 0) if light else (255, 255, 255), font=font)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80)
    return file.getvalue()
