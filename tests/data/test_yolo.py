"""YOLO folders: sets of Ultralytics' users are read as they are, and faults reported with file and line."""

import json
import logging
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torchvision.ops import box_convert

import evaluate
import train
from data.annotations import join_sets
from data.coco import load_coco
from data.faults import DataFault, UnreadableImages
from data.images import read_image
from data.yolo import load_yolo
from detector.builders.data import build_set
from detector.config import DataConfig
from errors import InputError
from tests.builders import TINY_MODEL, small_coco, write_image
from tests.runs import assert_one_line, call, listing

BOXES = ((0, 0.5, 0.5, 0.25, 0.5), (1, 0.1, 0.2, 0.125, 0.0625))


def write_yolo(root: Path, labels: dict[str, str | None], **content: object) -> Path:
    """Images named "split/stem", each with the text of its label file, and data.yaml."""
    for seed, (name, text) in enumerate(labels.items()):
        write_image(root / "images" / f"{name}.png", seed=seed)
        if text is not None:
            path = root / "labels" / f"{name}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    values = {"path": ".", "train": "images/train", "val": "images/val", "names": ["cat", "dog"], **content}
    (root / "data.yaml").write_text(yaml.safe_dump({k: v for k, v in values.items() if v is not None}))
    return root


def lines(*rows: tuple[float, ...]) -> str:
    return "".join(" ".join(str(v) for v in row) + "\n" for row in rows)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Train: a, with a cat and a dog; b without a label file; c with an empty one. Val: a dog."""
    labels = {"train/a": lines(*BOXES), "train/b": None, "train/c": "", "val/d": lines(BOXES[1])}
    return write_yolo(tmp_path / "set", labels)


def error_of(root: Path, split: str = "train", classes: tuple[str, ...] | None = None) -> str:
    with pytest.raises(InputError) as raised:
        load_yolo(root, split, classes)
    message = str(raised.value)
    assert "\n" not in message
    return message


def test_records_arrive_in_pixels(root: Path) -> None:
    """The oracle is torchvision's conversion of boxes; images are 64 x 48 px."""
    records = load_yolo(root, "train")
    assert records.classes == ("cat", "dog")
    assert records.category_ids == (0, 1)
    assert records.image_ids.tolist() == [1, 2, 3]
    assert records.files.tolist() == [str(root / "images" / "train" / f"{s}.png") for s in "abc"]
    assert records.sizes.tolist() == [[48, 64]] * 3
    assert records.offsets.tolist() == [0, 2, 2, 2]
    assert records.labels.tolist() == [0, 1]
    relative = torch.tensor([box[1:] for box in BOXES], dtype=torch.float64)
    expected = box_convert(relative, "cxcywh", "xyxy") * torch.tensor([64, 48, 64, 48])
    np.testing.assert_allclose(records.boxes, expected.numpy(), atol=1e-9)


def test_a_coco_set_written_as_yolo_is_the_same_set(tmp_path: Path) -> None:
    coco = small_coco(tmp_path / "coco")
    content = json.loads((coco / "annotations" / "train.json").read_text())
    labels = {f"train/{image['file_name'][:-4]}": "" for image in content["images"]}
    for a in content["annotations"]:
        x, y, w, h = a["bbox"]
        row = ((3, 7).index(a["category_id"]), (x + w / 2) / 64, (y + h / 2) / 48, w / 64, h / 48)
        labels[f"train/{a['image_id'] - 10}"] += lines(row)
    ours = load_yolo(write_yolo(tmp_path / "yolo", labels), "train")
    theirs = load_coco(coco / "annotations" / "train.json", coco / "images")
    assert ours.classes == theirs.classes
    for field in ("sizes", "offsets", "labels", "ignore"):
        np.testing.assert_array_equal(getattr(ours, field), getattr(theirs, field))
    np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=1e-9)
    np.testing.assert_allclose(ours.areas, theirs.areas, atol=1e-9)


def test_a_polygon_becomes_its_bounding_box(root: Path) -> None:
    (root / "labels/val/d.txt").write_text("1 0.25 0.5 0.5 0.125 0.75 1.0\n")
    assert load_yolo(root, "val").boxes.tolist() == [[16, 6, 48, 48]]


def test_keypoints_after_a_box_are_not_taken_for_a_polygon(root: Path) -> None:
    (root / "data.yaml").write_text((root / "data.yaml").read_text() + "kpt_shape: [3, 2]\n")
    (root / "labels/val/d.txt").write_text("1 0.5 0.5 0.25 0.5 0.9 0.9 0.1 0.1 0.2 0.2\n")
    assert load_yolo(root, "val").boxes.tolist() == [[24, 12, 40, 36]]
    (root / "labels/val/d.txt").write_text("1 0.5 0.5 0.25 0.5\n")
    assert "d.txt:1: 5 numbers" in error_of(root, "val")


def test_lines_that_stand_twice_are_dropped_with_one_warning(root, caplog) -> None:
    (root / "labels/train/a.txt").write_text(lines(*BOXES, *BOXES, (1, *BOXES[0][1:])))
    (root / "labels/train/b.txt").write_text(lines(BOXES[0], BOXES[0]))
    with caplog.at_level(logging.WARNING):
        records = load_yolo(root, "train")
    assert records.labels.tolist() == [0, 1, 1, 0]
    (message,) = caplog.messages
    assert "3 lines" in message
    assert "a.txt" in message


def test_labels_that_are_not_where_they_are_looked_for_are_said_once(root: Path, caplog) -> None:
    (root / "labels").rename(root / "Labels")
    with caplog.at_level(logging.WARNING):
        assert len(load_yolo(root, "train").boxes) == 0
    (message,) = caplog.messages
    assert str(root / "labels" / "train" / "a.txt") in message
    caplog.clear()
    shutil.copy(root / "Labels" / "train" / "a.txt", root / "images" / "train")  # where labelImg leaves it
    load_yolo(root, "train")
    assert f"{root / 'images' / 'train' / 'a.txt'} is not used, because a folder above" in caplog.text


def test_images_that_share_a_label_file_are_said(root: Path, caplog) -> None:
    """a.jpg and a.png; two such images without a label file are both background."""
    for name in ("a", "b"):
        write_image(root / "images" / "train" / f"{name}.jpg", seed=9)
    assert len(load_yolo(root, "train").boxes) == 4
    (message,) = caplog.messages
    assert (
        "a.txt is the label file of both" in message and "a.jpg and a.png: the boxes are in both" in message
    )
    faults: list[DataFault] = []
    load_yolo(root, "train", faults=faults)
    assert [(fault.code, fault.image.name) for fault in faults] == [("label-shared", "a.png")]


def test_paths_written_on_windows_are_found(root: Path) -> None:
    (root / "list.txt").write_text("images\\train\\a.png\n")
    index = (root / "data.yaml").read_text().replace("images/val", "images\\val")
    (root / "data.yaml").write_text(f"{index}listed: list.txt\n")
    assert load_yolo(root, "val").files.tolist() == [str(root / "images" / "val" / "d.png")]
    assert load_yolo(root, "listed").files.tolist() == [str(root / "images" / "train" / "a.png")]


def test_paths_of_another_machine_are_found_by_their_ends(root: Path, caplog) -> None:
    """As in a set made in a notebook: folders in data.yaml, images in a list."""
    written = ("/content/sets/birds/images/train/a.png", "C:\\birds\\images\\TRAIN\\b.png")
    (root / "list.txt").write_text("\n".join(written))
    index = (root / "data.yaml").read_text().replace("images/val", "/content/sets/birds/images/val")
    (root / "data.yaml").write_text(f"{index}listed: list.txt\n")
    with caplog.at_level(logging.WARNING):
        assert load_yolo(root, "val").files.tolist() == [str(root / "images" / "val" / "d.png")]
        listed = load_yolo(root, "listed")
    assert listed.files.tolist() == [str(root / "images" / "train" / name) for name in ("a.png", "b.png")]
    assert len(listed.boxes) == 2
    of_folder, of_list = caplog.messages
    assert f"images/val' does not exist; {root / 'images' / 'val'} is used instead" in of_folder
    assert f"{root / 'list.txt'}: file names lead out of {root}" in of_list and "(2, such as" in of_list


def test_a_list_as_darknet_has_it_begins_with_a_folder_that_is_not_there(root: Path, caplog) -> None:
    (root / "list.txt").write_text("data/images/train/a.png\ndata/images/train/b.png\n")
    (root / "data.yaml").write_text((root / "data.yaml").read_text() + "listed: list.txt\n")
    with caplog.at_level(logging.WARNING):
        listed = load_yolo(root, "listed")
    assert listed.files.tolist() == [str(root / "images" / "train" / name) for name in ("a.png", "b.png")]
    assert caplog.text == ""
    (root / "list.txt").write_text("data/images/train/lost.png\n")
    assert f"{root / 'list.txt'}:1: image images/train/lost.png does not exist" in error_of(root, "listed")


def test_a_lost_image_of_a_list_is_not_another_of_its_name(root: Path) -> None:
    (root / "list.txt").write_text("images/train/a.png\ndata/lost/images/train/a.png\n")
    (root / "data.yaml").write_text((root / "data.yaml").read_text() + "listed: list.txt\n")
    assert "list.txt:2: image lost/images/train/a.png does not exist" in error_of(root, "listed")


def test_an_image_that_cannot_be_read_may_be_left_out(root: Path) -> None:
    """Since its size is not known. All other faults are raised."""
    (root / "images" / "train" / "b.png").write_bytes(b"")
    whole, lost = (
        load_yolo(root, "train", faults=(unreadable := UnreadableImages())),
        root / "images/train/b.png",
    )
    assert str(lost) not in whole.files and len(whole) == 2
    assert [fault.image for fault in unreadable] == [lost]
    (root / "labels" / "train" / "a.txt").write_text("0 0.5\n")
    with pytest.raises(InputError, match=r"a\.txt:1"):
        load_yolo(root, "train", faults=UnreadableImages())
    (root / "images" / "val" / "d.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"d\.png cannot be read"):  # rather than: contains no images
        build_set(DataConfig(format="yolo", root=str(root)), "val", faults=UnreadableImages())


@pytest.mark.parametrize("train", ["/kaggle/set/train/images", "images"])
def test_two_places_of_another_machine_do_not_become_one(root: Path, train: str) -> None:
    """Otherwise validation would be on the training images."""
    index = (root / "data.yaml").read_text().replace("images/val", "/kaggle/set/valid/images")
    (root / "data.yaml").write_text(index.replace("images/train", train))
    assert "'val: /kaggle/set/valid/images' does not exist" in error_of(root, "val")


@pytest.mark.parametrize("place", ["C:\\birds\\images\\val", "D:/birds/images/val", "../../birds/images/val"])
def test_a_folder_of_any_other_machine_is_found_by_its_end(root: Path, place: str) -> None:
    expected = load_yolo(root, "val").files.tolist()
    (root / "labels/val/gone.txt").write_text(lines(BOXES[0]))
    index = yaml.safe_load((root / "data.yaml").read_text())
    (root / "data.yaml").write_text(yaml.safe_dump({**index, "val": place}))
    faults: list[DataFault] = []
    assert load_yolo(root, "val", faults=faults).files.tolist() == expected
    assert [fault.code for fault in faults] == ["label-without-image"]


def test_two_names_of_a_list_are_not_one_image(root: Path) -> None:
    (root / "images/train/a.png").rename(root / "a.png")
    (root / "list.txt").write_text("/home/cam1/a.png\n/home/cam2/a.png\n")
    (root / "data.yaml").write_text((root / "data.yaml").read_text() + "listed: list.txt\n")
    assert f"'/home/cam2/a.png', and another entry '/home/cam1/a.png', but both would be {root}" in error_of(
        root, "listed"
    )


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("/gone/pictures", "'val: /gone/pictures' does not exist"),
        ("pictures", "'val: pictures' does not exist below "),
        ("images/*.png", "; patterns are not supported: name a folder, or a .txt list"),
    ],
)
def test_a_place_that_is_not_there_is_named(root: Path, place: str, said: str) -> None:
    (root / "data.yaml").write_text((root / "data.yaml").read_text().replace("images/val", place))
    message = error_of(root, "val")
    assert said in message and ("below" in message) == (place[0] != "/")


def test_a_detectors_score_is_known_by_its_place(root: Path) -> None:
    """Ultralytics writes it after the box (save_conf)."""
    label = next((root / "labels" / "train").glob("*.txt"))
    label.write_text("0 0.5 0.5 0.2 0.2 0.93\n")
    assert "6 numbers" in error_of(root, "train") and "the sixth looks like" in error_of(root, "train")


def test_keypoints_without_their_shape_are_known(root: Path) -> None:
    (root / "labels" / "train" / "a.txt").write_text("0 0.5 0.5 0.2 0.2 " + "0.5 0.5 2 " * 17)
    assert "56 numbers" in error_of(root) and "add 'kpt_shape: [17, 3]' to" in error_of(root)
    (root / "data.yaml").write_text((root / "data.yaml").read_text() + "kpt_shape: [17, 3]\n")
    assert len(load_yolo(root, "train").boxes) == 1


@pytest.mark.parametrize(("points", "numbers"), [(2, 2), (4, 2), (5, 2), (2, 3), (4, 3)])
def test_keypoints_that_are_read_as_polygons_are_told(
    root: Path, points: int, numbers: int, caplog: pytest.LogCaptureFixture
) -> None:
    """If 4 plus the count of their numbers is even. Oracle: what was written. Polygons are not reported,
    nor are small rotated boxes, which are far from the image's corner for their size, nor too few lines.
    """
    rng = np.random.default_rng(0)
    rows, polygons, rotated = [], [], []
    for _ in range(30):
        sides = rng.uniform(0.1, 0.3, 2)
        centre = rng.uniform(0.15, 0.85, 2)
        inside = centre + (rng.uniform(-0.5, 0.5, (points, 2)) * sides)
        seen = np.where(rng.random((points, 1)) < 0.2, 0.0, 1.0)
        keypoints = np.hstack((inside * seen, seen)[: numbers - 1])
        rows.append((0, *centre, *sides, *keypoints.reshape(-1).round(4)))
        polygons.append((0, *(centre + rng.uniform(-0.5, 0.5, (points + 2, 2)) * sides).reshape(-1)))
        square = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) @ rng.uniform(-0.03, 0.03, (2, 2))
        rotated.append((0, *(rng.uniform(0.1, 0.9, 2) + square).reshape(-1)))
    label = root / "labels" / "train" / "a.txt"
    told = f"looks like boxes with {points} keypoints; if so, add 'kpt_shape: [{points}, {numbers}]'"
    for shown, expected in ((rows, True), (rows[:29], False), (polygons, False), (rotated, False)):
        caplog.clear()
        label.write_text(lines(*shown))
        load_yolo(root, "train")
        assert (told in caplog.text) == ("kpt_shape" in caplog.text) == expected
        faults: list[DataFault] = []
        load_yolo(root, "train", None, faults)
        assert ([f.code for f in faults if "keypoints" in f.code] != []) == expected
    if numbers == 3:
        label.write_text(lines((*rows[0][:-1], 2)))
        assert "kpt_shape" in error_of(root)


def test_labels_may_be_called_txt_in_capitals(root: Path) -> None:
    before = load_yolo(root, "train")
    for label in sorted((root / "labels" / "train").glob("*.txt")):
        label.rename(label.with_suffix(".TXT"))
    after = load_yolo(root, "train")
    assert len(before.boxes) == 2 and after.digest() == before.digest()
    (root / "labels" / "train" / "a.txt").write_text("")
    assert len(load_yolo(root, "train").boxes) == 0  # .txt takes precedence


def test_a_set_of_another_layout_is_known(root: Path, tmp_path: Path) -> None:
    (root / "data.yaml").unlink()
    (root / "annotations").mkdir()
    (root / "annotations" / "train.json").touch()
    with pytest.raises(InputError, match=r"a YOLO set must have one; it looks like data\.format=coco"):
        load_yolo(root, "train")


def test_a_list_may_name_files_whose_names_are_not_utf8(root: Path) -> None:
    """As data.split writes it: the bytes as they are."""
    name = os.fsdecode(b"caf\xe9.png")
    try:
        (root / "images/train/a.png").rename(root / "images/train" / name)
        (root / "labels/train/a.txt").rename(root / "labels/train" / name.replace("png", "txt"))
    except OSError:
        pytest.skip("the disk has UTF-8 names only")
    (root / "list.txt").write_bytes(b"images/train/caf\xe9.png\n")
    (root / "data.yaml").write_text((root / "data.yaml").read_text() + "listed: list.txt\n")
    assert load_yolo(root, "listed").files.tolist() == [str(root / "images" / "train" / name)]


def test_the_index_may_have_any_name(root: Path) -> None:
    expected = load_yolo(root, "train").files.tolist()
    (root / "data.yaml").rename(root / "birds.yaml")
    assert load_yolo(root / "birds.yaml", "train").files.tolist() == expected
    assert error_of(root).endswith(f"; if it is birds.yaml, set data.root={root / 'birds.yaml'}")


@pytest.mark.parametrize(("listed", "folder"), [("classes.txt", "images"), ("obj.names", "obj_train_data")])
def test_a_set_of_an_annotation_tool_is_told_its_index(root: Path, listed: str, folder: str) -> None:
    """What the message suggests is a valid index: the line for train, and the names."""
    (root / "data.yaml").unlink()
    (root / "images").rename(root / folder)
    (root / listed).write_text("cat\ndog's\n\n")
    message = error_of(root)
    lines = re.search(r"with the two lines '(train: .*)' and '(names: .*)' \(of ", message)
    assert lines is not None, message
    content = yaml.safe_load("\n".join(lines.groups()))
    assert content == {"train": folder, "names": ["cat", "dog's"]}


def test_boxes_of_classes_that_are_not_used_are_counted(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    everything = load_yolo(root, "train")
    dogs = int((everything.labels == everything.classes.index("dog")).sum())
    assert dogs > 0
    load_yolo(root, "train", ("cat",))
    assert caplog.messages == [f"split train: left out objects of classes that are not used: {dogs} of 'dog'"]


def test_a_set_without_validation_is_told_how_to_be_divided(root: Path) -> None:
    write_yolo(root, {}, val=None)
    assert f"or divide the set: python -m data.split {root}" in error_of(root, "val")


def test_a_turned_photograph_has_the_size_that_reading_it_gives(root: Path) -> None:
    """Its labels were made on the upright picture, as every viewer shows it."""
    path = root / "images/val/d.jpg"
    (root / "images/val/d.png").unlink()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 48)).save(path, exif=exif)
    records = load_yolo(root, "val")
    assert records.sizes.tolist() == [[64, 48]]
    assert read_image(path, (64, 48)).shape == (64, 48, 3)
    x, y, w, h = (0.1 * 48, 0.2 * 64, 0.125 * 48, 0.0625 * 64)
    np.testing.assert_allclose(records.boxes, [[x - w / 2, y - h / 2, x + w / 2, y + h / 2]])


def test_classes_may_be_chosen_and_reordered(root: Path) -> None:
    records = load_yolo(root, "train", ("dog",))
    assert (records.classes, records.category_ids, records.labels.tolist()) == (("dog",), (1,), [0])
    swapped = load_yolo(root, "train", ("dog", "cat"))
    assert (swapped.category_ids, swapped.labels.tolist()) == ((1, 0), [1, 0])


PLACES = {  # what data.yaml may say; in each case the images of "train" are found
    "names by index": {"names": {1: "dog", 0: "cat"}},
    "count of names": {"nc": 2},
    "count of names, as text": {"nc": "2"},
    "no path": {"path": None},
    "path of another machine": {"path": "/content/datasets/set"},
    "path by Ultralytics' settings": {"path": "../datasets/set"},
    "a list of folders": {"train": ["images/train"]},
    "Roboflow's": {"path": None, "train": "../images/train"},
    "a list of images": {"train": "train.txt"},
    "a list of lists": {"train": ["train.txt", "images/train"]},
    "the parent folder": {"train": "images", "val": "images/val"},
}


@pytest.mark.parametrize("case", PLACES)
def test_splits_are_found_wherever_data_yaml_may_say(root: Path, case: str) -> None:
    expected = load_yolo(root, "train")
    names = ["./images/train/a.png", "images/train/b.png", str(root / "images/train/c.png")]
    (root / "train.txt").write_text("\n".join(names) + "\n\n")
    write_yolo(root, {}, **PLACES[case])
    records = load_yolo(root, "train")
    assert [Path(f).name for f in records.files][:3] == ["a.png", "b.png", "c.png"]
    assert len(records) == (4 if case == "the parent folder" else 3)
    assert records.classes == expected.classes
    assert records.boxes.tolist()[:2] == expected.boxes.tolist()


def test_linked_folders_belong_to_a_split_and_hidden_files_do_not(root: Path) -> None:
    expected = load_yolo(root, "train")
    folder, elsewhere = root / "images/train", root.parent / "elsewhere" / "images"
    elsewhere.mkdir(parents=True)
    (folder / "c.png").rename(elsewhere / "c.png")
    (folder / "linked").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(folder)  # an endless loop
    (folder / ".ipynb_checkpoints").mkdir()
    write_image(folder / ".ipynb_checkpoints" / "a-checkpoint.png")
    (folder / "._a.png").write_bytes(b"of a Mac")
    records = load_yolo(root, "train")
    assert [Path(file).name for file in records.files] == ["a.png", "b.png", "c.png"]
    assert records.labels.tolist() == expected.labels.tolist()


def test_labels_whose_image_is_not_there_are_told(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    """If half of a set was not copied, training would be on the other half."""
    for name in ("train/gone", "train/deep/lost", "val/of_val"):
        (root / "labels" / f"{name}.txt").parent.mkdir(exist_ok=True)
        (root / "labels" / f"{name}.txt").write_text(lines(BOXES[0]))
    (root / "labels" / "train" / "classes.txt").write_text("cat\ndog\n")
    assert len(load_yolo(root, "train", None)) == 3
    assert "split train: 2 label files have no image; these boxes are left out" in caplog.text
    assert "lost.txt, ..." in caplog.text
    faults: list[DataFault] = []
    load_yolo(root, "train", None, faults)
    assert [(fault.code, fault.image.name) for fault in faults if fault.image] == [
        ("label-without-image", "lost.txt"),
        ("label-without-image", "gone.txt"),
    ]


def test_an_image_that_is_named_in_two_ways_is_one(root: Path, monkeypatch) -> None:
    (root / "train.txt").write_text(f"{root / 'images/train/a.png'}\n")
    write_yolo(root, {}, train=["images/train", "train.txt"])
    monkeypatch.chdir(root.parent)
    assert len(load_yolo(Path(root.name), "train")) == 3


@pytest.mark.parametrize(
    "text", ["names: [no, 08]", "names: {0: no, 1: 08}", "names:\n- no\n- 08", "names: ['no', \"08\"]"]
)
def test_names_are_taken_as_they_stand(root: Path, text: str) -> None:
    """YAML would read a boolean and a number there."""
    (root / "data.yaml").write_text(f"path: .\ntrain: images/train\nval: images/val\n{text}\n")
    assert load_yolo(root, "train").classes == ("no", "08")


def test_files_may_begin_with_a_byte_order_mark(root: Path) -> None:
    expected = load_yolo(root, "train")
    write_yolo(root, {}, train="train.txt")
    (root / "train.txt").write_text("images/train/a.png\nimages/train/b.png\n")
    for path in (root / "train.txt", root / "data.yaml", root / "labels/train/a.txt"):
        path.write_text(path.read_text(), "utf-8-sig")
    records = load_yolo(root, "train")
    assert records.classes == expected.classes
    assert records.boxes.tolist() == expected.boxes.tolist()


def test_labels_stand_for_the_last_folder_called_images(tmp_path: Path, monkeypatch) -> None:
    """Also if the data set itself lies below a folder of that name, and is given by a relative path."""
    root = write_yolo(tmp_path / "images" / "set", {"train/a": lines(BOXES[0])})
    monkeypatch.chdir(root.parent)
    assert load_yolo(Path("set"), "train").labels.tolist() == [0]
    monkeypatch.chdir(root / "images")
    write_yolo(root, {}, train="train")
    (root / "data.yaml").rename(root / "images/data.yaml")
    assert load_yolo(Path(), "train").labels.tolist() == [0]


def test_labels_lie_beside_images_that_are_in_no_such_folder(tmp_path: Path) -> None:
    root = write_yolo(tmp_path, {}, train="all")
    write_image(root / "all/a.png")
    (root / "all/a.txt").write_text(lines(BOXES[1]))
    assert load_yolo(root, "train").labels.tolist() == [1]


def test_joined_splits_are_renumbered(root: Path) -> None:
    both = join_sets([load_yolo(root, name) for name in ("train", "val")], "the test")
    config = DataConfig(format="yolo", root=str(root), splits={"train": ["train", "val"]})
    records = build_set(config, "train")
    assert records.image_ids.tolist() == both.image_ids.tolist() == [1, 2, 3, 4]
    assert records.labels.tolist() == [0, 1, 1]


WRONG_LINES = {  # the third line of a.txt -> what the message says
    "0 0.5 0.5 0.2": "4 numbers",
    "0 0.5 0.5 0.2 0.2 0.9": "6 numbers",
    "0 0.1 0.1 0.2 0.2 0.3 0.3 0.4": "8 numbers",
    "0 0.5 0.5 0.2 wide": "'wide' is not a number",
    "cat 0.5 0.5 0.2 0.2": "'cat' is not a number",
    "2 0.5 0.5 0.2 0.2": "class 2 is not one of 0 to 1.*data.yaml",
    "-1 0.5 0.5 0.2 0.2": "class -1",
    "0.5 0.5 0.5 0.2 0.2": "class 0.5",
    "nan 0.5 0.5 0.2 0.2": "class nan",
    "0 32 24 10 12": "32 lies outside",
    "0 0.5 -0.02 0.2 0.2": "-0.02 lies outside",
    "0 0.5 0.5 1.02 0.2": "1.02 lies outside",
    "0 0.5 nan 0.2 0.2": "nan lies outside",
    "0 0.1 0.1 0.2 0.2 0.3 7": "7 lies outside",
    "0 0.5 0.5 -0.005 0.2": "negative width",
}


@pytest.mark.parametrize("line", WRONG_LINES)
def test_a_wrong_line_is_named_by_file_and_number(root: Path, line: str) -> None:
    (root / "labels/train/a.txt").write_text(f"{lines(BOXES[0])}\n{line}\n{lines(BOXES[1])}")
    message = error_of(root)
    assert f"{root / 'labels/train/a.txt'}:3: " in message
    assert re.search(WRONG_LINES[line], message), message


def test_what_rounding_does_is_no_error(root: Path) -> None:
    (root / "labels/val/d.txt").write_text("0 0.5 0.5 1.000001 1.000001\n1.0 1e-1 0.2 0.1 0.1\n")
    assert load_yolo(root, "val").labels.tolist() == [0, 1]


WRONG_INDEX = {
    "no names": ({"names": None}, "names must list"),
    "names with a gap": ({"names": {0: "cat", 2: "dog"}}, "names must list"),
    "a name twice": ({"names": ["cat", "cat"]}, "'cat' is listed twice"),
    "another count": ({"nc": 3}, "nc is 3, but names has 2"),
    "no such split": ({"train": None}, "no split 'train'; its splits are: val"),
    "folder missing": ({"train": "images/gone"}, "'train: images/gone' does not exist"),
    "folder without images": ({"train": "labels/train"}, "'train' contains no images"),
    "neither folder nor list": ({"train": "images/train/a.png"}, "is neither a folder nor a .txt list"),
    "image of a list missing": ({"train": "bad.txt"}, "bad.txt:2: image images/gone.png does not exist"),
}


@pytest.mark.parametrize("case", WRONG_INDEX)
def test_a_wrong_data_yaml_is_named(root: Path, case: str) -> None:
    content, problem = WRONG_INDEX[case]
    (root / "bad.txt").write_text("images/train/a.png\nimages/gone.png\n")
    write_yolo(root, {}, **content)
    message = error_of(root)
    assert re.search(problem, message), message
    assert str(root) in message


def test_a_file_that_is_no_yaml_no_text_or_no_image_is_named(root: Path) -> None:
    assert "no class 'cow'" in error_of(root, classes=("cow",))
    (root / "images/train/b.png").write_bytes(b"no image")
    assert "b.png cannot be read" in error_of(root)
    (root / "labels/train/a.txt").write_bytes(b"\xff\xfe\x00")
    assert "a.txt cannot be read" in error_of(root)
    (root / "data.yaml").write_text("train: [")
    assert "data.yaml is not valid YAML" in error_of(root)
    (root / "data.yaml").write_text("- train")
    assert "data.yaml must be a mapping" in error_of(root)
    (root / "data.yaml").unlink()
    assert "data.yaml does not exist" in error_of(root)


def test_training_and_evaluation_read_the_set(root: Path) -> None:
    """The metrics come from data.root alone; a run refused for a wrong line leaves nothing behind."""
    (root.parent / "tiny.yaml").write_text("data: {format: yolo, root: set}\ntrain: {epochs: 1}\n")
    words = ("tiny.yaml", "run.dir=run", *TINY_MODEL)
    assert call(train.main, *words, cwd=root.parent).code == 0
    outcome = call(evaluate.main, "run", "--output", "scores.json", cwd=root.parent)
    assert (outcome.code, outcome.err) == (0, "")
    scores = json.loads((root.parent / "scores.json").read_text())
    assert {name: one["gt_boxes"] for name, one in scores["per_class"].items()} == {"cat": 0, "dog": 1}
    (root / "labels/val/d.txt").write_text("7 0.5 0.5 0.2 0.2\n")
    before = listing(root.parent)
    outcome = call(train.main, *words, "run.dir=other", cwd=root.parent)
    assert_one_line(outcome, "labels/val/d.txt:1", "class 7")
    assert listing(root.parent) == before


def test_a_folder_of_labels_by_another_name_is_told(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Some systems treat both names as the same."""
    (root / "labels").rename(root / "Labels")
    assert len(load_yolo(root, "train").boxes) == 0
    assert f"{root / 'Labels'} is not used: rename it to labels" in caplog.text
