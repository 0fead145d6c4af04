"""Score a checkpoint on a split of its data set, or any COCO results file; compare several of them."""

from pathlib import Path

from doors import NAMES_OF_THE_RUN, OptionParser, is_there, run_door
from errors import InputError

_AT_A_SCORE = "AP is computed over all scores; use --threshold T for precision, recall and the report"
_AT_AN_IOU = (
    "AP is averaged over IoU 0.5 to 0.95, AP50 is at 0.5; for the IoU threshold of NMS use "
    "eval.nms_threshold=T"
)


def main() -> None:
    parser = OptionParser(
        description="Compute the COCO metrics of a checkpoint or of a COCO results file.",
        elsewhere={
            **NAMES_OF_THE_RUN,
            **dict.fromkeys(("conf", "score_thr", "conf_thres"), _AT_A_SCORE),
            **dict.fromkeys(("iou", "iou_thres", "iou_thr"), _AT_AN_IOU),
            "batch": "use eval.batch_size=N",
        },
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="RUN_DIR_OR_CHECKPOINT|KEY=VALUE",
        help="of a run folder best.pt is used; several models are compared; settings as dotted keys",
    )
    parser.add_argument(
        "--split", choices=("train", "val", "test"), help="split of the checkpoint's data set (default: val)"
    )
    parser.add_argument("--device", help="auto, cpu, cuda, cuda:1, mps (default: the device of the training)")
    parser.add_argument("--output", metavar="FILE", type=Path, help="write the metrics as JSON")
    parser.add_argument(
        "--predictions",
        nargs="+",
        metavar="RESULTS.json",
        type=Path,
        default=[],
        help="COCO results files to score",
    )
    parser.add_argument(
        "--annotations", metavar="INSTANCES.json", type=Path, help="the ground truth for --predictions"
    )
    parser.add_argument(
        "--report", metavar="DIR", type=Path, help="write an HTML page that explains the metrics"
    )
    parser.add_argument(
        "--images", metavar="DIR", type=Path, help="folder of the images, for the report of --predictions"
    )
    parser.add_argument(
        "--results",
        metavar="FILE",
        type=Path,
        help="write the detections as a COCO results file",
    )
    parser.add_argument(
        "--recalibrate",
        metavar="FILE.pt",
        type=Path,
        help="write a copy of the checkpoint with scores and thresholds recalibrated on this split, with "
        "these eval settings",
    )
    parser.add_argument(
        "--exported",
        metavar="FILE",
        type=Path,
        help="score a file written by export.py, or converted from one, on the data of the checkpoint",
    )
    parser.add_argument(
        "--mean",
        action="store_true",
        help="print the mean and spread of several models, such as folds or seeds",
    )
    parser.add_argument(
        "--threshold",
        metavar="T|CLASS=T,...",
        help="score thresholds for precision, recall and the report (default on train and test: the "
        "checkpoint's)",
    )
    a = parser.parse_intermixed_args()
    overrides = [word for word in a.words if "=" in word and not is_there(word)]
    models = [Path(word) for word in a.words if word not in overrides]
    if a.device is not None:
        if a.predictions:
            raise InputError("--device: scoring existing results needs no device; leave it out")
        overrides.append(f"train.device={a.device}")

    from detector.evaluation.command import Wanted, evaluate  # imported late: it takes seconds

    evaluate(
        Wanted(
            models=models,
            overrides=overrides,
            split=a.split,
            predictions=a.predictions,
            annotations=a.annotations,
            images=a.images,
            output=a.output,
            results=a.results,
            report=a.report,
            recalibrated=a.recalibrate,
            mean=a.mean,
            threshold=a.threshold,
            exported=a.exported,
        )
    )


if __name__ == "__main__":
    run_door(main)
