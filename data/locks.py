"""File locks, which the system releases however a process ends."""

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

log = logging.getLogger(__name__)
_NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK}  # errors of file systems without flock


@contextmanager
def locked(path: Path, see_that: str, timeout: float = -1) -> Iterator[None]:
    """Hold a lock; on a file system without locks continue without one, with a warning.

    Args:
        see_that: what the user must ensure without locks, for the warning.
        timeout: seconds to wait for another process; negative: forever.

    Raises:
        filelock.Timeout: another process holds the lock.
        OSError: the lock file cannot be created.
    """
    # No fallback to a marker file: it would outlive a crashed machine, and no other machine could tell.
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
