"""Going on with a run: where it is, what has been changed since, what it has to forget."""

import math
from pathlib import Path
from typing import Any

from detector.checkpoint import BEST, checkpoint_mark, load_newest, set_aside_damaged
from detector.config import Config
from detector.config.file import parse_config
from detector.training.progress import Checkpoints, Progress
from detector.training.run_folder import (
    changed_keys,
    forget_metrics_after,
    has_checkpoint,
    measures_otherwise,
)
from errors import InputError


class Resumption:
    """The run in a folder, as it goes on.

    Args:
        folder: of the run; without a checkpoint it goes on from its first step.
        config: as it is now.

    Attributes:
        classes: of the run; None without a checkpoint.
        changes: the settings that are others now; see `changed_keys`.
        changed: what is to be said of them.
        beside: where the step to go on from was evaluated and that was lost, what was logged of the step
            beside it; None where nothing was lost.

    Raises:
        InputError: none of its checkpoints can be read, or it is of other classes.
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
            # With the defaults of keys that an older version did not have.
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

    def restore(self, checkpoints: Checkpoints, progress: Progress) -> None:
        """Bring the state of the run back.

        Raises:
            InputError: it does not fit the configuration, or the data.
        """
        if self._state is None:
            return
        checkpoints.restore(self._state, str(self.folder), self.changes)
        self._state = None  # as large as the model and its optimizer
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

    def begin(self, progress: Progress) -> None:
        """The folder is this process's: forget what comes after the step to go on from.

        Raises:
            InputError: the run has gone on since it was read.
        """
        if checkpoint_mark(self.folder) != self._mark:
            raise InputError(
                f"the run in {self.folder} has been continued by another process in the meantime; start "
                "--resume again"
            )
        set_aside_damaged(self.folder)
        self.beside = forget_metrics_after(self.folder, progress.step, progress.evaluated)

    def purge_step(self, step: int) -> int:
        """What TensorBoard shows begins behind this step, or at it with an evaluation that is made again."""
        return step + (self.beside is None)
