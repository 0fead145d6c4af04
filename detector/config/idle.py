"""Settings that have no effect in combination with others, which the user may not expect."""

import logging
from collections.abc import Iterable, Iterator

from detector.config import Config
from detector.config.fields import leaf_values

log = logging.getLogger(__name__)


def warn_of_idle_settings(config: Config, overrides: Iterable[str], of_file: Iterable[str] = ()) -> None:
    """Warn about each key without effect, unless it has its default value.

    Args:
        overrides: keys on the command line.
        of_file: keys in the configuration file itself. If an override makes one of them idle, that is
            intended.
    """
    values, usual = leaf_values(config), leaf_values(Config())
    idle, overridden = dict(_idle(config)), set(overrides)
    for key in dict.fromkeys((*of_file, *overridden)):
        if key not in idle or values[key] == usual[key]:
            continue
        if key in overridden or idle[key].partition("=")[0] not in overridden:
            log.warning("%s has no effect with %s", key, idle[key])


def _idle(c: Config) -> Iterator[tuple[str, str]]:
    """Keys without effect, and the setting that is the reason."""
    if c.schedule.name == "cosine":
        yield from _with("schedule.name=cosine", "schedule.milestones", "schedule.gamma")
    else:
        if not c.schedule.milestones:
            yield from _with("schedule.milestones=[]", "schedule.gamma")
        yield from _with("schedule.name=multistep", "schedule.final_factor")
    if c.schedule.warmup_steps == 0:
        yield from _with("schedule.warmup_steps=0", "schedule.warmup_factor")
    if c.optimizer.name == "adamw":
        yield from _with("optimizer.name=adamw", "optimizer.momentum")
    if c.optimizer.weight_decay == 0:
        yield from _with("optimizer.weight_decay=0", "optimizer.decay_norm_and_bias")
    if c.model.frozen_stages == 5:
        yield from _with("model.frozen_stages=5", "optimizer.backbone_lr_factor")
    if c.model.init is None:
        yield from _with("model.init=null", "model.init_partial")
    if c.model.norm != "batch":
        yield from _with(f"model.norm={c.model.norm}", "train.sync_batch_norm")
    if c.train.accumulate == 1:
        yield from _with("train.accumulate=1", "train.rank_accumulated")
    if c.loss.box_weight == 0:
        yield from _with("loss.box_weight=0", "loss.box", "loss.self_balance", "loss.smooth_l1_beta")
    # Epochs from the first evaluation to the last one before the end.
    longest = (c.train.epochs - 1) // c.train.eval_every * c.train.eval_every - c.train.eval_every
    if c.train.patience is not None and c.train.patience > longest:
        yield from _with(f"train.epochs={c.train.epochs}", "train.patience")
    if c.train.on_nonfinite == "raise":
        yield from _with("train.on_nonfinite=raise", "train.max_nonfinite")
    if c.matcher.name == "iou":  # with atss the IoU thresholds are still used to judge anchors
        yield from _with("matcher.name=iou", "matcher.candidates")
    loss = f"loss.name={c.loss.name}"
    if not c.loss.ranks:
        yield from _with(loss, "loss.delta", "loss.class_by_class")
    if c.loss.name != "ap":
        yield from _with(loss, "loss.interpolated")
    if c.loss.name not in ("alrp", "rank_sort"):
        yield from _with(loss, "loss.self_balance")
    if c.loss.name != "focal":
        yield from _with(loss, "loss.focal_alpha", "loss.focal_gamma")
    if c.loss.name != "ce_ohem":
        yield from _with(loss, "loss.negatives_per_positive")
    if c.loss.name == "alrp" or c.loss.box == "giou":
        yield from _with(loss if c.loss.name == "alrp" else "loss.box=giou", "loss.smooth_l1_beta")
    if c.eval.tile is None:
        yield from _with("eval.tile=null", "eval.tile_overlap", "eval.tile_batch_size")
    if not c.eval.nms_threshold_counts:
        yield from _with("eval.nms=soft", "eval.nms_threshold")
    if c.data.cache != "disk":
        yield from _with(f"data.cache={c.data.cache}", "data.cache_dir")
    if c.data.on_error == "raise":
        yield from _with("data.on_error=raise", "data.max_skipped")
    shapes = [f"data.{name}" for name in type(c.data).model_fields if name.startswith("shapes_")]
    if c.data.format != "shapes":
        yield from _with(f"data.format={c.data.format}", *shapes)
    if c.data.format != "coco":
        yield from _with(f"data.format={c.data.format}", "data.annotations", "data.images")


def _with(other: str, *keys: str) -> Iterator[tuple[str, str]]:
    return ((key, other) for key in keys)
