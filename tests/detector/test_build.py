"""From the configuration to a set: what a split must hold."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from detector.build import build_criterion, build_set
from detector.config import Config, DataConfig, LossConfig
from detector.losses import Exchange
from errors import InputError
from tests.builders import coco_dict, write_coco

BOX = [4.0, 5.0, 20.0, 18.0]


def crowds(root: Path, *numbers: int) -> Path:
    """A cat and a dog on each of two images; those annotations are crowds."""
    content = coco_dict([[BOX, BOX], [BOX, BOX]])
    for annotation in content["annotations"]:
        annotation["iscrowd"] = int(annotation["id"] in numbers)
    return write_coco(root, content, content)


def test_a_training_split_of_nothing_but_crowds_is_refused(tmp_path: Path) -> None:
    """As a tool that marks every mask so writes it."""
    data = DataConfig(format="coco", root=str(crowds(tmp_path / "set", 1, 2, 3, 4)))
    with pytest.raises(InputError, match="holds no boxes to learn from: all 4 are iscrowd or difficult"):
        build_set(data, "train", None)
    assert len(build_set(data, "val", None).boxes) == 4


def test_a_class_that_was_asked_for_must_have_a_box_to_learn_from(tmp_path: Path) -> None:
    root = crowds(tmp_path / "set", 1, 3)
    with pytest.raises(InputError, match=r"data\.classes: data\.splits\.train holds no box of class 'dog'"):
        build_set(DataConfig(format="coco", root=str(root), classes=["cat", "dog"]), "train", None)


def test_focal_loss_without_a_gradient_is_refused_for_training() -> None:
    """Only there: a checkpoint of such a training can be evaluated."""
    for name, gamma, refused in (("focal", 0.5, True), ("focal", 0.0, False), ("ap", 0.5, False)):
        config = Config(data=DataConfig(format="coco"), loss=LossConfig(name=name, focal_gamma=gamma))
        expected = pytest.raises(InputError, match=r"loss\.focal_gamma: 0 or") if refused else nullcontext()
        with expected:
            build_criterion(config, torch.device("cpu"), Exchange())
