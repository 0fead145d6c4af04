"""What reaches the training from the loader: images that cannot be read, loading processes that die."""

import gc
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from data.coco import load_coco
from data.feed import SkippedImages, _dead_workers, checked, in_groups, next_group
from data.images import read_image
from data.loader import DetectionDataset, eval_loader, train_loader
from data.order import EpochBatches, Key
from data.sample import Batch, DetectionSet
from data.transforms import Pipeline
from errors import InputError
from tests.builders import small_coco, write_image
from tests.runs import no_file_larger_than

IMAGES = 8


@pytest.fixture
def records(tmp_path: Path) -> DetectionSet:
    root = small_coco(tmp_path / "set", IMAGES)
    return load_coco(root / "annotations" / "train.json", root / "images", None)


def epoch(
    records: DetectionSet, workers: int, skipped: SkippedImages | None = None, stand_ins: int = 100
) -> list[Batch]:
    batches = EpochBatches(len(records), 2, seed=3)
    pipeline = Pipeline(["HorizontalFlip"], 0.3, "train")
    return list(checked(train_loader(records, pipeline, batches, 3, stand_ins, workers, False), skipped))


@pytest.mark.parametrize("workers", [0, 2])
def test_the_next_image_stands_in_for_one_that_cannot_be_read(
    records: DetectionSet, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Two neighbours, one damaged, the other of another size and the last of the set: row 0 follows it."""
    whole = epoch(records, workers)
    Path(records.files[6]).write_bytes(b"no picture")
    write_image(Path(records.files[7]), 10, 12)
    skipped = SkippedImages(records, 2)
    mended = epoch(records, workers, skipped)
    assert len(skipped) == 2
    assert [row for batch in mended for row in batch.wanted.tolist()] == [
        row for batch in whole for row in batch.indices.tolist()
    ]
    stands_in = dict(enumerate([0, 1, 2, 3, 4, 5, 0, 0]))
    dataset = DetectionDataset(records, Pipeline(["HorizontalFlip"], 0.3, "train"), seed=3)
    for batch in mended:
        assert batch.indices.tolist() == [stands_in[row] for row in batch.wanted.tolist()]
        for place, row in enumerate(batch.indices.tolist()):
            image = dataset.sample(0, row).image
            assert np.array_equal(batch.images[place].permute(1, 2, 0).numpy()[: image.shape[0]], image)
    for row in (6, 7):  # reported once each, though row 0 replaced both
        assert caplog.text.count(str(records.files[row])) == 1
    assert "it is not an image" in caplog.text and "is 12 x 10 px, but its annotation says" in caplog.text


@pytest.mark.parametrize("workers", [0, 2])
def test_no_image_stands_in_where_the_transforms_fail(records: DetectionSet, workers: int) -> None:
    """The image is not at fault, and replacing it would hide what is."""
    pipeline = Pipeline([{"RandomCrop": {"height": 500, "width": 500}}], 0.3, "data.transforms.train")
    loader = train_loader(records, pipeline, EpochBatches(len(records), 2, seed=3), 3, 3, workers, False)
    with pytest.raises(InputError, match=r"data\.transforms\.train: the transforms fail"):
        list(checked(loader, SkippedImages(records, 5)))


def test_too_many_images_that_cannot_be_read_stop(records: DetectionSet) -> None:
    for row in range(3):
        Path(records.files[row]).write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"data\.max_skipped=2 .*most recently .*\.png"):
        epoch(records, 0, SkippedImages(records, 2))


def test_a_set_without_any_image_that_can_be_read_is_an_error(records: DetectionSet) -> None:
    for file in records.files:
        Path(file).write_bytes(b"no picture")
    with pytest.raises(
        InputError, match=r"cannot be read.*; nor can the 7 images that could be used in its place"
    ):
        epoch(records, 0, SkippedImages(records, 100))


def test_the_image_that_was_wanted_is_named_where_its_stand_in_cannot_be_read_either(
    records: DetectionSet,
) -> None:
    for row in (2, 3):
        Path(records.files[row]).write_bytes(b"no picture")
    got = DetectionDataset(records, Pipeline([], 0.0, "train"), 0, stand_ins=1)[Key(0, 2)]
    assert isinstance(got, InputError)
    assert Path(records.files[2]).name in str(got) and Path(records.files[3]).name not in str(got)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_loading_process_that_dies_names_its_file(
    records: DetectionSet, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deadly(path: Path, size: Any) -> Any:
        if path.name == "5.png":
            signal.signal(number, signal.SIG_DFL) if number != signal.SIGKILL else None
            os.kill(os.getpid(), number)
        return read_image(path, size)

    monkeypatch.setattr("data.loader.read_image", deadly)
    with pytest.raises(InputError, match=r"a loading process died while reading .*5\.png.*data\.workers=0"):
        epoch(records, 2)


def test_a_batch_of_a_loading_process_that_died_since_is_not_fetched_in_vain(
    records: DetectionSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second worker has passed on its first batch, and dies on its second before the first is fetched.

    The batches are (0, 1), (2, 3), (4, 5), (6, 7); the workers take turns.
    """
    fetched, dying = tmp_path / "fetched", tmp_path / "dying"

    def deadly(path: Path, size: Any) -> Any:
        if path.name in ("2.png", "3.png"):
            wait_for(fetched)
        if path.name in ("6.png", "7.png"):
            time.sleep(0.5)  # for the thread that passes the batch on
            dying.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return read_image(path, size)

    monkeypatch.setattr("data.loader.read_image", deadly)
    feed = checked(eval_loader(records, Pipeline([], 0.3, "eval"), 2, 2, False))
    assert next(feed).indices.tolist() == [0, 1]
    fetched.touch()
    wait_for(dying)
    with pytest.raises(InputError, match=r"a loading process died while reading .*6\.png.*data\.workers=0"):
        list(feed)


def test_a_loading_process_that_died_between_two_epochs_is_one_line(records: DetectionSet) -> None:
    """Raised when the first batch is requested; no image is to blame then."""
    loader = train_loader(
        records, Pipeline([], 0.3, "train"), EpochBatches(len(records), 2, 3), 3, 0, 1, False
    )
    assert len(list(checked(loader))) == IMAGES // 2
    assert isinstance(loader.dataset, DetectionDataset)
    (process,) = loader.dataset.readers()
    os.kill(process, signal.SIGKILL)
    feed = checked(loader)
    with pytest.raises(InputError, match=r"^a loading process died: it ran out of memory"):
        next(feed)


def test_a_loading_process_that_is_about_to_end_is_waited_for(
    records: DetectionSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connection fails before the process is gone; if all stay alive, the error has another cause."""
    dataset = DetectionDataset(records, Pipeline([], 0.3, "eval"), 0, workers=2)
    dataset.reading[1] = torch.tensor([77, 2])
    loader: Any = SimpleNamespace(dataset=dataset, num_workers=2)
    living = itertools.chain(3 * [[SimpleNamespace(pid=77)]], itertools.repeat([]))
    monkeypatch.setattr("multiprocessing.active_children", lambda: next(living))
    monkeypatch.setattr("data.feed._GONE_WITHIN_S", 60)  # as on a busy machine
    assert _dead_workers(loader, EOFError()) == [77]
    monkeypatch.setattr("multiprocessing.active_children", lambda: [SimpleNamespace(pid=77)])
    monkeypatch.setattr("data.feed._GONE_WITHIN_S", 0.05)
    assert _dead_workers(loader, EOFError()) == []
    monkeypatch.setattr("multiprocessing.active_children", lambda: pytest.fail("nothing to wait for"))
    assert _dead_workers(loader, OSError("Caught OSError in DataLoader worker process 1.\n")) == []


@pytest.mark.parametrize("at_once", [False, True])
def test_loading_processes_end_with_an_image_that_cannot_be_read(
    records: DetectionSet, at_once: bool
) -> None:
    """Without the garbage collector, in whose order they would be waited for without being asked to end."""
    Path(records.files[0]).write_bytes(b"no picture")
    loader = eval_loader(records, Pipeline([], 0.3, "eval"), 2, 2, False)
    failure = None
    gc.disable()
    try:
        if at_once:
            next(checked(loader))
        _, failure = next_group(in_groups(checked(loader), 1))
    except InputError as error:
        assert at_once and "0.png" in str(error)
    try:
        reading = weakref.ref(loader._iterator)
        del loader
        assert reading() is None
    finally:
        gc.enable()
    assert (failure is None) == at_once


@pytest.mark.parametrize("workers", [0, 1])
def test_a_fault_of_the_program_is_not_taken_for_a_loading_process_that_died(
    records: DetectionSet, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, size: Any) -> Any:
        raise RuntimeError("a fault")

    monkeypatch.setattr("data.loader.read_image", fail)
    with pytest.raises(RuntimeError, match="a fault"):
        epoch(records, workers)


@pytest.mark.parametrize("said", ["[Errno 24] Too many open files", "received 0 items of ancdata"])
def test_too_many_open_files_are_told_with_what_to_do(
    records: DetectionSet, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """multiprocessing raises these errors when batches are passed on."""

    def fail(path: Path, size: Any) -> Any:
        raise RuntimeError(said)

    monkeypatch.setattr("data.loader.read_image", fail)
    with pytest.raises(
        InputError, match=r"^the loading processes have too many files open.*ulimit -n 4096.* data\.workers"
    ):
        epoch(records, 0)


def test_loading_processes_are_started_before_the_first_batch_is_asked_for(records: DetectionSet) -> None:
    """So that interrupting the wait for it cannot interrupt their start."""
    before = {child.pid for child in multiprocessing.active_children()}
    feed = checked(eval_loader(records, Pipeline([], 0.3, "eval"), 2, 1, False))
    assert {child.pid for child in multiprocessing.active_children()} - before
    assert len(list(feed)) == IMAGES // 2


def wait_for(file: Path) -> None:
    deadline = time.monotonic() + 60
    while not file.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


LOADING = """
import multiprocessing, os, signal, sys
from pathlib import Path
from data.coco import load_coco
from data.feed import checked
from data.loader import train_loader
from data.order import EpochBatches
from data.transforms import Pipeline

multiprocessing.set_start_method(sys.argv[3])
root = Path(sys.argv[1])
records = load_coco(root / "annotations" / "train.json", root / "images", None)
batches = EpochBatches(len(records), 1, 0)
loader = train_loader(records, Pipeline([], 0.3, "train"), batches, 0, 0, 2, False)
feed = checked(loader)
next(feed), next(feed)  # one of each of the two processes: both are ready for signals
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, signal.SIG_IGN)
    os.killpg(0, number)
print(2 + sum(1 for _ in feed))
if sys.argv[2] == "error":
    kept = iter(loader)
    raise SystemExit(3)
"""


@pytest.mark.parametrize(
    ("end", "code", "default"), [("plain", 0, "fork"), ("error", 3, "fork"), ("plain", 0, "forkserver")]
)
def test_loading_processes_outlive_signals_and_leave_quietly(
    tmp_path: Path, end: str, code: int, default: str
) -> None:
    """The signals go to the whole process group, as from a terminal or a scheduler."""
    root = small_coco(tmp_path / "set", IMAGES)
    done = subprocess.run(
        [sys.executable, "-c", LOADING, str(root), end, default],
        cwd=Path(__file__).resolve().parents[2],
        start_new_session=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (code, f"{IMAGES}\n", "")


def test_no_room_in_shared_memory_is_said_and_not_waited_for(records: DetectionSet) -> None:
    """The loading process passes its batches on in shared memory, as files in /dev/shm."""
    batches = EpochBatches(len(records), 2, seed=3)
    loader = train_loader(records, Pipeline([], 0.3, "train"), batches, 3, 0, workers=1, pin_memory=False)
    with (
        no_file_larger_than(8000),
        pytest.raises(InputError, match=r"in shared memory.*--shm-size"),
    ):
        next(checked(loader))
