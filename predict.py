"""Detect in images and videos: python predict.py RUN_DIR_OR_CHECKPOINT INPUT ..."""

import glob
import re
from collections.abc import Sequence
from pathlib import Path

from doors import NAMES_OF_THE_RUN, OptionParser, is_there, number_of, run_door

_MOST_AT_A_TIME = 100_000
_INPUTS = "what to detect in stands behind the run, without an option"
_OUTPUT = "the folder of the results is --output DIR"
_ELSEWHERE = {
    **NAMES_OF_THE_RUN,
    **dict.fromkeys(("source", "input", "inputs", "img", "image"), _INPUTS),
    **dict.fromkeys(("project", "name", "save_dir", "output_dir", "out_dir"), _OUTPUT),
    **dict.fromkeys(("filter_classes", "class_names"), "here it is --classes NAME,NAME"),
    **dict.fromkeys(
        ("conf", "score_thr", "confidence_threshold", "pred_score_thr"), "here it is --threshold T"
    ),
    **dict.fromkeys(("agnostic_nms", "class_agnostic"), "here it is --one-per-object"),
    "save_txt": "here it is --format yolo",
    "save_json": "coco.json is written anyway; --format lists what there is",
}
# Of calibrated scores: the threshold with the best F1 is half of it, which is below 0.1 then.
_NEARLY_ALL = 0.05
_KEY = re.compile(r"[a-z]+(\.\w+)+=")  # a file may have a name with =


def main() -> None:
    parser = OptionParser(
        description="Detect in images and videos with a trained checkpoint.",
        epilog="Example: python predict.py runs/bccd photographs/ clip.mp4 --threshold 0.5",
        elsewhere=_ELSEWHERE,
    )
    parser.add_argument("model", metavar="RUN_DIR_OR_CHECKPOINT", help="takes best.pt of a run folder")
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT|KEY=VALUE",
        help="image or video files, folders with all below, quoted patterns, or - for an image on stdin; "
        "dotted configuration keys: eval.detections_per_img=300",
    )
    parser.add_argument(
        "--output", metavar="DIR", type=Path, help="a new folder (default: predictions, predictions-2, ...)"
    )
    parser.add_argument(
        "--threshold",
        metavar="T",
        help="least score, 0 to 1, of all or of some: car=0.5,bus=0.3 (default: each class's with the best "
        "F1 in validation, else 0.5)",
    )
    parser.add_argument("--classes", metavar="LIST", help="of these alone: car,bus (default: of all)")
    parser.add_argument(
        "--one-per-object",
        action="store_true",
        help="of overlapping boxes of different classes only the best (look-alike classes)",
    )
    parser.add_argument(
        "--format",
        metavar="LIST",
        help="what to write: pictures,coco,csv (the default), and as annotations to correct by hand "
        "instances (COCO) or yolo",
    )
    parser.add_argument("--batch", metavar="N", help="images at a time (default: that of evaluation)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    a = parser.parse_intermixed_args()
    overrides = [word for word in a.inputs if _KEY.match(word) and not _names_inputs(word)]
    inputs = [word for word in a.inputs if word not in overrides]
    predict(
        a.model,
        inputs,
        overrides,
        a.output,
        a.threshold,
        a.classes,
        a.one_per_object,
        a.format,
        a.batch,
        a.device,
    )


def _names_inputs(word: str) -> bool:
    return is_there(word) or bool(glob.glob(word, recursive=True))  # noqa: PTH207


def _among(text: str, classes: Sequence[str]) -> set[str]:
    """The classes whose names stand between commas; a name may hold some itself."""
    from errors import InputError

    found, held = set[str](), ""
    for piece in text.split(","):
        held = f"{held},{piece}" if held else piece
        if held.strip() in classes:
            found.add(held.strip())
            held = ""
    if held or not found:
        there = ", ".join(classes)
        raise InputError(f"--classes: there is no class '{held.strip()}'; there are {there}")
    return found


def predict(
    model: str,
    inputs: list[str],
    overrides: list[str],
    output: Path | None,
    threshold: str | None,
    only: str | None,
    one_per_object: bool,
    formats: str | None,
    batch: str | None,
    device: str,
) -> None:
    """Detect in what the command line names, write the results, say where they are."""
    import logging

    import numpy as np

    from data.images import IMAGE_SUFFIXES
    from data.inputs import VIDEO_SUFFIXES, find_sources
    from detector.checkpoint import find_checkpoint
    from detector.config.hints import setting_called
    from detector.prediction.results import DEFAULT_FORMATS, FORMATS, ResultsFolder
    from detector.prediction.session import predict as run
    from detector.predictor import Detector
    from detector.thresholds import chosen_thresholds, parse_thresholds
    from errors import InputError, some_of

    wanted = [*DEFAULT_FORMATS] if formats is None else [word.strip() for word in formats.split(",")]
    for word in wanted:
        if word not in FORMATS:
            raise InputError(f"--format: '{word}' is not one of {', '.join(FORMATS)}")
    least = {} if threshold is None else parse_thresholds(threshold)
    size = None if batch is None else number_of("--batch", batch)
    if size is not None and not (1 <= size <= _MOST_AT_A_TIME and size.is_integer()):
        raise InputError(f"--batch: a whole number from 1 to {_MOST_AT_A_TIME} is wanted, not {batch}")
    if Path(model).suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES:
        raise InputError(f"{model} is no checkpoint; the run folder comes first, then what to detect in")
    for word in inputs:
        name, equals, _ = word.partition("=")
        hint = _ELSEWHERE.get(name) or setting_called(name) if equals and not _names_inputs(word) else ""
        if hint:
            raise InputError(f"{word}: {hint}")
    if not inputs:
        raise InputError("give an image, a folder or a video beside the settings")
    find_checkpoint(Path(model))  # before the inputs: they may have changed places
    sources, folder = find_sources(inputs), ResultsFolder(output)
    detector = Detector.load(model, device, overrides)
    if size is not None:
        detector.batch_size = int(size)
    usual = dict(zip(detector.classes, detector.thresholds.tolist(), strict=True))
    wanted_scores = chosen_thresholds(least, usual)
    chosen = detector.classes if only is None else _among(only, detector.classes)
    low = [
        f"{name} {score:.2g}"
        for name, score in wanted_scores.items()
        if name in chosen and score < _NEARLY_ALL and not ({name, ""} & least.keys())
    ]
    if low and detector.calibrated:
        logging.getLogger(__name__).warning(
            "thresholds near 0, as these classes were hardly found in validation: %s; nearly all of them is "
            "written, unless --threshold 0.5, or one by name, says otherwise",
            some_of(low, 5),
        )
    thresholds = np.array([x if name in chosen else np.inf for name, x in wanted_scores.items()])
    report = run(detector, sources, folder, wanted, thresholds, one_per_object)
    if report.failed:
        logging.getLogger(__name__).warning(
            "%d of %d inputs could not be used; see %s",
            report.failed, len(sources), report.folder / "failed.txt",
        )  # fmt: skip
    counts = ((report.images, "image"), (report.frames, "frame"))
    where = " and ".join(f"{count} {noun}{'s' * (count != 1)}" for count, noun in counts if count)
    print(f"{report.detections} detections in {where}: {report.folder}")


if __name__ == "__main__":
    run_door(main)
