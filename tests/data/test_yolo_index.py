"""data.yaml of a YOLO set and the places that it names: no picture in them is left out silently."""

import logging
import shutil
from pathlib import Path

import pytest

from data.check.findings import KINDS, Level
from data.check.repeats import path_spots
from data.faults import DataFault
from data.yolo import load_yolo
from detector.builders.data import build_set
from detector.config import DataConfig
from errors import InputError
from tests.data.test_yolo import BOXES, error_of, lines, write_yolo

LABELS = {"train/a": lines(*BOXES), "train/b": None, "train/c": "", "val/d": lines(BOXES[1])}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_yolo(tmp_path / "set", LABELS)


@pytest.mark.parametrize("flat", [False, True])
def test_pictures_that_have_to_be_converted_are_said(
    root: Path, flat: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """As phones make them, with labels; in labelImg's layout the labels lie beside the pictures."""
    where = root / "images" / "train"
    if flat:
        where = root / "all"
        (root / "images" / "train").rename(where)
        write_yolo(root, {}, train="all", val="all")
    for name in ("x.HEIC", "y.heic", "film.gif"):
        shutil.copy(where / "a.png", where / name)
    (where / "notes.docx").touch()
    if not flat:
        shutil.copy(root / "labels/train/a.txt", root / "labels/train/x.txt")
    with caplog.at_level(logging.WARNING):
        assert len(load_yolo(root, "train")) == 3
    (said,) = [r.message for r in caplog.records if "convert" in r.message]
    assert said == (
        f"split train: left out {where / 'film.gif'} and 2 more, which are not of a supported kind; "
        "convert it to JPEG or PNG"
    )
    faults: list[DataFault] = []
    load_yolo(root, "train", None, faults)
    named = [fault.image for fault in faults if fault.code == "image-not-read"]
    assert named == [where / name for name in ("film.gif", "x.HEIC", "y.heic")]
    assert "label-without-image" not in {fault.code for fault in faults}  # x.txt belongs to x.HEIC
    assert KINDS["image-not-read"].level > Level.ERROR  # they are left out, and the rest is trained on


@pytest.mark.parametrize("ending", [".jfif", ".JPE"])
def test_all_endings_of_a_jpeg_are_taken(root: Path, ending: str) -> None:
    """Browsers on Windows save .jfif files."""
    shutil.copy(root / "images/train/a.png", root / f"images/train/z{ending}")  # the content is what counts
    assert len(load_yolo(root, "train")) == 4


def test_however_a_list_spells_a_file_it_is_one_image(root: Path) -> None:
    (root / "linked").symlink_to(root / "images")
    ways = ["images/train/a.png", "../set/images/train/a.png", "images/./train/a.png", "linked/train/a.png"]
    for some in (ways, ways[::-1]):  # beside linked/ there are no labels
        (root / "train.txt").write_text("\n".join([*some, "images/train/b.png"]))
        write_yolo(root, {}, train="train.txt")
        train = load_yolo(root, "train")
        assert [Path(file).name for file in train.files] == ["a.png", "b.png"]
        assert train.offsets.tolist() == [0, len(BOXES), len(BOXES)]
    (root / "val.txt").write_text("images/train/../train/b.png\nimages/val/d.png")
    write_yolo(root, {}, train="train.txt", val="val.txt")
    (spot,) = path_spots({"train": train, "val": load_yolo(root, "val")})
    assert spot.code == "image-in-both"


def test_all_lost_images_of_a_list_are_counted(root: Path) -> None:
    (root / "train.txt").write_text("images/train/a.png\nimages/train/7.png\n\nimages/train/8.png\nx/9.png\n")
    write_yolo(root, {}, train="train.txt")
    assert error_of(root).endswith(
        "train.txt:2: image images/train/7.png does not exist (and 2 more images); put the file there, or "
        "remove its line"
    )
    faults: list[DataFault] = []
    assert len(load_yolo(root, "train", None, faults)) == 1
    assert [str(fault).partition(": ")[0].rpartition(":")[2] for fault in faults] == ["2", "4", "5"]
    assert not any("more images" in str(fault) for fault in faults)


def test_other_texts_in_data_yaml_are_no_splits(root: Path) -> None:
    """A licence is not a split, and does not prevent dividing the set."""
    write_yolo(root, {}, val=None, license="MIT", nc="2", source="https://example.org/sets")
    message = error_of(root, "val")
    assert "its splits are: train (" in message and "python -m data.split" in message


def test_a_yolo_set_that_is_read_as_coco_is_known(root: Path) -> None:
    """As with configs/own.yaml, whose format is COCO."""
    with pytest.raises(InputError, match=r"train\.json does not exist; it looks like data\.format=yolo$"):
        build_set(DataConfig(format="coco", root=str(root)), "train")
    shutil.rmtree(root / "images")
    with pytest.raises(InputError, match=r"does not exist; it looks like data\.format=yolo$"):
        build_set(DataConfig(format="coco", root=str(root)), "train")


@pytest.mark.parametrize("category", ["2", "-1", "0.5", "nan", "inf"])
def test_a_class_that_is_not_listed_is_refused(root: Path, category: str) -> None:
    (root / "labels/train/a.txt").write_text(f"{category} 0.5 0.5 0.1 0.1\n")
    with pytest.raises(InputError, match=rf"a\.txt:1: class {category} is not one of 0 to 1"):
        load_yolo(root, "train")


def test_of_two_folders_that_a_place_may_mean_the_one_is_named(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Roboflow's ../train/images, next to another set that also has a folder train."""
    for kind in ("images", "labels"):
        (root / "train").mkdir(exist_ok=True)
        shutil.move(root / kind / "train", root / "train" / kind)
    write_yolo(root, {}, path=None, train="../train/images")
    with caplog.at_level(logging.WARNING):
        assert len(load_yolo(root, "train")) == 3
        assert caplog.text == ""
        shutil.copytree(root / "train", root.parent / "train")
        (root.parent / "train/images/a.png").unlink()
        assert len(load_yolo(root, "train")) == 2
    assert f"'train: ../train/images' is {root}/../train/images, not {root}/train/images" in caplog.text
