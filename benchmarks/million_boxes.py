"""Claim: a million boxes load in seconds, and no loading process copies them, however many epochs it serves.

Generates a COCO file with 1,000,000 boxes. Run from the root of the repository:
python -m benchmarks.million_boxes
"""

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `python benchmarks/million_boxes.py`

import numpy as np
from PIL import Image

from benchmarks.data import annotation, write_coco
from benchmarks.measure import progress, report, section
from data.coco import load_coco
from data.feed import checked
from data.loader import train_loader
from data.order import EpochBatches
from data.sample import DetectionSet
from data.transforms import Pipeline

BOXES = 1_000_000
FEW = 5_000  # images for measuring memory, so that 20 epochs take only minutes
LOADING_HEADER = ("images", "boxes", "file, MB", "seconds")
LOADING_NOTE = "From a COCO file to a DetectionSet, once; for up to 20,000 images their headers are read too."
MEMORY_HEADER = ("images", "arrays", "epoch 1", "epoch 2", "halfway", "last epoch", "per epoch from 2 on")
MEMORY_NOTE = (
    "1,000,000 boxes. Memory of the one loading process that it shares with no other (Private_* of "
    "smaps_rollup) after an epoch of all images; 'arrays' is what the annotations take in the parent. The "
    "last column is the slope of a line through the epochs."
)


@dataclass(frozen=True)
class Million:
    """A generated COCO file with `BOXES` boxes."""

    annotations: Path
    folder: Path
    images: int


def make_million(folder: Path, images: int) -> Million:
    """Small images, nearly all of them hard links to the first 20 files; boxes are distributed evenly."""
    rng = np.random.default_rng(2)
    pictures = folder / f"pictures-{images}"
    pictures.mkdir()
    height, width = 48, 64
    for i in range(images):
        file = pictures / f"{i:012d}.jpg"
        if i < 20:
            pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(file)
        else:
            os.link(pictures / f"{i % 20:012d}.jpg", file)
    sides = rng.uniform(2, 20, (BOXES, 2))
    boxes = np.hstack([rng.uniform(0, 1, (BOXES, 2)) * ((width, height) - sides), sides]).round(2)
    records = [
        {"id": i, "file_name": f"{i:012d}.jpg", "width": width, "height": height} for i in range(images)
    ]
    annotations = [annotation(k + 1, k % images, box) for k, box in enumerate(boxes.tolist())]
    target = folder / f"{images}.json"
    write_coco(target, records, annotations)
    return Million(target, pictures, images)


def private_mb(process: int) -> float:
    """Memory in MB that a process shares with no other: its own, and pages copied from its parent."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="ascii").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1e3


def measure_memory(million: Million, records: DetectionSet, epochs: int) -> list[str]:
    """A row of the table: one loading process goes through all images, `epochs` times."""
    batches = EpochBatches(len(records), 20, seed=0)
    loader = train_loader(records, Pipeline(["HorizontalFlip"], 0.0, "benchmark"), batches, 0, 0, 1, False)
    memory = []
    for epoch in range(epochs):
        batches.start_at(epoch)
        for _ in checked(loader):
            pass
        (worker,) = multiprocessing.active_children()  # the same one in every epoch
        assert worker.pid is not None
        memory.append(private_mb(worker.pid))
        progress(f"epoch {epoch + 1}: {memory[-1]:.0f} MB")
    arrays = sum(value.nbytes for value in vars(records).values() if isinstance(value, np.ndarray)) / 1e6
    slope = np.polyfit(range(1, epochs), memory[1:], 1)[0] if epochs > 2 else float("nan")
    return [
        f"{million.images:,}",
        f"{arrays:.0f}",
        *(f"{memory[i]:.1f}" for i in (0, 1, len(memory) // 2, -1)),
        f"{slope:+.2f}",
    ]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--epochs", type=int, default=20, help="of the one loading process (%(default)s)")
    options.add_argument("--output", type=Path, metavar="FILE", help="write the report there as well")
    arguments = options.parse_args()
    if arguments.epochs < 2:
        options.error("--epochs: two are wanted at least, to see whether memory grows")
    loading, memory = [], []
    with tempfile.TemporaryDirectory() as folder:
        for images in (100_000, FEW):
            million = make_million(Path(folder), images)
            started = time.perf_counter()
            records = load_coco(million.annotations, million.folder)
            seconds = time.perf_counter() - started
            size_mb = million.annotations.stat().st_size / 1e6
            loading.append([f"{images:,}", f"{len(records.boxes):,}", f"{size_mb:.0f}", f"{seconds:.1f}"])
            progress("loading: " + "  ".join(loading[-1]))
            if images == FEW:
                memory.append(measure_memory(million, records, arguments.epochs))
    title = f"Memory of a loading process over {arguments.epochs} epochs, MB"
    report(
        [
            section("Loading an annotation file", LOADING_HEADER, loading, LOADING_NOTE),
            section(title, MEMORY_HEADER, memory, MEMORY_NOTE),
        ],
        arguments.output,
    )


if __name__ == "__main__":
    main()
