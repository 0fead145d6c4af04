"""Decoded images, kept: in memory that the loading processes share, or in a file.

Only what `read_image` gives is kept, to the byte; augmentation comes after. A file that has changed since
is decoded again.
"""

import hashlib
import os
import platform
import shutil
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from numpy.typing import NDArray

from data.images import read_image
from data.locks import locked
from data.sample import DetectionSet
from errors import InputError

_SHARED_MEMORY = Path("/dev/shm")
_CONTROL_GROUP = Path("/sys/fs/cgroup")  # where a container finds its own
_OWN_GROUPS = Path("/proc/self/cgroup")
_BLOCK = 1 << 24
_STORES_IN_ORDER = platform.machine() in ("x86_64", "AMD64", "i686")
_LEFT_FREE = 0.2  # of the memory that is available, for the training itself


class ImageCache:
    """The images of a set, each decoded when it is first asked for.

    Subclasses say where `_arrays` lie. All processes that use the cache write into the same ones; two
    that decode the same image at a time write the same bytes.

    Args:
        records: whose images are kept.
    """

    def __init__(self, records: DetectionSet) -> None:
        self._files = records.files
        self._sizes = records.sizes
        self._starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(records.sizes.prod(axis=1) * 3)])

    @property
    def nbytes(self) -> int:
        """Of all images, decoded."""
        return int(self._starts[-1])

    def read(self, row: int) -> NDArray[np.uint8]:
        """The pixels of the image in this row of the set, uint8 [H, W, 3] RGB; the caller's own.

        Raises:
            InputError: as `read_image`.
        """
        path, (height, width) = Path(self._files[row]), self._sizes[row].tolist()
        pixels, stamps = self._arrays()
        place = pixels[self._starts[row] : self._starts[row + 1]].reshape(height, width, 3)
        stamp = _stamp(path)
        if stamp is not None and (stamps[row, :2] == stamp).all():
            image = place.copy()
            if stamps[row, 2] == self._sum(image):
                return image
        image = read_image(path, (height, width))
        if stamp is not None:
            stamps[row] = 0  # a process that is killed in the middle leaves a place that counts as empty
            place[:] = image
            stamps[row] = (*stamp, self._sum(image))
        return image

    def _arrays(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Pixels and stamps.

        Pixels: uint8 [nbytes], one image after the other. Stamps, int64 [I, 3]: of the files, and the sums of
        the pixels.
        """
        raise NotImplementedError

    def _sum(self, image: NDArray[np.uint8]) -> int:
        """What tells whether pixels are those that were kept, where they may be lost."""
        return 0


class RamCache(ImageCache):
    """A cache in memory, shared by the loading processes of one training process.

    All of its memory is taken at once, so that none can be missing later.

    Raises:
        InputError: the images need more memory than there is.
    """

    def __init__(self, records: DetectionSet) -> None:
        super().__init__(records)
        available = available_memory()
        too_much = (
            f"data.cache=ram: {len(records)} decoded images need {self.nbytes / 1e9:.1f} GB, but only "
            f"{available / 1e9:.1f} GB of shared memory are available, a fifth of which is reserved for the "
            "training; set data.cache=disk or data.cache=none"
        )
        if self.nbytes > available * (1 - _LEFT_FREE):
            raise InputError(too_much)
        try:
            # Tensors, since DataLoader hands these to its processes without copying, however it starts them.
            self._pixels = torch.empty(self.nbytes, dtype=torch.uint8).share_memory_()
        except RuntimeError:  # another process was quicker
            raise InputError(too_much) from None
        self._stamps = torch.zeros(len(records), 3, dtype=torch.int64).share_memory_()

    def _arrays(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        return self._pixels.numpy(), self._stamps.numpy()

    def _sum(self, image: NDArray[np.uint8]) -> int:
        # Elsewhere (ARM) another core may see a stamp before the pixels that were written first.
        return 0 if _STORES_IN_ORDER else zlib.crc32(image.data)


class DiskCache(ImageCache):
    """A cache in a file, shared by all processes and later trainings on the same set.

    Its space on the disk is taken at once, so that a disk that fills up later does no harm. The name of
    the file is made of the paths and sizes of the images and Pillow's version. Every image has a CRC-32:
    after a power failure stamps may have come to the disk without their pixels, and two machines that
    write to one page over a network undo each other's edges.

    Args:
        folder: of the cache; made where it does not exist.

    Raises:
        InputError: the folder cannot be written to, or the disk is too full.
    """

    def __init__(self, records: DetectionSet, folder: Path) -> None:
        super().__init__(records)
        paths = "\0".join(str(Path(file).absolute()) for file in records.files)
        key = hashlib.sha256(paths.encode("utf-8", "surrogateescape") + records.sizes.tobytes())
        key.update(f"{PIL.__version__} crc32".encode())  # another decoder may round otherwise
        self._file = folder / f"{key.hexdigest()[:16]}.npy"
        self._open: tuple[NDArray[np.uint8], NDArray[np.int64]] | None = None
        # One file for both: stamps without their pixels would pass zeros for images.
        self._stamp_bytes = 24 * len(records)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with locked(folder / ".lock", "no two trainings start at the same time"):
                _reserve(self._file, self._stamp_bytes + self.nbytes)
        except PermissionError:
            raise InputError(
                f"data.cache=disk: no permission to write in the folder {folder}; set "
                "data.cache_dir=FOLDER, or data.cache=none"
            ) from None
        except OSError as error:
            raise InputError(
                f"data.cache=disk: {len(records)} decoded images need {self.nbytes / 1e9:.1f} GB in "
                f"{folder}: {error.strerror or error}; free some space, set data.cache_dir to another "
                "folder, or set data.cache=none"
            ) from None

    def __getstate__(self) -> dict[str, Any]:
        return {
            **self.__dict__,
            "_open": None,
        }  # a process opens them by itself; pickled they would be copied

    def _arrays(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        if self._open is None:
            try:
                content = np.load(self._file, mmap_mode="r+")
            except (OSError, ValueError) as error:
                raise InputError(
                    f"data.cache=disk: {self._file} can no longer be opened "
                    f"({getattr(error, 'strerror', None) or error}); start again, and do not remove the "
                    "file while the training runs"
                ) from None
            self._open = (
                content[self._stamp_bytes :],
                content[: self._stamp_bytes].view(np.int64).reshape(-1, 3),
            )
        return self._open

    def _sum(self, image: NDArray[np.uint8]) -> int:
        return zlib.crc32(image.data)


def available_memory() -> int:
    """The bytes of shared memory that can be taken without swapping, as far as the system tells."""
    limits = []
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        lines = dict(line.split(":", 1) for line in meminfo.read_text(encoding="ascii").splitlines())
        limits.append(int(lines["MemAvailable"].split()[0]) * 1024)
    limits += _left_in_container()
    if _SHARED_MEMORY.is_dir():
        limits.append(shutil.disk_usage(_SHARED_MEMORY).free)
    if not limits and hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return max(0, min(limits)) if limits else 0


def _left_in_container() -> list[int]:
    """What each limit leaves: of the process's own group (Slurm, systemd), of those above it, and of the
    container. Files that are kept in memory make room.
    """
    root, limit, used, files = _CONTROL_GROUP, "memory.max", "memory.current", "inactive_file"
    first = (root / "memory").is_dir()  # version 1
    if first:
        root, limit, used = root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        files = "total_inactive_file"
    left = []
    for group in (own := root / _own_group(first), *own.parents):
        with suppress(OSError):  # no such group, seen from this container, or no limit at the root
            most = (group / limit).read_text().strip()
            taken = int((group / used).read_text())
            parts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            if most != "max":
                left.append(int(most) - taken + int(parts.get(files, 0)))
        if group == root:
            break
    return left


def _own_group(first: bool) -> str:
    """The group that rules this process's memory, below the root; "" where there is none.

    first: control groups are of version 1, which names what each rules.
    """
    with suppress(OSError):
        for line in _OWN_GROUPS.read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if "memory" in controllers.split(",") if first else controllers == "":
                return "" if ".." in Path(group).parts else group.lstrip("/")
    return ""


def _stamp(path: Path) -> NDArray[np.int64] | None:
    """What changes when a file does, never 0: time in ns and size. None if it is gone."""
    try:
        status = path.stat()
    except OSError:
        return None
    return np.array([status.st_mtime_ns, status.st_size + 1], dtype=np.int64)


def _reserve(path: Path, nbytes: int) -> None:
    """Make a file with zeros, uint8 [nbytes], unless there is one; it appears whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    try:
        if path.exists():
            header = np.load(path, mmap_mode="r").offset if path.stat().st_size > nbytes else 0
            if path.stat().st_size != header + nbytes:
                raise OSError(f"{path.name} is damaged; delete it")
            return
        free = shutil.disk_usage(path.parent).free
        if free < nbytes:
            raise OSError(f"only {free / 1e9:.1f} GB are available")
        np.lib.format.open_memmap(partial, "w+", np.uint8, (nbytes,))
        # The file has holes: to fill them on a full disk would be fatal.
        size = partial.stat().st_size
        with partial.open("r+b") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                for start in range(size - nbytes, size, _BLOCK):
                    file.seek(start)
                    file.write(bytes(min(_BLOCK, size - start)))
        partial.replace(path)
    except ValueError as error:  # not an .npy file
        raise OSError(f"{path.name} is damaged ({error}); delete it") from None
    finally:
        partial.unlink(missing_ok=True)
