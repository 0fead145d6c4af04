"""Signals, run folders in use, and everything else that interrupts a training without losing it."""

import errno
import itertools
import json
import math
import multiprocessing
import os
import pty
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from filelock import FileLock

import train as door
from data.images import read_image
from detector.checkpoint import save_checkpoint
from detector.training.checkpoints import Checkpoints, RunState
from detector.training.learner import Learner
from detector.training.monitor import Monitor
from detector.training.resumption import Resumption
from detector.training.run_folder import in_use, new_run_folder, resume_config
from detector.training.trainer import Trainer
from detector.training.validation import Validation
from errors import InputError, Stopped
from tests.builders import AUGMENTED, TINY_MODEL, small_coco
from tests.runs import (
    OF_THE_MACHINE,
    assert_one_line,
    assert_refused,
    boxes_lost_at,
    call,
    difference,
    last,
    listing,
    read_metrics,
    signal_at_step,
    tiny_config,
)

ROOT = Path(__file__).resolve().parents[3]
WORDS = (
    AUGMENTED,
    "train.epochs=3",
    "train.eval_every=2",
    "train.ema_decay=0.9",
    "optimizer.name=adamw",
    "train.log_every=1",
    "schedule.name=cosine",
)


def assert_same_end(one: Path, other: Path) -> None:
    ends = [last(run) for run in (one, other)]
    for end in ends:
        del end["config"]  # contains the run folder
    assert difference(*ends) is None
    lines = [
        [{key: v for key, v in line.items() if key not in OF_THE_MACHINE} for line in read_metrics(run)]
        for run in (one, other)
    ]
    assert lines[0] == lines[1]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set, and an uninterrupted run on it."""
    folder = tmp_path_factory.mktemp("straight")
    Trainer(tiny_config(small_coco(folder / "set", 8), folder / "straight", *WORDS), "test").run()
    return folder


@pytest.mark.xdist_group("stop")
@pytest.mark.parametrize(("workers", "step"), [(0, 1), (1, 5), (4, 6)])
def test_a_stop_in_mid_epoch_and_resumption_equal_a_straight_run(
    straight: Path, tmp_path: Path, workers: int, step: int
) -> None:
    """In the first step, in mid-epoch, and at the end of an epoch; 4 steps each."""
    config = tiny_config(straight / "set", tmp_path / "stopped", *WORDS, f"data.workers={workers}")
    with pytest.MonkeyPatch.context() as patch:
        signal_at_step(patch, step)
        with pytest.raises(Stopped, match=rf"SIGTERM at step {step} of 12; saved: continue with --resume"):
            Trainer(config, "test").run()
    assert last(tmp_path / "stopped")["step"] == step
    Trainer(config, "test", resume=tmp_path / "stopped").run()
    assert_same_end(straight / "straight", tmp_path / "stopped")


@pytest.mark.xdist_group("stop")
def test_an_evaluation_that_was_broken_off_is_made_again(straight: Path, tmp_path: Path) -> None:
    config = tiny_config(straight / "set", tmp_path / "stopped", *WORDS)
    detect = Validation.detect

    def signal_and_detect(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGUSR1)
        return detect(*arguments)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped, match="SIGUSR1 at step 8"):
        patch.setattr(Validation, "detect", signal_and_detect)
        Trainer(config, "test").run()
    assert not [line for line in read_metrics(tmp_path / "stopped") if "AP" in line]
    Trainer(config, "test", resume=tmp_path / "stopped").run()
    assert_same_end(straight / "straight", tmp_path / "stopped")


def test_a_signal_while_a_stopped_run_is_brought_to_an_end_changes_nothing(tmp_path: Path) -> None:
    """A launcher signals all processes that are left; minutes later, the events are still being written."""
    close, came = Monitor.close, []
    ended: list[int] = []
    minutes = itertools.count(step=60)

    def close_and_signal(monitor: Monitor) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        close(monitor)

    before = signal.signal(signal.SIGTERM, lambda *_: came.append(1))
    try:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped, match="SIGUSR1 at step 2"):
            signal_at_step(patch, 2, signal.SIGUSR1)
            patch.setattr(Monitor, "close", close_and_signal)
            clock = SimpleNamespace(monotonic=lambda: next(minutes))
            patch.setattr("detector.training.stop.time", clock)
            patch.setattr("detector.training.stop.os", SimpleNamespace(_exit=ended.append, write=os.write))
            Trainer(tiny_config(small_coco(tmp_path / "set", 8), tmp_path / "run", *WORDS), "test").run()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not came and not ended
    assert last(tmp_path / "run")["step"] == 2


def test_a_stop_comes_before_an_image_that_cannot_be_read(tmp_path: Path) -> None:
    """The signal may be what killed the loading processes; real damage will be found again."""
    root = small_coco(tmp_path / "set", 8)
    trainer = Trainer(tiny_config(root, tmp_path / "run", *WORDS), "test")
    third = [key.row for key in list(trainer.parts.batches)[2]]
    Path(trainer.parts.train_set.files[third[0]]).write_bytes(b"no picture")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped, match="SIGTERM at step 2"):
        signal_at_step(patch, 2)
        trainer.run()
    assert last(tmp_path / "run")["step"] == 2


@pytest.mark.parametrize("workers", [0, 1])
def test_a_disk_that_does_not_answer_is_no_hindrance_to_a_stop(tmp_path: Path, workers: int) -> None:
    """The state is complete while the next batch is awaited."""
    words = (*WORDS, f"data.workers={workers}")
    trainer = Trainer(tiny_config(small_coco(tmp_path / "set", 8), tmp_path / "run", *words), "test")
    third = [trainer.parts.train_set.files[key.row] for key in list(trainer.parts.batches)[2]]
    asked, answered = tmp_path / "asked", tmp_path / "answered"

    def read(path: Path, size: tuple[int, int]) -> Any:
        if str(path) in third:
            asked.touch()
            for _ in range(600):  # then it answers after all, too late
                if answered.exists():
                    break
                time.sleep(0.1)
            answered.touch()
        return read_image(path, size)

    def signal_when_asked() -> None:
        while trainer.progress.step < 2 or not asked.exists():
            time.sleep(0.05)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped, match="SIGTERM at step 2"):
        patch.setattr("data.loader.read_image", read)
        threading.Thread(target=signal_when_asked, daemon=True).start()
        trainer.run()
    assert not answered.exists()
    answered.touch()
    assert last(tmp_path / "run")["step"] == 2


@pytest.mark.parametrize("streams", ["both", "stderr"])
def test_a_terminal_that_is_closed_costs_no_training(tmp_path: Path, streams: str) -> None:
    """Detached from it, a training goes on, and ends as usual."""
    small_coco(tmp_path / "set", 8)
    (tmp_path / "tiny.yaml").write_text("data: {format: coco, root: set}")
    words = ("tiny.yaml", *TINY_MODEL, "run.dir=run", "train.log_every=1", "train.epochs=3")
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *words],
        cwd=tmp_path,
        stdout=theirs if streams == "both" else subprocess.DEVNULL,
        stderr=theirs,
        start_new_session=True,
    ) as process:
        os.close(theirs)
        while not (tmp_path / "run" / "metrics.jsonl").exists():
            assert process.poll() is None
            time.sleep(0.02)
        os.close(ours)
        assert process.wait() == 0
    assert last(tmp_path / "run")["step"] == 12


def test_how_a_program_ends_is_told_where_nobody_reads_its_last_line(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    os.close(ours)
    script = "from doors import run_door\nfrom errors import Stopped\ndef main():\n raise Stopped('saved')\n"
    ended = subprocess.run(
        [sys.executable, "-c", script + "run_door(main)"], cwd=ROOT, stderr=theirs, check=False
    )
    os.close(theirs)
    assert ended.returncode == 75


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP])
def test_a_stopped_training_has_an_exit_code_of_its_own(tmp_path: Path, number: int) -> None:
    small_coco(tmp_path / "set", 8)
    (tmp_path / "tiny.yaml").write_text("data: {format: coco, root: set}")
    with pytest.MonkeyPatch.context() as patch:
        signal_at_step(patch, 2, number)
        outcome = call(door.main, "tiny.yaml", *TINY_MODEL, "run.dir=run", cwd=tmp_path)
    assert outcome.code == 75
    assert outcome.err.splitlines()[-1].startswith(f"stopped by {signal.Signals(number).name} at step 2")


def test_what_a_loading_process_hears_is_not_the_trainings_business(tmp_path: Path) -> None:
    """It is forked, and shares the file on which its parent listens."""
    config = tiny_config(small_coco(tmp_path / "set", 8), tmp_path / "run", *WORDS, "data.workers=1")
    trainer = Trainer(config, "test")
    update, done = Learner.update, []
    others = {child.pid for child in multiprocessing.active_children()}  # of earlier tests

    def update_and_signal(learner: Learner, losses: Any) -> Any:
        done.append(1)
        if len(done) == 2:
            started = {child.pid for child in multiprocessing.active_children()} - others
            assert started
            for pid, number in itertools.product(started, (signal.SIGUSR1, signal.SIGTERM)):
                os.kill(pid, number)
            time.sleep(0.5)
            assert not trainer.stop
        return update(learner, losses)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "update", update_and_signal)
        trainer.run()
    assert last(tmp_path / "run")["step"] == 12


def test_what_moves_the_steps_of_an_epoch_is_refused_when_resuming(tmp_path: Path) -> None:
    """The position of a run is counted in steps: with other steps it would mean another place, or epoch."""
    root, run = small_coco(tmp_path / "set", 8), tmp_path / "run"
    Trainer(tiny_config(root, run, "train.epochs=2"), "test").run()
    before = listing(run)
    more = ("train.epochs=3", "train.batch_size=4")
    with pytest.raises(InputError, match=r"an epoch had 4 steps and would have 2 now.*train\.batch_size"):
        Trainer(tiny_config(root, run, *more), "test", resume=run)
    with pytest.raises(InputError, match=r"already at step 8, but train\.epochs=1 ends at step 4"):
        Trainer(tiny_config(root, run, "train.epochs=1"), "test", resume=run)
    path = root / "annotations" / "train.json"  # one more image: as many steps, in another order
    content = json.loads(path.read_text())
    content["images"].append({**content["images"][0], "id": 99})
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"the training set had 8 images and has 9 now"):
        Trainer(tiny_config(root, run, "train.epochs=3"), "test", resume=run)
    assert listing(run) == before


def test_what_moves_the_images_of_an_epoch_is_refused_in_the_middle_of_one(tmp_path: Path) -> None:
    """20 images make as many steps with batches of 9 as of 8."""
    root, run = small_coco(tmp_path / "set", 20), tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        signal_at_step(patch, 1)
        Trainer(tiny_config(root, run, "train.epochs=2", "train.batch_size=8"), "test").run()
    before = listing(run)
    for changed in ("train.batch_size=9", "train.seed=5", "data.group_by_shape=true", "data.repeat_rare=0.1"):
        words = ("train.epochs=2", "train.batch_size=8", changed)
        with pytest.raises(
            InputError, match=rf"in the middle of an epoch, and {changed.partition('=')[0]} has changed"
        ):
            Trainer(tiny_config(root, run, *words), "test", resume=run)
    assert listing(run) == before
    Trainer(tiny_config(root, run, "train.epochs=2", "train.batch_size=8"), "test", resume=run).run()
    Trainer(tiny_config(root, run, "train.epochs=3", "train.batch_size=9"), "test", resume=run).run()


def test_other_repeats_are_refused_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    """Classes decide how often images are repeated. Without repeats they may be corrected, boxes always."""
    for name, words in (("repeats", ["data.repeat_rare=0.9"]), ("plain", [])):
        root, run = small_coco(tmp_path / name, 20), tmp_path / f"{name}_run"
        words += ["train.epochs=2", "train.batch_size=8"]
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
            signal_at_step(patch, 1)
            Trainer(tiny_config(root, run, *words), "test").run()
        path = root / "annotations" / "train.json"
        content = json.loads(path.read_text())
        for annotation in content["annotations"]:
            annotation["bbox"][2] += 1
        path.write_text(json.dumps(content))
        resumed = Trainer(tiny_config(root, run, *words), "test", resume=run)
        assert resumed._resumption and resumed._resumption.changed == [
            "the training set has different images or boxes, or a different order"
        ]
        mine = content["annotations"][0]["image_id"]
        for annotation in content["annotations"]:
            annotation["category_id"] = content["categories"][annotation["image_id"] == mine]["id"]
        path.write_text(json.dumps(content))
        if words[0] == "data.repeat_rare=0.9":
            with pytest.raises(InputError, match=r"in the middle of an epoch, and the classes of the images"):
                Trainer(tiny_config(root, run, *words), "test", resume=run)
        else:
            Trainer(tiny_config(root, run, *words), "test", resume=run)


def test_another_validation_set_begins_best_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever the reason for the change: here its file was edited. A run that has ended measures nothing."""
    root, run = small_coco(tmp_path / "set", 8), tmp_path / "run"
    Trainer(tiny_config(root, run, "train.epochs=1"), "test").run()
    Trainer(tiny_config(root, run, "train.epochs=2"), "test", resume=run).run()
    assert "begins anew" not in capsys.readouterr().out
    path = root / "annotations" / "val.json"
    content = json.loads(path.read_text())
    content["annotations"] = content["annotations"][:4]
    path.write_text(json.dumps(content))
    best = torch.load(run / "checkpoints" / "best.pt", weights_only=True)
    Trainer(tiny_config(root, run, "train.epochs=2"), "test", resume=run).run()
    said = capsys.readouterr().out
    assert "begins anew" not in said and "score it again with evaluate.py" in said
    with boxes_lost_at(1):
        Trainer(tiny_config(root, run, "train.epochs=3"), "test", resume=run).run()
    assert "best.pt starts over" in capsys.readouterr().out
    newer = torch.load(run / "checkpoints" / "best.pt", weights_only=True)
    assert newer["step"] == 12 and newer["metrics"]["AP"] == 0 < best["metrics"]["AP"]


@pytest.mark.parametrize(("evaluated", "anew"), [(8, False), (4, True)])
def test_what_is_measured_otherwise_is_so_in_an_evaluation_that_is_still_to_come(
    tmp_path: Path, evaluated: int, anew: bool
) -> None:
    """Killed after the last step, in its evaluation, and moved to another folder, which changes nothing."""
    config = tiny_config(tmp_path, tmp_path / "run")
    (tmp_path / "moved" / "checkpoints").mkdir(parents=True)
    state = {"model": {}, "config": config.model_dump(mode="json"), "classes": ["cat"], "category_ids": [3]}
    save_checkpoint(tmp_path / "moved" / "checkpoints" / "last.pt", {**state, "step": 8, "epoch": 2})
    progress = RunState(step=8, evaluated=evaluated, best=0.5)
    checkpoints: Any = SimpleNamespace(
        restore=lambda *_: None, trains_on_others=False, measures_otherwise=True, total_steps=8
    )
    checkpoints.__dict__.update(_progress=progress, _config=config, _steps_per_epoch=4)
    checkpoints.ended = lambda: Checkpoints.ended(checkpoints)
    resumption = Resumption(tmp_path / "moved", tiny_config(tmp_path, tmp_path / "moved"))
    resumption.restore(checkpoints, progress)
    (said,) = resumption.changed
    assert ("best.pt starts over" in said) == anew and progress.best == (-math.inf if anew else 0.5)


def test_other_classes_are_refused_when_resuming(tmp_path: Path) -> None:
    """They used to be ignored, but recorded as if they applied."""
    root, run = small_coco(tmp_path / "set", 4), tmp_path / "run"
    Trainer(tiny_config(root, run, "train.epochs=1"), "test").run()
    before = listing(run)
    for classes in ("[dog]", "[dog, cat]", "[bird]"):
        with pytest.raises(InputError, match=r"the run has the classes cat, dog, and data\.classes cannot"):
            Trainer(tiny_config(root, run, f"data.classes={classes}"), "test", resume=run)
    assert listing(run) == before
    Trainer(tiny_config(root, run, "train.epochs=1", "data.classes=[cat, dog]"), "test", resume=run)


def test_a_run_folder_in_use_is_refused_and_left_alone(tmp_path: Path) -> None:
    root, run = small_coco(tmp_path / "set", 4), tmp_path / "run"
    config = tiny_config(root, run, "train.epochs=1")
    Trainer(config, "test").run()
    before = read_metrics(run)
    with in_use(run), pytest.raises(InputError, match="in use by another training"):
        Trainer(config, "test", resume=run).run()
    assert read_metrics(run) == before
    with in_use(run):  # free again
        pass


def test_a_run_that_has_gone_on_since_it_was_read_is_refused(tmp_path: Path) -> None:
    """Everything else is built between reading the checkpoint and taking the folder."""
    root, run = small_coco(tmp_path / "set", 4), tmp_path / "run"
    Trainer(tiny_config(root, run, "train.epochs=1"), "test").run()
    late = Trainer(tiny_config(root, run, "train.epochs=3"), "test", resume=run)
    Trainer(tiny_config(root, run, "train.epochs=2"), "test", resume=run).run()
    before = read_metrics(run)
    with pytest.raises(InputError, match="has been continued"):
        late.run()
    assert read_metrics(run) == before


def test_a_lock_of_a_process_that_was_killed_is_no_hindrance(tmp_path: Path) -> None:
    path = str(tmp_path / ".lock")
    script = f"import time, filelock; lock = filelock.FileLock({path!r}); lock.acquire()"
    script += "; print(1, flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(InputError, match="in use"), in_use(tmp_path):
            pass
        process.kill()
        process.wait()
        with in_use(tmp_path):
            assert not FileLock(tmp_path / ".lock").is_locked


def test_a_run_without_a_checkpoint_begins_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Killed before its first checkpoint: nothing but the configuration is there."""
    small_coco(tmp_path / "set", 4)
    (tmp_path / "tiny.yaml").write_text("data: {format: coco, root: set}\ntrain: {epochs: 1}")
    for name in ("whole", "cut"):
        assert call(door.main, "tiny.yaml", *TINY_MODEL, f"run.dir={name}", cwd=tmp_path).code == 0
    shutil.rmtree(tmp_path / "cut" / "checkpoints")  # the whole folder, as somebody may to make room
    (tmp_path / "cut" / ".metrics.jsonl.77.tmp").touch()
    outcome = call(door.main, "--resume", "cut", cwd=tmp_path)
    assert not (tmp_path / "cut" / ".metrics.jsonl.77.tmp").exists()
    assert outcome.code == 0, outcome.err
    assert "cut has no checkpoint yet; the run starts from its first step" in caplog.text
    assert torch.equal(*(last(tmp_path / name)["model"]["pyramid.p7.weight"] for name in ("whole", "cut")))
    assert [line["step"] for line in read_metrics(tmp_path / "cut") if "AP" in line] == [2]


@pytest.fixture(scope="module")
def stopped(straight: Path) -> Path:
    """The run of `straight` stopped at step 6; its checkpoints are of steps 5 and 6."""
    config = tiny_config(straight / "set", straight / "run", *WORDS, "train.save_every_steps=5")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        signal_at_step(patch, 6)
        Trainer(config, "test").run()
    return straight / "run"


@pytest.mark.xdist_group("stop")
@pytest.mark.parametrize("damage", ["truncated", "zeroed", "flipped", "missing"])
def test_a_damaged_last_checkpoint_falls_back_to_the_one_before(
    straight: Path, stopped: Path, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(stopped, tmp_path / "run")
    config = tiny_config(straight / "set", tmp_path / "run", *WORDS, "train.save_every_steps=5")
    path = tmp_path / "run" / "checkpoints" / "last.pt"
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    if damage == "truncated":
        content = content[:middle]
    elif damage == "zeroed":
        content = bytearray(len(content))
    elif damage == "flipped":
        content[middle] ^= 0x10
    path.unlink() if damage == "missing" else path.write_bytes(content)
    resume_config(tmp_path / "run")
    resumed = Trainer(config, "test", resume=tmp_path / "run")
    assert "previous.pt" in caplog.text
    assert resumed.progress.step == 5
    resumed.run()
    assert (path.parent / "damaged.pt").exists() == (damage != "missing")
    assert_same_end(straight / "straight", tmp_path / "run")


def test_two_damaged_checkpoints_are_one_line(tmp_path: Path) -> None:
    root, run = small_coco(tmp_path / "set", 4), tmp_path / "run"
    Trainer(tiny_config(root, run, "train.epochs=2"), "test").run()
    for name in ("last.pt", "previous.pt"):
        (run / "checkpoints" / name).write_bytes(b"PK\x03\x04")
    outcome = call(door.main, "--resume", str(run), cwd=tmp_path)
    errors = [line for line in outcome.err.splitlines() if line.startswith("error")]
    assert outcome.code == 2
    assert len(errors) == 1 and "no older checkpoint" in errors[0] and "best.pt" in errors[0]


@pytest.mark.parametrize("when", ["train.save_every_steps=3", "train.save_every_minutes=10"])
def test_checkpoints_are_written_in_time(tmp_path: Path, when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every so many steps, or minutes; each step takes four minutes on a simulated clock."""
    words = ("train.epochs=1", "train.batch_size=2", "model.norm=group", when)
    config = tiny_config(small_coco(tmp_path / "set", 16), tmp_path / "run", *words)
    saved: list[int] = []
    kept: dict[str, str | None] = {}
    steps: list[int] = []
    update = Learner.update

    def slow_update(*arguments: Any) -> Any:
        steps.append(1)
        return update(*arguments)

    def save(path: Path, content: dict[str, Any], previous: Path | None) -> None:
        saved.append(content["step"])
        kept[path.name] = previous and previous.name

    monkeypatch.setattr("detector.training.checkpoints.save_checkpoint", save)
    clock = SimpleNamespace(monotonic=lambda: 240.0 * len(steps))  # of this module: others need a real clock
    monkeypatch.setattr("detector.training.checkpoints.time", clock)
    monkeypatch.setattr(Learner, "update", slow_update)
    Trainer(config, "test").run()
    assert list(dict.fromkeys(saved)) == [3, 6, 8]
    assert kept == {"last.pt": "previous.pt", "best.pt": None}  # --resume could not go on from best.pt


def test_a_step_is_saved_once_and_with_its_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if a checkpoint is due at the end of an epoch."""
    saved: list[tuple[str, int, int]] = []

    def save(path: Path, content: dict[str, Any], previous: Path | None) -> None:
        saved.append((path.name, content["step"], content["evaluated"]))
        save_checkpoint(path, content, previous)

    monkeypatch.setattr("detector.training.checkpoints.save_checkpoint", save)
    words = ("train.epochs=1", "train.batch_size=2", "model.norm=group", "train.save_every_steps=4")
    Trainer(tiny_config(small_coco(tmp_path / "set", 16), tmp_path / "run", *words), "test").run()
    assert saved == [("last.pt", 4, -1), ("last.pt", 8, -1), ("best.pt", 8, 8), ("last.pt", 8, 8)]


def test_what_a_stopped_evaluation_says_is_saved_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With train.epochs=0 no step has saved anything."""
    monkeypatch.setattr(Validation, "detect", lambda *_: None)
    config = tiny_config(small_coco(tmp_path / "set", 4), tmp_path / "run", "train.epochs=0")
    with pytest.raises(Stopped, match="at step 0 of 0; saved"):
        Trainer(config, "test").run()
    assert last(tmp_path / "run")["step"] == 0


def test_a_disk_without_locks_is_said_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """There is no marker in place of the lock: it would remain if a machine is lost."""

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", refuse)
    for _ in range(2):
        with in_use(tmp_path):
            pass
    assert "does not support locks" in caplog.text and len(caplog.messages) == 2


@pytest.mark.parametrize("words", [(), ("run.dir=runs/mine",)])
def test_a_folder_of_runs_on_a_disk_that_is_away_is_one_line(tmp_path: Path, words: tuple[str, ...]) -> None:
    """And not an endless search for a free name."""
    small_coco(tmp_path / "set", 2)
    (tmp_path / "runs").symlink_to(tmp_path / "disk" / "runs")
    (tmp_path / "tiny.yaml").write_text("data: {format: coco, root: set}\n")
    named = ("run.dir", "runs is a link to", "disk/runs, which does not exist")
    assert_refused(door.main, ("tiny.yaml", *TINY_MODEL, *words), tmp_path, *named)


def test_a_run_that_has_been_linked_away_has_its_name_still(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "tiny").symlink_to(tmp_path / "disk")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        with new_run_folder(None, "tiny", "") as folder:
            assert folder == Path("runs/tiny-2")


def test_a_wrong_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert_one_line(call(door.main, "--resume", "empty", cwd=tmp_path), "empty", "checkpoints/last.pt")


def test_patience_begins_anew_with_the_best(tmp_path: Path) -> None:
    """If AP is measured differently, in a run of 8 steps of which the fourth was the best."""
    config = tiny_config(tmp_path, tmp_path / "run")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    state = {"model": {}, "config": config.model_dump(mode="json"), "classes": ["cat"], "category_ids": [3]}
    save_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt", {**state, "step": 8, "epoch": 2})
    progress = RunState(step=8, evaluated=4, best=0.5, best_step=4)
    checkpoints: Any = SimpleNamespace(
        restore=lambda *_: None, trains_on_others=False, measures_otherwise=True, ended=lambda: False
    )
    Resumption(tmp_path / "run", config).restore(checkpoints, progress)
    assert (progress.best, progress.best_step) == (-math.inf, 8)
