"""Locks of files, which the system frees however a process ends."""

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

log = logging.getLogger(__name__)
_NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK}  # what a disk without flock says


@contextmanager
def locked(path: Path, see_that: str, timeout: float = -1) -> Iterator[None]:
    """Keep a lock; on a disk without locks go on without one, with a warning.

    Args:
        see_that: what the user has to see to then.
        timeout: seconds to wait for another process; for ever by default.

    Raises:
        filelock.Timeout: another process has it.
        OSError: the file cannot be made.
    """
    # Not a file in place of a lock: it would outlive a lost machine, and no other machine could tell.
    lock = FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(timeout=timeout)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        log.warning("the file system of %s does not support locks; make sure that %s", path.parent, see_that)
    try:
        yield
    finally:
        lock.release()
