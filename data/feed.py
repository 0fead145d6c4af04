"""From a DataLoader to usable batches: unreadable images, loading processes that die."""

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
# Elsewhere only the main process logs warnings; but here each process has images of its own to report.
log.setLevel(logging.WARNING)

# Messages of the system and of Python when file descriptors cannot be passed between processes; the shared
# memory of batches needs one each.
_TOO_MANY_FILES = ("Too many open files", "ancdata")
_GONE_WITHIN_S = 5.0  # until a process with closed connections has exited; freeing memory takes time
# DataLoader's message about a dead worker.
_DEAD_WORKER = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)")
# DataLoader's message about an exception in a worker that is still alive.
_LIVING_WORKER = re.compile(r"Caught \w+ in DataLoader worker process")


class SkippedImages:
    """The images that could not be read and were replaced by others.

    Args:
        records: the set that the images belong to.
        limit: how many different images may be skipped.
    """

    def __init__(self, records: DetectionSet, limit: int) -> None:
        self._records = records
        self._limit = limit
        self._rows: set[int] = set()

    def __len__(self) -> int:
        return len(self._rows)

    def note(self, batch: Batch) -> None:
        """Log each newly skipped image of a batch.

        Raises:
            InputError: there are more than `limit`.
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
        """The error of reading the image, which is read again because a batch cannot carry texts."""
        file, size = self._records.files[row], self._records.sizes[row].tolist()
        try:
            read_image(Path(file), (size[0], size[1]))
        except InputError as error:
            return str(error)
        return f"image {file} could not be read during training"


def checked(loader: DataLoader, skipped: SkippedImages | None = None) -> Iterator[Batch]:
    """The loader's batches. Its loading processes are started immediately, unless they already run.

    Args:
        skipped: records the images that were replaced by others.

    Raises:
        InputError: an image of the batch cannot be used, too many cannot be read, or a loading process died.
    """
    # Not when the first batch is requested: an interrupt while waiting for it could hit the start of the
    # loading processes, and nothing would end them. Processes of an earlier epoch are waited for while each
    # starts over, and may have died meanwhile; that is reported when a batch is requested.
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
            raise InputError(_death(loader.dataset, dead if batches else [])) from None  # no file was read
        if batch is None:
            return
        if isinstance(batch, InputError):
            # Raise a copy: a frame that holds the exception it raises is freed only by the garbage collector.
            # It also holds the loading processes, which would then take 10 s each to end.
            raise InputError(*batch.args)
        if skipped is not None:
            skipped.note(batch)
        yield batch


def in_groups(batches: Iterator[Batch], size: int) -> Iterator[list[Batch]]:
    """Lists of `size` batches, one list per optimizer step."""
    while group := list(islice(batches, size)):
        yield group


def next_group(groups: Iterator[list[Batch]]) -> tuple[list[Batch], InputError | None]:
    """The batches of the next step, or the error: all processes must agree on it before it is raised."""
    try:
        return next(groups), None
    except InputError as error:
        return [], error.with_traceback(None)  # its frames hold the loading processes


def _begun(loader: DataLoader) -> Iterator[Batch | InputError]:
    """An iterator that notices dead workers only when it next waits for them.

    DataLoader installs a signal handler that would raise in the middle of a training step; between two steps
    nothing is lost.
    """
    dataset = loader.dataset
    assert isinstance(dataset, DetectionDataset)
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        return iter(loader)
    handler = signal.getsignal(signal.SIGCHLD)
    batches = iter(loader)
    signal.signal(signal.SIGCHLD, handler if handler is not None else signal.SIG_DFL)
    # Registered after DataLoader's own handler, and thus called before that waits for the workers.
    atexit.unregister(dataset.let_workers_go)
    atexit.register(dataset.let_workers_go)
    return batches


def _dead_workers(loader: DataLoader, error: Exception) -> list[int]:
    """The process ids of the workers that caused the error by dying; empty if all are alive."""
    if named := _DEAD_WORKER.search(str(error)):
        return [int(process) for process in named[1].split(",")]
    if _LIVING_WORKER.match(str(error)):
        return []
    # A batch is fetched from the memory of the worker that made it. If the worker has died on a later batch,
    # the connection fails; connections are closed before the process is gone.
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
