"""Mosaics: boxes, labels and ignored regions move with the pixels of their picture."""

import cv2
import numpy as np
import pytest

from data.annotations import AnnotatedImage, Annotation, pack_set
from data.feed import checked
from data.loader import DetectionDataset, train_loader
from data.mosaic import Mosaic, Picture, _window
from data.order import EpochBatches, Key
from data.transforms import Pipeline
from errors import InputError

KEY = "data.transforms.train"
BOXES = np.array([[10, 20, 50, 60], [70, 15, 150, 45], [60, 70, 120, 110]], dtype=np.float32)
SIZES = ((120, 160), (160, 200), (130, 155), (240, 320))  # height, width
SEEDS = range(40)


def pictures(sizes=SIZES, ignored=()):
    """Black pictures, each box filled with the colour of its row among all boxes."""
    made = []
    for i, size in enumerate(sizes):
        image = np.zeros((*size, 3), np.uint8)
        for k, (x0, y0, x1, y1) in enumerate(BOXES.astype(int)):
            image[y0:y1, x0:x1] = colour(3 * i + k)
        made.append(Picture(image, BOXES, np.isin(np.arange(3) + 3 * i, ignored)))
    return made


def colour(row):
    """One of twelve colours, none of which is a blend of another with black: one channel is 255."""
    return np.roll([255, 120 * (row // 3 % 2), 120 * (row // 6)], row)


def where(image, row):
    """The pixels of a box, without the blended ones at resized edges."""
    return (np.abs(image.astype(int) - colour(row)) <= 2).all(axis=2)


def test_boxes_follow_the_pixels():
    """Oracle: where the colour of each box lies in the mosaic."""
    seen = set()
    for seed in SEEDS:
        (image, boxes, _), rows = Mosaic(p=1)(pictures(), 0.3, seed)
        assert image.shape == (*SIZES[0], 3)
        assert boxes.dtype == np.float32
        for box, row in zip(boxes, rows.tolist(), strict=True):
            y, x = np.nonzero(where(image, row))
            extent = [x.min(), y.min(), x.max() + 1, y.max() + 1]
            np.testing.assert_allclose(box, extent, atol=1.6)  # one blended pixel at each edge
            seen.add(row)
    assert seen == set(range(12))


@pytest.mark.parametrize("least", [0.0, 0.3, 0.8])
def test_what_is_left_of_an_object_decides_whether_it_stays(least):
    """Oracle: its visible pixels, as nothing is scaled here. Ignored regions stay, however little is left."""
    ignored, kept, dropped = (1, 5, 9), 0, 0
    areas = np.tile((BOXES[:, 2:] - BOXES[:, :2]).prod(1), 4)
    for seed in SEEDS:
        mosaic = Mosaic(scale=1.0, p=1)
        (image, _, ignore), rows = mosaic(pictures([SIZES[0]] * 4, ignored), least, seed)
        np.testing.assert_array_equal(ignore, np.isin(rows, ignored))
        for row in range(12):
            visible = where(image, row).sum() / areas[row]
            if abs(visible - least) < 1e-9 and least > 0:
                continue
            assert (row in rows) == (visible > 0 and (visible > least or row in ignored))
            kept, dropped = kept + (row in rows), dropped + (0 < visible and row not in rows)
    assert kept > 100
    assert (dropped > 20) == (least > 0)


def test_the_four_meet_where_they_should_and_touch():
    """White pictures: no background at scale 1, nor at 0.5, where all are whole; three quarters at 0.25."""
    white = [Picture(np.full((*SIZES[0], 3), 255, np.uint8), BOXES, np.zeros(3, bool))] * 4
    for seed in SEEDS:
        (image, *_), _ = Mosaic(scale=1.0, p=1)(white, 0, seed)
        assert (image == 255).all()
        (image, boxes, _), rows = Mosaic(scale=0.5, center=0.5, p=1)(white, 0, seed)
        assert (image == 255).all()
        assert sorted(rows) == list(range(12))
        assert boxes[:, 2:].max() <= SIZES[0][1]
        (image, *_), _ = Mosaic(scale=0.25, center=0.5, p=1)(white, 0, seed)
        assert (image == 255).all(axis=2).mean() == 0.25  # in the middle, around the meeting point
        assert (image[45:75, 60:100] == 255).all()


def test_how_often_and_how_long():
    tries = 2000
    drawn = [Mosaic(p=0.3, epochs=2).drawn(seed, epoch) for seed in range(tries) for epoch in range(4)]
    share = np.array(drawn).reshape(tries, 4).mean(axis=0)
    assert abs(share[0] - 0.3) < 5 * (0.3 * 0.7 / tries) ** 0.5
    assert share[1] == share[0]  # the seeds are the same
    assert share[2:].tolist() == [0, 0]
    assert not Mosaic(p=0).drawn(1, 0)
    assert Mosaic(p=1).drawn(1, 10**6)


def records_of(folder, count=6, names=("cat", "dog", "cow")):
    """Images of one identifying colour each, 30 (i + 1); the boxes of image i are of class i % 3."""
    images = []
    for i in range(count):
        path, size = folder / f"{i}.png", (48 + 8 * i, 64)
        assert cv2.imwrite(str(path), np.full((*size, 3), 30 * (i + 1), np.uint8))
        objects = [
            Annotation("", (4.0 + 8 * k, 5.0, 40.0, 40.0), label=i % 3, ignore=k == i % 2) for k in range(2)
        ]
        images.append(AnnotatedImage(100 + i, path, size, objects))
    return pack_set(images, names, tuple(range(1, 4)), "the split")


MOSAIC = [{"Mosaic": {"p": 1.0}}, "HorizontalFlip"]


def test_labels_come_from_the_image_that_the_box_is_of(tmp_path):
    """Oracle: the colour in the middle of each box."""
    records, together = records_of(tmp_path), set()
    dataset = DetectionDataset(records, Pipeline(MOSAIC, 0.0, KEY), seed=0)
    for epoch in range(5):
        for index in range(len(records)):
            sample = dataset.sample(epoch, index)
            middle = ((sample.boxes[:, :2] + sample.boxes[:, 2:]) / 2).astype(int)
            images = sample.image[middle[:, 1], middle[:, 0], 0] // 30 - 1
            np.testing.assert_array_equal(sample.labels, images % 3)
            assert sample.original_size == tuple(records.sizes[index])
            together.add(len(set(images.tolist())))
            for image in set(images.tolist()):
                assert sample.ignore[images == image].sum() <= 4  # one of two boxes in up to four copies
    assert max(together) == 4


def test_workers_and_restarts_change_nothing(tmp_path):
    records, seen = records_of(tmp_path), []
    for workers, first in ((0, 0), (2, 0), (0, 1)):
        batches = EpochBatches(len(records), 2, seed=0)
        loader = train_loader(records, Pipeline(MOSAIC, 0.3, KEY), batches, 0, 0, workers, False)
        batches.start_at(3, first)
        seen.append([(b.images.numpy().tobytes(), b.boxes.numpy().tobytes()) for b in checked(loader)])
    assert seen[0] == seen[1]
    assert seen[0][1:] == seen[2]


def test_an_image_that_cannot_be_read_among_the_others(tmp_path):
    """It makes the sample fail, or the next image of the set replaces it, along with its boxes."""
    records = records_of(tmp_path)
    (tmp_path / "3.png").write_bytes(b"no picture")
    strict = DetectionDataset(records, Pipeline(MOSAIC, 0.0, KEY), seed=0)
    results = [strict[Key(epoch, 0)] for epoch in range(10)]
    failed = [result for result in results if isinstance(result, InputError)]
    assert 0 < len(failed) < 10
    assert all("3.png" in str(failure) for failure in failed)
    lenient = DetectionDataset(records, Pipeline(MOSAIC, 0.0, KEY), seed=0, stand_ins=1)
    for epoch, before in enumerate(results):
        sample = lenient[Key(epoch, 0)]
        assert not isinstance(sample, InputError)
        assert (sample.index, sample.wanted) == (0, 0)
        middle = ((sample.boxes[:, :2] + sample.boxes[:, 2:]) / 2).astype(int)
        np.testing.assert_array_equal(
            sample.labels, (sample.image[middle[:, 1], middle[:, 0], 0] // 30 - 1) % 3
        )
        if not isinstance(before, InputError):
            np.testing.assert_array_equal(sample.image, before.image)


@pytest.mark.parametrize(
    ("parameters", "problem"),
    [
        ({"grid_yx": [2, 2]}, "no parameter 'grid_yx'; it takes center, epochs, p, scale"),
        ({"p": 1.5}, "p must be a probability from 0 to 1, got 1.5"),
        ({"p": True}, "p must be a probability"),
        ({"scale": [1.0, 0.5]}, "scale must be above 0 and at most 2, in ascending order"),
        ({"scale": 0}, "scale must be above 0"),
        ({"scale": "big"}, "scale must be a number or a pair"),
        ({"center": [0.3, 0.5, 0.7]}, r"center must be a number or a pair \[least, most\]"),
        ({"center": [0.3, 1.2]}, "center must be above 0 and at most 1"),
        ({"epochs": 2.5}, "epochs must be a whole number, got 2.5"),
        ({"epochs": -1}, "epochs must be a whole number"),
    ],
)
def test_wrong_parameters_are_named(parameters, problem):
    with pytest.raises(InputError, match=rf"^data\.transforms\.train\[0\]: Mosaic: {problem}"):
        Pipeline([{"Mosaic": parameters}], 0.0, KEY)


def test_it_is_for_training_and_comes_first():
    with pytest.raises(InputError, match="Mosaic is for training"):
        Pipeline(["Mosaic"], 0.0, "data.transforms.eval").check_that_it_resizes_only()
    with pytest.raises(InputError, match=r"OneOf\.transforms\[0\]: Mosaic must be the first"):
        Pipeline([{"OneOf": {"transforms": ["Mosaic"]}}], 0.0, KEY)


def of_squares(height: int, width: int, side: int) -> Picture:
    corners = [(x, y) for x in range(0, width, side) for y in range(0, height, side)]
    boxes = np.array([[x, y, x + side, y + side] for x, y in corners], np.float32)
    return Picture(np.zeros((height, width, 3), np.uint8), boxes, np.zeros(len(boxes), bool))


def test_long_sides_are_scaled_whatever_the_proportions() -> None:
    """Canvas 100 high and 200 wide, the others upright: at scale 0.5 their long sides of 200 become 100."""
    pictures = [of_squares(100, 200, 20), *[of_squares(200, 100, 20)] * 3]
    done, rows = Mosaic(scale=0.5, center=0.5)(pictures, 0.999, 0)
    assert len(rows) > 0
    assert np.abs(done.boxes[:, 2:] - done.boxes[:, :2] - 10).max() < 0.6


def test_all_of_an_image_may_show() -> None:
    rng = np.random.default_rng(0)
    assert {_window(11, 1.0, 10, rng) for _ in range(50)} == {(0, 10, 10), (1, 11, 10)}


def test_little_of_an_object_at_the_edge_of_its_part_is_none() -> None:
    picture = of_squares(100, 100, 10)
    pipeline = Pipeline([{"Mosaic": {"p": 1.0, "scale": 1.0, "center": 0.47}}], 0.6, "key")
    for seed in range(10):
        _, left, _ = pipeline(picture.image, picture.boxes, seed, np.zeros(100, bool), [picture] * 3)
        assert len(left) > 0
        assert (left[:, 2:] - left[:, :2]).prod(1).min() >= 59


def test_hairs_of_objects_are_none() -> None:
    """Boxes 0.3 px wide that start 0.1 or 0.6 px into a pixel."""
    boxes = np.array([[x + d, 2, x + d + 0.3, 8] for x in range(10) for d in (0.1, 0.6)], np.float32)
    picture = Picture(np.zeros((10, 10, 3), np.uint8), boxes, np.zeros(20, bool))
    _, rows = Mosaic(scale=1.0, center=0.5)([picture] * 4, 0.0, 0)
    assert len(rows) == 0
