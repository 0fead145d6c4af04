"""The metrics of an evaluation as text."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from detector.builders.data import build_set
from detector.evaluation.coco import evaluate_coco
from detector.evaluation.inference import Predictions
from detector.evaluation.table import metrics_table
from tests.builders import coco_dict, write_coco
from tests.runs import tiny_config


def test_of_many_classes_the_most_common_have_a_line(tmp_path: Path) -> None:
    content = coco_dict(
        [[[4, 5, 20, 18], [30, 10, 20, 20]], [[10, 10, 40, 12], [1, 1, 8, 8]], [[5, 5, 9, 9]]]
    )
    for annotation, category in zip(content["annotations"], (7, 7, 3, 9, 9), strict=True):
        annotation["category_id"] = category
    content["categories"].append({"id": 9, "name": "a bird"})
    root = write_coco(tmp_path / "set", content, content)
    records = build_set(tiny_config(root, tmp_path).data, "val")
    none = np.zeros(0, np.int64)
    result = evaluate_coco(records, Predictions(none, np.zeros((0, 4)), np.zeros(0), none), "pycocotools")

    def shown(most: int | None) -> list[str]:
        lines = metrics_table(result, {}, "title", most).splitlines()
        return [
            line.split("  ")[0] for line in lines[4 : lines.index(next(x for x in lines if "AP50 that" in x))]
        ]

    without = replace(result.per_class["cat"], gt_boxes=0)
    others = {f"class {k}": without for k in range(99)}
    padded = replace(result, per_class={**result.per_class, **others})
    text = metrics_table(padded, {}, "title", None)
    assert "class 7" not in text and "99 classes without gt boxes" in text
    assert "99 classes" in metrics_table(padded, {}, "title", 3)
    nothing = metrics_table(replace(result, per_class={"cat": without}), {}, "title", None)
    assert "\ncat" in nothing and "without gt boxes" not in nothing

    assert shown(None) == shown(3)
    assert [name.strip() for name in shown(3)] == ["cat", "dog", "a bird"]
    assert [name.strip() for name in shown(2)] == [
        "dog",
        "a bird",
        "... and 1 more, with fewer gt boxes (evaluate.py shows all)",
    ]
