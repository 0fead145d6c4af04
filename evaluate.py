"""Score a checkpoint on a split of its data set, or any COCO results file; compare several of them."""

from pathlib import Path

from doors import NAMES_OF_THE_RUN, OptionParser, is_there, run_door
from errors import InputError

_AT_A_SCORE = "AP is taken over all scores; here it is --threshold T, for precision, recall and the report"
_AT_AN_IOU = "AP is taken at IoU 0.5 to 0.95, AP50 at 0.5; that of NMS is eval.nms_threshold=T"


def main() -> None:
    parser = OptionParser(
        description="COCO metrics of a checkpoint, or of a COCO results file.",
        elsewhere={
            **NAMES_OF_THE_RUN,
            **dict.fromkeys(("conf", "score_thr", "conf_thres"), _AT_A_SCORE),
            **dict.fromkeys(("iou", "iou_thres", "iou_thr"), _AT_AN_IOU),
            "batch": "here it is eval.batch_size=N",
        },
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="RUN_DIR_OR_CHECKPOINT|KEY=VALUE",
        help="takes best.pt of a run folder; several are compared; dotted configuration keys",
    )
    parser.add_argument(
        "--split", choices=("train", "val", "test"), help="of the checkpoint's data set (default: val)"
    )
    parser.add_argument("--device", help="auto, cpu, cuda, cuda:1, mps (default: that of the training)")
    parser.add_argument("--output", metavar="FILE", type=Path, help="write the metrics as JSON")
    parser.add_argument(
        "--predictions", nargs="+", metavar="RESULTS.json", type=Path, default=[], help="COCO results"
    )
    parser.add_argument("--annotations", metavar="INSTANCES.json", type=Path, help="the gt for --predictions")
    parser.add_argument("--report", metavar="DIR", type=Path, help="write a page that explains the metrics")
    parser.add_argument("--images", metavar="DIR", type=Path, help="for the report of --predictions")
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
        help="write the checkpoint with scores and thresholds calibrated anew, on this split and with these "
        "settings of eval",
    )
    parser.add_argument(
        "--exported",
        metavar="FILE",
        type=Path,
        help="score a file of export.py, or what was made of it, on the data of the checkpoint",
    )
    parser.add_argument(
        "--mean", action="store_true", help="mean and spread of several, such as folds or other seeds"
    )
    parser.add_argument(
        "--threshold",
        metavar="T|CLASS=T,...",
        help="precision, recall and the report at these scores (default on train and test: the checkpoint's)",
    )
    a = parser.parse_intermixed_args()
    overrides = [word for word in a.words if "=" in word and not is_there(word)]
    models = [Path(word) for word in a.words if word not in overrides]
    if a.device is not None:
        if a.predictions:
            raise InputError("--device: results that are there need none; leave it out")
        overrides.append(f"train.device={a.device}")

    from detector.evaluation.command import Wanted, evaluate  # they take seconds, which --help does not need

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
