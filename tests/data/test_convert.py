"""data.convert: what it writes is read back unchanged, and serves as gt for evaluate.py --results."""

import contextlib
import io
import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import evaluate
import train
from data import convert
from data.sample import DetectionSet
from detector.builders.data import build_set
from detector.config.file import load_config
from tests.builders import TINY_MODEL, coco_dict, voc_xml, write_coco, write_image, write_voc
from tests.runs import assert_refused, call

BOXES = ((5.0, 6.0, 25.0, 24.0), (31.0, 11.0, 55.0, 31.0), (3.5, 20.25, 17.0, 44.0))


def voc_set(root: Path) -> None:
    """Four images, one of them empty and one with a difficult object."""
    kinds = ("dog", "cat", "dog")
    each = [[(kinds[k], BOXES[k], int(k == 2)) for k in some] for some in ((0, 1), (1,), (), (0, 1, 2))]
    images = {f"im{i}": voc_xml(objects, name=f"im{i}.jpg") for i, objects in enumerate(each)}
    write_voc(root, images, {"train": ["im0", "im1"], "val": ["im3", "im2", "im1"]})


def yolo_set(root: Path) -> None:
    """A validation split that joins two folders, one of them outside the set."""
    text = {
        "train/a": "0 0.3 0.4 0.2 0.3\n1 0.7 0.6 0.3 0.4\n",
        "val/b": "1 0.5 0.5 0.4 0.4\n0 0.21 0.3 0.1 0.2\n",
        "val/c": "",
    }
    for seed, (name, lines) in enumerate(text.items()):
        write_image(root / "images" / f"{name}.png", seed=seed)
        (root / "labels" / f"{name}.txt").parent.mkdir(parents=True, exist_ok=True)
        (root / "labels" / f"{name}.txt").write_text(lines)
    write_image(root.parent / "more" / "images" / "d.png", seed=9)
    (root.parent / "more" / "labels").mkdir()
    (root.parent / "more" / "labels" / "d.txt").write_text("1 0.6 0.5 0.3 0.7\n")
    (root / "data.yaml").write_text(
        "train: images/train\nval: [images/val, ../more/images]\nnames: [cat, dog]\n"
    )


def coco_set(root: Path) -> None:
    """Ids that are strings, ids that collide when train and val are joined, and a crowd."""
    content = coco_dict([[[4.0, 5.0, 20.0, 18.0], [30.0, 10.5, 24.0, 20.25]], [[8.0, 9.0, 20.0, 30.0]]])
    content["annotations"].append(content["annotations"][1] | {"id": 4, "iscrowd": 1, "area": 333.0})
    write_coco(root, content, content)
    for record in content["images"]:
        record["id"] = f"image {record['id']}"
    for record in content["annotations"]:
        record["image_id"] = f"image {record['image_id']}"
    (root / "annotations" / "texts.json").write_text(json.dumps(content))


SETS = {
    "voc": (voc_set, ("data.format=voc",), False),
    "yolo": (yolo_set, ("data.format=yolo",), False),
    "coco": (coco_set, ("data.format=coco",), True),
    "coco, texts": (coco_set, ("data.format=coco", "data.splits.val=texts"), False),
    "coco, joined": (coco_set, ("data.format=coco", "data.splits.val=[train, val]"), False),
    "coco, merged": (coco_set, ("data.format=coco", "data.merge={animal: [cat, dog]}"), False),
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "set").mkdir()
    (tmp_path / "own.yaml").write_text("data: {root: set, format: coco}\n")
    return tmp_path


def read(place: Path, *words: str, split: str = "val") -> DetectionSet:
    with contextlib.chdir(place):
        return build_set(load_config(Path("own.yaml"), list(words)).data, split)


@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize("case", SETS)
def test_what_is_written_is_read_back_as_it_was(place: Path, case: str, linked: bool) -> None:
    """With the printed keys, after those that it was written with."""
    write, words, _ = SETS[case]
    if linked:
        (place / "set").rmdir()
        (place / "far" / "away").mkdir(parents=True)
        (place / "far" / "away" / "set").mkdir()
        (place / "set").symlink_to(place / "far" / "away" / "set")
    write((place / "set").resolve())
    (place / "files").mkdir()
    done = call(convert.main, "own.yaml", *words, "--split", "val", "--output", "files/val.json", cwd=place)
    assert done.code == 0, done.err
    before = read(place, *words)
    keys = shlex.split(done.out.splitlines()[-1].removeprefix("read by "))
    after = read(place, *words, *keys)
    np.testing.assert_allclose(after.boxes, before.boxes, rtol=0, atol=1e-12)
    files = [[(place / name).resolve() for name in one.files] for one in (before, after)]
    assert files[0] == files[1]
    for name in ("image_ids", "sizes", "offsets", "labels", "ignore", "areas"):
        assert getattr(after, name).tolist() == getattr(before, name).tolist(), name
    assert (after.classes, after.category_ids) == (before.classes, before.category_ids)
    assert not after.renumbered


@pytest.mark.parametrize("case", SETS)
def test_it_is_the_gt_of_the_results_of_a_run(
    place: Path, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    """pycocotools, given both files, has the metrics of evaluate.py, which reports whether ids are new."""
    write, words, as_annotated = SETS[case]
    write(place / "set")
    if case != "coco, merged":
        words = (*words, "data.classes=[dog, cat]")  # in the run's order, not the set's own
    done = call(train.main, "own.yaml", *words, *TINY_MODEL, "run.dir=run", "train.epochs=1", cwd=place)
    assert done.code == 0, done.err
    caplog.clear()
    files = ("--results", "found.json", "--output", "metrics.json")
    assert call(evaluate.main, "run", *files, cwd=place).code == 0
    command = (
        "to write the ground truth with the same ids, use python -m data.convert run --split val --output "
        "FILE"
    )
    assert (command in caplog.text) == (not as_annotated)
    (place / "a copy").write_bytes((place / "run/checkpoints/best.pt").read_bytes())  # any name will do
    assert call(convert.main, "a copy", "--split", "val", "--output", "gt.json", cwd=place).code == 0
    metrics = json.loads((place / "metrics.json").read_text())
    found = json.loads((place / "found.json").read_text())
    assert len(found) > 20
    if as_annotated:
        (place / "gt.json").write_bytes((place / "set/annotations/val.json").read_bytes())
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO(str(place / "gt.json"))
        scored = COCOeval(gt, gt.loadRes(str(place / "found.json")), "bbox")
        scored.evaluate(), scored.accumulate(), scored.summarize()
    for name, value in zip(("AP", "AP50", "AP75"), scored.stats, strict=False):
        assert metrics[name] == pytest.approx(value, abs=1e-12)
    assert metrics["AR100"] == pytest.approx(scored.stats[8], abs=1e-12)


def test_a_command_is_named_with_the_data_of_the_evaluation(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    coco_set(place / "set")
    assert call(train.main, "own.yaml", *TINY_MODEL, "run.dir=run", "train.epochs=0", cwd=place).code == 0
    words = ("run", "data.splits.val=[val, train]", "eval.nms=hard", "--results", "joined.json")
    assert call(evaluate.main, *words, cwd=place).code == 0
    assert "data.convert run 'data.splits.val=[val, train]' --split val" in caplog.text


WRONG: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "nothing": (("--split", "val", "--output", "a.json"), ("CONFIG",)),
    "no configuration": (("data.format=voc", "--split", "val", "--output", "a.json"), ("CONFIG",)),
    "no split": (("own.yaml", "--output", "a.json"), ("--split",)),
    "no output": (("own.yaml", "--split", "val"), ("--output",)),
    "no such split": (("own.yaml", "--split", "vla", "--output", "a.json"), ("vla", "val")),
    "no test split": (("own.yaml", "--split", "test", "--output", "a.json"), ("data.splits.test",)),
    "its own gt": (
        ("own.yaml", "--split", "val", "--output", "set/annotations/val.json"),
        ("--output", "not an earlier output"),
    ),
    "split to be replaced": (
        ("own.yaml", "--split", "val", "--output", "{split}.json"),
        ("--output", "{split}.json"),
    ),
    "no folder": (("own.yaml", "--split", "val", "--output", "none/a.json"), ("folder none",)),
    "no run": (("set", "--split", "val", "--output", "a.json"), ("set", "run folder")),
    "wrong key": (("own.yaml", "data.rot=x", "--split", "val", "--output", "a.json"), ("data.rot",)),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_written_is_refused(place: Path, case: str) -> None:
    coco_set(place / "set")
    words, named = WRONG[case]
    assert_refused(convert.main, words, place, *named)


def test_a_file_of_its_own_is_replaced(place: Path) -> None:
    coco_set(place / "set")
    words = ("own.yaml", "--output", "a.json", "--split")
    assert call(convert.main, *words, "train", cwd=place).code == 0
    content: dict[str, Any] = json.loads((place / "a.json").read_text())
    assert call(convert.main, *words, "val", "data.classes=[dog]", cwd=place).code == 0
    changed = json.loads((place / "a.json").read_text())
    assert len(content["annotations"]) == 4 and len(changed["annotations"]) == 2
    assert changed["categories"] == [{"id": 7, "name": "dog"}]
    assert [one["id"] for one in content["annotations"]] == [1, 2, 3, 4]
