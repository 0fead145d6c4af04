"""python -m data.split --folds: cross-validation."""

from pathlib import Path

import pytest

from data.coco import load_coco
from data.split.__main__ import main
from data.voc import load_voc
from data.yolo import load_yolo
from tests.builders import voc_xml, write_voc
from tests.data.test_split import IMAGES, coco, names, write_yolo
from tests.runs import assert_refused, call


def test_folds_hold_each_image_once_and_each_trains_on_the_others(tmp_path: Path) -> None:
    """Oracle: sets of names. Images 0 and 1 look the same, so they share a fold; every fold has its share."""
    coco(tmp_path / "set")
    words = ("set/annotations/all.json", "--folds", "4", "--test", "0.2")
    outcome = call(main, *words, cwd=tmp_path)
    assert (outcome.code, outcome.err) == (0, "")
    root = tmp_path / "set"

    def held(part: str) -> set[str]:
        return set(names(load_coco(root / f"annotations/{part}.json", root / "images")))

    folds, test = [held(f"val{k}") for k in range(1, 5)], held("test")
    every = {f"{k}.png" for k in range(IMAGES)}
    assert sorted(name for part in (*folds, test) for name in part) == sorted(every)
    assert all(len(part) in (3, 4, 5) for part in (*folds, test))
    assert sum({"0.png", "1.png"} <= part for part in (*folds, test)) == 1
    for k, fold in enumerate(folds, 1):
        assert held(f"train{k}") == every - fold - test
    lines = outcome.out.splitlines()
    for k in range(1, 5):
        own = f"data.splits.test=test data.splits.train=train{k} data.splits.val=val{k} run.dir=runs/fold{k}"
        assert f"python train.py configs/own.yaml data.root=set {own}" in lines
    assert lines[-1] == "python evaluate.py runs/fold1 runs/fold2 runs/fold3 runs/fold4 --mean"


@pytest.mark.parametrize("kind", ["voc", "yolo"])
def test_folds_of_other_layouts_can_be_read(tmp_path: Path, kind: str) -> None:
    root = tmp_path / "set"
    if kind == "voc":
        write_voc(root, {f"{k}": voc_xml([("cat", (4, 5, 24, 23), 0)]) for k in range(9)}, {})
    else:
        write_yolo(root, 9)
        (root / "data.yaml").write_text("train: images\nnames: [cat]\n")
    outcome = call(main, "set", "--folds", "3", cwd=tmp_path)
    assert (outcome.code, outcome.err) == (0, "")
    if kind == "yolo":
        lines = outcome.out.splitlines()
        entries = [line for line in lines if line.endswith(".txt") and ": " in line and line[0] in "tv"]
        (root / "data.yaml").write_text("\n".join([*entries, "names: [cat]"]))
    load = load_voc if kind == "voc" else load_yolo
    for k in range(1, 4):
        train, val = ({Path(n).stem for n in names(load(root, f"{part}{k}"))} for part in ("train", "val"))
        assert train | val == set("012345678") and not train & val and len(val) == 3


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--folds", "1"), ("--folds", "2 to 99")),
        (("--folds", "many"), ("--folds", "whole number")),
        (("--folds", "5", "--val", "0.2"), ("--val 0.2 --folds 5", "leave out --val")),
        (("--folds", "30"), ("nothing is left for", "fewer folds")),
    ],
)
def test_folds_that_cannot_be_are_refused(
    tmp_path: Path, words: tuple[str, ...], named: tuple[str, ...]
) -> None:
    coco(tmp_path / "set")
    before = sorted(tmp_path.rglob("*"))
    assert_refused(main, ("set/annotations/all.json", *words), tmp_path, *named)
    assert sorted(tmp_path.rglob("*")) == before
