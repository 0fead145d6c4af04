"""Claim: evaluation, from pixels to detections, is faster than torchvision's RetinaNet.

ResNet-50 detectors of 80 classes on random pixels already in memory: network, decoding and NMS. On equal
terms both have the same weights, precision, layout and thresholds, and the networks' outputs are compared
before timing; as shipped, each has its own defaults. Run from the root: python -m benchmarks.evaluation
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `python benchmarks/evaluation.py`

import torch
from torch import nn
from torchvision.models.detection import RetinaNet as TorchvisionRetinaNet

from benchmarks.measure import Call, devices, parser, peak_extra_bytes, progress, report, section
from benchmarks.training import (
    EQUAL,
    RECIPE,
    SHIPPED,
    Data,
    as_floats,
    build_pair,
    build_peer,
    compared,
    make_data,
    precisions,
    timed_apart,
)
from detector.builders.device import build_amp
from detector.builders.losses import box_std
from detector.config import Config
from detector.config.file import load_config
from detector.evaluation.inference import for_inference
from detector.postprocess import detect
from detector.retinanet import RetinaNet

HEADER = (
    "terms",
    "precision",
    "ours, images/s",
    "torchvision, images/s",
    "ours / torchvision",
    "peak memory, ours / its",
)
NOTE = (
    "{batch} images of {size} x {size} px. Images per second: by the median, and half the interquartile "
    "range in per cent; the two run in turns, each in its own process, {pairs} pairs of processes one "
    "after another, and the ratio is the median over all turns. Peak memory: of all tensors created on "
    "the way. torchvision gets float32 pixels at no cost; 'as shipped' is configs/coco_r50_aploss.yaml "
    "against torchvision's defaults (score threshold 0.05 there, none here)."
)


def our_detection(config: Config, data: Data, device: torch.device, shipped: bool) -> Call:
    ours, _ = build_pair(config, data, device, shipped)
    return ours_call(ours.network, config, data, device)


def peer_detection(config: Config, data: Data, device: torch.device, shipped: bool) -> Call:
    return peer_call(build_peer(config, data, device, shipped).network, config, data, device, shipped)


def ours_call(network: nn.Module, config: Config, data: Data, device: torch.device) -> Call:
    """Network and post-processing as `evaluate.py` runs them."""
    e, amp = config.eval, build_amp(config.train, device)
    std = box_std(config, device)
    limits = (e.score_threshold, e.topk_candidates, e.nms_threshold, e.detections_per_img, e.nms == "soft")
    assert isinstance(network, RetinaNet)
    network = for_inference(network, amp)

    @torch.no_grad()
    def call() -> object:
        with torch.autocast(device.type, amp or torch.bfloat16, enabled=amp is not None):
            outputs = network(data.images, data.sizes)
        return detect(outputs, data.sizes, std, *limits)

    return call


def peer_call(network: nn.Module, config: Config, data: Data, device: torch.device, shipped: bool) -> Call:
    """torchvision's model, with its own thresholds if `shipped`."""
    assert isinstance(network, TorchvisionRetinaNet)
    amp = None if shipped else build_amp(config.train, device)
    if not shipped:
        network.score_thresh, network.nms_thresh = config.eval.score_threshold, config.eval.nms_threshold
        network.detections_per_img = config.eval.detections_per_img
    images = as_floats(data)
    network.eval()

    @torch.no_grad()
    def call() -> object:
        with torch.autocast(device.type, amp or torch.bfloat16, enabled=amp is not None):
            return network(images)

    return call


def measure(
    terms: str,
    overrides: list[str],
    data: Data,
    arguments: argparse.Namespace,
    device: torch.device,
    shipped: bool = False,
) -> list[str]:
    """One row of the table."""
    config = load_config(RECIPE, overrides)
    ours, peer = build_pair(config, data, device, shipped)
    calls = (
        ours_call(ours.network, config, data, device),
        peer_call(peer.network, config, data, device, shipped),
    )
    memory = [peak_extra_bytes(call, device) for call in calls]
    many = arguments.repeats, device, shipped, arguments.pairs
    timings = timed_apart(our_detection, peer_detection, config, data, *many)
    row = [terms, precisions(config, device, shipped), *compared(timings, memory, data)]
    progress(f"{device}: " + "  ".join(row))
    return row


def main() -> None:
    options = parser("Evaluation throughput against torchvision's RetinaNet.", repeats=10)
    options.add_argument("--size", type=int, default=512, help="height and width in px (%(default)s)")
    options.add_argument("--batch", type=int, default=2, help="images at a time (%(default)s)")
    options.add_argument("--pairs", type=int, default=5, help="of processes, in turn (%(default)s)")
    arguments = options.parse_args()
    sections = []
    for device in devices(arguments.device):
        data = make_data(arguments.batch, arguments.size, device)
        rows = [
            measure("equal", [*EQUAL, "train.amp='off'"], data, arguments, device),
            measure("as shipped", SHIPPED, data, arguments, device, shipped=True),
        ]
        note = NOTE.format(batch=arguments.batch, size=arguments.size, pairs=arguments.pairs)
        sections.append(section(f"Evaluation: {device}", HEADER, rows, note))
    report(sections, arguments.output)


if __name__ == "__main__":
    main()
