"""The training loop: what happens in a run, in order."""

import enum
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.feed import checked, in_groups, next_group
from data.order import seed_of
from data.sample import Batch
from detector.checkpoint import BEST, LAST, load_newest, set_aside_damaged
from detector.config import Config
from detector.config.file import dump_config
from detector.criterion import Losses
from detector.evaluation.inference import Predictions
from detector.memory import memory_explained
from detector.output import write_text
from detector.training.assembly import assemble
from detector.training.checkpoints import Checkpoints, RunState, out_of_patience
from detector.training.compilation import compilation_explained, compilation_report
from detector.training.monitor import Monitor, StepTimer, memory_gib, summary_values
from detector.training.nonfinite import NonFiniteStep, NonFiniteWatch, not_finite
from detector.training.optimizer import lr_factor
from detector.training.processes import Processes
from detector.training.profile import phase, profiled
from detector.training.resumption import Resumption
from detector.training.run_folder import (
    has_checkpoint,
    in_use,
    made_with,
    mark_launch,
    new_run_folder,
    refuse_taken,
    repair,
)
from detector.training.run_log import RunLog
from detector.training.stop import CutShort, StopRequest
from errors import Bystander, InputError, Stopped, some_of


class Need(enum.IntEnum):
    """What a process needs between two steps; the largest value of all processes applies to all."""

    NOTHING = 0
    SAVE = 1
    JUDGE = 2  # decide what to do about a non-finite step
    STOP = 3
    FAIL = 4


class Trainer:
    """Everything a run consists of, from the first step to the last.

    Building it checks data and model; nothing is written before `run`.

    Args:
        config: the resolved configuration.
        name: name of the run folder, if run.dir is not set.
        resume: run folder to continue from its newest checkpoint, or from the start if it has none.
        processes: the processes that train together.
        log: log file; entered by the caller, who knows how the run ends.

    Raises:
        InputError: something in the configuration, data or checkpoint is wrong, or the run folder is taken.
    """

    def __init__(
        self,
        config: Config,
        name: str,
        resume: Path | None = None,
        processes: Processes | None = None,
        log: RunLog | None = None,
    ) -> None:
        self.config = config
        self.name = name
        self.folder = resume
        self.processes = processes or Processes()
        self.log = log or RunLog()
        # Before the work, also in a dry run; by all processes, as their arguments may differ.
        self.processes.from_main(lambda: refuse_taken(config.run.dir) if resume is None else None)
        self._resumption = Resumption(resume, config) if resume is not None else None
        classes = self._resumption.classes if self._resumption else None
        fresh = classes is None
        warn = fresh or bool(self._resumption and self._resumption.changes)
        parts = assemble(config, self.processes, classes, fresh, warn)
        self.parts = parts
        self.learner = parts.learner
        self.gradients = parts.gradients
        self.shapes: set[tuple[int, ...]] = set()  # shapes of batches so far
        self._scale = 1.0  # image scale of the epoch
        self._compiled = ""  # last report about compilation
        self.steps_per_epoch = parts.batches.steps
        self.total_steps = self.steps_per_epoch * config.train.epochs
        self.watch = NonFiniteWatch(parts.device, config.train.max_nonfinite, self.steps_per_epoch)
        self.progress = RunState()
        self._checkpoints = Checkpoints(
            config,
            parts.train_set,
            parts.validation.records,
            self.learner,
            self.progress,
            self.watch,
            parts.batches,
        )
        if self._resumption:
            with memory_explained(parts.device):
                self._resumption.restore(self._checkpoints, self.progress)
        self.processes.refuse_different_steps(self.progress.step)

    # ------------------------------------------------------------------------------ the loop

    def run(self) -> dict[str, Any]:
        """Train to the end.

        Returns:
            The metrics of the last evaluation.

        Raises:
            InputError: the run folder is not writable or in use, an image cannot be read, a loading process
                died, or the loss is not finite.
            Stopped: a signal asked for it; the state is saved.
            Bystander: another process failed.
        """
        main = self.processes.main
        text = made_with() + dump_config(self.config)
        with ExitStack() as end:
            # Entered first, exited last: signals during cleanup change nothing.
            self.stop = end.enter_context(
                StopRequest(main, self.log.write if main else None, self.processes.size)
            )
            self.folder = self.processes.from_main(lambda: self._claim_folder(text, end))
            self.log.begin(self.folder, speaks=main)
            self.monitor = self._new_monitor(end) if main else None
            if self.monitor:
                self.monitor.config(self.config, self.parts.lr)
                self.monitor.say(self._introduction())
                if self._resumption and (changed := self._resumption.changed):
                    self.monitor.say(f"changed by this --resume: {some_of(changed, 10)}")
            self._checkpoints.begin(self.folder)
            self.profile_step = self._profiler(end)
            then = f"--resume {self.folder} continues from its last checkpoint"
            explained = compilation_explained(self.stop, then, alone=self.processes.size == 1)
            with memory_explained(self.parts.device), explained:
                while True:
                    self._evaluate_if_due()
                    ended = out_of_patience(self.progress, self.config.train, self.steps_per_epoch)
                    if self.progress.step >= self.total_steps or ended:
                        break
                    self._train_epoch()
            if self.monitor:
                self.monitor.finish(ended)
                if self.progress.best >= 0:
                    epoch = self.progress.best_step // self.steps_per_epoch
                    best = f"best AP {self.progress.best:.3f} after epoch {epoch}"
                    self.monitor.say(f"{best}: {self.folder / 'checkpoints' / BEST}")
        return self.progress.metrics

    def _new_monitor(self, end: ExitStack) -> Monitor:
        assert self.folder is not None
        step, resumption = self.progress.step, self._resumption
        purge_step = resumption.purge_step(step) if resumption else None
        monitor = Monitor(self.folder, self.total_steps, step, purge_step, self.log)
        end.callback(monitor.close)
        if resumption and resumption.beside:
            monitor.repeat(resumption.beside)
        return monitor

    def _claim_folder(self, text: str, end: ExitStack) -> Path:
        """The run folder, locked for this process until the end."""
        resumption = self._resumption
        if resumption is None:
            folder = end.enter_context(new_run_folder(self.config.run.dir, self.name, text))
        else:
            folder = resumption.folder
            end.enter_context(in_use(folder))
            repair(folder)
            resumption.begin(self.progress)
            ended = out_of_patience(self.progress, self.config.train, self.steps_per_epoch)
            if self.progress.step < self.total_steps and not ended:  # otherwise none of its steps will be run
                write_text(folder / "config.yaml", text)
        if self.processes.launch is not None:
            mark_launch(folder, self.processes.launch)
        return folder

    def _profiler(self, end: ExitStack) -> Callable[[], None]:
        """The function to call after each step."""
        if not self.config.train.profile or self.monitor is None or self.folder is None:
            return lambda: None
        return end.enter_context(profiled(self.folder, self.parts.device, self.monitor.say))

    def _train_epoch(self) -> None:
        """Train from the current step to the end of its epoch."""
        epoch, first = divmod(self.progress.step, self.steps_per_epoch)
        self.parts.batches.start_at(epoch, first)
        scale = self.parts.batches.scale
        if self.monitor and scale != self._scale:
            size = "full size" if scale == 1 else f"{scale:g} of full size"
            self.monitor.say(f"from epoch {epoch}.00 on: images at {size}")
        self._scale = scale
        groups = in_groups(checked(self.parts.loader, self.parts.skipped), self.config.train.accumulate)
        logged = StepTimer()
        while self.progress.step < (epoch + 1) * self.steps_per_epoch:
            with phase("data"):
                before = time.perf_counter()
                group, failure = self._next(groups)
                logged.waited_s += time.perf_counter() - before
            with phase("agree"):
                self._settle(failure)
            lr = self.parts.lr * self.lr_factor
            due = self._log_is_due(self.progress.step + 1)
            losses, gradient_norm = self.step(group, self.progress.step + 1, lr, measure=due)
            self.progress.step += 1
            if self.config.train.compile:
                self.shapes.update(tuple(batch.images.shape) for batch in group)
            images = sum(len(batch.indices) for batch in group)
            logged.steps += 1
            logged.images += min(self.config.train.batch_size, self.parts.batches.length)  # all processes
            with phase("logging"):
                if due and self.monitor:
                    values = summary_values(losses, gradient_norm, images) | {"lr": lr} | logged.speed()
                    values |= {"memory_gib": memory_gib(self.parts.device)} | self._counts()
                    step = self.progress.step
                    self.monitor.step(step, step / self.steps_per_epoch, values)
                    logged = StepTimer()
                if self.monitor:
                    self.monitor.advance()
            self.profile_step()
        if self.config.train.compile and self.monitor:
            report = compilation_report(len(self.shapes))
            if report != self._compiled:
                self.monitor.say(report)
            self._compiled = report
        self._settle(None, wait=True)
        self._from_main(self._checkpoints.save_if_new)

    def step(
        self, group: list[Batch], number: int, lr: float, measure: bool = False
    ) -> tuple[Losses, Tensor]:
        """One optimizer step over the micro-batches of this process.

        Args:
            number: number of the step, from 1.
            measure: see `Criterion`.

        Returns:
            The losses, and the norm of the gradient before clipping, on the device.
        """
        # Nothing here draws random numbers, but a layer that does would be resumed exactly too.
        torch.manual_seed(seed_of(self.config.train.seed, number - 1, self.processes.rank))
        self.learner.begin(lr)
        losses = self.gradients(group, measure=measure)
        with phase("update"):
            gradient_norm, nonfinite = self.learner.update(losses)
        rows = [row for batch in group for row in batch.indices.tolist()]
        self.watch.note(nonfinite, number, losses, rows)
        return losses, gradient_norm

    def _next(self, groups: Iterator[list[Batch]]) -> tuple[list[Batch], InputError | None]:
        """The batches of the next step; none if this process failed or is asked to stop."""
        try:
            with self.stop.cutting_short():
                return next_group(groups)
        except CutShort:
            return [], None

    # -------------------------------------------------------------------- between two steps

    def _settle(self, failure: InputError | None, wait: bool = False) -> None:
        """Do what any of the processes needs: save, handle non-finite steps, stop, fail.

        Args:
            failure: error of this process, which cannot continue.
            wait: wait until the device has finished all steps.
        """
        nonfinite = self.watch.found(wait)
        need = Need.NOTHING
        # First, because the signal may have killed the loading processes.
        if self.stop or self.processes.orphaned:
            need = Need.STOP
        elif failure is not None:
            need = Need.FAIL
        elif nonfinite:
            need = Need.JUDGE
        elif self.processes.main and self._checkpoints.due():
            need = Need.SAVE
        need = Need(self.processes.largest(need))
        if need == Need.NOTHING:
            return
        nonfinite += self.watch.found(wait=True)
        if nonfinite:
            self._judge(nonfinite)
        if need == Need.FAIL and failure is not None:
            try:
                self._save()
            except Bystander:  # this failure is the cause, so report it
                raise failure from None
            raise InputError(f"{failure}; the state is saved, continue with --resume {self.folder}")
        if need != Need.JUDGE:
            self._save()
        if need == Need.STOP:
            raise self._stopped()
        if need == Need.FAIL:
            raise Bystander

    def _save(self) -> None:
        """Write LAST while all wait: when one process leaves, a launcher ends the others at once."""
        self._from_main(lambda: self._checkpoints.save(LAST))

    def _from_main(self, save: Callable[[], None]) -> None:
        """`Processes.from_main`, which needs the launcher's store.

        Once the launcher is gone, the main process saves on its own; if it goes during the call, all continue
        and stop one step later.
        """
        if not self.processes.orphaned:
            try:
                self.processes.from_main(save)
            except Bystander:
                if not self.processes.is_being_orphaned():
                    raise
        elif self.processes.main:
            save()

    def _judge(self, nonfinite: list[NonFiniteStep]) -> None:
        """Handle non-finite steps, which have changed nothing.

        Raises:
            InputError: they are not allowed, or too many (Bystander in all but the main process).
        """
        policy, folder = self.config.train.on_nonfinite, self.folder
        assert folder is not None
        too_many = self.watch.count_in(nonfinite, self.progress.step)
        # Decided by the main process; others that do not see its disk report that when reading.
        nowhere = policy == "rollback" and not self.processes.from_main(lambda: has_checkpoint(folder))
        if policy == "raise" or too_many or nowhere:
            more = ""
            if too_many:
                more = f"; {self.watch.limit_in_words}"
            elif policy == "rollback":
                more = (
                    "; there is no checkpoint yet to go back to (set train.save_every_steps to save one "
                    "sooner)"
                )
            raise self.failure(nonfinite[0], more)
        then = "left out"
        if policy == "rollback":
            state = load_newest(folder)
            self.processes.refuse_different_steps(state["step"])  # before renaming files that all read
            self.processes.from_main(lambda: set_aside_damaged(folder))
            self.learner.restore(state["training"], state["model"], str(folder))
            then = f"back to the weights of step {state['step']}"
        if self.monitor:
            steps = ", ".join(str(one.step) for one in nonfinite)
            self.monitor.say(f"warning: the loss is not finite at step {steps} ({nonfinite[0]}): {then}")

    def failure(self, step: NonFiniteStep, more: str = "") -> InputError | Bystander:
        """The error with which a non-finite step ends the training; only the main process reports it."""
        if not self.processes.main:
            return Bystander()
        parts = self.parts
        return InputError(
            not_finite(step, parts.train_set, self.processes.size, self.config, parts.amp) + more
        )

    @property
    def lr_factor(self) -> float:
        """The factor by which the learning rate of the next step is multiplied."""
        total = max(self.total_steps, 1)  # a dry run with train.epochs=0 runs steps as well
        return lr_factor(self.config.schedule, self.progress.step, total, self.steps_per_epoch)

    def _log_is_due(self, step: int) -> bool:
        return step % self.config.train.log_every == 0 or step == self.total_steps

    def _counts(self) -> dict[str, float]:
        """Number of discarded steps and skipped images, where these are allowed."""
        counts: dict[str, float] = {}
        if self.config.train.on_nonfinite != "raise":
            counts["steps_not_finite"] = self.watch.count
        if self.parts.skipped is not None:
            counts["images_skipped"] = len(self.parts.skipped)
        return counts

    # ------------------------------------------------------------------------ evaluation

    def _evaluate_if_due(self) -> None:
        epoch, rest = divmod(self.progress.step, self.steps_per_epoch)
        if rest or self.progress.evaluated == self.progress.step:
            return
        if self.evaluates_after(epoch):
            self._evaluate(epoch)
            self._save()

    def evaluates_after(self, epoch: int) -> bool:
        """Whether an evaluation follows after this many epochs."""
        train = self.config.train
        return epoch >= train.epochs or (epoch > 0 and epoch % train.eval_every == 0)

    def _evaluate(self, epoch: int) -> None:
        """Evaluate; every process handles a part of the validation set, the main one computes the metrics.

        Raises:
            Stopped: a signal asked for it; the evaluation will be repeated.
        """
        if self.monitor:
            self.monitor.evaluating()
        model = self.learner.evaluated
        self.processes.share_state(model)
        share = self.parts.validation.detect(model, self.stop)
        if share is None:
            self.processes.from_main(self._checkpoints.save_if_new)  # train.epochs=0: there is none yet
            raise self._stopped()
        shares = self.processes.gather(share)
        progress = self.progress
        progress.metrics, progress.best, progress.best_step = self.processes.from_main(
            lambda: self._report(epoch, shares)
        )
        progress.evaluated = progress.step

    def _report(
        self, epoch: int, shares: list[list[Predictions]] | None
    ) -> tuple[dict[str, Any], float, int]:
        """Compute, write and show the metrics; returns them with the best AP so far and its step."""
        assert shares is not None and self.monitor is not None
        scores, self.progress.calibration = self.parts.validation.judge(shares)
        result = scores.coco
        self.progress.metrics = {**result.as_json(), **scores.extra}
        pictures = self.parts.validation.pictures(scores)
        self.monitor.evaluation(self.progress.step, epoch, result, scores.extra, pictures)
        ap = result.summary["AP"]
        if ap > self.progress.best or ap < 0:  # without gt boxes the newest counts as best
            self.progress.best, self.progress.best_step = ap, self.progress.step
            self._checkpoints.save(BEST)
        return self.progress.metrics, self.progress.best, self.progress.best_step

    # ------------------------------------------------------------------------ in words

    def _introduction(self) -> str:
        config, lr, ended, step = self.config, "", "", self.progress.step
        if self.parts.lr != config.optimizer.lr:
            lr = f"; lr {self.parts.lr:g} = {config.optimizer.lr:g} x {config.train.batch_size}"
            lr += f" / {config.optimizer.lr_for_batch}"
        if self.progress.evaluated == self.total_steps:
            ended = (
                "; nothing is left to do: to continue, set a higher train.epochs, with the lr and image "
                "sizes of that many"
            )
        parts = self.parts.described(config.model.backbone, self.processes)
        begun = f" with the weights of {config.model.init}" if config.model.init and not step else ""
        return f"{self.folder}: {parts}, {self.total_steps} steps from {step}{begun}{lr}{ended}"

    def _stopped(self) -> Stopped:
        self.stop.served = True
        if not self.processes.main:
            return Stopped()
        by = self.stop.signal or ("the end of torchrun" if self.processes.orphaned else "another process")
        return Stopped(
            f"stopped by {by} at step {self.progress.step} of {self.total_steps}; saved: continue with "
            f"--resume {self.folder}"
        )
