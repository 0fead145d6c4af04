"""Suggestions for unknown keys: a typo, another section, or another trainer's name."""

import difflib
from typing import Any

from detector.config import Config, Section
from detector.config.fields import sub_section

# Names in other trainers, and the keys here.
_NAMES_ELSEWHERE = {
    "batch": "train.batch_size",
    "samples_per_gpu": "train.batch_size, the total of all processes",
    "ims_per_batch": "train.batch_size, the total of all processes",
    "lr0": "optimizer.lr",
    "base_lr": "optimizer.lr",
    "learning_rate": "optimizer.lr",
    "cos_lr": "schedule.name=cosine",
    "warmup_epochs": "schedule.warmup_steps",
    "warmup_iters": "schedule.warmup_steps",
    "max_iter": "train.epochs",
    "max_steps": "train.epochs",
    "num_epochs": "train.epochs",
    "imgsz": "data.image_size",
    "resize": "data.image_size",
    "img_scale": "data.image_size",
    "load_from": "model.init",
    "weights": "model.init",
    "path": "data.root",
    "names": "data.classes",
    "project": "run.dir",
    "name": "run.dir",
    "freeze": "model.frozen_stages",
    "iou": "eval.nms_threshold (for eval.nms=hard)",
    "max_det": "eval.detections_per_img",
    "max_dets": "eval.detections_per_img",
    "data": "data.root",
    "data_path": "data.root",
    "work_dir": "run.dir",
    "output_dir": "run.dir",
    "save_dir": "run.dir",
    "eval_period": "train.eval_every",
    "val_interval": "train.eval_every",
    "repeat_threshold": "data.repeat_rare",
    "oversample_thr": "data.repeat_rare",
    "matcher.iou": "matcher.positive_iou and matcher.negative_iou",
    "data.type": "data.format",
    "data.name": "data.root",
    "model.type": "model.backbone",
    "model.name": "model.backbone",
    "model.width": "model.base_channels",
    "width_mult": "model.base_channels",
    "width_multiple": "model.base_channels",
    "patience": "train.patience",
    "early_stopping": "train.patience",
    "early_stop": "train.patience",
    "mixed_precision": "train.amp",
    "fp16": "train.amp",
    "bf16": "train.amp",
    "save_period": "train.save_every_steps or train.save_every_minutes (best.pt is always saved)",
    "checkpoint_period": "train.save_every_steps or train.save_every_minutes (best.pt is always saved)",
}
_MOSAIC = "to combine four images into one, begin data.transforms.train with {Mosaic: {p: 0.5}}"
_AUGMENTATIONS = "list augmentations in data.transforms.train, see docs/data.md"
_CONTINUED = "to continue a run, use train.py --resume RUN_DIR"
_SCORED = "to score a run or a checkpoint, use evaluate.py"
_KNOWN_CLASSES = "there is no need to set it: the classes are those of the annotations, or of data.classes"
_LOGS = "runs are logged for TensorBoard and in metrics.jsonl"
_LAUNCHED = "to start several processes, use torchrun --nproc-per-node N train.py ..."
# Options of other trainers that need no key here.
_NO_KEY_HERE = {
    "conf": "to drop detections with low scores, use predict.py --threshold (eval.score_threshold applies "
    "to raw scores, and costs AP)",
    "resume": _CONTINUED,
    "resume_from": _CONTINUED,
    "num_classes": _KNOWN_CLASSES,
    "nc": _KNOWN_CLASSES,
    "single_cls": "to merge all classes into one, set 'data.merge={object: \"*\"}'",
    "test_only": _SCORED,
    "eval_only": _SCORED,
    "cfg_options": "write settings as KEY=VALUE after the configuration",
    "class_weights": "there are none; a ranking loss with loss.class_by_class=true gives all classes the "
    "same weight, and data.repeat_rare shows rare ones more often",
    "agnostic_nms": "to keep only the best of several classes on one object, use predict.py --one-per-object",
    "label_smoothing": "not available: a ranking loss has no labels to smooth",
    "fraction": "to set nine tenths aside, use python -m data.split SOURCE --val 0.9",
    "wandb": _LOGS,
    "report_to": _LOGS,
    "num_gpus": _LAUNCHED,
    "type": "the kind is set by name: loss.name, optimizer.name",
    "gpus": _LAUNCHED,
    **dict.fromkeys(
        (
            *("augmentations", "fliplr", "flipud"),
            *("hsv_h", "hsv_s", "hsv_v", "degrees", "translate", "shear", "perspective", "erasing"),
        ),
        _AUGMENTATIONS,
    ),
    "mosaic": _MOSAIC,
    "close_mosaic": f"{_MOSAIC}; its parameter epochs ends it after that many",
    **dict.fromkeys(("mixup", "cutmix", "copy_paste"), f"images are not mixed like that; {_MOSAIC}"),
    "augment": f"{_AUGMENTATIONS}; eval.flip also evaluates the mirror image of each image",
}


_ALIKE, _NEARLY_THE_SAME = 0.75, 0.85  # thresholds of difflib's ratio
_FEW = 8  # maximum number of keys to list
_SURE = 2  # maximum number of keys with common words from which one is suggested
_COMMON_WORDS = {"max", "min", "num", "use", "per"}  # words that say nothing about a key


def setting_called(name: str, how: str = "") -> str:
    """The key that corresponds to an option of other trainers; "" if there is none.

    Args:
        how: appended to the key: how to write it.
    """
    keys = [key for key in leaf_kinds(Config) if key.rpartition(".")[2] == name]
    key = _NAMES_ELSEWHERE.get(name) or " or ".join(keys)
    return f"use {key}{how}" if key else _NO_KEY_HERE.get(name, "")


def leaf_kinds(section: type[Section], prefix: str = "") -> dict[str, Any]:
    """The type of every value, by dotted key."""
    kinds: dict[str, Any] = {}
    for name, field in section.model_fields.items():
        inner = sub_section(field.annotation)
        kinds |= leaf_kinds(inner, f"{prefix}{name}.") if inner else {prefix + name: field.annotation}
    return kinds


def nearest(key: str, value: str = "") -> str:
    """End of a message about an unknown key: what was probably meant, or where all keys are listed.

    Args:
        value: the value given for the key, which may be a clue.
    """
    # As in Ultralytics.
    if key == "data" and value.endswith((".yaml", ".yml")):
        return f"; for the YOLO set of a data.yaml, use data.format=yolo data.root={value}"
    if key == "model" and value.endswith((".pt", ".pth")):
        return f"; for initial weights, use model.init={value}"
    keys = list(leaf_kinds(Config))
    # Tried in order: the right name in the wrong section, another trainer's name, a typo.
    leaf = key.split(".")[-1]
    if key in keys:  # it was used in a file, where dots are levels
        inner = key.replace(".", ": {")
        return f"; in a file, write {inner}: ...{'}' * key.count('.')}"
    members = [one for one in keys if f".{key}." in f".{one}"]
    if members:
        return f"; it is a group of keys: {', '.join(members[:4])}, ..."
    section = difflib.get_close_matches(key, Config.model_fields, n=1, cutoff=0.7)
    if section and "." not in key:
        return f"; did you mean '{section[0]}'?"
    if leaf.lower() in _NO_KEY_HERE and key not in _NAMES_ELSEWHERE:
        return f"; {_NO_KEY_HERE[leaf.lower()]}"
    named = _NAMES_ELSEWHERE.get(key) or _NAMES_ELSEWHERE.get(leaf.lower())
    found = _alike_in_section(key, keys, _NEARLY_THE_SAME if named else _ALIKE)
    if not found and named:
        begun = [one for one in keys if one.startswith(f"{key}_")]  # eval.batch for eval.batch_size
        if not begun:
            return f"; use {named}"
        found = begun[0]
    found = found or _with_its_words(key, keys) or _alike_elsewhere(key, keys)
    if found:
        return f"; did you mean '{found}'?"
    group = key.rpartition(".")[0]
    there = [one.removeprefix(f"{group}.") for one in keys if one.startswith(f"{group}.")]
    if 0 < len(there) <= _FEW:
        return f"; {group} has {', '.join(there)}"
    return "; docs/configuration.md lists all keys"


def _alike_in_section(key: str, keys: list[str], least: float) -> str | None:
    """The key or group of the same section with the most similar name, of at least ratio `least`."""
    section, _, rest = key.partition(".")
    groups = [one.rpartition(".")[0] for one in keys if one.count(".") > 1]
    own = [one for one in dict.fromkeys([*keys, *groups]) if one.startswith(f"{section}.")]
    alike = {one: _ratio(rest.replace(".", "_"), one.partition(".")[2].replace(".", "_")) for one in own}
    group, _, leaf = key.rpartition(".")
    for one in own:  # within a group, such as model.anchors, compare the last part
        if one.rpartition(".")[0] == group:
            alike[one] = max(alike[one], _ratio(leaf, one.rpartition(".")[2]))
    return max((one for one in own if alike[one] >= least), key=lambda one: alike[one], default=None)


def _with_its_words(key: str, keys: list[str]) -> str | None:
    """The key of the same section that contains all words of this one."""
    section, _, rest = key.partition(".")
    own = [
        one for one in keys if one.startswith(f"{section}.") and _has_words_of(rest.replace(".", "_"), one)
    ]
    return max(own, key=lambda one: _ratio(rest, one.rpartition(".")[2]), default=None)


def _alike_elsewhere(key: str, keys: list[str]) -> str | None:
    """A key of any section with the same name, all its words or a typo; else one here with a common word."""
    section, dot, leaf = key.rpartition(".")
    section += dot or "no section"
    named = {one: one.rpartition(".")[2] for one in keys}
    near = [one for one in keys if named[one] == leaf]
    worded = [one for one in keys if _has_words_of(leaf, one)]
    near = near or (worded if len(worded) <= _SURE else [])
    near = near or [one for one in keys if _ratio(leaf, named[one]) >= _NEARLY_THE_SAME]
    near = near or [one for one in keys if one.startswith(section) and _words(leaf) & _words(named[one])]
    return max(near, key=lambda one: _ratio(leaf, named[one]), default=None)


def _ratio(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()


def _words(name: str) -> set[str]:
    return set(name.split("_")) - _COMMON_WORDS


def _has_words_of(name: str, key: str) -> bool:
    return bool(_words(name)) and _words(name) <= _words(key.rpartition(".")[2])
