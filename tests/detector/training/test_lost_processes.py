"""Several gloo processes, one of which is stopped, fails or is lost: none waits forever, each says why."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from detector.checkpoint import load_checkpoint, save_checkpoint
from detector.config.file import dump_config
from detector.training import processes as processes_module
from detector.training.agreement import refuse_different
from detector.training.learner import Learner
from detector.training.processes import Processes
from detector.training.run_log import RunLog
from detector.training.trainer import Trainer
from errors import Bystander, InputError, Stopped
from tests.builders import small_coco
from tests.processes import joined, run_processes
from tests.runs import read_metrics, tiny_config
from train import train as train_door

ROOT = Path(__file__).resolve().parents[3]

# On the worker of the other tests with processes: there are not enough cores for both.
pytestmark = pytest.mark.xdist_group("processes")


def stop_one(rank: int, size: int) -> Any:
    """Only the second process gets a signal: in its third step or, another time, in the evaluation."""
    processes = joined()
    folder, when = Path(os.environ["TEST_FOLDER"]), os.environ["TEST_WHEN"]
    config = tiny_config(
        folder / "set", folder / "run", "model.norm=group", "train.epochs=2", "eval.batch_size=1"
    )
    resume = folder / "run" if (folder / "run").exists() else None
    dist.barrier()
    trainer = Trainer(config, "test", resume, processes)
    update, detect = Learner.update, type(trainer.parts.validation).detect

    def update_and_signal(learner: Learner, losses: Any) -> Any:
        if rank == 1 and when == "step" and trainer.progress.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(learner, losses)

    def signal_and_detect(*arguments: Any) -> Any:
        if rank == 1 and when == "evaluation":
            os.kill(os.getpid(), signal.SIGUSR1)
        return detect(*arguments)

    def save_slowly(*arguments: Any) -> None:
        time.sleep(0.5)
        save_checkpoint(*arguments)
        (folder / "saved").write_text(str(time.monotonic()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("detector.training.checkpoints.save_checkpoint", save_slowly)
        patch.setattr(Learner, "update", update_and_signal)
        patch.setattr(type(trainer.parts.validation), "detect", signal_and_detect)
        try:
            trainer.run()
        except Stopped as reason:
            return str(reason), time.monotonic()
    return trainer.progress.step


def fail_alone(rank: int, size: int) -> Any:
    """The second process cannot read one of its validation images, or build its validation set."""
    folder, where = Path(os.environ["TEST_FOLDER"]), os.environ["TEST_WHERE"]
    rank_, size_ = str(rank), str(size)
    os.environ |= {"RANK": rank_, "LOCAL_RANK": rank_, "WORLD_SIZE": size_}

    def fail(*_: Any) -> None:
        raise InputError("an image cannot be read")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("detector.training.processes.dist.destroy_process_group", lambda: None)
        if rank == 1:
            patch.setattr(where, fail)
        try:
            train_door(str(folder / "config.yaml"), [f"run.dir={folder / 'run'}"], None, False, RunLog())
        except (InputError, Bystander) as error:
            return type(error).__name__
    return "went on"


@pytest.mark.parametrize("where", ["validation.Validation.detect", "assembly.Validation"])
def test_one_that_fails_leaves_no_other_waiting(
    tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No launcher would end processes that wait on another machine."""
    config = tiny_config(small_coco(tmp_path / "set", 4), tmp_path / "run", "train.epochs=1")
    (tmp_path / "config.yaml").write_text(dump_config(config))
    monkeypatch.setenv("TEST_FOLDER", str(tmp_path))
    monkeypatch.setenv("TEST_WHERE", f"detector.training.{where}")
    (tmp_path / "store").mkdir()
    assert run_processes(fail_alone, 2, tmp_path / "store") == ["Bystander", "InputError"]


def test_a_store_whose_keeper_has_gone_makes_a_bystander() -> None:
    class Broken(dist.HashStore):
        def check(self, keys: list[str]) -> bool:
            raise RuntimeError("Connection reset by peer")

        def set(self, key: str, value: str) -> None:
            raise RuntimeError("Connection reset by peer")

    def fail() -> None:
        raise InputError("no space left")

    with pytest.raises(InputError, match="no space left"):  # not the failure to tell the others
        Processes(0, 2, store=Broken()).from_main(fail)
    processes = Processes(1, 2, store=Broken())
    for call in (lambda: processes.barrier(), processes.stop_announced, lambda: processes.from_main(int)):
        with pytest.raises(Bystander):
            call()


def test_what_was_made_counts_though_its_maker_fails_at_once() -> None:
    """The main process hands over what the others wait for, and fails, between two checks of theirs."""

    class Late(dist.HashStore):
        def check(self, keys: list[str]) -> bool:
            if keys == ["failed"]:
                main.from_main(lambda: "made")
                main.announce_failure("for another reason")
            return super().check(keys)

    store = Late()
    main, other = (Processes(rank, 2, store=store) for rank in range(2))
    assert other.from_main(str) == "made"


def test_what_all_processes_fail_of_is_said_by_one() -> None:
    store = dist.HashStore()
    one, other, third = (Processes(rank, 3, store=store) for rank in range(3))
    assert not one.announce_failure("no such file")
    assert other.announce_failure("no such file")
    assert not third.announce_failure("no space left")
    assert not Processes().announce_failure("no such file")


def lose_one(rank: int, size: int) -> Any:
    """The second process is lost in the middle of the first one's step, with or without announcing why."""
    processes = joined()
    network = nn.parallel.DistributedDataParallel(nn.Linear(3, 3))
    if os.environ["TEST_ANNOUNCED"] == "1" and rank == 1:
        processes.announce_failure("no space left")
    dist.barrier()
    if rank == 1:
        os._exit(0)
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes_module.log, "error", said.append)
        with pytest.raises(Bystander), processes.lost_peers_explained():
            network(torch.ones(2, 3)).sum().backward()
    return said


@pytest.mark.parametrize("announced", [False, True])
def test_a_process_that_is_lost_is_one_line_in_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, announced: bool
) -> None:
    """And no line if that process has said itself why it failed."""
    monkeypatch.setenv("TEST_ANNOUNCED", str(int(announced)))
    torch.save(None, tmp_path / "1.pt")  # what it would have returned
    said = run_processes(lose_one, 2, tmp_path)[0]
    assert len(said) == (not announced)
    assert all("another process is lost (" in line and "peer" in line for line in said)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("[/gloo/tcp/pair.cc:547] Connection closed by peer [10.0.0.1]:7", "Connection closed by peer"),
        ("[/gloo/tcp/pair.cc:534] Read error [10.0.0.1]:7: Connection reset by peer", "Read error"),
        ("[/gloo/buffer.cc:72] Timed out waiting 1800000ms for recv operation", "Timed out waiting"),
        ("NCCL error: remote process exited or there was a network error", "NCCL error"),
        ("[1] Connection closed by peer. This is likely a fault of another", "Connection closed by peer)"),
    ],
)
def test_what_is_said_of_a_lost_process_is_passed_on_without_advice(
    message: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(processes_module.log, "error", said.append)
    with pytest.raises(Bystander), Processes().lost_peers_explained():
        raise RuntimeError(message)
    (line,) = said
    assert f"another process is lost ({reason}" in line and "--resume" in line


@pytest.mark.parametrize(
    "message",
    [
        "shape '[2]' is invalid",
        "/home/igloo/train.py: no",
        "[gloo/x.cc:1] op.preamble.length <= op.nbytes. 8 vs 4",
    ],
)
def test_other_errors_are_left_as_they_are(message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    with pytest.raises(RuntimeError, match=re.escape(message)), Processes().lost_peers_explained():
        raise RuntimeError(message)


LAST_WORDS = """
import sys, time
from detector.training.processes import join_processes
processes = join_processes("cpu")
if not processes.main:
    time.sleep(1)  # on a machine with other work, say
print(processes.from_main(lambda: "saved"))
processes.leave()
"""


def test_the_one_that_keeps_the_store_leaves_last() -> None:
    """Without a launcher that keeps the store, or with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    started = []
    for rank in ("0", "1"):
        environment = os.environ | where | {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2"}
        command = [sys.executable, "-c", LAST_WORDS]
        started.append(
            subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        )
    assert [process.communicate(timeout=120)[0] for process in started] == ["saved\n", "saved\n"]
    assert [process.returncode for process in started] == [0, 0]


@pytest.mark.parametrize(
    ("words", "resumes", "named"),
    [
        ((), False, None),
        (("optimizer.lr=0.25",), False, "optimizer.lr is 0.25 on"),
        (("train.log_every=7",), False, "train.log_every is 7 on"),
        ((), True, "--resume is True on"),
    ],
)
def test_processes_that_were_told_different_things_do_not_train_together(
    words: tuple[str, ...], resumes: bool, named: str | None
) -> None:
    """Where the data are, and how they are read, may differ."""
    store, said = dist.HashStore(), [""] * 2

    def compare(rank: int) -> None:
        processes = Processes(rank, 2, store=store)
        config = tiny_config(
            Path(f"set{rank}"), Path("run"), f"data.workers={rank}", *(words if rank else ())
        )
        try:
            refuse_different(processes, config, resumes and rank == 1)
        except (InputError, Bystander) as error:
            said[rank] = f"{type(error).__name__} {error}"
            processes.announce_failure(str(error))

    threads = [threading.Thread(target=compare, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    if named is None:
        assert said == ["", ""]
    else:
        assert said[0].startswith("Bystander")
        assert said[1].startswith("InputError") and named in said[1] and "in the first process" in said[1]


def test_only_torchrun_has_an_end_that_ends_its_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes started by a shell go on after it has ended."""
    for launcher, orphaned in (("none", True), (None, False)):
        monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
        if launcher is not None:
            monkeypatch.setenv("TORCHELASTIC_RUN_ID", launcher)
        processes = Processes(0, 2, store=dist.HashStore())
        assert not processes.orphaned
        with monkeypatch.context() as patch:
            patch.setattr(os, "getppid", lambda: 1)
            assert processes.orphaned == orphaned


def begin_apart(rank: int, size: int) -> Any:
    """The second process does not see the run folder."""
    processes, folder = joined(), Path(os.environ["TEST_FOLDER"])
    config = tiny_config(folder / "set", folder / "run", "model.norm=group", "train.epochs=2")
    try:
        Trainer(config, "test", folder / "run" if rank == 0 else None, processes)
    except InputError as error:
        return str(error)
    return "went on"


def test_processes_that_would_begin_at_different_steps_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = small_coco(tmp_path / "set", 4)
    Trainer(tiny_config(root, tmp_path / "run", "model.norm=group", "train.epochs=1"), "test").run()
    monkeypatch.setenv("TEST_FOLDER", str(tmp_path))
    (tmp_path / "store").mkdir()
    said = run_processes(begin_apart, 2, tmp_path / "store")
    for rank, step in ((0, 2), (1, 0)):
        assert f"process {rank} would start at step {step}, but others at another step" in said[rank]


def test_all_stop_where_one_is_told_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_coco(tmp_path / "set", 8)
    monkeypatch.setenv("TEST_FOLDER", str(tmp_path))
    for when, step in (("step", 3), ("evaluation", 4)):
        monkeypatch.setenv("TEST_WHEN", when)
        (tmp_path / when).mkdir()
        (main, _), (other, left) = run_processes(stop_one, 2, tmp_path / when)
        # If one process leaves, the launcher ends the others, even while they are saving.
        assert left > float((tmp_path / "saved").read_text())
        assert f"stopped by another process at step {step} of 8" in main
        assert other == ""  # one process says it for all
        assert load_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt")["step"] == step
    monkeypatch.setenv("TEST_WHEN", "never")
    (tmp_path / "never").mkdir()
    assert run_processes(stop_one, 2, tmp_path / "never") == [8, 8]
    evaluations = [line["step"] for line in read_metrics(tmp_path / "run") if "AP" in line]
    assert evaluations == [4, 8]
