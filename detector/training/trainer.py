"""The training loop: one step after another, in the order things happen."""

import logging
import math
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.loader import DetectionDataset, checked, train_loader
from data.sample import Batch
from detector.build import (
    build_amp,
    build_criterion,
    build_device,
    build_eval_loader,
    build_exchange,
    build_model,
    build_pipeline,
    build_set,
    cpu_is_fast_in_bf16,
    place,
)
from detector.checkpoint import load_checkpoint, load_tensors, load_weights, save_checkpoint
from detector.config import Config, dump_config
from detector.evaluation.calibration import Calibration, fit_calibration
from detector.evaluation.pictures import pictures
from detector.evaluation.score import score
from detector.retinanet import RetinaNet
from detector.training.ema import WeightAverage
from detector.training.gradients import Gradients, NonFiniteLoss
from detector.training.monitor import Monitor, summary_values
from detector.training.optimizer import build_optimizer, cosine_factor, multistep_factor, warmup_factor
from detector.training.run_folder import create_run_folder, forget_metrics_after, write_text
from detector.weights import initialise
from errors import InputError

log = logging.getLogger(__name__)
_PICTURES = 4  # validation images shown in TensorBoard


class Trainer:
    """Everything that one run consists of, from the first step to the last.

    Building it checks the data and the model; nothing is written before `run`.

    Args:
        config: the resolved configuration.
        name: of the run folder, where run.dir is not set.
        resume: the run folder to continue, whose last checkpoint is read.

    Raises:
        InputError: something in the configuration, data or checkpoint is wrong.
    """

    def __init__(self, config: Config, name: str, resume: Path | None = None) -> None:
        self.config = config
        self.name = name
        self.folder = resume
        train = config.train
        torch.manual_seed(train.seed)
        self.device = build_device(train.device)
        self.amp = build_amp(train, self.device)
        if train.amp == "bf16" and self.device.type == "cpu" and not cpu_is_fast_in_bf16():
            log.warning(
                "train.amp=bf16: this CPU has no bfloat16 arithmetic and is many times slower in it than "
                "in float32; set train.amp=auto"
            )

        state = load_checkpoint(resume / "checkpoints" / "last.pt") if resume else None
        classes = tuple(state["classes"]) if state else None
        self.train_set = build_set(config.data, "train", classes)
        self.val_set = build_set(config.data, "val", self.train_set.classes)
        self.loader, self.batches = train_loader(
            self.train_set,
            build_pipeline(config.data, True),
            train.batch_size,
            train.seed,
            config.data.workers,
            self.device.type == "cuda",
        )
        self.val_loader = build_eval_loader(config, self.val_set, self.device)

        self.model = self._build_model(fresh=state is None)
        exchange = build_exchange(config.loss)
        optimizer = config.optimizer
        self.optimizer = build_optimizer(
            self.model,
            optimizer.name,
            optimizer.lr,
            optimizer.momentum,
            optimizer.weight_decay,
            optimizer.decay_norm_and_bias,
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.amp == torch.float16)
        self.gradients = Gradients(
            self.model,
            build_criterion(config, self.device, exchange),
            self.scaler,
            self.amp,
            self.device,
            exchange.size,
            train.rank_accumulated,
        )
        self.average = WeightAverage(self.model, train.ema_decay) if train.ema_decay else None
        self.step = 0
        self.best = -math.inf
        self.metrics: dict[str, Any] = {}
        self.calibration: Calibration | None = None
        if state:
            self._restore(state, str(resume))

        self.steps_per_epoch = max(1, len(self.batches) // train.accumulate)
        self.total_steps = self.steps_per_epoch * train.epochs

    def _build_model(self, fresh: bool) -> RetinaNet:
        config = self.config.model
        model = build_model(config, len(self.train_set.classes), config.pretrained and fresh)
        if config.init is not None and fresh:
            state = load_tensors(Path(config.init))
            state = state.get("model", state) if isinstance(state, dict) else state
            initialise(model, state, config.init)
        elif config.norm == "frozen" and not config.pretrained and fresh:
            log.warning(
                "frozen batch norm without pretrained weights hardly trains; from scratch set "
                "model.norm=batch model.frozen_stages=0"
            )
        return place(model, self.config.train, self.device)

    # ------------------------------------------------------------------------------ the loop

    def run(self) -> dict[str, Any]:
        """Train to the end; returns the metrics of the last evaluation.

        Raises:
            InputError: the run folder cannot be written, an image cannot be read, the loss is not finite.
        """
        text = dump_config(self.config)
        if self.folder is None:
            self.folder = create_run_folder(self.config.run.dir, self.name, text)
        else:
            forget_metrics_after(self.folder, self.step)
            write_text(self.folder / "config.yaml", text)
        self.monitor = Monitor(self.folder, self.total_steps, self.step)
        try:
            self.monitor.config(text)
            self.monitor.say(self._introduction())
            while self.step < self.total_steps:
                self._train_epoch(self.step // self.steps_per_epoch)
                epoch = self.step // self.steps_per_epoch
                last = self.step == self.total_steps
                if epoch % self.config.train.eval_every == 0 or last:
                    self._evaluate(epoch)
                self._save("last.pt")
        finally:
            self.monitor.close()
        return self.metrics

    def _train_epoch(self, epoch: int) -> None:
        accumulate = self.config.train.accumulate
        self.batches.start_at(epoch, (self.step % self.steps_per_epoch) * accumulate)
        self.model.train()
        started, images = time.perf_counter(), 0
        for group in _groups(checked(self.loader), accumulate):
            lr = self._set_lr()
            # Freed as late as possible: the next gradients then find their memory warm.
            self.optimizer.zero_grad(set_to_none=True)
            try:
                losses = self.gradients(group)
            except NonFiniteLoss as error:
                raise InputError(self._not_finite(error)) from None
            gradient_norm = self.update()
            self.step += 1
            in_step = sum(len(batch.indices) for batch in group)
            images += in_step
            if self.step % self.config.train.log_every == 0 or self.step == self.total_steps:
                speed = images / (time.perf_counter() - started)
                values = summary_values(losses, lr, gradient_norm, speed, in_step)
                self.monitor.step(self.step, self.step / self.steps_per_epoch, values)
                started, images = time.perf_counter(), 0
            self.monitor.advance()
            if self.step % self.steps_per_epoch == 0:
                break

    def update(self) -> Tensor:
        """Clip, step, average; returns the norm of the gradient before clipping."""
        self.scaler.unscale_(self.optimizer)
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        gradients = [p.grad for p in trained if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.config.optimizer.clip_norm:
            torch.nn.utils.clip_grads_with_norm_(trained, self.config.optimizer.clip_norm, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average:
            self.average.update(self.model)
        return norm

    def _set_lr(self) -> float:
        schedule = self.config.schedule
        factor = warmup_factor(self.step, schedule.warmup_steps, schedule.warmup_factor)
        if schedule.name == "cosine":
            factor *= cosine_factor(self.step / self.total_steps, schedule.final_factor)
        else:
            factor *= multistep_factor(self.step / self.steps_per_epoch, schedule.milestones, schedule.gamma)
        lr = self.config.optimizer.lr * factor
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        return lr

    # ------------------------------------------------------------------------ evaluation

    def _evaluate(self, epoch: int) -> None:
        model = self.average.model if self.average else self.model
        scores = score(self.config, self.val_set, model, self.val_loader, self.device)
        self.calibration = fit_calibration(scores.coco.matched)
        if self.config.eval.calibrate:
            scores = scores.calibrated(self.calibration)
        result = scores.coco
        self.metrics = {**result.as_json(), **scores.extra}
        self.monitor.evaluation(self.step, epoch, result, scores.extra)
        shown = range(min(_PICTURES, len(self.val_set)))
        dataset = DetectionDataset(self.val_set, build_pipeline(self.config.data, False), seed=0)
        self.monitor.images(self.step, pictures(dataset, shown, scores.predictions, result))
        if result.summary["AP"] > self.best:
            self.best = result.summary["AP"]
            self._save("best.pt")

    # ------------------------------------------------------------------------ state

    def _save(self, name: str) -> None:
        assert self.folder is not None
        model = self.average.model if self.average else self.model
        content = {
            "model": model.state_dict(),
            "config": self.config.model_dump(mode="json"),
            "classes": list(self.train_set.classes),
            "category_ids": list(self.train_set.category_ids),
            "step": self.step,
            "epoch": self.step // self.steps_per_epoch,
            "metrics": self.metrics,
            "calibration": self.calibration.as_plain() if self.calibration else None,
        }
        if name == "last.pt":
            content["training"] = {
                "model": self.model.state_dict() if self.average else None,
                "average_updates": self.average.updates if self.average else 0,
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "best": self.best,
            }
        save_checkpoint(self.folder / "checkpoints" / name, content)

    def _restore(self, state: dict[str, Any], source: str) -> None:
        training = state.get("training")
        if not training:
            raise InputError(f"{source} has no training state to continue from; resume from a run folder")
        if (training["model"] is not None) != (self.average is not None):
            raise InputError(f"{source}: train.ema_decay cannot be switched on or off when resuming")
        load_weights(self.model, training["model"] or state["model"], source)
        if self.average:
            load_weights(self.average.model, state["model"], source)
            self.average.updates = training["average_updates"]
        name = state["config"]["optimizer"]["name"]
        if name != self.config.optimizer.name:
            raise InputError(f"{source}: optimizer.name is {name} there and cannot be changed when resuming")
        wanted = [{k: v for k, v in g.items() if k != "params"} for g in self.optimizer.param_groups]
        try:
            self.optimizer.load_state_dict(training["optimizer"])
        except ValueError as error:
            raise InputError(f"{source}: the optimizer cannot be restored ({error})") from None
        for group, settings in zip(self.optimizer.param_groups, wanted, strict=True):
            group.update(settings)  # what was asked for with --resume, not what was saved
        if training["scaler"]:  # empty where the run was not in fp16 so far
            self.scaler.load_state_dict(training["scaler"])
        self.step = state["step"]
        self.best = training["best"]
        self.metrics = state["metrics"]
        if state.get("calibration"):
            self.calibration = Calibration.from_plain(state["calibration"])

    def _introduction(self) -> str:
        boxes = len(self.train_set.boxes)
        weights = sum(p.numel() for p in self.model.parameters())
        precision = {torch.bfloat16: "bf16", torch.float16: "fp16", None: "float32"}[self.amp]
        return (
            f"{self.folder}: {len(self.train_set)} training images with {boxes} boxes of "
            f"{len(self.train_set.classes)} classes, {len(self.val_set)} validation images; "
            f"{self.config.model.backbone}, {weights / 1e6:.1f} M weights, on {self.device} in {precision}, "
            f"{self.total_steps} steps from {self.step}"
        )

    def _not_finite(self, error: NonFiniteLoss) -> str:
        names = ", ".join(Path(self.train_set.files[i]).name for i in error.rows)
        return (
            f"the loss is not finite at step {self.step} ({error}; images {names}); lower optimizer.lr, "
            f"set optimizer.clip_norm=10 or train.amp=off, and start again or from a checkpoint (--resume)"
        )


def resume_config(folder: Path) -> dict[str, Any]:
    """The configuration of the run in a folder, as plain values.

    Raises:
        InputError: there is no run to continue.
    """
    if not folder.is_dir():
        raise InputError(f"--resume: the run folder {folder} does not exist")
    path = folder / "checkpoints" / "last.pt"
    if not path.is_file():
        raise InputError(f"--resume: {folder} holds no checkpoints/last.pt to continue from")
    return load_checkpoint(path)["config"]


def _groups(batches: Iterator[Batch], size: int) -> Iterator[list[Batch]]:
    """Lists of `size` batches; a shorter rest is only given where there is nothing else."""
    first = True
    while group := list(islice(batches, size)):
        if len(group) == size or first:
            yield group
        first = False
