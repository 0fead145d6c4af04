"""Claim: an exported file finds what the checkpoint finds, whatever the size and number of the images.

    python -m benchmarks.export runs/bccd data.root=datasets/bccd --split test --images 50

Exports the checkpoint, runs the file and PyTorch's model on images of a split for each long side in --long
and each batch size in --batch, and compares COCO's AP, every detection, and the time.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from operator import add
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import progress, report, section
from data.images import read_upright
from data.sample import DetectionSet
from data.transforms import Pipeline
from detector.builders.data import build_set
from detector.evaluation.checkpoint import OpenCheckpoint, open_checkpoint
from detector.evaluation.coco import evaluate_coco
from detector.evaluation.inference import Predictions
from detector.export.agreement import Agreement, Found, compare
from detector.export.check import found_by, found_by_model, score_tolerance, stacked
from detector.export.formats import FORMATS, Run
from detector.export.session import export

HEADER = (
    "long side, px",
    "batch",
    "AP, PyTorch",
    "AP, exported",
    "largest difference: box, px",
    "score",
    "in one only",
    "unexplained",
    "PyTorch, images/s",
    "exported, images/s",
)
_SAME_AP = 5e-4  # tolerance: a few detections may differ where NMS depends on rounding
NOTE = (
    "{images} images of split {split}, float32 on the CPU, network and post-processing. `In one only`: "
    "of the {detections} or more detections of a row, those where NMS or the limit of detections "
    "depends on rounding; `unexplained`: all others that are not in both. Images per second: by the "
    "median over the batches."
)


def measure(
    checkpoint: OpenCheckpoint, run: Run, records: DetectionSet, long: int, size: int
) -> tuple[list[str], Agreement]:
    """One row of the table."""
    settings = checkpoint.config.eval
    images, factors = resized(records, long)
    groups = in_batches(images, size)
    ours: dict[int, Found] = {}
    theirs: dict[int, Found] = {}
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn, rows in enumerate(groups):
        batch = stacked(images[row] for row in rows)
        sides = ((ours, seconds[0], None), (theirs, seconds[1], run))
        for kept, times, call in sides[:: 1 if turn % 2 == 0 else -1]:  # neither is always first
            started = time.perf_counter()
            found = found_by_model(checkpoint, batch) if call is None else found_by(call, batch)
            times.append((time.perf_counter() - started) / len(rows))
            kept.update(zip(rows, found, strict=True))
    tolerance = score_tolerance(checkpoint)
    agreement = reduce(
        add,
        (compare(ours[r], theirs[r], long, settings, tolerance) for r in sorted(ours)),
    )
    scores = [
        evaluate_coco(records, as_predictions(found, factors)).summary["AP"] for found in (ours, theirs)
    ]
    speeds = [1 / statistics.median(times) for times in seconds]
    if agreement.unexplained or abs(scores[0] - scores[1]) > _SAME_AP:
        sys.exit(
            f"error: the exported model differs in {agreement.unexplained} detections, AP {scores[0]:.5f} "
            f"and {scores[1]:.5f} (long side {long} px, batches of {size})"
        )
    row = [
        str(long),
        str(size),
        *(f"{ap:.5f}" for ap in scores),
        f"{agreement.box_px:.0e}",
        f"{agreement.score:.0e}",
        str(agreement.by_rounding),
        str(agreement.unexplained),
        *(f"{speed:.1f}" for speed in speeds),
    ]
    return row, agreement


def resized(records: DetectionSet, long: int) -> tuple[list[NDArray[np.uint8]], NDArray[np.float64]]:
    """All images resized to that long side, and the factors [I, 4] that map boxes to pixels of the files."""
    pipeline = Pipeline([{"ResizeWithin": {"long": long}}], 0.0, "--long")
    images = []
    for file in records.files:
        pixels = read_upright(Path(file), str(file))
        images.append(pipeline(pixels, np.zeros((0, 4), dtype=np.float32), seed=0)[0])
    sizes = np.array([image.shape[:2] for image in images])
    return images, np.tile((records.sizes / sizes)[:, ::-1], 2)


def in_batches(images: Sequence[NDArray[np.uint8]], size: int) -> list[list[int]]:
    """Batches of rows of images of the same shape, with at most `size` rows each."""
    shapes: dict[tuple[int, ...], list[int]] = {}
    for row, image in enumerate(images):
        shapes.setdefault(image.shape, []).append(row)
    return [rows[i : i + size] for rows in shapes.values() for i in range(0, len(rows), size)]


def as_predictions(found: dict[int, Found], factors: NDArray[np.float64]) -> Predictions:
    """The detections as Predictions, in pixels of the files."""
    order = sorted(found)
    return Predictions(
        np.repeat(order, [len(found[row].scores) for row in order]),
        np.concatenate([found[row].boxes * factors[row] for row in order]),
        np.concatenate([found[row].scores for row in order]),
        np.concatenate([found[row].labels for row in order]),
    )


def first(records: DetectionSet, count: int) -> DetectionSet:
    """The first `count` images of a set."""
    count = min(count, len(records))
    boxes = records.offsets[count]
    return replace(
        records,
        **{name: getattr(records, name)[:count] for name in ("files", "image_ids", "sizes")},
        **{name: getattr(records, name)[:boxes] for name in ("boxes", "labels", "ignore", "areas")},
        offsets=records.offsets[: count + 1],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", metavar="RUN_DIR_OR_CHECKPOINT")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--format", choices=tuple(FORMATS), default="onnx")
    parser.add_argument("--split", choices=("val", "test"), default="test")
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--long", nargs="+", type=int, default=[320, 256], metavar="PX")
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 3], metavar="N")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the report there as well")
    a = parser.parse_intermixed_args()
    form = FORMATS[a.format]
    checkpoint = open_checkpoint(Path(a.model), [*a.overrides, "train.device=cpu", "train.amp=off"])
    records = first(build_set(checkpoint.config.data, a.split, checkpoint.classes), a.images)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"model{form.suffix}"
        export(Path(a.model), a.overrides, a.format, False, file, [])
        run = form.read(file.read_bytes())
        rows, least = [], 0
        for long in a.long:
            for size in a.batch:
                row, agreement = measure(checkpoint, run, records, long, size)
                progress("  ".join(row))
                rows.append(row)
                least = min(least, agreement.detections) or agreement.detections
    note = NOTE.format(images=len(records), split=a.split, detections=least)
    report([section(f"Exported: {a.format}", HEADER, rows, note)], a.output)


if __name__ == "__main__":
    main()
