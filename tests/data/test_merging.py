"""data.merge: several classes become one, or one is renamed, in every layout."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import evaluate
import train
from data.sample import DetectionSet
from detector.builders.data import build_set
from detector.config import DataConfig
from detector.config.data import SplitsConfig
from detector.config.file import load_config
from errors import InputError
from tests.builders import TINY_MODEL, coco_dict, small_coco, voc_xml, write_coco, write_image
from tests.runs import assert_refused, call

BOXES = [(2.0, 3.0, 12.0, 9.0), (20.0, 5.0, 40.0, 30.0), (1.0, 20.0, 11.0, 44.0), (30.0, 8.0, 60.0, 40.0)]
NAMES = ("cat", "cow", "dog")
OF_BOXES = (0, 2, 1, 2)  # a cat, a dog, a cow, a dog


@pytest.fixture(params=["coco", "yolo", "voc"])
def config(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """Two images of two boxes each, in each of the layouts."""
    pairs = [[0, 1], [2, 3]]
    if request.param == "coco":
        xywh = [[[x0, y0, x1 - x0, y1 - y0] for x0, y0, x1, y1 in (BOXES[k] for k in pair)] for pair in pairs]
        content = coco_dict(xywh)
        content["categories"] = [{"id": 10 + k, "name": name} for k, name in enumerate(NAMES)]
        for annotation, label in zip(content["annotations"], OF_BOXES, strict=True):
            annotation["category_id"] = 10 + label
        write_coco(tmp_path, content, content)
        return {"format": "coco", "root": str(tmp_path)}
    for image, pair in enumerate(pairs):
        if request.param == "yolo":
            write_image(tmp_path / "images" / f"{image}.png")
            rows = [
                f"{OF_BOXES[k]} {(x0 + x1) / 128} {(y0 + y1) / 96} {(x1 - x0) / 64} {(y1 - y0) / 48}\n"
                for k in pair
                for x0, y0, x1, y1 in [BOXES[k]]
            ]
            (tmp_path / "labels").mkdir(exist_ok=True)
            (tmp_path / "labels" / f"{image}.txt").write_text("".join(rows))
        else:
            write_image(tmp_path / "JPEGImages" / f"{image}.jpg")
            (tmp_path / "Annotations").mkdir(exist_ok=True)
            # VOC counts pixels from 1.
            objects = [
                (NAMES[OF_BOXES[k]], (x0 + 1, y0 + 1, x1, y1), 0)
                for k in pair
                for x0, y0, x1, y1 in [BOXES[k]]
            ]
            (tmp_path / "Annotations" / f"{image}.xml").write_text(voc_xml(objects, name=f"{image}.jpg"))
    if request.param == "yolo":
        (tmp_path / "data.yaml").write_text(
            yaml.safe_dump({"train": "images", "val": "images", "names": [*NAMES]})
        )
        return {"format": "yolo", "root": str(tmp_path)}
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    for split in ("train", "val"):
        (tmp_path / "ImageSets" / "Main" / f"{split}.txt").write_text("0\n1\n")
    return {"format": "voc", "root": str(tmp_path)}


def named(records: DetectionSet) -> list[tuple[int, str, list[float]]]:
    """Image, class and box of each object."""
    rows = np.repeat(np.arange(len(records)), np.diff(records.offsets)).tolist()
    names = [records.classes[label] for label in records.labels]
    return list(zip(rows, names, records.boxes.round(3).tolist(), strict=True))


@pytest.mark.parametrize(
    ("merge", "classes", "expected", "listed"),
    [
        ({"pet": ["cat", "dog"]}, None, ("pet", "pet", "cow", "pet"), ("pet", "cow")),
        ({"pet": ["dog", "cat"]}, ("cow", "pet"), ("pet", "pet", "cow", "pet"), ("cow", "pet")),
        ({"pet": ["cat", "dog"]}, ("pet",), ("pet", "pet", None, "pet"), ("pet",)),
        ({"beef": "cow"}, None, ("cat", "dog", "beef", "dog"), ("cat", "beef", "dog")),
        ({"animal": "*"}, None, ("animal",) * 4, ("animal",)),
        ({"animal": "*", "pet": ["dog"]}, None, ("animal", "pet", "animal", "pet"), ("animal", "pet")),
        ({"animal": "*", "pet": ["dog"]}, ("pet",), (None, "pet", None, "pet"), ("pet",)),
        ({"cat": "dog", "dog": "cat"}, None, ("dog", "cat", "cow", "cat"), ("dog", "cow", "cat")),
        ({"cat": ["cat", "cow"]}, None, ("cat", "dog", "cat", "dog"), ("cat", "dog")),
    ],
)
def test_boxes_have_their_new_classes(
    config: dict[str, Any],
    merge: dict[str, Any],
    classes: tuple[str, ...] | None,
    expected: tuple[str | None, ...],
    listed: tuple[str, ...],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """By hand. The new classes have an order of their own; unused ones are left out and reported."""
    data = DataConfig(**config, merge=merge, classes=None if classes is None else list(classes))
    with caplog.at_level(logging.WARNING):
        records = build_set(data, "train")
    plain = build_set(DataConfig(**config), "train")
    wanted = [
        (row, name, box)
        for (row, _, box), name in zip(named(plain), expected, strict=True)
        if name is not None
    ]
    assert named(records) == wanted
    assert records.classes == listed
    assert ("left out objects of classes that are not used" in caplog.text) == (None in expected)
    if config["format"] != "voc":  # VOC has no ids
        ids = dict(zip(plain.classes, plain.category_ids, strict=True))
        assert records.category_ids == tuple(ids[of_it(name, merge)[0]] for name in listed)
    # Another split is read with the classes of the first.
    assert named(build_set(data, "val", records.classes)) == wanted


def of_it(new: str, merge: dict[str, Any]) -> list[str]:
    taken = [old for olds in merge.values() for old in ([olds] if isinstance(olds, str) else olds)]
    parts = [merge[new]] if isinstance(merge.get(new), str) else merge.get(new, [new])
    return [old for old in NAMES if old not in taken] if "*" in parts else list(parts)


@pytest.mark.parametrize(
    ("merge", "said"),
    [
        (
            {"pet": ["cat", "bird"]},
            r"data\.merge\.pet: split train has no class 'bird'; its classes are cat, cow",
        ),
        (
            {"pet": ["cat", "Dogs"]},
            r"data\.merge\.pet: split train has no class 'Dogs', but 'dog'; its classes are",
        ),
        ({"cat": ["dog"]}, r"data\.merge\.cat: split train also has a class 'cat'; add it"),
    ],
)
@pytest.mark.parametrize("chosen", [False, True])
def test_wrong_parts_are_named(
    config: dict[str, Any], merge: dict[str, Any], said: str, chosen: bool
) -> None:
    """Also if data.classes selects among the new names; those that it does not select are no error."""
    data = DataConfig(**config, merge=merge, classes=[*merge] if chosen else None)
    with pytest.raises(InputError, match=said):
        build_set(data, "train")
    right = DataConfig(**config, merge={"pet": ["cat", "dog"], "beef": ["cow"]}, classes=["pet"])
    assert {name for _, name, _ in named(build_set(right, "train"))} == {"pet"}


@pytest.mark.parametrize(
    ("merge", "wanted", "said"),
    [
        (
            {"pet": ["cat", "dog"]},
            ("cat", "cow", "dog"),
            r"merge\.pet merges the class 'cat', which",
        ),
        ({"pet": "*"}, ("cow",), r"merge\.pet merges the class 'cow'"),
        ({"pet": ["cat", "dog"]}, ("animal", "plant"), r"has no category 'animal'; its classes are pet, cow"),
        ({"pets": "*"}, ("pet",), r"has no category 'pet', but 'pets'; its classes are pets"),
    ],
)
def test_a_model_of_other_classes_is_not_evaluated(
    config: dict[str, Any], merge: dict[str, Any], wanted: tuple[str, ...], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        build_set(DataConfig(**config, merge=merge), "val", wanted)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("data.merge={a: [cat], b: [cat]}", "'cat' is merged into two classes"),
        ("data.merge={a: [cat, cat]}", "'cat' is listed twice"),
        ("data.merge={'': cat}", "a class has no name"),
        ("data.merge={a: 3}", "data.merge.a: must be a class or a list of classes"),
        ("single_cls=true", "data.merge="),
    ],
)
def test_what_no_merging_can_be_is_refused(tmp_path: Path, word: str, said: str) -> None:
    small_coco(tmp_path / "set")
    words = ("data.format=coco", "data.root=set", *TINY_MODEL, word)
    assert_refused(train.main, words, tmp_path, said)


def test_a_split_without_a_part_has_none_of_it(tmp_path: Path) -> None:
    """A COCO file may list only the classes that it has boxes of."""
    root = small_coco(tmp_path / "set")
    path = root / "annotations" / "val.json"
    content = json.loads(path.read_text())
    cat, dog = content["categories"]
    content["categories"] = [dog]
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] == dog["id"]]
    path.write_text(json.dumps(content))
    for merge in ({"pet": ["cat", "dog"]}, {"pet": "*"}):
        data = DataConfig(format="coco", root=str(root), merge=merge)
        records = build_set(data, "train")
        val = build_set(data, "val", records.classes)
        assert val.classes == records.classes == ("pet",)
        assert (records.category_ids, val.category_ids) == ((cat["id"],), (dog["id"],))
        assert len(val.boxes) == len(content["annotations"]) > 0
    content["categories"][0]["name"] = "Dog"  # "*" would include it
    path.write_text(json.dumps(content))
    data = DataConfig(format="coco", root=str(root), merge={"o": "*", "pet": "dog"})
    with pytest.raises(InputError, match=r"data\.merge\.pet: split val has no class 'dog', but 'Dog'"):
        build_set(data, "val", build_set(data, "train").classes)


def test_joined_splits_may_list_their_classes_in_another_order(tmp_path: Path) -> None:
    root = small_coco(tmp_path / "set")
    content = json.loads((root / "annotations" / "train.json").read_text())
    cat, dog = content["categories"]
    content["categories"] = [{"id": cat["id"], "name": "dog"}, {"id": dog["id"], "name": "cow"}]
    (root / "annotations" / "more.json").write_text(json.dumps(content))
    data = DataConfig(
        format="coco", root=str(root), splits={"train": ["train", "more"]}, merge={"o": "*", "hound": "dog"}
    )
    records = build_set(data, "train")
    assert records.classes == ("o", "hound")
    half = len(records.labels) // 2
    assert (records.labels[:half] == 1 - records.labels[half:]).all() and half > 0


def test_a_split_of_images_without_objects_has_no_classes(tmp_path: Path) -> None:
    """In a VOC folder whose XML files name none."""
    for split, names in (("train", ("cat", "dog")), ("valid", ())):
        (tmp_path / split).mkdir()
        write_image(tmp_path / split / "0.jpg")
        (tmp_path / split / "0.xml").write_text(voc_xml([(name, BOXES[0], 0) for name in names]))
    data = DataConfig(
        format="voc", root=str(tmp_path), splits={"train": "train", "val": "valid"}, merge={"o": "*"}
    )
    records = build_set(data, "train")
    val = build_set(data, "val", records.classes)
    assert (len(val), len(val.boxes), val.classes) == (1, 0, ("o",))
    with pytest.raises(InputError, match=r"data\.splits\.train \(valid\) of .* has no boxes to learn from"):
        build_set(data.model_copy(update={"splits": SplitsConfig(train="valid"), "merge": {}}), "train")


def test_all_others_are_those_of_the_split_itself(tmp_path: Path) -> None:
    """In VOC folders, whether data.splits.train is a name or a list of one name."""
    for split, names in (("train", ("cat", "dog")), ("valid", ("cat", "wolf"))):
        (tmp_path / split).mkdir()
        write_image(tmp_path / split / "0.jpg")
        objects = [(name, BOXES[k], 0) for k, name in enumerate(names)]
        (tmp_path / split / "0.xml").write_text(voc_xml(objects))
    for train_split in ("train", ["train"]):
        data = DataConfig(
            format="voc", root=str(tmp_path), splits={"train": train_split, "val": "valid"}, merge={"o": "*"}
        )
        assert len(build_set(data, "val", build_set(data, "train").classes).boxes) == 2


def test_a_model_of_merged_classes_is_evaluated_on_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The checkpoint stores its data.merge; without it, the annotations lack the merged class."""
    small_coco(tmp_path / "set", 4)
    words = ("data.format=coco", "data.root=set", "run.dir=run", "train.epochs=1", *TINY_MODEL)
    assert call(train.main, *words, "data.merge={pet: '*'}", cwd=tmp_path).code == 0
    outcome = call(evaluate.main, "run", "--output", "scores.json", cwd=tmp_path)
    assert outcome.code == 0 and list(json.loads((tmp_path / "scores.json").read_text())["per_class"]) == [
        "pet"
    ]
    assert_refused(evaluate.main, ("run", "data.merge={}"), tmp_path, "has no category 'pet'")
    assert call(evaluate.main, "run", "--results", "res.json", cwd=tmp_path).code == 0
    assert "python -m data.convert run --split val" in caplog.text
    for changed in ("data.merge={}", "data.merge={pet: [cat, dog]}"):
        said = "data.merge cannot be changed when resuming"
        assert_refused(train.main, ("--resume", "run", changed), tmp_path, said)


def test_a_file_replaces_what_its_base_says(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("data: {format: coco, root: x, merge: {a: [b, c]}}\n")
    (tmp_path / "own.yaml").write_text("base: base.yaml\ndata: {merge: {d: e}}\n")
    assert load_config(tmp_path / "own.yaml").data.merge == {"d": ["e"]}
    assert load_config(tmp_path / "base.yaml", ["data.merge={}"]).data.merge == {}
