"""predict.py: what it writes, what it leaves alone, and how it ends."""

import contextlib
import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

import evaluate
import predict
import train
from data.inputs import RESULTS_MARK, Source
from data.video import VideoReader, VideoWriter
from detector.evaluation.checkpoint import CheckpointScores, evaluate_checkpoint
from detector.prediction.results import ResultsFolder
from detector.predictor import Detector
from doors import INTERRUPTED
from errors import InputError
from tests.builders import TINY_MODEL, small_coco, write_image
from tests.runs import Outcome, assert_one_line, assert_refused, call, listing, no_file_larger_than

ALL = ("--threshold", "0")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    small_coco(folder / "set")
    (folder / "tiny.yaml").write_text(f"data: {{format: coco, root: {folder}/set}}\ntrain: {{epochs: 1}}\n")
    assert call(train.main, "tiny.yaml", "run.dir=run", *TINY_MODEL, cwd=folder).code == 0
    return folder


@pytest.fixture(scope="module")
def evaluated(trained: Path) -> CheckpointScores:
    return evaluate_checkpoint(trained / "run", [], "val")


@pytest.fixture
def place(tmp_path: Path, trained: Path) -> Path:
    """A folder with images/ of 0.png to 5.png, deep/0.png and a text file."""
    shutil.copytree(trained / "set" / "images", tmp_path / "images")
    (tmp_path / "images" / "deep").mkdir()
    shutil.copy(tmp_path / "images" / "1.png", tmp_path / "images" / "deep" / "0.png")
    (tmp_path / "images" / "notes.txt").write_text("no image")
    return tmp_path


def run(place: Path, trained: Path, *words: str) -> Outcome:
    return call(predict.main, str(trained / "run"), *words, "--device", "cpu", cwd=place)


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "detections.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def files(folder: Path) -> set[str]:
    """Without the mark by which results are known."""
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return found - {RESULTS_MARK}


@contextlib.contextmanager
def standard_input(content: bytes) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(content)))
        yield


def to_results(records, predictions) -> list[dict]:
    """Predictions as entries of a COCO results file, with the set's own image and category ids."""
    p = predictions
    return [
        {
            "image_id": int(records.image_ids[row]),
            "category_id": int(records.category_ids[label]),
            "bbox": [float(v) for v in (*box[:2], *(box[2:] - box[:2]))],
            "score": float(score),
        }
        for row, label, box, score in zip(p.rows, p.labels, p.boxes, p.scores, strict=True)
    ]


def test_results_are_those_of_evaluation_and_can_be_scored(place, trained, evaluated) -> None:
    """Entry by entry what evaluate.py makes of the val split; pycocotools reads the two files together."""
    outcome = run(place, trained, "images/?.png", *ALL, "--output", "out")
    assert (outcome.code, outcome.err) == (0, "")
    expected = to_results(evaluated.records, evaluated.scores.predictions)
    assert outcome.out == f"{len(expected)} detections in 6 images: out\n"
    assert files(place / "out") == {"coco.json", "images.json", "detections.csv"} | {
        f"pictures/{i}.png" for i in range(6)
    }
    listed = read(place / "out/images.json")
    assert [image["file_name"] for image in listed["images"]] == [f"images/{i}.png" for i in range(6)]
    ids = {10 + i: image["id"] for i, image in enumerate(listed["images"])}

    def key(entry: dict[str, Any]) -> tuple[int, float]:
        return entry["image_id"], -entry["score"]

    renumbered = sorted(({**entry, "image_id": ids[entry["image_id"]]} for entry in expected), key=key)
    assert sorted(read(place / "out/coco.json"), key=key) == renumbered
    loaded = COCO(str(place / "out/images.json")).loadRes(str(place / "out/coco.json"))
    assert len(loaded.anns) == len(expected)
    assert {c["id"]: c["name"] for c in loaded.dataset["categories"]} == {3: "cat", 7: "dog"}
    truth = read(trained / "set/annotations/val.json")
    for records, field in ((truth["images"], "id"), (truth["annotations"], "image_id")):
        for record in records:
            record[field] = ids[record[field]]
    (place / "truth.json").write_text(json.dumps(truth))
    others = json.dumps({**truth, "images": [{**i, "file_name": f"x{i['id']}.png"} for i in truth["images"]]})
    (place / "others.json").write_text(others)
    words = ("--predictions", "out/coco.json", "--annotations", "others.json")
    assert_refused(evaluate.main, words, place, "out/coco.json", "image id 1 is images/0.png", "--results")
    words = ("--predictions", "out/coco.json", "--annotations", "truth.json", "--output", "scores.json")
    assert call(evaluate.main, *words, cwd=place).code == 0
    assert read(place / "scores.json")["AP"] == evaluated.scores.coco.summary["AP"]


def test_csv_says_the_same_as_coco(place, trained) -> None:
    assert run(place, trained, "images", *ALL, "--format", "csv,coco").code == 0
    folder = place / "predictions"
    assert files(folder) == {"coco.json", "images.json", "detections.csv"}
    names = {image["id"]: image["file_name"] for image in read(folder / "images.json")["images"]}
    assert set(names.values()) == {f"images/{i}.png" for i in range(6)} | {"images/deep/0.png"}
    entries = read(folder / "coco.json")
    assert len(entries) == len(rows(folder)) > 0
    for entry, row in zip(entries, rows(folder), strict=True):
        assert row["file"] == names[entry["image_id"]]
        assert row["class"] == {3: "cat", 7: "dog"}[entry["category_id"]]
        assert row["frame"] == ""
        x0, y0, width, height = entry["bbox"]
        box = [float(row[side]) for side in ("x0", "y0", "x1", "y1")]
        np.testing.assert_allclose(box, [x0, y0, x0 + width, y0 + height], atol=0.006)
        assert float(row["score"]) == pytest.approx(entry["score"], abs=1e-6)


def test_thresholds_are_those_of_the_checkpoint_or_the_one_given(place, trained, evaluated) -> None:
    """Counted in the predictions of the evaluation."""
    predictions, per_class = evaluated.scores.predictions, evaluated.scores.coco.per_class
    both = [per_class[name] for name in ("cat", "dog")]
    best = np.array([one.best_threshold if one.best_f1 > 0 else 0.5 for one in both])[predictions.labels]
    middle = float(np.median(predictions.scores))
    dogs = np.array([best[predictions.labels == 0][0], middle])[predictions.labels]
    cats = np.array([middle, 1.0])[predictions.labels]
    for option, threshold in (
        ((), best),
        (("--threshold", repr(middle)), middle),
        (("--threshold", f"dog={middle!r}"), dogs),
        (("--threshold", f"1,cat={middle!r}"), cats),
    ):
        words = (*option, "--format", "coco", "--output", "".join(("out", *option)))
        assert run(place, trained, "images/?.png", *words).code == 0
        count = len(read(place / words[-1] / "coco.json"))
        assert 0 < count == (predictions.scores >= threshold).sum() < len(predictions.scores)


def test_settings_of_evaluation_can_be_changed(place: Path, trained: Path) -> None:
    words = ("images/?.png", "--threshold", "0", "--format", "coco", "eval.detections_per_img=1")
    assert run(place, trained, *words, "--output", "one").code == 0
    found = [entry["image_id"] for entry in read(place / "one" / "coco.json")]
    assert sorted(found) == sorted(set(found)) != []


def test_pictures_keep_the_tree_and_names_do_not_meet(place, trained) -> None:
    Image.new("RGB", (64, 48)).save(place / "images" / "0.bmp")
    Image.new("RGB", (64, 48)).save(place / "images" / "0.jpg")
    words = ("images", "images/deep/0.png", "images/1.png", *ALL, "--format", "pictures")
    assert run(place, trained, *words).code == 0
    names = {*(f"{i}.png" for i in range(6)), "deep/0.png", "0.jpg", "0-2.jpg"}
    assert files(place / "predictions") == {f"pictures/{name}" for name in names}
    drawn = np.asarray(Image.open(place / "predictions/pictures/1.png"))
    assert drawn.shape == (48 * 8, 64 * 8, 3)


def test_a_folder_may_be_called_as_the_picture_of_another_input(place, trained) -> None:
    """b.jpg and x.jpg are folders; b.webp comes after the one, and x.bmp before the other."""
    for folder, name in (("b.jpg", "b.webp"), ("x.jpg", "x.bmp")):
        Image.new("RGB", (64, 48)).save(place / "images" / name)
        (place / "images" / folder).mkdir()
        shutil.copy(place / "images" / "1.png", place / "images" / folder / "y.png")
    assert run(place, trained, "images", *ALL, "--format", "pictures").code == 0
    names = files(place / "predictions/pictures")
    assert len(names) == 11
    assert {"b.jpg/y.png", "b-2.jpg", "x.jpg", "x.jpg-2/y.png"} <= names


@pytest.mark.parametrize("problem", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError()])
def test_an_image_that_does_not_fit_into_the_memory_is_left_out(
    place, trained, problem: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch that does not is made smaller; all else is done, and written."""
    detect, asked = Detector.__call__, []

    def limited(detector: Detector, images: Any) -> Any:
        asked.append(len(images))
        if len(images) > 2 or any(image.shape[0] > 48 for image in images):
            raise problem
        return detect(detector, images)

    monkeypatch.setattr(Detector, "__call__", limited)
    Image.new("RGB", (64, 49)).save(place / "images" / "large.png")
    outcome = run(place, trained, "images", *ALL, "--batch", "4")
    assert outcome.code == 0, outcome.err
    assert max(asked) == 4
    (failed,) = (place / "predictions/failed.txt").read_text().splitlines()
    assert "large.png (64 x 49 px): needs more memory than there is" in failed
    assert len(read(place / "predictions/images.json")["images"]) == 7
    assert len(files(place / "predictions/pictures")) == 7


@pytest.mark.parametrize(
    ("problem", "code"), [(MemoryError, 0), (KeyboardInterrupt, INTERRUPTED)], ids=["memory", "ctrl-c"]
)
def test_of_a_video_that_does_not_end_well_no_half_is_left(
    place: Path, trained: Path, monkeypatch: pytest.MonkeyPatch, problem: type[BaseException], code: int
) -> None:
    """It breaks off at its second batch, of white frames; the image before it is kept all the same."""
    detect = Detector.__call__

    def limited(detector: Detector, images: Any) -> Any:
        if any(image.mean() > 200 for image in images):
            raise problem
        return detect(detector, images)

    monkeypatch.setattr(Detector, "__call__", limited)
    with VideoWriter(place / "clip.mp4", 5, (48, 64)) as video:
        for grey in (0, 0, 255, 255):
            video.write(np.full((48, 64, 3), grey, np.uint8))
    outcome = run(place, trained, "images/0.png", "clip.mp4", *ALL, "--batch", "2", "--output", "out")
    assert outcome.code == code, outcome.err
    assert [image["file_name"] for image in read(place / "out/images.json")["images"]] == ["images/0.png"]
    assert {row["file"] for row in rows(place / "out")} == {"images/0.png"}
    assert not [name for name in files(place / "out") if "clip" in name]
    if problem is MemoryError:
        assert "clip.mp4 (64 x 48 px): needs more memory" in (place / "out/failed.txt").read_text()


def test_a_scheduler_that_ends_it_loses_nothing_that_was_found(
    place: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM comes with the second batch, and is again what it was when the work has ended."""
    detect, batches, before = Detector.__call__, [], signal.getsignal(signal.SIGTERM)

    def ended(detector: Detector, images: Any) -> Any:
        batches.append(images)
        if len(batches) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return detect(detector, images)

    monkeypatch.setattr(Detector, "__call__", ended)
    outcome = run(place, trained, "images/?.png", *ALL, "--batch", "2", "--output", "out")
    assert outcome.code == 128 + signal.SIGTERM
    kept = [image["file_name"] for image in read(place / "out/images.json")["images"]]
    assert kept == ["images/0.png", "images/1.png"]
    assert {row["file"] for row in rows(place / "out")} == set(kept)
    assert signal.getsignal(signal.SIGTERM) == before


def test_it_is_written_down_where_each_input_is_drawn(place: Path, trained: Path) -> None:
    """Inputs of one stem in a folder, and of one name in several, as a pattern gives them."""
    for name in ("cam1/a.jpg", "cam1/a.bmp", "cam2/a.jpg"):
        (place / "cams" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 48), (int(name[3]) * 90, 0, 0)).save(place / "cams" / name)
    outcome = run(place, trained, "cams/*/a.*", *ALL, "--threshold", "1", "--output", "out")
    assert outcome.code == 0, outcome.err
    drawn = {image["file_name"]: image["drawn"] for image in read(place / "out/images.json")["images"]}
    assert drawn == {
        "cams/cam1/a.bmp": "pictures/cam1/a.jpg",
        "cams/cam1/a.jpg": "pictures/cam1/a-2.jpg",
        "cams/cam2/a.jpg": "pictures/cam2/a.jpg",
    }
    for name, picture in drawn.items():
        red = np.array(Image.open(place / "out" / picture))[..., 0].mean()
        assert red == pytest.approx(int(name[8]) * 90, abs=2)


def test_an_image_that_the_transforms_cannot_take_is_left_out(
    place: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = Detector._sample

    def refusing(detector: Detector, index: int, image: Any, name: str) -> Any:
        if image.shape[0] > 48:
            raise InputError("data.transforms.eval: the transforms fail")
        return sample(detector, index, image, name)

    monkeypatch.setattr(Detector, "_sample", refusing)
    Image.new("RGB", (64, 49)).save(place / "images" / "large.png")
    assert run(place, trained, "images", *ALL).code == 0
    (failed,) = (place / "predictions/failed.txt").read_text().splitlines()
    assert "large.png (64 x 49 px): data.transforms.eval: the transforms fail" in failed
    assert len(read(place / "predictions/images.json")["images"]) == 7


def test_a_name_may_be_as_long_as_the_system_allows(tmp_path: Path) -> None:
    """82 letters of three bytes."""
    path = tmp_path / f"{82 * chr(0x6620)}.mp4"
    with VideoWriter(path, 5, (48, 64)) as video:
        video.write(np.zeros((48, 64, 3), np.uint8))
    assert len(list(VideoReader(path))) == 1


def test_results_come_in_the_order_of_the_inputs(place: Path, trained: Path) -> None:
    """Images of one shape are detected together, and videos last."""
    write_image(place / "tall.png", 64, 40)
    with VideoWriter(place / "clip.mp4", 5, (48, 64)) as video:
        for _ in range(2):
            video.write(np.zeros((48, 64, 3), np.uint8))
    names = ["images/3.png", "tall.png", "clip.mp4", "images/1.png", "images/0.png"]
    assert run(place, trained, *names, *ALL, "--format", "coco,csv", "--output", "out").code == 0
    expected = [*names[:3], *names[2:]]  # the video has two frames
    assert [image["file_name"] for image in read(place / "out/images.json")["images"]] == expected
    assert list(dict.fromkeys(row["file"] for row in rows(place / "out"))) == names


@pytest.mark.parametrize(("width", "name"), [(65_000, "wide.jpg"), (70_000, "wide.png")])
def test_a_picture_too_wide_for_jpeg_becomes_png(tmp_path: Path, width: int, name: str) -> None:
    """JPEG writes a side in 16 bits."""
    folder = ResultsFolder(tmp_path / "out")
    folder.write_picture(
        Source("image", Path("wide.webp"), Path("wide.webp")), np.zeros((1, width, 3), np.uint8)
    )
    assert files(tmp_path / "out") == {f"pictures/{name}"}
    assert Image.open(tmp_path / "out/pictures" / name).size == (width, 1)


def test_a_video_that_breaks_off_is_told_with_what_there_is_of_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writer = cv2.VideoWriter(str(tmp_path / "clip.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 5, (64, 48))
    for seed in range(10):
        writer.write(np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8))
    writer.release()
    assert len(list(VideoReader(tmp_path / "clip.avi"))) == 10
    assert caplog.messages == []
    whole = (tmp_path / "clip.avi").read_bytes()
    (tmp_path / "clip.avi").write_bytes(whole[: len(whole) // 2])
    count = len(list(VideoReader(tmp_path / "clip.avi")))
    assert 1 < count < 9
    assert caplog.messages == [f"video {tmp_path}/clip.avi breaks off after {count} of 10 frames"]


@pytest.mark.parametrize(("rate", "taken"), [(12, 12), (5000, 25)])
def test_a_rate_that_no_video_has_is_not_believed(tmp_path: Path, rate: int, taken: int) -> None:
    with VideoWriter(tmp_path / "clip.mp4", rate, (48, 64)) as video:
        video.write(np.zeros((48, 64, 3), np.uint8))
    assert VideoReader(tmp_path / "clip.mp4").rate == taken


def test_a_video_of_frames_too_large_for_mpeg4_is_drawn_smaller(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a.mp4", 5, (100, 8200)) as video:
        video.write(np.zeros((100, 8200, 3), dtype=np.uint8))
    frame = cv2.VideoCapture(str(tmp_path / "a.mp4")).read()[1]
    assert frame.shape == (100, 8190, 3)


def test_the_next_folder_is_taken_and_nothing_is_overwritten(place, trained) -> None:
    for name in ("predictions", "predictions-2", "predictions-3"):
        before = listing(place)
        assert run(place, trained, "images/0.png").out.endswith(f": {name}\n")
        after = listing(place)
        assert all(after[path] == before[path] for path in before)


def test_results_in_a_folder_that_was_named_are_no_inputs_of_the_next_run(place: Path, trained: Path) -> None:
    for name in ("mine", "later"):
        assert run(place, trained, ".", *ALL, "--output", name).code == 0
    assert read(place / "later/images.json") == read(place / "mine/images.json")


def test_broken_files_are_left_out_listed_and_counted(place, trained, caplog) -> None:
    """One without a header, one cut off behind it, which is found in the middle of a batch."""
    (place / "images/0.png").write_bytes(b"no image")
    whole = (place / "images/2.png").read_bytes()
    (place / "images/2.png").write_bytes(whole[: len(whole) // 2])
    (place / "images/clip.mp4").write_bytes(b"no video")
    outcome = run(place, trained, "images", *ALL)
    assert outcome.code == 0
    assert caplog.messages == ["3 of 8 inputs could not be used; see predictions/failed.txt"]
    assert outcome.out.endswith("in 5 images: predictions\n")
    failed = [line.split("\t") for line in (place / "predictions/failed.txt").read_text().splitlines()]
    assert {path for path, _ in failed} == {"images/0.png", "images/2.png", "images/clip.mp4"}
    assert all(path in reason and "cannot be read" in reason for path, reason in failed)
    kept = [image["file_name"] for image in read(place / "predictions/images.json")["images"]]
    assert kept == ["images/1.png", "images/3.png", "images/4.png", "images/5.png", "images/deep/0.png"]
    assert {row["file"] for row in rows(place / "predictions")} == set(kept)


def test_a_batch_size_changes_no_more_than_rounding(place, trained) -> None:
    for size in ("1", "3"):
        words = ("images", *ALL, "--batch", size, "--format", "coco", "--output", size)
        assert run(place, trained, *words).code == 0
    one, three = (read(place / size / "coco.json") for size in ("1", "3"))
    assert len(one) == len(three)
    scores = [[entry["score"] for entry in entries] for entries in (one, three)]
    np.testing.assert_allclose(*scores, rtol=1e-4, atol=1e-5)  # calibration is steep in places


def test_a_pattern_with_the_shape_of_a_setting_is_a_pattern(place, trained) -> None:
    (place / "exp.lr=0.1/a/b").mkdir(parents=True)
    (place / "images/0.png").rename(place / "exp.lr=0.1/a/b/0.png")
    for number, pattern in enumerate(("exp.lr=0.1/*/*/*.png", "exp.lr=0.1/**/*.png")):
        assert run(place, trained, pattern, *ALL, "--output", str(number)).code == 0
        (image,) = read(place / str(number) / "images.json")["images"]
        assert image["file_name"] == "exp.lr=0.1/a/b/0.png"


def test_an_image_on_standard_input_is_that_image(place, trained) -> None:
    with standard_input((place / "images/0.png").read_bytes()):
        assert run(place, trained, "-", *ALL, "--output", "piped").code == 0
    assert run(place, trained, "images/0.png", *ALL, "--output", "named").code == 0
    assert read(place / "piped/coco.json") == read(place / "named/coco.json")
    assert files(place / "piped") == {"coco.json", "images.json", "detections.csv", "pictures/stdin.jpg"}
    assert {row["file"] for row in rows(place / "piped")} == {"stdin"}


def test_a_video_is_detected_frame_by_frame(place, trained) -> None:
    """Frames without loss: the results of each are those of the same picture in a file."""
    pictures = [cv2.imread(str(place / f"images/{i}.png")) for i in range(5)]
    writer = cv2.VideoWriter(str(place / "clip.avi"), cv2.VideoWriter.fourcc(*"FFV1"), 12, (64, 48))
    for picture in pictures:
        writer.write(picture)
    writer.release()
    read_back = cv2.VideoCapture(str(place / "clip.avi"))
    (place / "frames").mkdir()
    for number in range(5):
        assert cv2.imwrite(str(place / f"frames/{number}.png"), read_back.read()[1])
    assert run(place, trained, "clip.avi", *ALL, "--batch", "2", "--output", "video").code == 0
    assert run(place, trained, "frames", *ALL, "--batch", "2", "--output", "files").code == 0
    assert read(place / "video/coco.json") == read(place / "files/coco.json")
    images = read(place / "video/images.json")["images"]
    assert [(image["file_name"], image["frame"]) for image in images] == [("clip.avi", i) for i in range(5)]
    assert {row["frame"] for row in rows(place / "video")} == set("01234")
    drawn = cv2.VideoCapture(str(place / "video/videos/clip.mp4"))
    assert drawn.get(cv2.CAP_PROP_FPS) == 12
    frames = [drawn.read()[1] for _ in range(5)]
    assert frames[0].shape == (48 * 8, 64 * 8, 3)
    assert not drawn.read()[0]
    assert files(place / "video") == {"coco.json", "images.json", "detections.csv", "videos/clip.mp4"}


REFUSED = {  # words -> what the line says
    ("images", "--threshold", "1.5"): ("--threshold", "1.5"),
    ("images", "--threshold", "nan"): ("--threshold", "nan"),
    ("images", "--threshold", "high"): ("--threshold", "'high'"),
    ("images", "--threshold", "cat=2"): ("--threshold", "not cat=2"),
    ("images", "--threshold", "cow=0.5"): ("--threshold", "no class 'cow'", "cat, dog"),
    ("images", "--format", "coco,xml"): ("--format", "'xml'", "pictures, coco, csv"),
    ("images", "--batch", "0"): ("--batch", "0"),
    ("images", "--batch", "1.5"): ("--batch", "1.5"),
    ("images", "--batch", "inf"): ("--batch", "inf"),
    ("images", "--batch", "1e30"): ("--batch", "1e30"),
    ("images", "--output", "images"): ("--output", "images", "holds something already"),
    ("images", "--output", "images/0.png"): ("--output", "images/0.png", "no folder"),
    ("images", "--output", "images/0.png/new"): ("--output", "images/0.png/new"),
    ("images", "eval.detections_per_image=1"): ("did you mean 'eval.detections_per_img'?",),
    ("eval.nms=hard",): ("give an image",),
    ("images", "a=1.jpg"): ("a=1.jpg", "does not exist"),
    ("images", "train.device=cpu"): ("train.device", "--device"),
    ("images", "data.classes=[bird]"): ("data.classes", "leave the key out"),
    ("images", "nowhere.jpg"): ("nowhere.jpg", "does not exist"),
    ("nowhere/*.jpg",): ("nowhere/*.jpg", "matches nothing"),
    ("empty",): ("empty", "no images"),
    ("images/notes.txt",): ("images/notes.txt", "cannot be read"),
    ("images/notes.txt", "bad.mp4"): ("none of the 2 inputs", "images/notes.txt"),
    ("-",): ("standard input", "cannot be read"),
}


@pytest.mark.parametrize("words", REFUSED, ids=" ".join)
def test_bad_input_costs_one_line_and_leaves_nothing(
    place: Path, trained: Path, words: tuple[str, ...]
) -> None:
    (place / "empty").mkdir()
    (place / "bad.mp4").write_bytes(b"no video")
    with standard_input(b"no image"):
        assert_refused(predict.main, (str(trained / "run"), *words), place, *REFUSED[words])


def test_a_video_that_is_none_costs_one_line_of_a_process(place: Path, trained: Path) -> None:
    """FFmpeg writes to the terminal past Python."""
    (place / "bad.mp4").write_bytes(b"no video")
    (place / "cut.webm").write_bytes(b"\x1a\x45\xdf\xa3" + b"0" * 99)
    for name in ("bad.mp4", "cut.webm"):
        words = [sys.executable, predict.__file__, str(trained / "run"), name, "--device", "cpu"]
        done = subprocess.run(words, cwd=place, capture_output=True, text=True)
        assert_one_line(Outcome(done.returncode, done.stdout, done.stderr), f"video {name} cannot be read")


def test_names_that_opencv_does_not_take_for_files_are_no_hindrance(place: Path, trained: Path) -> None:
    """It takes "12:30.mp4" for an address, and dies of what is not UTF-8."""
    with VideoWriter(place / "clip.mp4", 5, (48, 64)) as video:
        video.write(np.zeros((48, 64, 3), np.uint8))
    shutil.copy(place / "clip.mp4", place / "12:30.mp4")
    (place / "clip.mp4").rename(place / "caf\udce9.mp4")
    outcome = run(place, trained, "12:30.mp4", "caf\udce9.mp4", *ALL, "--output", "out")
    assert outcome.code == 0
    assert len(read(place / "out/images.json")["images"]) == 1
    assert "its name is not UTF-8" in (place / "out/failed.txt").read_text(errors="surrogateescape")


def test_a_wrong_checkpoint_or_device_costs_one_line(place: Path, trained: Path) -> None:
    assert_refused(predict.main, ("nowhere", "images"), place, "nowhere does not exist")
    assert_refused(predict.main, ("images/0.png", "images"), place, "images/0.png")
    words = (str(trained / "run"), "images", "--device", "abacus")
    assert_refused(predict.main, words, place, "device: 'abacus'")


def test_a_full_disk_costs_one_line_and_leaves_no_half_file(place: Path, trained: Path) -> None:
    write_image(place / "images/0.png", 600, 800)  # its drawn picture is larger than what there is room for
    with no_file_larger_than(20_000):
        outcome = run(place, trained, "images/0.png", *ALL)
    assert_one_line(outcome, "cannot write predictions/pictures/0.png")
    assert files(place / "predictions") == {"coco.json", "images.json", "detections.csv"}


def test_a_disk_too_full_for_a_video_costs_one_line(place: Path, trained: Path) -> None:
    """OpenCV writes on as if nothing were the matter."""
    writer = cv2.VideoWriter(str(place / "clip.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 25, (640, 480))
    for seed in range(3):
        writer.write(np.random.default_rng(seed).integers(0, 256, (480, 640, 3), dtype=np.uint8))
    writer.release()
    with no_file_larger_than(50_000):
        outcome = run(place, trained, "clip.avi", *ALL)
    assert_one_line(outcome, "cannot write predictions/videos/clip.mp4")
    assert files(place / "predictions") == set()
