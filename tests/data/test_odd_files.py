"""Files as other systems and tools write them: unusual names, encodings, ids and folders."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import evaluate
import train
from data.check.__main__ import main as check
from data.coco import load_coco
from data.faults import DataFault
from data.inputs import find_sources
from data.split.__main__ import main as split
from data.text_ids import _say
from data.texts import lines_of
from data.voc import load_voc
from data.yolo import load_yolo
from errors import InputError
from tests.builders import TINY_MODEL, coco_dict, voc_xml, write_image, write_voc
from tests.data.test_yolo import BOXES, lines, write_yolo
from tests.runs import assert_refused, call

CAT = voc_xml([("cat", (4, 5, 24, 23), 0)])
BOX = [4.0, 5.0, 20.0, 18.0]


def names(records: Any) -> list[str]:
    return [Path(file).name for file in records.files.tolist()]


# ------------------------------------------------------------------------ VOC


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that is a split: two pairs, a lone picture, a pair with .XML in capitals, one pair below."""
    for name in ("a", "b", "alone", "capital", "cam/c"):
        write_image(tmp_path / "set" / "train" / f"{name}.jpg", seed=len(name))
    (tmp_path / "set/train/cam").mkdir(exist_ok=True)
    for name in ("a.xml", "b.xml", "capital.XML", "cam/c.xml"):
        (tmp_path / "set/train" / name).write_text(CAT)
    return tmp_path / "set"


def test_a_folder_that_is_a_voc_split_holds_what_is_below_and_says_what_is_not_read(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    records = load_voc(folder, "train")
    assert names(records) == ["a.jpg", "b.jpg", "c.jpg"] and len(records.boxes) == 3
    left, lost = caplog.messages
    assert "left out" in left and "capital.XML; rename files" in left
    assert "2 of 5 images in" in lost and "such as alone" in lost
    faults: list[DataFault] = []
    load_voc(folder, "train", faults=faults)
    assert [(f.code, f.image and f.image.name) for f in faults] == [
        ("annotation-not-read", "capital.XML"),
        ("image-unannotated", "alone.jpg"),
        ("image-unannotated", "capital.jpg"),
    ]


def test_a_folder_that_is_a_split_may_have_its_files_below(folder: Path) -> None:
    """Or it may be laid out as a set of its own, which needs images."""
    for path in (folder / "train").glob("*.xml"):
        path.unlink()
    assert names(load_voc(folder, "train")) == ["c.jpg"]
    (folder / "val/Annotations").mkdir(parents=True)
    (folder / "val/Annotations/a.xml").write_text(CAT)
    with pytest.raises(InputError, match="val/JPEGImages does not exist"):
        load_voc(folder, "val")


def test_a_set_of_one_folder_has_not_what_lies_below(folder: Path) -> None:
    """Folders below may be other splits."""
    assert names(load_voc(folder / "train", ".")) == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"a.xml\nb.xml\n", ["a.jpg", "b.jpg"]),
        (b"A\nB\n", ["a.jpg", "b.jpg"]),
        ("a\r\nb\r\n".encode("utf-16"), ["a.jpg", "b.jpg"]),
    ],
)
def test_lists_of_voc_as_other_systems_write_them(tmp_path: Path, content: bytes, found: list[str]) -> None:
    root = write_voc(tmp_path / "set", {"a": CAT, "b": CAT}, {"train": ["a"]})
    (root / "ImageSets/Main/train.txt").write_bytes(content)
    assert names(load_voc(root, "train")) == found


@pytest.mark.parametrize("odd", ["\u2028", "\x0b", "\x85"])
def test_a_line_ends_at_its_end_alone(tmp_path: Path, odd: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names may contain characters at which str.splitlines ends a line."""
    stem = f"a{odd}b"
    root = write_voc(tmp_path / "set", {stem: CAT}, {"train": [stem]})
    assert names(load_voc(root, "train")) == [f"{stem}.jpg"]
    monkeypatch.chdir(tmp_path)
    listed = tmp_path / "list.txt"
    listed.write_text(f"set/JPEGImages/{stem}.jpg\r\rset/JPEGImages/{stem}.jpg", newline="")
    assert lines_of(listed) == [(k, f"set/JPEGImages/{stem}.jpg") for k in (1, 3)]
    assert [source.path.name for source in find_sources([str(listed)])] == [f"{stem}.jpg"]


def test_two_names_of_a_list_are_not_one_annotation(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "set", {"a": CAT}, {"train": ["a", "A"]})
    with pytest.raises(InputError, match="both would be"):
        load_voc(root, "train")


@pytest.fixture
def spelt_otherwise(tmp_path: Path) -> Path:
    """Folders that are splits: validation has Cat instead of cat, the test split has neither."""
    for name, text in (
        ("train", CAT),
        ("val", CAT.replace("cat", "Cat")),
        ("test", CAT.replace("cat", "dog")),
    ):
        write_image(tmp_path / "set" / name / "a.jpg", seed=len(name))
        (tmp_path / "set" / name / "a.xml").write_text(text)
    (tmp_path / "own.yaml").write_text("data: {format: voc, root: set}\n")
    return tmp_path / "set"


def test_a_voc_class_that_validation_spells_otherwise_is_refused(spelt_otherwise: Path) -> None:
    """As in COCO sets; otherwise the class would be left out, and there would be no AP."""
    with pytest.raises(InputError, match="split val has no category 'cat', but 'Cat'"):
        load_voc(spelt_otherwise, "val", ("cat",))
    assert not len(load_voc(spelt_otherwise, "test", ("cat",)).boxes)  # having none is no error
    words = ("own.yaml", *TINY_MODEL)
    assert_refused(train.main, words, spelt_otherwise.parent, "has no category 'cat', but 'Cat'")


def test_the_check_calls_it_an_error_too(spelt_otherwise: Path) -> None:
    done = call(check, "own.yaml", *TINY_MODEL, "--fast", cwd=spelt_otherwise.parent)
    assert done.code == 1
    assert "the class is 'Cat' in val, but 'cat' in train" in done.out and "1 error" in done.out


# ------------------------------------------------------------------------ YOLO


@pytest.mark.parametrize("listed", [False, True])
def test_labels_of_another_case_are_found_and_said(
    tmp_path: Path, listed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_yolo(tmp_path / "set", {"train/IMG_1": None, "train/IMG_2": lines(*BOXES), "val/a": None})
    (root / "labels/train/img_1.txt").write_text(lines(BOXES[0]))
    if listed:
        (root / "list.txt").write_text("images/train/IMG_1.png\nimages/train/IMG_2.png\n")
        (root / "data.yaml").write_text("train: list.txt\nnames: [cat, dog]\n")
    assert len(load_yolo(root, "train").boxes) == 3
    (message,) = caplog.messages
    assert (
        "names of label files are spelt differently on disk (1, such as img_1.txt for IMG_1.png)" in message
    )


def test_labels_beside_some_images_are_said_not_to_be_looked_at(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_yolo(tmp_path / "set", {"train/a": lines(*BOXES), "train/b": None, "train/c": None})
    (root / "images/train/b.txt").write_text(lines(BOXES[0]))
    assert len(load_yolo(root, "train").boxes) == 2
    (message,) = caplog.messages
    assert "images/train/b.txt is not used" in message and "labels/train" in message
    faults: list[DataFault] = []
    load_yolo(root, "train", faults=faults)
    assert [fault.code for fault in faults] == ["label-beside"]


def test_a_label_file_without_an_image_is_found_where_splits_are_lists(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Label files of images in the other list are not reported."""
    labels = {f"all/{name}": lines(*BOXES) for name in ("a", "b", "lost")}
    root = write_yolo(tmp_path / "set", labels, train="train.txt", val="val.txt")
    (root / "train.txt").write_text("images/all/a.png\n")
    (root / "val.txt").write_text("images/all/b.png\n")
    (root / "images/all/lost.png").unlink()
    assert len(load_yolo(root, "train")) == 1
    (message,) = caplog.messages
    assert "1 label file has no image" in message and "labels/all/lost.txt" in message


def test_labels_and_lists_may_be_utf_16(tmp_path: Path) -> None:
    root = write_yolo(tmp_path / "set", {"train/a": None})
    (root / "labels/train").mkdir(parents=True)
    (root / "labels/train/a.txt").write_bytes(lines(*BOXES).encode("utf-16"))
    (root / "list.txt").write_bytes("images/train/a.png\r\n".encode("utf-16"))
    (root / "data.yaml").write_bytes("train: list.txt\nnames: [cat, dog]\n".encode("utf-16"))
    assert len(load_yolo(root, "train").boxes) == 2


# ------------------------------------------------------------------------ COCO


def write(root: Path, content: dict[str, Any], name: str = "all.json") -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for image in content["images"]:
        write_image(root / "images" / image["file_name"], seed=len(image["file_name"]))
    (root / name).write_text(json.dumps(content))
    return root / name


@pytest.mark.parametrize(
    ("text", "numbers"),
    [(lambda k: f"{k:05}", [10, 11, 12]), (lambda k: f"img-{9 * k % 7}", [1, 2, 3])],
)
def test_ids_that_are_texts_are_numbered(
    tmp_path: Path, text: Any, numbers: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    """By their value if they are numerals, else in their order; boxes stay with their images."""
    _say.cache_clear()
    content = coco_dict([[BOX], [BOX, BOX], []])
    expected = load_coco(write(tmp_path / "numbers", content), tmp_path / "numbers/images")
    for record in content["images"]:
        record["id"] = text(record["id"])
    for record in content["categories"]:
        record["id"] = f"c{record['id']}"
    for record in content["annotations"]:
        record.update(image_id=text(record["image_id"]), category_id=f"c{record['category_id']}", id="x")
    records = load_coco(write(tmp_path / "texts", content), tmp_path / "texts/images")
    assert records.image_ids.tolist() == numbers
    assert records.category_ids == (1, 2) and records.classes == expected.classes
    for name in ("offsets", "boxes", "labels"):
        assert getattr(records, name).tolist() == getattr(expected, name).tolist()
    assert [f"'{text(10)}' is {numbers[0]}" in caplog.text, "'c3' is 1" in caplog.text] == [True, True]


def test_a_set_with_text_ids_keeps_them_where_it_is_divided_and_scored(tmp_path: Path) -> None:
    """Results of another detector have the set's ids, which numbers of our own would not match."""
    content = coco_dict([[BOX]] * 6)
    for record in content["images"]:
        record["id"] = f"img-{9 * record['id'] % 7}"
    for record in content["annotations"]:
        record["image_id"] = f"img-{9 * record['image_id'] % 7}"
    write(tmp_path / "set", content)
    assert call(split, "set/all.json", "--val", "0.5", "--fast", cwd=tmp_path).code == 0
    parts = [json.loads((tmp_path / f"set/{name}.json").read_text()) for name in ("train", "val")]
    for section in ("images", "annotations"):
        both = parts[0][section] + parts[1][section]
        assert sorted(both, key=str) == sorted(content[section], key=str)
    results = [{**record, "score": 0.5} for record in content["annotations"]]
    (tmp_path / "results.json").write_text(json.dumps(results))
    words = ("--predictions", "results.json", "--annotations", "set/all.json", "--output", "out.json")
    done = call(evaluate.main, *words, cwd=tmp_path)
    assert done.code == 0, done.err
    assert json.loads((tmp_path / "out.json").read_text())["AP"] == 1


def test_ids_in_quotes_are_those_that_the_lists_have_as_numbers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _say.cache_clear()
    content = coco_dict([[BOX], [BOX]])
    expected = load_coco(write(tmp_path / "plain", content), tmp_path / "plain/images")
    for record in content["annotations"]:
        record.update(image_id=str(record["image_id"]), category_id=str(record["category_id"]))
    path = write(tmp_path / "texts", content)
    for _ in range(2):  # as training and evaluation do: it is reported once
        records = load_coco(path, tmp_path / "texts/images")
    assert records.image_ids.tolist() == expected.image_ids.tolist() and not records.renumbered
    assert records.labels.tolist() == expected.labels.tolist()
    assert [message.partition(": ")[2] for message in caplog.messages] == [
        f"{key} is a string in 2 annotations; '{first}' is read as {first}"
        for key, first in (("image_id", 10), ("category_id", 7))
    ]


def test_a_text_among_ids_that_are_numbers_is_refused(tmp_path: Path) -> None:
    content = coco_dict([[BOX], [BOX]])
    content["images"][1]["id"] = "11"
    with pytest.raises(InputError, match="'11', a string where a number is expected"):
        load_coco(write(tmp_path, content), tmp_path / "images")


@pytest.mark.parametrize(
    ("content", "tool"),
    [
        ({"version": "5.0", "shapes": [], "imagePath": "a.jpg"}, "LabelMe"),
        ({"size": {"height": 4, "width": 5}, "objects": []}, "Supervisely"),
        ({"item": {"name": "a.jpg"}, "annotations": []}, "V7"),
    ],
)
def test_files_of_other_tools_are_known(tmp_path: Path, content: dict[str, Any], tool: str) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    assert_refused(split, (".",), tmp_path, f"one.json is in {tool}'s own format", "as COCO")
    assert_refused(split, ("one.json",), tmp_path, f"one.json is in {tool}'s own format", "as COCO")


def test_the_images_of_fiftyone_are_found(tmp_path: Path) -> None:
    write(tmp_path, coco_dict([[BOX]] * 6), "labels.json")
    (tmp_path / "images").rename(tmp_path / "data")
    done = call(split, "labels.json", "--fast", cwd=tmp_path)
    assert done.code == 0, done.err
    assert "data.images=data" in done.out


# ------------------------------------------------------------------------ EXIF


def test_half_turns_in_a_set_annotated_as_stored_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A quarter turn shows in the sides; if one image was annotated upright, nothing is reported."""
    content = coco_dict([[BOX]] * 3)
    path = write(tmp_path, content)
    for name, orientation in (("0.png", 6), ("1.png", 3), ("2.png", 1)):
        tags = Image.Exif()
        tags[0x0112] = orientation
        with Image.open(tmp_path / "images" / name) as image:
            image.save(tmp_path / "images" / name, exif=tags.tobytes())
    with caplog.at_level(logging.WARNING):
        load_coco(path, tmp_path / "images")
    (message,) = caplog.messages
    assert "1.png (id 11): EXIF turns it by half a turn" in message and "as stored" in message
    faults: list[DataFault] = []
    load_coco(path, tmp_path / "images", faults=faults)
    assert [(fault.code, fault.image_id) for fault in faults] == [("orientation-unclear", 11)]
    caplog.clear()
    content["images"][0].update(height=64, width=48)
    path.write_text(json.dumps(content))
    load_coco(path, tmp_path / "images")
    assert not caplog.messages
