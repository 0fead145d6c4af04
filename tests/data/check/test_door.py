"""python -m data.check in normal use, and what a training run reports about its data."""

import json
import logging
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import train
from data.categories import a_slip_apart
from data.check.__main__ import main
from data.check.classes import class_spots
from data.check.report import Report, SplitSummary
from data.check.text import lines
from data.shapes import ShapesSpec, ensure_shapes
from detector.builders.data import build_set
from detector.config.file import load_config
from detector.training.data_check import warn_before_training
from detector.training.trainer import Trainer
from tests.builders import small_coco
from tests.runs import Outcome, assert_refused, call, tiny_config

DEMO = Path(train.__file__).parent / "configs" / "demo.yaml"
SMALL = ("data.shapes_train_images=40", "data.shapes_val_images=12", "data.shapes_size_px=128")
YAML = "data: {format: coco, root: set}\ntrain: {epochs: 1}\n"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small demo set."""
    root = tmp_path_factory.mktemp("demo") / "shapes"
    ensure_shapes(root, ShapesSpec(40, 12, 128))
    return root


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """tiny.yaml, whose training and validation splits hold the same six images, each a fault to find."""
    small_coco(tmp_path / "set", 6)
    (tmp_path / "tiny.yaml").write_text(YAML)
    return tmp_path


def check(place: Path, *words: str) -> Outcome:
    return call(main, *words, cwd=place)


def test_the_demo_set_is_clean(demo: Path, tmp_path: Path) -> None:
    outcome = check(tmp_path, str(DEMO), f"data.root={demo}", *SMALL, "--json", "check.json")
    assert (outcome.code, outcome.err) == (0, "")
    assert "Nothing found in annotations and images" in outcome.out
    content = json.loads((tmp_path / "check.json").read_text())
    assert (content["ok"], content["findings"]) == (True, [])
    train_split = content["splits"]["train"]
    assert (train_split["images"], train_split["modes"]) == (40, {"RGB": 40})
    assert sum(train_split["per_class"].values()) == train_split["boxes"]


@pytest.mark.parametrize(
    ("one", "other", "slip"),
    [
        ("queen", "quen", True),
        ("queen", "qeuen", True),
        ("queen", "quern", True),
        ("queen", "aqueen", True),
        ("nine", "nin", True),
        ("queen", "queens", False),  # a plural, as in plain_name
        ("queen", "quene x", False),
        ("lane 1", "lane 2", False),
        ("type a", "type_b", False),
        ("grade i", "grade ii", False),
        ("car", "cat", False),
        ("", "queen", False),
    ],
)
def test_names_that_are_a_slip_apart(one: str, other: str, slip: bool) -> None:
    assert (a_slip_apart(one, other), a_slip_apart(other, one)) == (slip, slip)


def test_a_class_that_a_split_spells_in_its_own_way_is_told(place: Path) -> None:
    """At its first image. That each split lacks the other's spelling is reported as well."""
    path = place / "set" / "annotations" / "val.json"
    content = json.loads(path.read_text())
    (dog,) = (category for category in content["categories"] if category["name"] == "dog")
    dog["name"] = "doog"
    path.write_text(json.dumps(content))
    outcome = check(place, "tiny.yaml", "--fast", "--json", "check.json")
    assert "has class 'doog' (" in outcome.out and "which may be meant as 'dog' (" in outcome.out
    codes = {finding["code"] for finding in json.loads((place / "check.json").read_text())["findings"]}
    assert {"names-alike", "class-left-out", "category-missing"} <= codes


def test_the_few_of_a_class_that_a_letter_tells_from_many_are_told() -> None:
    """Not if there are too many for a slip, nor if both classes are about equally frequent."""

    def spots(**boxes: int) -> list[str]:
        labels = np.repeat(np.arange(len(boxes)), [*boxes.values()])
        one: Any = SimpleNamespace(
            classes=tuple(boxes), labels=labels, ignore=np.zeros(len(labels), np.bool_), boxes=labels,
            files=np.array(["a.jpg"]), image_ids=np.array([1]), row_of=lambda box: 0,
            boxes_in_images=np.array([len(labels)]),
        )  # fmt: skip
        return [spot.text for spot in class_spots({"train": one, "val": one}) if spot.code == "names-alike"]

    assert spots(queen=400, quen=1)[0].endswith(
        "has class 'quen' (2 boxes in all), which may be meant as 'queen' (800)"
    )
    assert spots(car=5000, cart=80) == []
    assert spots(boat=100, goat=90) == []


def test_the_rarest_classes_are_shown_too() -> None:
    split = SplitSummary(10, 0, 55, 0, {f"c{k}": 10 - k for k in range(10)}, (9, 9), (9, 9), {})
    report = Report("x", 1.0, False, (), {"train": split}, None)
    told = next(line for line in lines(report) if "c0" in line)
    assert told.endswith("c4 10.9 %, c5 9.1 %, 2 more, c8 3.6 %, c9 1.8 %")


def test_a_test_split_that_cannot_be_read_is_told_before_the_training(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = load_config(place / "tiny.yaml", [f"data.root={place / 'set'}", "data.splits.test=tset"])
    sets = (build_set(config.data, "train"), build_set(config.data, "val"))
    warn_before_training(config, *sets)
    assert "data.splits.test: annotation file" in caplog.text and "tset.json does not exist" in caplog.text


def test_faults_end_with_code_one_and_stand_in_text_json_and_page(place: Path) -> None:
    outcome = check(place, "tiny.yaml", "--json", "check.json", "--html", "check.html")
    assert (outcome.code, outcome.err) == (1, "")
    content = json.loads((place / "check.json").read_text())
    found = {finding["code"]: finding for finding in content["findings"]}
    assert (found["image-in-both"]["count"], found["image-in-both"]["level"]) == (6, "warning")
    first = found["image-in-both"]["places"][0]
    assert (first["split"], first["image"], first["image_id"]) == ("val", "set/images/0.png", 10)
    page = (place / "check.html").read_text()
    for text in (outcome.out, page):
        assert re.search(r"6 x (<code>)?image-in-both", text)
        assert first["text"] in text
    assert page.count("data:image/jpeg;base64,") == 6 + 2 * 4  # samples; images in both, side by side
    (place / "other.html").write_text("<!DOCTYPE html>\n<title>my page</title>\n")
    words = ("tiny.yaml", "--html", "other.html")
    assert_refused(main, words, place, "--html", "other.html exists and is not an earlier output")
    assert check(place, "tiny.yaml", "--html", "check.html").code == 1  # its own output is replaced
    assert "<script" not in page and not re.search(r"(src|href)=.?https?:", page)


def test_a_suggestion_can_be_pasted(place: Path) -> None:
    """The printed YAML is put into a configuration, for which the fault is no longer reported."""
    sizes = "model.anchors.sizes=[[150], [200], [300], [400], [512]]"
    said = check(place, "tiny.yaml", "data.splits.train=train", sizes).out
    assert "anchors-miss" in said
    pasted = said[said.index("model:\n") :].split("\n\n")[0]
    (place / "better.yaml").write_text(f"base: tiny.yaml\n{pasted}\n")
    assert "anchors-miss" not in check(place, "better.yaml").out


def test_names_are_text_on_the_page_not_markup(place: Path) -> None:
    path = place / "set" / "annotations" / "train.json"
    path.write_text(path.read_text().replace('"cat"', '"<b>cat</b>"'))
    check(place, "tiny.yaml", "--html", "check.html")
    page = (place / "check.html").read_text()
    assert "&lt;b&gt;cat" in page and "<b>cat" not in page


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("nowhere.yaml",), ("configuration file nowhere.yaml", "does not exist")),
        (("tiny.yaml", "data.root=nowhere"), ("data.root", "nowhere")),
        (("tiny.yaml", "data.rot=set"), ("'data.rot'", "did you mean 'data.root'?")),
        (("tiny.yaml", "--json", "no/check.json"), ("--json", "no does not exist")),
        (("tiny.yaml", "--html", "set"), ("--html", "set is a folder")),
        (("tiny.yaml", "data.splits={train: x, val: x}"), ("data.splits",)),
    ],
)
def test_bad_input_is_refused(place: Path, words: tuple[str, ...], named: tuple[str, ...]) -> None:
    assert_refused(main, words, place, *named)


def test_a_training_says_in_a_line_each_what_hurts_it(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        Trainer(tiny_config(place / "set", place / "run"), "test")
        assert caplog.messages == []  # tiny_config sets data.check=false
        Trainer(tiny_config(place / "set", place / "run", "data.check=true"), "test")
    assert 1 <= len(caplog.messages) <= 6
    assert all(message.startswith("data: ") and "\n" not in message for message in caplog.messages)
    (shared,) = [message for message in caplog.messages if "share an image" in message]
    assert "0.png (id 10, val) is the same file as" in shared and "(and 5 more)" in shared


def test_a_training_on_the_demo_set_has_nothing_to_say(demo: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = load_config(DEMO, [f"data.root={demo}", *SMALL])
    train_set = build_set(config.data, "train")
    val_set = build_set(config.data, "val", train_set.classes)
    with caplog.at_level(logging.WARNING):
        warn_before_training(config, train_set, val_set)
        assert caplog.messages == []
        boxes = train_set.boxes.copy()
        height, width = train_set.sizes[0]
        boxes[0] = (0, 0, width, height)  # the whole image: a note, shown by the data check only
        warn_before_training(config, replace(train_set, boxes=boxes), val_set)
        assert caplog.messages == []
        boxes[0] = (0, 0, 0.1, height)
        warn_before_training(config, replace(train_set, boxes=boxes), val_set)
    (message,) = caplog.messages
    assert "under 2 px" in message
