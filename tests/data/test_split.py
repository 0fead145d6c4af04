"""python -m data.split: what the parts hold, that nothing is lost, and what it refuses."""

import json
import os
import shlex
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data.coco import load_coco
from data.sample import DetectionSet
from data.split.__main__ import main
from data.voc import load_voc
from data.yolo import load_yolo
from tests.builders import coco_dict, voc_xml, write_image, write_voc
from tests.runs import assert_refused, call

BOX = [4.0, 5.0, 20.0, 18.0]
IMAGES = 20


def names(records: DetectionSet) -> list[str]:
    return [Path(file).name for file in records.files.tolist()]


def coco(root: Path, images: int = IMAGES) -> dict[str, Any]:
    """all.json: a cat and a dog in each image, and a rare cow in two; 0.png and 1.png look the same."""
    content = coco_dict([[BOX, [30.0, 10.0, 24.0, 20.0]] for _ in range(images)])
    content["categories"].append({"id": 9, "name": "cow"})
    for k, image in enumerate((4, 5)):
        content["annotations"].append(
            {"id": 900 + k, "image_id": 10 + image, "category_id": 9, "bbox": BOX, "iscrowd": 0}
        )
    content["info"] = {"description": "kept"}
    (root / "annotations").mkdir(parents=True)
    (root / "annotations/all.json").write_text(json.dumps(content))
    for k in range(images):
        write_image(root / "images" / f"{k}.png", seed=max(k, 1))
    return content


def write_yolo(root: Path, images: int) -> None:
    """Images with a box each; without data.yaml."""
    (root / "labels").mkdir(parents=True)
    for k in range(images):
        write_image(root / "images" / f"{k}.jpg", seed=k)
        (root / "labels" / f"{k}.txt").write_text("0 0.5 0.5 0.2 0.2\n")


def test_coco_is_divided_and_the_parts_are_the_whole(tmp_path: Path) -> None:
    whole = coco(tmp_path / "set")
    outcome = call(main, "set/annotations/all.json", cwd=tmp_path)
    assert (outcome.code, outcome.err) == (0, "")
    folder = tmp_path / "set" / "annotations"
    parts = {name: json.loads((folder / f"{name}.json").read_text()) for name in ("train", "val")}
    for section in ("images", "annotations"):
        both = parts["train"][section] + parts["val"][section]
        assert sorted(both, key=lambda r: r["id"]) == sorted(whole[section], key=lambda r: r["id"])
    for part in parts.values():
        assert (part["categories"], part["info"]) == (whole["categories"], whole["info"])
    val = load_coco(folder / "val.json", tmp_path / "set/images")
    assert len(val) == IMAGES // 5
    for part in parts.values():  # the rare class is on both sides
        assert 9 in {a["category_id"] for a in part["annotations"]}
    sides = [{"0.png", "1.png"} & {i["file_name"] for i in part["images"]} for part in parts.values()]
    assert sorted(map(len, sides)) == [0, 2]
    assert "kept together: 1 image with a similar one, or with one of the same folder\n" in outcome.out
    assert "val    4 images: " in outcome.out
    assert "\npython train.py configs/own.yaml data.root=set\n" in outcome.out


def test_coco_with_images_beside_the_file_says_where_they_are(tmp_path: Path) -> None:
    coco(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/annotations/all.json").rename(tmp_path / "elsewhere/images/_annotations.json")
    outcome = call(main, "elsewhere/images/_annotations.json", "--test", "0.2", cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    assert (
        "configs/own.yaml data.root=elsewhere/images 'data.annotations={split}.json' data.images=. "
        "data.splits.test=test\n"
    ) in outcome.out


def test_a_file_with_paths_of_another_disk_is_divided(tmp_path: Path) -> None:
    content = coco(tmp_path / "set")
    for image in content["images"]:
        image["file_name"] = "/home/me/" + image["file_name"]
    (tmp_path / "set/annotations/all.json").write_text(json.dumps(content))
    outcome = call(main, "set/annotations/all.json", "--fast", cwd=tmp_path)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.endswith("data.root=set\n")


def test_other_json_files_make_no_coco_set(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for name in ("notes.json", "classes.txt"):
        (tmp_path / "set" / name).write_text("{}")
    assert_refused(main, ("set",), tmp_path, "data.yaml does not exist", "names: ")


def test_a_folder_with_one_coco_file_is_that_file(tmp_path: Path) -> None:
    coco(tmp_path / "set")
    outcome = call(main, "set", "--fast", cwd=tmp_path)
    assert (outcome.code, outcome.err) == (0, "")
    assert "written: set/annotations/train.json, set/annotations/val.json\n" in outcome.out


def test_names_that_windows_has_written_are_found(tmp_path: Path) -> None:
    content = coco(tmp_path / "set")
    for image in content["images"]:
        image["file_name"] = "images\\" + image["file_name"]
    (tmp_path / "set/annotations/all.json").write_text(json.dumps(content))
    outcome = call(main, "set/annotations/all.json", cwd=tmp_path)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.endswith("data.root=set data.images=.\n")


def test_a_set_that_was_named_from_the_root_is_so_in_what_comes_next(tmp_path: Path) -> None:
    coco(tmp_path / "set")
    outcome = call(main, str(tmp_path / "set/annotations/all.json"), "--fast", cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    assert outcome.out.endswith(f"data.root={tmp_path / 'set'}\n")


def test_voc_images_without_a_file_are_said_to_be_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_voc(tmp_path / "set", {k: voc_xml([("cat", (4, 5, 24, 23), 0)]) for k in "abcdefgh"}, {})
    (tmp_path / "set/Annotations/c.xml").unlink()
    assert call(main, "set", cwd=tmp_path).code == 0
    assert "1 of 8 images in set/JPEGImages have no .xml file" in caplog.text and "such as c" in caplog.text


def test_a_voc_set_with_traces_of_another_format_is_voc(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """labelImg leaves a classes.txt. A file that ends in .XML is not read, which is reported."""
    write_voc(tmp_path / "set", {k: voc_xml([("cat", (4, 5, 24, 23), 0)]) for k in "abcdefgh"}, {})
    (tmp_path / "set/classes.txt").write_text("cat\n")
    (tmp_path / "set/Annotations/c.xml").rename(tmp_path / "set/Annotations/c.XML")
    assert call(main, "set", cwd=tmp_path).code == 0
    assert "left out set/Annotations/c.XML; rename files that end in .XML to .xml" in caplog.text
    write_voc(tmp_path / "all", {"a": voc_xml([("cat", (4, 5, 24, 23), 0)])}, {})
    (tmp_path / "all/Annotations/a.xml").rename(tmp_path / "all/Annotations/a.XML")
    assert_refused(
        main, ("all",), tmp_path, "all/Annotations contains no .xml files (.XML files are not read: rename"
    )


def test_all_that_is_wrong_with_a_set_is_said_at_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """python -m data.check, which lists the faults of a set, needs it to be divided already."""
    write_voc(tmp_path / "set", {k: voc_xml([("cat", (4, 5, 24, 23), 0)]) for k in "abcdefgh"}, {})
    (tmp_path / "set/Annotations/c.xml").write_text("")
    (tmp_path / "set/JPEGImages/d.jpg").unlink()
    (tmp_path / "set/Annotations/f.xml").write_text("<annotation>")
    assert_refused(main, ("set",), tmp_path, "c.xml is empty", "(and 2 more faults, see above)")
    assert ".jpg does not exist" in caplog.text and "f.xml is not valid XML" in caplog.text


def test_what_training_only_warns_of_is_no_hindrance(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = coco(tmp_path / "set")
    content["annotations"][3]["bbox"][2] = 0
    (tmp_path / "set/annotations/all.json").write_text(json.dumps(content))
    assert call(main, "set", "--fast", cwd=tmp_path).code == 0
    assert "dropped 1 box without area inside the image" in caplog.text


def test_a_reversed_box_is_not_called_one_without_area_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = coco(tmp_path / "set")
    content["annotations"][3]["bbox"][2], content["annotations"][5]["bbox"][2] = -4, 0
    (tmp_path / "set/annotations/all.json").write_text(json.dumps(content))
    assert_refused(main, ("set", "--fast"), tmp_path, "negative width")
    assert "dropped 1 box without area inside the image" in caplog.text


def test_voc_gets_its_lists(tmp_path: Path) -> None:
    images = {f"{'ab'[k % 2]}{k}": voc_xml([("cat", (4, 5, 24, 23), 0)]) for k in range(10)}
    write_voc(tmp_path / "set", images, {})
    outcome = call(main, "set", "--val", "0.3", "--test", "0.1", cwd=tmp_path)
    assert outcome.code == 0
    assert outcome.out.endswith("configs/own.yaml data.format=voc data.root=set data.splits.test=test\n")
    found = [names(load_voc(tmp_path / "set", split)) for split in ("train", "val", "test")]
    assert [len(part) for part in found] == [6, 3, 1]
    assert sorted(name for part in found for name in part) == sorted(f"{name}.jpg" for name in images)


def test_a_voc_set_whose_one_list_names_all_is_not_divided_yet(tmp_path: Path) -> None:
    """As CVAT exports it, also with a list for each class."""
    images = {f"{k}": voc_xml([("cat", (4, 5, 24, 23), 0)]) for k in range(6)}
    write_voc(tmp_path / "set", images, {"default": "\n".join(images)})
    of_class = "".join(f"{name}  {'1' if name < '3' else '-1'}\n" for name in images)
    (tmp_path / "set" / "ImageSets" / "Main" / "cat_default.txt").write_text(of_class)
    assert call(main, "set", "--val", "0.5", cwd=tmp_path).code == 0
    assert len(load_voc(tmp_path / "set", "train")) == len(load_voc(tmp_path / "set", "val")) == 3


def test_yolo_gets_lists_that_its_data_yaml_can_name(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for k in range(10):
        write_image(root / "images" / f"cam{k // 5}" / f"{k}.jpg", seed=k)
        (root / "labels" / f"cam{k // 5}").mkdir(parents=True, exist_ok=True)
        (root / "labels" / f"cam{k // 5}" / f"{k}.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (root / "data.yaml").write_text("train: images\nnames: [cat]\n")
    outcome = call(main, "set", "--keep-folders", "--val", "0.5", cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    entries = [line for line in outcome.out.splitlines() if line.endswith(".txt") and ": " in line]
    (root / "data.yaml").write_text("\n".join(["names: [cat]", *entries[-2:]]))  # as the output says
    parts = [load_yolo(root, split) for split in ("train", "val")]
    assert [len(part.boxes) for part in parts] == [5, 5]
    folders = [Counter(Path(file).parent.name for file in part.files.tolist()) for part in parts]
    assert sorted(folders, key=str) == [{"cam0": 5}, {"cam1": 5}]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("nowhere",), ("nowhere does not exist",)),
        (("nowhere.json", "--images", "set/images"), ("nowhere.json does not exist",)),
        (("set/annotations/all.json", "--images", "nowhere"), ("--images", "nowhere does not exist")),
        (("set/annotations/all.json", "--images", "set"), ("not in set but in set/images", "--images")),
        (("other.json",), ("other.json", "no list 'images'")),
        (("none.json",), ("none.json lists no images",)),
        (("none.json", "--images", "set/images"), ("none.json lists no images",)),
        (("windows.json",), ("first image", "C:", "outside")),
        (("unboxed.json", "--images", "set/images"), ("unboxed.json", "no image has a box")),
        (("two",), ("two is neither", "give the file: two/annotations/all.json")),
        (("set/annotations/train.json",), ("train.json would be overwritten", "rename it")),
        (("empty",), ("empty", "Annotations", "data.yaml")),
        (("set/annotations/all.json", "--val", "much"), ("--val", "'much'")),
        (("set/annotations/all.json", "--val", "0"), ("--val", "0.2")),
        (("set/annotations/all.json", "--val", "0.6", "--test", "0.4"), ("nothing to train on",)),
        (("set/annotations/all.json", "--seed", "-1"), ("--seed", "-1")),
        (("set/annotations/all.json", "--images", "empty"), ("empty/0.png", "does not exist")),
        (("set/annotations/all.json", "--keep-folders"), ("nothing is left for val", "--keep-folders")),
        (("set/annotations/twice.json",), ("set/annotations/train.json", "already")),
    ],
)
def test_what_cannot_be_divided_is_refused(tmp_path: Path, words: tuple[str, ...], named: tuple[str, ...]):
    coco(tmp_path / "set")
    coco(tmp_path / "two")
    shutil.copy(tmp_path / "two/annotations/all.json", tmp_path / "two/annotations/more.json")
    (tmp_path / "empty").mkdir()
    (tmp_path / "other.json").write_text('{"images": {}}')
    whole = json.loads((tmp_path / "set/annotations/all.json").read_text())
    for name, changed in (
        ("none", {"images": [], "annotations": []}),
        ("unboxed", {"annotations": []}),
        ("windows", {"images": [{**whole["images"][0], "file_name": r"C:\\photos\\0.png"}]}),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps(whole | changed))
    content = (tmp_path / "set/annotations/all.json").read_text()
    for name in ("twice", "train"):
        if name in words[0] or "twice" in words[0]:
            (tmp_path / f"set/annotations/{name}.json").write_text(content)
    assert_refused(main, words, tmp_path, *named)


def test_cvats_own_format_is_known(tmp_path: Path) -> None:
    """It is not mistaken for a folder of VOC files, which also end in .xml."""
    write_image(tmp_path / "set" / "images" / "a.png", 48, 64)
    text = '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n</annotations>\n'
    (tmp_path / "set" / "annotations.xml").write_text(text)
    assert_refused(main, ("set",), tmp_path, "CVAT's own format", "COCO 1.0")


def test_the_images_of_cvats_coco_are_found(tmp_path: Path) -> None:
    """In images/default, for instances_default.json."""
    content = coco_dict([[[4.0, 5.0, 20.0, 18.0]]] * 6)
    for number, image in enumerate(content["images"]):
        image["file_name"] = f"{number}.png"
        write_image(tmp_path / "images" / "default" / f"{number}.png", 48, 64)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_default.json").write_text(json.dumps(content))
    done = call(main, "annotations/instances_default.json", "--fast", cwd=tmp_path)
    assert done.code == 0, done.err
    assert "data.images=images/default" in done.out


def test_lists_that_are_there_are_neither_replaced_nor_their_images_divided(tmp_path: Path) -> None:
    """Otherwise an existing test set would be trained on."""
    write_voc(tmp_path / "voc", {k: voc_xml([("cat", (4, 5, 24, 23), 0)]) for k in "abcdef"}, {"test": ["a"]})
    assert_refused(main, ("voc",), tmp_path, "voc/ImageSets/Main", "(test)", "divided")
    root = tmp_path / "yolo"
    write_yolo(root, 4)
    (root / "train.txt").write_text("images/0.jpg\nimages/1.jpg\n")
    for text, *named in (
        ("train: train.txt\n", "yolo/train.txt would be overwritten", "all.txt", "yolo/data.yaml"),
        ("train: train.txt\nval: images\n", "already has a split val"),
        ("val: images\n", "has no train"),
    ):
        (root / "data.yaml").write_text(text + "names: [cat]\n")
        assert_refused(main, ("yolo",), tmp_path, *named)
        assert_refused(main, ("yolo/data.yaml",), tmp_path, *named)


def test_a_yolo_set_elsewhere_is_trained_on_its_own_lists(tmp_path: Path) -> None:
    """Entries of data.yaml are relative to its `path`, and so are the lists."""
    write_yolo(tmp_path / "set", 10)
    (tmp_path / "set" / "all.txt").write_text("".join(f"images/{k}.jpg\n" for k in range(10)))
    (tmp_path / "cfg").mkdir()
    head = "path: ../set\nnames: [cat]\n"
    (tmp_path / "cfg" / "data.yaml").write_text(head + "train: all.txt\n")
    assert call(main, "cfg", cwd=tmp_path).code == 0
    (tmp_path / "cfg" / "data.yaml").write_text(head + "train: train.txt\nval: val.txt\n")
    assert [len(load_yolo(tmp_path / "cfg", split)) for split in ("train", "val")] == [8, 2]


def test_what_it_prints_can_be_pasted(tmp_path: Path) -> None:
    coco(tmp_path / "my set")
    outcome = call(main, "my set/annotations/all.json", cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    *_, command = outcome.out.splitlines()
    assert shlex.split(command) == ["python", "train.py", "configs/own.yaml", "data.root=my set"]


def test_a_set_that_looks_all_alike_is_divided_where_likeness_does_not_count(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    coco(tmp_path / "set", 10)
    for k in range(10):
        write_image(tmp_path / "set/images" / f"{k}.png", seed=0 if k < 9 else 1)
    outcome = call(main, "set/annotations/all.json", "--val", "0.3", cwd=tmp_path)
    assert outcome.code == 0
    assert "val has 10% of the images, not 30%" in caplog.text
    for name in ("train", "val"):
        (tmp_path / f"set/annotations/{name}.json").unlink()
    write_image(tmp_path / "set/images/9.png", seed=0)
    words = ("set/annotations/all.json",)
    assert_refused(main, words, tmp_path, "nothing is left for", "10 images form 1 group", "--fast")
    assert call(main, *words, "--fast", cwd=tmp_path).code == 0


def parts_of(root: Path) -> list[set[str]]:
    """The images of train and of val."""
    return [
        set(names(load_coco(root / f"annotations/{name}.json", root / "images"))) for name in ("train", "val")
    ]


def test_versions_of_one_photograph_stay_on_one_side(tmp_path: Path) -> None:
    """As Roboflow exports them: turned and mirrored, so that they do not look alike; also with --fast."""
    content = coco(tmp_path / "set")
    for k, image in enumerate(content["images"]):
        name = f"photo{k // 4}_jpg.rf.{k:032x}.png"
        (tmp_path / "set/images" / image["file_name"]).rename(tmp_path / "set/images" / name)
        image["file_name"] = name
    (tmp_path / "set/annotations/all.json").write_text(json.dumps(content))
    assert call(main, "set", "--fast", cwd=tmp_path).code == 0
    train, val = ({name.partition(".rf.")[0] for name in part} for part in parts_of(tmp_path / "set"))
    assert (len(train), len(val)) == (4, 1) and not train & val


def test_copies_without_contrast_stay_on_one_side(tmp_path: Path) -> None:
    """Flat pictures have no fingerprint, and are compared by their pixels."""
    coco(tmp_path / "set")
    for k in range(IMAGES):
        Image.new("RGB", (64, 48), (100 + k // 2, 100, 100)).save(tmp_path / "set/images" / f"{k}.png")
    assert call(main, "set", cwd=tmp_path).code == 0
    train, val = ({int(Path(name).stem) // 2 for name in part} for part in parts_of(tmp_path / "set"))
    assert (len(train), len(val)) == (8, 2) and not train & val


def test_a_file_that_is_listed_twice_stays_on_one_side(tmp_path: Path) -> None:
    content = coco(tmp_path / "set")
    for image in content["images"]:
        image["file_name"] = f"{image['id'] // 5}.png"
    (tmp_path / "set/annotations/all.json").write_text(json.dumps(content))
    assert call(main, "set", "--fast", "--val", "0.4", cwd=tmp_path).code == 0
    train, val = parts_of(tmp_path / "set")
    assert train and val and not train & val


def test_regions_that_count_for_nothing_are_not_shared_out(tmp_path: Path) -> None:
    """Each class has two boxes that count, so one goes to each side, whatever crowds there are."""
    content = coco_dict([[BOX]] * 12)
    for k, record in enumerate(content["annotations"]):
        record.update(iscrowd=int(k >= 4), category_id=content["categories"][k // 2 % 2]["id"])
    (tmp_path / "set/annotations").mkdir(parents=True)
    (tmp_path / "set/annotations/all.json").write_text(json.dumps(content))
    for image in content["images"]:
        write_image(tmp_path / "set/images" / image["file_name"], seed=image["id"])
    assert call(main, "set", "--val", "0.5", "--fast", cwd=tmp_path).code == 0
    records = load_coco(tmp_path / "set/annotations/val.json", tmp_path / "set/images")
    assert sorted(records.labels[~records.ignore].tolist()) == [0, 1]


@pytest.mark.parametrize("words", [(), ("--fast",)])
def test_rare_classes_that_stretch_a_share_are_the_reason_given(
    tmp_path: Path, words: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    """Ten classes of two images each: one goes to each side. No images have to stay together."""
    content = coco_dict([[BOX]] * IMAGES)
    content["categories"] = [{"id": k, "name": f"c{k}"} for k in range(10)]
    for k, record in enumerate(content["annotations"]):
        record["category_id"] = k // 2
    (tmp_path / "set/annotations").mkdir(parents=True)
    (tmp_path / "set/annotations/all.json").write_text(json.dumps(content))
    for image in content["images"]:
        write_image(tmp_path / "set/images" / image["file_name"], seed=image["id"])
    assert call(main, "set", *words, cwd=tmp_path).code == 0
    assert "val has 50% of the images, not 20%, so that each part has some of every class" in caplog.text
    assert "stay together" not in caplog.text


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_known_before_the_work(tmp_path: Path) -> None:
    coco(tmp_path / "set")
    (tmp_path / "set/annotations").chmod(0o500)
    assert_refused(main, ("set/annotations/all.json",), tmp_path, "no permission", "set/annotations")


def test_a_damaged_image_is_named_and_fast_does_not_look(tmp_path: Path) -> None:
    coco(tmp_path / "set")
    path = tmp_path / "set/images/3.png"
    path.write_bytes(path.read_bytes()[:2000])
    assert_refused(main, ("set/annotations/all.json",), tmp_path, "3.png", "--fast")
    assert call(main, "set/annotations/all.json", "--fast", cwd=tmp_path).code == 0


def test_a_write_that_fails_leaves_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    coco(tmp_path / "set")
    replace = Path.replace

    def full(path: Path, target: Path) -> Path:
        if target.name == "val.json":
            raise OSError(28, "No space left on device")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", full)
    assert_refused(main, ("set/annotations/all.json",), tmp_path, "val.json", "No space left")


def test_xml_files_in_folders_of_their_own_are_told_what_to_do_with(tmp_path: Path) -> None:
    write_image(tmp_path / "day 1" / "a.png")
    (tmp_path / "day 1" / "a.xml").write_text("<annotation/>")
    words = "folders in it have XML files (day 1): move these into"
    assert_refused(main, (str(tmp_path),), tmp_path, words, "Annotations")
    (tmp_path / "day 1" / "a.png").unlink()
    assert_refused(
        main, (str(tmp_path),), tmp_path, "day 1 has XML files: rename it to Annotations", "JPEGImages"
    )


def test_annotations_with_image_ids_in_quotes_are_divided_too(tmp_path: Path) -> None:
    whole = coco(tmp_path / "set")
    for k, annotation in enumerate(whole["annotations"]):
        if k % 3:
            annotation["image_id"] = str(annotation["image_id"])
    (tmp_path / "set/annotations/all.json").write_text(json.dumps(whole))
    assert call(main, "set/annotations/all.json", "--fast", cwd=tmp_path).code == 0
    parts = [json.loads((tmp_path / f"set/annotations/{name}.json").read_text()) for name in ("train", "val")]
    ids = [annotation["id"] for part in parts for annotation in part["annotations"]]
    assert sorted(ids) == sorted(annotation["id"] for annotation in whole["annotations"])
    for part in parts:
        assert {int(a["image_id"]) for a in part["annotations"]} == {image["id"] for image in part["images"]}


def test_a_class_that_a_part_has_none_of_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = coco(tmp_path / "set")
    del whole["annotations"][-1]  # one of the two cows
    (tmp_path / "set/annotations/all.json").write_text(json.dumps(whole))
    assert call(main, "set/annotations/all.json", "--fast", cwd=tmp_path).code == 0
    assert "has no cow: too few images have any, or they must stay together" in caplog.text


def test_all_damaged_images_are_told_of_at_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    coco(tmp_path / "set")
    for name in ("3.png", "7.png", "9.png"):
        path = tmp_path / "set/images" / name
        path.write_bytes(path.read_bytes()[:2000])
    words = ("3.png", "(2 more like it, see above)", "--fast")
    assert_refused(main, ("set/annotations/all.json",), tmp_path, *words)
    assert [name for name in ("7.png", "9.png") if name in caplog.text] == ["7.png", "9.png"]


def test_voc_names_that_are_no_utf_8_can_be_trained_on(tmp_path: Path) -> None:
    """As archives made on Windows leave them."""
    root = write_voc(tmp_path / "set", {k: voc_xml([("cat", (4, 5, 24, 23), 0)]) for k in "abcdefgh"}, {})
    for folder, ending in (("Annotations", "xml"), ("JPEGImages", "jpg")):
        for name in "abcdefgh":
            os.rename(root / folder / f"{name}.{ending}", root / folder / f"{name}\udce4.{ending}")  # noqa: PTH104
    assert call(main, "set", "--fast", cwd=tmp_path).code == 0
    assert len(load_voc(root, "train")) + len(load_voc(root, "val")) == 8
