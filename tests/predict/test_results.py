"""predict.py: what it writes, and where."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

import evaluate
import predict
from data.images import read_size
from data.inputs import Source
from data.video import VideoWriter
from detector.evaluation.checkpoint import CheckpointScores
from detector.prediction import session
from detector.prediction.results import ResultsFolder
from detector.predictor import Detector
from tests.builders import write_image
from tests.predict.tools import ALL, files, read, rows, run, standard_input, to_results
from tests.runs import assert_refused, call, listing


def test_results_are_those_of_evaluation_and_can_be_scored(place, trained, evaluated) -> None:
    """Entry by entry those of evaluate.py on the val split; pycocotools reads the two files together."""
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
    """Oracle: counts in the predictions of the evaluation."""
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
        (("--threshold", repr(middle), "--classes", "cat"), cats),
        (("--threshold", f"dog={middle!r}", "--classes", "dog, cat"), dogs),
    ):
        words = (*option, "--format", "coco", "--output", "".join(("out", *option)))
        assert run(place, trained, "images/?.png", *words).code == 0
        count = len(read(place / words[-1] / "coco.json"))
        assert 0 < count == (predictions.scores >= threshold).sum() < len(predictions.scores)


def test_one_box_is_left_of_each_object(place: Path, trained: Path) -> None:
    """Of the boxes above the threshold."""
    for words in ((), ("--one-per-object",)):
        out = "".join(("out", *words))
        assert run(place, trained, "images/0.png", *ALL, *words, "--format", "csv", "--output", out).code == 0
    every, left = (rows(place / name) for name in ("out", "out--one-per-object"))
    found = Detector.load(trained / "run", device="cpu")(place / "images/0.png").one_per_object()
    assert [row["class"] for row in left] == list(found.names)
    assert 0 < len(left) < len(every)


def test_settings_of_evaluation_can_be_changed(
    place: Path, trained: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = ("images/?.png", "--threshold", "0", "--format", "coco", "eval.detections_per_img=1")
    assert run(place, trained, *words, "--output", "one").code == 0
    full = "6 of 6 images and frames have as many detections as eval.detections_per_img"
    assert full in caplog.text
    # The limit applies before classes are selected. Above a higher threshold, all detections are known.
    for more, told in ((("--classes", "dog"), True), (("--threshold", "1"), False)):
        caplog.clear()
        assert run(place, trained, *words, *more, "--output", more[1]).code == 0
        assert (full in caplog.text) == told
    found = [entry["image_id"] for entry in read(place / "one" / "coco.json")]
    assert sorted(found) == sorted(set(found)) != []


def test_a_threshold_that_lets_all_through_is_said(
    place: Path, trained: Path, evaluated: CheckpointScores, caplog: pytest.LogCaptureFixture
) -> None:
    low = [name for name, score in evaluated.thresholds.items() if score < 0.05]
    assert low  # after one epoch
    words = ("images/?.png", "--format", "csv", "--output")
    assert run(place, trained, *words, "usual").code == 0
    assert (
        "the thresholds of these classes are near 0, because they were hardly found in validation: "
        f"{low[0]} 0.0" in caplog.text
    )
    caplog.clear()
    for k, least in enumerate(("0.01", ",".join(f"{name}=0.01" for name in low))):
        assert run(place, trained, *words, str(k), "--threshold", least).code == 0
    assert run(place, trained, *words, "raw", "eval.calibrate=false").code == 0
    if others := [name for name in evaluated.thresholds if name not in low]:
        assert run(place, trained, *words, "others", "--classes", ",".join(others)).code == 0
    assert "near 0" not in caplog.text


def test_settings_that_do_not_suit_the_images_are_said(
    place: Path, trained: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The images are of 64 x 48 px, like all training images."""
    words = ("images/?.png", "--threshold", "0.1", "--format", "csv", "--output")
    assert run(place, trained, *words, "plain").code == 0
    assert caplog.text == ""
    assert run(place, trained, *words, "tiles", "eval.tile=64", "eval.tile_overlap=16").code == 0
    assert "eval.tile=64 has no effect: the largest image is 64 x 48 px" in caplog.text
    assert "times as large" not in caplog.text
    assert (
        run(place, trained, *words, "large", "data.transforms.eval=[{ResizeWithin: {long: 128}}]").code == 0
    )
    assert "images are 2 times as large (the median) as with the data.transforms.eval" in caplog.text


def test_images_in_which_nothing_is_found_are_done_as_well(place: Path, trained: Path) -> None:
    words = ("images/?.png", *ALL, "--output", "none", "eval.score_threshold=0.9999999")
    outcome = run(place, trained, *words)
    assert outcome.code == 0 and "0 detections in 6 images" in outcome.out, outcome
    assert read(place / "none" / "coco.json") == []
    assert len(files(place / "none" / "pictures")) == 6


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
    """b.jpg and x.jpg are folders; b.webp comes after b.jpg, and x.bmp before x.jpg."""
    for folder, name in (("b.jpg", "b.webp"), ("x.jpg", "x.bmp")):
        Image.new("RGB", (64, 48)).save(place / "images" / name)
        (place / "images" / folder).mkdir()
        shutil.copy(place / "images" / "1.png", place / "images" / folder / "y.png")
    assert run(place, trained, "images", *ALL, "--format", "pictures").code == 0
    names = files(place / "predictions/pictures")
    assert len(names) == 11
    assert {"b.jpg/y.png", "b-2.jpg", "x.jpg", "x.jpg-2/y.png"} <= names


def test_names_as_long_as_can_be_meet_as_others_do(place: Path, trained: Path, caplog) -> None:
    """Two files of one name in two folders; an ending or a number makes it longer. The limit is in bytes."""
    long, japanese = "n" * 255, "\u732b" * 83 + ".png"
    for name in (f"a/{long}", f"b/{long}", f"a/{japanese}"):
        (place / "long" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(place / "images" / "1.png", place / "long" / name)
    words = (f"long/a/{long}", f"long/b/{long}", f"long/a/{japanese}", *ALL, "--format", "pictures,yolo")
    outcome = run(place, trained, *words)
    assert outcome.code == 0, outcome.err
    cut = {f"{long[:251]}.jpg", f"{long[:249]}-2.jpg", japanese}
    assert {name for name in files(place / "predictions") if "pictures/" in name} == {
        f"pictures/{name}" for name in cut
    }
    labels = [path for path in (place / "predictions/labels").iterdir() if path.suffix == ".txt"]
    assert len(labels) == 3 and all(path.stat().st_size for path in labels)
    assert [message.partition(";")[0].rpartition(": ")[2] for message in caplog.messages] == [
        "the name is too long"
    ] * 2


def test_it_is_written_down_where_each_input_is_drawn(place: Path, trained: Path) -> None:
    """Inputs with one stem in a folder, and with one name in several folders, as a pattern may find them."""
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


def test_results_come_in_the_order_of_the_inputs(place: Path, trained: Path) -> None:
    """Although images of one shape are processed together, and videos last."""
    write_image(place / "tall.png", 64, 40)
    with VideoWriter(place / "clip.mp4", 5, (48, 64)) as video:
        for _ in range(2):
            video.write(np.zeros((48, 64, 3), np.uint8))
    names = ["images/3.png", "tall.png", "clip.mp4", "images/1.png", "images/0.png"]
    assert run(place, trained, *names, *ALL, "--format", "coco,csv", "--output", "out").code == 0
    expected = [*names[:3], *names[2:]]  # the video has two frames
    assert [image["file_name"] for image in read(place / "out/images.json")["images"]] == expected
    assert list(dict.fromkeys(row["file"] for row in rows(place / "out"))) == names


def test_the_first_are_detected_in_before_the_last_are_looked_at(
    place: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading the sizes of 100,000 images takes minutes; here the first batch needs only four of six."""
    assert run(place, trained, "images/?.png", *ALL, "--format", "csv", "--output", "out").code == 0
    done: list[str] = []

    def size(path: Path) -> tuple[int, int]:
        done.append(path.name)
        return read_size(path)

    def detect(self: Detector, images: Any, names: Any) -> Any:
        done.append(f"{len(images)} detected in")
        return detected(self, images, names)

    detected = Detector._detect
    monkeypatch.setattr(session, "_TOGETHER", 4)
    monkeypatch.setattr(session, "read_size", size)
    monkeypatch.setattr(Detector, "_detect", detect)
    assert run(place, trained, "images/?.png", *ALL, "--format", "csv", "--output", "again").code == 0
    first = next(k for k, what in enumerate(done) if "detected" in what)
    assert done[:first] == ["0.png", "1.png", "2.png", "3.png"] and "5.png" in done
    # With other batches the last digits may differ.
    ones, others = rows(place / "out"), rows(place / "again")
    assert [(row["file"], row["class"]) for row in ones] == [(row["file"], row["class"]) for row in others]
    for one, other in zip(ones, others, strict=True):
        assert float(one["score"]) == pytest.approx(float(other["score"]), rel=1e-4)


@pytest.mark.parametrize(("width", "name"), [(65_000, "wide.jpg"), (70_000, "wide.png")])
def test_a_picture_too_wide_for_jpeg_becomes_png(tmp_path: Path, width: int, name: str) -> None:
    """JPEG stores each side in 16 bits."""
    folder = ResultsFolder(tmp_path / "out")
    folder.write_picture(
        Source("image", Path("wide.webp"), Path("wide.webp")), np.zeros((1, width, 3), np.uint8)
    )
    assert files(tmp_path / "out") == {f"pictures/{name}"}
    assert Image.open(tmp_path / "out/pictures" / name).size == (width, 1)


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


def test_a_list_may_mix_paths_and_must_be_a_text(place: Path, trained: Path) -> None:
    (place / "list.txt").write_text(f"images/0.png\n{place / 'images/deep/0.png'}\n")
    assert run(place, trained, "list.txt", *ALL, "--output", "out").code == 0
    assert files(place / "out/pictures") == {"0.png", "deep/0.png"}
    (place / "list.txt").write_bytes("images/0.png\n".encode("utf-16") + b"x")
    words = (str(trained / "run"), "list.txt")
    assert_refused(predict.main, words, place, "list.txt cannot be read: 'utf-16")


def test_a_list_names_its_inputs(place: Path, trained: Path) -> None:
    """Relative to the current folder or to the list's own; the list was written on Windows."""
    (place / "images" / "list.txt").write_bytes("images/0.png\r\ndeep/0.png\r\n\r\n".encode("utf-16"))
    assert run(place, trained, "images/list.txt", *ALL, "--output", "out").code == 0
    kept = [image["file_name"] for image in read(place / "out/images.json")["images"]]
    assert kept == ["images/0.png", "images/deep/0.png"]
    assert files(place / "out/pictures") == {"0.png", "deep/0.png"}
