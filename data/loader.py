"""From a DetectionSet to batches: reading, augmentation and collation in loading processes.

All randomness is a function of (seed, epoch, index), and the orientation of a batch of (seed, epoch, step). A
sample therefore does not depend on the number of workers or processes, nor on a restart in mid-epoch.
"""

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from types import FrameType

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from data.cache import ImageCache
from data.images import read_image
from data.mosaic import Picture
from data.order import EpochBatches, Key, like_batches, seed_of
from data.own_transforms import scaled
from data.sample import Batch, DetectionSet, Sample, collate
from data.transforms import Pipeline
from errors import InputError, first_line


class DetectionDataset(Dataset):
    """Reads and augments the images of a set.

    An unreadable image is returned as an InputError: raised in a worker, it would arrive wrapped in the
    worker's traceback.
    """

    def __init__(
        self,
        records: DetectionSet,
        pipeline: Pipeline,
        seed: int,
        stand_ins: int = 0,
        workers: int = 0,
        cache: ImageCache | None = None,
    ) -> None:
        """
        Args:
            stand_ins: an unreadable image is replaced by the first readable one among this many that follow
                it in the set.
            workers: number of processes that will share the dataset.
            cache: cache of the images of these records.
        """
        self.records = records
        self.pipeline = pipeline
        self.seed = seed
        self.stand_ins = min(stand_ins, max(0, len(records) - 1))
        self.cache = cache
        # (process id, row) that each worker is reading, in case it dies of it.
        self.reading = torch.full((workers, 2), -1).share_memory_()
        self.closing = torch.zeros(1, dtype=torch.bool).share_memory_()  # whether the workers may exit

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: Key) -> Sample | InputError:
        try:
            row, image = self._first_readable(key.row)
            return replace(self._augmented(image, key._replace(row=row)), wanted=key.row)
        except InputError as error:
            return error

    def _first_readable(self, wanted: int) -> tuple[int, NDArray[np.uint8]]:
        """Row and image of the wanted row, or of the first readable one that may replace it."""
        failure: InputError | None = None
        for row in ((wanted + k) % len(self.records) for k in range(1 + self.stand_ins)):
            self._mark(row)
            try:
                return row, self._read(row)
            except InputError as error:
                failure = failure or error
        nor = (
            f"; nor can the {self.stand_ins} images that could be used in its place" if self.stand_ins else ""
        )
        raise InputError(f"{failure}{nor}")

    def _mark(self, row: int) -> None:
        worker = get_worker_info()
        if worker is not None and worker.id < len(self.reading):
            self.reading[worker.id] = torch.tensor([os.getpid(), row])

    def readers(self) -> list[int]:
        """The process ids of the workers that have started to read."""
        return [pid for pid, _ in self.reading.tolist() if pid != -1]

    def file_read_by(self, process: int) -> str | None:
        """The file that a loading process was reading, if known."""
        rows = [row for pid, row in self.reading.tolist() if pid == process]
        return str(self.records.files[rows[0]]) if rows else None

    def let_workers_go(self) -> None:
        """From now on loading processes exit on SIGTERM, which they ignore until then."""
        self.closing.fill_(True)

    def sample(self, epoch: int, index: int) -> Sample:
        """The augmented sample of this epoch and row, with its own orientation and at full scale.

        Raises:
            InputError: the image is missing, damaged or of another size than annotated.
        """
        return self._augmented(self._read(index), Key(epoch, index))

    def _read(self, index: int) -> NDArray[np.uint8]:
        if self.cache is not None:
            return self.cache.read(index)
        height, width = self.records.sizes[index].tolist()
        return read_image(Path(self.records.files[index]), (height, width))

    def _augmented(self, image: NDArray[np.uint8], key: Key) -> Sample:
        epoch, index, upright, scale, again = key
        seed = seed_of(self.seed, epoch, index, *([again] if again else []))
        mine, others = self._picture(index, image), self._others(seed, epoch)
        image, boxes, left = self.pipeline(mine.image, mine.boxes, seed, mine.ignored, [p for _, p in others])
        rows = np.concatenate([self._annotations(row) for row in (index, *(row for row, _ in others))])[left]
        image, boxes = scaled(image, boxes, scale)
        height_now, width_now = image.shape[:2]
        if upright is not None and (width_now > height_now if upright else height_now > width_now):
            # Transpose: swaps the long and the short side.
            image, boxes = image.swapaxes(0, 1), boxes[:, [1, 0, 3, 2]]
        return Sample(
            index=index,
            wanted=index,
            image=image,
            original_size=(int(self.records.sizes[index, 0]), int(self.records.sizes[index, 1])),
            boxes=boxes,
            labels=self.records.labels[rows],
            ignore=self.records.ignore[rows],
        )

    def _others(self, seed: int, epoch: int) -> list[tuple[int, Picture]]:
        """Extra images for the transforms of a sample (Mosaic), drawn from the set, with their rows."""
        wanted = self.pipeline.others(seed, epoch)
        drawn = np.random.default_rng([seed, 3]).integers(len(self.records), size=wanted).tolist()
        read = [self._first_readable(row) for row in drawn]
        return [(row, self._picture(row, image)) for row, image in read]

    def _picture(self, row: int, image: NDArray[np.uint8]) -> Picture:
        height, width = self.records.sizes[row].tolist()
        annotations = self._annotations(row)
        boxes = self.records.boxes[annotations].clip(0, [width, height, width, height])
        return Picture(image, boxes.astype(np.float32), self.records.ignore[annotations])

    def _annotations(self, row: int) -> NDArray[np.int64]:
        """Rows of an image's annotations in the set."""
        mine = self.records.boxes_of(row)
        return np.arange(mine.start, mine.stop)


def train_loader(
    records: DetectionSet,
    pipeline: Pipeline,
    batches: EpochBatches,
    seed: int,
    stand_ins: int,
    workers: int | None,
    pin_memory: bool,
    cache: ImageCache | None = None,
) -> DataLoader:
    """Loader of shuffled, augmented batches.

    Args:
        stand_ins: see `DetectionDataset`.
        workers: number of loading processes; None: one per spare core, at most 4.
        cache: see `DetectionDataset`.
    """
    workers = _worker_count(workers)
    dataset = DetectionDataset(records, pipeline, seed, stand_ins, workers, cache)
    return _loader(dataset, batches, workers, pin_memory)


def eval_loader(
    records: DetectionSet,
    pipeline: Pipeline,
    batch_size: int,
    workers: int | None,
    pin_memory: bool,
    rank: int = 0,
    processes: int = 1,
    cache: ImageCache | None = None,
) -> DataLoader:
    """Loader of every image once; images that are padded to the same shape share batches.

    Process `rank` gets the batches rank, rank + processes, rank + 2 * processes and so on. The content of a
    batch does not depend on the number of processes.
    """
    sizes = pipeline.sizes_of(records.sizes)
    batches = [[Key(0, row) for row in rows] for rows in like_batches(sizes, batch_size)]
    workers = _worker_count(workers)
    return _loader(
        DetectionDataset(records, pipeline, seed=0, workers=workers, cache=cache),
        batches[rank::processes],
        workers,
        pin_memory,
    )


def load_batch(dataset: DetectionDataset, keys: list[Key]) -> Batch:
    """Read one batch in this process.

    Raises:
        InputError: one of its images cannot be used.
    """
    batch = _collate([dataset[key] for key in keys])
    if isinstance(batch, InputError):
        raise batch
    return batch


def _worker_count(wanted: int | None) -> int:
    if wanted is not None:
        return wanted
    if not hasattr(os, "sched_getaffinity"):
        return 2
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # training processes on this machine
    return min(4, max(0, len(os.sched_getaffinity(0)) // processes - 1))


# Forked workers start at once and share the annotations. Python 3.14's default (forkserver) would load all
# libraries again, copy the annotations into each worker, and add a server process that dies of a signal sent
# to all processes.
_START = "fork" if sys.platform == "linux" else None


def _loader(
    dataset: DetectionDataset, batches: Sampler[list[Key]] | list[list[Key]], workers: int, pin: bool
) -> DataLoader:
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=_collate,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=pin,
        worker_init_fn=_start_worker,
        multiprocessing_context=_START if workers else None,
    )


def _collate(samples: list[Sample | InputError]) -> Batch | InputError:
    good = []
    for sample in samples:
        if isinstance(sample, InputError):
            return sample
        good.append(sample)
    batch = collate(good)
    if get_worker_info() is None:
        return batch
    try:
        # DataLoader would do this in a thread, whose failure goes unnoticed: the training would wait for the
        # batch forever.
        return batch.share_memory()
    except RuntimeError as error:
        remedy = (
            "give the container more shared memory (docker run --shm-size=8g, or --ipc=host), or set "
            "data.workers=0"
        )
        if "Too many open files" in str(error):
            remedy = "raise the limit of open files (ulimit -n), or lower data.workers"
        return InputError(
            f"no room for a batch of {batch.images.nbytes / 1e6:.1f} MB in shared memory: "
            f"{first_line(error)}; {remedy}"
        )


def _start_worker(_: int) -> None:
    torch.set_num_threads(1)
    # A signal that asks the training to stop reaches the workers too. They ignore it, because the training
    # needs them until it has stopped, and do not write it to the wakeup fd that they inherited.
    signal.set_wakeup_fd(-1)
    for name in ("SIGINT", "SIGUSR1", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave_if_closing)


def _leave_if_closing(number: int, frame: FrameType | None) -> None:
    # At exit the program terminates the remaining workers with this signal.
    worker = get_worker_info()
    if worker is None or (isinstance(worker.dataset, DetectionDataset) and worker.dataset.closing):
        os._exit(0)
