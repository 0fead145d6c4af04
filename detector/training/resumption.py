"""Resuming a run: where it stands, what has changed since, and what it must forget."""

import math
from pathlib import Path
from typing import Any

from detector.checkpoint import BEST, checkpoint_mark, load_newest, set_aside_damaged
from detector.config import Config
from detector.config.file import parse_config
from detector.training.checkpoints import Checkpoints, RunState
from detector.training.run_folder import (
    changed_keys,
    forget_metrics_after,
    has_checkpoint,
    measures_otherwise,
)
from errors import InputError


class Resumption:
    """The run to resume.

    Args:
        folder: the run folder; without a checkpoint the run starts at its first step.
        config: the current configuration.

    Attributes:
        classes: classes of the run; None without a checkpoint.
        changes: settings that differ from those of the run; see `changed_keys`.
        changed: descriptions of these changes, for the log.
        beside: if the last evaluation was logged but not saved, what else was logged at its step; None
            otherwise.

    Raises:
        InputError: none of the checkpoints can be read, or the run has other classes.
    """

    def __init__(self, folder: Path, config: Config) -> None:
        self.folder = folder
        self.changed: list[str] = []
        self.beside: dict[str, Any] | None = None
        self._mark = checkpoint_mark(folder)
        self._state = load_newest(folder) if has_checkpoint(folder) else None
        self.classes = tuple(self._state["classes"]) if self._state else None
        self.changes: list[tuple[str, Any, Any]] = []
        if self._state is not None:
            # With defaults for keys that an older version did not have.
            before = parse_config(self._state["config"], str(folder))
            changes = changed_keys(*(one.model_dump(mode="json") for one in (before, config)))
            self.changes += [change for change in changes if change[0] != "run.dir"]
        if any(key == "data.merge" for key, *_ in self.changes):
            raise InputError(
                f"{folder}: data.merge cannot be changed when resuming; start a new run with "
                f"model.init={BEST} of this one"
            )
        if self.classes is not None and config.data.classes not in (None, [*self.classes]):
            raise InputError(
                f"{folder}: the run has the classes {', '.join(self.classes)}, and data.classes cannot be "
                f"changed when resuming; start a new run with model.init={BEST} of this one"
            )

    def restore(self, checkpoints: Checkpoints, progress: RunState) -> None:
        """Restore the state of the run.

        Raises:
            InputError: it does not fit the configuration or the data.
        """
        if self._state is None:
            return
        checkpoints.restore(self._state, str(self.folder), self.changes)
        self._state = None  # frees as much memory as model and optimizer take
        self.changed = [f"{key}={now} (was {then})" for key, then, now in self.changes]
        if checkpoints.trains_on_others:
            self.changed.insert(0, "the training set has different images or boxes, or a different order")
        if checkpoints.measures_otherwise or any(measures_otherwise(*change) for change in self.changes):
            if checkpoints.ended():
                remedy = "score it again with evaluate.py, and fit its scores with evaluate.py --recalibrate"
                self.changed.insert(
                    0, f"nothing that affects the metrics, because the run has ended; {remedy}"
                )
                return
            progress.best, progress.best_step = -math.inf, progress.step
            self.changed.insert(0, f"{BEST} starts over, because its AP cannot be compared")

    def begin(self, progress: RunState) -> None:
        """Forget what comes after the step to resume from; this process must hold the folder's lock.

        Raises:
            InputError: the run has continued since its state was read.
        """
        if checkpoint_mark(self.folder) != self._mark:
            raise InputError(
                f"the run in {self.folder} has been continued by another process in the meantime; start "
                "--resume again"
            )
        set_aside_damaged(self.folder)
        self.beside = forget_metrics_after(self.folder, progress.step, progress.evaluated)

    def purge_step(self, step: int) -> int:
        """First step that TensorBoard hides: the next one, or this one if its evaluation will be repeated."""
        return step + (self.beside is None)
