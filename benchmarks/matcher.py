"""Claim: matching many boxes takes a bounded amount of memory, where dense matching takes gigabytes.

`match` and `match_adaptively` against torchvision's `box_iou` + `Matcher`, image by image, on the anchors of
a large image.
Run from the root of the repository: python -m benchmarks.matcher
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `python benchmarks/matcher.py`

import torch
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

from benchmarks.measure import devices, in_turns, parser, peak_extra_bytes, report, section
from detector.adaptive_matcher import match_adaptively
from detector.anchors import STRIDES, AnchorGenerator
from detector.config import AnchorConfig
from detector.matcher import match

HEADER = ("boxes per image", "anchors", "images", "", "ms", "peak memory, MB")
NOTE = (
    "Milliseconds: median, and half the interquartile range in per cent; they run in turns. Memory: "
    "the most that tensors take beyond anchors and boxes. {same:.4%} of the anchors get the same status "
    "from ours and torchvision's, by IoU both."
)
POSITIVE_IOU, NEGATIVE_IOU = 0.5, 0.4
_AGREE = 0.9999  # minimum fraction of anchors; the rest differ by rounding


def make_anchors(height: int, width: int) -> tuple[Tensor, tuple[int, ...], int]:
    """The default anchors of an image of that size in pixels: float32 [N, 4], with the number of anchors per
    level and per location.
    """
    config = AnchorConfig()
    grids = [(-(-height // stride), -(-width // stride)) for stride in STRIDES]
    generator = AnchorGenerator(config.sizes, config.ratios)
    of_levels = tuple(rows * columns * generator.per_location for rows, columns in grids)
    return generator((height, width), grids, torch.device("cpu")), of_levels, generator.per_location


def make_boxes(batch: int, boxes: int, height: int, width: int) -> Tensor:
    """float32 [batch, boxes, 4]: random boxes with sides from 16 px to half the image."""
    generator = torch.Generator().manual_seed(0)
    limits = torch.tensor([width, height], dtype=torch.float32)
    share = torch.rand(batch, boxes, 2, generator=generator)
    sides = 16 * (limits / 2 / 16) ** share  # uniform on a logarithmic scale
    corner = torch.rand(batch, boxes, 2, generator=generator) * (limits - sides)
    return torch.cat((corner, corner + sides), dim=-1)


def measure(arguments: argparse.Namespace, device: torch.device) -> str:
    """The report section for one device."""
    anchors, of_levels, per_location = make_anchors(arguments.height, arguments.width)
    anchors = anchors.to(device)
    gt_boxes = make_boxes(arguments.batch, arguments.boxes, arguments.height, arguments.width).to(device)
    valid = torch.ones(gt_boxes.shape[:2], dtype=torch.bool, device=device)
    dense_matcher = Matcher(POSITIVE_IOU, NEGATIVE_IOU, allow_low_quality_matches=True)

    def ours() -> Tensor:
        return match(anchors, gt_boxes, valid, ~valid, POSITIVE_IOU, NEGATIVE_IOU).status

    def adaptive() -> Tensor:
        return match_adaptively(anchors, of_levels, per_location, gt_boxes, valid, ~valid).status

    def dense() -> Tensor:
        return torch.stack([dense_matcher(box_iou(boxes, anchors)) for boxes in gt_boxes])

    theirs = dense()
    status = torch.where(theirs >= 0, 1, torch.where(theirs == Matcher.BELOW_LOW_THRESHOLD, 0, -1))
    same = float((status == ours()).float().mean())
    if same < _AGREE:
        sys.exit(f"error: torchvision's matcher agrees in {same:.5f} of the anchors only")
    calls = {"ours": ours, "ours, atss": adaptive, "torchvision": dense}
    timings = in_turns(calls, arguments.repeats, device)
    shape = [f"{arguments.boxes:,}", f"{len(anchors):,}", str(arguments.batch)]
    rows = [
        [*shape, name, str(timings[name]), f"{peak_extra_bytes(call, device) / 1e6:,.0f}"]
        for name, call in calls.items()
    ]
    return section(f"Matching: {device}", HEADER, rows, NOTE.format(same=same))


def main() -> None:
    options = parser("Time and memory of matching anchors with many boxes.", repeats=5)
    options.add_argument("--boxes", type=int, default=500, help="gt boxes per image (%(default)s)")
    options.add_argument("--batch", type=int, default=2, help="images (%(default)s)")
    options.add_argument("--height", type=int, default=800, help="of the images, px (%(default)s)")
    options.add_argument("--width", type=int, default=1344, help="of the images, px (%(default)s)")
    arguments = options.parse_args()
    report([measure(arguments, device) for device in devices(arguments.device)], arguments.output)


if __name__ == "__main__":
    main()
