"""How well anchors fit gt boxes, and which sizes and ratios would fit better.

Anchor centres lie on a grid, so the IoU of a shape with a gt box is largest at the grid point nearest to
the box's centre. This is exact and needs no list of all anchors.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor

from detector.anchors import STRIDES, cell_anchors, pyramid_grids
from detector.boxes import area

# The search lattice: five sizes and three ratios per octave.
_SIZES = tuple(4 * 2 ** (k / 5) for k in range(56))
_RATIOS = tuple(2 ** (k / 3) for k in range(-7, 8))
_SIZE_IN_STRIDES = (2.0, 8.0)  # of a level's anchors; the finest may have smaller, the coarsest larger ones
_MOST_BOXES = 800  # used for the fit
_WEIGHT_OF_MEAN = 0.2  # weight of the mean IoU relative to the recall
_LEAST_GAIN = 1e-5


@dataclass(frozen=True)
class AnchorShapes:
    """Sizes per level, P3 to P7 (square root of the area, pixels), and ratios (height / width) for all."""

    sizes: tuple[tuple[float, ...], ...]
    ratios: tuple[float, ...]

    def yaml(self) -> str:
        """The YAML for a configuration."""
        sizes = ", ".join(f"[{', '.join(f'{s:g}' for s in level)}]" for level in self.sizes)
        ratios = ", ".join(f"{r:g}" for r in self.ratios)
        return f"model:\n  anchors:\n    sizes: [{sizes}]\n    ratios: [{ratios}]\n"


@dataclass(frozen=True)
class SeenBoxes:
    """gt boxes as the network sees them in training."""

    boxes: Tensor  # float32 [G, 4] xyxy pixels of the augmented image
    image_sizes: Tensor  # int64 [G, 2] height and width of that image, padded to a multiple of 32
    samples: int = 0  # number of augmented samples of images that have objects
    emptied: int = 0  # how many of these have no object left


def level_ious(seen: SeenBoxes, shapes: AnchorShapes) -> Tensor:
    """The best IoU of each gt box with an anchor of each level, [G, 5]."""
    levels = [
        _cell_ious(seen, cell_anchors(sizes, shapes.ratios), level).amax(1)
        for level, sizes in enumerate(shapes.sizes)
    ]
    return torch.stack(levels, dim=1)


def suggest(seen: SeenBoxes, current: AnchorShapes, positive_iou: float) -> AnchorShapes:
    """The same number of sizes and ratios as now, with which more boxes reach `positive_iou`, at higher IoUs.

    Coordinate ascent on the recall, with a small weight on the mean IoU, over a fine lattice of sizes and
    ratios: one value at a time moves to its best place given the others, until none gains. It starts from
    the current shapes and from the quantiles of the boxes, and the best of the results and the current
    shapes is returned. The sizes of a level are distinct, and so are the ratios, as far as the lattice has
    enough (11 and 15): a duplicate anchor would rank everything twice.
    """
    seen = _thinned(seen)
    with _one_thread():
        table = _table(seen)  # [G, levels, sizes, ratios]
        starts = [_nearest(current), _quantiles(seen, current)]
        found = [_ascend(table, start, positive_iou) for start in starts]
        candidates = [current, *(_shapes(choice, current) for choice in found)]
        return max(candidates, key=lambda shapes: _score(level_ious(seen, shapes).amax(1), positive_iou))


@dataclass
class _Choice:
    """Indices into the lattice."""

    sizes: list[list[int]]
    ratios: list[int]


@contextmanager
def _one_thread() -> Iterator[None]:
    # Hundreds of small operations: synchronising threads would cost more than they gain.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _cell_ious(seen: SeenBoxes, cells: Tensor, level: int) -> Tensor:
    """IoU of each gt box with each anchor shape [K, 4] at its best place on a level: [G, K]."""
    boxes, sides = seen.boxes, seen.image_sizes.T
    grids = torch.stack(pyramid_grids(sides[0], sides[1])[level], dim=1)  # [G, 2] rows, columns
    strides = seen.image_sizes // grids
    centres = torch.stack((boxes[:, 1] + boxes[:, 3], boxes[:, 0] + boxes[:, 2]), dim=1) / 2
    nearest = torch.minimum((centres / strides).round().clamp(min=0), grids - 1) * strides  # [G, 2] y, x
    intersection = torch.ones(len(boxes), len(cells))
    for low, high, axis in ((0, 2, 1), (1, 3, 0)):
        at = nearest[:, axis, None]
        overlap = torch.minimum(boxes[:, None, high], at + cells[:, high])
        overlap = overlap - torch.maximum(boxes[:, None, low], at + cells[:, low])
        intersection *= overlap.clamp(min=0)
    return intersection / (area(boxes)[:, None] + area(cells) - intersection).clamp(min=1e-9)


def _table(seen: SeenBoxes) -> Tensor:
    """IoU of each box with every shape of the lattice on each level, 0 for sizes not allowed there."""
    cells = cell_anchors(_SIZES, _RATIOS)
    levels = []
    for level in range(len(STRIDES)):
        ious = _cell_ious(seen, cells, level).view(-1, len(_RATIOS), len(_SIZES)).transpose(1, 2)
        ious[:, ~torch.tensor([_allowed(size, level) for size in _SIZES])] = 0
        levels.append(ious)
    return torch.stack(levels, dim=1).contiguous()


def _allowed(size: float, level: int) -> bool:
    least, most = (bound * STRIDES[level] for bound in _SIZE_IN_STRIDES)
    return (level == 0 or size >= least) and (level == len(STRIDES) - 1 or size <= most)


def _ascend(table: Tensor, choice: _Choice, positive_iou: float) -> _Choice:
    best = -1.0
    for _ in count():
        for slot in range(len(choice.ratios)):
            others = [r for k, r in enumerate(choice.ratios) if k != slot]
            of_ratio = torch.stack([table[:, lv, s].amax(1) for lv, s in enumerate(choice.sizes)]).amax(0)
            free = _free(range(len(_RATIOS)), others)
            choice.ratios[slot] = _best_column(
                of_ratio, of_ratio[:, others], positive_iou, free, choice.ratios[slot]
            )
        of_size = table[..., choice.ratios].amax(3)  # [G, levels, sizes]
        for level, sizes in enumerate(choice.sizes):
            for slot in range(len(sizes)):
                chosen = [
                    of_size[:, lv, [s for k, s in enumerate(row) if (lv, k) != (level, slot)]]
                    for lv, row in enumerate(choice.sizes)
                ]
                free = _free(_places(level), sizes[:slot] + sizes[slot + 1 :])
                sizes[slot] = _best_column(
                    of_size[:, level], torch.cat(chosen, dim=1), positive_iou, free, sizes[slot]
                )
        reached = torch.stack([of_size[:, lv, s].amax(1) for lv, s in enumerate(choice.sizes)]).amax(0)
        score = _score(reached, positive_iou)
        if score < best + _LEAST_GAIN:
            return choice
        best = score
    raise AssertionError("unreachable")


def _free(places: Sequence[int], taken: Sequence[int]) -> list[int]:
    return [place for place in places if place not in taken] or list(places)


def _best_column(columns: Tensor, others: Tensor, positive_iou: float, free: list[int], kept: int) -> int:
    """Index of the free column of [G, S] that adds most to the other columns [G, T].

    If none is better: `kept`, or the free one nearest to it.
    """
    kept = min(free, key=lambda place: abs(place - kept))
    beside = others.amax(1, keepdim=True) if others.shape[1] else torch.zeros(len(columns), 1)
    reached = torch.maximum(columns[:, free], beside)
    scores = (reached >= positive_iou).double().mean(0) + _WEIGHT_OF_MEAN * reached.double().mean(0)
    best = int(scores.argmax())
    return free[best] if scores[best] >= scores[free.index(kept)] + _LEAST_GAIN else kept


def _score(reached: Tensor, positive_iou: float) -> float:
    return float((reached >= positive_iou).double().mean() + _WEIGHT_OF_MEAN * reached.double().mean())


def _nearest(shapes: AnchorShapes) -> _Choice:
    sizes = [[_lattice(size, level) for size in row] for level, row in enumerate(shapes.sizes)]
    return _Choice(sizes, [_index(_RATIOS, ratio) for ratio in shapes.ratios])


def _quantiles(seen: SeenBoxes, current: AnchorShapes) -> _Choice:
    """Sizes and ratios at evenly spaced quantiles of those of the boxes."""
    sides = (seen.boxes[:, 2:] - seen.boxes[:, :2]).double().clamp(min=1)
    sizes, ratios = sides.prod(1).sqrt(), sides[:, 1] / sides[:, 0]
    per_level = len(current.sizes[0])
    count = len(STRIDES) * per_level
    steps = torch.quantile(sizes, (torch.arange(count) + 0.5).double() / count)
    middle = torch.quantile(ratios, (torch.arange(len(current.ratios)) + 0.5).double() / len(current.ratios))
    rows = steps.view(len(STRIDES), per_level).tolist()
    return _Choice(
        [[_lattice(size, level) for size in row] for level, row in enumerate(rows)],
        [_index(_RATIOS, ratio) for ratio in middle.tolist()],
    )


def _lattice(size: float, level: int) -> int:
    places = _places(level)
    return places[_index([_SIZES[place] for place in places], size)]


def _places(level: int) -> list[int]:
    return [place for place, size in enumerate(_SIZES) if _allowed(size, level)]


def _index(values: Sequence[float], wanted: float) -> int:
    return min(range(len(values)), key=lambda k: abs(values[k] / wanted - 1) + abs(wanted / values[k] - 1))


def _shapes(choice: _Choice, current: AnchorShapes) -> AnchorShapes:
    """In rounded numbers. A value still at the lattice place of a current one keeps the current number."""
    rows = []
    for level, row in enumerate(choice.sizes):
        kept = {_lattice(size, level): size for size in current.sizes[level]}
        rows.append(tuple(sorted(kept.get(s, _rounded(_SIZES[s])) for s in row)))
    ratios = {_index(_RATIOS, ratio): ratio for ratio in current.ratios}
    return AnchorShapes(
        tuple(rows), tuple(sorted(ratios.get(r, round(_RATIOS[r], 2)) for r in choice.ratios))
    )


def _rounded(size: float) -> float:
    return float(round(size)) if size > 16 else round(size, 1)  # precise enough to keep lattice places apart


def _thinned(seen: SeenBoxes) -> SeenBoxes:
    if len(seen.boxes) <= _MOST_BOXES:
        return seen
    rows = torch.randperm(len(seen.boxes), generator=torch.Generator().manual_seed(0))[:_MOST_BOXES]
    return SeenBoxes(seen.boxes[rows], seen.image_sizes[rows])
