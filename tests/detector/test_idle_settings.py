"""Settings that have no effect beside others are reported if the user wrote them, and no others are."""

import re
from pathlib import Path

import pytest

from detector.config import Config
from detector.config.fields import leaf_values
from detector.config.file import load_config
from detector.config.idle import _idle

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
IDLE = {  # what the user writes -> the keys that are reported
    "schedule.name=cosine schedule.milestones=[8,11] schedule.gamma=0.2": {
        "schedule.milestones",
        "schedule.gamma",
    },
    "schedule.name=multistep schedule.milestones=[8,11] schedule.final_factor=0.1": {"schedule.final_factor"},
    "optimizer.name=adamw optimizer.momentum=0.95": {"optimizer.momentum"},
    "optimizer.name=sgd optimizer.momentum=0.95": set(),
    "train.rank_accumulated=true": {"train.rank_accumulated"},
    "train.rank_accumulated=true train.accumulate=2": set(),
    "loss.name=focal train.rank_accumulated=true train.accumulate=2": set(),
    "matcher.name=atss matcher.positive_iou=0.6": set(),
    "matcher.candidates=5": {"matcher.candidates"},
    "schedule.milestones=[] schedule.gamma=0.2": {"schedule.gamma"},
    "optimizer.weight_decay=0 optimizer.decay_norm_and_bias=false": {"optimizer.decay_norm_and_bias"},
    "optimizer.backbone_lr_factor=0.1 model.frozen_stages=5": {"optimizer.backbone_lr_factor"},
    "optimizer.backbone_lr_factor=0.1 model.frozen_stages=4": set(),
    "train.sync_batch_norm=true model.norm=group": {"train.sync_batch_norm"},
    "train.sync_batch_norm=true model.norm=batch": set(),
    "loss.name=focal loss.class_by_class=true": {"loss.class_by_class"},
    "loss.name=ap loss.class_by_class=true": set(),
    "loss.name=rank_sort loss.class_by_class=true": set(),
    "loss.name=focal loss.delta=0.5 loss.focal_gamma=1": {"loss.delta"},
    "loss.name=ap loss.self_balance=false loss.focal_gamma=1": {"loss.self_balance", "loss.focal_gamma"},
    "loss.box=giou loss.smooth_l1_beta=0.1": {"loss.smooth_l1_beta"},
    "eval.nms=soft eval.nms_threshold=0.3": {"eval.nms_threshold"},
    "eval.nms=soft eval.tile=512 eval.nms_threshold=0.3": set(),  # this threshold joins the tiles
    "eval.nms=soft eval.nms_threshold=0.5": set(),  # the default: nobody is misled
    "train.epochs=10 train.eval_every=4 train.patience=5": {"train.patience"},  # evaluated at 4, 8, 10
    "train.epochs=10 train.eval_every=4 train.patience=4": set(),
    "train.epochs=10 train.patience=9": {"train.patience"},
    "train.epochs=10 train.patience=8": set(),
    "loss.box_weight=0 loss.name=rank_sort loss.self_balance=false": {"loss.self_balance"},
    "data.cache_dir=there data.max_skipped=3": {"data.cache_dir", "data.max_skipped"},
    "data.format=voc data.images=JPEGImages": {"data.images"},
    "data.format=coco data.images=JPEGImages data.shapes_size_px=99": {"data.shapes_size_px"},
}


@pytest.mark.parametrize("words", IDLE)
def test_what_changes_nothing_is_said(tmp_path: Path, words: str, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.yaml").write_text("data: {format: coco}\n")
    load_config(tmp_path / "a.yaml", words.split())
    assert {message.partition(" ")[0] for message in caplog.messages} == IDLE[words]
    assert all(re.search(r" has no effect with \w+\.\w+=[\w\[\]]+$", message) for message in caplog.messages)


def test_of_a_file_its_own_settings_are_said_and_not_those_of_its_base(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "base.yaml").write_text("schedule: {milestones: [8], gamma: 0.5}\n")
    (tmp_path / "a.yaml").write_text("base: base.yaml\nschedule: {name: cosine, gamma: 0.3}\n")
    load_config(tmp_path / "a.yaml", [])
    assert caplog.messages == ["schedule.gamma has no effect with schedule.name=cosine"]
    caplog.clear()
    (tmp_path / "a.yaml").write_text("schedule: {gamma: 0.3}\n")
    load_config(tmp_path / "a.yaml", ["schedule.name=cosine"])  # the command line overrides the file
    assert not caplog.messages


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_the_files_that_are_shipped_have_none(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    load_config(path)
    assert not caplog.messages


def test_all_that_can_be_idle_is_a_key() -> None:
    for words in (
        {},
        {"loss": {"name": "alrp", "box": "giou"}},
        {"matcher": {"name": "atss"}, "data": {"format": "voc"}},
    ):
        config = Config.model_validate(words)
        assert dict(_idle(config)).keys() <= leaf_values(config).keys()
