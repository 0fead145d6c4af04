"""Long work says how far it has come, in logs too."""

import fcntl
import os
import pty
import struct
import termios

import pytest

from data.progress import Progress, has_room_for_a_bar


@pytest.mark.parametrize(("columns", "bar"), [(0, False), (80, True)])
def test_a_terminal_without_a_width_has_lines_in_the_place_of_a_bar(
    monkeypatch: pytest.MonkeyPatch, columns: int, bar: bool
) -> None:
    """As that of docker -t."""
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
    """Ten images, one each 25 s: by the third, sixth and ninth a minute has gone by since the last line."""
    now = [1000.0]
    monkeypatch.setattr("data.progress.time.monotonic", lambda: now[0])
    done = []
    for image in Progress(10, "image", "train").over(range(10)):
        done.append(image)
        now[0] += 25
    assert done == [*range(10)]
    assert capsys.readouterr().err.splitlines() == [
        "train: 3 of 10 images, 0.04 a second, left 02:55",
        "train: 6 of 10 images, 0.04 a second, left 01:40",
        "train: 9 of 10 images, 0.04 a second, left 00:25",
    ]


def test_short_work_says_nothing_in_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(2, "batch") as progress:
        progress.update()
        progress.update()
    assert capsys.readouterr().err == ""
