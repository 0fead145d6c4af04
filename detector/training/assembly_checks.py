"""Checks while a training is assembled: settings and data that do not fit each other."""

import logging

import numpy as np
import torch

from data.faults import UnreadableImages
from data.repeats import class_frequencies
from data.sample import SIZE_DIVISOR, DetectionSet
from data.transforms import Pipeline
from detector.builders.device import cpu_is_fast_in_bf16
from detector.config import Config, DataConfig, TrainConfig
from detector.training.optimizer import epoch_scales
from detector.training.processes import Processes
from errors import InputError, some_of

log = logging.getLogger(__name__)

_HIGH_SCORE = 0.2
_ALL_STAGES = 5  # of a ResNet, including the stem
_TRIES = 8  # enough for transforms with p=0.5 to be applied at least once


def warn_of_slow_amp(train: TrainConfig, device: torch.device) -> None:
    if train.amp == "fp16" and device.type == "cpu":
        log.warning(
            "train.amp=fp16: CPUs are many times slower in float16 than in float32; set train.amp=auto"
        )
    if train.amp == "bf16" and device.type == "cpu" and not cpu_is_fast_in_bf16():
        log.warning(
            "train.amp=bf16: this CPU has no bfloat16 arithmetic and is many times slower in it than "
            "in float32; set train.amp=auto"
        )


def warn_of_schedule(config: Config, total_steps: int) -> None:
    schedule, epochs = config.schedule, config.train.epochs
    if total_steps == 0:  # evaluation only
        return
    lost = sorted(set(schedule.image_scales) - set(epoch_scales(schedule.image_scales, epochs)))
    if lost:
        log.warning(
            "schedule.image_scales: %d epochs are too few to use %s; set more train.epochs, or fewer scales",
            epochs, " and ".join(f"{scale:g}" for scale in lost),
        )  # fmt: skip
    late = [milestone for milestone in schedule.milestones if milestone >= epochs]
    if schedule.name == "multistep" and late:
        log.warning(
            "schedule.milestones: the training ends after %d epochs, before the learning rate falls at %s; "
            "set milestones to fit train.epochs",
            epochs, " and ".join(f"{milestone:g}" for milestone in late),
        )  # fmt: skip
    if schedule.warmup_steps >= total_steps:  # step warmup_steps is the first with the full rate
        log.warning(
            "schedule.warmup_steps=%d: the training has only %d steps and never reaches optimizer.lr; set "
                "it to %d, for example",
            schedule.warmup_steps, total_steps, total_steps // 10,
        )  # fmt: skip


def warn_of_score_threshold(config: Config) -> None:
    """Warn about a threshold as in other trainers, whose scores have a fixed scale."""
    if config.loss.ranks and config.eval.score_threshold > _HIGH_SCORE:
        log.warning(
            "eval.score_threshold=%g applies to raw scores, whose scale is arbitrary with a ranking loss: "
            "AP may drop, even to 0; leave it out (to limit what is shown, use predict.py --threshold)",
            config.eval.score_threshold,
        )


def warn_of_crowds(config: Config, val_set: DetectionSet) -> None:
    """Warn if images contain more objects than may be detected in one."""
    counts = np.bincount(val_set.image_of_box[~val_set.ignore], minlength=len(val_set))
    limit, most = config.eval.detections_per_img, int(counts.max(initial=0))
    if most > limit:
        log.warning(
            "eval.detections_per_img=%d: %d validation images have more objects, up to %d, and no more "
            "than the limit can be found; set it to %d, for example (COCO's AP counts 100 per class)",
            limit, (counts > limit).sum(), most, 2 * most,
        )  # fmt: skip


def warn_of_batches(config: Config, images: int, processes: int = 1) -> None:
    """Warn about images that are left out because an epoch consists of whole batches only.

    Args:
        images: images per epoch, repeated ones counted each time.
        processes: number of processes.
    """
    parts = processes * config.train.accumulate
    batch_size = config.train.batch_size
    left = images % batch_size
    if config.train.epochs == 0:  # evaluation only
        return
    if batch_size > images:
        scaled = ", while the learning rate is scaled for more" if config.optimizer.lr_for_batch else ""
        log.warning(
            "train.batch_size=%d: an epoch has only %d images, so each step uses all of them%s; set "
            "train.batch_size=%d", batch_size, images, scaled, images // parts * parts,
        )  # fmt: skip
    elif 10 * left >= images:
        log.warning(
            "train.batch_size=%d: each epoch leaves out %d of its %d images, different ones each time",
            batch_size, left, images,
        )  # fmt: skip


def warn_of_no_repeats(data: DataConfig, records: DetectionSet, images: int) -> None:
    """Warn if data.repeat_rare repeats nothing: no class is rare enough, or rounding removes the repeats.

    Args:
        images: images per epoch.
    """
    if data.repeat_rare is None or images > len(records):
        return
    frequencies = class_frequencies(records)
    present = frequencies[frequencies > 0]
    if len(present):
        rarest = present.min()
        log.warning(
            "data.repeat_rare=%g has no effect: the rarest class, %s, is in %.3g %% of the images%s",
            data.repeat_rare, records.classes[list(frequencies).index(rarest)], 100 * rarest,
            "; set a higher value" if rarest < 1 else "",
        )  # fmt: skip


def refuse_another_set(records: DetectionSet, split: str, processes: Processes) -> None:
    """All processes share one order of samples, so all must have read the same set.

    Args:
        split: name of the set in messages.

    Raises:
        InputError: this process has read another set than the main one.
    """
    mine = records.digest()
    if processes.from_main(lambda: mine) != mine:
        raise InputError(
            f"data.splits.{split}: process {processes.rank} finds different images or boxes in it than the "
            f"first process ({len(records)} images); make sure that all machines have the same files"
        )


def say_what_is_skipped(unreadable: UnreadableImages, data: DataConfig, processes: Processes) -> None:
    """Report images that data.on_error=skip leaves out, as far as known before the training.

    Raises:
        InputError: there are more than data.max_skipped.
    """
    if len(unreadable) > data.max_skipped:
        more = f", and {len(unreadable) - 1} more" if len(unreadable) > 1 else ""
        raise InputError(
            f"more than data.max_skipped={data.max_skipped} training images cannot be read: {unreadable[0]}"
            f"{more} (python -m data.check lists all faults)"
        )
    if processes.main:
        log.warning(
            "data.on_error=skip: %d of the training images cannot be read: %s",
            len(unreadable), some_of([str(fault) for fault in unreadable], 3),
        )  # fmt: skip


def try_on_smallest(
    pipeline: Pipeline, scale: float, train_set: DetectionSet, config: Config, processes: Processes
) -> None:
    """Augment the lowest, narrowest and smallest image before anything is written: a crop may not fit.

    Raises:
        InputError: a transform fails on it, or batch norm would on the result.
    """
    sizes, train = train_set.sizes, config.train
    smallest = {tuple(sizes[values.argmin()].tolist()) for values in (sizes.prod(axis=1), *sizes.T)}
    augmented = {}
    for height, width in smallest:
        box = np.array([[0, 0, width, height]], np.float32)
        for seed in range(_TRIES):
            image, _, _ = pipeline(np.zeros((height, width, 3), np.uint8), box, seed)
        augmented[height, width] = image
    height, width = min(smallest, key=np.prod)
    at_once = min(train.batch_size, len(train_set)) // (train.accumulate * processes.size)
    alone = at_once <= 1 and not (train.sync_batch_norm and processes.size > 1)
    long_side = round(scale * max(augmented[height, width].shape[:2]))
    frozen = config.model.frozen_stages >= _ALL_STAGES  # then no statistics of a batch are used
    if config.model.norm == "batch" and not frozen and alone and long_side <= SIZE_DIVISOR:
        raise InputError(
            f"model.norm=batch has nothing to average over: with one image at a time, an image of {width} x "
            f"{height} px leaves one value per channel; set model.norm=group, or make images larger in "
            "data.transforms.train or schedule.image_scales"
        )
