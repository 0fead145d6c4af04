"""The progress of a run, and the checkpoints that store it."""

import hashlib
import logging
import math
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.order import EpochBatches
from data.sample import DetectionSet
from detector.checkpoint import BEST, LAST, PREVIOUS, save_checkpoint
from detector.config import Config, TrainConfig
from detector.evaluation.calibration import Calibration
from detector.training.learner import Learner
from detector.training.nonfinite import NonFiniteWatch
from detector.training.run_folder import sync_metrics
from errors import InputError

log = logging.getLogger(__name__)

# Settings on which the optimizer's state, or the order of samples, depends.
_OF_THE_OPTIMIZER = ("optimizer.name", "optimizer.decay_norm_and_bias", "optimizer.backbone_lr_factor")
_OF_THE_ORDER = ("train.batch_size", "train.seed", "data.group_by_shape", "data.repeat_rare")


@dataclass
class RunState:
    """What changes during a run, besides the state of the learner."""

    step: int = 0  # number of completed steps
    evaluated: int = -1  # the step of the last evaluation
    best: float = -math.inf  # best AP so far
    best_step: int = 0  # step of that evaluation, or the step where the search for the best begins
    metrics: dict[str, Any] = field(default_factory=dict)  # metrics of the last evaluation
    calibration: Calibration | None = None


def out_of_patience(now: RunState, train: TrainConfig, steps_per_epoch: int) -> str:
    """Why a run ends before its last epoch; "" if it continues."""
    epoch, best = now.step // steps_per_epoch, now.best_step // steps_per_epoch
    if train.patience is None or now.evaluated != now.step or epoch >= train.epochs:
        return ""
    if epoch - best < train.patience or now.best == 0:  # from scratch, the first epochs find nothing
        return ""
    return (
        f"train.patience={train.patience}: AP has not risen since epoch {best}, so the run ends after epoch "
        f"{epoch} of {train.epochs} (to continue, use --resume with a higher train.patience, or null)"
    )


class Checkpoints:
    """The checkpoints of a run: their content, and when the next is due.

    Args:
        config: the resolved configuration.
        train_set: its classes are stored.
        validation_set: stored as a digest; AP can only be compared on the same set.
        learner, progress, watch: the state that is stored and restored.
        batches: determines which samples a step consists of.
    """

    def __init__(
        self,
        config: Config,
        train_set: DetectionSet,
        validation_set: DetectionSet,
        learner: Learner,
        progress: RunState,
        watch: NonFiniteWatch,
        batches: EpochBatches,
    ) -> None:
        self._config = config
        self._train_set = train_set
        self._training, self._validation = train_set.digest(), validation_set.digest()
        self._repeats = hashlib.sha256(batches.repeats.tobytes()).hexdigest()
        self._learner = learner
        self._progress = progress
        self._watch = watch
        self.total_steps = batches.steps * config.train.epochs
        self._steps_per_epoch = batches.steps
        self._folder: Path | None = None
        self._space_is_short = False
        self.trains_on_others = False  # the training set differs from that of the restored run
        self.measures_otherwise = False  # the validation set differs from that of the restored run

    def begin(self, run_folder: Path) -> None:
        """Set the folder for checkpoints; the interval until the next one starts now."""
        self._folder = run_folder / "checkpoints"
        self._note()

    def ended(self) -> bool:
        """Whether the run is complete, including its last evaluation."""
        now, train = self._progress, self._config.train
        at_last = now.step >= self.total_steps and now.evaluated == now.step
        return at_last or bool(out_of_patience(now, train, self._steps_per_epoch))

    def due(self) -> bool:
        """Whether train.save_every_steps or train.save_every_minutes requires a checkpoint now."""
        train, step = self._config.train, self._progress.step
        if step == self._saved_step:
            return False
        steps, minutes = train.save_every_steps, train.save_every_minutes
        # "Passed" rather than "reached": at that exact step something else may have been more urgent.
        if steps is not None and step // steps > self._saved_step // steps:
            return True
        return minutes is not None and time.monotonic() - self._saved_at > 60 * minutes

    def save_if_new(self) -> None:
        """Write LAST, unless it is of this step already; see `save`."""
        assert self._folder is not None
        if self._progress.step != self._saved_step or not (self._folder / LAST).is_file():
            self.save(LAST)

    def save(self, name: str) -> None:
        """Write LAST (complete state; its predecessor is kept) or BEST (weights only).

        Raises:
            InputError: no permission or no space.
        """
        assert self._folder is not None
        now, last = self._progress, name == LAST
        content = {
            "model": self._learner.evaluated.state_dict(),
            "config": self._config.model_dump(mode="json"),
            "classes": list(self._train_set.classes),
            "category_ids": list(self._train_set.category_ids),
            "step": now.step,
            "epoch": now.step // self._steps_per_epoch,
            "evaluated": now.evaluated if last else now.step,  # step of metrics and calibration
            "metrics": now.metrics,
            "calibration": now.calibration.as_plain() if now.calibration else None,
            "fitted_on": self._validation,
        }
        if last:
            sync_metrics(self._folder.parent)
            content["training"] = {
                **self._learner.state(),
                "best": now.best,
                "best_step": now.best_step,
                "evaluated": now.evaluated,
                "not_finite": self._watch.count,
                "not_finite_lately": self._watch.recent,
                "steps_per_epoch": self._steps_per_epoch,
                "images": len(self._train_set),
                "repeats": self._repeats,
                "training_set": self._training,
                "validation": self._validation,
            }
        save_checkpoint(self._folder / name, content, self._folder / PREVIOUS if last else None)
        if last:
            self._note()
            self._warn_of_space(self._folder)

    def restore(self, state: dict[str, Any], source: str, changes: list[tuple[str, Any, Any]]) -> None:
        """Restore the state in LAST.

        Args:
            source: name of the checkpoint in messages.
            changes: changes of the configuration, see `changed_keys`.

        Raises:
            InputError: it has no such state, or is of another model, optimizer, batch size or training set,
                or of a longer run.
        """
        training = state.get("training")
        if not training:
            raise InputError(f"{source} has no training state to continue from; resume from a run folder")
        for key, before, _ in changes:
            if key.startswith("model.") or key in _OF_THE_OPTIMIZER:
                partly = " and model.init_partial=true" if key.startswith("model.") else ""
                raise InputError(
                    f"{source}: {key} is {before} in this run and cannot be changed when resuming; start a "
                    f"new run with model.init={BEST} of this one{partly}"
                )
        steps = training.get("steps_per_epoch", self._steps_per_epoch)
        if steps != self._steps_per_epoch:
            of_length = [key for key, *_ in changes if key in ("train.batch_size", "data.repeat_rare")]
            changed = " and ".join(of_length) or "the training set"
            raise InputError(
                f"{source}: an epoch had {steps} steps and would have {self._steps_per_epoch} now, because "
                f"{changed} has changed; change it back (train.accumulate divides the same batch into "
                f"smaller parts), or start a new run with model.init={BEST} of this one"
            )
        images = training.get("images", len(self._train_set))
        if images != len(self._train_set):
            raise InputError(
                f"{source}: the training set had {images} images and has {len(self._train_set)} now, so the "
                f"run cannot be continued; start a new one with model.init={BEST} of this one"
            )
        if state["step"] % self._steps_per_epoch:
            same_repeats = training.get("repeats", self._repeats) == self._repeats
            _refuse_another_order(changes, same_repeats, source)
        # The settings given with --resume apply, not the saved ones.
        self._learner.restore(training, state["model"], source)
        now = self._progress
        now.step, now.metrics = state["step"], state["metrics"]
        if now.step > self.total_steps:
            raise InputError(
                f"{source} is already at step {now.step}, but train.epochs={self._config.train.epochs} ends "
                f"at step {self.total_steps}; set train.epochs to at least the number of epochs already done"
            )
        now.best, now.evaluated = training["best"], training.get("evaluated", state["step"])
        now.best_step = training.get("best_step", now.step)
        self.trains_on_others = training.get("training_set", self._training) != self._training
        self.measures_otherwise = training.get("validation", self._validation) != self._validation
        if state.get("calibration"):
            now.calibration = Calibration.from_plain(state["calibration"], len(self._train_set.classes))
        self._watch.count = training.get("not_finite", 0)
        self._watch.recent = list(training.get("not_finite_lately", ()))

    def _warn_of_space(self, folder: Path) -> None:
        """Warn early if there is no room for the next checkpoint, which is written beside the newest two."""
        try:
            needed, free = (folder / LAST).stat().st_size, shutil.disk_usage(folder).free
        except OSError:  # the next write will fail and report it
            return
        if free < needed and not self._space_is_short:
            log.warning(
                "%s: the disk has %.0f MB left, but a checkpoint takes %.0f MB; free some space, or the "
                "run will end when it cannot write the next one", folder, free / 1e6, needed / 1e6,
            )  # fmt: skip
        self._space_is_short = free < needed

    def _note(self) -> None:
        self._saved_at, self._saved_step = time.monotonic(), self._progress.step


def _refuse_another_order(changes: list[tuple[str, Any, Any]], same_repeats: bool, source: str) -> None:
    """Raises InputError if the order of samples has changed in mid-epoch.

    Which images of an epoch were used is known only by the number of steps.
    """
    for key, before, after in changes:
        if key in _OF_THE_ORDER:
            raise InputError(
                f"{source} is in the middle of an epoch, and {key} has changed from {before} to {after}: "
                "some images would be left out or used twice; resume without the change"
            )
    if not same_repeats:
        raise InputError(
            f"{source} is in the middle of an epoch, and the classes of the images, which data.repeat_rare "
            "depends on, have changed: some images would be left out or used twice; resume without the "
            f"change, or start a new run with model.init={BEST} of this one"
        )
