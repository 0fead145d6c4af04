"""Building a set from the configuration: what a split must contain."""

from pathlib import Path

import pytest

from data.cache import DiskCache
from detector.builders.data import build_cache, build_set
from detector.config import DataConfig
from errors import InputError
from tests.builders import coco_dict, write_coco

BOX = [4.0, 5.0, 20.0, 18.0]


def crowds(root: Path, *numbers: int) -> Path:
    """A cat and a dog on each of two images; the annotations with these numbers are crowds."""
    content = coco_dict([[BOX, BOX], [BOX, BOX]])
    for annotation in content["annotations"]:
        annotation["iscrowd"] = int(annotation["id"] in numbers)
    return write_coco(root, content, content)


def test_a_training_split_of_nothing_but_crowds_is_refused(tmp_path: Path) -> None:
    """As written by a tool that marks every mask as a crowd."""
    data = DataConfig(format="coco", root=str(crowds(tmp_path / "set", 1, 2, 3, 4)))
    with pytest.raises(InputError, match="has no boxes to learn from: all 4 are iscrowd or difficult"):
        build_set(data, "train", None)
    assert len(build_set(data, "val", None).boxes) == 4


def test_a_class_that_was_asked_for_must_have_a_box_to_learn_from(tmp_path: Path) -> None:
    root = crowds(tmp_path / "set", 1, 3)
    with pytest.raises(InputError, match=r"data\.classes: data\.splits\.train has no box of class 'dog'"):
        build_set(DataConfig(format="coco", root=str(root), classes=["cat", "dog"]), "train", None)


def test_the_file_of_decoded_images_is_where_it_is_wanted(tmp_path: Path) -> None:
    root = crowds(tmp_path / "set", 1)
    for wanted, folder in ((tmp_path / "kept", "kept"), (None, "set.cache")):
        before = {path.name for path in tmp_path.iterdir()}
        where = None if wanted is None else str(wanted)
        data = DataConfig(format="coco", root=str(root), cache="disk", cache_dir=where)
        assert isinstance(build_cache(data, build_set(data, "train")), DiskCache)
        assert {path.name for path in tmp_path.iterdir()} - before == {folder}
