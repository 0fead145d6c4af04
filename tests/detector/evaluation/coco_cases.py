"""Random COCO content, and a function that scores it through files."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from detector.evaluation.coco import CocoResult, evaluate_files

CATEGORIES = (4, 90, 17)  # not contiguous, not in order
NAMES = ("car", "cow", "cup")
IMAGES = (7, 100, 3, 55)

Content = dict[str, Any]


def random_case(seed: int, without_gt: int | None = None) -> tuple[Content, list[Content]]:
    """Gt boxes of all sizes, some of them crowds, and detections: jittered copies and false alarms."""
    rng = np.random.default_rng(seed)
    annotations, results = [], []
    for image in IMAGES:
        for _ in range(12):
            x, y = rng.uniform(0, 300, 2)
            w, h = np.exp(rng.uniform(2, 5.2, 2))
            category = int(rng.choice(CATEGORIES))
            box = [float(v) for v in (x, y, w, h)]
            if category != without_gt:
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image,
                        "category_id": category,
                        "bbox": box,
                        "area": w * h * rng.uniform(0.4, 1),  # area of the mask, as in COCO
                        "iscrowd": int(rng.random() < 0.15),
                    }
                )
            for _ in range(rng.integers(0, 4)):
                jitter = rng.normal(0, 0.12, 4) * (w, h, w, h)
                moved = [x + jitter[0], y + jitter[1], w * math.exp(jitter[2] / w), h]
                results.append(
                    {
                        "image_id": image,
                        "category_id": category if rng.random() < 0.8 else int(rng.choice(CATEGORIES)),
                        "bbox": [float(v) for v in moved],
                        "score": float(rng.random()),
                    }
                )
    images = [{"id": i, "file_name": f"{i}.jpg", "height": 480, "width": 640} for i in IMAGES]
    categories = [{"id": c, "name": n} for c, n in zip(CATEGORIES, NAMES, strict=True)]
    return {
        "info": {},
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }, results


def evaluate(content: Any, results: Any, tmp_path: Path) -> CocoResult:
    (tmp_path / "gt.json").write_text(json.dumps(content))
    (tmp_path / "results.json").write_text(json.dumps(results))
    return evaluate_files(tmp_path / "results.json", tmp_path / "gt.json")
