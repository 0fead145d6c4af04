"""Results and annotation files with errors or with entries left out: one line says what and where."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from detector.evaluation.coco import evaluate_files
from detector.evaluation.material import read_material
from errors import InputError
from tests.builders import write_image
from tests.detector.evaluation.coco_cases import Content, evaluate, random_case

GOOD = {"image_id": 7, "category_id": 4, "bbox": [1, 2, 3, 4], "score": 0.5}


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        ({**GOOD, "image_id": 12345}, "12345"),
        ({**GOOD, "category_id": 5}, "category id 5"),
        ({**GOOD, "bbox": [1, 2, 3]}, "detection 1"),
        ({**GOOD, "bbox": [1, 2, 3, math.inf]}, "detection 1"),
        ({**GOOD, "bbox": 3}, "results.json"),
        ({**GOOD, "bbox": "1234"}, "detection 1.* '1234'"),
        ({**GOOD, "score": math.nan}, "detection 1"),
        ({**GOOD, "score": None}, "results.json"),
        ({"image_id": 7, "category_id": 4, "bbox": [1, 2, 3, 4]}, "score"),
        ({**GOOD, "image_id": [7]}, "results.json"),
        ("text", "results.json"),
    ],
)
def test_malformed_detection_is_named_in_one_line(entry: Any, named: str, tmp_path: Path) -> None:
    content, _ = random_case(0)
    with pytest.raises(InputError, match=named) as caught:
        evaluate(content, [GOOD, entry], tmp_path)
    assert "\n" not in str(caught.value) and "results.json" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x, y, w, h: (x, y, w, h), ""),
        (lambda x, y, w, h: (x, y, x + w, y + h), "as if x1, y1 were written as width, height"),
        (lambda x, y, w, h: (x + w / 2, y + h / 2, w, h), "as if their centres were given"),
        (lambda x, y, w, h: (x / 1e4, y / 1e4, w / 1e4, h / 1e4), "within one pixel"),
    ],
)
def test_boxes_of_another_kind_are_told(
    change: Callable[..., tuple[float, ...]], said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content, _ = random_case(0)
    width, height = content["images"][0]["width"], content["images"][0]["height"]
    image = content["images"][0]["id"]
    boxes = [(k / 12 * width, k / 12 * height, width / 12, height / 12) for k in range(12)]
    results = [{**GOOD, "image_id": image, "bbox": list(change(*box))} for box in boxes]
    evaluate(content, results, tmp_path)
    assert (said in caplog.text) if said else ("bbox is" not in caplog.text)
    assert ("bbox is x, y, width, height in pixels" in caplog.text) == bool(said)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"images": None}, "images"),
        ({"annotations": None}, "annotations"),
        ({"categories": {}}, "categories"),
        ({"annotations": [{"id": 8, "image_id": 7, "category_id": 4, "bbox": [1, 2, 3]}]}, "annotation 8"),
        ({"annotations": [{"id": 8, "image_id": 7, "category_id": 4}]}, "bbox"),
        ({"annotations": ["text"]}, "malformed"),
        ({"annotations": [{**GOOD, "id": 8, "bbox": [1, 2, math.nan, 4]}]}, "annotation 8"),
        ({"annotations": [{**GOOD, "id": 8, "bbox": [1, 2, -3, 4]}]}, "annotation 8.* negative"),
        ({"annotations": [{**GOOD, "id": 8, "bbox": "1234"}]}, "annotation 8.* '1234'"),
        ({"annotations": [{**GOOD, "id": 8, "area": math.nan}]}, "annotation 8.* finite"),
        (
            {"annotations": [{**GOOD, "id": 8, "iscrowd": "0"}]},
            "annotation 8.* iscrowd must be 0 or 1, got '0'",
        ),
        ({"annotations": [{**GOOD, "id": 8, "image_id": "x7"}]}, "none of the 1 annotations"),
        ({"categories": [{"id": 4}]}, "name"),
        (
            {"images": [{"id": 7, "file_name": "7"}, {"id": "two", "file_name": "2"}]},
            "some image ids are strings, such as 'two', but others are not",
        ),
    ],
)
def test_malformed_annotations_are_named_in_one_line(change: Content, named: str, tmp_path: Path) -> None:
    content, _ = random_case(0)
    with pytest.raises(InputError, match=named) as caught:
        evaluate({**content, **change}, [GOOD], tmp_path)
    assert "\n" not in str(caught.value) and "gt.json" in str(caught.value)


def test_a_wrong_image_record_is_named_and_no_annotation(tmp_path: Path) -> None:
    content, _ = random_case(0)
    content["images"][1]["height"] = 10**30
    with pytest.raises(InputError, match=r"image id 100 is malformed"):
        evaluate(content, [GOOD], tmp_path)
    content["images"][1]["height"] = 480
    del content["images"][1]["file_name"]
    (tmp_path / "gt.json").write_text(json.dumps(content))
    write_image(tmp_path / "3.jpg")
    write_image(tmp_path / "7.jpg")
    write_image(tmp_path / "55.jpg")
    with pytest.raises(InputError, match=r"image id 100 has no 'file_name'"):
        read_material(tmp_path / "results.json", tmp_path / "gt.json", tmp_path)


def test_annotations_that_are_left_out_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content, results = random_case(0)
    expected = evaluate(content, results, tmp_path).summary
    assert not caplog.messages
    for image_id, category_id in (("x7", 4), (99999, 4), (7, "x4")):
        extra = {"id": 10**6, "image_id": image_id, "category_id": category_id, "bbox": [1, 2, 3, 4]}
        content["annotations"].append(extra)
    assert evaluate(content, results, tmp_path).summary == expected
    (message,) = caplog.messages
    assert f"left out 3 of {len(content['annotations'])} annotations" in message
    assert "gt.json" in message


def test_roboflows_heading_is_no_class(tmp_path: Path) -> None:
    content, results = random_case(0)
    expected = evaluate(content, results, tmp_path)
    name = content["categories"][-1]["name"]
    heading = {"id": 0, "name": name, "supercategory": "none"}
    categories = [heading, *({**one, "supercategory": name} for one in content["categories"])]
    done = evaluate({**content, "categories": categories}, results, tmp_path)
    assert done.summary == expected.summary
    assert [*done.per_class] == [*expected.per_class]


def test_a_negative_area_stands_for_none(tmp_path: Path) -> None:
    """pycocotools would ignore such a box; tools write -1 if they do not know the area."""
    content, results = random_case(0)
    for annotation in content["annotations"]:
        annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
    expected = evaluate(content, results, tmp_path).summary
    for annotation in content["annotations"]:
        annotation["area"] = -1
    assert evaluate(content, results, tmp_path).summary == expected


@pytest.mark.parametrize("text", ["{", "", "\xff", '{"a": 1}', "3"])
@pytest.mark.parametrize("name", ["gt.json", "results.json"])
def test_files_of_another_kind_are_refused(name: str, text: str, tmp_path: Path) -> None:
    content, results = random_case(0)
    (tmp_path / "gt.json").write_text(json.dumps(content))
    (tmp_path / "results.json").write_text(json.dumps(results))
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=name) as caught:
        evaluate_files(tmp_path / "results.json", tmp_path / "gt.json")
    assert "\n" not in str(caught.value)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.json"):
        evaluate_files(tmp_path / "results.json", tmp_path / "nothing.json")
