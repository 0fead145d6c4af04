"""COCO metrics by pycocotools, guarded against the inputs that it answers wrongly or not at all.

Known there: a gt annotation with id 0 never matches, no predictions raise IndexError, missing
`area`, `iscrowd` or `info` raise KeyError. Here the gt is always built anew, with ids from 1.
"""

import contextlib
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from data.coco import read_json
from data.sample import DetectionSet
from detector.evaluation.calibration import Matched
from detector.evaluation.inference import Predictions
from detector.evaluation.tally import Tally, tally_of
from errors import InputError

COCO_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


@dataclass(frozen=True)
class ClassResult:
    """One class; -1 where it has no gt boxes, as COCO does."""

    ap: float
    ap50: float
    gt_boxes: int
    best_f1: float  # over COCO's 101 recall levels, at IoU 0.5
    best_threshold: float  # the score at which it is reached


@dataclass(frozen=True)
class CocoResult:
    """The 12 COCO numbers by their names, and every class by its name."""

    summary: dict[str, float]
    per_class: dict[str, ClassResult]
    matched: Matched  # the detections, without those matched to ignored gt
    tally: Tally  # the same at all IoU thresholds, class by class

    def as_json(self) -> dict[str, Any]:
        """The numbers as plain values: COCO names at the top level."""
        return {
            **self.summary,
            "per_class": {
                name: {"AP": c.ap, "AP50": c.ap50, "gt_boxes": c.gt_boxes, "best_f1": c.best_f1,
                       "best_f1_threshold": c.best_threshold}
                for name, c in self.per_class.items()
            },
        }  # fmt: skip


def evaluate_coco(records: DetectionSet, predictions: Predictions) -> CocoResult:
    """Score predictions against the gt boxes of a set. Ignored gt (crowd, difficult) counts for nothing."""
    counts = np.diff(records.offsets)
    image_of_box = np.repeat(records.image_ids, counts)
    gt = [
        _gt_annotation(int(image), records.category_ids[label], _xywh(box), float(area), int(ignore))
        for image, label, box, area, ignore in zip(
            image_of_box, records.labels, records.boxes, records.areas, records.ignore, strict=True
        )
    ]
    results = to_results(records, predictions)
    names = dict(zip(records.category_ids, records.classes, strict=True))
    return _evaluate([int(i) for i in records.image_ids], names, gt, results)


def to_results(records: DetectionSet, predictions: Predictions) -> list[dict[str, Any]]:
    """Predictions as entries of a COCO results file, with the set's own image and category ids."""
    p = predictions
    return [
        {
            "image_id": int(records.image_ids[row]),
            "category_id": int(records.category_ids[label]),
            "bbox": _xywh(box),
            "score": float(score),
        }
        for row, label, box, score in zip(p.rows, p.labels, p.boxes, p.scores, strict=True)
    ]


def evaluate_files(results_path: Path, annotations_path: Path) -> CocoResult:
    """Score any COCO results file against an instances file, as pycocotools would.

    Raises:
        InputError: a file is missing or malformed, or the results name an unknown image or category.
    """
    content = read_json(annotations_path)
    for section in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(section), list):
            raise InputError(f"{annotations_path} has no list '{section}'; a COCO instances file has one")
    with _named_fields(str(annotations_path)):
        image_ids = [record["id"] for record in content["images"]]
        names = {record["id"]: str(record["name"]) for record in content["categories"]}
        gt = []
        for record in content["annotations"]:
            box = [float(v) for v in record["bbox"]]
            if len(box) != 4 or not all(map(math.isfinite, box)):
                raise InputError(
                    f"{annotations_path}: annotation {record.get('id')}: bbox must be four finite numbers"
                )
            crowd = int(record.get("iscrowd", 0))
            area = float(record.get("area", box[2] * box[3]))
            gt.append(_gt_annotation(record["image_id"], record["category_id"], box, area, crowd))
    results = read_json(results_path)
    if not isinstance(results, list):
        raise InputError(f"{results_path} is not a COCO results file: a list of detections is wanted")
    known_images = set(image_ids)
    checked = []
    with _named_fields(str(results_path)):
        for i, record in enumerate(results):
            at = f"{results_path}: detection {i}"
            image, category = record["image_id"], record["category_id"]
            box, score = [float(v) for v in record["bbox"]], float(record["score"])
            if image not in known_images:
                raise InputError(f"{at} is for image id {image}, which {annotations_path} does not list")
            if category not in names:
                raise InputError(f"{at} has category id {category}, which {annotations_path} does not list")
            if len(box) != 4 or not all(map(math.isfinite, [*box, score])):
                raise InputError(f"{at}: four finite numbers and a finite score are wanted")
            checked.append({"image_id": image, "category_id": category, "bbox": box, "score": score})
    return _evaluate(image_ids, names, gt, checked)


@contextlib.contextmanager
def _named_fields(source: str) -> Iterator[None]:
    """Turn what a malformed record raises into one line."""
    try:
        yield
    except KeyError as error:
        raise InputError(f"{source}: an entry has no {error}") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{source}: an entry is malformed: {error}") from None


def _evaluate(
    image_ids: list[int], names: dict[int, str], gt: list[dict[str, Any]], results: list[dict[str, Any]]
) -> CocoResult:
    images = [{"id": i} for i in image_ids]
    categories = [{"id": i, "name": name} for i, name in names.items()]
    found = [{**r, "area": r["bbox"][2] * r["bbox"][3], "iscrowd": 0} for r in results]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator = COCOeval(_index(images, categories, gt), _index(images, categories, found), "bbox")
        evaluator.evaluate()
        tally = tally_of(evaluator, names)
        if not gt:
            return CocoResult(
                dict.fromkeys(COCO_NAMES, -1.0),
                {n: ClassResult(-1, -1, 0, -1, -1) for n in names.values()},
                _all_wrong(results),
                tally,
            )
        evaluator.accumulate()
        evaluator.summarize()
    summary = {name: float(value) for name, value in zip(COCO_NAMES, evaluator.stats, strict=True)}
    counts, listed = dict.fromkeys(names, 0), set(image_ids)
    for annotation in gt:
        known = annotation["category_id"] in counts and annotation["image_id"] in listed
        if known and not annotation["iscrowd"]:
            counts[annotation["category_id"]] += 1
    return CocoResult(summary, _per_class(evaluator, names, counts), _matched(evaluator), tally)


def _matched(evaluator: COCOeval) -> Matched:
    """What the evaluation at IoU 0.5 and all areas made of every detection."""
    everywhere = evaluator.params.areaRng[0]
    parts = [e for e in evaluator.evalImgs if e is not None and e["aRng"] == everywhere and e["dtScores"]]
    if not parts:
        return _all_wrong([])
    counts = [~np.asarray(e["dtIgnore"][0], dtype=bool) for e in parts]
    return Matched(
        np.concatenate([np.asarray(e["dtScores"])[c] for e, c in zip(parts, counts, strict=True)]),
        np.concatenate([e["dtMatches"][0][c] > 0 for e, c in zip(parts, counts, strict=True)]),
        np.concatenate([np.full(c.sum(), e["image_id"]) for e, c in zip(parts, counts, strict=True)]),
    )


def _all_wrong(results: list[dict[str, Any]]) -> Matched:
    scores = np.array([r["score"] for r in results], dtype=np.float64)
    images = np.array([r["image_id"] for r in results], dtype=np.int64)
    return Matched(scores, np.zeros(len(results), dtype=bool), images)


def _per_class(evaluator: COCOeval, names: dict[int, str], counts: dict[int, int]) -> dict[str, ClassResult]:
    precision = evaluator.eval["precision"][:, :, :, 0, -1]  # [IoU, recall, class], all areas
    scores = evaluator.eval["scores"][0, :, :, 0, -1]  # [recall, class], at IoU 0.5
    recall = evaluator.params.recThrs
    results = {}
    for k, category in enumerate(evaluator.params.catIds):
        if (precision[:, :, k] < 0).all():
            results[names[category]] = ClassResult(-1, -1, counts[category], -1, -1)
            continue
        at_50 = precision[0, :, k]
        f1 = 2 * at_50 * recall / np.maximum(at_50 + recall, 1e-12)
        best = int(f1.argmax())
        results[names[category]] = ClassResult(
            float(precision[:, :, k].mean()), float(at_50.mean()), counts[category],
            float(f1[best]), float(scores[best, k]),
        )  # fmt: skip
    return results


def _index(images: list[Any], categories: list[Any], annotations: list[dict[str, Any]]) -> COCO:
    coco = COCO()
    coco.dataset = {
        "info": {},
        "images": images,
        "categories": categories,
        "annotations": [{**a, "id": i} for i, a in enumerate(annotations, start=1)],
    }
    coco.createIndex()
    return coco


def _gt_annotation(image: int, category: int, box: list[float], area: float, crowd: int) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": box, "area": area, "iscrowd": crowd}


def _xywh(box: np.ndarray) -> list[float]:
    x0, y0, x1, y1 = (float(v) for v in box)
    return [x0, y0, x1 - x0, y1 - y0]
