"""Long work reports its progress, also in logs."""

import fcntl
import os
import pty
import struct
import termios

import pytest

from data.progress import Progress, has_room_for_a_bar, reading


@pytest.mark.parametrize(("columns", "bar"), [(0, False), (80, True)])
def test_a_terminal_without_a_width_has_lines_in_the_place_of_a_bar(
    monkeypatch: pytest.MonkeyPatch, columns: int, bar: bool
) -> None:
    """Such as that of docker run -t."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24 if columns else 0, columns, 0, 0))
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr("sys.stderr", terminal)
        assert has_room_for_a_bar() == bar
    monkeypatch.undo()
    os.close(ours)


def test_a_log_has_a_line_a_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ten images of 25 s each: ten seconds have passed by the first, a further minute by every third."""
    now = [1000.0]
    monkeypatch.setattr("data.progress.time.monotonic", lambda: now[0])
    done = []
    for image in Progress(10, "image", "train").over(range(10)):
        done.append(image)
        now[0] += 25
    assert done == [*range(10)]
    assert capsys.readouterr().err.splitlines() == [
        "train: 1 of 10 images, 0.04 a second, left 03:45",
        "train: 4 of 10 images, 0.04 a second, left 02:30",
        "train: 7 of 10 images, 0.04 a second, left 01:15",
        "train: 10 of 10 images, 0.04 a second, left 00:00",
    ]


@pytest.mark.parametrize(("rank", "speaks"), [(None, True), ("0", True), ("1", False)])
def test_reading_that_takes_long_is_told_by_the_first_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rank: str | None, speaks: bool
) -> None:
    """The clock is read only every hundred items, so that it costs a million annotations no time."""
    now = [1000.0]
    monkeypatch.setattr("data.progress.time.monotonic", lambda: now[0])
    if rank is None:
        monkeypatch.delenv("RANK", raising=False)
    else:
        monkeypatch.setenv("RANK", rank)
    read = []
    for number in reading(range(250), "annotation", "val.json"):
        read.append(number)
        now[0] += 0.15
    assert read == [*range(250)]
    told = ["reading val.json: 100 of 250 annotations, 6.67 a second, left 00:22"]
    assert capsys.readouterr().err.splitlines() == told * speaks


@pytest.mark.parametrize(("unit", "many"), [("image", "images"), ("batch", "batches"), ("class", "classes")])
def test_more_than_one_of_a_kind_is_called_as_english_has_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], unit: str, many: str
) -> None:
    now = iter([0.0, 20.0])
    monkeypatch.setattr("data.progress.time.monotonic", lambda: next(now))
    with Progress(4, unit) as progress:
        progress.update(2)
    assert capsys.readouterr().err == f"2 of 4 {many}, 0.1 a second, left 00:20\n"


def test_short_work_says_nothing_in_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(2, "batch") as progress:
        progress.update()
        progress.update()
    assert capsys.readouterr().err == ""
