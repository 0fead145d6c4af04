"""Pascal VOC folders: their content is read as written, and faults are reported in one line."""

import errno
import logging
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from data.voc import load_voc
from detector.builders.data import build_set
from detector.config import DataConfig
from errors import InputError
from tests.builders import voc_xml, write_image, write_voc

FIRST = voc_xml([("dog", (1, 2, 30, 40), 0), ("cat", (5.5, 6.25, 20, 21), 1)], name="a.jpg")
SECOND = voc_xml([("cat", (1, 1, 64, 48), 0)], name="b.jpg")


@pytest.fixture
def root(tmp_path):
    return write_voc(tmp_path / "voc", {"a": FIRST, "b": SECOND}, {"train": ["b", "a"], "val": ["b"]})


def error_of(root, split="train", classes=None) -> str:
    with pytest.raises(InputError) as raised:
        load_voc(root, split, classes)
    message = str(raised.value)
    assert "\n" not in message
    return message


def rewrite(root, old: str, new: str) -> None:
    """Change the annotation of image a, whose objects are a dog (1) and a cat (2)."""
    assert old in FIRST
    (root / "Annotations" / "a.xml").write_text(FIRST.replace(old, new))


def test_records_arrive_as_they_are_written(root):
    """Boxes are not shifted by one pixel; images are numbered in the order of the list."""
    records = load_voc(root, "train")
    assert records.classes == ("cat", "dog")
    assert records.category_ids == (1, 2)
    assert records.image_ids.tolist() == [1, 2]
    assert records.files.tolist() == [str(root / "JPEGImages" / name) for name in ("b.jpg", "a.jpg")]
    assert records.sizes.tolist() == [[48, 64], [48, 64]]
    assert records.offsets.tolist() == [0, 1, 3]
    assert records.boxes.tolist() == [[1, 1, 64, 48], [1, 2, 30, 40], [5.5, 6.25, 20, 21]]
    assert records.labels.tolist() == [0, 1, 0]
    assert records.areas.tolist() == [63 * 47, 29 * 38, 14.5 * 14.75]


def test_difficult_objects_are_ignored(root):
    assert load_voc(root, "train").ignore.tolist() == [False, False, True]
    rewrite(root, "<difficult>0</difficult>", "")
    assert load_voc(root, "train").ignore.tolist() == [False, False, True]


def test_classes_of_a_split_include_those_of_the_others(root):
    records = load_voc(root, "val")
    assert records.classes == ("cat", "dog")
    assert records.labels.tolist() == [0]


def test_classes_are_sorted_whatever_order_they_are_met_in(tmp_path):
    boxes = [(5, 6, 20, 30), (8, 9, 30, 40)]
    first = voc_xml([("zebra", boxes[0], 0), ("ant", boxes[1], 0)])
    second = voc_xml([("mole", boxes[0], 0), ("zebra", boxes[1], 0)], name="1.jpg")
    records = load_voc(write_voc(tmp_path, {"0": first, "1": second}, {"train": ["0", "1"]}), "train", None)
    assert records.classes == ("ant", "mole", "zebra")
    assert [records.classes[label] for label in records.labels] == ["zebra", "ant", "mole", "zebra"]


def test_classes_choose_and_order_the_labels(root, caplog):
    assert load_voc(root, "train", ("dog", "cat")).labels.tolist() == [1, 0, 1]
    assert caplog.messages == []
    with caplog.at_level(logging.WARNING):
        records = load_voc(root, "train", ("dog",))
    assert (records.classes, records.offsets.tolist(), records.labels.tolist()) == (("dog",), [0, 0, 1], [0])
    (warning,) = caplog.messages
    assert "2 of 'cat'" in warning


def test_class_that_no_training_annotation_has_is_refused(root):
    """A misspelt name in data.classes would otherwise be a class without training boxes."""
    config = DataConfig(format="voc", root=str(root), classes=["cat", "hrose"])
    with pytest.raises(InputError, match="'hrose'"):
        build_set(config, "train")


def test_images_without_objects_stay(root):
    (root / "Annotations" / "b.xml").write_text(voc_xml([], name="b.jpg"))
    assert load_voc(root, "train").offsets.tolist() == [0, 0, 2]


def test_box_without_area_is_dropped_with_one_warning(root, caplog):
    rewrite(root, "<ymax>40</ymax>", "<ymax>2</ymax>")
    with caplog.at_level(logging.WARNING):
        assert load_voc(root, "train").offsets.tolist() == [0, 1, 2]
    (warning,) = caplog.messages
    assert "1 box " in warning
    assert "a.jpg" in warning


def test_list_with_a_second_column_gives_its_first(root):
    (root / "ImageSets" / "Main" / "cat_train.txt").write_text("b  1\na -1\n\n")
    assert load_voc(root, "cat_train").files.tolist() == load_voc(root, "train").files.tolist()


def test_names_may_have_spaces_and_the_list_a_byte_order_mark(tmp_path):
    """ "a 1" is a name if there is such an annotation, and otherwise the name a with a second column."""
    contents = {"my image": FIRST, "b": SECOND, "b 1": FIRST}
    root = write_voc(tmp_path / "spaced", contents, {"train": list(contents)})
    (root / "ImageSets" / "Main" / "train.txt").write_text("my image\nmy image -1\nb -1\nb 1\n", "utf-8-sig")
    assert [Path(file).stem for file in load_voc(root, "train").files] == ["my image", "b", "b 1"]


def test_split_may_lie_in_a_folder_below(root):
    records = load_voc(root.parent, "voc/train")
    assert records.files.tolist() == load_voc(root, "train").files.tolist()
    np.testing.assert_array_equal(records.boxes, load_voc(root, "train").boxes)


def test_image_is_found_by_its_stem_or_else_by_the_name_in_the_xml(root):
    """An XML file that was copied or renamed may still name another image, which does not get its boxes."""
    (root / "JPEGImages" / "a.jpg").unlink()
    write_image(root / "JPEGImages" / "a.png")
    assert load_voc(root, "train").files[1] == str(root / "JPEGImages" / "a.png")
    write_image(root / "JPEGImages" / "other.jpg")
    rewrite(root, "a.jpg", "other.jpg")
    assert load_voc(root, "train").files[1] == str(root / "JPEGImages" / "a.png")
    (root / "JPEGImages" / "a.png").unlink()
    assert load_voc(root, "train").files[1] == str(root / "JPEGImages" / "other.jpg")


@pytest.mark.parametrize("name", ["a.JPEG", "a.PNG", "a.bmp", "a.tif", "a.webp"])
def test_image_of_its_stem_is_found_whatever_its_ending(root, name):
    (root / "JPEGImages" / "a.jpg").unlink()
    write_image(root / "JPEGImages" / name)
    rewrite(root, "a.jpg", "b.jpg")
    assert load_voc(root, "train").files[1] == str(root / "JPEGImages" / name)


@pytest.mark.parametrize(
    "size",
    [
        "",
        "<size><width>0</width><height>0</height></size>",
        "<size><width>0.0</width><height>0.0</height></size>",
        "<size><width>None</width><height>None</height></size>",
        "<size><width/><height/></size>",
    ],
)
def test_without_a_size_the_image_has_its_own(root, size):
    """As some tools write sizes."""
    expected = load_voc(root, "train")
    rewrite(root, "<size><width>64</width><height>48</height><depth>3</depth></size>", size)
    records = load_voc(root, "train")
    assert records.sizes.tolist() == expected.sizes.tolist()
    assert records.boxes.tolist() == expected.boxes.tolist()
    (root / "JPEGImages" / "a.jpg").unlink()
    assert f"image {root / 'JPEGImages' / 'a.jpg'} does not exist" in error_of(root)


DIFFICULT = {
    "": False,
    "false": False,
    "Unspecified": False,
    "no": False,
    "True": True,
    "1": True,
    "yes": True,
}


@pytest.mark.parametrize("word", DIFFICULT)
def test_difficult_may_be_a_word(root, word):
    rewrite(root, "<difficult>0", f"<difficult>{word}")
    assert load_voc(root, "train").ignore[1] == DIFFICULT[word]


@pytest.mark.parametrize("name", ["/home/me/pictures/a.jpg", "../a.jpg", "C:\\pictures\\a.jpg"])
def test_a_name_that_leads_elsewhere_counts_only_where_it_is_needed(root, name):
    expected = load_voc(root, "train").files.tolist()
    rewrite(root, "a.jpg", name)
    assert load_voc(root, "train").files.tolist() == expected
    (root / "JPEGImages" / "a.jpg").unlink()
    assert "a.xml names the image" in error_of(root) and "outside" in error_of(root)


@pytest.mark.parametrize("line", ["a.jpg", "a.JPG", "JPEGImages/a.jpg", "/data/voc/JPEGImages/a.png"])
def test_lists_may_name_the_image_files(root, line):
    (root / "ImageSets" / "Main" / "train.txt").write_text(f"b\n{line}\n")
    assert [Path(file).stem for file in load_voc(root, "train").files] == ["b", "a"]


@pytest.mark.parametrize("line", ["/", ".", "..", "a/"])
def test_a_line_that_names_no_image_is_told(root, line):
    (root / "ImageSets" / "Main" / "train.txt").write_text(f"b\n{line}\n")
    with pytest.raises(InputError, match=r"does not exist|points outside"):
        load_voc(root, "train")


def test_images_may_lie_in_a_folder_of_another_name_or_beside_the_annotations(root):
    """As Label Studio and labelImg leave them; Roboflow has a folder for each split, without lists."""
    expected = load_voc(root, "train")

    def boxes(records):
        return dict(
            zip([Path(f).name for f in records.files], np.diff(records.offsets).tolist(), strict=True)
        )

    (root / "JPEGImages").rename(root / "images")
    assert boxes(load_voc(root, "train")) == boxes(expected)
    for path in [*(root / "images").iterdir(), *(root / "Annotations").iterdir()]:
        path.rename(root / path.name)
    (root / "images").rmdir()
    (root / "Annotations").rmdir()
    assert boxes(load_voc(root, "train")) == boxes(expected)
    assert load_voc(root, "train").classes == expected.classes
    (root / "Annotations").mkdir()
    (root / "images").mkdir()
    for path in root.glob("*.jpg"):
        path.rename(root / "images" / path.name)
    assert boxes(load_voc(root, "train")) == boxes(expected)


def test_a_folder_may_be_a_split_and_be_joined_with_others(tmp_path):
    """As Roboflow exports: images and XML files of each split in a folder named after it."""
    for split, kind in (("train", "dog"), ("valid", "cat")):
        write_image(tmp_path / split / "a.jpg")
        (tmp_path / split / "a.xml").write_text(voc_xml([(kind, (1, 2, 30, 40), 0)], name="a.jpg"))
    records = load_voc(tmp_path, "train")
    assert (records.files.tolist(), records.classes) == ([str(tmp_path / "train/a.jpg")], ("dog",))
    config = DataConfig(
        format="voc", root=str(tmp_path), splits={"train": ["train", "valid"], "val": "valid"}
    )
    joined = build_set(config, "train")
    assert (joined.classes, joined.labels.tolist()) == (("cat", "dog"), [1, 0])


def test_of_two_images_with_its_stem_that_is_taken_which_the_xml_names(root):
    write_image(root / "JPEGImages" / "a.bmp")
    assert load_voc(root, "train").files[1] == str(root / "JPEGImages" / "a.jpg")
    rewrite(root, "a.jpg", "a.bmp")
    assert load_voc(root, "train").files[1] == str(root / "JPEGImages" / "a.bmp")


def test_folders_of_splits_are_named_where_the_usual_ones_are_not_there(tmp_path):
    for part in ("valid", "train"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "a.xml").touch()
        (tmp_path / part / "a.jpg").touch()
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "a.xml").touch()
    with pytest.raises(
        InputError, match=r"Annotations does not exist.* name the folders in data\.splits: here train, valid$"
    ):
        load_voc(tmp_path, "trainval")


def test_annotations_in_folders_below_count_and_hidden_files_do_not(tmp_path):
    """As CVAT and Datumaro write images in folders; macOS puts "._a.xml" into archives."""
    cat = voc_xml([("cat", (1, 2, 30, 40), 0)], name="a.jpg")
    root = write_voc(tmp_path / "voc", {"a": cat}, {"train": ["a"]})
    for folder in ("Annotations", "JPEGImages"):
        (root / folder / "cam1").mkdir()
    write_image(root / "JPEGImages" / "cam1" / "a.jpg")
    (root / "Annotations" / "cam1" / "a.xml").write_text(voc_xml([("dog", (3, 4, 5, 6), 0)], name="a.jpg"))
    (root / "Annotations" / "._a.xml").write_bytes(b"\x00\x05\x16\x07")
    (root / "ImageSets" / "Main" / "train.txt").write_text("a\ncam1\\a\n")  # as on Windows
    records = load_voc(root, "train")
    assert records.classes == ("cat", "dog")
    assert records.labels.tolist() == [0, 1]
    assert records.files.tolist() == [str(root / "JPEGImages" / name) for name in ("a.jpg", "cam1/a.jpg")]


WRONG_XML = {  # old text, new text -> what the message says
    "torn": (("</annotation>", ""), "not valid XML"),
    "namespace": (("<annotation>", '<annotation xmlns="http://a.b">'), "a.xml: its elements are in an XML"),
    "no box": (("bndbox>", "box>"), "has no <bndbox/xmin>"),
    "side missing": (("<xmin>1</xmin>", ""), "has no <bndbox/xmin>"),
    "side empty": (("<xmin>1</xmin>", "<xmin/>"), "has no <bndbox/xmin>"),
    "side as text": (("<xmin>1</xmin>", "<xmin>one</xmin>"), "not a number: 'one'"),
    "NaN": (("<xmin>1</xmin>", "<xmin>nan</xmin>"), "NaN"),
    "infinite": (("<xmax>30</xmax>", "<xmax>inf</xmax>"), "infinite"),
    "reversed x": (("<xmax>30</xmax>", "<xmax>0</xmax>"), "negative width"),
    "reversed y": (("<ymax>40</ymax>", "<ymax>0</ymax>"), "negative height"),
    "no name": (("<name>dog</name>", ""), "has no <name>"),
    "size as text": (("<width>64</width>", "<width>wide</width>"), "<size/width> is not a number: 'wide'"),
    "size NaN": (("<width>64</width>", "<width>nan</width>"), "size/width"),
    "size infinite": (("<width>64</width>", "<width>inf</width>"), "size/width"),
    "size negative": (("<width>64</width>", "<width>-1</width>"), r"a\.xml: size/width is -1"),
    "other size": (("<width>64</width>", "<width>46</width>"), "a.jpg is 64 x 48 px.*46 x 48"),
}


@pytest.mark.parametrize(("change", "problem"), WRONG_XML.values(), ids=WRONG_XML)
def test_wrong_annotation_is_named(root, change, problem):
    rewrite(root, *change)
    message = error_of(root)
    assert re.search(problem, message)
    assert "a.xml" in message or str(root / "JPEGImages" / "a.jpg") in message


def test_an_annotation_file_that_cannot_be_read_is_not_called_wrong(root, monkeypatch):
    def refuse(path: Path) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr("xml.etree.ElementTree.parse", refuse)
    assert re.search(r"[ab]\.xml cannot be read: Stale file handle$", error_of(root))


def test_wrong_box_is_named_by_its_place_in_the_file(root):
    rewrite(root, "<xmax>20</xmax>", "<xmax>2</xmax>")
    message = error_of(root)
    assert f"object 2 in {root / 'Annotations' / 'a.xml'}" in message
    assert "'a.jpg'" in message


@pytest.mark.parametrize("stem", ["../a", "../../outside", "/tmp/a"])
def test_list_does_not_lead_out_of_the_folder(root, stem):
    (root.parent / "outside.xml").write_text(FIRST)
    (root / "ImageSets" / "Main" / "train.txt").write_text(f"b\n{stem}\n")
    message = error_of(root)
    assert f"{stem}.xml" in message
    assert "outside" in message


def test_missing_files_are_named(root):
    assert "there are: train, val" in error_of(root, "test")
    (root / "ImageSets" / "Main" / "train.txt").write_text("b\nc\n")
    assert f"{root / 'Annotations' / 'c.xml'} does not exist" in error_of(root)
    (root / "JPEGImages" / "b.jpg").unlink()
    assert f"{root / 'JPEGImages' / 'b.jpg'} does not exist" in error_of(root, "val")
    (root / "JPEGImages").rename(root / "Pictures")
    assert f"{root / 'JPEGImages'} does not exist" in error_of(root)


def test_what_a_mac_leaves_beside_files_is_no_annotation(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.xml").write_text(voc_xml([("cat", (4, 5, 24, 23), 0)]))
    write_image(tmp_path / "train" / "a.jpg")
    (tmp_path / "train" / "._a.xml").write_bytes(b"\0\5\x16\7")
    assert len(load_voc(tmp_path, "train")) == 1


def test_empty_list_is_refused_by_name(root):
    (root / "ImageSets" / "Main" / "train.txt").write_text("\n")
    config = DataConfig(format="voc", root=str(root))
    with pytest.raises(InputError, match=r"data\.splits\.train.*has no images"):
        build_set(config, "train")
    assert len(build_set(config, "val")) == 1


def test_list_that_is_no_text_is_named(root):
    (root / "ImageSets" / "Main" / "train.txt").write_bytes(b"\xff\xfe\x00")
    assert "train.txt cannot be read" in error_of(root)


def test_joined_folders_share_the_classes_of_both(tmp_path):
    """VOC2007 + VOC2012: neither folder need hold all classes."""
    write_voc(tmp_path / "old", {"a": voc_xml([("dog", (1, 2, 30, 40), 0)], name="a.jpg")}, {"train": ["a"]})
    write_voc(tmp_path / "new", {"a": voc_xml([("cat", (3, 4, 5, 6), 0)], name="a.jpg")}, {"train": ["a"]})
    config = DataConfig(format="voc", root=str(tmp_path), splits={"train": ["old/train", "new/train"]})
    records = build_set(config, "train")
    assert records.classes == ("cat", "dog")
    assert records.labels.tolist() == [1, 0]
    assert records.boxes.tolist() == [[1, 2, 30, 40], [3, 4, 5, 6]]
    assert len(set(records.image_ids.tolist())) == 2


def test_an_image_that_its_xml_names_has_an_xml_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """a.jpg.xml beside a.jpg; and b.xml beside B.jpg, whose name it has right."""
    for name, xml in (("a.jpg", "a.jpg.xml"), ("B.jpg", "b.xml")):
        write_image(tmp_path / "set" / name)
        (tmp_path / "set" / xml).write_text(voc_xml([("cat", (1, 2, 30, 40), 0)], name=name))
    assert len(load_voc(tmp_path, "set")) == 2
    assert "no .xml" not in caplog.text
    write_image(tmp_path / "set" / "c.jpg")
    assert len(load_voc(tmp_path, "set")) == 2
    assert "1 of 3 images" in caplog.text and "such as c;" in caplog.text


@pytest.mark.parametrize("folders", [("Annotations", "JPEGImages"), ("annotations", "images")])
def test_a_split_may_have_folders_of_its_own_and_no_list(tmp_path: Path, folders: tuple[str, str]) -> None:
    for part, kind in (("train", "dog"), ("valid", "cat")):
        xml, images = (tmp_path / part / folder for folder in folders)
        write_image(images / "a.jpg")
        xml.mkdir()
        (xml / "a.xml").write_text(voc_xml([(kind, (1, 2, 30, 40), 0)], name="a.jpg"))
    records = load_voc(tmp_path, "train")
    assert records.files.tolist() == [str(tmp_path / "train" / folders[1] / "a.jpg")]
    assert records.classes == ("dog",)


def test_the_only_image_of_a_name_is_meant_wherever_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """But not an image that has an XML file of its own, nor either of two."""
    xml = voc_xml([("cat", (1, 2, 30, 40), 0)], name="a.jpg")
    root = write_voc(tmp_path / "voc", {"a": xml}, {"train": ["a"]})
    images = root / "JPEGImages"
    (images / "cam1").mkdir()
    (images / "a.jpg").rename(images / "cam1" / "a.jpg")
    assert load_voc(root, "train").files.tolist() == [str(images / "cam1" / "a.jpg")]
    assert "1 images are in different folders than their XML files" in caplog.text
    (images / "cam2").mkdir()
    write_image(images / "cam2" / "a.jpg")
    with pytest.raises(InputError, match=r"a\.jpg does not exist"):
        load_voc(root, "train")
    (images / "cam2" / "a.jpg").unlink()
    (root / "Annotations" / "cam1").mkdir()
    (root / "Annotations" / "cam1" / "a.xml").write_text(xml)
    with pytest.raises(InputError, match=r"a\.jpg does not exist"):
        load_voc(root, "train")


def test_no_image_is_that_of_two_or_of_one_that_is_missing_among_others(tmp_path: Path) -> None:
    xml = voc_xml([("cat", (1, 2, 30, 40), 0)], name="1.jpg")
    root = write_voc(tmp_path / "two", {"a/1": xml, "b/1": xml}, {"train": ["a/1", "b/1"]})
    shutil.rmtree(root / "JPEGImages")
    write_image(root / "JPEGImages" / "c" / "1.jpg")
    with pytest.raises(InputError, match=r"1\.jpg does not exist"):
        load_voc(root, "train")
    root = write_voc(
        tmp_path / "masks", {"1": xml, "2": xml.replace("1.jpg", "2.jpg")}, {"train": ["1", "2"]}
    )
    (root / "JPEGImages" / "2.jpg").unlink()
    write_image(root / "JPEGImages" / "masks" / "2.png")
    with pytest.raises(InputError, match=r"2\.jpg does not exist"):
        load_voc(root, "train")


def test_a_folder_that_is_a_split_may_have_lists_of_its_own(tmp_path: Path) -> None:
    """As data.split leaves it."""
    write_image(tmp_path / "train" / "a.jpg")
    (tmp_path / "train" / "a.xml").write_text(voc_xml([("cat", (1, 2, 30, 40), 0)], name="a.jpg"))
    (tmp_path / "train" / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "train" / "ImageSets" / "Main" / "train.txt").write_text("a\n")
    assert len(load_voc(tmp_path, "train")) == 1


def test_a_rotation_as_cvat_writes_it_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    turn = "<attributes><attribute><name>rotation</name><value>{}</value></attribute></attributes></object>"
    xml = voc_xml([("cat", (1, 2, 30, 40), 0), ("cat", (5, 2, 30, 40), 0), ("cat", (9, 2, 30, 40), 0)])
    for value in ("45.0", "0.0"):
        xml = xml.replace("</object>", turn.format(value).replace("</object>", "</ object>"), 1)
    root = write_voc(tmp_path / "voc", {"0": xml.replace("</ object>", "</object>")}, {"train": ["0"]})
    assert len(load_voc(root, "train").boxes) == 3
    (message,) = caplog.messages
    assert message.startswith("object 1 in ") and "0.xml has a rotation, which is ignored" in message
