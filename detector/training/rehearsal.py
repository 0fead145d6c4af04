"""A dry run: builds everything and runs a few steps, without a run folder."""

import logging
import time
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

import torch

from data.feed import checked
from data.sample import Batch, DetectionSet
from detector.config import Config
from detector.memory import memory_explained, peak_bytes
from detector.training.anchor_check import at_scale, measure_anchors, recall
from detector.training.assembly import sets_in_words
from detector.training.compilation import compilation_explained
from detector.training.processes import Processes
from detector.training.trainer import Trainer

log = logging.getLogger(__name__)

_STEPS = 3  # number of timed steps, the last ones
_PATIENCE_S = 30.0  # seconds within which the batches loaded ahead must be used up


def rehearse(config: Config, resume: Path | None = None, processes: Processes | None = None) -> Iterator[str]:
    """Yield lines about what a training would need, and how well its anchors fit.

    Args:
        resume: the run that would be continued.
        processes: the processes that would train together; all of them take part.

    Raises:
        InputError: something in the configuration or the data is wrong, memory does not suffice, or a step is
            not finite.
    """
    trainer = Trainer(config, "dry run", resume, processes)
    parts = trainer.parts
    records, val = parts.train_set, parts.validation.records
    yield f"data      {sets_in_words(records, val, parts.batches.length)}"
    yield from _anchor_lines(records, config)
    with memory_explained(parts.device), compilation_explained():
        step_s, data_s = _time_steps(trainer)
        evaluation_s, batches = parts.validation.time_batch(parts.learner.evaluated)
    progress = trainer.progress
    done, within = divmod(progress.step, trainer.steps_per_epoch)
    first = done + 1 if within or progress.evaluated == progress.step else done
    evaluations = sum(map(trainer.evaluates_after, range(first, config.train.epochs + 1)))
    steps = trainer.total_steps - progress.step
    # Computing time is proportional to the pixels; data are augmented at full size in any case.
    pixels = [scale**2 for scale in parts.batches.scales[done:]] or [1.0]
    shrunk_s = data_s + (step_s - data_s) * sum(pixels) / len(pixels)
    total_s = steps * shrunk_s + evaluations * batches * evaluation_s
    images = min(config.train.batch_size, parts.batches.length)
    yield (
        f"step      {step_s:.2f} s for {images} images ({data_s:.2f} s of it waiting for data); evaluation "
        f"{evaluation_s:.2f} s per batch"
    )
    yield f"memory    {_peak_memory(parts.device) / 2**30:.1f} GiB, on {parts.device}"
    times = f"{evaluations} evaluation{'s' * (evaluations != 1)}"
    yield f"run       {steps} steps and {times}: about {_duration(total_s)}; no run folder was written"


def _anchor_lines(records: DetectionSet, config: Config) -> Iterator[str]:
    fit = measure_anchors(records, config)
    if not len(fit.best):
        return
    recalls = [100 * recall(fit.best, iou) for iou in (fit.positive_iou, fit.negative_iou)]
    yield (
        f"anchors   {recalls[0]:.1f} % of {len(fit.best)} gt boxes, as augmented, have an anchor with IoU "
        f">= {fit.positive_iou:g}, {recalls[1]:.1f} % with IoU >= {fit.negative_iou:g}"
    )
    scale = min(config.schedule.image_scales)
    if scale < 1:
        share = 100 * recall(at_scale(fit, scale), fit.positive_iou)
        yield f"          {share:.1f} % at {scale:g} of the size (schedule.image_scales)"
    if fit.suggested is not None:
        single = "the others have only their single best anchor to learn from; " if fit.by_iou else ""
        yield f"          {single}these would fit better:"
        yield from (f"          {line}" for line in fit.suggested.yaml().splitlines())


def _time_steps(trainer: Trainer) -> tuple[float, float]:
    """Seconds per step, and how many of these are spent waiting for data."""
    parts, accumulate = trainer.parts, trainer.config.train.accumulate
    loader, batches = parts.loader, _endless(trainer)
    # During the first step, which is the slowest, the loading processes get this many steps ahead.
    ahead = -(-loader.num_workers * (loader.prefetch_factor or 0) // accumulate)
    steps: list[tuple[float, float]] = []
    started = time.perf_counter()
    while True:
        before = time.perf_counter()
        group = list(islice(batches, accumulate))
        waited = time.perf_counter() - before
        # At the rate with which the run begins or continues: these weights are evaluated afterwards.
        trainer.step(group, trainer.progress.step + len(steps) + 1, parts.lr * trainer.lr_factor)
        _finish(parts.device)
        steps.append((time.perf_counter() - before, waited))
        patient = time.perf_counter() - started < _PATIENCE_S
        # All processes must run the same number of steps.
        if not trainer.processes.largest(len(steps) <= _STEPS + (ahead if patient else 0)):
            break
    if found := trainer.watch.found(wait=True):
        if trainer.config.train.on_nonfinite == "raise":
            raise trainer.failure(found[0])
        if trainer.processes.main:
            log.warning("the loss is not finite in %d of the first %d steps", len(found), len(steps))
    timed = steps[-_STEPS:]
    return sum(step for step, _ in timed) / _STEPS, sum(waited for _, waited in timed) / _STEPS


def _endless(trainer: Trainer) -> Iterator[Batch]:
    """Batches as in the last epochs, where images are not scaled down."""
    for epoch in count(max(trainer.config.train.epochs - 1, 0)):
        trainer.parts.batches.start_at(epoch)
        yield from checked(trainer.parts.loader)


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak_memory(device: torch.device) -> int:
    """Peak memory in bytes, of the GPU or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    return peak_bytes()


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
