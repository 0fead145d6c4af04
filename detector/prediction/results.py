"""The folder of results: pictures, tables, annotations to correct by hand, and a list of failed inputs."""

import contextlib
import csv
import io
import itertools
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image

from data.inputs import RESULTS_MARK, Source
from data.video import VideoWriter
from detector.evaluation.coco_results import result_entry, results_pieces
from detector.output import (
    check_new_folder,
    name_that_fits,
    numbered_folders,
    write_bytes,
    write_pieces,
    write_text,
)
from detector.prediction import annotations
from detector.prediction.annotations import Result
from detector.predictor import ImageDetections
from errors import InputError

log = logging.getLogger(__name__)

FORMATS = ("pictures", "coco", "csv", "instances", "voc", "yolo")
# TO_CORRECT: formats that users edit by hand; written only at the end, as --resume would overwrite them.
DEFAULT_FORMATS, TO_CORRECT = FORMATS[:3], FORMATS[3:]
DEFAULT_FOLDER = "predictions"
_FRAMES = "images"  # beside labels, Annotations and instances.json, as in data sets
_KINDS = ("pictures", "videos", "labels", "Annotations", _FRAMES)  # folders with one file per input
_ESCAPES = str.maketrans({"\n": "\\n", "\t": "\\t", "\r": "\\r"})
_LINES = 5  # most warnings about renamed label files
_MOST_OF_JPEG = 65_000  # pixels per side
_QUALITY, _QUALITY_TO_LEARN = 92, 95  # of JPEGs for viewing and for training
_CSV_HEADER = ("file", "frame", "class", "score", "x0", "y0", "x1", "y1")


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
        self.resumed = resumed is not None
        if resumed is not None:
            if not resumed.is_dir():
                raise InputError(f"--resume: the folder {resumed} does not exist")
            self._path = resumed
            self._left = {path for kind in _KINDS for path in (resumed / kind).rglob("*")}
            return
        check_new_folder("--output", Path() if wanted is None else wanted)
        self._emptied = False  # an earlier folder of results that has been emptied
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
        path = self._place("pictures", source.place, ".png" if png else ".jpg")
        _save(path, pixels, _QUALITY)
        self._drawn[source] = path

    def write_frame(self, source: Source, frame: int, pixels: NDArray[np.uint8]) -> Path:
        """Save a frame of a video as an image for annotation; raises as `write_picture`."""
        ending = ".png" if max(pixels.shape) > _MOST_OF_JPEG else ".jpg"
        place = source.place.with_name(f"{source.place.stem}-{frame:06d}{ending}")
        path = self._place(_FRAMES, place, ending)
        _save(path, pixels, _QUALITY_TO_LEARN)
        return path

    def video_writer(self, source: Source, rate: float, size: tuple[int, int]) -> VideoWriter:
        """A writer for the drawn frames of a video. Raises InputError: it cannot be written."""
        path = self._place("videos", source.place, ".mp4")
        self._drawn[source] = path
        return VideoWriter(path, rate, size)

    def _place(self, kind: str, place: Path, ending: str) -> Path:
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

    def write_coco(
        self, results: Sequence[Result], classes: tuple[str, ...], category_ids: tuple[int, ...]
    ) -> None:
        """coco.json, a results file, and images.json, which maps its ids to files and drawn pictures.

        Raises:
            InputError: no permission or no space.
        """
        entries = (
            result_entry(number, category_ids[label], (x0, y0, x1 - x0, y1 - y0), score)
            for number, result in enumerate(results, start=1)
            for (x0, y0, x1, y1), label, score in zip(
                result.found.boxes.tolist(), result.found.labels, result.found.scores.tolist(), strict=True
            )
        )
        images = []
        for number, result in enumerate(results, start=1):
            height, width = result.size
            image: dict[str, Any] = {"id": number, "file_name": str(result.source.path)}
            image |= {"width": width, "height": height}
            if (drawn := self.drawn(result.source)) is not None:
                image["drawn"] = drawn
            images.append(image if result.frame is None else {**image, "frame": result.frame})
        listing = {
            "info": {},
            "images": images,
            "annotations": [],
            "categories": annotations.categories(category_ids, classes),
        }
        write_pieces(self.path / "coco.json", results_pieces(entries))
        write_text(self.path / "images.json", json.dumps(listing) + "\n")

    def write_csv(self, results: Sequence[Result]) -> None:
        """detections.csv, one line per detection. Raises InputError: no permission or no space."""
        write_pieces(self.path / "detections.csv", map(_csv_lines, ([_CSV_HEADER], *map(_csv_rows, results))))

    def write_instances(
        self, results: Sequence[Result], classes: tuple[str, ...], category_ids: tuple[int, ...]
    ) -> None:
        """instances.json. Raises InputError: no permission or no space."""
        pieces = annotations.instances(self._of_images(results), classes, category_ids)
        write_pieces(self.path / "instances.json", pieces)
        _say_what_is_left_out("instances", results)

    def write_yolo(self, results: Sequence[Result], classes: tuple[str, ...]) -> None:
        """labels/, a file for each image, and data.yaml with the class names.

        An image without detections gets an empty file, which shows that it was processed.

        Raises:
            InputError: no permission or no space.
        """
        renamed: list[str] = []
        for result in self._of_images(results):
            path = self._annotations_of(result, "labels", ".txt", renamed)
            write_text(path, annotations.yolo_lines(result))
        _say_renamed(renamed)
        names = yaml.safe_dump({"names": dict(enumerate(classes))}, allow_unicode=True, sort_keys=False)
        write_text(self.path / "data.yaml", names)
        _say_what_is_left_out("yolo", results)

    def write_voc(self, results: Sequence[Result]) -> None:
        """Annotations/, an XML file for each image, also for those without detections.

        Raises:
            InputError: no permission or no space.
        """
        renamed: list[str] = []
        for result in self._of_images(results):
            write_text(self._annotations_of(result, "Annotations", ".xml", renamed), annotations.voc(result))
        _say_renamed(renamed)
        _say_what_is_left_out("voc", results)

    def _of_images(self, results: Sequence[Result]) -> list[Result]:
        """The results of images, and of video frames that were saved as images."""
        images = []
        for result in results:
            if result.frame is None:
                images.append(result)
            elif result.kept is not None:
                source = Source("image", result.kept, result.kept.relative_to(self.path / _FRAMES))
                images.append(replace(result, source=source, frame=None))
        return images

    def _annotations_of(self, result: Result, kind: str, ending: str, renamed: list[str]) -> Path:
        """A file for the annotations of an image, with its name if possible; else adds a note to renamed."""
        place = result.source.place
        path = self._place(kind, place, ending)
        if path.stem != place.stem:
            cut = not path.stem.startswith(place.stem)
            why = "the name is too long" if cut else "another image has the same name"
            renamed.append(f"{result.source.path}: {why}; its labels are {path}")
        return path

    def write_failed(self, failed: Sequence[tuple[Source, str]]) -> None:
        """failed.txt, a path and a reason per line. Raises InputError: no permission or no space."""
        names = (str(source.path).translate(_ESCAPES) for source, _ in failed)
        reasons = (reason.translate(_ESCAPES) for _, reason in failed)
        lines = (f"{name}\t{reason}\n" for name, reason in zip(names, reasons, strict=True))
        write_text(self.path / "failed.txt", "".join(lines))

    def forget_failed(self) -> None:
        """Delete failed.txt of an earlier run: all inputs are usable now."""
        (self.path / "failed.txt").unlink(missing_ok=True)


def _csv_lines(rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _csv_rows(result: Result) -> Iterator[Sequence[object]]:
    frame = "" if result.frame is None else result.frame
    found = result.found
    for box, name, score in zip(found.boxes, found.names, found.scores, strict=True):
        sides = (f"{side:.2f}" for side in box)
        yield (result.source.path, frame, name, f"{score:.6f}", *sides)


def _save(path: Path, pixels: NDArray[np.uint8], quality: int) -> None:
    encoded = io.BytesIO()
    image = Image.fromarray(pixels)
    if path.suffix == ".png":
        image.save(encoded, "PNG", compress_level=3)
    else:
        image.save(encoded, "JPEG", quality=quality)
    write_bytes(path, encoded.getbuffer())


def _say_renamed(lines: Sequence[str]) -> None:
    for line in lines[:_LINES]:
        log.warning("%s", line)
    if len(lines) > _LINES:
        log.warning("and %d more images whose labels have different names", len(lines) - _LINES)


def _say_what_is_left_out(form: str, results: Sequence[Result]) -> None:
    frames = sum(result.frame is not None for result in results)
    if frames and all(result.kept is None for result in results):
        log.warning(
            "--format %s: annotations need image files, which %d video frames do not have (--frames 25 "
            "saves every 25th frame as an image)", form, frames,
        )  # fmt: skip


def _refuse_full(folder: Path) -> None:
    if any(not path.name.startswith(".") for path in folder.iterdir()):
        raise InputError(f"--output: {folder} is not empty; choose another folder")
