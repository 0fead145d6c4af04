"""COCO instances files: their content is read as written, and faults are reported in one line."""

import errno
import gc
import json
import logging
import math
import re
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.categories import plain_name, used_categories
from data.coco import load_coco
from data.faults import DataFault
from data.sample import is_listed
from errors import InputError
from tests.builders import coco_dict, write_image


@pytest.fixture
def content(tmp_path):
    """Two images of 64 x 48 px: a dog (annotation 1) and a cat (2) in 0.png, a dog (3) in 1.png."""
    for name in ("0.png", "1.png"):
        write_image(tmp_path / "images" / name)
    return coco_dict([[[4, 5, 20, 18], [30, 10, 24, 20]], [[1, 2, 3, 4]]])


def load(root, content, classes=None):
    path = root / "set.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return load_coco(path, root / "images", classes)


def error_of(root, content, classes=None) -> str:
    with pytest.raises(InputError) as raised:
        load(root, content, classes)
    message = str(raised.value)
    assert "\n" not in message
    return message


def test_records_arrive_as_they_are_written(tmp_path, content):
    content["annotations"][0]["area"] = -1  # as some tools write if there is none
    content["annotations"][1]["area"] = 123.5
    del content["annotations"][2]["area"]
    records = load(tmp_path, content)
    assert records.classes == ("cat", "dog")
    assert records.category_ids == (3, 7)
    assert records.image_ids.tolist() == [10, 11]
    assert records.files.tolist() == [str(tmp_path / "images" / name) for name in ("0.png", "1.png")]
    assert records.sizes.tolist() == [[48, 64], [48, 64]]
    assert records.offsets.tolist() == [0, 2, 3]
    assert records.boxes.tolist() == [[4, 5, 24, 23], [30, 10, 54, 30], [1, 2, 4, 6]]
    assert records.labels.tolist() == [1, 0, 1]
    assert records.ignore.tolist() == [False, False, False]
    assert records.areas.tolist() == [20 * 18, 123.5, 3 * 4]


def test_whole_numbers_written_as_floats_are_ids(tmp_path, content):
    """As pandas writes them; other floats are not ids."""
    expected = load(tmp_path, content)
    for record in (*content["images"], *content["categories"]):
        record["id"] = float(record["id"])
    content["images"][0].update(width=64.0, height=48.0)
    for record in content["annotations"]:
        record.update(image_id=float(record["image_id"]), category_id=float(record["category_id"]))
    records = load(tmp_path, content)
    assert records.image_ids.tolist() == expected.image_ids.tolist()
    assert records.labels.tolist() == expected.labels.tolist()
    content["annotations"][0]["image_id"] = 10.5
    assert "10.5" in error_of(tmp_path, content)


def test_boxes_go_to_their_image_in_any_order_of_the_file(tmp_path, content):
    content["annotations"].reverse()
    records = load(tmp_path, content)
    assert records.offsets.tolist() == [0, 2, 3]
    assert records.boxes.tolist() == [[30, 10, 54, 30], [4, 5, 24, 23], [1, 2, 4, 6]]
    assert records.labels.tolist() == [0, 1, 1]


def test_crowds_are_ignored(tmp_path, content):
    content["annotations"][1]["iscrowd"] = 1
    del content["annotations"][2]["iscrowd"]
    content["annotations"][0]["iscrowd"] = None
    assert load(tmp_path, content).ignore.tolist() == [False, True, False]
    for number, crowd in ((0, False), (1, True), (2, 0.0)):
        content["annotations"][number]["iscrowd"] = crowd
    assert load(tmp_path, content).ignore.tolist() == [False, True, False]


@pytest.mark.parametrize("value", ["0", "false", math.nan, 2, [0]])
def test_a_crowd_that_is_neither_yes_nor_no_is_refused(tmp_path, content, value):
    """Python takes each of these as true, which would make crowds of whole sets."""
    content["annotations"][1]["iscrowd"] = value
    with pytest.raises(InputError, match=r"annotation 2 in .*: iscrowd must be 0 or 1, got .*0\.png"):
        load(tmp_path, content)


def test_images_without_boxes_stay(tmp_path, content):
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] == 11]
    records = load(tmp_path, content)
    assert records.offsets.tolist() == [0, 0, 1]
    content["annotations"] = []
    records = load(tmp_path, content)
    assert records.offsets.tolist() == [0, 0, 0]
    assert records.boxes.shape == (0, 4)


def test_classes_choose_and_order_the_labels(tmp_path, content):
    records = load(tmp_path, content, ("dog", "cat"))
    assert (records.classes, records.category_ids) == (("dog", "cat"), (7, 3))
    assert records.labels.tolist() == [0, 1, 0]
    records = load(tmp_path, content, ("cat",))
    assert (records.classes, records.category_ids) == (("cat",), (3,))
    assert records.offsets.tolist() == [0, 1, 1]
    assert records.boxes.tolist() == [[30, 10, 54, 30]]
    assert records.labels.tolist() == [0]


def test_labels_follow_the_ids_not_the_order_in_the_file(tmp_path, content):
    content["categories"].reverse()
    records = load(tmp_path, content)
    assert (records.classes, records.labels.tolist()) == (("cat", "dog"), [1, 0, 1])


def test_a_class_that_a_file_does_not_list_has_no_box_there(tmp_path, content, caplog):
    """As in a validation file that lists only the classes that occur in it."""
    records = load(tmp_path, content, ("horse", "cat"))
    assert (records.classes, records.labels.tolist()) == (("horse", "cat"), [1])
    assert [is_listed(i) for i in records.category_ids] == [False, True]
    assert records.category_ids[1] == 3
    assert caplog.messages == [
        f"{tmp_path / 'set.json'} does not list 'horse', and so has no boxes of it; its classes are cat, dog",
        f"{tmp_path / 'set.json'}: left out objects of classes that are not used: 2 of 'dog'",
    ]


@pytest.mark.parametrize(
    ("classes", "problem"),
    [
        (("horse", "cow"), "no category 'horse'; its classes are"),
        (("cat", "Dog "), "no category 'Dog ', but 'dog'; its classes are"),
        (("cat", "d-o_g"), "no category 'd-o_g', but 'dog'; its classes are"),
    ],
)
def test_classes_of_another_set_or_spelling_are_named_with_those_there_are(
    tmp_path, content, classes, problem
):
    message = error_of(tmp_path, content, classes)
    assert problem in message
    assert "cat, dog" in message
    assert "set.json" in message


def test_boxes_without_area_are_dropped_with_one_warning(tmp_path, content, caplog):
    flat, thin, outside = (dict(content["annotations"][2], id=k) for k in (4, 5, 6))
    flat["bbox"], thin["bbox"], outside["bbox"] = [5, 5, 9, 0], [5, 5, 0, 9], [64, 5, 10, 10]
    outside["image_id"] = 10
    content["annotations"] += [flat, thin, outside]
    with caplog.at_level(logging.WARNING):
        records = load(tmp_path, content)
    assert records.offsets.tolist() == [0, 2, 3]
    assert records.boxes.tolist() == [[4, 5, 24, 23], [30, 10, 54, 30], [1, 2, 4, 6]]
    (warning,) = caplog.messages
    for part in ("set.json", "3 boxes", "0.png", "1.png"):
        assert part in warning


def test_sound_set_warns_of_nothing(tmp_path, content, caplog):
    with caplog.at_level(logging.WARNING):
        load(tmp_path, content)
    assert caplog.messages == []


WRONG_ANNOTATIONS = {  # what is wrong with annotation 2, in image 0.png -> what the message says
    "negative width": ({"bbox": [30, 10, -4, 9]}, "negative width"),
    "negative height": ({"bbox": [30, 10, 4, -9]}, "negative height"),
    "NaN": ({"bbox": [30, 10, math.nan, 9]}, "NaN"),
    "infinite": ({"bbox": [30, 10, math.inf, 9]}, "infinite"),
    "beyond all floats": ({"bbox": [30, 10, 10**400, 9]}, "infinite"),
    "three numbers": ({"bbox": [30, 10, 4]}, "bbox must be four numbers"),
    "null": ({"bbox": None}, "bbox must be four numbers"),
    "null inside": ({"bbox": [30, None, 4, 9]}, "bbox must be four numbers"),
    "text": ({"bbox": [30, 10, "4", 9]}, "bbox must be four numbers"),
    "unlisted category": ({"category_id": 4}, "category id 4.*not listed"),
    "category as list": ({"category_id": [7]}, "category id.*not listed"),
    "NaN area": ({"area": math.nan}, "area"),
}


@pytest.mark.parametrize(("change", "problem"), WRONG_ANNOTATIONS.values(), ids=WRONG_ANNOTATIONS)
def test_wrong_annotation_is_named_with_file_and_image(tmp_path, content, change, problem):
    content["annotations"][1] |= change
    message = error_of(tmp_path, content)
    assert re.search(problem, message)
    for part in ("annotation 2 ", str(tmp_path / "set.json"), "0.png"):
        assert part in message


@pytest.mark.parametrize("key", ["bbox", "category_id", "image_id"])
def test_missing_field_of_an_annotation_is_named(tmp_path, content, key):
    del content["annotations"][1][key]
    message = error_of(tmp_path, content)
    for part in ("annotation 2 ", str(tmp_path / "set.json"), f"'{key}'"):
        assert part in message
    faults: list[DataFault] = []
    load_coco(tmp_path / "set.json", tmp_path / "images", faults=faults)
    (place,) = ((fault.image, fault.image_id, fault.annotation) for fault in faults)
    assert place == ((tmp_path / "images" / "0.png", 10, 2) if key == "bbox" else (None, None, 2))


@pytest.mark.parametrize("image_id", [99, None, [10]])
def test_annotation_of_an_unlisted_image_is_named(tmp_path, content, image_id):
    content["annotations"][1]["image_id"] = image_id
    message = error_of(tmp_path, content)
    for part in ("annotation 2 ", str(tmp_path / "set.json"), f"image id {image_id}"):
        assert part in message


WRONG_IMAGES = {  # what is wrong with image 10 -> what the message says
    "climbs out": ({"file_name": "../outside.png"}, r"'\.\./outside\.png'.*outside"),
    "climbs out later": ({"file_name": "a/../../outside.png"}, "outside"),
    "climbs out with backslashes": ({"file_name": "..\\outside.png"}, "outside"),
    "drive": ({"file_name": "C:\\outside.png"}, "outside"),
    "empty name": ({"file_name": ""}, "image id 10"),
    "height as text": ({"height": "48"}, "image id 10.*height must be a number of pixels.*'48'"),
    "a negative width": ({"width": -4}, "image id 10.*width must be a number of pixels.*-4"),
    "a width that is true": ({"width": True}, "image id 10.*width must be .*True"),
    "id as text": ({"id": "10"}, "id must be an integer"),
    "id as list": ({"id": [10]}, "id must be an integer"),
    "id beyond 64 bits": ({"id": 2**70}, "id must fit 64 bits"),
    "duplicate id": ({"id": 11}, "image id 11 is listed twice"),
}


@pytest.mark.parametrize(("change", "problem"), WRONG_IMAGES.values(), ids=WRONG_IMAGES)
def test_wrong_image_is_named(tmp_path, content, change, problem):
    write_image(tmp_path / "outside.png")
    content["images"][0] |= change
    content["annotations"] = []
    message = error_of(tmp_path, content)
    assert re.search(problem, message)
    assert str(tmp_path / "set.json") in message


def test_names_written_on_windows_are_found(tmp_path, content):
    """On other systems a backslash is an ordinary character, which a file name may contain."""
    content["images"][0]["file_name"] = "left\\mixed/0.png"
    content["images"][1]["file_name"] = "left\\1.png"
    write_image(tmp_path / "images" / "left" / "mixed" / "0.png")
    write_image(tmp_path / "images" / "left\\1.png")
    expected = [
        str(tmp_path / "images" / "left" / "mixed" / "0.png"),
        str(tmp_path / "images" / "left\\1.png"),
    ]
    assert load(tmp_path, content).files.tolist() == expected


@pytest.mark.parametrize(("there", "written"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_accents_may_be_written_in_another_way(tmp_path, content, there, written):
    """macOS stores a letter and its accent separately, so its archives contain such names."""
    name, said = (unicodedata.normalize(form, "caf\u00e9.png") for form in (there, written))
    assert name != said
    (tmp_path / "images" / content["images"][0]["file_name"]).rename(tmp_path / "images" / name)
    content["images"][0]["file_name"] = said
    assert load(tmp_path, content).files[0] == str(tmp_path / "images" / name)


def test_names_may_differ_in_case_where_one_file_alone_is_meant(tmp_path, content, caplog):
    """Windows and macOS ignore case."""
    name = content["images"][0]["file_name"]
    content["images"][0]["file_name"] = name.upper()
    assert load(tmp_path, content).files[0] == str(tmp_path / "images" / name)
    said = f"file names are spelt differently on disk (1, such as '{name.upper()}' for {name})"
    assert caplog.messages == [f"{tmp_path / 'set.json'}: {said}"]
    content["images"][0]["file_name"] = name.replace("png", "PnG")
    (tmp_path / "images" / name.upper()).write_bytes(b"another")
    assert "PnG does not exist" in error_of(tmp_path, content)


@pytest.mark.parametrize("order", [1, -1])
def test_two_names_that_differ_in_case_are_not_one_image(tmp_path, content, order):
    """One is the name of the file, the other that of a file that is missing."""
    first, second = content["images"][:2]
    second["file_name"] = first["file_name"].upper()
    content["images"] = content["images"][::order]
    said = error_of(tmp_path, content)
    assert f"'{first['file_name']}'" in said and f"'{second['file_name']}'" in said
    assert said.endswith(f"both would be {tmp_path / 'images' / first['file_name']}")


def test_what_is_written_otherwise_may_be_so_in_several_ways(tmp_path, content):
    """Paths of another disk, in another case and with separate accents, and without a size."""
    name = content["images"][0]["file_name"]
    (tmp_path / "images" / name).rename(tmp_path / "images" / "caf\u00e9.png")
    expected = load(
        tmp_path,
        {
            **content,
            "images": [{**content["images"][0], "file_name": "caf\u00e9.png"}, *content["images"][1:]],
        },
    )
    for other in ("CAFE\u0301.PNG", "C:\\my\\cafe\u0301.png", "/home/me/CAF\u00c9.png"):
        content["images"][0] = {"id": content["images"][0]["id"], "file_name": other}
        records = load(tmp_path, content)
        assert records.files.tolist() == expected.files.tolist()
        assert records.sizes.tolist() == expected.sizes.tolist()


@pytest.mark.parametrize("letter", ["x", "\u00e9"])
def test_a_name_that_no_file_can_have_is_that_of_a_missing_image(tmp_path, content, letter):
    content["images"][0]["file_name"] = f"{letter * 300}.png"
    assert f"{letter * 300}.png does not exist" in error_of(tmp_path, content)


@pytest.mark.parametrize(
    "name",
    ["/home/me/pictures/0.png", "../../upload/1/0.png", "C:\\pictures\\0.png", "/data/files/?d=up/0.png"],
)
def test_of_a_path_that_leads_elsewhere_the_image_of_that_name_is_taken(tmp_path, content, name, caplog):
    """Annotation tools write paths on their own disks; but one image is not used for two entries."""
    expected = load(tmp_path, content).files.tolist()
    content["images"][0]["file_name"] = name
    assert load(tmp_path, content).files.tolist() == expected
    (message,) = caplog.messages
    assert (
        f"lead out of {tmp_path / 'images'}; the images of the same names in that folder are used (1, such as"
        in message
    )
    content["images"][1]["file_name"] = "/another/0.png"
    assert "both would be" in error_of(tmp_path, content)
    content["images"][1]["file_name"] = "/another/gone.png"
    assert "points outside" in error_of(tmp_path, content)


@pytest.mark.parametrize(
    "name",
    [
        "/home/me/set/Cam 1/0.png",
        "C:\\set\\cam 1\\0.PNG",
        "../images/cam 1/0.png",
        "https://host.org/up/cam%201/0.png?token=a/b",
        "/data/local-files/?d=cam 1/0.png",
        "/data/local-files/?d=cam%201%2F0.png",
        "CAM 1/0.png",
        "cam%201/0.png",
    ],
)
def test_of_a_path_elsewhere_as_much_is_taken_as_there_is(tmp_path, content, name):
    """The last part of the path is also another image's name. Upper case is as Windows may write it."""
    write_image(tmp_path / "images" / "cam 1" / "0.png")
    content["images"][1]["file_name"] = "0.png"
    content["images"][0]["file_name"] = name
    expected = [str(tmp_path / "images" / "cam 1" / "0.png"), str(tmp_path / "images" / "0.png")]
    assert load(tmp_path, content).files.tolist() == expected


def test_an_image_that_is_only_at_its_address_has_to_be_downloaded(tmp_path, content):
    content["images"][0]["file_name"] = "s3://bucket/cam/gone.png"
    message = error_of(tmp_path, content)
    assert f"a URL; download it into {tmp_path / 'images'}" in message and "image id" in message


@pytest.mark.parametrize("change", [{"height": 0, "width": 0}, {"height": None}, {}])
def test_without_a_size_the_image_has_its_own(tmp_path, content, change):
    expected = load(tmp_path, content).sizes.tolist()
    del content["images"][0]["width"]
    content["images"][0] |= change
    assert load(tmp_path, content).sizes.tolist() == expected
    content["images"][0]["file_name"] = "gone.png"
    assert "gone.png does not exist" in error_of(tmp_path, content)


@pytest.mark.parametrize("box", [[], None])
def test_without_a_box_that_of_the_polygons_is_taken(tmp_path, content, box):
    """By hand: the corners of two polygons."""
    content["annotations"][1] |= {
        "bbox": box,
        "segmentation": [[30, 12, 40, 10, 35, 20], [50, 25, 54, 30, 40, 30]],
    }
    records = load(tmp_path, content, ("cat",))
    assert records.boxes.tolist() == [[30, 10, 54, 30]]
    for none in ([[5]], [[]], ["x"], [[1, "2"]]):
        content["annotations"][1]["segmentation"] = none
        assert "bbox must be four numbers" in error_of(tmp_path, content)
    content["annotations"][1]["segmentation"] = {"counts": "abc", "size": [4, 4]}
    assert error_of(tmp_path, content).endswith("has no 'bbox'; add one, since RLE masks are not decoded")


def test_the_layout_of_roboflow_is_told_with_all_its_settings(tmp_path, content):
    for name in ("train", "valid"):
        (tmp_path / "set" / name).mkdir(parents=True)
        (tmp_path / "set" / name / "_annotations.coco.json").write_text(json.dumps(content))
    settings = (
        "set data.annotations={split}/_annotations.coco.json data.images={split} data.splits.train=train "
        "data.splits.val=valid data.splits.test=null"
    )
    for folder in ("images", "train"):
        with pytest.raises(InputError, match=re.escape(settings)):
            load_coco(tmp_path / "set/annotations/train.json", tmp_path / "set" / folder)


@pytest.mark.parametrize("name", ["\ud83d.png", "a\0.png"])
def test_a_name_that_no_file_can_have_is_that_of_none(tmp_path, content, name):
    content["images"][0]["file_name"] = name
    assert "does not exist" in error_of(tmp_path, content)


def test_label_studios_own_format_is_known(tmp_path, content):
    tasks = [{"id": 1, "data": {"image": "/data/upload/0.png"}, "annotations": []}]
    assert "Label Studio's own format; export" in error_of(tmp_path, json.dumps(tasks))


@pytest.mark.parametrize(
    ("turn", "said"), [(45.0, True), (90, True), (0.0, False), (180, False), (None, False)]
)
def test_a_rotated_box_is_said(tmp_path, content, turn, said, caplog):
    """CVAT writes the box as it was before the rotation, and the angle in degrees beside it."""
    content["annotations"][0]["attributes"] = {"occluded": False, "rotation": turn}
    records = load(tmp_path, content)
    assert len(records.boxes) == len(content["annotations"])
    assert any("has a rotation" in message for message in caplog.messages) == said


def test_an_image_that_nobody_can_look_for_is_not_said_to_be_missing(tmp_path, content, monkeypatch):
    """Its annotation must not be removed just because a disk is unavailable."""
    stat = Path.stat

    def away(path: Path, **given: Any) -> Any:
        if path.name == "0.png":
            raise OSError(errno.ESTALE, "Stale file handle")
        return stat(path, **given)

    monkeypatch.setattr(Path, "stat", away)
    monkeypatch.setattr("data.annotations.is_file", lambda path: path.name != "0.png")
    message = error_of(tmp_path, content)
    assert "0.png cannot be read: " in message and "Stale file handle" in message
    assert "remove" not in message


def test_only_where_all_images_lie_elsewhere_is_another_folder_named(tmp_path, content):
    """A single image that was moved is missing like any other."""
    (tmp_path / "rejected").mkdir()
    (tmp_path / "images" / "0.png").rename(tmp_path / "rejected" / "0.png")
    assert "0.png does not exist" in error_of(tmp_path, content)
    (tmp_path / "images" / "1.png").rename(tmp_path / "rejected" / "1.png")
    assert f"0.png, are not in {tmp_path / 'images'} but in" in error_of(tmp_path, content)
    (tmp_path / "rejected" / "1.png").unlink()
    assert "0.png does not exist (and 1 more" in error_of(tmp_path, content)


def test_a_mark_that_counts_for_nothing_is_said_once(tmp_path, content, caplog):
    for annotation in content["annotations"][:2]:
        annotation["ignore"] = 1
    content["annotations"][1]["iscrowd"] = 1
    assert load(tmp_path, content).ignore.tolist() == [False, True, False]
    (message,) = caplog.messages
    assert re.match(
        r"annotation 1 in .*set\.json has ignore: 1, which has no effect; to leave a region out, use iscrowd",
        message,
    )
    faults = []
    load_coco(tmp_path / "set.json", tmp_path / "images", faults=faults)
    assert [fault.code for fault in faults] == ["ignore-unused"]


def test_an_address_serves_where_there_is_no_name(tmp_path, content):
    """As in LVIS."""
    expected = load(tmp_path, content).files.tolist()
    for image in content["images"]:
        image["coco_url"] = f"http://images.cocodataset.org/train2017/{image.pop('file_name')}"
    assert load(tmp_path, content).files.tolist() == expected


def test_links_are_followed(tmp_path, content):
    """Large sets are often links to another disk, which the user has set up, unlike a name with '..'."""
    (tmp_path / "images" / "0.png").rename(tmp_path / "elsewhere.png")
    (tmp_path / "images" / "0.png").symlink_to(tmp_path / "elsewhere.png")
    assert len(load(tmp_path, content)) == 2


def test_folder_may_itself_be_a_link(tmp_path, content):
    (tmp_path / "images").rename(tmp_path / "disk")
    (tmp_path / "images").symlink_to(tmp_path / "disk")
    assert len(load(tmp_path, content)) == 2


def test_images_may_lie_in_folders_below(tmp_path, content):
    write_image(tmp_path / "images" / "deep" / "down" / "x.png")
    content["images"][0]["file_name"] = "deep/down/x.png"
    assert load(tmp_path, content).files[0] == str(tmp_path / "images" / "deep" / "down" / "x.png")


def test_images_in_folders_that_their_names_leave_out_are_found(tmp_path, content, caplog):
    """One lies deep down; the other's name has a part of its path. Other images may be there too.

    Only if none is found by its name: a missing image must not become another picture.
    """
    images = tmp_path / "images"
    for name, place in (("0.png", "a/b"), ("1.png", "c/d")):
        (images / place).mkdir(parents=True)
        (images / name).rename(images / place / name)
    content["images"][1]["file_name"] = "d/1.png"
    write_image(images / "c" / "x" / "1.png")
    del content["images"][1]["width"]  # then the size is that of the file
    found = load(tmp_path, content)
    assert found.files.tolist() == [str(images / "a/b/0.png"), str(images / "c/d/1.png")]
    assert found.sizes.tolist()[1] == [48, 64]
    (message,) = caplog.messages
    assert "2 images were found in subfolders of" in message and message.endswith("such as a/b/0.png")
    write_image(images / "d" / "1.png")
    assert "0.png does not exist" in error_of(tmp_path, content)


def test_of_images_of_one_name_in_several_folders_none_is_taken(tmp_path, content):
    """Any of them might be trained on with the boxes of another."""
    images = tmp_path / "images"
    for place in ("cam0", "cam1"):
        for name in ("0.png", "1.png"):
            write_image(images / place / name)
    for name in ("0.png", "1.png"):
        (images / name).unlink()
    both = f"{images / 'cam0'} and in {images / 'cam1'}"
    message = error_of(tmp_path, content)
    assert f"but in {both}; set data.images to the right one (" in message
    assert message.endswith("), or include the folders in the names")
    (images / "cam1" / "1.png").unlink()
    assert f"but in {images / 'cam0'}; set data.images to that folder" in error_of(tmp_path, content)
    (images / "cam0").rename(images / "deep")
    (images / "cam1").rename(tmp_path / "right")
    (tmp_path / "right" / "0.png").rename(tmp_path / "right" / "2.png")
    assert f"but in {images / 'deep'}; set data.images to that folder" in error_of(tmp_path, content)


def test_images_that_all_lie_in_one_folder_further_down_name_it(tmp_path, content):
    images = tmp_path / "images"
    (images / "a" / "b").mkdir(parents=True)
    for name in ("0.png", "1.png"):
        (images / name).rename(images / "a" / "b" / name)
    assert f"but in {images / 'a' / 'b'}; set data.images to that folder" in error_of(tmp_path, content)


def test_missing_image_is_named_and_the_others_counted(tmp_path, content):
    (tmp_path / "images" / "1.png").unlink()
    message = error_of(tmp_path, content)
    assert str(tmp_path / "images" / "1.png") in message
    assert "more" not in message
    (tmp_path / "images" / "0.png").unlink()
    assert re.search(r"0\.png does not exist.*1 more image", error_of(tmp_path, content))


def test_size_disagreeing_with_the_file_is_named(tmp_path, content):
    content["images"][1] |= {"width": 48, "height": 64}
    message = error_of(tmp_path, content)
    for part in (str(tmp_path / "images" / "1.png"), "64 x 48", "48 x 64"):
        assert part in message


@pytest.mark.parametrize("text", ["{torn", "", "\x00", "[" * 100_000])
def test_what_is_not_json_is_named(tmp_path, content, text):
    assert re.search(r"set\.json is not valid JSON", error_of(tmp_path, text))


@pytest.mark.parametrize("section", ["images", "annotations", "categories"])
@pytest.mark.parametrize("value", [None, {}, "text"])
def test_missing_section_is_named(tmp_path, content, section, value):
    content[section] = value
    message = error_of(tmp_path, content)
    assert re.search(rf"set\.json has no list '{section}'", message)
    del content[section]
    assert error_of(tmp_path, content) == message


@pytest.mark.parametrize("text", ["[]", "null", "7"])
def test_json_of_another_shape_is_refused(tmp_path, content, text):
    assert "has no list 'images'" in error_of(tmp_path, text)


WRONG_CATEGORIES = {
    "none": ([], "no categories"),
    "same name": ([{"id": 3, "name": "cat"}, {"id": 7, "name": "cat"}], "'cat'.*twice"),
    "same id": ([{"id": 3, "name": "cat"}, {"id": 3, "name": "dog"}], "id 3.*twice"),
    "same name, no supercategory": (
        [{"id": i, "name": "cat", "supercategory": "none"} for i in (3, 7)],
        "'cat'.*twice",
    ),
    "no name": ([{"id": 3}], "no 'name'"),
    "no record": (["cat"], "no 'name'"),
    "text and number": ([{"id": 3, "name": "cat"}, {"id": "7", "name": "dog"}], "id.*integer"),
    "list as id": ([{"id": [3], "name": "cat"}], "id.*integer"),
}


def test_roboflows_heading_is_no_class(tmp_path, content):
    """It may share the name of a class; if it has boxes or a parent, that class is listed twice."""
    content["categories"] = [
        {"id": 0, "name": "cat", "supercategory": "none"},
        {"id": 3, "name": "cat", "supercategory": "cat"},
        {"id": 7, "name": "dog", "supercategory": "cat"},
    ]
    records = load(tmp_path, content)
    assert records.classes == ("cat", "dog")
    assert records.category_ids == (3, 7)
    content["annotations"][0]["category_id"] = 0
    assert "'cat' (id 3) is listed twice" in error_of(tmp_path, content)
    content["annotations"][0]["category_id"] = 3
    content["categories"][0]["name"] = "pets"
    for category in content["categories"][1:]:
        category["supercategory"] = "pets"
    assert load(tmp_path, content).classes == ("pets", "cat", "dog")  # a parent of other classes
    content["info"] = {"description": "Exported from roboflow.com"}
    assert load(tmp_path, content).classes == ("cat", "dog")
    content["categories"][2]["supercategory"] = "none"
    assert load(tmp_path, content).classes == ("pets", "cat", "dog")


@pytest.mark.parametrize(("categories", "problem"), WRONG_CATEGORIES.values(), ids=WRONG_CATEGORIES)
def test_wrong_categories_are_refused(tmp_path, content, categories, problem):
    content["categories"] = categories
    content["annotations"] = []
    message = error_of(tmp_path, content)
    assert re.search(problem, message)
    assert str(tmp_path / "set.json") in message


def test_missing_file_and_folder_are_named(tmp_path, content):
    with pytest.raises(InputError, match=r"none\.json does not exist"):
        load_coco(tmp_path / "none.json", tmp_path / "images")
    with pytest.raises(InputError, match=r"none\.json does not exist"):
        load_coco(tmp_path / "none.json", tmp_path / "pictures")
    (tmp_path / "set.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"data\.images.*pictures does not exist"):
        load_coco(tmp_path / "set.json", tmp_path / "pictures")


def test_boxes_reaching_over_the_edge_are_kept_as_annotated(tmp_path, content, caplog):
    """Scoring uses the box as annotated; training clips it."""
    content["annotations"][2]["bbox"] = [-5, 40, 20, 30]
    records = load(tmp_path, content)
    np.testing.assert_array_equal(records.boxes[2], [-5, 40, 15, 70])
    assert caplog.messages == []


def test_reading_leaves_the_garbage_collector_on(tmp_path, content):
    load(tmp_path, content)
    assert gc.isenabled()
    error_of(tmp_path, json.dumps(content)[:-20])
    assert gc.isenabled()


def test_a_category_without_a_name_and_a_file_one_folder_higher_are_told(tmp_path: Path) -> None:
    faults: list[DataFault] = []
    with pytest.raises(InputError, match=r"a category in .* 'name'"):
        used_categories([{"id": 1}], None, "train.json", faults)
    (tmp_path / "train.json").write_text("{}")
    with pytest.raises(InputError, match=r"train\.json does: set data\.annotations .*\{split\}"):
        load_coco(tmp_path / "annotations" / "train.json", tmp_path)


def test_classes_go_by_their_ids_not_their_names() -> None:
    records = [{"id": 9, "name": "ant"}, {"id": 3, "name": "bee"}]
    found = used_categories(records, None, Path("train.json"), None)
    assert (found.classes, found.labels) == (("bee", "ant"), {3: 0, 9: 1})


def test_o_and_os_are_two_classes() -> None:
    assert plain_name("Os") != plain_name("O") and plain_name("cars") == plain_name("car")
