"""From a DetectionSet to batches: sampling, reading, augmenting, collating.

Everything random is a function of (seed, epoch, index): the number of workers, a restart in the
middle of a run, or another process count changes nothing in what a sample looks like.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from data.images import read_image
from data.sample import Batch, DetectionSet, Sample, collate
from data.transforms import Pipeline
from errors import InputError

Key = tuple[int, int]  # epoch, row in the DetectionSet: the epoch must travel into the workers


class DetectionDataset(Dataset):
    """Reads and augments the images of a set.

    A bad image comes back as the InputError itself: raised in a worker it would arrive wrapped in
    the worker's traceback.
    """

    def __init__(self, records: DetectionSet, pipeline: Pipeline, seed: int) -> None:
        self.records = records
        self.pipeline = pipeline
        self.seed = seed

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: Key) -> Sample | InputError:
        try:
            return self.sample(*key)
        except InputError as error:
            return error

    def sample(self, epoch: int, index: int) -> Sample:
        """The sample that training sees at this epoch and row.

        Raises:
            InputError: the image is missing, damaged or of another size than annotated.
        """
        r = self.records
        height, width = (int(v) for v in r.sizes[index])
        image = read_image(Path(r.files[index]), (height, width))
        rows = slice(r.offsets[index], r.offsets[index + 1])
        boxes = r.boxes[rows].clip(0, [width, height, width, height])
        seed = int(np.random.SeedSequence((self.seed, epoch, index)).generate_state(1)[0])
        image, boxes, left = self.pipeline(image, boxes.astype(np.float32), seed)
        return Sample(
            index=index,
            image=image,
            original_size=(height, width),
            boxes=boxes,
            labels=r.labels[rows][left],
            ignore=r.ignore[rows][left],
        )


class EpochBatches(Sampler[list[Key]]):
    """Batches of keys, reshuffled every epoch; a set smaller than a batch gives one batch.

    The last, incomplete batch of an epoch is left out: batch norm on one or two images does harm,
    and another shuffle leaves out other images.
    """

    def __init__(self, length: int, batch_size: int, seed: int) -> None:
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0
        self.first = 0

    def __len__(self) -> int:
        return max(1, self.length // self.batch_size)

    def start_at(self, epoch: int, batch: int = 0) -> None:
        """Go to a batch of an epoch; the batches before it cost nothing."""
        self.epoch = epoch
        self.first = batch

    def __iter__(self) -> Iterator[list[Key]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.length).tolist()
        for batch in range(self.first, len(self)):
            rows = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield [(self.epoch, row) for row in rows]


def train_loader(
    records: DetectionSet,
    pipeline: Pipeline,
    batch_size: int,
    seed: int,
    workers: int | None,
    pin_memory: bool,
) -> tuple[DataLoader, EpochBatches]:
    """Shuffled, augmented batches, and the sampler that says where to start."""
    batches = EpochBatches(len(records), batch_size, seed)
    dataset = DetectionDataset(records, pipeline, seed)
    return _loader(dataset, batches, workers, pin_memory), batches


def eval_loader(
    records: DetectionSet, pipeline: Pipeline, batch_size: int, workers: int | None, pin_memory: bool
) -> DataLoader:
    """Every image once, images of like shape together so that little is padded."""
    order = np.lexsort((np.arange(len(records)), records.sizes[:, 1], records.sizes[:, 0]))
    keys = [(0, int(row)) for row in order]
    batches = [keys[i : i + batch_size] for i in range(0, len(keys), batch_size)]
    return _loader(DetectionDataset(records, pipeline, seed=0), batches, workers, pin_memory)


def checked(loader: Iterable[Batch | InputError]) -> Iterator[Batch]:
    """The loader's batches.

    Raises:
        InputError: an image of the batch could not be used.
    """
    for batch in loader:
        if isinstance(batch, InputError):
            raise batch
        yield batch


def _loader(
    dataset: DetectionDataset, batches: Sampler[list[Key]] | list[list[Key]], workers: int | None, pin: bool
) -> DataLoader:
    if workers is None:
        workers = min(4, max(0, len(os.sched_getaffinity(0)) - 1)) if hasattr(os, "sched_getaffinity") else 2
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=_collate,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=pin,
        worker_init_fn=_start_worker,
    )


def _collate(samples: list[Sample | InputError]) -> Batch | InputError:
    good = []
    for sample in samples:
        if isinstance(sample, InputError):
            return sample
        good.append(sample)
    return collate(good)


def _start_worker(_: int) -> None:
    torch.set_num_threads(1)
