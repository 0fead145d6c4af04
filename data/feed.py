"""From a DataLoader to batches that can be used: images that cannot be read, loading processes that die."""

import atexit
import logging
import multiprocessing
import re
import signal
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from torch.utils.data import DataLoader, Dataset

from data.images import read_image
from data.loader import DetectionDataset
from data.sample import Batch, DetectionSet
from errors import InputError

log = logging.getLogger(__name__)
# Beside the main process only errors are logged; but each process has images of its own.
log.setLevel(logging.WARNING)

# What the system and Python say where files are handed over: the memory of batches is such.
_TOO_MANY_FILES = ("Too many open files", "ancdata")
_GONE_WITHIN_S = 5.0  # a process whose connections are closed; much memory takes its time to be given back
# What DataLoader says of a loading process that is no more.
_DEAD_WORKER = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)")
# And of an error that one which lives has handed on.
_LIVING_WORKER = re.compile(r"Caught \w+ in DataLoader worker process")


class SkippedImages:
    """The images that could not be read and that another stood in for.

    Args:
        records: the set that they are of.
        limit: how many different ones there may be.
    """

    def __init__(self, records: DetectionSet, limit: int) -> None:
        self._records = records
        self._limit = limit
        self._rows: set[int] = set()

    def __len__(self) -> int:
        return len(self._rows)

    def note(self, batch: Batch) -> None:
        """Say of each that is new which it is.

        Raises:
            InputError: they are too many.
        """
        for row in batch.wanted[batch.wanted != batch.indices].tolist():
            if row in self._rows:
                continue
            self._rows.add(row)
            file = self._records.files[row]
            if len(self._rows) > self._limit:
                raise InputError(
                    f"more than data.max_skipped={self._limit} training images cannot be read, most "
                    f"recently {file}; fix the data set, or raise the limit"
                )
            log.warning(f"{self._what_is_wrong(row)}; the next image of the set is used in its place")

    def _what_is_wrong(self, row: int) -> str:
        """Asked once more, as a batch has no room for texts."""
        file, size = self._records.files[row], self._records.sizes[row].tolist()
        try:
            read_image(Path(file), (size[0], size[1]))
        except InputError as error:
            return str(error)
        return f"image {file} could not be read during training"


def checked(loader: DataLoader, skipped: SkippedImages | None = None) -> Iterator[Batch]:
    """The loader's batches; its loading processes are started at once, where they are not there yet.

    Args:
        skipped: told of the images that others stand in for.

    Raises:
        InputError: an image of the batch could not be used, too many could not be read, or a loading
            process died.
    """
    # Not when the first batch is asked for: whoever breaks off the waiting for it must not meet the start of
    # the loading processes, which nobody would end then. Those of an epoch before are waited for, each to
    # begin anew, and may have died meanwhile: that is for whoever asks.
    started = getattr(loader, "_iterator", None) is not None
    return _checked(None if started else _begun(loader), loader, skipped)


def _checked(
    batches: Iterator[Batch | InputError] | None, loader: DataLoader, skipped: SkippedImages | None
) -> Iterator[Batch]:
    while True:
        try:
            if batches is None:
                batches = _begun(loader)
            batch = next(batches, None)
        except (RuntimeError, OSError, EOFError) as error:
            dead = _dead_workers(loader, error)
            if not dead:
                if any(words in str(error) for words in _TOO_MANY_FILES):
                    raise InputError(
                        "the loading processes have too many files open; raise the limit (ulimit -n 4096), "
                        "or lower data.workers"
                    ) from None
                raise
            raise InputError(_death(loader.dataset, dead if batches else [])) from None  # or it read nothing
        if batch is None:
            return
        if isinstance(batch, InputError):
            # Not itself: a frame that holds the error that it raises is only freed when the garbage is
            # collected, and the loading processes, which it holds as well, would then take 10 s each to end.
            raise InputError(*batch.args)
        if skipped is not None:
            skipped.note(batch)
        yield batch


def in_groups(batches: Iterator[Batch], size: int) -> Iterator[list[Batch]]:
    """Lists of `size` batches, those of one step."""
    while group := list(islice(batches, size)):
        yield group


def next_group(groups: Iterator[list[Batch]]) -> tuple[list[Batch], InputError | None]:
    """The batches of the next step, or why there are none: all processes must hear of it first."""
    try:
        return next(groups), None
    except InputError as error:
        return [], error.with_traceback(None)  # the frames in it hold the loading processes


def _begun(loader: DataLoader) -> Iterator[Batch | InputError]:
    """An iterator whose dead workers are found out when it next waits for them.

    DataLoader has a signal handler that would raise in the middle of whatever the training does;
    between two steps nothing is lost.
    """
    dataset = loader.dataset
    assert isinstance(dataset, DetectionDataset)
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        return iter(loader)
    handler = signal.getsignal(signal.SIGCHLD)
    batches = iter(loader)
    signal.signal(signal.SIGCHLD, handler if handler is not None else signal.SIG_DFL)
    # Registered after DataLoader's own, and so called before it waits for the workers.
    atexit.unregister(dataset.let_workers_go)
    atexit.register(dataset.let_workers_go)
    return batches


def _dead_workers(loader: DataLoader, error: Exception) -> list[int]:
    """The process ids of the loading processes that the error comes from, empty where they all live."""
    if named := _DEAD_WORKER.search(str(error)):
        return [int(process) for process in named[1].split(",")]
    if _LIVING_WORKER.match(str(error)):
        return []
    # A batch is fetched from the memory of the worker that made it, which may have died of the next
    # one: then it is a connection that fails. A process closes those before it is gone itself.
    assert isinstance(loader.dataset, DetectionDataset)
    deadline = time.monotonic() + (_GONE_WITHIN_S if loader.num_workers else 0)
    while True:
        alive = {child.pid for child in multiprocessing.active_children()}
        dead = [process for process in loader.dataset.readers() if process not in alive]
        if dead or time.monotonic() >= deadline:
            return dead
        time.sleep(0.02)


def _death(dataset: Dataset, processes: list[int]) -> str:
    assert isinstance(dataset, DetectionDataset)
    files = [dataset.file_read_by(process) for process in processes]
    known = [file for file in files if file is not None]
    while_reading = f" while reading {known[0]}" if known else ""
    return (
        f"a loading process died{while_reading}: it ran out of memory, crashed while decoding, or ran out "
        "of space in /dev/shm (docker run --shm-size=8g); check that file, or set data.workers=0 to see "
        "the error itself"
    )
