"""Reading and writing videos with OpenCV."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

# Silences the messages of FFmpeg and OpenCV about a file; errors are reported here, in one line.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

import cv2
import numpy as np
from numpy.typing import NDArray

from errors import InputError

log = logging.getLogger(__name__)
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

_MOST_OF_MPEG4 = 8190  # maximum side in pixels
_FRAMES_MISCOUNTED = 2
_USUAL_RATE = 25.0  # frames per second, for files that do not say
_LEAST_RATE = 0.01  # minimum that MPEG-4 supports reliably; time lapses may be slower


class VideoReader:
    """The frames of a video file, upright, one after another.

    Attributes:
        rate: frames per second.
        frames: number of frames according to the file; 0 if unknown.

    Raises:
        InputError: the file is not a readable video.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._capture = cv2.VideoCapture(_for_opencv(path))
        if not self._capture.isOpened():
            raise InputError(
                f"video {path} cannot be read: it is not a video, or of a kind that OpenCV does not support"
            )
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        told = 0 < rate < 1000
        self.rate = float(rate) if told else _USUAL_RATE
        # If the file has no count, OpenCV computes it from the rate, which screen recordings give as 1000.
        self.frames = max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))) if told else 0

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        """Yields frames, uint8 [H, W, 3] RGB. Raises InputError if there is none."""
        count = 0
        while True:
            read, frame = self._capture.read()
            if not read:
                break
            count += 1
            yield np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), dtype=np.uint8)
        self._capture.release()
        if count == 0:
            raise InputError(f"video {self._path} cannot be read: it has no frames")
        if self.frames - count > max(_FRAMES_MISCOUNTED, self.frames // 100):
            log.warning(
                "video %s ends after %d of the %d frames that it claims to have",
                self._path, count, self.frames,
            )  # fmt: skip


class VideoWriter:
    """Writes an MP4 file without sound; it appears when complete.

    Raises:
        InputError: the file cannot be written.
    """

    def __init__(self, path: Path, rate: float, size: tuple[int, int]) -> None:
        """
        Args:
            rate: frames per second.
            size: height and width of a frame in pixels.
        """
        # MPEG-4 limits the frame size (panoramas exceed it), and sides must be even; `write` scales.
        shrink = min(1.0, _MOST_OF_MPEG4 / max(size))
        height, width = (max(2, 2 * round(side * shrink / 2)) for side in size)
        self._path = path
        self._part = path.with_name(f".part{path.suffix}")  # short: long names may exceed the limit
        # MPEG-4 allows at most 65535 ticks per second, and OpenCV needs more ticks for more decimals.
        rate = max(rate, _LEAST_RATE)
        rate = round(rate, max(digits for digits in (0, 1, 2, 3) if rate * 10**digits < 65535))
        code = cv2.VideoWriter.fourcc(*"mp4v")
        self._writer = cv2.VideoWriter(_for_opencv(self._part), code, rate, (width, height))
        if not self._writer.isOpened():
            self._part.unlink(missing_ok=True)
            raise InputError(
                f"cannot write {path}: OpenCV has no permission, no disk space or no MPEG-4 encoder"
            )
        self._size = height, width
        self._count = 0

    def write(self, frame: NDArray[np.uint8]) -> None:
        """Add a frame, uint8 [H, W, 3] RGB; scaled if its size differs."""
        if frame.shape[:2] != self._size:
            frame = np.asarray(cv2.resize(frame, self._size[::-1]), dtype=np.uint8)
        self._count += 1
        self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.release()
        if kind is not None:
            self._part.unlink(missing_ok=True)
            return
        # OpenCV does not report a full disk.
        check = cv2.VideoCapture(_for_opencv(self._part))
        whole = check.isOpened() and int(check.get(cv2.CAP_PROP_FRAME_COUNT)) == self._count
        check.release()
        if not whole:
            self._part.unlink(missing_ok=True)
            raise InputError(f"cannot write {self._path}: the file is incomplete; is the disk full?")
        try:
            self._part.replace(self._path)
        except OSError as problem:
            self._part.unlink(missing_ok=True)
            raise InputError(f"cannot write {self._path}: {problem.strerror}") from None


def _for_opencv(path: Path) -> str:
    """A path that OpenCV takes for a file: "12:30.mp4" could be a URL with a protocol.

    Raises:
        InputError: the name is not UTF-8, which would kill the process.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise InputError(f"video {path}: its name is not valid UTF-8; rename it") from None
    return str(path.absolute())
