"""A cache gives what read_image gives, byte for byte, and is refused in one line if it does not fit."""

import errno
import multiprocessing
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock, Timeout
from PIL import Image

import data.cache
from data.annotations import AnnotatedImage, Annotation, pack_set
from data.cache import DiskCache, RamCache, available_memory
from data.feed import checked
from data.images import read_image
from data.loader import train_loader
from data.order import EpochBatches
from data.transforms import Pipeline
from errors import InputError
from tests.builders import write_image

SIZES = ((48, 64), (64, 48), (5, 7))


def make_set(folder, count=6):
    """JPEG and PNG files of three sizes, one of them turned by its EXIF."""
    images = []
    for i in range(count):
        path, size = folder / f"{i}.{('jpg', 'png')[i % 2]}", SIZES[i % 3]
        write_image(path, *size, seed=i)
        if i == 1:
            exif = Image.Exif()
            exif[0x0112] = 6
            with Image.open(path) as image:
                image.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
        images.append(AnnotatedImage(i, path, size, [Annotation("", (1.0, 1.0, 4.0, 4.0), 0)]))
    return pack_set(images, ("cat",), (1,), "the split")


@pytest.fixture(params=["ram", "disk"])
def make_cache(request, tmp_path):
    if request.param == "ram":
        return RamCache
    return lambda records: DiskCache(records, tmp_path / "cache")


def decoded(records, row):
    return read_image(Path(records.files[row]), tuple(records.sizes[row].tolist()))


def test_first_and_later_reads_are_those_of_read_image(tmp_path, make_cache):
    records = make_set(tmp_path)
    cache = make_cache(records)
    assert cache.nbytes == sum(3 * h * w for h, w in records.sizes)
    for _ in range(2):
        for row in (3, 0, 5, 1, 2, 4):
            image = cache.read(row)
            assert image.dtype == np.uint8
            np.testing.assert_array_equal(image, decoded(records, row))


def test_each_image_is_decoded_once(tmp_path, make_cache, monkeypatch):
    records, seen = make_set(tmp_path), []
    monkeypatch.setattr(data.cache, "read_image", lambda *given: seen.append(given[0]) or read_image(*given))
    cache = make_cache(records)
    for _ in range(3):
        for row in range(len(records)):
            cache.read(row)
    assert [str(path) for path in seen] == records.files.tolist()


def test_what_the_caller_does_to_an_image_stays_with_the_caller(tmp_path, make_cache):
    records = make_set(tmp_path)
    cache = make_cache(records)
    for _ in range(3):
        image = cache.read(0)
        np.testing.assert_array_equal(image, decoded(records, 0))
        image[:] = 0


@pytest.mark.parametrize(("time", "size"), [(1, 0), (0, 1), (1, 1)])
def test_file_of_another_time_or_size_is_decoded_again(tmp_path, make_cache, time, size):
    """Zeros after the picture are no part of it. Times are set, as a file system's clock may be coarse."""
    records = make_set(tmp_path)
    path = Path(records.files[0])
    cache = make_cache(records)

    def write(seed, time, size):
        write_image(path, *SIZES[0], seed=seed)
        path.write_bytes(path.read_bytes().ljust(20_000 + size, b"\0"))
        os.utime(path, ns=(10**9 + time, 10**9 + time))

    write(98, 0, 0)
    old = cache.read(0)
    write(99, time, size)
    new = cache.read(0)
    np.testing.assert_array_equal(new, decoded(records, 0))
    assert (new != old).any()


def test_missing_and_damaged_files_are_named_and_never_kept(tmp_path, make_cache):
    records = make_set(tmp_path)
    cache = make_cache(records)
    cache.read(0)
    Path(records.files[0]).unlink()
    with pytest.raises(InputError, match=r"0\.jpg does not exist"):
        cache.read(0)
    whole = Path(records.files[1]).read_bytes()
    Path(records.files[1]).write_bytes(whole[: len(whole) // 2])
    for _ in range(2):
        with pytest.raises(InputError, match=r"1\.png cannot be read"):
            cache.read(1)
    Path(records.files[1]).write_bytes(whole)
    np.testing.assert_array_equal(cache.read(1), decoded(records, 1))


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_training_with_a_cache_sees_the_same(tmp_path, make_cache, workers):
    """Three epochs, with the cache empty, partly filled and full."""
    records = make_set(tmp_path)

    def epochs(cache, workers):
        batches, seen = EpochBatches(len(records), 4, seed=0), []
        pipeline = Pipeline(["HorizontalFlip", {"RandomBrightnessContrast": {"p": 1.0}}], 0.3, "train")
        loader = train_loader(records, pipeline, batches, 0, 0, workers, False, cache)
        for epoch in range(3):
            batches.start_at(epoch)
            seen += [(b.indices.tolist(), b.images.numpy().tobytes()) for b in checked(loader)]
        return seen

    cache = make_cache(records)
    assert epochs(cache, workers) == epochs(None, 0)


def read_all(cache, rows):
    for row in rows:
        cache.read(row)


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_processes_share_what_each_has_decoded(tmp_path, make_cache, monkeypatch, start):
    records = make_set(tmp_path)
    cache = make_cache(records)
    context = multiprocessing.get_context(start)
    workers = [context.Process(target=read_all, args=(cache, rows)) for rows in ((0, 1, 2), (2, 3, 4, 5))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(300)  # a spawned process has to import torch first
        assert worker.exitcode == 0
    expected = [decoded(records, row) for row in range(len(records))]
    monkeypatch.setattr(data.cache, "read_image", lambda *_: pytest.fail("decoded once more"))
    for row, image in enumerate(expected):
        np.testing.assert_array_equal(cache.read(row), image)


def test_memory_that_is_not_there_is_refused(tmp_path, monkeypatch):
    """The images take 37,074 bytes: four fifths of 46,400 are enough, four fifths of 46,300 are not."""
    records = make_set(tmp_path)
    monkeypatch.setattr(data.cache, "available_memory", lambda: 46_400)
    RamCache(records)
    monkeypatch.setattr(data.cache, "available_memory", lambda: 46_300)
    with pytest.raises(
        InputError, match=r"^data\.cache=ram: 6 decoded images need .* set data\.cache=disk"
    ) as e:
        RamCache(records)
    assert "\n" not in str(e.value)


def test_available_memory_is_less_than_the_machine_has():
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < available_memory() <= physical


@pytest.mark.parametrize("version", [1, 2])
def test_available_memory_is_what_the_limit_of_a_container_leaves(tmp_path, monkeypatch, version):
    """Files cached in memory by the system count as used, but are dropped when memory is needed."""
    if version == 1:
        folder, limit, used, files = (
            tmp_path / "memory",
            "limit_in_bytes",
            "usage_in_bytes",
            "total_inactive_file",
        )
        folder.mkdir()
    else:
        folder, limit, used, files = tmp_path, "max", "current", "inactive_file"
    (folder / f"memory.{limit}").write_text("5000\n")
    (folder / f"memory.{used}").write_text("4500\n")
    (folder / "memory.stat").write_text(f"anon 4000\n{files} 300\n")
    monkeypatch.setattr(data.cache, "_CONTROL_GROUP", tmp_path)
    assert available_memory() == 800
    (folder / f"memory.{limit}").write_text("max\n" if version == 2 else f"{2**63 - 4096}\n")
    assert available_memory() > 5000


@pytest.mark.parametrize("version", [1, 2])
def test_the_limit_of_a_job_is_that_of_its_own_group(tmp_path, monkeypatch, version):
    """Groups of Slurm and systemd lie below the root, which may have no limit; the tightest limit counts."""
    root, limit, used = tmp_path, "memory.max", "memory.current"
    own = "1:name=systemd:/other\n5:cpuset,memory:/slurm/job7\n0::/none\n"
    if version == 1:
        root, limit, used = tmp_path / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
    else:
        own = "0::/slurm/job7\n"
    (tmp_path / "own").write_text(own)
    monkeypatch.setattr(data.cache, "_CONTROL_GROUP", tmp_path)
    monkeypatch.setattr(data.cache, "_OWN_GROUPS", tmp_path / "own")
    for group, most, taken in (("slurm", 9000, 8100), ("slurm/job7", 5000, 1000), ("other", 7, 7)):
        (root / group).mkdir(parents=True, exist_ok=True)
        (root / group / limit).write_text(f"{most}\n")
        (root / group / used).write_text(f"{taken}\n")
        (root / group / "memory.stat").write_text("anon 1\n")
    assert available_memory() == 900
    (root / "slurm" / used).write_text("1000\n")
    assert available_memory() == 4000
    (tmp_path / "own").write_text(own.replace("/slurm/job7", "/docker/elsewhere"))  # a path of the host
    assert available_memory() > 9000


def test_file_serves_later_trainings(tmp_path, monkeypatch):
    records = make_set(tmp_path)
    read_all(DiskCache(records, tmp_path / "cache"), range(6))
    expected = [decoded(records, row) for row in range(6)]
    monkeypatch.setattr(data.cache, "read_image", lambda *_: pytest.fail("decoded once more"))
    again = DiskCache(records, tmp_path / "cache")
    for row in range(6):
        np.testing.assert_array_equal(again.read(row), expected[row])


def test_another_set_has_another_file(tmp_path):
    for name, count in (("a", 6), ("b", 6), ("a", 5)):
        read_all(DiskCache(make_set(tmp_path / name, count), tmp_path / "cache"), range(count))
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 3
    assert not list((tmp_path / "cache").glob("*.partial"))


def test_other_sizes_or_another_decoder_have_another_file(tmp_path, monkeypatch):
    """For the same paths, and as many bytes."""
    records, count = make_set(tmp_path), lambda: len(list((tmp_path / "cache").glob("*.npy")))
    DiskCache(records, tmp_path / "cache")
    DiskCache(replace(records, sizes=records.sizes[:, ::-1].copy()), tmp_path / "cache")
    assert count() == 2
    monkeypatch.setattr(data.cache.PIL, "__version__", "0.1")
    DiskCache(records, tmp_path / "cache")
    assert count() == 3


def test_a_disk_without_locks_is_said_and_used(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", refuse)
    records = make_set(tmp_path)
    read_all(DiskCache(records, tmp_path / "cache"), range(6))
    assert len(caplog.messages) == 1 and "does not support locks" in caplog.text
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 1


def test_one_process_at_a_time_makes_the_file(tmp_path, monkeypatch):
    """Two would write into the same file, and the first to finish would move it away from the other."""
    reserve, seen = data.cache._reserve, []

    def watched(path, nbytes):
        with pytest.raises(Timeout):
            FileLock(path.parent / ".lock").acquire(timeout=0)
        reserve(path, nbytes)
        seen.append(path)

    monkeypatch.setattr(data.cache, "_reserve", watched)
    DiskCache(make_set(tmp_path), tmp_path / "cache")
    assert len(seen) == 1


def test_full_disk_is_refused_in_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    records = make_set(tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(InputError, match="No space left on device; free some space") as raised:
            DiskCache(records, tmp_path / "cache")
    assert "\n" not in str(raised.value)
    usage = shutil.disk_usage(tmp_path)._replace(free=10_000)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage)
        with pytest.raises(
            InputError, match=r"data\.cache=disk: 6 decoded images need .* 0\.0 GB are available"
        ):
            DiskCache(records, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.partial"))
    np.testing.assert_array_equal(DiskCache(records, tmp_path / "cache").read(0), decoded(records, 0))


def test_pixels_that_were_lost_are_decoded_again(tmp_path):
    """As after a power failure: the stamps reached the disk, some pages of pixels did not."""
    records = make_set(tmp_path)
    read_all(DiskCache(records, tmp_path / "cache"), range(6))
    (file,) = (tmp_path / "cache").glob("*.npy")
    content = np.load(file, mmap_mode="r+")
    content[24 * 6 + 20_000 :] = 0
    content.flush()
    for _ in range(2):
        cache = DiskCache(records, tmp_path / "cache")
        for row in range(6):
            np.testing.assert_array_equal(cache.read(row), decoded(records, row))


def test_stamps_that_come_before_their_pixels_are_noticed(tmp_path, monkeypatch):
    """On ARM, one core may see another's writes in this order."""
    monkeypatch.setattr(data.cache, "_STORES_IN_ORDER", False)
    records = make_set(tmp_path)
    cache = RamCache(records)
    read_all(cache, range(6))
    cache._pixels[20_000:] = 0
    for row in range(6):
        np.testing.assert_array_equal(cache.read(row), decoded(records, row))


def test_a_cache_that_has_gone_is_named(tmp_path):
    cache = DiskCache(make_set(tmp_path), tmp_path / "cache")
    next((tmp_path / "cache").glob("*.npy")).unlink()
    with pytest.raises(InputError, match=r"data\.cache=disk: .*\.npy can no longer be opened .*No such file"):
        cache.read(0)


def test_space_is_taken_where_the_system_cannot_be_asked_for_it(tmp_path, monkeypatch):
    """macOS has no posix_fallocate; a file with holes has fewer blocks than bytes."""
    records = make_set(tmp_path)
    monkeypatch.delattr(os, "posix_fallocate")
    monkeypatch.setattr(data.cache, "_BLOCK", 10_000)
    cache = DiskCache(records, tmp_path / "cache")
    (file,) = (tmp_path / "cache").glob("*.npy")
    assert 512 * file.stat().st_blocks >= cache.nbytes
    for row in range(6):
        np.testing.assert_array_equal(cache.read(row), decoded(records, row))


def test_damaged_cache_is_named(tmp_path):
    records = make_set(tmp_path)
    read_all(DiskCache(records, tmp_path / "cache"), range(6))
    (file,) = (tmp_path / "cache").glob("*.npy")
    whole = file.read_bytes()
    for damaged in (whole[:-1], whole[:1000], b"", bytes(len(whole))):
        file.write_bytes(damaged)
        with pytest.raises(InputError, match=r"data\.cache=disk: .*\.npy is damaged.*delete it"):
            DiskCache(records, tmp_path / "cache")
