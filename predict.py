"""Detect in images and videos: python predict.py RUN_DIR_OR_CHECKPOINT INPUT ..."""

import glob
import re
from pathlib import Path

from doors import NAMES_OF_THE_RUN, OptionParser, is_there, run_door

_INPUTS = "give the inputs after the run folder or checkpoint, without an option"
_OUTPUT = "use --output DIR for the folder of the results"
_ELSEWHERE = {
    **NAMES_OF_THE_RUN,
    **dict.fromkeys(("source", "input", "inputs", "img", "image"), _INPUTS),
    **dict.fromkeys(("project", "name", "save_dir", "output_dir", "out_dir"), _OUTPUT),
    **dict.fromkeys(("filter_classes", "class_names"), "use --classes NAME,NAME"),
    **dict.fromkeys(("conf", "score_thr", "confidence_threshold", "pred_score_thr"), "use --threshold T"),
    **dict.fromkeys(("agnostic_nms", "class_agnostic"), "use --one-per-object"),
    "save_txt": "use --format yolo",
    "classes": "use --classes NAME,NAME",
    "device": "use --device",
    "resume": "use --resume DIR, with the folder of the results",
    **dict.fromkeys(("batch", "batch_size", "bs"), "use --batch N"),
    **dict.fromkeys(("workers", "num_workers"), "not needed: four threads always read files ahead"),
    **dict.fromkeys(
        ("half", "fp16", "amp"), "the precision is that of the training; set another with train.amp=fp16"
    ),
    **dict.fromkeys(("tta", "augment"), "use eval.flip=true"),
    **dict.fromkeys(("vid_stride", "frame_stride"), "there is no such option: every frame is processed"),
    "save_frames": "use --frames N, with --format yolo",
    **dict.fromkeys(
        ("exist_ok", "overwrite"),
        "there is no such option: results are never replaced, each run gets a new folder",
    ),
    **dict.fromkeys(
        ("show", "view_img"), "there is no such option: the pictures are in the folder of the results"
    ),
    **dict.fromkeys(
        ("save_crop", "line_width", "hide_labels", "hide_conf"),
        "there is no such option; from Python, found.boxes has the boxes and found.draw(image) draws them",
    ),
    "save_json": "coco.json is written by default; see --format for the other formats",
}
_KEY = re.compile(r"[a-z]+(\.\w+)+=")  # file names may contain "="


def main() -> None:
    parser = OptionParser(
        description="Detect in images and videos with a trained checkpoint.",
        epilog="Example: python predict.py runs/bccd photographs/ clip.mp4 --threshold 0.5",
        elsewhere=_ELSEWHERE,
    )
    parser.add_argument("model", metavar="RUN_DIR_OR_CHECKPOINT", help="of a run folder best.pt is used")
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT|KEY=VALUE",
        help="image or video files, folders (searched recursively), quoted patterns, .txt lists of files, "
        "or - for an image on stdin; and settings as dotted keys, such as eval.detections_per_img=300",
    )
    parser.add_argument(
        "--output", metavar="DIR", type=Path, help="a new folder (default: predictions, predictions-2, ...)"
    )
    parser.add_argument(
        "--resume",
        metavar="DIR",
        type=Path,
        help="continue an interrupted run of the same command in this folder",
    )
    parser.add_argument(
        "--threshold",
        metavar="T",
        help="minimum score, 0 to 1, for all classes or by class: car=0.5,bus=0.3 (default: for each class "
        "the one with the best F1 in validation, else 0.5)",
    )
    parser.add_argument("--classes", metavar="LIST", help="detect only these classes: car,bus (default: all)")
    parser.add_argument(
        "--one-per-object",
        action="store_true",
        help="keep only the best of overlapping boxes of different classes (for look-alike classes)",
    )
    parser.add_argument(
        "--format",
        metavar="LIST",
        help="what to write: pictures,coco,csv (the default), and, as annotations to correct by hand, "
        "instances (COCO), voc or yolo",
    )
    parser.add_argument(
        "--frames",
        metavar="N",
        help="with such annotations: save every Nth frame of a video as an image, in images/",
    )
    parser.add_argument("--batch", metavar="N", help="images per batch (default: that of evaluation)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    a = parser.parse_intermixed_args()
    overrides = [word for word in a.inputs if _KEY.match(word) and not _names_inputs(word)]
    inputs = [word for word in a.inputs if word not in overrides]
    from detector.prediction.command import Wanted, predict  # imported late: it takes seconds

    _refuse_options_of_others(inputs)
    predict(
        Wanted(
            model=Path(a.model),
            inputs=inputs,
            overrides=overrides,
            output=a.output,
            resume=a.resume,
            threshold=a.threshold,
            classes=a.classes,
            one_per_object=a.one_per_object,
            formats=a.format,
            frames=a.frames,
            batch=a.batch,
            device=a.device,
        )
    )


def _names_inputs(word: str) -> bool:
    return is_there(word) or bool(glob.glob(word, recursive=True))  # noqa: PTH207


def _refuse_options_of_others(inputs: list[str]) -> None:
    """Refuse words such as conf=0.5, an option of other programs rather than a file name."""
    from detector.config.hints import setting_called
    from errors import InputError

    for word in inputs:
        name, equals, _ = word.partition("=")
        hint = _ELSEWHERE.get(name) or setting_called(name) if equals and not _names_inputs(word) else ""
        if hint:
            raise InputError(f"{word}: {hint}")


if __name__ == "__main__":
    run_door(main)
