"""Precision and recall over the score threshold, on a case worked out by hand."""

import json
from pathlib import Path

import numpy as np

from detector.evaluation.coco import evaluate_files
from detector.evaluation.curves import curves


def test_a_case_by_hand(tmp_path: Path) -> None:
    """Two gt boxes and a crowd; detections on the first box, on nothing, on the crowd, on the first again."""
    boxes = [[0, 0, 10, 10], [50, 50, 10, 10], [100, 100, 40, 40]]
    annotations = [
        {"id": i, "image_id": 1, "category_id": 1, "bbox": box, "area": 100, "iscrowd": int(i == 3)}
        for i, box in enumerate(boxes, start=1)
    ]
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "yeti"}]
    where = ((boxes[0], 0.9), ([200, 0, 10, 10], 0.6), ([110, 110, 10, 10], 0.5), (boxes[0], 0.3))
    found = [{"image_id": 1, "category_id": 1, "bbox": box, "score": score} for box, score in where]
    content = {"images": [{"id": 1}], "annotations": annotations, "categories": categories}
    (tmp_path / "gt.json").write_text(json.dumps(content))
    (tmp_path / "found.json").write_text(json.dumps(found))
    result = evaluate_files(tmp_path / "found.json", tmp_path / "gt.json")
    (cat,) = curves(result, np.array([0.0, 0.3, 0.31, 0.6, 0.9, 0.91]))  # there is no curve for the yeti
    assert (cat.name, cat.gt_boxes) == ("cat", 2)
    assert cat.right.tolist() == [1, 1, 1, 1, 1, 0]
    assert cat.wrong.tolist() == [2, 2, 1, 1, 0, 0]
    assert cat.recall.tolist() == [0.5, 0.5, 0.5, 0.5, 0.5, 0]
    np.testing.assert_allclose(cat.precision, [1 / 3, 1 / 3, 1 / 2, 1 / 2, 1, 0])


def test_of_many_classes_those_with_most_gt_boxes_are_shown(tmp_path: Path) -> None:
    """In the order of the classes; classes without gt boxes are left out."""
    of_class = {1: 2, 2: 0, 3: 5, 4: 1, 5: 3}
    annotations = [
        {
            "image_id": 1,
            "category_id": category,
            "bbox": [10 * n, 10 * category, 8, 8],
            "area": 64,
            "iscrowd": 0,
        }
        for category, count in of_class.items()
        for n in range(count)
    ]
    content = {
        "images": [{"id": 1}],
        "annotations": [{"id": i, **one} for i, one in enumerate(annotations, start=1)],
        "categories": [{"id": category, "name": f"c{category}"} for category in of_class],
    }
    (tmp_path / "gt.json").write_text(json.dumps(content))
    (tmp_path / "found.json").write_text("[]")
    result = evaluate_files(tmp_path / "found.json", tmp_path / "gt.json")
    for most, names in ((None, ["c1", "c3", "c4", "c5"]), (4, ["c1", "c3", "c4", "c5"]), (2, ["c3", "c5"])):
        assert [*result.commonest(most)] == names
        assert [one.name for one in curves(result, np.array([0.5]), most)] == names
