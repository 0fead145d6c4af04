"""Training runs of a second or two, and the command line called in the test's own process."""

import contextlib
import io
import itertools
import json
import os
import resource
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from detector.config import Config
from detector.config.file import apply_overrides, parse_config
from detector.criterion import Losses
from detector.training.learner import Learner
from detector.training.stop import SIGNALS
from doors import run_door
from tests.builders import TINY_MODEL


def tiny_config(root: Path, run: Path, *overrides: str) -> Config:
    """A run on the COCO set at `root`, into the folder `run`."""
    words = [f"data.root={root}", f"run.dir={run}", *TINY_MODEL, *overrides]
    return parse_config(apply_overrides({"data": {"format": "coco"}}, words), "the test")


# Fields of metrics.jsonl that depend on the machine, and so differ from run to run.
OF_THE_MACHINE = ("images_per_s", "step_s", "data_wait", "memory_gib")


@dataclass(frozen=True)
class Outcome:
    """How a program ended, and what it printed."""

    code: int
    out: str
    err: str


def call(main: Callable[[], None], *words: str, cwd: Path) -> Outcome:
    """Run a door in `cwd`, as `python DOOR.py WORDS` would. Exceptions it does not catch are raised."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        patch.setattr("sys.argv", ["door.py", *words])
        patch.chdir(cwd)
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        for number in SIGNALS:  # at its end, a process whose state is saved ignores them
            stack.callback(signal.signal, number, signal.getsignal(number))
        try:
            run_door(main)
        except SystemExit as end:
            code = end.code
    return Outcome(code, out.getvalue(), err.getvalue())


def signal_at_step(patch: pytest.MonkeyPatch, step: int, number: int = signal.SIGTERM) -> None:
    """Send this process a signal in the middle of a step, counted from 1."""
    update, done = Learner.update, []

    def update_and_signal(learner: Learner, losses: Any) -> Any:
        done.append(1)
        if len(done) == step:
            os.kill(os.getpid(), number)
        return update(learner, losses)

    patch.setattr(Learner, "update", update_and_signal)


@contextlib.contextmanager
def boxes_lost_at(step: int) -> Iterator[None]:
    """Shrink the predicted boxes to a dot after that many steps: the next evaluation has an AP of 0."""
    update, count = Learner.update, itertools.count(1)

    def update_and_lose(learner: Learner, losses: Losses) -> tuple[Tensor, Tensor]:
        done = update(learner, losses)
        if next(count) == step:
            with torch.no_grad():  # the default box_std makes it exp(-5) of an anchor
                learner.model.box_head.output.bias.unflatten(0, (-1, 4))[:, 2:] = -25
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "update", update_and_lose)
        yield


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, each parsed on its own."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def last(run: Path) -> dict[str, Any]:
    """The checkpoint that a run would continue from."""
    return torch.load(run / "checkpoints" / "last.pt", weights_only=True)


def difference(one: Any, other: Any, at: str = "") -> str | None:
    """Where two nested structures of tensors and values first differ."""
    if isinstance(one, Tensor):
        return None if torch.equal(one, other) else at
    if isinstance(one, dict | list):
        keys = list(one) if isinstance(one, dict) else range(len(one))
        if len(one) != len(other):
            return at
        found = (difference(one[key], other[key], f"{at}.{key}") for key in keys)
        return next((place for place in found if place), None)
    return None if one == other else at


def listing(folder: Path) -> dict[str, tuple[int, int] | None]:
    """Everything below a folder; files with size and time of the last change."""
    return {
        str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns)
        if path.is_file()
        else None
        for path in folder.rglob("*")
    }


@contextlib.contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """Writing past `size` bytes fails in the operating system, as on a full disk (with EFBIG, not ENOSPC)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def assert_one_line(outcome: Outcome, *words: str) -> None:
    assert outcome.code == 2, outcome.err
    lines = outcome.err.splitlines()
    assert len(lines) == 1, outcome.err
    assert lines[0].startswith("error: "), outcome.err
    for word in words:
        assert word in lines[0], outcome.err


def assert_refused(door: Callable[[], None], words: tuple[str, ...], cwd: Path, *named: str) -> None:
    before = listing(cwd)
    assert_one_line(call(door, *words, cwd=cwd), *named)
    changed = before.items() ^ listing(cwd).items()
    assert not changed, changed
