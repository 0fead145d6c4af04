"""Bad input ends in exit code 2 and one line that names what is at fault, and leaves nothing behind."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import train
from tests.builders import TINY_MODEL, small_coco
from tests.runs import Outcome, assert_one_line, assert_refused, call, listing, no_file_larger_than

PROJECT = Path(train.__file__).parent
YAML = "data: {format: coco, root: set}\ntrain: {epochs: 1}\n"
RUN = ("tiny.yaml", "run.dir=new", *TINY_MODEL)
Case = tuple[Any, tuple[str, ...]]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a data set and tiny.yaml, which would train as they are."""
    small_coco(tmp_path / "set", 4)
    (tmp_path / "tiny.yaml").write_text(YAML)
    (tmp_path / "elsewhere.png").write_bytes((tmp_path / "set/images/2.png").read_bytes())
    return tmp_path


# ------------------------------------------------------------------------ configuration

FILES: dict[str, Case] = {
    "malformed": ("train: {epochs: 1", ("bad.yaml", "not valid YAML")),
    "binary": (b"\xff\xfe\x00\x01", ("bad.yaml",)),
    "annotations": (
        '{"images": [], "annotations": [], "categories": []}',
        ("bad.yaml is a COCO annotation file", "data.root=FOLDER"),
    ),
    "a list": ("- train\n- data", ("bad.yaml", "mapping")),
    "no space": (
        "train:\n  epochs:3",
        ("bad.yaml: train: must hold settings", "space after the colon", "'epochs:3'"),
    ),
    "a word for a section": ("loss: ap", ("bad.yaml: loss: must hold settings", "'ap'")),
    "a key that is true": ("train: {on: 3}", ("bad.yaml: train: True is not a setting", "yes and no")),
    "no such day": ("train:\n  epochs: 2026-13-45", ("bad.yaml", "'2026-13-45' is not a value, line 2")),
    "no number": ('train: {epochs: !!int ""}', ("bad.yaml", "'' is not a value, line 1")),
    "a circle": (
        "data: {transforms: {train: &a [OneOf: {transforms: *a}]}}",
        ("bad.yaml", "an alias (*) refers"),
    ),
    "merged nothing": (
        "data: {merge: {a: [b], c: }}",
        ("bad.yaml: data.merge.c: must be a class or a list", "nothing;"),
    ),
    "dotted key": ("train.epochs: 3", ("'train.epochs'", "in a file, write train: {epochs: ...}")),
    "misspelt section": ("modell: {norm: group}", ("'modell'", "did you mean 'model'?")),
    "unknown key": ("train: {epoch: 3}", ("bad.yaml", "train.epoch", "did you mean 'train.epochs'?")),
    "unknown section": ("trainer: {epochs: 3}", ("bad.yaml", "'trainer'")),
    "scalar for a section": ("train: 3", ("bad.yaml", "train")),
    "wrong type": ("model: {pyramid_channels: wide}", ("bad.yaml", "model.pyramid_channels", "'wide'")),
    "bad element": ("model: {anchors: {ratios: [1, x]}}", ("bad.yaml", "model.anchors.ratios[1]", "'x'")),
    "base missing": ("base: nowhere.yaml", ("nowhere.yaml", "does not exist")),
    "base in a circle": ("base: bad.yaml", ("bad.yaml", "base")),
    "a section twice": ("train: {epochs: 2}\ntrain: {batch_size: 2}", ("bad.yaml", "'train' appears twice")),
    "unknown transform": ("data: {transforms: {eval: [Nope]}}", ("data.transforms.eval[0]", "'Nope'")),
}
OVERRIDES: dict[str, tuple[str, ...]] = {
    "optimizer.momentom=0.5": ("'optimizer.momentom'", "did you mean 'optimizer.momentum'?"),
    "traim.epochs=3": ("'traim.epochs'", "did you mean 'train.epochs'?"),
    "epochs=3": ("'epochs'", "did you mean 'train.epochs'?"),
    "batch=4": ("'batch'", "; use train.batch_size"),
    "train.early_stopping=3": ("'train.early_stopping'", "train.patience"),
    "model.num_classes=4": ("'model.num_classes'", "those of the annotations"),
    "imgsz=320": ("'imgsz'", "; use data.image_size"),
    "data.image_size=320": ("data.image_size", "data.transforms.eval has none"),
    "data.classes=cat": ("data.classes", "'cat'", '"data.classes=[a, b]"'),
    "data.splits.val=null": ("data.splits.val", "python -m data.split"),
    "data.transforms.train=[{HorizontalFlip: {p:0.5}}]": ("no parameter 'p:0.5'", "a space after the colon"),
    "train.device=0": ("train.device", "try cuda:0, or cpu"),
    "model.init=retinanet_resnet50_fpn_coco-eeacb38b.pth": ("https://", "/retinanet_resnet50_fpn_coco-"),
    "train=3": ("'train'",),
    "": ("an argument is empty",),
    "data.merge={pet: 1}": ("on the command line: data.merge.pet: must be a class or a list", "got 1"),
    "data.merge={pet:cat}": (
        "on the command line: data.merge.pet:cat: must be a class",
        "write a space after the colon",
    ),
    "model.anchors.sizes=[20, 40, 80, 160, 320]": ('quotes: "model.anchors.sizes=[[a, b], [c, d]]"',),
    "matcher.positive_iou=0.3": (
        "on the command line: matcher.negative_iou: 0.4 must not",
        "positive_iou, 0.3",
    ),
    "eval.tile=64": ("on the command line: eval.tile_overlap",),
    "train.epochs": ("'train.epochs'", "KEY=VALUE"),
    "=3": ("'=3'", "KEY=VALUE"),
    "train.epochs=[1": ("train.epochs", "[1"),
    "train.epochs=2026-13-45": ("train.epochs", "2026-13-45"),
    "train.epochs=3000000000": ("train.epochs", "3000000000"),
    "data.workers=99999999999999999999": ("data.workers", "1024"),
    "model.head_depth=99999999999999999999": ("model.head_depth", "100"),
    "train.seed=18446744073709551616": ("train.seed", "18446744073709551616"),
    "loss.delta=1e39": ("loss.delta", "1e6"),
    "data.splits.train=[]": ("data.splits.train",),
    "data.classes=[]": ("data.classes",),
    "data.classes=[cat, cat]": ("data.classes", "'cat' is listed twice"),
    "train.device=meta": ("train.device", "meta"),
    "data.transforms.train=[{RandomCrop: {height: 999, width: 999}}]": ("data.transforms.train", "Crop"),
    "data.transforms.train=[Normalize]": ("data.transforms.train", "normalises them itself"),
    "data.transforms.eval=[VerticalFlip]": ("data.transforms.eval", "only resizing"),
    "data.transforms.eval=[{ResizeWithin: {long: 1}}]": ("data.transforms.eval", "shrunk to 1 x 1"),
    "data.transforms.eval=[{Resize: {height: 2, width: 64}}]": ("data.transforms.eval", "shrunk to 64 x 2"),
    "train.epochs=": ("train.epochs",),
    "train.epochs=many": ("error: on the command line: train.epochs", "'many'"),
    "train.epochs =3": ("did you mean 'train.epochs'?",),
    "train.epochs=1.5": ("train.epochs", "1.5"),
    "train.epochs=true": ("train.epochs", "true"),
    "train.epochs=-1": ("train.epochs", "0"),
    "optimizer.lr=-1": ("optimizer.lr", "-1"),
    "optimizer.lr=.nan": ("optimizer.lr", "nan"),
    "loss.name=apx": ("loss.name", "'ap'", "'focal'", "'apx'"),
    "matcher.negative_iou=0.9": ("matcher.negative_iou", "positive_iou"),
    "train.device=abacus": ("train.device", "'abacus'"),
    "model.init=nowhere.pt": ("model.init", "nowhere.pt", "does not exist"),
    "model.init=set": ("model.init", "set has no checkpoints/best.pt"),
    "model.init=set/images/0.png": ("0.png",),
    "model.init=list.pt": ("list.pt",),
    "data.root=tiny.yaml": ("data.root: tiny.yaml is a file, but must be a folder",),
    "data.root=nowhere": ("data.root", "nowhere", "does not exist in /", "set data.root=FOLDER"),
    "data.images=nowhere": ("data.images", "nowhere", "does not exist"),
    "data.images=nowhere/{split}": ("data.images", "nowhere/train", "does not exist"),
    "data.images=annotations": ("train.json", "0.png", "not in set/annotations", "set data.images"),
    "data.splits.val=nowhere": ("annotations/nowhere.json", "does not exist", "has train.json, val.json"),
    "data.annotations=nowhere/{split}.json": ("nowhere/train.json", "set data.annotations"),
    "data.format=shapes": ("set contains something other", "data.format=coco, voc or yolo"),
    "data.format=voc": ("set/Annotations", "it looks like data.format=coco"),
    "data.classes=[cat, cow]": ("data.classes", "no box of class 'cow'"),
    "data.classes=[cow]": ("train.json", "'cow'", "its classes are cat, dog"),
    "run.dir=tiny.yaml/run": ("run.dir", "tiny.yaml/run"),
    "run.dir=set": ("run.dir", "set", "is not empty"),
} | ({"run.dir=locked/run": ("run.dir", "locked/run")} if os.geteuid() else {})


def test_a_missing_configuration_file_is_named(place: Path) -> None:
    (place / "configs").mkdir()
    (place / "configs" / "birds.yaml").touch()
    for words, *named in (
        (("nowhere.yaml",), "configuration file nowhere.yaml does not exist"),
        (("set",), "configuration file", "set", "cannot be read"),
        (("tiny.yml",), "tiny.yml does not exist; did you mean tiny.yaml?"),
        (("birds",), "birds does not exist; did you mean configs/birds.yaml?"),
        (("config/birds.yaml",), "did you mean configs/birds.yaml?"),
        (("train.epochs", "=", "3"), "'train.epochs' is not of the form KEY=VALUE", "without spaces"),
    ):
        assert_refused(train.main, words, place, *named)


def test_a_yolo_index_is_no_configuration(place: Path) -> None:
    """The suggestion is accepted, up to the images that are missing."""
    (place / "data.yaml").write_text("train: images\nval: images\nnames: [cat]\n")
    outcome = call(train.main, "data.yaml", cwd=place)
    assert_one_line(
        outcome, "data.yaml is the data.yaml of a YOLO set", "data.format=yolo data.root=data.yaml"
    )
    words = outcome.err.split("try configs/own.yaml ")[1].split()
    assert_refused(train.main, ("tiny.yaml", *words, "run.dir=new"), place, "'train: images' does not exist")


def test_the_base_that_is_meant_is_told_as_it_has_to_be_written(place: Path) -> None:
    (place / "mine").mkdir()
    (place / "mine" / "my.yaml").write_text("base: bccd.yaml\n")
    outcome = call(train.main, "mine/my.yaml", cwd=place)
    hint = outcome.err.rpartition("did you mean ")[2].rstrip("?\n")
    assert hint.endswith("configs/bccd.yaml") and (place / "mine" / hint).is_file(), outcome.err


def test_of_the_processes_of_a_machine_one_tells(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All processes of a launch find the same error in the configuration. The others wait for the first to
    report it, and report only what the first does not find."""
    waited: list[float] = []
    monkeypatch.setattr(train.time, "sleep", waited.append)
    for local_rank, waits in (("1", 1), ("0", 0)):
        monkeypatch.setenv("LOCAL_RANK", local_rank)
        level = logging.getLogger().level
        outcome = call(train.main, "nowhere.yaml", cwd=place)
        logging.getLogger().setLevel(level)
        assert_one_line(outcome, "nowhere.yaml does not exist")
        assert len(waited) == waits
        waited.clear()


def test_a_set_of_ones_own_is_not_taken_for_the_demo(place: Path) -> None:
    """Nor is a demo set made in a folder whose name is a typo."""
    (place / "set" / "annotations" / "shapes.json").touch()  # a demo set has it elsewhere
    for root in ("set", "sett"):
        words = (f"data.root={root}", "run.dir=new", *TINY_MODEL)
        assert_refused(train.main, words, place, f"data.root={root}", "give a CONFIG", "data.format=coco")


def test_the_configuration_may_stand_behind_the_keys(place: Path) -> None:
    """The last word, model.init, is what is refused: everything before it was read."""
    words = (*TINY_MODEL, "run.dir=new", "tiny.yaml", "model.init=nowhere.pt")
    assert_refused(train.main, words, place, "model.init: nowhere.pt does not exist")


@pytest.mark.parametrize("case", FILES)
def test_a_wrong_configuration_file_is_refused(place: Path, case: str) -> None:
    text, named = FILES[case]
    (place / "bad.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    words = ["data.format=coco", "data.root=set", "run.dir=new"]
    if case != "wrong type" and case != "scalar for a section":
        words += TINY_MODEL
    assert_refused(train.main, ("bad.yaml", *words), place, *named)


@pytest.mark.parametrize("override", OVERRIDES)
def test_a_wrong_override_is_refused(place: Path, override: str) -> None:
    torch.save([1, 2], place / "list.pt")
    (place / "locked").mkdir(mode=0o500)
    assert_refused(train.main, (*RUN, override), place, *OVERRIDES[override])


# ------------------------------------------------------------------------ data


def edited(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Damage that changes the content of train.json."""

    def damage(root: Path) -> None:
        path = root / "annotations" / "train.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return damage


def annotation(**values: Any) -> Callable[[Path], None]:
    """Change annotation 3, of image id 11 in 1.png."""
    return edited(lambda content: content["annotations"][2].update(values))


def image(**values: Any) -> Callable[[Path], None]:
    """Change image id 12, in 2.png."""
    return edited(lambda content: content["images"][2].update(values))


def written(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda root: (root / name).write_bytes(content) and None


THREE = ("annotation 3", "train.json")
DATA: dict[str, Case] = {
    "annotations missing": (lambda root: (root / "annotations/train.json").unlink(), ("train.json",)),
    "not JSON": (written("annotations/train.json", b'{"images": ['), ("train.json", "not valid JSON")),
    "CSV": (written("annotations/train.json", b"file,x0,y0\n1.png,3,4"), ("begins with 'file,x0,y0'",)),
    "empty": (written("annotations/train.json", b"\n"), ("train.json", "it is empty")),
    "class without a name": (
        edited(lambda c: c["categories"][0].update(name=None)),
        ("category", "name must be a string", "None"),
    ),
    "image without a name": (image(file_name=""), ("image id 12", "file_name must be a string")),
    "a list": (written("annotations/train.json", b"[]"), ("train.json", "'images'")),
    "no annotations": (edited(lambda c: c.pop("annotations")), ("train.json", "'annotations'")),
    "no categories": (edited(lambda c: c.pop("categories")), ("train.json", "'categories'")),
    "image missing": (lambda root: (root / "images/2.png").unlink(), ("2.png", "does not exist")),
    "image is garbage": (written("images/2.png", b"garbage" * 99), ("2.png", "not an image")),
    "image is empty": (lambda root: (root / "images/2.png").write_bytes(b""), ("2.png",)),
    "image cut in its header": (written("images/2.png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"), ("2.png",)),
    "image outside": (
        image(file_name="../../elsewhere.png"),
        ("image id 12", "../../elsewhere.png", "outside"),
    ),
    "image absolute": (image(file_name=str(Path("/elsewhere.png"))), ("image id 12", "/elsewhere.png")),
    "image of another size": (image(width=640), ("2.png", "64 x 48", "640 x 48")),
    "image with a text for a size": (
        edited(lambda c: c["images"][2].update(height="48")),
        ("image id 12", "height", "'48'"),
    ),
    "negative width": (annotation(bbox=[30, 5, -4, 9]), (*THREE, "1.png", "negative width")),
    "negative height": (annotation(bbox=[30, 20, 4, -9]), (*THREE, "1.png", "negative height")),
    "NaN": (annotation(bbox=[30, float("nan"), 4, 9]), (*THREE, "1.png", "NaN")),
    "infinite": (annotation(bbox=[30, 5, float("inf"), 9]), (*THREE, "1.png", "infinite")),
    "three numbers": (annotation(bbox=[30, 5, 4]), (*THREE, "bbox", "[30, 5, 4]")),
    "text for a number": (annotation(bbox=[30, 5, 4, "9"]), (*THREE, "bbox", "'9'")),
    "several reversed": (
        edited(lambda c: [a.update(bbox=[30, 5, -4, 9]) for a in c["annotations"][2:5]]),
        (*THREE, "so are 2 more"),
    ),
    "category unknown": (annotation(category_id=99), (*THREE, "category id 99")),
    "category a text": (annotation(category_id="x3"), (*THREE, "category id 'x3', a string")),
    "image unknown": (annotation(image_id=99), (*THREE, "image id 99")),
    "image a text": (annotation(image_id="x1"), (*THREE, "image id 'x1', a string")),
    "image id a text": (image(id="12"), ("image id '12', a string", "train.json")),
    "no images": (edited(lambda c: c.update(images=[], annotations=[])), ("data.splits.train", "no images")),
    "no boxes": (edited(lambda c: c.update(annotations=[])), ("data.splits.train", "no boxes")),
}


@pytest.mark.parametrize("case", DATA)
def test_wrong_data_are_refused(place: Path, case: str) -> None:
    damage, named = DATA[case]
    damage(place / "set")
    assert_refused(train.main, RUN, place, *named)


def test_a_truncated_image_ends_the_run_and_is_named(place: Path) -> None:
    """Its header is intact, so it is found on decoding, in the middle of training."""
    path = place / "set" / "images" / "2.png"
    path.write_bytes(path.read_bytes()[:2000])
    outcome = call(train.main, *RUN, cwd=place)
    assert_one_line(outcome, "set/images/2.png", "cannot be read", "is saved, continue with --resume new")


# ------------------------------------------------------------------------ in separate processes


def run_program(*words: str, cwd: Path, largest_file: str = "unlimited") -> Outcome:
    """Run a real process; `largest_file` is in the shell's blocks of 512 or 1024 bytes."""
    limited = ["sh", "-c", f'ulimit -f {largest_file}; exec "$@"', "sh", sys.executable, "-u"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*limited, *words], cwd=cwd, capture_output=True, text=True, env=environment)
    return Outcome(done.returncode, done.stdout, done.stderr)


def test_a_run_folder_that_cannot_be_made_costs_one_line(place: Path) -> None:
    """The model and the loaders are built by then: nothing else may have been printed."""
    before = listing(place)
    words = [str(PROJECT / "train.py"), *RUN, "schedule.warmup_steps=1", "run.dir=tiny.yaml/run"]
    assert_one_line(run_program(*words, cwd=place), "run.dir", "tiny.yaml/run")
    assert listing(place) == before


def test_a_disk_too_full_for_checkpoint_and_events_costs_one_line(place: Path) -> None:
    """TensorBoard writes from a thread of its own, which must not print its traceback either."""
    words = [str(PROJECT / "train.py"), *RUN, "schedule.warmup_steps=1"]
    assert_one_line(run_program(*words, cwd=place, largest_file="16"), "cannot write", "new/")
    assert not [path for path in (place / "new").rglob("*") if path.suffix in (".tmp", ".pt")]


def test_a_disk_too_full_for_the_configuration_costs_one_line(place: Path) -> None:
    with no_file_larger_than(1000):
        outcome = call(train.main, *RUN, cwd=place)
    assert_one_line(outcome, "cannot write new/config.yaml")
    assert not (place / "new").exists()
