"""Large images in tiles, so that the network sees small objects at the size at which it learnt them.

An image larger than a tile is covered by overlapping tiles. An object no larger than the overlap lies whole
in at least one of them; in others it may be cut. The detections of all tiles are then merged.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
import torch
from torch import Tensor

from data.sample import DetectionSet
from detector.boxes import area, pairwise_intersection
from detector.builders.data import build_pipeline
from detector.config import Config, EvalConfig
from detector.evaluation.image_sizes import is_cut, warn_of_idle_tile
from detector.postprocess import Detections

_AT_THE_EDGE = 0.05  # fraction of a box's side: a box nearer than this to the edge of its tile counts as cut
_FAR_BELOW = 0.01  # a whole box with less than this fraction of a cut box's score does not suppress it
_MANY = 0.01  # fraction of the boxes that is worth a warning

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tiling:
    """How images are cut into tiles, and detections merged.

    Args:
        side: side of a tile in pixels: a multiple of 32, like padded images.
        overlap: minimum overlap of neighbouring tiles in pixels, less than the side.
        batch_size: tiles that go through the network together.
        iou_threshold: above this IoU one of two boxes of a class is dropped.
        most: maximum number of detections per image.
    """

    side: int
    overlap: int
    batch_size: int
    iou_threshold: float
    most: int

    def detect(
        self, images: Tensor, sizes: Tensor, detect: Callable[[Tensor, Tensor], list[Detections]]
    ) -> list[Detections]:
        """Detections of a batch of padded images [B, C, H, W].

        Args:
            sizes: int64 [B, 2], height and width without padding, in pixels.
            detect: the same for a batch of tiles: [T, C, h, w] and int64 [T, 2] -> detections.
        """
        height, width = (min(extent, self.side) for extent in images.shape[-2:])
        if (height, width) == tuple(images.shape[-2:]):
            return detect(images, sizes)
        extents = sizes.tolist()
        tiles = [(i, *corner) for i, extent in enumerate(extents) for corner in self.corners(*extent)]
        parts: list[list[tuple[tuple[int, int], Detections]]] = [[] for _ in extents]
        for first in range(0, len(tiles), self.batch_size):
            some = tiles[first : first + self.batch_size]
            cut = torch.stack([images[i, :, y : y + height, x : x + width] for i, y, x in some])
            seen = [[min(extent, self.side) for extent in extents[i]] for i, _, _ in some]
            found = detect(cut, torch.tensor(seen, device=sizes.device))
            for (i, *corner), detections in zip(some, found, strict=True):
                parts[i].append(((corner[0], corner[1]), detections))
        return [self.joined(part, *extent) for part, extent in zip(parts, extents, strict=True)]

    def corners(self, height: int, width: int) -> list[tuple[int, int]]:
        """Top and left of the tiles that cover an image: as few as possible, evenly spread."""
        return [(top, left) for top in self._starts(height) for left in self._starts(width)]

    def _starts(self, extent: int) -> list[int]:
        last = max(extent - self.side, 0)
        steps = math.ceil(last / (self.side - self.overlap))
        return [round(last * k / max(steps, 1)) for k in range(steps + 1)]

    def shared(self, extent: int) -> float:
        """Minimum overlap in pixels of neighbouring tiles along an image side; infinite for a single tile."""
        starts = self._starts(extent)
        return min((one + self.side - other for one, other in pairwise(starts)), default=math.inf)

    def joined(self, parts: list[tuple[tuple[int, int], Detections]], height: int, width: int) -> Detections:
        """The detections of one image from those of its tiles, each with its top left corner.

        A box at an edge of its tile that is not an edge of the image may be only a part of an object. So it
        is suppressed by whole boxes of its class in other tiles, unless their scores are far below its own:
        if their IoU exceeds the threshold, or if more than that fraction of its area lies in the whole box.
        """
        if len(parts) == 1:
            return parts[0][1]
        tile = torch.cat([torch.full((len(one.labels),), k) for k, (_, one) in enumerate(parts)])
        boxes, cut = [], []
        for (top, left), one in parts:
            there = one.boxes.cpu() + torch.tensor([left, top, left, top])
            ends = [min(left + self.side, width), min(top + self.side, height)]
            boxes.append(there)
            cut.append(_is_cut(there, (left, top), (ends[0], ends[1]), (width, height)))
        every = Detections(
            torch.cat(boxes),
            torch.cat([one.scores.cpu() for _, one in parts]),
            torch.cat([one.labels.cpu() for _, one in parts]),
        )
        corners = [corner for corner, _ in parts]
        kept = _kept(every, tile, torch.cat(cut), corners, self.side, self.iou_threshold)
        best = kept[every.scores[kept].argsort(descending=True, stable=True)[: self.most]]
        return Detections(every.boxes[best], every.scores[best], every.labels[best])


def build_tiling(settings: EvalConfig) -> Tiling | None:
    """The tiling of the settings; None if images are not cut."""
    if settings.tile is None:
        return None
    return Tiling(
        settings.tile,
        settings.tile_overlap,
        settings.tile_batch_size,
        settings.nms_threshold,
        settings.detections_per_img,
    )


def _is_cut(
    boxes: Tensor, starts: tuple[int, int], ends: tuple[int, int], extents: tuple[int, int]
) -> Tensor:
    """Whether boxes [D, 4] reach an edge of their tile that is not an edge of the image; pairs are (x, y)."""
    cut = torch.zeros(len(boxes), dtype=torch.bool)
    for axis, (start, end, extent) in enumerate(zip(starts, ends, extents, strict=True)):
        low, high = boxes[:, axis], boxes[:, axis + 2]
        near = _AT_THE_EDGE * (high - low)
        if start > 0:
            cut |= low - start < near
        if end < extent:
            cut |= end - high < near
    return cut


def _kept(
    found: Detections,
    tile: Tensor,
    cut: Tensor,
    corners: list[tuple[int, int]],
    side: int,
    iou_threshold: float,
) -> Tensor:
    """Indices (int64) of the detections kept by greedy NMS: whole ones before cut ones, then by score.

    tile, cut: int64 and bool [D]. Detections of the same tile have had their NMS and are not compared again.
    """
    by_score = found.scores.argsort(descending=True, stable=True)
    order = by_score[cut[by_score].long().argsort(stable=True)]
    boxes, scores, labels, tile, cut = (
        x[order] for x in (found.boxes, found.scores, found.labels, tile, cut)
    )
    sizes = area(boxes)
    places = [(tile == k).nonzero().squeeze(1) for k in range(len(corners))]
    pairs: list[list[int]] = []
    for (i, one), (j, other) in combinations(zip(places, corners, strict=True), 2):
        if max(abs(one[0] - other[0]), abs(one[1] - other[1])) >= side:
            continue  # the tiles do not overlap
        inside = pairwise_intersection(boxes[i], boxes[j])
        earlier, later = torch.minimum(i[:, None], j), torch.maximum(i[:, None], j)
        drops = inside > iou_threshold * (sizes[i][:, None] + sizes[j] - inside)
        drops |= (inside > iou_threshold * sizes[later]) & cut[later]
        drops &= (labels[i][:, None] == labels[j]) & (scores[earlier] >= _FAR_BELOW * scores[later])
        pairs += torch.stack((earlier[drops], later[drops]), 1).tolist()
    alive = [True] * len(order)
    for first, second in sorted(pairs):
        if alive[first]:
            alive[second] = False
    return order[torch.tensor(alive, dtype=torch.bool)]


def warn_of_tiles(config: Config, records: DetectionSet) -> None:
    """Warn if no image of a set is cut, or if the overlap is too small for its objects."""
    tiling = build_tiling(config.eval)
    if tiling is None:
        return
    sizes = build_pipeline(config.data, training=False).sizes_of(records.sizes)
    warn_of_idle_tile(config.eval.tile, sizes)
    if not is_cut(config.eval.tile, sizes):
        return
    extents, where = np.unique(sizes, return_inverse=True)
    shared = np.array([tiling.shared(extent) for extent in extents.tolist()])[where.reshape(sizes.shape)]
    of_image = records.image_of_box
    scale, limits = (of[of_image][:, ::-1] for of in (sizes / records.sizes, shared))  # x, y
    sides = ((records.boxes[:, 2:] - records.boxes[:, :2]) * scale)[~records.ignore]
    beyond = (sides > limits[~records.ignore]).any(axis=1)
    if beyond.sum() > _MANY * len(sides):
        log.warning(
            "eval.tile_overlap=%d: %d of %d objects are larger than the overlap of the tiles, the largest "
            "%.0f px, and may be found in parts; set a larger overlap, or larger tiles",
            tiling.overlap, beyond.sum(), len(sides), sides.max(),
        )  # fmt: skip
