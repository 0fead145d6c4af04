"""Large images in tiles: what is found in all tiles together against what is in the image."""

import itertools
import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor

from data.sample import Batch, Sample, collate
from detector.boxes import clip
from detector.builders.data import build_set
from detector.builders.network import build_model
from detector.config import Config, EvalConfig
from detector.evaluation.inference import Predictions, for_inference
from detector.evaluation.score import predict
from detector.evaluation.tiling import Tiling, build_tiling, warn_of_tiles
from detector.postprocess import Detections
from errors import InputError
from tests.builders import coco_dict, write_coco
from tests.runs import tiny_config

TILING = Tiling(side=96, overlap=32, batch_size=3, iou_threshold=0.5, most=5000)


def as_seen(tile: Tensor) -> Detections:
    """A detector that sees everything: each pixel value is one object, found where it is visible.

    The smaller the visible part of an object, the higher its score: the worst possible case.
    """
    boxes, scores, labels = [], [], []
    for value in tile.unique().tolist():
        if value:
            rows, columns = (tile == value).nonzero(as_tuple=True)
            box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            boxes.append([float(side) for side in box])
            scores.append(1 / (1 + len(rows)))
            labels.append(int(value) % 2)
    return Detections(
        torch.tensor(boxes).view(-1, 4), torch.tensor(scores, dtype=torch.float64), torch.tensor(labels)
    )


def painted(height: int, width: int, seed: int) -> tuple[Tensor, Tensor]:
    """An image [H, W] with separate rectangles of at most 32 px, and their boxes in order."""
    generator = torch.Generator().manual_seed(seed)
    image, boxes = torch.zeros(height, width, dtype=torch.uint8), []
    for top, left in itertools.product(range(0, height, 34), range(0, width, 34)):
        space = min(32, height - top), min(32, width - left)
        if min(space) < 4 or len(boxes) == 255:
            continue
        sides = [int(torch.randint(4, most + 1, (1,), generator=generator)) for most in space]
        y, x = (
            start + int(torch.randint(0, most - side + 1, (1,), generator=generator))
            for start, most, side in zip((top, left), space, sides, strict=True)
        )
        image[y : y + sides[0], x : x + sides[1]] = len(boxes) + 1
        boxes.append([float(x), float(y), float(x + sides[1]), float(y + sides[0])])
    return image, torch.tensor(boxes)


@pytest.mark.parametrize("seed", range(20))
def test_objects_no_larger_than_the_overlap_are_found_once_and_whole(seed: int) -> None:
    generator = torch.Generator().manual_seed(1000 + seed)
    extents = torch.randint(20, 330, (3, 2), generator=generator)
    given = [painted(*extent, seed) for extent in extents.tolist()]  # type: ignore[misc]
    padded = [-(-int(extents[:, axis].max()) // 32) * 32 for axis in (0, 1)]
    images = torch.zeros(3, 1, *padded, dtype=torch.uint8)
    for image, (pixels, _) in zip(images, given, strict=True):
        image[0, : pixels.shape[0], : pixels.shape[1]] = pixels
    calls: list[int] = []

    def detect(tiles: Tensor, sizes: Tensor) -> list[Detections]:
        calls.append(len(tiles))
        assert tiles.shape[2] % 32 == 0 and tiles.shape[3] % 32 == 0
        assert len(tiles) <= 3 and (sizes <= torch.tensor(tiles.shape[2:])).all()
        return [as_seen(tile[0, :height, :width]) for tile, (height, width) in zip(tiles, sizes, strict=True)]

    found = TILING.detect(images, extents, detect)
    assert sum(calls) == sum(len(TILING.corners(*extent)) for extent in extents.tolist()) or calls == [3]
    for one, (_, boxes) in zip(found, given, strict=True):
        assert (one.scores.diff() <= 0).all()
        by_place = sorted(map(tuple, one.boxes.tolist()))
        assert by_place == sorted(map(tuple, boxes.tolist()))


@pytest.mark.parametrize(("side", "overlap"), [(32, 0), (96, 32), (64, 63), (160, 40)])
def test_tiles_cover_every_pixel_and_overlap_enough(side: int, overlap: int) -> None:
    tiling = Tiling(side, overlap, 1, 0.5, 1)
    for extent in range(1, 400, 7):
        starts = sorted({top for top, _ in tiling.corners(extent, 1)})
        assert len(starts) == len(tiling.corners(extent, 1))
        assert starts[0] == 0 and starts[-1] == max(extent - side, 0)
        assert all(one + side - other >= overlap for one, other in itertools.pairwise(starts))
        # One tile fewer would not do: together they reach no further than this.
        fewer = len(starts) - 1
        assert fewer == 0 or fewer * side - (fewer - 1) * overlap < extent


def detections(*rows: tuple[list[float], float, int]) -> Detections:
    boxes, scores, labels = zip(*rows, strict=True)
    return Detections(torch.tensor(boxes), torch.tensor(scores, dtype=torch.float64), torch.tensor(labels))


def test_whole_boxes_before_parts_and_classes_apart() -> None:
    # Tiles of 96 px at 0 and 64 in a row of 160 px: they share the columns from 64 to 96.
    left = detections(
        ([10, 10, 30, 30], 0.9, 0),  # only in the left tile
        ([70, 10, 96, 30], 0.8, 0),  # part of an object, cut off at the edge of the tile
        ([66, 50, 90, 80], 0.5, 1),  # seen in both tiles, with the lower score here
        ([60, 60, 96, 80], 0.4, 0),  # left part of something larger than the overlap
    )
    right = detections(
        ([6, 10, 36, 30], 0.3, 0),  # all of the object that the left tile saw in part: 70 to 100
        ([6, 10, 36, 30], 0.2, 1),  # the same place, another class
        ([2, 51, 26, 80], 0.6, 1),
        ([0, 60, 66, 80], 0.1, 0),  # right part of the larger one, starts at the edge of the tile
    )
    joined = TILING.joined([((0, 0), left), ((0, 64), right)], 96, 160)
    assert list(zip(joined.boxes.tolist(), joined.scores.tolist(), joined.labels.tolist(), strict=True)) == [
        ([10, 10, 30, 30], 0.9, 0),
        ([66, 51, 90, 80], 0.6, 1),
        ([60, 60, 96, 80], 0.4, 0),  # 32 of its 36 columns lie in the other part, but that is cut as well
        ([70, 10, 100, 30], 0.3, 0),
        ([70, 10, 100, 30], 0.2, 1),
        ([64, 60, 130, 80], 0.1, 0),
    ]
    best = Tiling(96, 32, 3, 0.5, most=2).joined([((0, 0), left), ((0, 64), right)], 96, 160)
    assert best.scores.tolist() == [0.9, 0.6]


def test_an_object_cut_by_both_tiles_is_no_less_than_noise() -> None:
    """It is nearly as large as the overlap and lies in its middle."""
    tiling = Tiling(side=640, overlap=128, batch_size=8, iou_threshold=0.5, most=100)
    left = detections(([514, 100, 638, 224], 0.95, 0), ([520, 130, 600, 250], 0.001, 0))
    right = detections(([2, 100, 126, 224], 0.9, 0), ([8, 130, 88, 250], 0.002, 0))
    joined = tiling.joined([((0, 0), left), ((0, 512), right)], 640, 1152)
    assert joined.scores[0] == 0.95 and (joined.scores > 0.01).sum() == 1


def test_joined_as_a_double_loop_has_it() -> None:
    """Oracle: the greedy definition, on many random boxes of few classes."""
    generator = torch.Generator().manual_seed(5)
    corners = TILING.corners(230, 300)
    parts = []
    for corner in corners:
        place = torch.rand(150, 4, generator=generator, dtype=torch.float64) * 80
        boxes = clip(
            torch.cat((place[:, :2], place[:, :2] + place[:, 2:]), 1).float(), torch.tensor([96, 96])
        )
        scores = torch.rand(150, generator=generator, dtype=torch.float64) ** 6  # many near 0
        parts.append((corner, Detections(boxes, scores, torch.randint(0, 3, (150,), generator=generator))))
    rows = []
    for tile, ((top, left), one) in enumerate(parts):
        for box, score, label in zip(one.boxes, one.scores.tolist(), one.labels.tolist(), strict=True):
            x1, y1, x2, y2 = box.tolist()
            near_x, near_y = 0.05 * (x2 - x1), 0.05 * (y2 - y1)
            cut = (left > 0 and x1 < near_x) or (left + 96 < 300 and 96 - x2 < near_x)
            cut = cut or (top > 0 and y1 < near_y) or (top + 96 < 230 and 96 - y2 < near_y)
            rows.append((cut, -score, (x1 + left, y1 + top, x2 + left, y2 + top), label, tile))
    rows.sort(key=lambda row: row[:2])
    kept: list[tuple[bool, float, tuple[float, ...], int, int]] = []
    for row in rows:
        for other in kept:
            if other[3] != row[3] or other[4] == row[4] or -other[1] < 0.01 * -row[1]:
                continue
            (x1, y1, x2, y2), (left, top, right, bottom) = row[2], other[2]
            inside = max(min(x2, right) - max(x1, left), 0) * max(min(y2, bottom) - max(y1, top), 0)
            area = (x2 - x1) * (y2 - y1)
            if inside / (area + (right - left) * (bottom - top) - inside) > 0.5:
                break
            if row[0] and inside > 0.5 * area:
                break
        else:
            kept.append(row)
    assert 0.3 < len(kept) / len(rows) < 0.9
    joined = TILING.joined(parts, 230, 300)
    assert joined.scores.tolist() == sorted((-row[1] for row in kept), reverse=True)


def batch_of(*images: Tensor) -> Batch:
    """Images are uint8 [H, W, 3]."""
    return collate(
        [Sample.without_boxes(i, x.numpy(), (x.shape[0], x.shape[1])) for i, x in enumerate(images)]
    )


def found_by(config: Config, model: torch.nn.Module, *images: Tensor) -> Predictions:
    (found,) = predict(config, model, [batch_of(*images)], torch.device("cpu"))  # type: ignore[arg-type]
    return found


def test_a_network_finds_in_tiles_what_it_finds_in_pieces() -> None:
    torch.manual_seed(0)
    words = ("eval.detections_per_img=20", "eval.tile_overlap=32", "eval.tile_batch_size=2")
    whole = tiny_config(Path(), Path(), *words)
    tiled = tiny_config(Path(), Path(), *words, "eval.tile=64")
    model = for_inference(build_model(whole.model, 2, pretrained=False).eval(), None)
    large = torch.randint(256, (80, 100, 3), dtype=torch.uint8)
    small = torch.randint(256, (64, 50, 3), dtype=torch.uint8)
    # An image that fits into a tile is not cut.
    for column in ("boxes", "scores", "labels"):
        one, other = (getattr(found_by(config, model, small), column) for config in (whole, tiled))
        assert len(one) and (one == other).all()
    found = found_by(tiled, model, large, small)
    assert set(found.rows.tolist()) == {0, 1} and (found.rows == 0).sum() == 20
    scores = found.scores[found.rows == 0]
    assert (scores[:-1] >= scores[1:]).all()
    pieces = [
        (left, top, found_by(whole, model, large[top : top + 64, left : left + 64]))
        for top in (0, 16)
        for left in (0, 18, 36)
    ]
    for box, score, label in zip(found.boxes[found.rows == 0], scores, found.labels, strict=False):
        differences = [
            max(
                abs(box - other - [x, y, x, y]).max(), 100 * abs(score - its_score), 10 * (label != its_label)
            )
            for x, y, piece in pieces
            for other, its_score, its_label in zip(piece.boxes, piece.scores, piece.labels, strict=True)
        ]
        assert min(differences) < 1e-2


def test_tiles_that_do_not_suit_a_set_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = coco_dict([[[4, 5, 20, 18], [30, 10, 90, 20]], [[10, 10, 40, 12]]], 96, 128)
    root = write_coco(tmp_path / "set", content, content)

    def said(*words: str) -> list[str]:
        caplog.clear()
        config = tiny_config(root, tmp_path, *words)
        with caplog.at_level(logging.WARNING):
            warn_of_tiles(config, build_set(config.data, "val"))
        return [record.getMessage() for record in caplog.records]

    assert said() == []
    assert said("eval.tile=96", "eval.tile_overlap=95", "data.transforms.eval=[]") == []
    # The images are no higher than a tile: nothing is cut vertically.
    assert said("eval.tile=96", "eval.tile_overlap=92", "data.transforms.eval=[]") == []
    (line,) = said("eval.tile=96", "eval.tile_overlap=32", "data.transforms.eval=[]")
    assert line.startswith(
        "eval.tile_overlap=32: 1 of 3 objects are larger than the overlap of the tiles, the largest 90 px"
    )
    (line,) = said(
        "eval.tile=64", "eval.tile_overlap=32", "data.transforms.eval=[{ResizeWithin: {long: 64}}]"
    )
    assert line.startswith("eval.tile=64 has no effect: the largest image is 64 x 48 px")
    # At half the size objects are half as large.
    (line,) = said(
        "eval.tile=32", "eval.tile_overlap=16", "data.transforms.eval=[{ResizeWithin: {long: 64}}]"
    )
    assert line.startswith(
        "eval.tile_overlap=16: 2 of 3 objects are larger than the overlap of the tiles, the largest 45 px"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["eval.tile=1000"], "tile: 1000 is not a multiple of 32; use 992 or 1024"),
        (["eval.tile=20"], "tile: 20 is not a multiple of 32; use 32"),
        (["eval.tile=128"], r"tile_overlap: 128 \(its default\) must be below tile, 128; set both"),
    ],
)
def test_tiles_that_cannot_be_cut_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        tiny_config(Path(), Path(), *words)


def test_a_tile_of_a_smaller_image_has_the_size_of_the_image() -> None:
    """In a batch with a larger image: the padding is not part of the image."""
    seen = []

    def detect(tiles, sizes):
        seen.extend(sizes.tolist())
        none = torch.zeros(0, dtype=torch.int64)
        return [Detections(torch.zeros(0, 4), torch.zeros(0), none) for _ in tiles]

    images = torch.zeros(2, 3, 64, 96)
    Tiling(64, 16, 4, 0.5, 100).detect(images, torch.tensor([[64, 96], [50, 40]]), detect)
    assert seen == [[64, 64], [64, 64], [50, 40]]


def test_tiles_are_joined_with_the_settings_of_evaluation() -> None:
    settings = EvalConfig(
        tile=64, tile_overlap=16, tile_batch_size=3, nms_threshold=0.3, detections_per_img=7
    )
    tiling = build_tiling(settings)
    assert (tiling.side, tiling.overlap, tiling.batch_size) == (64, 16, 3)
    assert (tiling.iou_threshold, tiling.most) == (0.3, 7)
