"""What predict.py finds, written as annotations, is read back by the readers of data sets."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO

from data.inputs import Source
from data.sample import DetectionSet
from detector.builders.data import build_set
from detector.config.file import parse_config
from detector.prediction.annotations import Result, voc
from detector.predictor import Detector, ImageDetections
from tests.predict.tools import ALL, files, read, rows, run

NAMES = ["0.png", "1.png", "2.png", "3.png", "4.png", "5.png", "deep/0.png"]


def read_set(**data: object) -> DetectionSet:
    config = parse_config({"data": {"splits": {"train": "train", "val": "train"}, **data}}, "the test")
    return build_set(config.data, "train")


def assert_found(records: DetectionSet, root: Path, trained: Path, within: float) -> None:
    """Compare boxes and classes of each image with what the detector finds, up to `within` pixels."""
    detector = Detector.load(trained / "run", "cpu")
    assert records.classes == detector.classes
    assert [Path(file).relative_to(root).as_posix() for file in records.files] == NAMES
    for row, name in enumerate(NAMES):
        found = detector(root / name)
        mine = slice(records.offsets[row], records.offsets[row + 1])
        assert records.labels[mine].tolist() == found.labels.tolist()
        np.testing.assert_allclose(records.boxes[mine], found.boxes, atol=within)


def test_instances_are_a_set_of_what_was_found(place: Path, trained: Path) -> None:
    assert run(place, trained, "images", *ALL, "--format", "instances", "--output", "out").code == 0
    assert files(place / "out") == {"instances.json"}
    records = read_set(
        format="coco",
        root=str(place),
        annotations="out/instances.json",
        images="images",
    )
    assert_found(records, place / "images", trained, 1e-3)
    loaded = COCO(str(place / "out/instances.json"))
    assert loaded.loadCats(loaded.getCatIds()) == [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
    assert all(
        a["area"] == a["bbox"][2] * a["bbox"][3] and 0 <= a["score"] <= 1 for a in loaded.anns.values()
    )


def test_labels_are_a_yolo_set_of_what_was_found(place: Path, trained: Path) -> None:
    assert run(place, trained, "images", *ALL, "--format", "yolo,csv", "--output", "out").code == 0
    labels = {f"labels/{Path(name).with_suffix('.txt')}" for name in NAMES}
    assert files(place / "out") == {"data.yaml", "detections.csv", *labels}
    (place / "images/notes.txt").unlink()
    shutil.copytree(place / "images", place / "out/images")
    with (place / "out/data.yaml").open("a") as file:
        file.write("train: images\n")
    assert_found(read_set(format="yolo", root=str(place / "out")), place / "out/images", trained, 0.01)


def test_xml_files_are_a_voc_set_of_what_was_found(place: Path, trained: Path) -> None:
    """In whole pixels, as annotation tools have them."""
    assert run(place, trained, "images", *ALL, "--format", "voc", "--output", "out").code == 0
    assert files(place / "out") == {f"Annotations/{Path(name).with_suffix('.xml')}" for name in NAMES}
    (place / "images/notes.txt").unlink()
    shutil.copytree(place / "images", place / "out/JPEGImages")
    lists = place / "out/ImageSets/Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("".join(f"{Path(name).with_suffix('')}\n" for name in NAMES))
    records = read_set(format="voc", root=str(place / "out"))
    assert_found(records, place / "out/JPEGImages", trained, 0.5)


def test_an_image_without_detections_was_looked_at(place: Path, trained: Path) -> None:
    words = ("images", "--threshold", "1", "--format", "instances,yolo", "--output", "out")
    assert run(place, trained, *words).code == 0
    listed = read(place / "out/instances.json")
    assert [image["file_name"] for image in listed["images"]] == NAMES
    assert listed["annotations"] == []
    assert all((place / "out/labels" / name).with_suffix(".txt").read_text() == "" for name in NAMES)


def test_files_of_one_name_are_told_apart(place: Path, trained: Path, caplog) -> None:
    words = ("images/0.png", "images/deep/0.png", *ALL, "--format", "instances,yolo,csv", "--output", "out")
    outcome = run(place, trained, *words)
    assert outcome.code == 0
    (said,) = [line for line in caplog.messages if "has the same name" in line]
    assert said.startswith("images/deep/0.png: another image") and said.endswith("labels/0-2.txt")
    names = [image["file_name"] for image in read(place / "out/instances.json")["images"]]
    assert names == ["images/0.png", "images/deep/0.png"]
    lines = [(place / "out/labels" / name).read_text().splitlines() for name in ("0.txt", "0-2.txt")]
    expected = [sum(row["file"] == name for row in rows(place / "out")) for name in names]
    assert list(map(len, lines)) == expected


@pytest.mark.parametrize("kind", ["instances", "voc", "yolo"])
def test_frames_are_left_out_and_counted(
    place: Path, trained: Path, kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from data.video import VideoWriter

    with VideoWriter(tmp_path / "clip.mp4", 5, (48, 64)) as video:
        for value in (0, 90):
            video.write(np.full((48, 64, 3), value, np.uint8))
    assert run(place, trained, "clip.mp4", "images/0.png", "--format", kind, "--output", "out").code == 0
    assert f"--format {kind}: annotations need image files, which 2 video frames" in caplog.text
    if kind == "yolo":
        assert files(place / "out") == {"data.yaml", "labels/0.txt"}
    elif kind == "voc":
        assert files(place / "out") == {"Annotations/0.xml"}
    else:
        assert [image["file_name"] for image in read(place / "out/instances.json")["images"]] == ["0.png"]


def test_a_box_at_the_very_edge_stays_inside_in_whole_pixels() -> None:
    """If rounded, it would begin where the image ends."""
    found = ImageDetections(
        np.array([[639.6, 479.7, 640.0, 480.0]]), np.ones(1), np.zeros(1, np.int64), ("cat",)
    )
    text = voc(Result(Source("image", Path("a.jpg"), Path("a.jpg")), None, (480, 640), found))
    corners = [int(re.search(f"<{side}>(.*)</{side}>", text)[1]) for side in ("xmin", "ymin", "xmax", "ymax")]
    assert corners == [639, 479, 640, 480]
