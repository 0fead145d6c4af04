"""predict.py: videos, whole and broken."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import predict
from data.coco import load_coco
from data.video import VideoReader, VideoWriter
from data.voc import load_voc_images, voc_folders
from detector.prediction.session import _Session
from detector.predictor import Detector
from doors import INTERRUPTED
from tests.predict.tools import ALL, files, read, rows, run
from tests.runs import Outcome, assert_one_line, assert_refused, no_file_larger_than


def breaking_off_in(path: Path, problem: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a video whose second batch of two, white frames, makes the detector raise `problem`."""
    detect = Detector.__call__

    def limited(detector: Detector, images: Any) -> Any:
        if any(image.mean() > 200 for image in images):
            raise problem
        return detect(detector, images)

    monkeypatch.setattr(Detector, "__call__", limited)
    with VideoWriter(path, 5, (48, 64)) as video:
        for grey in (0, 0, 255, 255):
            video.write(np.full((48, 64, 3), grey, np.uint8))


@pytest.mark.parametrize(
    ("problem", "code"), [(MemoryError, 0), (KeyboardInterrupt, INTERRUPTED)], ids=["memory", "ctrl-c"]
)
def test_of_a_video_that_does_not_end_well_no_half_is_left(
    place: Path, trained: Path, monkeypatch: pytest.MonkeyPatch, problem: type[BaseException], code: int
) -> None:
    """It fails at its second batch, of white frames; the results of the image before it are kept."""
    breaking_off_in(place / "clip.mp4", problem, monkeypatch)
    outcome = run(place, trained, "images/0.png", "clip.mp4", *ALL, "--batch", "2", "--output", "out")
    assert outcome.code == code, outcome.err
    assert [image["file_name"] for image in read(place / "out/images.json")["images"]] == ["images/0.png"]
    assert {row["file"] for row in rows(place / "out")} == {"images/0.png"}
    assert not [name for name in files(place / "out") if "clip" in name]
    if problem is MemoryError:
        assert "clip.mp4 (64 x 48 px): needs more memory" in (place / "out/failed.txt").read_text()


def test_a_name_may_be_as_long_as_the_system_allows(tmp_path: Path) -> None:
    """82 letters of three bytes."""
    path = tmp_path / f"{82 * chr(0x6620)}.mp4"
    with VideoWriter(path, 5, (48, 64)) as video:
        video.write(np.zeros((48, 64, 3), np.uint8))
    assert len(list(VideoReader(path))) == 1


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
    assert 1 < count < 7
    (message,) = caplog.messages
    assert message == f"video {tmp_path}/clip.avi ends after {count} of the 10 frames that it claims to have"
    (tmp_path / "clip.avi").write_bytes(whole[: len(whole) * 3 // 4])  # three frames are more than a miscount
    assert 6 <= len(list(VideoReader(tmp_path / "clip.avi"))) < 8
    assert len(caplog.messages) == 2


def test_colours_come_back_as_they_were_written(tmp_path: Path) -> None:
    """MPEG-4 keeps a plain colour to within a few steps of 256."""
    red = np.full((48, 64, 3), (200, 30, 60), np.uint8)
    with VideoWriter(tmp_path / "clip.mp4", 5, (48, 64)) as video:
        video.write(red)
    (frame,) = VideoReader(tmp_path / "clip.mp4")
    assert np.abs(frame.astype(int) - red).max() < 12


@pytest.mark.parametrize(("rate", "taken"), [(12, 12), (5000, 25)])
def test_a_rate_that_no_video_has_is_not_believed(tmp_path: Path, rate: int, taken: int) -> None:
    with VideoWriter(tmp_path / "clip.mp4", rate, (48, 64)) as video:
        video.write(np.zeros((48, 64, 3), np.uint8))
    assert VideoReader(tmp_path / "clip.mp4").rate == taken


def test_what_a_rate_not_believed_says_of_the_count_is_not_either(tmp_path: Path, caplog) -> None:
    """Screen recordings may claim 1000 frames per second, and a number of frames to match."""
    with VideoWriter(tmp_path / "clip.mp4", 5000, (48, 64)) as video:
        video.write(np.zeros((48, 64, 3), np.uint8))
    reader = VideoReader(tmp_path / "clip.mp4")
    assert reader.frames == 0
    assert len(list(reader)) == 1
    assert caplog.messages == []


@pytest.mark.parametrize("rate", [29.97, 59.94, 66.123, 119.913, 240.012, 998.765, 23.976023976])
def test_a_video_of_any_rate_is_written(tmp_path: Path, rate: float) -> None:
    """MPEG-4 allows at most 65535 ticks per second."""
    with VideoWriter(tmp_path / "clip.mp4", rate, (48, 64)) as video:
        for _ in range(3):
            video.write(np.zeros((48, 64, 3), np.uint8))
    assert VideoReader(tmp_path / "clip.mp4").rate == pytest.approx(rate, rel=1e-4)


def test_a_video_of_a_frame_an_hour_is_written_faster(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "clip.mp4", 1 / 3600, (48, 64)) as video:
        for _ in range(3):
            video.write(np.zeros((48, 64, 3), np.uint8))
    assert len(list(VideoReader(tmp_path / "clip.mp4"))) == 3


def test_a_video_with_odd_sides_is_scaled_and_not_cut(tmp_path: Path) -> None:
    frame = np.zeros((65, 97, 3), np.uint8)
    frame[:, -1] = frame[-1] = 255
    with VideoWriter(tmp_path / "clip.mp4", 5, (65, 97)) as video:
        video.write(frame)
    (back,) = VideoReader(tmp_path / "clip.mp4")
    assert back.shape == (64, 96, 3)
    assert back[:, -1].mean() > 100 and back[-1].mean() > 100 > back[:-4, :-4].mean()


def test_a_video_of_frames_too_large_for_mpeg4_is_drawn_smaller(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a.mp4", 5, (100, 8200)) as video:
        video.write(np.zeros((100, 8200, 3), dtype=np.uint8))
    frame = cv2.VideoCapture(str(tmp_path / "a.mp4")).read()[1]
    assert frame.shape == (100, 8190, 3)


def test_a_video_is_detected_frame_by_frame(place, trained) -> None:
    """With lossless frames, the results of each are those of the same picture in a file."""
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


def test_frames_become_images_with_annotations(place: Path, trained: Path, monkeypatch) -> None:
    """Every second frame, which makes the folder a data set. Interrupted and resumed, it is the same."""
    with VideoWriter(place / "clip.mp4", 5, (48, 64)) as video:
        for seed in range(5):
            video.write(np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8))
    words = ("clip.mp4", *ALL, "--batch", "2", "--format", "csv,instances,voc,yolo", "--frames", "2")
    assert run(place, trained, *words, "--output", "out").code == 0
    names = [f"clip-00000{k}" for k in (0, 2, 4)]
    assert {f"images/{n}.jpg" for n in names} | {f"labels/{n}.txt" for n in names} <= files(place / "out")
    for records in (
        load_coco(place / "out/instances.json", place / "out/images"),
        load_voc_images(voc_folders(place / "out"), names, "all"),
    ):
        assert [Path(file).name for file in records.files] == [f"{name}.jpg" for name in names]
        for row, frame in enumerate((0, 2, 4)):
            found = [r for r in rows(place / "out") if r["frame"] == str(frame)]
            wanted = np.array([[float(r[side]) for side in ("x0", "y0", "x1", "y1")] for r in found])
            mine = records.boxes[records.offsets[row] : records.offsets[row + 1]]
            assert len(mine) == len(wanted) > 0
            assert np.abs(mine - wanted).max() <= 1.01  # VOC's are whole pixels, at least one
    with monkeypatch.context() as patch:
        patch.setattr(_Session, "write_tables", lambda *_: sys.exit(7))
        assert run(place, trained, *words, "--output", "cut").code == 7
    lines = (place / "cut/.found.jsonl").read_text().splitlines(keepends=True)
    (place / "cut/.found.jsonl").write_text("".join(lines[:3]))
    assert run(place, trained, *words, "--resume", "cut").code == 0
    assert files(place / "cut") == files(place / "out")
    for name in files(place / "out"):
        assert (place / "cut" / name).read_bytes() == (place / "out" / name).read_bytes(), name


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--frames", "2"), "--frames is for annotations: give --format instances, voc or yolo"),
        (("--frames", "0", "--format", "yolo"), "--frames must be a whole number from 1"),
    ],
)
def test_frames_that_nothing_is_written_of_are_refused(
    place: Path, trained: Path, words: tuple[str, ...], named: str
) -> None:
    assert_refused(predict.main, (str(trained / "run"), "images", *words), place, named)


def test_of_a_video_that_cannot_be_used_no_frames_stay(
    place: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without labels they would count as background."""
    breaking_off_in(place / "clip.mp4", MemoryError, monkeypatch)
    words = ("images/0.png", "clip.mp4", *ALL, "--batch", "2", "--format", "yolo", "--frames", "1")
    assert run(place, trained, *words, "--output", "out").code == 0
    assert not [name for name in files(place / "out") if "clip" in name]


def test_a_video_that_is_none_costs_one_line_of_a_process(place: Path, trained: Path) -> None:
    """FFmpeg writes to the terminal directly, bypassing Python."""
    (place / "bad.mp4").write_bytes(b"no video")
    (place / "cut.webm").write_bytes(b"\x1a\x45\xdf\xa3" + b"0" * 99)
    for name in ("bad.mp4", "cut.webm"):
        words = [sys.executable, predict.__file__, str(trained / "run"), name, "--device", "cpu"]
        words += ["--threshold", "0.5"]
        done = subprocess.run(words, cwd=place, capture_output=True, text=True)
        assert_one_line(Outcome(done.returncode, done.stdout, done.stderr), f"video {name} cannot be read")


def test_names_that_opencv_does_not_take_for_files_are_no_hindrance(place: Path, trained: Path) -> None:
    """It takes "12:30.mp4" for a URL, and crashes on names that are not UTF-8."""
    with VideoWriter(place / "clip.mp4", 5, (48, 64)) as video:
        video.write(np.zeros((48, 64, 3), np.uint8))
    shutil.copy(place / "clip.mp4", place / "12:30.mp4")
    (place / "clip.mp4").rename(place / "caf\udce9.mp4")
    outcome = run(place, trained, "12:30.mp4", "caf\udce9.mp4", *ALL, "--output", "out")
    assert outcome.code == 0
    assert len(read(place / "out/images.json")["images"]) == 1
    assert "its name is not valid UTF-8" in (place / "out/failed.txt").read_text(errors="surrogateescape")


def test_a_disk_too_full_for_a_video_costs_one_line(place: Path, trained: Path) -> None:
    """OpenCV keeps writing without reporting an error."""
    writer = cv2.VideoWriter(str(place / "clip.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 25, (640, 480))
    for seed in range(3):
        writer.write(np.random.default_rng(seed).integers(0, 256, (480, 640, 3), dtype=np.uint8))
    writer.release()
    with no_file_larger_than(50_000):
        outcome = run(place, trained, "clip.avi", *ALL)
    assert_one_line(outcome, "cannot write predictions/videos/clip.mp4")
    assert files(place / "predictions") == {".found.jsonl"}  # to resume with when there is more room
