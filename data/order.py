"""Which images form a batch, and the order of batches: a function of seed and epoch."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from data.repeats import draw_counts, samples_of
from data.sample import SIZE_DIVISOR
from errors import InputError

_BATCHES_SORTED = 16  # about this many batches are sorted together by aspect ratio


class Key(NamedTuple):
    """What defines a sample; sent to the workers."""

    epoch: int
    row: int  # in the DetectionSet
    upright: bool | None = None  # wanted orientation; None: as it is
    scale: float = 1.0  # scale of the sides, applied after augmentation
    again: int = 0  # how often the row has occurred before in this epoch


def seed_of(*parts: int) -> int:
    """One seed derived from several numbers; in practice distinct for distinct numbers."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


class EpochBatches(Sampler[list[Key]]):
    """The rows of each step, reshuffled every epoch; a set smaller than a batch gives one batch.

    The incomplete last batch of an epoch is dropped: the loss of a step is a ranking over a fixed number of
    images, and each shuffle drops other images. A batch belongs to one optimizer step. It is split into equal
    parts, first by micro-batch, then by process, so that neither the order of samples nor the content of a
    micro-batch depends on the number of processes (except for a set smaller than a batch, whose parts are
    uneven).

    Args:
        images: number of images in the set.
        batch_size: images per step.
        micro_batches: micro-batches per step.
        rank, processes: rank of this process, and number of processes.
        proportions: height / width of each image, to batch images of similar shape.
        one_orientation: draw for each step whether all its images are upright or all lie on their side.
        scales: image scale of each epoch; the last one applies to all later epochs.
        repeats: average number of occurrences of each image per epoch, at least 1; by default 1.

    Raises:
        InputError: a batch cannot be split evenly.
    """

    def __init__(
        self,
        images: int,
        batch_size: int,
        seed: int,
        micro_batches: int = 1,
        rank: int = 0,
        processes: int = 1,
        proportions: NDArray[np.float64] | None = None,
        one_orientation: bool = False,
        scales: Sequence[float] = (1.0,),
        repeats: NDArray[np.float64] | None = None,
    ) -> None:
        parts = micro_batches * processes
        if batch_size % parts:
            raise InputError(
                f"train.batch_size={batch_size} cannot be divided evenly among {processes} processes x "
                f"train.accumulate={micro_batches}; choose a multiple of {parts}"
            )
        if images < parts:
            raise InputError(
                f"data.splits.train has {images} images, too few for the {parts} parts of a batch "
                f"({processes} processes x train.accumulate={micro_batches}); use fewer parts"
            )
        self.repeats = np.ones(images) if repeats is None else repeats
        self.length = samples_of(self.repeats)  # samples per epoch
        self.batch_size = batch_size
        self.seed = seed
        self.micro_batches = micro_batches
        self.rank = rank
        self.processes = processes
        self.scales = tuple(scales)
        self.proportions = proportions
        self.one_orientation = one_orientation
        self.epoch = 0
        self.first = 0

    @property
    def steps(self) -> int:
        """Steps per epoch."""
        return max(1, self.length // self.batch_size)

    @property
    def scale(self) -> float:
        """Image scale in this epoch."""
        return self.scales[min(self.epoch, len(self.scales) - 1)]

    def __len__(self) -> int:
        return self.steps * self.micro_batches

    def start_at(self, epoch: int, step: int = 0) -> None:
        """Go to a step of an epoch; skipped steps cost nothing."""
        self.epoch = epoch
        self.first = step

    def __iter__(self) -> Iterator[list[Key]]:
        samples, upright = self._samples(), self._upright()
        samples = samples[self._order(samples[:, 0])]
        for step in range(self.first, self.steps):
            some = samples[step * self.batch_size : (step + 1) * self.batch_size]
            # Parts are uneven only if the set is smaller than a batch.
            parts = np.array_split(some, self.micro_batches * self.processes)
            for part in parts[self.rank :: self.processes]:
                yield [Key(self.epoch, row, upright[step], self.scale, again) for row, again in part.tolist()]

    def _samples(self) -> NDArray[np.int64]:
        """The samples of this epoch, int64 [length, 2]: row, number of earlier copies (adjacent)."""
        # A random stream of its own, independent of the order; see `_upright`.
        counts = draw_counts(self.repeats, np.random.default_rng((self.seed, self.epoch, 2)))
        rows = np.repeat(np.arange(len(counts)), counts)
        first_copies = np.repeat(np.cumsum(counts) - counts, counts)  # index of each row's first copy
        return np.stack((rows, np.arange(len(rows)) - first_copies), axis=1)

    def _order(self, row_of: NDArray[np.int64]) -> NDArray[np.int64]:
        """The order of the samples in this epoch; `row_of` is the row of each sample."""
        rng = np.random.default_rng((self.seed, self.epoch))
        order = rng.permutation(self.length)
        if self.proportions is None or self.length < self.batch_size:
            return order
        proportions = self.proportions[row_of]
        # Sorted within stretches of several batches, whose order is then shuffled: batches differ in every
        # epoch, and the images of a stretch are as random as before.
        batches = order[: self.steps * self.batch_size].reshape(-1, self.batch_size)  # a view of `order`
        for stretch in np.array_split(batches, max(1, round(self.steps / _BATCHES_SORTED))):
            some = stretch.reshape(-1)
            some = some[np.argsort(proportions[some], kind="stable")]
            if self.length > len(self.proportions):  # copies have equal aspect ratios
                some = some[_copies_apart(row_of[some], self.batch_size)]
            stretch[:] = rng.permutation(some.reshape(-1, self.batch_size))
        return order

    def _upright(self) -> list[bool] | list[None]:
        """The orientation of every step of this epoch."""
        if not self.one_orientation:
            return [None] * self.steps
        # A random stream of its own, so that it does not change the order.
        draws = np.random.default_rng((self.seed, self.epoch, 1)).integers(2, size=self.steps) > 0
        return [bool(draw) for draw in draws]


def _copies_apart(rows: NDArray[np.int64], batch_size: int) -> NDArray[np.int64]:
    """Reorder sorted samples of whole batches so that no row occurs twice in a batch, where possible.

    A copy swaps places with another image in the nearest batch without that row.

    Returns:
        int64 [S], positions.
    """
    batches = np.arange(len(rows)).reshape(-1, batch_size)
    for number, batch in enumerate(batches):
        for slot in range(1, batch_size):
            if rows[batch[slot]] not in rows[batch[:slot]]:
                continue
            for other in sorted(range(len(batches)), key=lambda k: abs(k - number)):
                theirs = rows[batches[other]]
                free = np.flatnonzero(~np.isin(theirs, rows[batch]))
                if rows[batch[slot]] not in theirs and len(free):
                    place = free[0 if other > number else -1]  # the most similar aspect ratio
                    batch[slot], batches[other, place] = batches[other, place], batch[slot]
                    break
    return batches.reshape(-1)


def like_batches(sizes: NDArray[np.int64], batch_size: int) -> list[list[int]]:
    """Rows of batches of images that are padded to the same shape.

    Detections in an image therefore do not depend on the other images.

    Args:
        sizes: [I, 2], height and width as the network receives them.
    """
    shapes = -(-sizes // SIZE_DIVISOR)
    order = np.lexsort((np.arange(len(sizes)), sizes[:, 1], sizes[:, 0], shapes[:, 1], shapes[:, 0]))
    ends = (np.diff(shapes[order], axis=0) != 0).any(axis=1).nonzero()[0] + 1
    return [
        rows[i : i + batch_size].tolist()
        for rows in np.split(order, ends)
        for i in range(0, len(rows), batch_size)
    ]
