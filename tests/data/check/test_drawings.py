"""What the page of the data check draws: boxes on pictures, anchors below a histogram."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from data.annotations import AnnotatedImage, Annotation, pack_set
from data.check.charts import class_bars, histogram
from data.check.findings import BoxSpot, Finding, Spot
from data.check.pictures import place_pictures, sample_pictures
from data.colours import colour
from data.sample import DetectionSet
from data.transforms import Pipeline


def test_boxes_lie_on_the_enlarged_picture_where_they_lie_in_the_image(tmp_path: Path) -> None:
    """Black, 140 x 105 px, drawn four times as large; checked at lower right corners, away from names."""
    Image.new("RGB", (140, 105)).save(tmp_path / "a.png")
    objects = [
        Annotation("", (10.0, 20.0, 60.0, 50.0), label=0),
        Annotation("", (80.0, 5.0, 135.0, 95.0), label=1, ignore=True),
    ]
    image = AnnotatedImage(1, tmp_path / "a.png", (105, 140), objects)
    records = pack_set([image], ("cat", "dog"), (1, 2), "the split")
    (picture,) = sample_pictures(records, Pipeline([], 0.3, "train"), seed=0)
    assert picture.caption == "a.png, 140 x 105 px"
    pixels = np.asarray(Image.open(io.BytesIO(picture.jpegs[0]))).astype(int)
    assert pixels.shape == (420, 560, 3)
    for (x, y), ink, dashed in (((60, 50), colour(0), False), ((135, 95), colour(1), True)):
        for line in (pixels[4 * y, 4 * x - 100 : 4 * x - 2], pixels[4 * y - 100 : 4 * y - 2, 4 * x]):
            drawn = np.abs(line - ink).mean(axis=1) < 60  # JPEG blurs a line
            assert 0.3 < drawn.mean() < 0.75 if dashed else drawn.mean() > 0.95


def plain_set(folder: Path, colours: str, *objects: Annotation) -> DetectionSet:
    """An image of 140 x 105 px for each colour, with the same objects."""
    images = []
    for k, name in enumerate(colours.split()):
        Image.new("RGB", (140, 105), name).save(folder / f"{name}.png")
        images.append(AnnotatedImage(k, folder / f"{name}.png", (105, 140), [*objects]))
    return pack_set(images, ("cat", "dog"), (1, 2), "the split")


def pixels_of(jpeg: bytes) -> NDArray[np.int64]:
    return np.asarray(Image.open(io.BytesIO(jpeg))).astype(np.int64)


def box_spot(records: DetectionSet, box: int) -> BoxSpot:
    return BoxSpot("box-partly-outside", "is out", (), "train", records, "annotation", box)


def test_a_box_that_was_found_is_shown_with_its_surroundings_and_what_is_outside(tmp_path: Path) -> None:
    """A box of 60 x 50 px, 30 px beyond the right edge: shown is the part from x = 80 to the box's end."""
    records = plain_set(tmp_path, "black", Annotation("", (110.0, 20.0, 170.0, 70.0), label=0))
    found = Finding("box-partly-outside", (box_spot(records, 0),))
    (picture,) = place_pictures([found], {"train": records})["box-partly-outside"]
    assert picture.caption == "black.png"
    shown = pixels_of(picture.jpegs[0])
    assert shown.shape == (400, 343, 3)  # y from 0 to 105, x from 80 to 170
    scale = 400 / 105
    of_image, outside = round((130 - 80) * scale), round((150 - 80) * scale)
    assert shown[390, of_image].max() < 30 and shown[390, outside].min() > 200
    line = round((110 - 80) * scale)
    assert np.abs(shown[200:240, line - 1 : line + 1] - colour(0)).mean() < 50


def test_an_image_that_stands_twice_is_shown_beside_the_other(tmp_path: Path) -> None:
    train, val = plain_set(tmp_path, "red green"), plain_set(tmp_path, "blue")
    spot = Spot("near-duplicate-in-both", "alike", "val", str(tmp_path / "blue.png"), 0, other=("train", 1))
    sets = {"train": train, "val": val}
    (picture,) = place_pictures([Finding(spot.code, (spot,))], sets)[spot.code]
    assert picture.caption == "blue.png (val) and green.png (train)"
    mine, other = (pixels_of(jpeg).mean(axis=(0, 1)) for jpeg in picture.jpegs)
    assert mine.argmax() == 2 and other.argmax() == 1


def test_places_of_different_images_come_first_and_none_that_cannot_be_seen(tmp_path: Path) -> None:
    box = Annotation("", (10.0, 20.0, 60.0, 50.0), label=1)
    records = plain_set(tmp_path, "red green blue white black", box, box)
    (tmp_path / "green.png").write_bytes(b"no picture")
    spots = tuple(box_spot(records, k) for k in range(10))
    pictures = place_pictures([Finding("box-duplicated", spots)], {"train": records})["box-duplicated"]
    assert [picture.caption for picture in pictures] == [
        f"{c}.png" for c in ("red", "blue", "white", "black")
    ]
    red = str(tmp_path / "red.png")
    unseen = (
        Spot("box-reversed", "refused", "train", red, 0, annotation=7),
        Spot("image-missing", "away", "train", str(tmp_path / "away.png"), 9),
        Spot("class-rare", "few", "train"),
        Spot("image-twice", "again", "gone", red, 0),
    )
    assert place_pictures([Finding("no", unseen)], {"train": records}) == {}


def test_anchors_stand_below_the_boxes_of_their_size() -> None:
    """Tick, bar and triangle of one value are at the same place; every doubling is equally wide."""
    chart = histogram(np.array([17.0, 33.0, 33.0, 33.0, 65.0]), [32.0, 64.0, 64 * 2**0.5])
    ticks = {int(n): float(x) for x, n in re.findall(r'<text x="([^"]*)" y="168.0"[^>]*>(\d+)<', chart)}
    assert list(ticks) == [16, 32, 64, 128]
    marks = [float(x) for x in re.findall(r'<path d="M([\d.]+) 174l', chart)]
    assert marks == pytest.approx([ticks[32], ticks[64], (ticks[64] + ticks[128]) / 2], abs=0.1)
    bars = [(float(h), float(x)) for x, h in re.findall(r'<rect x="([^"]*)"[^>]* height="([^"]*)"', chart)]
    assert max(bars)[1] == ticks[32]


def test_classes_that_are_too_many_to_be_shown_are_counted():
    counts = {f"class {k}": 100 - k for k in range(50)}
    shown = class_bars({"train": counts})
    assert "class 39" in shown
    assert "class 40" not in shown
    assert "and 10 classes with fewer boxes" in shown
    assert "fewer" not in class_bars({"train": dict(list(counts.items())[:40])})
