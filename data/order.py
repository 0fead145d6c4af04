"""Which images make a batch, and in which order they come: a function of seed and epoch."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from data.repeats import draw_counts, samples_of
from data.sample import SIZE_DIVISOR
from errors import InputError

_BATCHES_SORTED = 16  # about so many together, by the proportions of their images


class Key(NamedTuple):
    """What a sample is made from, as it travels into the workers."""

    epoch: int
    row: int  # in the DetectionSet
    upright: bool | None = None  # the orientation that the image is to have, None: whichever
    scale: float = 1.0  # of the sides, after augmentation
    again: int = 0  # how often the row came before in this epoch


def seed_of(*parts: int) -> int:
    """One seed from several numbers, as different as they are."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


class EpochBatches(Sampler[list[Key]]):
    """The rows of each step, reshuffled every epoch; a set smaller than a batch gives one batch.

    The last, incomplete batch of an epoch is left out: the loss of a step is that of a ranking of so many
    images, and another shuffle leaves out other ones. A batch is that of one optimizer step. It is dealt
    out in equal parts, first to the micro-batches, then to the processes, so that neither the order of
    the samples nor which of them meet in a micro-batch depends on how many processes there are (but for
    a set smaller than a batch, whose parts are uneven).

    Args:
        images: of the set.
        batch_size: images per step.
        micro_batches: of a step.
        rank, processes: this one, and how many.
        proportions: height / width of each image, to put like ones into one batch.
        one_orientation: draw for each step whether all its images are to be upright or all on their side.
        scales: of the images in each epoch; the last one's holds for all that follow.
        repeats: how often each image comes in an epoch, on average: at least 1, as by default.

    Raises:
        InputError: a batch cannot be dealt out.
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
        self.length = samples_of(self.repeats)  # of an epoch
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
        """In an epoch."""
        return max(1, self.length // self.batch_size)

    @property
    def scale(self) -> float:
        """Of this epoch's images."""
        return self.scales[min(self.epoch, len(self.scales) - 1)]

    def __len__(self) -> int:
        return self.steps * self.micro_batches

    def start_at(self, epoch: int, step: int = 0) -> None:
        """Go to a step of an epoch; the steps before it cost nothing."""
        self.epoch = epoch
        self.first = step

    def __iter__(self) -> Iterator[list[Key]]:
        samples, upright = self._samples(), self._upright()
        samples = samples[self._order(samples[:, 0])]
        for step in range(self.first, self.steps):
            some = samples[step * self.batch_size : (step + 1) * self.batch_size]
            # Only a set smaller than a batch makes the parts uneven.
            parts = np.array_split(some, self.micro_batches * self.processes)
            for part in parts[self.rank :: self.processes]:
                yield [Key(self.epoch, row, upright[step], self.scale, again) for row, again in part.tolist()]

    def _samples(self) -> NDArray[np.int64]:
        """The samples of this epoch, [length, 2]: a row, and how often it stands before. Copies follow on
        each other."""
        # Drawn apart from the order, as below.
        counts = draw_counts(self.repeats, np.random.default_rng((self.seed, self.epoch, 2)))
        rows = np.repeat(np.arange(len(counts)), counts)
        first_copies = np.repeat(np.cumsum(counts) - counts, counts)  # where each row begins
        return np.stack((rows, np.arange(len(rows)) - first_copies), axis=1)

    def _order(self, row_of: NDArray[np.int64]) -> NDArray[np.int64]:
        """Of the samples in this epoch; row_of: the row of each."""
        rng = np.random.default_rng((self.seed, self.epoch))
        order = rng.permutation(self.length)
        if self.proportions is None or self.length < self.batch_size:
            return order
        proportions = self.proportions[row_of]
        # Sorted within stretches of some batches, whose order is then drawn: each epoch has other
        # batches, and the images of a stretch are as random as before.
        batches = order[: self.steps * self.batch_size].reshape(-1, self.batch_size)  # in the same memory
        for stretch in np.array_split(batches, max(1, round(self.steps / _BATCHES_SORTED))):
            some = stretch.reshape(-1)
            some = some[np.argsort(proportions[some], kind="stable")]
            if self.length > len(self.proportions):  # copies are of the very same proportions
                some = some[_copies_apart(row_of[some], self.batch_size)]
            stretch[:] = rng.permutation(some.reshape(-1, self.batch_size))
        return order

    def _upright(self) -> list[bool] | list[None]:
        """For every step of this epoch."""
        if not self.one_orientation:
            return [None] * self.steps
        # The seed of the order with one number more: drawn apart from it, so that it stays what it was.
        draws = np.random.default_rng((self.seed, self.epoch, 1)).integers(2, size=self.steps) > 0
        return [bool(draw) for draw in draws]


def _copies_apart(rows: NDArray[np.int64], batch_size: int) -> NDArray[np.int64]:
    """Sorted samples, of whole batches, in an order in which no row is twice in a batch, where that can be: a
    copy changes places with another image in the nearest batch that has none. int64 [S], positions.
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
                    place = free[0 if other > number else -1]  # the most alike
                    batch[slot], batches[other, place] = batches[other, place], batch[slot]
                    break
    return batches.reshape(-1)


def like_batches(sizes: NDArray[np.int64], batch_size: int) -> list[list[int]]:
    """The rows of batches of images that are padded to one shape: what is found in an image does not depend
    on the others.

    sizes: [I, 2], height and width as the network gets them.
    """
    shapes = -(-sizes // SIZE_DIVISOR)
    order = np.lexsort((np.arange(len(sizes)), sizes[:, 1], sizes[:, 0], shapes[:, 1], shapes[:, 0]))
    ends = (np.diff(shapes[order], axis=0) != 0).any(axis=1).nonzero()[0] + 1
    return [
        rows[i : i + batch_size].tolist()
        for rows in np.split(order, ends)
        for i in range(0, len(rows), batch_size)
    ]
