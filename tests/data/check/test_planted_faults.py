"""Each fault, planted alone in a clean set, is found with its place, and nothing else is."""

import json
from pathlib import Path
from typing import Any

import pytest

from data.check.findings import KINDS, Level
from tests.builders import voc_xml, write_image, write_voc
from tests.data.check.planted import (
    BOXES,
    FAULTS,
    HEIGHT,
    IMAGES,
    WIDTH,
    added,
    both,
    box,
    edited,
    enlarged,
    examined,
    many_crowds,
    write_clean,
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_clean(tmp_path / "set")


def test_nothing_is_found_in_the_clean_set(root: Path) -> None:
    report = examined(root).report
    assert report.findings == ()
    assert not report.hurts


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found_alone_and_with_its_place(root: Path, name: str) -> None:
    code, damage, named = FAULTS[name]
    damage(root)
    report = examined(root).report
    assert [(f.code, len(f.spots)) for f in report.findings] == [(code, 1)], report.findings
    (spot,) = report.findings[0].spots
    for word in named:
        assert word in spot.text, spot.text
    assert report.hurts == (KINDS[code].level < Level.NOTE)


def test_annotation_that_was_not_finished_is_told(root: Path) -> None:
    """Nine of the 24 training images have no boxes; all 22 validation images have some."""
    add_images(root, "val", range(200, 220), annotated_from=200)
    assert "mostly-unannotated" not in {f.code for f in examined(root).report.findings}
    add_images(root, "train", range(100, 120), annotated_from=109)
    (finding,) = examined(root).report.findings
    assert finding.code == "mostly-unannotated"
    assert finding.spots[0].text == "9 of the 24 images of train have no box, but only 0 of the 22 of val"


def add_images(root: Path, split: str, numbers: range, annotated_from: int) -> None:
    path = root / "annotations" / f"{split}.json"
    content = json.loads(path.read_text())
    for number in numbers:
        write_image(root / "images" / f"{number}.png", HEIGHT, WIDTH, seed=number)
        size = {"height": HEIGHT, "width": WIDTH}
        content["images"].append({"id": number, "file_name": f"{number}.png", **size})
        x, y, w, h = BOXES[0]
        if number >= annotated_from:
            content["annotations"] += [
                added(number, number, k, (x + number % 100, y + k, w, h)) for k in (0, 1)
            ]
    path.write_text(json.dumps(content))


def test_of_an_image_of_another_size_no_box_is_judged(root: Path) -> None:
    """Width and height are swapped; the boxes are right."""
    path = root / "annotations" / "train.json"
    content = json.loads(path.read_text())
    for image in content["images"]:
        image["width"], image["height"] = image["height"], image["width"]
    path.write_text(json.dumps(content))
    (finding,) = examined(root).report.findings
    assert (finding.code, len(finding.spots)) == ("image-size-differs", 4)
    assert "width and height seem to be swapped" in finding.spots[0].text


def test_an_image_of_validation_in_the_test_split_is_told_unless_one_holds_the_other(root: Path) -> None:
    annotations = root / "annotations"
    content = json.loads((annotations / "val.json").read_text())
    write_image(root / "images" / "7.png", HEIGHT, WIDTH, seed=7)
    content["images"][0] |= {"id": 7, "file_name": "7.png"}
    content["annotations"] = [
        {**a, "image_id": 7} if a["image_id"] == 5 else a for a in content["annotations"]
    ]
    (annotations / "test.json").write_text(json.dumps(content))
    report = examined(root, "data.splits.test=test").report
    (finding,) = report.findings
    assert (finding.code, len(finding.spots)) == ("image-in-val-and-test", 1) and report.hurts
    assert "6.png (id 6, test) has the same pixels as" in finding.spots[0].text
    both = examined(root, "data.splits.test=[test,val]").report.findings
    assert [finding.code for finding in both] == ["image-twice"]


def test_a_class_that_another_split_spells_otherwise_is_an_error(root: Path) -> None:
    """Training refuses it. Either spelling may be the right one, so the boxes of both are reported."""
    edited(lambda c: c["categories"][0].update(name="Cat "), "val")(root)
    found = {finding.code: finding for finding in examined(root).report.findings}
    assert found["category-alike"].kind.level == Level.ERROR
    (spot,) = found["category-alike"].spots
    assert "the class is 'Cat ' in val, but 'cat' in train" in spot.text
    assert "category-missing" not in found


def test_corners_in_the_place_of_sizes_are_one_finding(root: Path) -> None:
    """The eight boxes of the clean set and two more: all are too large, and six reach outside."""
    boxes = [(8.0, 50.0, 40.0, 90.0), (20.0, 40.0, 60.0, 80.0)]
    edited(lambda c: c["annotations"].extend(added(90 + k, 1, 0, b) for k, b in enumerate(boxes)))(root)

    def damage(content: dict[str, Any]) -> None:
        for record in content["annotations"]:
            x, y, width, height = record["bbox"]
            # The added boxes are corners already.
            if record["id"] < 90:
                record["bbox"] = [x, y, x + width, y + height]

    edited(damage)(root)
    report = examined(root).report
    assert [(f.code, len(f.spots)) for f in report.findings if f.kind.level < Level.NOTE] == [
        ("box-corners", 6)
    ]
    assert "width, height" in report.findings[0].kind.remedy


def test_boxes_off_by_half_their_size_are_one_finding(root: Path) -> None:
    boxes = [(0.0, 0.0, 30.0, 20.0), (WIDTH - 40.0, HEIGHT - 30.0, 40.0, 30.0)]
    edited(lambda c: c["annotations"].extend(added(90 + k, 1, 0, b) for k, b in enumerate(boxes)))(root)

    def damage(content: dict[str, Any]) -> None:
        for record in content["annotations"]:
            x, y, width, height = record["bbox"]
            record["bbox"] = [x + width / 2, y + height / 2, width, height]

    edited(damage)(root)
    report = examined(root).report
    assert [f.code for f in report.findings if f.kind.level < Level.NOTE] == ["box-centres"]


def test_parts_of_the_sides_are_one_finding(root: Path) -> None:
    """YOLO's relative numbers in a COCO file: advice to remove all boxes as tiny would be wrong."""
    edited(lambda c: c["annotations"].extend(added(90 + k, 1, 0, (k, 4, 40, 40)) for k in range(2)))(root)

    def damage(content: dict[str, Any]) -> None:
        for record in content["annotations"]:
            x, y, width, height = record["bbox"]
            record["bbox"] = [x / WIDTH, y / HEIGHT, width / WIDTH, height / HEIGHT]

    edited(damage)(root)
    codes = {f.code: len(f.spots) for f in examined(root).report.findings}
    assert codes["box-normalised"] == 10 and "box-tiny" not in codes


def test_ignored_regions_may_be_what_boxes_may_not(root: Path) -> None:
    """Tiny, as large as the image, or on top of an object, before or after it in the file."""

    def change(content: dict[str, Any]) -> None:
        first, second, *_ = content["annotations"]
        boxes = ((70, 5, 1.5, 30), (0, 0, WIDTH, HEIGHT), first["bbox"], second["bbox"])
        one, two, three, four = ({**added(90 + k, 1, k % 2, b), "iscrowd": 1} for k, b in enumerate(boxes))
        content["annotations"] = [four, *content["annotations"], one, two, three]

    edited(change)(root)
    report = examined(root).report
    assert report.findings == ()
    assert (report.splits["train"].boxes, report.splits["train"].ignored) == (8, 4)


def test_a_split_is_summed_up(root: Path) -> None:
    """Sizes are (width, height); `boxes` counts those to learn from."""
    enlarged(root)
    many_crowds(root)
    split = examined(root, decode=False).report.splits["train"]
    assert (split.images, split.without_boxes, split.boxes, split.ignored) == (4, 0, 8, 12)
    assert (split.smallest, split.largest) == ((WIDTH, HEIGHT), (8 * WIDTH, 8 * HEIGHT))
    assert split.per_class == {"cat": 4, "dog": 4}


def test_the_parts_of_the_boxes_that_reach_an_iou_by_hand(root: Path) -> None:
    """Square anchors of 64 px on P3, 8 px apart, contain every box: IoU 0.39 for cats, 0.61 for dogs."""
    words = ("model.anchors.sizes=[[64], [512], [512], [512], [512]]", "model.anchors.ratios=[1]",
             "data.transforms.train=[]", "matcher.negative_iou=0.3")  # fmt: skip
    anchors = examined(root, *words, decode=False).report.anchors
    assert anchors is not None and (anchors.positive_iou, anchors.negative_iou) == (0.5, 0.3)
    levels = [(one.name, one.boxes, one.positive, one.above_negative) for one in anchors.levels]
    assert levels[:3] == [("all", 8, 0.5, 1.0), ("P3", 8, 0.5, 1.0), ("P4", 0, 0.0, 0.0)]


def test_anchors_that_do_not_fit_are_found_and_better_ones_suggested(root: Path) -> None:
    """Anchors of 70 px and more, boxes of 40 to 50 px; the suggestion is put into the configuration."""
    sizes = "[[70], [140], [280], [400], [512]]"
    report = examined(root, f"model.anchors.sizes={sizes}", "model.anchors.ratios=[1]").report
    assert [finding.code for finding in report.findings] == ["anchors-miss"]
    assert report.anchors is not None and report.anchors.suggestion is not None
    (line,) = [li for li in report.anchors.suggestion.splitlines() if "sizes" in li]
    better = line.split(":", 1)[1].strip()
    again = examined(root, f"model.anchors.sizes={better}", "model.anchors.ratios=[1]").report
    assert again.findings == ()
    assert again.anchors is not None and again.anchors.levels[0].positive == 1
    # With ATSS every box has anchors to learn from.
    adaptive = examined(root, f"model.anchors.sizes={sizes}", "model.anchors.ratios=[1]", "matcher.name=atss")
    assert adaptive.report.findings == ()


def test_objects_that_evaluation_shows_at_another_size_are_found(root: Path) -> None:
    """Images are 128 px wide; crops of 64 px enlarged to 160 show objects 2.5 times as large."""
    crop = "data.transforms.train=[{RandomCrop: {height: 64, width: 64}}, {ResizeWithin: {long: 160}}]"
    for evaluation, codes in (("[]", ["size-not-learnt"]), ("[{ResizeWithin: {long: 320}}]", [])):
        report = examined(root, crop, f"data.transforms.eval={evaluation}", "matcher.name=atss").report
        assert [finding.code for finding in report.findings] == codes


def test_objects_that_crops_leave_out_are_told(root: Path) -> None:
    """By hand: at a hundredth of its size no object is left; reported for p = 1, not for p = 0.2."""
    nowhere = "data.transforms.train=[{Affine: {scale: 0.01, p: P}}]"
    for p, told in ((1, True), (0.2, False)):
        report = examined(root, nowhere.replace("P", str(p)), "matcher.name=atss").report
        found = {finding.code: finding.spots[0].text for finding in report.findings}
        assert ("objects-lost" in found) == told
        if told:
            assert "leaves no object in 100 % of samples" in found["objects-lost"]


def test_all_faults_are_found_in_one_pass(root: Path) -> None:
    """Each of these but the last stops training at once when it reads the data."""
    several = ["a missing image", "another size", "a negative width", "an unknown image", "a class twice"]
    both(box(1, 1, 3, -3, number=30), box(1, 1, 3, float("inf"), number=31))(root)
    for name in several[:1]:
        FAULTS[name][1](root)
    edited(lambda c: c["images"][2].update(width=640))(root)
    for name in several[2:]:
        FAULTS[name][1](root)
    box(50, 8, 0, 30, number=40)(root)
    found = {f.code: len(f.spots) for f in examined(root).report.findings}
    assert found == {
        "image-missing": 1,
        "image-size-differs": 1,
        "box-reversed": 2,
        "box-not-finite": 1,
        "image-unlisted": 1,
        "category-twice": 1,
        "box-without-area": 1,
    }


@pytest.mark.parametrize("section", ["images", "categories"])
def test_the_boxes_of_what_was_refused_are_not_refused_as_well(root: Path, section: str) -> None:
    """An id that is a string is one fault, however many boxes refer to it."""

    def damage(content: dict[str, Any]) -> None:
        key = {"images": "image_id", "categories": "category_id"}[section]
        wrong = content[section][0]["id"]
        content[section][0]["id"] = str(wrong)
        for record in content["annotations"]:
            if record[key] == wrong:
                record[key] = str(wrong)

    edited(damage, "train", "val")(root)
    codes = [f.code for f in examined(root).report.findings]
    assert "record-malformed" in codes
    assert not {"image-unlisted", "category-unlisted"} & {*codes}


def test_without_decoding_the_annotations_are_checked_all_the_same(root: Path) -> None:
    """A file that two splits list is found without its pixels."""
    box(50, 8, -20, 30)(root)
    edited(lambda c: c["images"][0].update(file_name="1.png"), "val")(root)
    report = examined(root, decode=False).report
    assert [finding.code for finding in report.findings] == ["box-reversed", "image-in-both"]
    assert "(id 5, val) is the same file as" in report.findings[1].spots[0].text


def test_a_split_that_cannot_be_read_does_not_hide_the_others(root: Path) -> None:
    (root / "annotations" / "val.json").write_text("{")
    box(50, 8, -20, 30)(root)
    codes = [finding.code for finding in examined(root).report.findings]
    assert codes == ["box-reversed", "split-unreadable"]


def test_faults_of_voc_files_have_their_object(tmp_path: Path) -> None:
    cat, dog = ("cat", (8, 8, 48, 48), 0), ("dog", (60, 4, 110, 40), 0)
    files = {stem: voc_xml([cat, dog], name=f"{stem}.jpg", height=48, width=64) for stem in "abcd"}
    root = write_voc(tmp_path / "set", files, {"train": ["a", "b"], "val": ["c", "d"]})
    for stem in "abcd":
        write_image(root / "JPEGImages" / f"{stem}.jpg", HEIGHT, WIDTH, seed=ord(stem))
        (root / "Annotations" / f"{stem}.xml").write_text(
            voc_xml([cat, dog], HEIGHT, WIDTH, name=f"{stem}.jpg")
        )
    assert examined(root, "data.format=voc").report.findings == ()
    (root / "Annotations" / "a.xml").write_text(
        voc_xml([cat, ("dog", (60, 4, 40, 40), 0), ("dog", (60, 4, 60, 40), 0), dog], HEIGHT, WIDTH)
    )
    (root / "Annotations" / "c.xml").write_text("<annotation>")
    findings = examined(root, "data.format=voc").report.findings
    places = {finding.code: [spot.text for spot in finding.spots] for finding in findings}
    assert set(places) == {"annotation-unreadable", "box-reversed", "box-without-area"}
    assert "object 2 in" in places["box-reversed"][0]
    assert "object 3 in" in places["box-without-area"][0]
    assert len(places["annotation-unreadable"]) == 1  # although class names are read from it as well
    assert "c.xml" in places["annotation-unreadable"][0]


def test_a_voc_folder_without_a_class_of_training_lists_it_all_the_same(tmp_path: Path) -> None:
    """Training reads it, since the classes of VOC folders are those that occur."""
    cat, dog = ("cat", (8, 8, 48, 48), 0), ("dog", (60, 4, 110, 40), 0)
    for folder, objects in (("one", [cat, dog]), ("two", [cat])):
        files = {folder: voc_xml(objects, HEIGHT, WIDTH, name=f"{folder}.jpg")}
        root = write_voc(tmp_path / folder, files, {"all": [folder]})
        write_image(root / "JPEGImages" / f"{folder}.jpg", HEIGHT, WIDTH, seed=len(objects))
    report = examined(
        tmp_path, "data.format=voc", "data.splits.train=one/all", "data.splits.val=two/all"
    ).report
    assert [finding.code for finding in report.findings] == ["class-not-evaluated"]


def test_parts_of_a_split_need_not_list_the_same_classes(root: Path) -> None:
    """Training reads them with the classes of its training split."""
    content = json.loads((root / "annotations" / "val.json").read_text())
    for name, image in (("v1", 0), ("v2", 1)):
        kept = {k: v for k, v in content.items() if k != "annotations"} | {
            "images": [content["images"][image]]
        }
        number = kept["images"][0]["id"]
        kept["annotations"] = [a for a in content["annotations"] if a["image_id"] == number]
        if name == "v2":
            kept["categories"] = kept["categories"][:1]
            kept["annotations"] = kept["annotations"][:1]
        (root / "annotations" / f"{name}.json").write_text(json.dumps(kept))
    report = examined(root, "data.splits.val=[v1,v2]").report
    assert [finding.code for finding in report.findings] == []
    assert report.splits["val"].images == 2
    report = examined(root, "data.splits.val=[v1,gone]").report
    assert "split-unreadable" in [finding.code for finding in report.findings]


def test_an_annotated_size_beyond_all_memory_is_a_fault_like_another(root: Path) -> None:
    """Anchors are measured at the annotated sizes, which leaves this image out."""
    edited(lambda c: c["images"][0].update(width=10**6, height=10**6))(root)
    report = examined(root).report
    assert "image-size-differs" in {finding.code for finding in report.findings}
    assert report.anchors is not None
    assert report.anchors.levels[0].boxes == len(BOXES) * (len(IMAGES["train"]) - 1)


def test_faults_of_yolo_files_have_their_line(tmp_path: Path) -> None:
    root = tmp_path / "set"
    good = "0 0.3 0.5 0.35 0.45\n1 0.7 0.5 0.35 0.5\n"
    for number, name in enumerate(("train/a", "train/b", "val/c", "val/d")):
        write_image(root / "images" / f"{name}.png", HEIGHT, WIDTH, seed=number)
        path = root / "labels" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(good)
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [cat, dog]\n")
    assert examined(root, "data.format=yolo").report.findings == ()
    bad = "0 0.3 0.5 0.35 0.45\n0 0.3 0.5 40 0.4\nx 1 1 1 1\n5 0.3 0.5 0.4 0.4\n0 0.3 nan 0.4 0.4\n"
    (root / "labels" / "train" / "b.txt").write_text(good + bad)
    (root / "images" / "val" / "c.png").write_bytes(b"?")
    findings = examined(root, "data.format=yolo").report.findings
    places = {finding.code: [spot.text for spot in finding.spots] for finding in findings}
    lines = {"box-duplicated": 3, "box-not-relative": 4, "record-malformed": 5, "category-unlisted": 6,
             "box-not-finite": 7}  # fmt: skip
    assert set(places) == {*lines, "image-unreadable"}
    for code, line in lines.items():
        assert f"b.txt:{line}" in places[code][0]
    (root / "labels" / "val").rename(root / "labels" / "Val")
    missing = [f for f in examined(root, "data.format=yolo").report.findings if f.code == "labels-missing"]
    assert str(root / "labels" / "val" / "c.txt") in missing[0].spots[0].text
