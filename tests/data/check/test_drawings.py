"""What the page of the data check draws: boxes on pictures, anchors below a histogram."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.annotations import AnnotatedImage, Annotation, pack_set
from data.check.charts import class_bars, histogram
from data.check.samples import sample_pictures
from data.colours import colour
from data.transforms import Pipeline


def test_boxes_lie_on_the_enlarged_picture_where_they_lie_in_the_image(tmp_path: Path) -> None:
    """Black, 140 x 105 px, drawn four times as large: lower right corners, where no name is."""
    Image.new("RGB", (140, 105)).save(tmp_path / "a.png")
    objects = [
        Annotation("", (10.0, 20.0, 60.0, 50.0), label=0),
        Annotation("", (80.0, 5.0, 135.0, 95.0), label=1, ignore=True),
    ]
    image = AnnotatedImage(1, tmp_path / "a.png", (105, 140), objects)
    records = pack_set([image], ("cat", "dog"), (1, 2), "the split")
    (picture,) = sample_pictures(records, Pipeline([], 0.3, "train"), seed=0)
    assert (picture.name, picture.size) == ("a.png", (140, 105))
    pixels = np.asarray(Image.open(io.BytesIO(picture.jpeg))).astype(int)
    assert pixels.shape == (420, 560, 3)
    for (x, y), drawn in (((60, 50), colour(0)), ((135, 95), (128, 128, 128))):
        assert np.abs(pixels[4 * y - 2, 4 * x - 30 : 4 * x - 2] - drawn).mean() < 40  # JPEG blurs a line
        assert np.abs(pixels[4 * y - 30 : 4 * y - 2, 4 * x - 2] - drawn).mean() < 40


def test_anchors_stand_below_the_boxes_of_their_size() -> None:
    """A tick, a bar and a triangle of one value are at one place; a doubling is as wide everywhere."""
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
