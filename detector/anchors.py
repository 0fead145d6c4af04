"""Anchors: every size and ratio at every cell of every pyramid level, cached per image shape."""

from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock
from typing import Any, TypeVar

import torch
from torch import Tensor

STRIDES = (8, 16, 32, 64, 128)  # of the pyramid levels P3 to P7, in pixels
Side = TypeVar("Side", int, Tensor)
# Multi-scale training and large photographs bring many shapes; the cache must not grow with them.
_CACHED_SHAPES, _CACHED_BYTES = 32, 1 << 28
_CACHES = Lock()  # one detector may serve several threads


class AnchorGenerator:
    """Anchors of a feature pyramid, identical to torchvision's AnchorGenerator (rounded to pixels).

    Args:
        sizes: anchor sizes per level, in pixels (square root of the area).
        ratios: height / width of the anchors, the same for all levels.
    """

    def __init__(self, sizes: Sequence[Sequence[float]], ratios: Sequence[float]) -> None:
        self.cells = [cell_anchors(level, ratios) for level in sizes]
        self._cache: OrderedDict[tuple, Tensor] = OrderedDict()

    @property
    def per_location(self) -> int:
        """Anchors per cell."""
        return len(self.cells[0])

    def __call__(
        self, image_size: tuple[int, int], grids: Sequence[tuple[int, int]], device: torch.device
    ) -> Tensor:
        """Anchors of all levels, in the order of the head's outputs: level, row, column, anchor.

        Args:
            image_size: height and width of the padded batch, in pixels.
            grids: height and width of every level's feature map.

        Returns:
            float32 [N, 4], xyxy in pixels; cached, so do not modify.
        """
        key = (image_size, tuple(grids), device)
        with _CACHES:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
        with torch.inference_mode(False):  # training may use the cached tensor next
            levels = [
                _level_anchors(cells, grid, image_size) for cells, grid in zip(self.cells, grids, strict=True)
            ]
            anchors = torch.cat(levels).to(device)
        with _CACHES:
            self._cache[key] = anchors
            while len(self._cache) > 1 and (
                len(self._cache) > _CACHED_SHAPES
                or sum(cached.nbytes for cached in self._cache.values()) > _CACHED_BYTES
            ):
                self._cache.popitem(last=False)
        return anchors

    def __deepcopy__(self, _: dict[int, Any]) -> "AnchorGenerator":
        return self  # a copy would behave the same and hold the anchors on the device twice


def pyramid_grids(height: Side, width: Side) -> list[tuple[Side, Side]]:
    """Height and width of the feature maps P3 to P7 of an image padded to a multiple of 32 px.

    Args:
        height, width: ints, or tensors of the sides of many images.
    """
    grids = [(height // STRIDES[0], width // STRIDES[0])]
    for _ in STRIDES[1:]:  # each level halves the size, rounding up
        grids.append(((grids[-1][0] + 1) // 2, (grids[-1][1] + 1) // 2))
    return grids


def cell_anchors(sizes: Sequence[float], ratios: Sequence[float]) -> Tensor:
    """Anchors around the origin, [ratios * sizes, 4], ratio by ratio as in torchvision."""
    size = torch.tensor(sizes, dtype=torch.float32)
    root = torch.tensor(ratios, dtype=torch.float32).sqrt()[:, None]
    width, height = (size / root).flatten(), (root * size).flatten()
    return (torch.stack((-width, -height, width, height), dim=1) / 2).round()


def _level_anchors(cells: Tensor, grid: tuple[int, int], image_size: tuple[int, int]) -> Tensor:
    # From the grid, not from STRIDES: where P6 and P7 round up, anchors lie closer, as in torchvision.
    stride_y, stride_x = image_size[0] // grid[0], image_size[1] // grid[1]
    y, x = torch.meshgrid(torch.arange(grid[0]) * stride_y, torch.arange(grid[1]) * stride_x, indexing="ij")
    shifts = torch.stack((x, y, x, y), dim=-1).reshape(-1, 1, 4)
    return (shifts + cells).reshape(-1, 4)
