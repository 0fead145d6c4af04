"""The command of predict.py."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.images import IMAGE_SUFFIXES
from data.inputs import VIDEO_SUFFIXES, find_sources
from detector.checkpoint import find_checkpoint
from detector.prediction.journal import digest_of
from detector.prediction.results import DEFAULT_FORMATS, FORMATS, TO_CORRECT, ResultsFolder
from detector.prediction.session import Report
from detector.prediction.session import predict as run
from detector.predictor import Detector
from detector.thresholds import chosen_thresholds, parse_thresholds, parts_of
from errors import InputError, number_of, some_of

log = logging.getLogger(__name__)

_MOST = 100_000  # for --batch and --frames
# A calibrated threshold below this: it is about half of the best F1, which then is below 0.1.
_NEARLY_ALL = 0.05


@dataclass(frozen=True)
class Wanted:
    """The parsed command line."""

    model: Path
    inputs: list[str]
    overrides: list[str]
    output: Path | None
    resume: Path | None
    threshold: str | None
    classes: str | None
    one_per_object: bool
    formats: str | None
    frames: str | None
    batch: str | None
    device: str


def predict(wanted: Wanted) -> None:
    """Detect objects in the inputs, write the results, and print where they are."""
    w = wanted
    formats, batch, every = _formats(w.formats), _count("--batch", w.batch), _count("--frames", w.frames)
    if every is not None and {*TO_CORRECT}.isdisjoint(formats):
        raise InputError("--frames is for annotations: give --format instances, voc or yolo as well")
    least = {} if w.threshold is None else parse_thresholds(w.threshold)
    if w.model.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES:
        raise InputError(
            f"{w.model} is not a checkpoint; give the run folder or checkpoint first, then the inputs"
        )
    if not w.inputs:
        raise InputError("give an image, a folder or a video in addition to the settings")
    if w.resume is not None and w.output is not None:
        raise InputError("--resume continues in an existing folder; leave out --output")
    checkpoint = find_checkpoint(w.model)  # before the inputs: model and inputs may be swapped
    sources, folder = find_sources(w.inputs), ResultsFolder(w.output, w.resume)
    detector = Detector.load(w.model, w.device, w.overrides)
    detector.batch_size = batch or detector.batch_size
    usual = dict(zip(detector.classes, detector.thresholds.tolist(), strict=True))
    scores = chosen_thresholds(least, usual)
    chosen = detector.classes if w.classes is None else _among(w.classes, detector.classes)
    if detector.calibrated:
        _warn_of_low({name: scores[name] for name in chosen if not ({name, ""} & least.keys())})
    thresholds = np.array([score if name in chosen else np.inf for name, score in scores.items()])
    settings = {
        "checkpoint": digest_of(checkpoint),
        "setting": sorted(w.overrides),
        "--threshold or --classes": [score if name in chosen else None for name, score in scores.items()],
        "--one-per-object": w.one_per_object,
        "--format (pictures)": "pictures" in formats,
        "--frames": every,
    }
    report = run(detector, sources, folder, formats, thresholds, w.one_per_object, every, settings)
    _say(report, len(sources))


def _formats(text: str | None) -> list[str]:
    formats = [*DEFAULT_FORMATS] if text is None else [word.strip() for word in text.split(",")]
    for word in formats:
        if word not in FORMATS:
            raise InputError(f"--format: '{word}' is not one of {', '.join(FORMATS)}")
    return formats


def _count(option: str, text: str | None) -> int | None:
    if text is None:
        return None
    count = number_of(option, text)
    if not (1 <= count <= _MOST and count.is_integer()):
        raise InputError(f"{option} must be a whole number from 1 to {_MOST}, got {text}")
    return int(count)


def _among(text: str, classes: Sequence[str]) -> list[str]:
    """The classes in a comma-separated list; their names may contain commas."""
    found = [part.strip() for part in parts_of(text, lambda part: part.strip() in classes)] or [""]
    if found[-1] not in classes:
        raise InputError(f"--classes: there is no class '{found[-1]}'; the classes are {', '.join(classes)}")
    return found


def _warn_of_low(scores: Mapping[str, float]) -> None:
    """Warn of thresholds near 0. scores: of the classes whose thresholds the user has not given."""
    low = [f"{name} {score:.2g}" for name, score in scores.items() if score < _NEARLY_ALL]
    if low:
        log.warning(
            "the thresholds of these classes are near 0, because they were hardly found in validation: %s; "
            "nearly all their detections are written, unless you give --threshold 0.5, or one by class",
            some_of(low, 5),
        )


def _say(report: Report, inputs: int) -> None:
    if report.failed:
        log.warning(
            "%d of %d inputs could not be used; see %s", report.failed, inputs, report.folder / "failed.txt"
        )
    counts = ((report.images, "image"), (report.frames, "frame"))
    where = " and ".join(f"{count} {noun}{'s' * (count != 1)}" for count, noun in counts if count)
    print(f"{report.detections} detections in {where}: {report.folder}")
