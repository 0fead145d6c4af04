"""Anchors against torchvision's generator."""

import copy
import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator as TorchvisionGenerator
from torchvision.models.detection.image_list import ImageList

from detector.anchors import _CACHED_SHAPES, AnchorGenerator, pyramid_grids
from detector.backbone import FeaturePyramid, ResNet

CPU = torch.device("cpu")
# RetinaNet's: three sizes an octave; and the AP-loss paper's: two, on a smaller base.
RETINANET = [[x, x * 2 ** (1 / 3), x * 2 ** (2 / 3)] for x in (32, 64, 128, 256, 512)]
AP_LOSS = [[x, x * 2**0.5] for x in (32, 64, 128, 256, 512)]
CUT = [[int(size) for size in level] for level in RETINANET]


def grids_of(height: int, width: int) -> list[tuple[int, int]]:
    """The five feature maps of strides 8 to 128, rounded up as strided convolutions do."""
    return [(-(-height // stride), -(-width // stride)) for stride in (8, 16, 32, 64, 128)]


@pytest.mark.parametrize("sizes", [RETINANET, AP_LOSS, CUT])
@pytest.mark.parametrize("ratios", [[0.5, 1.0, 2.0], [1.0], [0.3, 3.0]])
@pytest.mark.parametrize("height, width", [(256, 384), (128, 128), (160, 96)])
def test_anchors_are_torchvisions_in_the_same_order(
    sizes: list[list[float]], ratios: list[float], height: int, width: int
) -> None:
    grids = grids_of(height, width)
    theirs = TorchvisionGenerator(tuple(map(tuple, sizes)), (tuple(ratios),) * 5)
    images = ImageList(torch.zeros(1, 3, height, width), [(height, width)])
    (expected,) = theirs(images, [torch.zeros(1, 1, *grid) for grid in grids])
    generator = AnchorGenerator(sizes, ratios)
    anchors = generator((height, width), grids, CPU)
    assert generator.per_location == len(sizes[0]) * len(ratios)
    assert anchors.dtype == torch.float32
    assert torch.equal(anchors, expected)


def test_order_is_row_column_then_anchor() -> None:
    """Hand-computed: one level of 2 x 3 cells, stride 8, two sizes."""
    anchors = AnchorGenerator([[8, 16]], [1.0])((16, 24), [(2, 3)], CPU)
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    assert centres[::2].tolist() == [[0, 0], [8, 0], [16, 0], [0, 8], [8, 8], [16, 8]]
    assert (anchors[:, 2] - anchors[:, 0]).tolist() == [8, 16] * 6


def test_ratio_is_height_over_width() -> None:
    (anchor,) = AnchorGenerator([[32]], [4.0])((8, 8), [(1, 1)], CPU).tolist()
    assert anchor == [-8, -32, 8, 32]


def test_an_image_shape_is_worked_out_once() -> None:
    generator = AnchorGenerator(AP_LOSS, [1.0])
    first = generator((128, 128), grids_of(128, 128), CPU)
    assert generator((128, 128), grids_of(128, 128), CPU) is first
    assert generator((128, 256), grids_of(128, 256), CPU).shape != first.shape


def test_cache_is_bounded_and_forgets_the_shape_unused_for_longest() -> None:
    generator = AnchorGenerator([[8.0]], [1.0])
    first, second = (generator((8, 8 * n), [(1, n)], CPU) for n in (1, 2))
    for n in range(3, _CACHED_SHAPES + 2):  # one more shape than is kept
        assert generator((8, 8), [(1, 1)], CPU) is first  # used every time
        generator((8, 8 * n), [(1, n)], CPU)
    assert len(generator._cache) == _CACHED_SHAPES
    assert generator((8, 8), [(1, 1)], CPU) is first
    again = generator((8, 16), [(1, 2)], CPU)
    assert again is not second and torch.equal(again, second)


def test_cache_is_bounded_in_bytes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = AnchorGenerator(RETINANET, [1.0])
    shapes = [(64 * (i + 1), 64) for i in range(6)]
    one = generator(shapes[-1], grids_of(*shapes[-1]), CPU)
    monkeypatch.setattr("detector.anchors._CACHED_BYTES", 2 * one.nbytes)
    for shape in shapes:
        generator(shape, grids_of(*shape), CPU)
    assert 1 < len(generator._cache) < 6
    monkeypatch.setattr("detector.anchors._CACHED_BYTES", 0)
    generator(shapes[0], grids_of(*shapes[0]), CPU)
    assert len(generator._cache) == 1


def test_several_threads_may_ask_at_once() -> None:
    """More shapes than are kept, so that one thread drops what another has just looked for."""
    generator = AnchorGenerator([[8.0]], [1.0])
    shapes = [(8, 8 * n) for n in range(1, 2 * _CACHED_SHAPES)]

    def ask(seed: int) -> bool:
        order = random.Random(seed).sample(shapes, len(shapes))
        return all(len(generator((h, w), [(1, w // 8)], CPU)) == w // 8 for h, w in 20 * order)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(8)))


def test_a_copied_network_has_no_anchors_of_its_own() -> None:
    """Each evaluation takes a copy: otherwise the same shapes would be computed again, and kept twice."""
    generator = AnchorGenerator(AP_LOSS, [1.0])
    first = generator((128, 128), grids_of(128, 128), CPU)
    assert copy.deepcopy(generator)((128, 128), grids_of(128, 128), CPU) is first


def test_anchors_that_were_made_in_inference_mode_serve_training_too() -> None:
    with torch.inference_mode():
        anchors = AnchorGenerator(AP_LOSS, [1.0])((128, 128), grids_of(128, 128), CPU)
    assert not anchors.is_inference()


def test_wrong_number_of_levels_is_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        AnchorGenerator(AP_LOSS, [1.0])((128, 128), [(16, 16)], CPU)


@pytest.mark.parametrize("size", [(32, 64), (96, 160), (512, 512), (320, 448)])
def test_pyramid_grids_are_those_of_the_network(size: tuple[int, int]) -> None:
    """Oracle: the shapes of the feature maps themselves."""
    backbone = ResNet("resnet18", "group", pretrained=False, frozen_stages=0)
    pyramid = FeaturePyramid(backbone.channels, 8, "c5")
    with torch.no_grad():
        features = pyramid(backbone(torch.zeros(1, 3, *size)))
    assert pyramid_grids(*size) == [tuple(f.shape[-2:]) for f in features]
