"""Cache of decoded images, in memory shared by the loading processes or in a file.

It holds exactly what `read_image` returns; augmentation comes later. A file that has changed since is decoded
again.
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
_CONTROL_GROUP = Path("/sys/fs/cgroup")  # where a container finds its own limits
_OWN_GROUPS = Path("/proc/self/cgroup")
_BLOCK = 1 << 24
_STORES_IN_ORDER = platform.machine() in ("x86_64", "AMD64", "i686")
_LEFT_FREE = 0.2  # fraction of the available memory left to the training itself


class ImageCache:
    """The images of a set, each decoded when first requested.

    Subclasses provide the storage, `_arrays`. All processes that use the cache write to the same arrays; two
    that decode the same image at once write the same bytes.

    Args:
        records: the set whose images are cached.
    """

    def __init__(self, records: DetectionSet) -> None:
        self._files = records.files
        self._sizes = records.sizes
        self._starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(records.sizes.prod(axis=1) * 3)])

    @property
    def nbytes(self) -> int:
        """Total size of all decoded images."""
        return int(self._starts[-1])

    def read(self, row: int) -> NDArray[np.uint8]:
        """The image in this row of the set, uint8 [H, W, 3] RGB; a copy that the caller owns.

        Raises:
            InputError: see `read_image`.
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
            stamps[row] = 0  # if the process is killed while writing, the slot counts as empty
            place[:] = image
            stamps[row] = (*stamp, self._sum(image))
        return image

    def _arrays(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Pixels and stamps.

        Pixels: uint8 [nbytes], all images one after another. Stamps: int64 [I, 3], two numbers that identify
        the state of the file (see `_stamp`) and the checksum of the pixels.
        """
        raise NotImplementedError

    def _sum(self, image: NDArray[np.uint8]) -> int:
        """Checksum of an image, for storage that may lose pixels; 0 where it cannot."""
        return 0


class RamCache(ImageCache):
    """A cache in memory, shared by the loading processes of one training process.

    All memory is allocated at once, so that it cannot run out later.

    Raises:
        InputError: the images need more memory than is available.
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
            # Tensors, because DataLoader passes them to its processes without copying, whatever the start
            # method.
            self._pixels = torch.empty(self.nbytes, dtype=torch.uint8).share_memory_()
        except RuntimeError:  # another process took the memory first
            raise InputError(too_much) from None
        self._stamps = torch.zeros(len(records), 3, dtype=torch.int64).share_memory_()

    def _arrays(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        return self._pixels.numpy(), self._stamps.numpy()

    def _sum(self, image: NDArray[np.uint8]) -> int:
        # On other CPUs (ARM) another core may see the stamp before the pixels, although they were written
        # first.
        return 0 if _STORES_IN_ORDER else zlib.crc32(image.data)


class DiskCache(ImageCache):
    """A cache in a file, shared by all processes and by later trainings on the same set.

    The disk space is allocated at once, so that a disk that fills up later does no harm. The file name is a
    hash of the image paths and sizes and Pillow's version. Every image has a CRC-32: after a power failure a
    stamp may be on disk without its pixels, and two machines that write to one page over a network can
    overwrite each other's bytes at its edges.

    Args:
        folder: folder of the cache; created if missing.

    Raises:
        InputError: the folder is not writable, or the disk is too full.
    """

    def __init__(self, records: DetectionSet, folder: Path) -> None:
        super().__init__(records)
        paths = "\0".join(str(Path(file).absolute()) for file in records.files)
        key = hashlib.sha256(paths.encode("utf-8", "surrogateescape") + records.sizes.tobytes())
        key.update(f"{PIL.__version__} crc32".encode())  # another decoder version may round differently
        self._file = folder / f"{key.hexdigest()[:16]}.npy"
        self._open: tuple[NDArray[np.uint8], NDArray[np.int64]] | None = None
        # One file for both: with stamps but without the pixel file, zeros would pass for images.
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
        }  # each process opens the file itself; pickled arrays would be copied

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
    """Bytes of shared memory that can be allocated without swapping, as far as the system reports."""
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
    """Memory left by each cgroup limit, from the process's own group (Slurm, systemd) to the container.

    Inactive file pages count as free, because the kernel reclaims them.
    """
    root, limit, used, files = _CONTROL_GROUP, "memory.max", "memory.current", "inactive_file"
    first = (root / "memory").is_dir()  # cgroup version 1
    if first:
        root, limit, used = root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        files = "total_inactive_file"
    left = []
    for group in (own := root / _own_group(first), *own.parents):
        with suppress(OSError):  # group not visible from this container, or no limit at the root
            most = (group / limit).read_text().strip()
            taken = int((group / used).read_text())
            parts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            if most != "max":
                left.append(int(most) - taken + int(parts.get(files, 0)))
        if group == root:
            break
    return left


def _own_group(first: bool) -> str:
    """Path of the memory cgroup of this process, relative to the root; "" if there is none.

    Args:
        first: cgroup version 1, which has one hierarchy per controller.
    """
    with suppress(OSError):
        for line in _OWN_GROUPS.read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if "memory" in controllers.split(",") if first else controllers == "":
                return "" if ".." in Path(group).parts else group.lstrip("/")
    return ""


def _stamp(path: Path) -> NDArray[np.int64] | None:
    """Modification time in ns and size + 1: never 0, and change with the file. None if it is gone."""
    try:
        status = path.stat()
    except OSError:
        return None
    return np.array([status.st_mtime_ns, status.st_size + 1], dtype=np.int64)


def _reserve(path: Path, nbytes: int) -> None:
    """Create an .npy file of zeros, uint8 [nbytes], unless it exists; it appears complete or not at all.

    Raises:
        OSError: there is too little space, or an existing file is damaged.
    """
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
        # The file is sparse: running out of disk space while writing to a memory map would kill the process.
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
