"""Drawn pictures: colours that everyone can tell apart, boxes where they belong, labels that can be read."""

from itertools import combinations
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import ImageFont

from data import drawing
from data.colours import PALETTE, colour
from detector.predictor import ImageDetections

# Machado, Oliveira & Fernandes (2009), severity 1.0, for linear RGB.
BLINDNESS = {
    "none": (1, 0, 0, 0, 1, 0, 0, 0, 1),
    "protanopia": (
        *(0.152286, 1.052583, -0.204868),
        *(0.114503, 0.786281, 0.099216),
        *(-0.003882, -0.048116, 1.051998),
    ),
    "deuteranopia": (
        *(0.367322, 0.860646, -0.227968),
        *(0.280085, 0.672501, 0.047413),
        *(-0.011820, 0.042940, 0.968881),
    ),
    "tritanopia": (
        *(1.255528, -0.076749, -0.178779),
        *(-0.078411, 0.930809, 0.147602),
        *(0.004733, 0.691367, 0.303900),
    ),
}


def draw(pixels: np.ndarray, found: ImageDetections) -> np.ndarray:
    return np.array(found.draw(pixels, enlarge=True))


def lab(colours: np.ndarray, blindness: str) -> np.ndarray:
    """sRGB 0..255 [N, 3] -> CIELAB (D65), as seen with that kind of colour vision."""
    v = colours / 255
    linear = np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)
    seen = (linear @ np.reshape(BLINDNESS[blindness], (3, 3)).T).clip(0, 1)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = seen @ np.array(to_xyz).T / [0.9505, 1, 1.089]
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / 3 / (6 / 29) ** 2 + 4 / 29)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)


@pytest.mark.parametrize("blindness", BLINDNESS)
def test_classes_can_be_told_apart_by_every_eye(blindness: str) -> None:
    """A difference of 10 in CIELAB is clearly visible; red and green of equal lightness fail this."""
    seen = lab(np.array(PALETTE, dtype=float), blindness)
    nearest = min(float(np.linalg.norm(a - b)) for a, b in combinations(seen, 2))
    assert nearest > 10


def test_more_classes_than_colours_stay_different() -> None:
    assert len({colour(label) for label in range(3 * len(PALETTE))}) == 3 * len(PALETTE)


def found(*boxes: tuple[float, float, float, float]) -> ImageDetections:
    count = len(boxes)
    scores = np.linspace(0.9, 0.5, count)
    return ImageDetections(np.array(boxes, dtype=np.float64), scores, np.arange(count), ("cat",) * count)


def test_nothing_found_changes_nothing() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (400, 600, 3), dtype=np.uint8)
    empty = ImageDetections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, dtype=np.int64), ())
    np.testing.assert_array_equal(draw(pixels, empty), pixels)


@pytest.mark.parametrize("ground", [0, 128, 255])
def test_the_lines_run_along_the_box_and_leave_the_object_free(ground: int) -> None:
    pixels = np.full((600, 800, 3), ground, dtype=np.uint8)
    drawn = draw(pixels, found((100, 200, 500, 400)))
    assert (pixels == ground).all()  # draw works on a copy
    for y, x in ((300, 100), (300, 500), (200, 300), (400, 300)):
        assert tuple(drawn[y, x]) == colour(0)
    line = (drawn[300] == colour(0)).all(axis=1)
    assert 2 * 2 <= line.sum() <= 2 * 8
    assert (drawn[220:380, 120:480] == ground).all()
    outside = drawn.copy()
    outside[150:410, 90:510] = ground
    assert (outside == ground).all()


def test_small_pictures_are_enlarged_and_their_boxes_with_them() -> None:
    drawn = draw(np.zeros((48, 64, 3), dtype=np.uint8), found((16, 12, 48, 36)))
    assert drawn.shape == (48 * 8, 64 * 8, 3)
    assert tuple(drawn[24 * 8, 16 * 8]) == tuple(drawn[24 * 8, 48 * 8]) == colour(0)
    pixels = np.zeros((48, 64, 3), dtype=np.uint8)
    assert found((16, 12, 48, 36)).draw(pixels).size == (64, 48)  # not enlarged unless asked for


def test_labels_of_neighbours_do_not_hide_one_another() -> None:
    """Same box, different classes: each label shows its background colour in about the same area."""
    drawn = draw(np.zeros((600, 800, 3), dtype=np.uint8), found(*[(300, 300, 400, 400)] * 4))
    areas = [int((drawn == colour(label)).all(axis=2).sum()) for label in range(4)]
    # The first also shows its lines, which lie on top of those of the others.
    assert max(areas[1:]) - min(areas[1:]) < 0.1 * max(areas[1:])
    assert areas[0] > max(areas[1:]) > 500


def test_a_label_lies_where_it_hides_least() -> None:
    """Oracle: a double loop over eight places and the labels placed before."""
    rng = np.random.default_rng(0)
    extent, size, line, placed = (40, 16), (300, 200), 4, []
    for _ in range(60):
        x0, y0 = rng.uniform(-10, 260), rng.uniform(-10, 180)
        box = np.array([x0, y0, x0 + rng.uniform(5, 90), y0 + rng.uniform(5, 90)])
        x1, y1 = box[2:].tolist()
        best, least = None, np.inf
        for y in (y0 - 2 - 16, y1 + 2, y0, y1 - 16):
            for x in (x0 - 2, x1 + 2 - 40):
                left, top = round(min(max(x, 0), 260)), round(min(max(y, 0), 184))
                hidden = sum(
                    max(0, min(left + 40, r) - max(left, a)) * max(0, min(top + 16, b) - max(top, t))
                    for a, t, r, b in placed
                )
                if hidden < least:
                    best, least = (left, top, left + 40, top + 16), hidden
        at = drawing._free_place(box, extent, size, line, np.array(placed).reshape(-1, 4))
        assert at == best
        placed.append(at)


def test_a_label_stays_within_the_picture() -> None:
    """In each corner there is room on one side only; lines may be cut off there, the label may not."""
    small, lines = 20, 450  # side of the box in pixels, and the most pixels of its lines

    def coloured(x: int, y: int) -> int:
        drawn = draw(np.zeros((600, 800, 3), dtype=np.uint8), found((x, y, x + small, y + small)))
        return int((drawn == colour(0)).all(axis=2).sum())

    label = coloured(300, 300) - lines
    assert label > lines
    for corner in ((0, 0), (780, 0), (0, 580), (780, 580)):
        assert coloured(*corner) >= label


@pytest.mark.parametrize("far", [1e7, 1e20, 1e308])
def test_boxes_that_reach_far_out_are_drawn_as_far_as_the_picture_goes(far: float) -> None:
    """Without delay, and identically."""
    pixels = np.full((600, 800, 3), 90, dtype=np.uint8)
    drawn = draw(pixels, found((-far, 100.0, 300.0, far)))
    assert np.array_equal(drawn, draw(pixels, found((-790.0, 100.0, 300.0, 1190.0))))
    assert not np.array_equal(drawn, pixels)


def test_names_in_other_scripts_can_be_drawn() -> None:
    one = found((100, 100, 300, 300))
    named = ImageDetections(one.boxes, one.scores, one.labels, ("Fußgänger Ω",))
    assert draw(np.zeros((600, 800, 3), dtype=np.uint8), named).any()


def test_pictures_of_many_sizes_and_letters_keep_few_fonts() -> None:
    letters = "äöüßéèñçøåæœ"
    for number in range(100):
        drawing._font(20 + number % 7, frozenset(letters[: number % 12 + 1]))
    assert drawing._font.cache_info().currsize <= 32


def test_the_first_font_with_most_of_the_letters_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the first that is installed: on Linux, one font may lack Chinese and another have it."""
    usual, poor, other, rich = (ImageFont.load_default(size) for size in (19, 20, 21, 22))
    letters = {id(poor): "", id(other): "é", id(rich): "é猫"}

    def open_font(name: str, size: int) -> Any:
        fonts = {"poor": poor, "other": other, "rich": rich}
        if name not in fonts:
            raise OSError("cannot open resource")
        return fonts[name]

    monkeypatch.setattr(drawing, "_FONTS", ("none", "poor", "other", "rich"))
    fonts = SimpleNamespace(truetype=open_font, load_default=lambda size: usual)
    monkeypatch.setattr(drawing, "ImageFont", fonts)
    monkeypatch.setattr(
        drawing, "_look", lambda font, letter: letter.encode() if letter in letters[id(font)] else b"box"
    )
    drawing._font.cache_clear()
    assert drawing._font(20, frozenset("é猫")) is rich
    assert drawing._font(20, frozenset("é")) is other
    assert drawing._font(20, frozenset("ж")) is usual
    drawing._font.cache_clear()


def test_a_letter_that_a_font_has_looks_like_none_that_it_lacks() -> None:
    font = ImageFont.load_default(20)
    assert isinstance(font, ImageFont.FreeTypeFont)
    missing = drawing._look(font, drawing._IN_NO_FONT)
    assert drawing._look(font, "A") != missing
    assert drawing._look(font, "猫") == missing
