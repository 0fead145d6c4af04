"""Augmentation: boxes follow the pixels, the seed decides everything, the configuration is checked."""

import warnings

import cv2
import numpy as np
import pytest

from data.own_transforms import resize
from data.transform_list import resized_to
from data.transforms import Pipeline
from errors import InputError

SEEDS = range(40)
BOXES = np.array([[10, 20, 50, 60], [70, 15, 150, 45], [60, 70, 120, 110]], dtype=np.float32)
KEY = "data.transforms.train"


def pipeline(*transforms, min_visibility=0.0):
    return Pipeline(transforms, min_visibility, KEY)


def painted(height=120, width=160):
    """A black picture with BOXES in red, green and blue."""
    image = np.zeros((height, width, 3), np.uint8)
    for channel, (x0, y0, x1, y1) in enumerate(BOXES.astype(int)):
        image[y0:y1, x0:x1, channel] = 255
    return image


def extent(image, channel):
    """The box of a colour's pixels; blended pixels at resized edges count from half intensity."""
    others = [c for c in range(3) if c != channel]
    mask = (image[:, :, channel] > 127) & (image[:, :, others] < 90).all(axis=2)
    y, x = np.nonzero(mask)
    return np.array([x.min(), y.min(), x.max() + 1, y.max() + 1]) if len(x) else None


def map_of_positions(height=200, width=240):
    """A picture whose pixels encode their positions: red is x, green is y."""
    y, x = np.mgrid[:height, :width]
    return np.dstack([x, y, np.zeros_like(x)]).astype(np.uint8)


def crop_of(image):
    (x0, y0, _), (x1, y1, _) = image[0, 0].astype(int), image[-1, -1].astype(int) + 1
    return x0, y0, x1, y1


def iou(a, b):
    sides = [max(min(a[i + 2], b[i + 2]) - max(a[i], b[i]), 0) for i in range(2)]
    common = sides[0] * sides[1]
    return common / (sum((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)) - common)


GEOMETRIC = {  # transforms -> tolerance in pixels: half a pixel for each rounding of a resize
    "flip": (["HorizontalFlip"], 1e-3),
    "resize": ([{"ResizeWithin": {"long": [80, 300]}}], 1.0),
    "short side": ([{"ResizeWithin": {"long": 200, "short": 90}}], 1.0),
    "zoom out": ([{"ZoomOut": {"ratio": 3.0, "p": 1.0}}], 1.0),
    "crop": (["IoUCrop"], 1e-3),
    "all": (
        [{"ZoomOut": {"ratio": 2.0}}, "IoUCrop", "HorizontalFlip", {"ResizeWithin": {"long": 240}}],
        5.0,  # a crop to a third of the side, enlarged, turns one pixel into three
    ),
}


@pytest.mark.parametrize(("transforms", "tolerance"), GEOMETRIC.values(), ids=GEOMETRIC)
def test_boxes_follow_the_pixels(transforms, tolerance):
    """Oracle: where the colour of each box lies in the transformed picture."""
    apply, seen, results = pipeline(*transforms), 0, set()
    for seed in SEEDS:
        image, boxes, rows = apply(painted(), BOXES, seed)
        results.add(image.tobytes())
        assert boxes.dtype == np.float32
        assert image.dtype == np.uint8
        for row in range(len(BOXES)):
            found = extent(image, row)
            if row in rows:
                np.testing.assert_allclose(boxes[list(rows).index(row)], found, atol=tolerance)
                seen += 1
            else:  # gone, or a sliver
                assert found is None or min(found[2:] - found[:2]) <= 1 + tolerance
    assert seen > len(SEEDS)
    assert (len(results) == 1) == (transforms == GEOMETRIC["short side"][0])  # the others are random


@pytest.mark.parametrize(
    ("parameters", "before", "after"),
    [
        ({"long": 800}, (480, 640), (600, 800)),
        ({"long": 320}, (480, 640), (240, 320)),
        ({"long": 800}, (1000, 10), (800, 8)),
        ({"long": 100}, (1000, 2), (100, 1)),
        ({"long": 1333, "short": 800}, (480, 640), (800, 1067)),
        ({"long": 1333, "short": 800}, (300, 1000), (400, 1333)),
        ({"long": 1333, "short": 800}, (1600, 1600), (800, 800)),
        ({"long": 640}, (640, 480), (640, 480)),
    ],
)
def test_resize_within_keeps_the_ratio_and_both_limits(parameters, before, after):
    image, boxes, _ = pipeline({"ResizeWithin": parameters})(
        np.zeros((*before, 3), np.uint8), np.array([[0, 0, before[1], before[0]]], np.float32), 0
    )
    assert image.shape == (*after, 3)
    np.testing.assert_allclose(boxes, [[0, 0, after[1], after[0]]], rtol=1e-5)


def test_one_size_scales_all_resizing_in_proportion():
    """By hand: 320 px in evaluation become 480, which is 1.5 times as much."""
    training = ["HorizontalFlip", {"ResizeWithin": {"long": [240, 320], "short": 200}}, {"Blur": {"p": 0.1}}]
    evaluation = [{"ResizeWithin": {"long": 320}}]
    expected = ["HorizontalFlip", {"ResizeWithin": {"long": [360, 480], "short": 300}}, {"Blur": {"p": 0.1}}]
    assert resized_to(480, training, evaluation) == expected
    assert resized_to(480, evaluation, evaluation) == [{"ResizeWithin": {"long": 480}}]
    assert evaluation == [{"ResizeWithin": {"long": 320}}]
    others = [{"OneOf": {"transforms": [{"Resize": {"height": 320, "width": 160}}, "Blur"]}}]
    assert resized_to(160, others, evaluation) == [
        {"OneOf": {"transforms": [{"Resize": {"height": 160, "width": 80}}, "Blur"]}}
    ]
    with pytest.raises(InputError, match=r"data\.transforms\.train has none of them"):
        resized_to(160, ["HorizontalFlip"], evaluation)
    for none in ([], ["NoOp"], [{"ResizeWithin": None}], [{"ResizeWithin": {"long": []}}]):
        with pytest.raises(InputError, match=r"data\.transforms\.eval has none"):
            resized_to(480, training, none)


def test_resize_within_draws_sizes_up_to_both_ends():
    apply = pipeline({"ResizeWithin": {"long": [60, 63]}})
    drawn = {apply(painted(), BOXES, seed)[0].shape[1] for seed in SEEDS}
    assert drawn == {60, 61, 62, 63}


@pytest.mark.parametrize(
    "transforms",
    [
        [],
        [{"ResizeWithin": {"long": 64}}],
        [{"ResizeWithin": {"short": 50, "long": 83}}, {"ResizeWithin": {"long": 40}}],
        [{"LongestMaxSize": {"max_size": 60}}],
    ],
)
def test_sizes_are_foretold(transforms):
    """Oracle: the sizes of the transformed pictures."""
    sizes = np.array([[30, 47], [120, 31], [30, 47], [1, 200]])
    none = np.zeros((0, 4), np.float32)
    made = [pipeline(*transforms)(np.zeros((h, w, 3), np.uint8), none, 0)[0].shape[:2] for h, w in sizes]
    assert pipeline(*transforms).sizes_of(sizes).tolist() == [list(size) for size in made]
    assert pipeline(*transforms).sizes_of(sizes[:0]).shape == (0, 2)


DIVISIBLE = {"min_height": None, "min_width": None, "pad_height_divisor": 32, "pad_width_divisor": 32}


@pytest.mark.parametrize(
    "transforms",
    [
        ["HorizontalFlip"],
        [{"CenterCrop": {"height": 90, "width": 60}}],
        [{"LongestMaxSize": {"max_size": 64}}, {"PadIfNeeded": {"min_height": 64, "min_width": 64}}],
        [{"PadIfNeeded": {"min_height": 128, "min_width": 128, "position": "top_left"}}],
        # Padding that does nothing to images of proportions 3:2.
        [{"ResizeWithin": {"long": 320}}, {"PadIfNeeded": {"min_height": 200, "min_width": 200}}],
        [{"ResizeWithin": {"long": 480}}, {"PadIfNeeded": DIVISIBLE}],
    ],
)
def test_evaluation_takes_what_resizes_only(transforms):
    """Detections are scaled back to the file; after cropping or padding they would be misplaced."""
    with pytest.raises(InputError, match=rf"{KEY}: .*only resizing makes sense"):
        pipeline(*transforms).check_that_it_resizes_only()


def test_a_transform_that_does_not_fit_the_image_is_one_line():
    with pytest.raises(InputError, match=rf"{KEY}: the transforms fail on .* 160 x 120 px .CropSize"):
        pipeline({"CenterCrop": {"height": 512, "width": 512}})(painted(), BOXES, 0)


@pytest.mark.parametrize("name", ["ResizeWithin", "LongestMaxSize", "Resize"])
def test_evaluation_takes_what_resizes(name):
    sizes = {
        "ResizeWithin": {"long": 333, "short": 40},
        "LongestMaxSize": {"max_size": 50},
        "Resize": {"height": 77, "width": 200},
    }
    pipeline({name: sizes[name]}, {"ToGray": {"p": 1}}).check_that_it_resizes_only()


@pytest.mark.parametrize("transform", ["Normalize", "ToFloat"])
def test_what_the_model_does_itself_is_refused(transform):
    """A later resizing would silently cut the values to whole numbers, and training would be on noise."""
    for place in ([transform, {"ResizeWithin": {"long": 64}}], [{"OneOf": {"transforms": [transform]}}]):
        with pytest.raises(InputError, match=rf"{KEY}.*leave out {transform}.*normalises them itself"):
            pipeline(*place)


def test_pictures_that_are_no_longer_uint8_are_refused():
    with pytest.raises(InputError, match=rf"{KEY}: the transforms return float.*must return"):
        pipeline("FromFloat")(painted(), BOXES, 0)


@pytest.mark.parametrize("transform", [{"ResizeWithin": {"long": [96, 320]}}, {"ToGray": {"p": 0.5}}])
def test_evaluation_takes_nothing_random(transform):
    with pytest.raises(InputError, match=rf"{KEY}: .*are random"):
        pipeline(transform).check_that_it_resizes_only()


def test_shrinking_averages():
    """Oracle: the mean of every 4 x 4 pixels, where sampling would give a moire."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 80, 3), dtype=np.uint8)
    image, _, _ = pipeline({"ResizeWithin": {"long": 20}})(noise, BOXES[:0], 0)
    np.testing.assert_allclose(image, noise.reshape(10, 4, 20, 4, 3).mean((1, 3)), atol=1)
    lower = resize(noise, 10, 80)
    np.testing.assert_allclose(lower, noise.reshape(10, 4, 80, 3).mean(1), atol=1)


def test_enlarging_interpolates() -> None:
    """Linearly between the centres of the pixels."""
    image = np.repeat(np.array([[[0], [100]]], np.uint8), 3, axis=2)
    for channel in range(3):
        assert resize(image, 1, 4)[:, :, channel].tolist() == [[0, 25, 75, 100]]


def test_zoom_out_puts_the_picture_on_a_mean_coloured_canvas():
    """Oracle: all pixels that are not of ImageNet's mean colour form one small copy."""
    apply = pipeline({"ZoomOut": {"ratio": 4.0, "p": 1.0}})
    white, ratios, corners = np.full((120, 160, 3), 255, np.uint8), [], set()
    for seed in SEEDS:
        image, boxes, _ = apply(white, np.array([[0, 0, 160, 120]], np.float32), seed)
        assert image.shape == white.shape
        small = (image == 255).all(axis=2)
        assert (image[~small] == (124, 116, 104)).all()
        y, x = np.nonzero(small)
        assert small[y.min() : y.max() + 1, x.min() : x.max() + 1].all()
        np.testing.assert_allclose(boxes[0], [x.min(), y.min(), x.max() + 1, y.max() + 1], atol=1e-3)
        ratios.append(160 / (x.max() + 1 - x.min()))
        corners.add((x.min(), y.min()))
    assert 1 <= min(ratios) < 1.5
    assert 3 < max(ratios) <= 4.05
    assert len(corners) > 30


@pytest.mark.parametrize("min_iou", [0.0, 0.3, 0.7])
def test_iou_crop_keeps_overlap_centre_ratio_and_scale(min_iou):
    """Oracle: the crop as read from a picture of positions. Tolerances allow for whole pixels."""
    box = np.array([60, 40, 190, 160])
    apply, cropped = pipeline({"IoUCrop": {"min_ious": [min_iou], "min_scale": 0.4}}), 0
    for seed in SEEDS:
        image, _, _ = apply(map_of_positions(), box[None].astype(np.float32), seed)
        x0, y0, x1, y1 = crop = crop_of(image)
        np.testing.assert_array_equal(image, map_of_positions()[y0:y1, x0:x1])
        if (x1 - x0, y1 - y0) == (240, 200):
            continue
        cropped += 1
        assert iou(crop, box) >= min_iou - 0.02
        assert x0 - 1 <= 125 <= x1 + 1
        assert y0 - 1 <= 100 <= y1 + 1
        assert (x1 - x0) >= 0.4 * 240 - 1
        assert (y1 - y0) >= 0.4 * 200 - 1
        assert 0.48 <= (y1 - y0) / (x1 - x0) <= 2.08
    assert 10 <= cropped < len(SEEDS)  # about half of the draws leave the image as it is


def test_iou_crop_crops_a_long_image_too():
    """No crop of a 4:1 image at scale 0.6 or more has proportions between 1:2 and 2:1."""
    image, apply = (
        np.zeros((60, 240, 3), np.uint8),
        pipeline({"IoUCrop": {"min_ious": [0], "min_scale": 0.6}}),
    )
    shapes = {apply(image, BOXES[:0], seed)[0].shape[:2] for seed in SEEDS}
    assert len(shapes) > 10
    assert all(0.24 <= height / width <= 2.08 for height, width in shapes)


def test_iou_crop_looks_for_objects_and_not_for_ignored_regions():
    apply = pipeline({"IoUCrop": {"min_ious": [0], "min_scale": 0.3}})
    boxes, ignored = np.array([[20, 20, 40, 40], [180, 150, 220, 190]], np.float32), np.array([False, True])
    for seed in SEEDS:
        *_, rows = apply(map_of_positions(), boxes, seed, ignored)
        assert 0 in rows


def test_iou_crop_leaves_the_image_where_no_crop_fits():
    apply, speck = pipeline({"IoUCrop": {"min_ious": [0.9]}}), np.array([[7, 7, 9, 9]], np.float32)
    for seed in range(10):
        image, boxes, _ = apply(map_of_positions(), speck, seed)
        np.testing.assert_array_equal(image, map_of_positions())
        np.testing.assert_allclose(boxes, speck, atol=1e-3)


@pytest.mark.parametrize("transform", ["IoUCrop", {"ZoomOut": {"p": 1.0}}, "HorizontalFlip"])
def test_image_without_boxes_is_augmented_too(transform):
    apply = pipeline(transform)
    results = {apply(map_of_positions(), BOXES[:0], seed)[0].tobytes() for seed in SEEDS}
    assert len(results) > 1
    _, boxes, rows = apply(map_of_positions(), BOXES[:0], 0)
    assert (boxes.shape, boxes.dtype) == ((0, 4), np.float32)
    assert (rows.shape, rows.dtype) == ((0,), np.int64)


def test_no_transforms_leave_image_and_boxes_of_a_pixel_alone():
    rng = np.random.default_rng(0)
    corner = rng.integers(0, (159, 119), size=(500, 2))
    boxes = np.hstack([corner, corner + 1]).astype(np.float32)
    image, left, rows = pipeline()(painted(), boxes, 0)
    np.testing.assert_array_equal(image, painted())
    np.testing.assert_array_equal(rows, np.arange(500))
    np.testing.assert_allclose(left, boxes, atol=1e-3)


@pytest.mark.parametrize("transforms", [[], ["Blur"]])
def test_pipeline_that_moves_no_boxes_warns_of_nothing(transforms):
    """The default of evaluation, of which albumentations would warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, _, rows = pipeline(*transforms)(painted(), BOXES, 0)
    assert rows.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "transform",
    [
        {"RandomBrightnessContrast": {"p": 1.0}},
        {"HueSaturationValue": {"p": 1.0}},
        {"GaussNoise": {"p": 1.0}},
        {"Blur": {"p": 1.0}},
    ],
)
def test_photometric_transforms_leave_boxes_alone(transform):
    image, boxes, rows = pipeline(transform)(painted(), BOXES, 1)
    assert image.shape == painted().shape
    assert not np.array_equal(image, painted())
    np.testing.assert_allclose(boxes, BOXES, atol=1e-3)
    assert rows.tolist() == [0, 1, 2]


def test_boxes_of_less_visibility_than_wanted_are_dropped():
    """By hand: of boxes 0 and 1 the crop leaves half and a quarter, of box 2 all, of box 3 nothing."""
    boxes = np.array([[40, 10, 60, 20], [45, 30, 65, 40], [10, 50, 20, 60], [51, 70, 60, 80]], np.float32)
    crop = {"Crop": {"x_min": 0, "y_min": 0, "x_max": 50, "y_max": 100}}
    for least, expected in [(0.0, [0, 1, 2]), (0.24, [0, 1, 2]), (0.26, [0, 2]), (0.51, [2])]:
        _, left, rows = pipeline(crop, min_visibility=least)(painted(), boxes, 0)
        assert rows.tolist() == expected
        np.testing.assert_allclose(left, boxes[expected].clip(max=(50, 100, 50, 100)), atol=1e-3)


def test_an_ignored_region_stays_however_little_of_it_is_left():
    """A crop within a crowd: without the region, everything in it would be background."""
    image, boxes = np.zeros((100, 100, 3), np.uint8), np.array([[0, 0, 100, 100]] * 2, np.float32)
    crop = {"Crop": {"x_min": 10, "y_min": 10, "x_max": 30, "y_max": 30}}
    for ignored, expected in (([True, False], [0]), ([False, True], [1]), ([True, True], [0, 1])):
        done = pipeline(crop, "HorizontalFlip", min_visibility=0.3)(image, boxes, 0, np.array(ignored))
        assert done[2].tolist() == expected
        assert done[1].tolist() == [[0, 0, 20, 20]] * len(expected)
    assert len(pipeline(crop, min_visibility=0.3)(image, boxes, 0)[1]) == 0


def test_seed_decides_whatever_came_before():
    transforms = ["IoUCrop", "HorizontalFlip", {"ZoomOut": {}}, {"RandomBrightnessContrast": {"p": 1.0}}]
    one, other = pipeline(*transforms), pipeline(*transforms)
    image = map_of_positions(120, 160)
    forward = {seed: one(image, BOXES, seed) for seed in SEEDS}
    for seed in reversed(SEEDS):
        cv2.setRNGSeed(seed + 1)
        np.random.seed(seed + 1)  # noqa: NPY002 - the global state must not matter
        for expected, found in zip(forward[seed], other(image, BOXES, seed), strict=True):
            np.testing.assert_array_equal(expected, found)
    assert len({result[0].tobytes() for result in forward.values()}) == len(SEEDS)


@pytest.mark.parametrize(
    "transforms",
    [
        ["HorizontalFlip", "VerticalFlip"],
        [{"Sequential": {"transforms": ["HorizontalFlip"], "p": 1.0}}, "VerticalFlip"],
        [
            {"OneOf": {"transforms": ["HorizontalFlip", {"NoOp": {}}], "p": 1.0}},
            {"OneOf": {"transforms": ["VerticalFlip", {"NoOp": {}}], "p": 1.0}},
        ],
    ],
    ids=["in a row", "one in a group", "each in a choice of its own"],
)
def test_transforms_draw_independently_of_each_other(transforms):
    """Oracle: the binomial distribution; each of the four combinations lies within 5 standard deviations."""
    image = np.arange(4, dtype=np.uint8).reshape(2, 2, 1).repeat(3, axis=2)
    apply, no_boxes, tries = pipeline(*transforms), BOXES[:0], 400
    # The pixel in the corner shows in which directions the picture was flipped.
    corners = [int(apply(image, no_boxes, seed)[0][0, 0, 0]) for seed in range(tries)]
    deviation = (tries * 0.25 * 0.75) ** 0.5
    for corner in range(4):
        assert abs(corners.count(corner) - tries / 4) < 5 * deviation


def test_whole_boxes_stay_where_only_whole_ones_are_wanted():
    strict = pipeline(
        "HorizontalFlip", {"RandomCrop": {"height": 100, "width": 140, "p": 0.5}}, min_visibility=1.0
    )
    kept = [strict(painted(), BOXES, seed) for seed in SEEDS]
    sides = (BOXES[:, 2:] - BOXES[:, :2]).prod(1)
    assert sum(len(rows) for _, _, rows in kept) > len(SEEDS)
    assert min(len(rows) for _, _, rows in kept) < 3
    for _, boxes, rows in kept:
        np.testing.assert_allclose((boxes[:, 2:] - boxes[:, :2]).prod(1), sides[rows], rtol=1e-3)


def test_given_image_and_boxes_are_not_changed():
    image, boxes = painted(), BOXES.copy()
    for seed in range(5):
        pipeline("IoUCrop", {"ZoomOut": {"p": 1.0}}, "HorizontalFlip")(image, boxes, seed)
    np.testing.assert_array_equal(image, painted())
    np.testing.assert_array_equal(boxes, BOXES)


def test_one_of_several_transforms_is_drawn():
    """Oracle: each of them alone."""
    choice = pipeline({"OneOf": {"transforms": ["HorizontalFlip", {"VerticalFlip": {}}], "p": 1.0}})
    alone = [pipeline({name: {"p": 1.0}}) for name in ("HorizontalFlip", "VerticalFlip")]
    expected = [[part.tolist() for part in flip(painted(), BOXES, 0)] for flip in alone]
    drawn = [expected.index([part.tolist() for part in choice(painted(), BOXES, seed)]) for seed in SEEDS]
    assert set(drawn) == {0, 1}


WRONG = {
    "misspelt": ("HorizontlFlip", "'HorizontlFlip'.*HorizontalFlip"),
    "misspelt, own": ("ResizeWithn", "'ResizeWithn'.*ResizeWithin"),
    "no transform": ("Compose", "no transform 'Compose'"),
    "a base class": ("DualTransform", "no transform 'DualTransform'"),
    "a list for one": ([["HorizontalFlip"]], "a single transform"),
    "one of none": ({"OneOf": {}}, "OneOf: .*transforms"),
    "a number for parameters": ({"OneOf": {"transforms": [{"Blur": 3}]}}, r"\[0\]: Blur: .*got 3"),
    "texts for transforms": (
        {"OneOrOther": {"first": "Blur", "second": "ToGray"}},
        "OneOrOther: AttributeError",
    ),
    "none that is likely": ({"OneOf": {"transforms": [{"Blur": {"p": 0}}]}}, "OneOf: ZeroDivisionError"),
    "one of a text": ({"OneOf": {"transforms": "Blur"}}, r"OneOf\.transforms: must be a list .*'Blur'"),
    "misspelt, below": ({"OneOf": {"transforms": ["Blr"]}}, r"OneOf\.transforms\[0\]: .*'Blr'; .*'Blur'"),
    "not in the first place": ({"Mosaic": {}}, "Mosaic must be the first transform"),
    "a mask": (
        {"OneOf": {"transforms": ["MaskDropout"]}},
        r"transforms\[0\]: MaskDropout needs mask besides",
    ),
    "no transform at all": ("__name__", "'__name__'"),
    "two in one": ({"HorizontalFlip": {}, "VerticalFlip": {}}, "a single transform"),
    "none": ({}, "a single transform"),
    "unknown parameter": ({"HorizontalFlip": {"prob": 0.5}}, "HorizontalFlip: no parameter 'prob'.* p"),
    "unknown parameter, own": ({"IoUCrop": {"min_iou": 0.5}}, "IoUCrop: no parameter 'min_iou'.*min_ious"),
    "probability": ({"HorizontalFlip": {"p": 2}}, "HorizontalFlip: p: .* 1, got 2$"),
    "a list for a number": ({"HorizontalFlip": {"p": [1]}}, r"HorizontalFlip: p: .*number, got \[1\]$"),
    "two without a value": ("Resize", "Resize: height: Field required; width: Field required$"),
    "of two together": ({"CropAndPad": {}}, "CropAndPad: Both px and percent .* simultaneously.$"),
    "probability, own": ({"ZoomOut": {"p": 2}}, "ZoomOut: .*"),
    "missing": ("ResizeWithin", "ResizeWithin: .*long"),
    "no side": ({"ResizeWithin": {"long": 0}}, "ResizeWithin: .*long=0"),
    "negative": ({"ResizeWithin": {"long": 9, "short": -1}}, "ResizeWithin: .*short=-1"),
    "out of order": ({"ResizeWithin": {"long": [800, 600]}}, "ResizeWithin: .*800, 600"),
    "text": ({"ResizeWithin": {"long": "big"}}, "ResizeWithin: .*whole numbers.*long=big"),
    "neither side nor pair": (
        {"ResizeWithin": {"long": []}},
        r"ResizeWithin: long must be .*pair.*, got \[\]$",
    ),
    "yes for a side": ({"ResizeWithin": {"long": True}}, "ResizeWithin: .*long=True"),
    "fractions": ({"ResizeWithin": {"long": [0.5, 0.9]}}, "ResizeWithin: .*"),
    "zoom in": ({"ZoomOut": {"ratio": 0.5}}, "ZoomOut: .*ratio"),
    "zoom as text": ({"ZoomOut": {"ratio": "1e1"}}, "ZoomOut: ratio must be .*got '1e1'"),
    "endless zoom": ({"ZoomOut": {"ratio": float("inf")}}, "ZoomOut: ratio must be .*got inf"),
    "per cent": ({"IoUCrop": {"min_ious": [30, 50]}}, "IoUCrop: min_ious must be .*from 0 to 1"),
    "no IoU": ({"IoUCrop": {"min_ious": []}}, "IoUCrop: min_ious must be "),
    "an IoU of nan": ({"IoUCrop": {"min_ious": [float("nan")]}}, "IoUCrop: min_ious must be "),
    "no trial": ({"IoUCrop": {"trials": 0}}, "IoUCrop: trials must be "),
    "no scale": ({"IoUCrop": {"min_scale": 0}}, "IoUCrop: .*min_scale"),
    "scale above 1": ({"IoUCrop": {"min_scale": 2}}, "IoUCrop: .*min_scale"),
    "number for list": ({"IoUCrop": {"min_ious": 0.5}}, "IoUCrop: .*"),
}


@pytest.mark.parametrize(("transform", "problem"), WRONG.values(), ids=WRONG)
def test_wrong_transform_is_named_with_its_place(transform, problem):
    with pytest.raises(InputError, match=rf"^data\.transforms\.train\[1\][.:].*{problem}"):
        pipeline("HorizontalFlip", transform)


def test_slivers_are_no_objects() -> None:
    """A crop leaves 0.3 px of some boxes, and 0.7 px of another."""
    crop = pipeline({"Crop": {"x_min": 0, "y_min": 0, "x_max": 32, "y_max": 32}})
    boxes = np.array([[31.7, 4, 40, 20], [31.3, 4, 40, 20], [4, 31.7, 20, 40]], np.float32)
    assert crop(np.zeros((64, 64, 3), np.uint8), boxes, 0)[2].tolist() == [1]
