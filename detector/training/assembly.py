"""Builds the parts of a training from the configuration."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from data.faults import UnreadableImages
from data.feed import SkippedImages
from data.loader import train_loader
from data.order import EpochBatches
from data.repeats import repeat_factors
from data.sample import DetectionSet
from data.transforms import Pipeline
from detector.builders.data import build_cache, build_pipeline, build_set
from detector.builders.device import build_amp, build_device
from detector.builders.losses import build_criterion, build_exchange
from detector.builders.network import build_model, place
from detector.checkpoint import find_checkpoint, load_tensors
from detector.config import AnchorConfig, Config, ModelConfig
from detector.downloads import COCO, coco_weights
from detector.evaluation.tiling import warn_of_tiles
from detector.losses import Exchange
from detector.memory import memory_explained
from detector.retinanet import RetinaNet
from detector.training.assembly_checks import (
    refuse_another_set,
    say_what_is_skipped,
    try_on_smallest,
    warn_of_batches,
    warn_of_crowds,
    warn_of_no_repeats,
    warn_of_schedule,
    warn_of_score_threshold,
    warn_of_slow_amp,
)
from detector.training.compilation import compile_parts
from detector.training.data_check import warn_before_training
from detector.training.gradients import Gradients
from detector.training.learner import Learner
from detector.training.optimizer import build_optimizer, epoch_scales
from detector.training.processes import Processes
from detector.training.sync_norm import synchronise_norms
from detector.training.validation import Validation
from detector.training.wiring import check_wiring
from detector.weights import initialise
from errors import InputError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parts:
    """The parts of a training."""

    device: torch.device
    amp: torch.dtype | None
    lr: float  # before the schedule
    train_set: DetectionSet
    batches: EpochBatches
    loader: DataLoader
    skipped: SkippedImages | None  # None unless unreadable images are skipped
    validation: Validation
    learner: Learner
    gradients: Gradients

    def described(self, backbone: str, processes: Processes) -> str:
        """Data, model and device in a few words."""
        sets = sets_in_words(self.train_set, self.validation.records, self.batches.length)
        weights = sum(p.numel() for p in self.learner.model.parameters())
        precision = {torch.bfloat16: "bf16", torch.float16: "fp16", None: "float32"}[self.amp]
        several = f"{processes.size} x {self.device.type}"
        return (
            f"{sets}; {backbone}, {weights / 1e6:.1f} M weights, on "
            f"{self.device if processes.size == 1 else several} in {precision}"
        )


def assemble(
    config: Config, processes: Processes, classes: tuple[str, ...] | None, fresh: bool, warn: bool
) -> Parts:
    """Build everything. No run folder is written, but the demo set and the file of data.cache=disk may be.

    Args:
        classes: classes of the checkpoint to resume from, if any.
        fresh: load the initial weights; False if those of a checkpoint will follow.
        warn: warn about settings that do not fit each other or the data.

    Raises:
        InputError: something in the configuration or the data is wrong.
    """
    train, data = config.train, config.data
    torch.manual_seed(train.seed)
    device = build_device(train.device, processes.local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # Triton kernels, events and pinned memory use the current device
    amp = build_amp(train, device)
    warn_of_slow_amp(train, device)

    train_set, val_set = _build_sets(config, processes, classes)
    pipeline = build_pipeline(data, training=True)
    batches = _build_batches(config, train_set, pipeline, processes)
    if warn:
        warn_of_no_repeats(data, train_set, batches.length)
        warn_of_schedule(config, batches.steps * train.epochs)
        warn_of_batches(config, batches.length, processes.size)
        warn_of_crowds(config, val_set)
        warn_of_score_threshold(config)
        warn_of_tiles(config, val_set)
    cache = processes.main_first(lambda: build_cache(data, train_set))  # main first: no locks needed
    skip = data.on_error == "skip"
    # More in a row are too many anyway; trying a whole set on a lost disk would take hours.
    stand_ins = data.max_skipped + 1 if skip else 0
    pin_memory = device.type == "cuda"
    loader = train_loader(
        train_set, pipeline, batches, train.seed, stand_ins, data.workers, pin_memory, cache
    )

    with memory_explained(device, "use another train.device, or a smaller model.backbone"):
        # The main process first, so that pretrained weights are downloaded once.
        model = processes.main_first(lambda: build_initial_model(config.model, train_set.classes, fresh))
        if train.sync_batch_norm and processes.size > 1:
            synchronise_norms(model, device)
        model = place(model, train, device)
        check_wiring(model, build_criterion(config, device, Exchange()), processes.size)
        model.backbone.checkpoint_activations = train.checkpoint_activations
        if train.compile:
            compile_parts(model)
        scaler = torch.amp.GradScaler(device.type, enabled=amp == torch.float16)
        lr = scaled_lr(config)
        exchange = build_exchange(config.loss)
        return Parts(
            device=device,
            amp=amp,
            lr=lr,
            train_set=train_set,
            batches=batches,
            loader=loader,
            skipped=SkippedImages(train_set, data.max_skipped) if skip else None,
            validation=Validation(config, val_set, device, processes),
            learner=Learner(
                model,
                build_optimizer(
                    model,
                    name=config.optimizer.name,
                    lr=lr,
                    momentum=config.optimizer.momentum,
                    weight_decay=config.optimizer.weight_decay,
                    decay_norm_and_bias=config.optimizer.decay_norm_and_bias,
                    slowed=model.backbone,
                    slowed_lr_factor=config.optimizer.backbone_lr_factor,
                ),
                scaler,
                config.optimizer.clip_norm,
                train.ema_decay,
            ),
            gradients=Gradients(
                model=model,
                network=_shared(model, device, processes),
                criterion=build_criterion(config, device, exchange),
                scaler=scaler,
                amp=amp,
                device=device,
                processes=exchange.size,
                rank_together=train.rank_accumulated,
            ),
        )


def _build_sets(
    config: Config, processes: Processes, classes: tuple[str, ...] | None
) -> tuple[DetectionSet, DetectionSet]:
    """The training and validation sets, the same in all processes."""
    data = config.data
    unreadable = UnreadableImages() if data.on_error == "skip" else None
    # The main process first, as this may generate the set.
    train_set = processes.main_first(lambda: build_set(data, "train", classes, unreadable))
    if unreadable:
        say_what_is_skipped(unreadable, data, processes)
    refuse_another_set(train_set, "train", processes)
    val_set = build_set(data, "val", train_set.classes)
    refuse_another_set(val_set, "val", processes)
    if data.check and processes.main:
        warn_before_training(config, train_set, val_set)
    return train_set, val_set


def _build_batches(
    config: Config, train_set: DetectionSet, pipeline: Pipeline, processes: Processes
) -> EpochBatches:
    """Which images form a batch, epoch by epoch."""
    train, data = config.train, config.data
    scales = epoch_scales(config.schedule.image_scales, train.epochs)
    try_on_smallest(pipeline, min(scales), train_set, config, processes)
    return EpochBatches(
        images=len(train_set),
        batch_size=train.batch_size,
        seed=train.seed,
        micro_batches=train.accumulate,
        rank=processes.rank,
        processes=processes.size,
        proportions=train_set.sizes[:, 0] / train_set.sizes[:, 1] if data.group_by_shape else None,
        one_orientation=pipeline.has_no_side_up if data.one_orientation is None else data.one_orientation,
        scales=scales,
        repeats=None if data.repeat_rare is None else repeat_factors(train_set, data.repeat_rare),
    )


def scaled_lr(config: Config) -> float:
    """Linear scaling (Goyal et al. 2017): k times the batch, k times the learning rate."""
    meant_for = config.optimizer.lr_for_batch
    return config.optimizer.lr * (config.train.batch_size / meant_for if meant_for else 1)


def build_initial_model(config: ModelConfig, classes: Sequence[str], fresh: bool) -> RetinaNet:
    """The network with the initial weights of a training, or with arbitrary ones unless `fresh`.

    Raises:
        InputError: weights cannot be downloaded or read, or are of another architecture.
    """
    if fresh:  # older runs may have duplicates
        _refuse_anchors_twice(config.anchors)
    # model.init overwrites all that the ImageNet weights would provide.
    model = build_model(config, len(classes), config.pretrained and fresh and config.init is None)
    if config.init is not None and fresh:
        initialise(
            model,
            *_initial_weights(config.init, config.backbone),
            torch.tensor(config.box_std),
            classes,
            config.model_dump(),
            config.init_partial,
        )
    elif not config.pretrained and fresh and (config.norm == "frozen" or config.frozen_stages):
        what = "frozen batch norm" if config.norm == "frozen" else f"frozen_stages={config.frozen_stages}"
        log.warning(
            "%s without pretrained weights will hardly train; to train from scratch set model.norm=batch "
            "model.frozen_stages=0",
            what,
        )
    elif config.pretrained and fresh and config.norm == "group" and config.frozen_stages:
        log.warning(
            "model.norm=group normalises differently from the batch norm of the ImageNet weights, and the "
            "%d frozen stages cannot adapt to it; set model.frozen_stages=0",
            config.frozen_stages,
        )
    return model


def _refuse_anchors_twice(anchors: AnchorConfig) -> None:
    for key, numbers in (*(("sizes", level) for level in anchors.sizes), ("ratios", anchors.ratios)):
        if len(set(numbers)) < len(numbers):
            raise InputError(
                f"model.anchors.{key}: a number of {numbers} appears twice, and its anchors would count "
                "double; remove one"
            )


def _initial_weights(source: str, backbone: str) -> tuple[Any, str]:
    """The weights that model.init names, and their name for messages."""
    path = Path(source)
    # A folder named coco is more likely a data set than a run.
    if source in COCO and not (path.is_file() or (path / "checkpoints").is_dir()):
        if backbone != "resnet50":  # before 130 MB are downloaded in vain
            raise InputError(
                f"model.init={source} has a ResNet-50: use configs/torchvision_r50.yaml, or set "
                "model.backbone=resnet50 model.norm=frozen model.init_partial=true"
            )
        return coco_weights(source), f"torchvision's '{source}'"
    if not path.exists() and len(path.parts) == 1 and not path.suffix:
        raise InputError(
            f"model.init: {source} does not exist; give a run folder, a checkpoint file, or one of the names "
            f"{', '.join(COCO)}"
        )
    file = find_checkpoint(path, "model.init: ")
    return load_tensors(file), str(file)


def sets_in_words(train: DetectionSet, val: DetectionSet, per_epoch: int) -> str:
    """The sizes of the sets in words; ignored regions are not counted.

    Args:
        per_epoch: training images per epoch, repeated ones counted each time.
    """
    boxes, classes = int((~train.ignore).sum()), len(train.classes)
    repeated = f" ({per_epoch} per epoch, with data.repeat_rare)" if per_epoch > len(train) else ""
    return (
        f"{len(train)} training images{repeated} with {boxes} boxes of {classes} "
        f"class{'es' * (classes != 1)}, {len(val)} validation images"
    )


def _shared(model: RetinaNet, device: torch.device, processes: Processes) -> nn.Module:
    """The model to call in training: its gradients are averaged over all processes."""
    if processes.size == 1:
        return model
    processes.barrier()  # a failed process would leave the others waiting for its weights
    ids = [device.index] if device.type == "cuda" else None
    shared = DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)
    # Each process keeps its own statistics until `share_state`. Broadcasting all buffers in every step would
    # stall all GPUs and cost two launches per buffer.
    shared.broadcast_buffers = False
    return shared
