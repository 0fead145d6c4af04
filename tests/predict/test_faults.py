"""predict.py: what cannot be used is left out and reported, and how the work ends."""

import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import predict
from data.video import VideoReader, VideoWriter
from detector.prediction import tables
from detector.prediction.results import ResultsFolder
from detector.prediction.session import _Session
from detector.predictor import Detector
from errors import InputError
from tests.builders import write_image
from tests.predict.tools import ALL, files, read, rows, run, standard_input
from tests.runs import assert_one_line, assert_refused, call, no_file_larger_than


@pytest.mark.parametrize("problem", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError()])
def test_an_image_that_does_not_fit_into_the_memory_is_left_out(
    place, trained, problem: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch that does not fit is made smaller; everything else is processed and written."""
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
    assert "large.png (64 x 49 px): needs more memory than is available" in failed
    assert len(read(place / "predictions/images.json")["images"]) == 7
    assert len(files(place / "predictions/pictures")) == 7


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_scheduler_that_ends_it_loses_nothing_that_was_found(
    place: Path, trained: Path, monkeypatch: pytest.MonkeyPatch, sent: signal.Signals
) -> None:
    """The signal comes during the second batch; its handler is restored when the work has ended."""
    detect, batches, before = Detector.__call__, [], signal.getsignal(sent)

    def ended(detector: Detector, images: Any) -> Any:
        batches.append(images)
        if len(batches) == 2:
            os.kill(os.getpid(), sent)
        return detect(detector, images)

    monkeypatch.setattr(Detector, "__call__", ended)
    outcome = run(place, trained, "images/?.png", *ALL, "--batch", "2", "--output", "out")
    assert outcome.code == 128 + sent
    kept = [image["file_name"] for image in read(place / "out/images.json")["images"]]
    assert kept == ["images/0.png", "images/1.png"]
    assert {row["file"] for row in rows(place / "out")} == set(kept)
    assert signal.getsignal(sent) == before


def test_what_runs_on_when_the_terminal_closes_is_not_ended_by_that(
    place: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with nohup: the signal is ignored."""
    detect, before = Detector.__call__, signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def closed(detector: Detector, images: Any) -> Any:
        os.kill(os.getpid(), signal.SIGHUP)
        return detect(detector, images)

    monkeypatch.setattr(Detector, "__call__", closed)
    try:
        assert run(place, trained, "images/0.png", *ALL, "--output", "out").code == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_of_two_runs_into_one_folder_the_later_is_refused(tmp_path: Path) -> None:
    """Both start before either has results; a folder that was emptied after its run may be used."""
    one, other = ResultsFolder(tmp_path / "out"), ResultsFolder(tmp_path / "out")
    (one.path / "failed.txt").touch()
    with pytest.raises(InputError, match=r"--output: .*out is not empty"):
        assert other.path
    (tmp_path / "out" / "failed.txt").unlink()
    with pytest.raises(InputError, match=r"--output: another run has started to write in .*out; choose"):
        assert other.path
    assert ResultsFolder(tmp_path / "out").path == tmp_path / "out"


@pytest.mark.parametrize("images", ["images/?.png", "images/0.png"], ids=["breaking off", "at the end"])
def test_while_tables_are_written_a_scheduler_has_to_wait(
    place: Path, trained: Path, monkeypatch: pytest.MonkeyPatch, images: str
) -> None:
    """SIGTERM during the second batch, if there is one, and again before each table."""
    detect, write, batches = Detector.__call__, tables._write_coco, []

    def ended(detector: Detector, pictures: Any) -> Any:
        batches.append(pictures)
        if len(batches) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return detect(detector, pictures)

    def written(*arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        write(*arguments)

    monkeypatch.setattr(Detector, "__call__", ended)
    monkeypatch.setattr(tables, "_write_coco", written)
    outcome = run(place, trained, images, *ALL, "--batch", "1", "--output", "out")
    assert outcome.code == 128 + signal.SIGTERM
    assert [image["file_name"] for image in read(place / "out/images.json")["images"]] == ["images/0.png"]
    assert {row["file"] for row in rows(place / "out")} == {"images/0.png"}


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


def test_broken_files_are_left_out_listed_and_counted(place, trained, caplog) -> None:
    """One has no header; one is cut off after it, which is found in the middle of a batch."""
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


REFUSED = {  # words -> what the line says
    ("images", "conf=0.3"): ("conf=0.3", "--threshold T"),
    ("images", "imgsz=640"): ("imgsz=640", "data.image_size"),
    ("images", "--threshold", "1.5"): ("--threshold", "1.5"),
    ("images", "--threshold", "nan"): ("--threshold", "nan"),
    ("images", "--threshold", "high"): ("--threshold", "'high'"),
    ("images", "--threshold", "cat=2"): ("--threshold", "got cat=2"),
    ("images", "--threshold", "cow=0.5"): ("--threshold", "no class 'cow'", "cat, dog"),
    ("images", "--threshold", "cat=0.5,cat=0.6"): ("--threshold", "cat is given twice"),
    ("images", "--threshold", "0,5"): ("--threshold", "write decimals with a point: 0.5"),
    ("images", "--threshold", "cat=0.3,dog=0,5"): ("--threshold", "write decimals with a point: 0.5"),
    ("images", "--threshold", "0.5,0.6"): ("--threshold", "the threshold of all classes is given twice"),
    ("images", "--threshold", "cow, red=0.5,cat=0.2"): ("--threshold", "no class 'cow, red'"),
    ("images", "--threshold", "cat=0.5,"): ("--threshold", "''"),
    ("images", "--threshold", "cat=abc,dog=0.3"): ("--threshold", "'abc'"),
    ("images", "--classes", "cow"): ("--classes", "no class 'cow'", "cat, dog"),
    ("images", "--classes", "dog,cow"): ("--classes", "no class 'cow'"),
    ("images", "--classes", ""): ("an argument is empty",),
    ("images", "--class-names", "dog"): ("--class-names", "--classes NAME,NAME"),
    ("images", "--threshold", "e,f=0.5"): ("--threshold", "no class 'e,f'"),
    ("images", "--format", "coco,xml"): ("--format", "'xml'", "pictures, coco, csv"),
    ("images", "--batch", "0"): ("--batch", "0"),
    ("images", "--batch", "1.5"): ("--batch", "1.5"),
    ("images", "--batch", "inf"): ("--batch", "inf"),
    ("images", "--batch", "1e30"): ("--batch", "1e30"),
    ("images", "--output", "images"): ("--output", "images", "is not empty"),
    ("images", "--output", "images/0.png"): ("--output", "images/0.png", "not a folder"),
    ("images", "--output", "images/0.png/new"): (
        "images/0.png/new cannot be created",
        "images/0.png is not a folder",
    ),
    ("/dev/null",): ("/dev/null is a pipe or a device", "give -"),
    ("images", "eval.detections_per_image=1"): ("did you mean 'eval.detections_per_img'?",),
    ("eval.nms=hard",): ("give an image",),
    ("images", "a=1.jpg"): ("a=1.jpg", "neither a file nor a setting"),
    ("images", "train.device=cpu"): ("train.device", "--device"),
    ("images", "data.classes=[bird]"): ("data.classes", "leave the setting out"),
    ("images", "nowhere.jpg"): ("nowhere.jpg", "does not exist"),
    ("nowhere/*.jpg",): ("nowhere/*.jpg", "matches nothing"),
    ("empty",): ("empty", "no images"),
    ("images/notes.txt",): ("images/notes.txt:1: no image does not exist", "a .txt file lists"),
    ("images/notes.dat",): ("images/notes.dat", "cannot be read"),
    ("images/notes.dat", "bad.mp4"): ("none of the 2 inputs", "images/notes.dat"),
    ("empty.txt",): ("empty.txt is empty",),
    ("images", "0"): ("0 does not exist", "cameras are not supported", "--classes car,bus"),
    ("images", "device=cpu"): ("device=cpu: use --device",),
    ("images", "classes=0"): ("classes=0: use --classes",),
    ("images", "--batch-size", "2"): ("--batch-size", "use --batch N"),
    ("images", "--workers", "2"): ("--workers", "four threads"),
    ("images", "--device", "mps"): ("'mps' cannot be used: PyTorch finds no Apple GPU here; use cpu",),
    ("-",): ("standard input", "cannot be read"),
}


@pytest.mark.parametrize("words", REFUSED, ids=" ".join)
def test_bad_input_costs_one_line_and_leaves_nothing(
    place: Path, trained: Path, words: tuple[str, ...]
) -> None:
    (place / "empty").mkdir()
    (place / "bad.mp4").write_bytes(b"no video")
    (place / "empty.txt").touch()
    (place / "images/notes.dat").write_text("no image")
    with standard_input(b"no image"):
        assert_refused(predict.main, (str(trained / "run"), *words), place, *REFUSED[words])


def test_a_folder_that_cannot_be_made_is_told_before_the_work(
    place: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Detector, "load", None)
    words = (str(trained / "run"), "images", "--output", "images/0.png/new", "--format", "csv")
    assert_refused(predict.main, words, place, "images/0.png/new cannot be created")


def test_an_image_that_only_its_link_tells_of_is_listed(place: Path, trained: Path) -> None:
    """As git-annex and DVC leave files that they have not fetched."""
    (place / "images/6.png").symlink_to("store/6.png")
    assert run(place, trained, "images", *ALL).code == 0
    failed = (place / "predictions/failed.txt").read_text()
    assert failed.startswith("images/6.png\t") and len(failed.splitlines()) == 1


def test_a_wrong_checkpoint_or_device_costs_one_line(place: Path, trained: Path) -> None:
    assert_refused(predict.main, ("nowhere", "images"), place, "nowhere does not exist")
    assert_refused(predict.main, ("images/0.png", "images"), place, "images/0.png")
    words = (str(trained / "run"), "images", "--device", "abacus")
    assert_refused(predict.main, words, place, "device: 'abacus'")


def test_a_full_disk_costs_one_line_and_leaves_no_half_file(place: Path, trained: Path) -> None:
    write_image(place / "images/0.png", 600, 800)  # its drawn picture is larger than the room left
    with no_file_larger_than(20_000):
        outcome = run(place, trained, "images/0.png", *ALL)
    assert_one_line(outcome, "cannot write predictions/pictures/0.png")
    assert files(place / "predictions") == {"coco.json", "images.json", "detections.csv"}


# ------------------------------------------------------------------------ interrupted and resumed


def interrupting(patch: pytest.MonkeyPatch, batch: int, *signals: signal.Signals) -> None:
    """Send signals in the middle of a batch, counted from 1."""
    detect, batches = Detector.__call__, []

    def interrupted(detector: Detector, images: Any) -> Any:
        batches.append(images)
        if len(batches) == batch:
            for number in signals:
                os.kill(os.getpid(), number)
        return detect(detector, images)

    patch.setattr(Detector, "__call__", interrupted)


def test_ctrl_c_pressed_again_loses_no_table(
    place: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """During a batch, and while the tables are written."""
    write = tables._write_coco

    def written(*arguments: Any) -> None:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
        write(*arguments)

    monkeypatch.setattr(tables, "_write_coco", written)
    interrupting(monkeypatch, 2, signal.SIGINT)
    before = signal.getsignal(signal.SIGINT)
    outcome = run(place, trained, "images/?.png", *ALL, "--batch", "2", "--output", "out")
    assert outcome.code == 130 and outcome.err.endswith("interrupted\n")
    assert {row["file"] for row in rows(place / "out")} == {"images/0.png", "images/1.png"}
    assert signal.getsignal(signal.SIGINT) == before


@pytest.mark.parametrize("kill", [False, True], ids=["interrupted", "killed"])
def test_what_was_broken_off_is_gone_on_with_to_the_same_results(
    place: Path, trained: Path, kill: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: the same command undisturbed, in the same batches. If killed, it leaves no tables, half a
    line, and a picture that the results do not list."""
    words = ("images", *ALL, "--batch", "2", "--format", "pictures,coco,csv,instances,voc,yolo")
    assert run(place, trained, *words, "--output", "whole").code == 0
    with monkeypatch.context() as patch:
        interrupting(patch, 3, signal.SIGINT)
        assert run(place, trained, *words, "--output", "out").code == 130
    # Files that may be edited by hand, and would be overwritten, are written last.
    assert not {"instances.json", "data.yaml"} & files(place / "out")
    assert not [name for name in files(place / "out") if name.startswith(("labels/", "Annotations/"))]
    if kill:
        journal = place / "out" / ".found.jsonl"
        first, *lines = journal.read_text().splitlines(keepends=True)
        journal.write_text("".join([first, *lines[:2], lines[2][:40]]))
        for name in ("coco.json", "images.json", "detections.csv"):
            (place / "out" / name).unlink()
    asked: list[int] = []
    detect = Detector.__call__
    monkeypatch.setattr(
        Detector, "__call__", lambda d, images: asked.append(len(images)) or detect(d, images)
    )
    outcome = run(place, trained, *words, "--resume", "out")
    assert outcome.code == 0, outcome.err
    assert sum(asked) == (5 if kill else 3)
    assert outcome.out.startswith(f"{2 if kill else 4} of 7 inputs are already done\n")
    assert outcome.out.endswith("in 7 images: out\n")
    names = files(place / "whole")
    assert files(place / "out") == names
    for name in names:
        assert (place / "out" / name).read_bytes() == (place / "whole" / name).read_bytes(), name
    assert not (place / "out" / ".found.jsonl").exists()
    again = ("--resume: out has nothing to continue",)
    assert_refused(predict.main, (str(trained / "run"), *words, "--resume", "out"), place, *again)


def test_a_folder_that_another_process_writes_into_is_not_gone_on_with(
    place: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two would cut off each other's lines."""
    words = (str(trained / "run"), "images", *ALL, "--batch", "2")
    detect, refused, lines = Detector.__call__, [], []

    def meanwhile(detector: Detector, images: Any) -> Any:
        journal = place / "out" / ".found.jsonl"
        if journal.exists() and not refused:
            before = journal.read_bytes()
            with monkeypatch.context() as patch:
                patch.setattr(Detector, "__call__", detect)
                refused.append(call(predict.main, *words, "--resume", "out", cwd=place))
            lines.append(journal.read_bytes() == before)
        return detect(detector, images)

    monkeypatch.setattr(Detector, "__call__", meanwhile)
    assert run(place, trained, *words[1:], "--output", "out").code == 0
    assert (refused[0].code, lines) == (2, [True])
    assert refused[0].err.endswith(
        "out is in use by another predict.py that is still running; wait for it, or stop it first\n"
    )


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("images", "--threshold", "0.3"), "another --threshold"),
        (("images", *ALL, "eval.nms=soft"), "another setting"),
        (("images", *ALL, "--one-per-object"), "another --one-per-object"),
        (("images", *ALL, "--format", "csv"), "another --format (pictures)"),
        (("images/deep", *ALL), "results of images/0.png, which is not among the inputs"),
        (("images", *ALL, "--output", "new"), "leave out --output"),
    ],
)
def test_only_what_it_was_begun_with_goes_on(
    place: Path, trained: Path, words: tuple[str, ...], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupting(patch, 2, signal.SIGINT)
        assert run(place, trained, "images", *ALL, "--batch", "2", "--output", "out").code == 130
    assert_refused(predict.main, (str(trained / "run"), *words, "--resume", "out"), place, named)


def test_a_folder_that_is_not_there_is_not_gone_on_with(place: Path, trained: Path) -> None:
    words = (str(trained / "run"), "images", "--resume", "out")
    assert_refused(predict.main, words, place, "--resume: the folder out does not exist")


def test_where_there_is_no_room_for_tables_what_was_found_is_told_of(
    place: Path, trained: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As on a disk that the pictures have filled."""

    def full(*_: Any) -> None:
        raise InputError("cannot write out/coco.json: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(tables, "_write_coco", full)
        interrupting(patch, 2, signal.SIGINT)
        assert run(place, trained, "images", *ALL, "--batch", "2", "--output", "out").code == 130
    (message,) = caplog.messages
    assert "No space left on device; what has been found so far is still in out" in message
    assert "run the same command with --resume out" in message
    assert run(place, trained, "images", *ALL, "--batch", "2", "--resume", "out").code == 0
    assert len(read(place / "out/images.json")["images"]) == 7


@pytest.mark.parametrize("broken", ["killed", "interrupted", "picture deleted", "killed before its end"])
def test_a_video_is_gone_on_with_at_the_frame_where_it_broke_off(
    place: Path, trained: Path, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: the same command undisturbed. No frame is processed twice, and all are drawn."""
    with VideoWriter(place / "clip.mp4", 5, (48, 64)) as video:
        for grey in (0, 60, 120, 180, 240):
            video.write(np.full((48, 64, 3), grey, np.uint8))
    words = ("clip.mp4", *ALL, "--batch", "2", "--format", "pictures,csv,coco")
    assert run(place, trained, *words, "--output", "whole").code == 0
    # The same batches, for the same rounding.
    out, known = place / "out", {"killed": 2, "interrupted": 2}.get(broken, 5)
    with monkeypatch.context() as patch:
        if broken == "interrupted":
            interrupting(patch, 2, signal.SIGINT)
        else:
            patch.setattr(_Session, "write_tables", lambda *_: sys.exit(7))
        outcome = run(place, trained, *words, "--output", "out")
        assert outcome.code == (130 if broken == "interrupted" else 7)
    lines = (out / ".found.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) == 1 + (2 if broken == "interrupted" else 5 + 1)
    if broken.startswith("killed"):
        lines[known + 1] = lines[known + 1][:20]
        (out / ".found.jsonl").write_text("".join(lines[: known + 2]))
    if broken == "picture deleted":
        (out / "videos/clip.mp4").unlink()
    asked: list[int] = []
    detect = Detector.__call__
    monkeypatch.setattr(
        Detector, "__call__", lambda d, images: asked.append(len(images)) or detect(d, images)
    )
    outcome = run(place, trained, *words, "--resume", "out")
    assert outcome.out.startswith(f"0 of 1 inputs are already done, and {known} frames of others\n")
    assert sum(asked) == 5 - known
    assert files(out) == files(place / "whole")
    assert len(list(VideoReader(out / "videos/clip.mp4"))) == 5
    for name in ("detections.csv", "coco.json", "images.json"):
        assert (out / name).read_text() == (place / "whole" / name).read_text()


def clip(path: Path, frames: int = 5) -> None:
    with VideoWriter(path, 5, (48, 64)) as video:
        for k in range(frames):
            video.write(np.full((48, 64, 3), 40 * k, np.uint8))


def test_a_video_that_is_drawn_again_keeps_its_frames_however_often_it_breaks_off(
    place: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip(place / "clip.mp4")
    words = ("clip.mp4", *ALL)
    with monkeypatch.context() as patch:
        patch.setattr(_Session, "write_tables", lambda *_: sys.exit(7))
        assert run(place, trained, *words, "--output", "out").code == 7
        (place / "out/videos/clip.mp4").unlink()
        assert run(place, trained, *words, "--resume", "out").code == 7
    outcome = run(place, trained, *words, "--resume", "out")
    assert outcome.code == 0, outcome.err
    assert {row["frame"] for row in rows(place / "out")} == {*"01234"}


def test_what_was_noted_of_a_video_stays_where_it_cannot_be_read_for_once(
    place: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip(place / "clip.mp4")
    words = ("clip.mp4", *ALL, "--batch", "2")
    with monkeypatch.context() as patch:
        interrupting(patch, 2, signal.SIGINT)
        assert run(place, trained, *words, "--output", "out").code == 130
    content = (place / "clip.mp4").read_bytes()
    (place / "clip.mp4").write_bytes(b"away")
    outcome = run(place, trained, *words, "--resume", "out")
    assert_one_line(
        outcome,
        "clip.mp4 cannot be read",
        "to keep the frames done so far, run the same command with --resume out",
    )
    (place / "clip.mp4").write_bytes(content)
    outcome = run(place, trained, *words, "--resume", "out")
    assert outcome.out.startswith("0 of 1 inputs are already done, and 2 frames of others")


def test_what_was_found_stays_where_all_but_a_video_in_work_are_gone(
    place: Path, trained: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clip(place / "clip.mp4")
    words = ("images/0.png", "clip.mp4", *ALL, "--batch", "2")
    with monkeypatch.context() as patch:
        interrupting(patch, 3, signal.SIGINT)
        assert run(place, trained, *words, "--output", "out").code == 130
    outcome = run(place, trained, *words[1:], "--resume", "out")
    assert outcome.out.startswith("0 of 1 inputs are already done, and 2 frames of others"), outcome.err
    assert "1 earlier inputs are not given now, such as images/0.png" in caplog.text
    assert {row["file"] for row in rows(place / "out")} == {"images/0.png", "clip.mp4"}


def test_a_video_that_is_done_is_not_looked_at_again(
    place: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with VideoWriter(place / "clip.mp4", 5, (48, 64)) as video:
        video.write(np.zeros((48, 64, 3), np.uint8))
    with monkeypatch.context() as patch:
        patch.setattr(_Session, "write_tables", lambda *_: sys.exit(7))
        assert run(place, trained, "clip.mp4", *ALL, "--output", "out").code == 7
    monkeypatch.setattr(Detector, "__call__", lambda _, images: pytest.fail("again") if images else [])
    outcome = run(place, trained, "clip.mp4", *ALL, "--resume", "out")
    assert outcome.out.startswith("1 of 1 inputs are already done\n") and outcome.code == 0
    assert "videos/clip.mp4" in files(place / "out")


def test_inputs_that_are_gone_keep_what_was_found_in_them(
    place: Path, trained: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """For example, photographs that were moved elsewhere meanwhile."""
    words = ("images", *ALL, "--batch", "2", "--format", "csv")
    assert run(place, trained, *words, "--output", "whole").code == 0
    with monkeypatch.context() as patch:
        interrupting(patch, 3, signal.SIGINT)
        assert run(place, trained, *words, "--output", "out").code == 130
    done = sorted({row["file"] for row in rows(place / "out")})
    (place / done[0]).unlink()
    outcome = run(place, trained, *words, "--resume", "out")
    assert outcome.code == 0, outcome.err
    assert f"1 earlier inputs are not given now, such as {done[0]}; their results are kept" in caplog.text
    by_file = [
        {k: [r for r in rows(place / f) if r["file"] == k] for k in (*done, "")} for f in ("whole", "out")
    ]
    assert by_file[0] == by_file[1]
    assert {row["file"] for row in rows(place / "out")} == {row["file"] for row in rows(place / "whole")}


def test_a_disk_that_fills_at_the_end_costs_one_table_and_nothing_else(
    place: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise InputError("cannot write out/coco.json: No space left on device")

    words = ("images", *ALL, "--output", "out")
    with monkeypatch.context() as patch:
        patch.setattr(tables, "_write_coco", full)
        outcome = run(place, trained, *words)
    assert_one_line(
        outcome, "out/coco.json", "to write what is missing, run the same command with --resume out"
    )
    assert (place / "out/detections.csv").exists()
    outcome = run(place, trained, "images", *ALL, "--resume", "out")
    assert outcome.code == 0 and outcome.out.startswith("7 of 7 inputs are already done")
    assert len(read(place / "out/images.json")["images"]) == 7


def test_a_name_that_has_several_lines_is_told_in_one(place: Path, trained: Path) -> None:
    (place / "two\nlines.png").write_bytes(b"no image")
    assert run(place, trained, "two\nlines.png", "images/0.png", "--output", "out").code == 0
    (line,) = (place / "out/failed.txt").read_text().splitlines()
    assert line.startswith("two\\nlines.png\timage two\\nlines.png cannot be read")


def test_what_an_emptied_folder_has_left_is_not_gone_on_with(
    place: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """rm out/* leaves hidden files."""
    for threshold in ("0", "0.001"):
        with monkeypatch.context() as patch:
            interrupting(patch, 2, signal.SIGINT)
            words = ("images", "--threshold", threshold, "--batch", "2", "--output", "out")
            assert run(place, trained, *words).code == 130
        for path in (place / "out").iterdir():
            if threshold == "0" and not path.name.startswith("."):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert run(place, trained, "images", "--threshold", "0.001", "--resume", "out").code == 0
    assert len(read(place / "out/images.json")["images"]) == 7


def test_a_picture_that_was_deleted_to_make_room_is_drawn_again(
    place: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupting(patch, 2, signal.SIGINT)
        assert run(place, trained, "images", *ALL, "--batch", "2", "--output", "out").code == 130
    shutil.rmtree(place / "out/pictures")
    outcome = run(place, trained, "images", *ALL, "--resume", "out")
    assert outcome.out.startswith("0 of 7 inputs are already done")
    assert len(files(place / "out/pictures")) == 7
