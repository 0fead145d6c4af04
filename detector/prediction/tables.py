"""The tables and annotations that predict.py writes at the end, and the list of failed inputs."""

import csv
import io
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from data.inputs import Source
from detector.evaluation.coco_instances import categories
from detector.evaluation.coco_results import result_entry, results_pieces
from detector.output import write_pieces, write_text
from detector.prediction import annotations
from detector.prediction.annotations import Result
from detector.prediction.results import FRAMES, TO_CORRECT, ResultsFolder
from errors import InputError

log = logging.getLogger(__name__)

_ESCAPES = str.maketrans({"\n": "\\n", "\t": "\\t", "\r": "\\r"})
_LINES = 5  # most warnings about renamed label files
_CSV_HEADER = ("file", "frame", "class", "score", "x0", "y0", "x1", "y1")


def write_tables(
    folder: ResultsFolder,
    results: Sequence[Result],
    failed: Sequence[tuple[Source, str]],
    formats: Sequence[str],
    classes: tuple[str, ...],
    category_ids: tuple[int, ...],
) -> None:
    """Write everything but the pictures.

    Args:
        failed: inputs without results, and the reason for each.
        formats: some of results.FORMATS.

    Raises:
        InputError: a file could not be written. All other tables are written, but then no annotations.
    """
    writers: dict[str, Callable[[], None]] = {
        "coco": lambda: _write_coco(folder, results, classes, category_ids),
        "csv": lambda: _write_csv(folder, results),
        "instances": lambda: _write_instances(folder, results, classes, category_ids),
        "voc": lambda: _write_voc(folder, results),
        "yolo": lambda: _write_yolo(folder, results, classes),
    }
    wanted = [name for name in writers if name in formats]
    first = [writers[name] for name in wanted if name not in TO_CORRECT]
    last = [writers[name] for name in wanted if name in TO_CORRECT]
    if failed:
        first.append(lambda: _write_failed(folder, failed))
    elif folder.resumed:  # now all inputs are usable
        first.append(lambda: (folder.path / "failed.txt").unlink(missing_ok=True))
    failures = []
    for write in first:
        try:
            write()
        except InputError as error:
            failures.append(error)
    if failures:
        raise failures[0]
    # Only if all else succeeded: --resume would overwrite them, and the user may have begun to edit them.
    for write in last:
        write()


def _write_coco(
    folder: ResultsFolder, results: Sequence[Result], classes: tuple[str, ...], category_ids: tuple[int, ...]
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
        if (drawn := folder.drawn(result.source)) is not None:
            image["drawn"] = drawn
        images.append(image if result.frame is None else {**image, "frame": result.frame})
    listing = {
        "info": {},
        "images": images,
        "annotations": [],
        "categories": categories(category_ids, classes),
    }
    write_pieces(folder.path / "coco.json", results_pieces(entries))
    write_text(folder.path / "images.json", json.dumps(listing) + "\n")


def _write_csv(folder: ResultsFolder, results: Sequence[Result]) -> None:
    """detections.csv, one line per detection. Raises InputError: no permission or no space."""
    write_pieces(folder.path / "detections.csv", map(_csv_lines, ([_CSV_HEADER], *map(_csv_rows, results))))


def _write_instances(
    folder: ResultsFolder, results: Sequence[Result], classes: tuple[str, ...], category_ids: tuple[int, ...]
) -> None:
    """instances.json. Raises InputError: no permission or no space."""
    pieces = annotations.instances(_of_images(results, folder), classes, category_ids)
    write_pieces(folder.path / "instances.json", pieces)
    _say_what_is_left_out("instances", results)


def _write_yolo(folder: ResultsFolder, results: Sequence[Result], classes: tuple[str, ...]) -> None:
    """labels/, a file for each image, and data.yaml with the class names.

    An image without detections gets an empty file, which shows that it was processed.

    Raises:
        InputError: no permission or no space.
    """
    renamed: list[str] = []
    for result in _of_images(results, folder):
        path = _file_of(result, folder, "labels", ".txt", renamed)
        write_text(path, annotations.yolo_lines(result))
    _say_renamed(renamed)
    names = yaml.safe_dump({"names": dict(enumerate(classes))}, allow_unicode=True, sort_keys=False)
    write_text(folder.path / "data.yaml", names)
    _say_what_is_left_out("yolo", results)


def _write_voc(folder: ResultsFolder, results: Sequence[Result]) -> None:
    """Annotations/, an XML file for each image, also for those without detections.

    Raises:
        InputError: no permission or no space.
    """
    renamed: list[str] = []
    for result in _of_images(results, folder):
        write_text(_file_of(result, folder, "Annotations", ".xml", renamed), annotations.voc(result))
    _say_renamed(renamed)
    _say_what_is_left_out("voc", results)


def _of_images(results: Sequence[Result], folder: ResultsFolder) -> list[Result]:
    """The results of images, and of video frames that were saved as images."""
    images = []
    for result in results:
        if result.frame is None:
            images.append(result)
        elif result.kept is not None:
            source = Source("image", result.kept, result.kept.relative_to(folder.path / FRAMES))
            images.append(replace(result, source=source, frame=None))
    return images


def _file_of(result: Result, folder: ResultsFolder, kind: str, ending: str, renamed: list[str]) -> Path:
    """A file for the annotations of an image, with its name if possible; else adds a note to renamed."""
    place = result.source.place
    path = folder.place(kind, place, ending)
    if path.stem != place.stem:
        cut = not path.stem.startswith(place.stem)
        why = "the name is too long" if cut else "another image has the same name"
        renamed.append(f"{result.source.path}: {why}; its labels are {path}")
    return path


def _write_failed(folder: ResultsFolder, failed: Sequence[tuple[Source, str]]) -> None:
    """failed.txt, a path and a reason per line. Raises InputError: no permission or no space."""
    names = (str(source.path).translate(_ESCAPES) for source, _ in failed)
    reasons = (reason.translate(_ESCAPES) for _, reason in failed)
    lines = (f"{name}\t{reason}\n" for name, reason in zip(names, reasons, strict=True))
    write_text(folder.path / "failed.txt", "".join(lines))


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
