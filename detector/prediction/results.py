"""The folder of results: where pictures, videos, frames and annotations go."""

import contextlib
import io
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.inputs import RESULTS_MARK, Source
from data.video import VideoWriter
from detector.output import (
    check_new_folder,
    name_that_fits,
    numbered_folders,
    write_bytes,
)
from detector.prediction.annotations import Result
from detector.predictor import ImageDetections
from errors import InputError

FORMATS = ("pictures", "coco", "csv", "instances", "voc", "yolo")
# TO_CORRECT: formats that users edit by hand; written only at the end, as --resume would overwrite them.
DEFAULT_FORMATS, TO_CORRECT = FORMATS[:3], FORMATS[3:]
DEFAULT_FOLDER = "predictions"
FRAMES = "images"  # beside labels, Annotations and instances.json, as in data sets
_KINDS = ("pictures", "videos", "labels", "Annotations", FRAMES)  # folders with one file per input
_MOST_OF_JPEG = 65_000  # pixels per side
_QUALITY, _QUALITY_TO_LEARN = 92, 95  # of JPEGs for viewing and for training


class ResultsFolder:
    """The folder of results. Created with its first file, so that a run without results leaves nothing.

    Args:
        wanted: the folder; None for predictions, predictions-2 and so on.
        resumed: instead, the folder of an interrupted run to resume.

    Raises:
        InputError: the wanted folder is not empty, or cannot be created.
    """

    def __init__(self, wanted: Path | None, resumed: Path | None = None) -> None:
        self._wanted = wanted
        self._path: Path | None = None
        self._taken: set[Path] = set()
        self._numbers: dict[Path, int] = {}  # highest number used so far for each wanted path
        self._drawn: dict[Source, Path] = {}
        self._left: set[Path] = set()  # files left by the interrupted run, which may be overwritten
        self._emptied = False  # an earlier folder of results that has been emptied
        self.resumed = resumed is not None
        if resumed is not None:
            if not resumed.is_dir():
                raise InputError(f"--resume: the folder {resumed} does not exist")
            self._path = resumed
            self._left = {path for kind in _KINDS for path in (resumed / kind).rglob("*")}
            return
        check_new_folder("--output", Path() if wanted is None else wanted)
        if wanted is not None and wanted.is_dir():
            _refuse_full(wanted)
            self._emptied = (wanted / RESULTS_MARK).exists()

    def as_plain(self, result: Result) -> dict[str, Any]:
        """A result as plain values for JSON."""
        found = result.found
        return {
            "file": str(result.source.path),
            "place": str(result.source.place),
            "frame": result.frame,
            "size": result.size,
            "boxes": found.boxes.tolist(),
            "scores": found.scores.tolist(),
            "labels": found.labels.tolist(),
            "full": result.full,
            "drawn": self.drawn(result.source),
            "kept": None if result.kept is None else result.kept.relative_to(self.path).as_posix(),
        }

    def drawn(self, source: Source) -> str | None:
        """The picture or video drawn for a source, relative to the folder; None if there is none."""
        path = self._drawn.get(source)
        return None if path is None else path.relative_to(self.path).as_posix()

    def has_drawn(self, plain: dict[str, Any]) -> bool:
        """Whether the drawn picture, if any, still exists: it may have been deleted to free space."""
        drawn = None if plain["drawn"] is None else self.path / plain["drawn"]
        return drawn is None or (drawn.is_file() and drawn.stat().st_size > 0)

    def keep_drawn(self, source: Source, name: str | None) -> None:
        """Keep the picture of a finished source. name: the "drawn" of `as_plain`."""
        if name is not None:
            self._drawn[source] = drawn = self.path / name
            self._taken.add(drawn)
            self._left.discard(drawn)

    def keep_frames(self, results: Sequence[Result]) -> bool:
        """Keep the frames of a finished video that were saved as images; returns whether all still exist."""
        kept = {result.kept for result in results if result.kept is not None}
        if not all(path.is_file() for path in kept):
            return False
        self._taken |= kept
        self._left -= kept
        return True

    @staticmethod
    def forget_frames(results: Sequence[Result]) -> None:
        """Delete the saved frames of an unusable video: without labels they would count as background."""
        for result in results:
            if result.kept is not None:
                result.kept.unlink(missing_ok=True)

    def from_plain(self, plain: dict[str, Any], source: Source, classes: Sequence[str]) -> Result:
        """The inverse of `as_plain`, for the same source."""
        labels = np.array(plain["labels"], dtype=np.int64)
        found = ImageDetections(
            np.array(plain["boxes"], dtype=np.float64).reshape(-1, 4),
            np.array(plain["scores"], dtype=np.float64),
            labels,
            tuple(classes[label] for label in labels),
        )
        height, width = plain["size"]
        kept = None if plain["kept"] is None else self.path / plain["kept"]
        return Result(source, plain["frame"], (height, width), found, plain["full"], kept)

    @property
    def path(self) -> Path:
        """The folder, created on first use. Raises InputError: it cannot be created."""
        if self._path is None:
            self._path = self._make()
        return self._path

    def _make(self) -> Path:
        try:
            if self._wanted is not None:
                self._wanted.mkdir(parents=True, exist_ok=True)
                _refuse_full(self._wanted)  # again, as loading the model took some time
                (self._wanted / RESULTS_MARK).touch(exist_ok=self._emptied)
                return self._wanted
            for folder in numbered_folders(Path(DEFAULT_FOLDER)):
                with contextlib.suppress(FileExistsError):
                    folder.mkdir()
                    (folder / RESULTS_MARK).touch()
                    return folder
        except FileExistsError:
            raise InputError(
                f"--output: another run has started to write in {self._wanted}; choose another folder"
            ) from None
        except OSError as error:
            raise InputError(
                f"--output: {self._wanted or DEFAULT_FOLDER} cannot be created: {error.strerror}"
            ) from None
        raise AssertionError("unreachable")

    def write_picture(self, source: Source, pixels: NDArray[np.uint8]) -> None:
        """Save a drawn picture, uint8 [H, W, 3]: PNG stays PNG, all else becomes JPEG if its sides permit.

        Raises:
            InputError: no permission or no space.
        """
        png = source.place.suffix.lower() == ".png" or max(pixels.shape) > _MOST_OF_JPEG
        path = self.place("pictures", source.place, ".png" if png else ".jpg")
        _save(path, pixels, _QUALITY)
        self._drawn[source] = path

    def write_frame(self, source: Source, frame: int, pixels: NDArray[np.uint8]) -> Path:
        """Save a frame of a video as an image for annotation; raises as `write_picture`."""
        ending = ".png" if max(pixels.shape) > _MOST_OF_JPEG else ".jpg"
        place = source.place.with_name(f"{source.place.stem}-{frame:06d}{ending}")
        path = self.place(FRAMES, place, ending)
        _save(path, pixels, _QUALITY_TO_LEARN)
        return path

    def video_writer(self, source: Source, rate: float, size: tuple[int, int]) -> VideoWriter:
        """A writer for the drawn frames of a video. Raises InputError: it cannot be written."""
        path = self.place("videos", source.place, ".mp4")
        self._drawn[source] = path
        return VideoWriter(path, rate, size)

    def place(self, kind: str, place: Path, ending: str) -> Path:
        """A unique path: a.jpg, then a-2.jpg; names that are too long are truncated."""
        folder = self.path / kind
        for part in place.parent.parts:  # a folder may have the same name as another input's picture
            folder = next(path for path in numbered_folders(folder / part) if not path.is_file())
        wanted = folder / name_that_fits(place.stem, ending)
        for number in itertools.count(self._numbers.get(wanted, 1)):
            path = wanted if number == 1 else folder / name_that_fits(place.stem, f"-{number}{ending}")
            # exists(), as A.jpg and a.jpg may be the same file
            if path in self._left or (path not in self._taken and not path.exists()):
                break
        self._numbers[wanted] = number
        self._taken.add(path)
        self._left.discard(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{path.parent} cannot be created: {error.strerror}") from None
        return path


def _save(path: Path, pixels: NDArray[np.uint8], quality: int) -> None:
    encoded = io.BytesIO()
    image = Image.fromarray(pixels)
    if path.suffix == ".png":
        image.save(encoded, "PNG", compress_level=3)
    else:
        image.save(encoded, "JPEG", quality=quality)
    write_bytes(path, encoded.getbuffer())


def _refuse_full(folder: Path) -> None:
    if any(not path.name.startswith(".") for path in folder.iterdir()):
        raise InputError(f"--output: {folder} is not empty; choose another folder")
