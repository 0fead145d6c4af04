"""Runs killed repeatedly lose nothing. The short form of benchmarks/faults.py."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.faults import campaign, same_weights, start, steps_done
from detector.checkpoint import load_checkpoint
from tests.builders import AUGMENTED, TINY_MODEL, small_coco
from tests.runs import OF_THE_MACHINE, read_metrics

pytestmark = pytest.mark.xdist_group("faults")  # each keeps both cores busy

ROOT = Path(__file__).resolve().parents[2]
IMAGES = 28
WORDS = (
    *(word for word in TINY_MODEL if not word.startswith("data.workers")),
    "model.base_channels=32",  # checkpoints of 45 MB, which take some time to write
    AUGMENTED,
    "train.epochs=3",
    "train.log_every=1",
    "train.save_every_steps=5",
    "train.ema_decay=0.9",
    "optimizer.name=adamw",
    "schedule.name=cosine",
)


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the order of float additions is the same in every process that the tests start."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def words(root: Path, *more: str) -> list[str]:
    config = root / "tiny.yaml"
    config.write_text(f"data: {{format: coco, root: {root / 'set'}}}\n")
    return [str(config), *WORDS, *more]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set, and an undisturbed run on it."""
    folder = tmp_path_factory.mktemp("straight")
    small_coco(folder / "set", IMAGES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        mine = [*words(folder, "data.workers=0"), f"run.dir={folder / 'straight'}"]
        assert start(mine, folder / "log.txt").wait() == 0, (folder / "log.txt").read_text()
    return folder


@pytest.mark.parametrize("workers", [0, 1])
def test_killed_runs_end_with_the_weights_of_an_undisturbed_one(
    straight: Path, tmp_path: Path, workers: int
) -> None:
    log = tmp_path / "log.txt"
    mine = words(straight, f"data.workers={workers}")
    done = campaign(mine, tmp_path / "killed", kills=2, while_saving=1, seed=workers, log=log)
    assert (done.kills, done.resumed, done.damaged) == (2, 2, 0)
    assert same_weights(straight / "straight", tmp_path / "killed"), log.read_text()
    lines = [
        [{k: v for k, v in line.items() if k not in OF_THE_MACHINE} for line in read_metrics(run)]
        for run in (straight / "straight", tmp_path / "killed")
    ]
    assert lines[0] == lines[1]


def launch(words: list[str], log: Path, restarts: int = 0) -> subprocess.Popen:
    """train.py in two processes of torchrun."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    command = [
        *torchrun,
        f"--max-restarts={restarts}",
        "--monitor-interval=0.2",
        str(ROOT / "train.py"),
        *words,
    ]
    with log.open("ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)


def workers_of(launcher: subprocess.Popen) -> list[int]:
    """The process ids of the training processes."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    return [int(child) for child in children if b"train.py" in Path(f"/proc/{child}/cmdline").read_bytes()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes in /proc")
def test_a_launch_that_loses_a_process_restarts_and_continues(tmp_path: Path) -> None:
    """Oracle: the same launch undisturbed, weight for weight."""
    small_coco(tmp_path / "set", IMAGES)
    log = tmp_path / "log.txt"
    mine = words(tmp_path, "model.norm=group", "train.batch_size=4", "data.workers=1")
    assert launch([*mine, f"run.dir={tmp_path / 'straight'}"], log).wait(timeout=200) == 0, log.read_text()

    run = tmp_path / "killed"
    launcher = launch([*mine, f"run.dir={run}"], log, restarts=1)
    while launcher.poll() is None and steps_done(run) < 13:
        time.sleep(0.02)
    os.kill(workers_of(launcher)[1], signal.SIGKILL)
    assert launcher.wait(timeout=200) == 0, log.read_text()
    assert log.read_text().count(f"{run}: {IMAGES} training images") == 2  # the second from its checkpoint
    assert same_weights(tmp_path / "straight", run), log.read_text()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes in /proc")
def test_processes_whose_launcher_is_killed_save_and_end(tmp_path: Path) -> None:
    """Nothing else would end them; unsaved work would be lost, and the folder would stay in use."""
    small_coco(tmp_path / "set", IMAGES)
    log, run = tmp_path / "log.txt", tmp_path / "run"
    slow = (
        "model.norm=group",
        "train.batch_size=4",
        "data.workers=0",
        "train.epochs=300",
        "train.eval_every=300",
    )
    launcher = launch([*words(tmp_path, *slow), f"run.dir={run}"], log)
    while launcher.poll() is None and steps_done(run) < 5:
        time.sleep(0.02)
    workers = workers_of(launcher)
    launcher.kill()
    launcher.wait()
    until = time.monotonic() + 120
    while any(Path(f"/proc/{worker}").exists() for worker in workers) and time.monotonic() < until:
        time.sleep(0.1)
    left = [worker for worker in workers if Path(f"/proc/{worker}").exists()]
    for worker in left:
        os.kill(worker, signal.SIGKILL)
    assert not left, log.read_text()
    assert "stopped by the end of torchrun at step" in log.read_text()
    saved = load_checkpoint(run / "checkpoints" / "last.pt")["step"]
    assert f"at step {saved} of" in log.read_text()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes in /proc")
def test_a_launch_stopped_by_its_scheduler_saves_and_continues_on_one_process(tmp_path: Path) -> None:
    """SIGTERM to the launcher; then a different number of processes with the same global batch."""
    small_coco(tmp_path / "set", IMAGES)
    log, run = tmp_path / "log.txt", tmp_path / "run"
    mine = words(tmp_path, "model.norm=group", "train.batch_size=4", "data.workers=1")
    launcher = launch([*mine, f"run.dir={run}"], log)
    while launcher.poll() is None and steps_done(run) < 5:
        time.sleep(0.02)
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(timeout=100) != 0
    assert f"continue with --resume {run}" in log.read_text()
    assert start(["--resume", str(run)], log).wait() == 0, log.read_text()
    steps = [line["step"] for line in read_metrics(run) if "loss" in line]
    assert steps == list(range(1, 1 + 3 * IMAGES // 4))
