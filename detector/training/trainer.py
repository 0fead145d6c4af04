"""The training loop: one step after another, in the order things happen."""

import enum
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from data.feed import checked
from data.loader import seed_of
from data.sample import Batch
from detector.checkpoint import BEST, LAST, PREVIOUS, load_newest, save_checkpoint
from detector.config import Config
from detector.config_file import dump_config
from detector.evaluation.calibration import Calibration
from detector.evaluation.inference import Predictions
from detector.training.assembly import assemble
from detector.training.compilation import compilation_explained, compilation_report
from detector.training.faults import Fault, FaultWatch, memory_explained
from detector.training.monitor import Monitor, memory_gib, summary_values
from detector.training.optimizer import cosine_factor, multistep_factor, warmup_factor
from detector.training.processes import Processes, launch_id
from detector.training.profile import phase, profiled
from detector.training.run_folder import (
    create_run_folder,
    forget_metrics_after,
    has_checkpoint,
    in_use,
    mark_launch,
    write_text,
)
from detector.training.stop import StopRequest
from errors import Bystander, InputError, Stopped


class Need(enum.IntEnum):
    """What a process needs between two steps; the worst of all is what happens to all."""

    NOTHING = 0
    SAVE = 1
    JUDGE = 2  # a step was not finite
    STOP = 3
    FAIL = 4


@dataclass
class Interval:
    """What has happened since a step was last logged."""

    steps: int = 0
    images: int = 0
    waited_s: float = 0.0  # for data
    started: float = field(default_factory=time.perf_counter)

    def speed(self) -> dict[str, float]:
        """Of all steps of the interval; waiting as a part of the time."""
        seconds = time.perf_counter() - self.started
        return {
            "images_per_s": self.images / seconds,
            "step_s": seconds / self.steps,
            "data_wait": self.waited_s / seconds,
        }


class Trainer:
    """Everything that one run consists of, from the first step to the last.

    Building it checks the data and the model; nothing is written before `run`.

    Args:
        config: the resolved configuration.
        name: of the run folder, where run.dir is not set.
        resume: the run folder to continue from its newest checkpoint, or from the start if it has none.
        processes: those that train together.

    Raises:
        InputError: something in the configuration, data or checkpoint is wrong.
    """

    def __init__(
        self, config: Config, name: str, resume: Path | None = None, processes: Processes | None = None
    ) -> None:
        self.config = config
        self.name = name
        self.folder = resume
        self.processes = processes or Processes()
        state = load_newest(resume) if resume is not None and has_checkpoint(resume) else None
        classes = tuple(state["classes"]) if state else None
        parts = assemble(config, self.processes, classes, fresh=state is None)
        self.parts = parts
        self.learner = parts.learner
        self.gradients = parts.gradients
        self.shapes: set[tuple[int, ...]] = set()  # of batches
        self.step = 0
        self.evaluated = 0  # the step of the last evaluation
        self.best = -math.inf
        self._repeated = False  # the evaluation of this step was logged already, and lost
        self.metrics: dict[str, Any] = {}
        self.calibration: Calibration | None = None
        self.steps_per_epoch = parts.batches.steps
        self.total_steps = self.steps_per_epoch * config.train.epochs
        self.watch = FaultWatch(parts.device, config.train.max_nonfinite, self.steps_per_epoch)
        if state:
            self._restore(state, str(resume))

    # ------------------------------------------------------------------------------ the loop

    def run(self) -> dict[str, Any]:
        """Train to the end; returns the metrics of the last evaluation.

        Raises:
            InputError: the run folder cannot be written or is in use, an image cannot be read, a loading
                process died, the loss is not finite.
            Stopped: a signal asked for it; the state is saved.
            Bystander: another process failed.
        """
        main = self.processes.main
        text = dump_config(self.config)
        with ExitStack() as end:
            self.folder = self.processes.from_main(lambda: self._claim_folder(text, end))
            self.monitor = self._new_monitor(end) if main else None
            if self.monitor:
                self.monitor.config(self.config, self.parts.lr)
                self.monitor.say(self._introduction())
            self.stop = end.enter_context(StopRequest(speak=main))
            self._saved_at, self._saved_step = time.monotonic(), self.step
            self.profile_step = self._profiler(end)
            with memory_explained(self.parts.device), compilation_explained():
                while True:
                    self._evaluate_if_due()
                    if self.step >= self.total_steps:
                        break
                    self._train_epoch()
            if self.monitor:
                self.monitor.finish()
        return self.metrics

    def _new_monitor(self, end: ExitStack) -> Monitor:
        """What it shows begins behind this step, or with an evaluation that is made again."""
        assert self.folder is not None
        purge_step = None
        if self.step:
            purge_step = self.step + (not self._repeated)
        monitor = Monitor(self.folder, self.total_steps, self.step, purge_step)
        end.callback(monitor.close)
        return monitor

    def _claim_folder(self, text: str, end: ExitStack) -> Path:
        """The run folder, kept for this process until the end."""
        fresh = self.folder is None
        folder = create_run_folder(self.config.run.dir, self.name, text) if fresh else self.folder
        assert folder is not None
        end.enter_context(in_use(folder))
        if not fresh:
            self._repeated = forget_metrics_after(folder, self.step, self.evaluated)
            write_text(folder / "config.yaml", text)
        launch = launch_id()
        if launch is not None:
            mark_launch(folder, launch)
        return folder

    def _profiler(self, end: ExitStack) -> Callable[[], None]:
        """What to call after each step."""
        if not self.config.train.profile or self.monitor is None or self.folder is None:
            return lambda: None
        return end.enter_context(profiled(self.folder, self.parts.device, self.monitor.say))

    def _train_epoch(self) -> None:
        """From this step to the end of its epoch."""
        epoch, first = divmod(self.step, self.steps_per_epoch)
        self.parts.batches.start_at(epoch, first)
        groups = _groups(checked(self.parts.loader, self.parts.skipped), self.config.train.accumulate)
        logged = Interval()
        while self.step < (epoch + 1) * self.steps_per_epoch:
            with phase("data"):
                before = time.perf_counter()
                group, failure = _next(groups)
                logged.waited_s += time.perf_counter() - before
            self._settle(failure)
            # Nothing here draws random numbers, but a layer that does will be resumed exactly as well.
            torch.manual_seed(seed_of(self.config.train.seed, self.step, self.processes.rank))
            lr = self.parts.lr * self._lr_factor()
            self.learner.begin(lr)
            due = self._log_is_due(self.step + 1)
            losses = self.gradients(group, measure=due)
            with phase("update"):
                gradient_norm, fault = self.learner.update(losses)
            self.step += 1
            if self.config.train.compile:
                self.shapes.update(tuple(batch.images.shape) for batch in group)
            rows = [row for batch in group for row in batch.indices.tolist()]
            self.watch.note(fault, self.step, losses, rows)
            logged.steps += 1
            logged.images += len(rows) * self.processes.size
            if self.monitor:
                with phase("logging"):
                    if due:
                        values = summary_values(losses, gradient_norm, len(rows)) | {"lr": lr}
                        values |= (
                            logged.speed() | {"memory_gib": memory_gib(self.parts.device)} | self._counts()
                        )
                        self.monitor.step(self.step, self.step / self.steps_per_epoch, values)
                        logged = Interval()
                    self.monitor.advance()
            self.profile_step()
        if self.config.train.compile and self.monitor and epoch == 0:
            self.monitor.say(compilation_report(len(self.shapes)))
        self._settle(None, wait=True)
        self._save(LAST)

    # -------------------------------------------------------------------- between two steps

    def _settle(self, failure: InputError | None, wait: bool = False) -> None:
        """Do what any of the processes needs: save, judge steps that were not finite, stop, fail.

        Args:
            failure: of this process, which cannot go on.
            wait: for the device to have done all steps.
        """
        faults = self.watch.found(wait)
        need = Need.NOTHING
        if failure is not None:
            need = Need.FAIL
        elif self.stop:
            need = Need.STOP
        elif faults:
            need = Need.JUDGE
        elif self._save_is_due():
            need = Need.SAVE
        need = Need(self.processes.worst(need))
        if need == Need.NOTHING:
            return
        faults += self.watch.found(wait=True)
        if faults:
            self._judge(faults)
        if need != Need.JUDGE:
            self._save(LAST)
        if failure is not None:
            raise failure
        if need == Need.FAIL:
            raise Bystander
        if need == Need.STOP:
            raise self._stopped()

    def _save_is_due(self) -> bool:
        train = self.config.train
        if not self.processes.main or self.step == self._saved_step:
            return False
        if train.save_every_steps is not None and self.step % train.save_every_steps == 0:
            return True
        minutes = train.save_every_minutes
        return minutes is not None and time.monotonic() - self._saved_at > 60 * minutes

    def _judge(self, faults: list[Fault]) -> None:
        """Steps were not finite. They have changed nothing; what now?

        Raises:
            InputError: not allowed, or too often (Bystander beside the main process).
        """
        policy, folder = self.config.train.on_nonfinite, self.folder
        assert folder is not None
        too_many = self.watch.too_many(faults, self.step)
        if policy == "raise" or too_many or (policy == "rollback" and not has_checkpoint(folder)):
            raise InputError(self._not_finite(faults[0])) if self.processes.main else Bystander
        then = "left out"
        if policy == "rollback":
            state = load_newest(folder)
            self.learner.restore(state["training"], state["model"], str(folder))
            then = f"back to the weights of step {state['step']}"
        if self.monitor:
            steps = ", ".join(str(fault.step) for fault in faults)
            self.monitor.say(f"warning: the loss is not finite at step {steps} ({faults[0]}): {then}")

    def _log_is_due(self, step: int) -> bool:
        return step % self.config.train.log_every == 0 or step == self.total_steps

    def _counts(self) -> dict[str, float]:
        """How often something had to be passed over, where that is allowed."""
        counts: dict[str, float] = {}
        if self.config.train.on_nonfinite != "raise":
            counts["steps_not_finite"] = self.watch.count
        if self.parts.skipped is not None:
            counts["images_skipped"] = len(self.parts.skipped)
        return counts

    def _lr_factor(self) -> float:
        schedule = self.config.schedule
        factor = warmup_factor(self.step, schedule.warmup_steps, schedule.warmup_factor)
        if schedule.name == "cosine":
            return factor * cosine_factor(self.step / self.total_steps, schedule.final_factor)
        return factor * multistep_factor(
            self.step / self.steps_per_epoch, schedule.milestones, schedule.gamma
        )

    # ------------------------------------------------------------------------ evaluation

    def _evaluate_if_due(self) -> None:
        epoch, rest = divmod(self.step, self.steps_per_epoch)
        last = self.step >= self.total_steps
        if rest or not self.step or self.evaluated == self.step:
            return
        if epoch % self.config.train.eval_every == 0 or last:
            self._evaluate(epoch)
            self._save(LAST)

    def _evaluate(self, epoch: int) -> None:
        """Every process looks at its part of the validation set; the main one judges all.

        Raises:
            Stopped: a signal asked for it; the evaluation will be made again.
        """
        model = self.learner.evaluated
        self.processes.share_state(model)
        share = self.parts.validation.detect(model, self.stop)
        if share is None:
            raise self._stopped()
        shares = self.processes.gather(share)
        self.metrics, self.best = self.processes.from_main(lambda: self._report(epoch, shares))
        self.evaluated = self.step

    def _report(self, epoch: int, shares: list[list[Predictions]] | None) -> tuple[dict[str, Any], float]:
        """Write down and show what was found; returns the metrics, and the best AP so far."""
        assert shares is not None and self.monitor is not None
        scores, self.calibration = self.parts.validation.judge(shares)
        result = scores.coco
        self.metrics = {**result.as_json(), **scores.extra}
        pictures = self.parts.validation.pictures(scores)
        self.monitor.evaluation(self.step, epoch, result, scores.extra, pictures)
        if result.summary["AP"] > self.best:
            self.best = result.summary["AP"]
            self._save(BEST)
        return self.metrics, self.best

    # ------------------------------------------------------------------------ state

    def _save(self, name: str) -> None:
        if not self.processes.main:
            return
        assert self.folder is not None
        content = {
            "model": self.learner.evaluated.state_dict(),
            "config": self.config.model_dump(mode="json"),
            "classes": list(self.parts.train_set.classes),
            "category_ids": list(self.parts.train_set.category_ids),
            "step": self.step,
            "epoch": self.step // self.steps_per_epoch,
            "metrics": self.metrics,
            "calibration": self.calibration.as_plain() if self.calibration else None,
        }
        if name == LAST:
            content["training"] = {
                **self.learner.state(),
                "best": self.best,
                "evaluated": self.evaluated,
                "not_finite": self.watch.count,
            }
        checkpoints = self.folder / "checkpoints"
        save_checkpoint(checkpoints / name, content, checkpoints / PREVIOUS if name == LAST else None)
        if name == LAST:
            self._saved_at, self._saved_step = time.monotonic(), self.step

    def _restore(self, state: dict[str, Any], source: str) -> None:
        training = state.get("training")
        if not training:
            raise InputError(f"{source} has no training state to continue from; resume from a run folder")
        name = state["config"]["optimizer"]["name"]
        if name != self.config.optimizer.name:
            raise InputError(f"{source}: optimizer.name is {name} there and cannot be changed when resuming")
        # What was asked for with --resume stays, not what was saved.
        self.learner.restore(training, state["model"], source)
        self.step = state["step"]
        if self.step > self.total_steps:
            raise InputError(
                f"{source} has come to step {self.step}, and train.epochs={self.config.train.epochs} ends at "
                f"{self.total_steps}; give at least as many epochs as are done"
            )
        self.best = training["best"]
        self.evaluated = training.get("evaluated", self.step)
        self.watch.count = training.get("not_finite", 0)
        self.metrics = state["metrics"]
        if state.get("calibration"):
            self.calibration = Calibration.from_plain(state["calibration"])

    # ------------------------------------------------------------------------ in words

    def _introduction(self) -> str:
        parts, size, config = self.parts, self.processes.size, self.config
        records = parts.train_set
        weights = sum(p.numel() for p in self.learner.model.parameters())
        precision = {torch.bfloat16: "bf16", torch.float16: "fp16", None: "float32"}[parts.amp]
        where = f"{parts.device}" if size == 1 else f"{size} x {parts.device.type}"
        lr = ""
        if parts.lr != config.optimizer.lr:
            lr = f"; lr {parts.lr:g} = {config.optimizer.lr:g} x {config.train.batch_size}"
            lr += f" / {config.optimizer.lr_for_batch}"
        ended = "; nothing is left to do: a higher train.epochs goes on" * (self.step == self.total_steps)
        return (
            f"{self.folder}: {len(records)} training images with {len(records.boxes)} boxes of "
            f"{len(records.classes)} classes, {len(parts.validation.records)} validation images; "
            f"{config.model.backbone}, {weights / 1e6:.1f} M weights, on {where} in {precision}, "
            f"{self.total_steps} steps from {self.step}{lr}{ended}"
        )

    def _stopped(self) -> Stopped:
        return Stopped(
            f"stopped by {self.stop.signal or 'another process'} at step {self.step} of {self.total_steps}; "
            f"saved: continue with --resume {self.folder}"
        )

    def _not_finite(self, fault: Fault) -> str:
        names = ", ".join(Path(self.parts.train_set.files[row]).name for row in fault.rows)
        return (
            f"the loss is not finite at step {fault.step} ({fault}; images {names}); lower optimizer.lr, set "
            f"optimizer.clip_norm=10 or train.amp=off, and start again or from a checkpoint (--resume)"
        )


def _groups(batches: Iterator[Batch], size: int) -> Iterator[list[Batch]]:
    """Lists of `size` batches."""
    while group := list(islice(batches, size)):
        yield group


def _next(groups: Iterator[list[Batch]]) -> tuple[list[Batch], InputError | None]:
    """The batches of the next step, or why there are none."""
    try:
        return next(groups), None
    except InputError as error:
        return [], error
