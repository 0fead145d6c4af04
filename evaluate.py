"""Score a checkpoint on a split of its data set, or any COCO results file; compare several of them."""

import json
import os
from pathlib import Path
from typing import Any

from doors import OptionParser, is_there, run_door

# How the files begin that --output has written: metrics, or a comparison.
_EARLIER = r'\{\s*"(AP"|images": *\d)'


def main() -> None:
    parser = OptionParser(description="COCO metrics of a checkpoint, or of a COCO results file.")
    parser.add_argument(
        "words",
        nargs="*",
        metavar="RUN_DIR_OR_CHECKPOINT|KEY=VALUE",
        help="takes best.pt of a run folder; several are compared; dotted configuration keys",
    )
    parser.add_argument(
        "--split", choices=("val", "test"), help="of the checkpoint's data set (default: val)"
    )
    parser.add_argument("--output", metavar="FILE", type=Path, help="write the metrics as JSON")
    parser.add_argument(
        "--predictions", nargs="+", metavar="RESULTS.json", type=Path, default=[], help="COCO results"
    )
    parser.add_argument("--annotations", metavar="INSTANCES.json", type=Path, help="the gt for --predictions")
    parser.add_argument("--report", metavar="DIR", type=Path, help="write a page that explains the metrics")
    parser.add_argument("--images", metavar="DIR", type=Path, help="for the report of --predictions")
    parser.add_argument(
        "--results", metavar="FILE", type=Path, help="write the detections as a COCO results file"
    )
    a = parser.parse_intermixed_args()
    overrides = [word for word in a.words if "=" in word and not is_there(word)]
    models = [Path(word) for word in a.words if word not in overrides]
    evaluate(
        models, overrides, a.split, a.output, a.predictions, a.annotations, a.report, a.images, a.results
    )


def evaluate(
    models: list[Path],
    overrides: list[str],
    split: str | None,
    output: Path | None,
    predictions: list[Path],
    annotations: Path | None,
    report: Path | None,
    images: Path | None,
    results: Path | None,
) -> None:
    """Score what the command line names, print the table, write the JSON and the report."""
    from detector.evaluation.coco_results import BEGINNING, results_text
    from detector.evaluation.table import metrics_table
    from detector.output import check_output, write_text
    from detector.report.page import check_report_folder, write_report
    from errors import InputError

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("evaluate.py works in one process; start it with python, not with torchrun")
    for option, file, earlier in (("--output", output, _EARLIER), ("--results", results, BEGINNING)):
        if file is None:
            continue
        if report is not None and report.absolute() in file.absolute().parents:
            raise InputError(f"{option}: {file} lies in the folder of --report, which is for the page alone")
        check_output(option, file, earlier)
    if predictions or annotations is not None:
        if not predictions or annotations is None or models or overrides:
            raise InputError("--predictions and --annotations go together, and without a model")
        if split is not None:
            raise InputError("--split is of a checkpoint's data set; --annotations names the gt itself")
    elif not models:
        raise InputError("give a run folder or a checkpoint, or --predictions with --annotations")
    split = split or "val"
    if images is not None and (report is None or not predictions):
        raise InputError("--images is for the pictures of --predictions with --report")
    if results is not None:
        if len(models) != 1:
            raise InputError("--results writes what one checkpoint finds: give one")
        if output is not None and output.absolute() == results.absolute():
            raise InputError(f"--output and --results: both are {output}; name two files")
    if report is not None:
        if len(models) > 1 or len(predictions) > 1:
            raise InputError("--report explains one run: give one alone")
        check_report_folder(report)
    content: dict[str, Any]
    if len(models) > 1 or len(predictions) > 1:
        from detector.evaluation.comparison import compare_checkpoints, compare_files, comparison_table

        if annotations is not None:
            compared, title = compare_files(predictions, annotations), str(annotations)
        else:
            compared, title = compare_checkpoints(models, overrides, split), f"split {split}"
        content = compared.as_json()
        text = comparison_table(compared, title)
    else:
        if annotations is not None:
            from detector.evaluation.coco import evaluate_material
            from detector.evaluation.material import read_material

            extra: dict[str, float] = {}
            result = evaluate_material(read_material(predictions[0], annotations, images))
            title, facts = str(predictions[0]), [("annotations", str(annotations))]
        else:
            from detector.evaluation.checkpoint import evaluate_checkpoint

            done = evaluate_checkpoint(models[0], overrides, split, with_ids=results is not None)
            if results is not None:
                write_text(results, results_text(done.coco_results()))
            result, extra = done.scores.coco, done.scores.extra
            title = f"{done.file}, split {split} of {done.config.data.root} ({len(done.records)} images)"
            facts = [("checkpoint", str(done.file)), ("split", f"{split} of {done.config.data.root}")]
        content = {**result.as_json(), **extra}
        text = metrics_table(result, extra, title)
    # Before the table: whoever reads that may have gone (| head).
    if output is not None:
        write_text(output, json.dumps(content, indent=2) + "\n")
    try:
        if report is not None:
            name = str(models[0] if models else predictions[0])
            text += f"\nreport: {write_report(report, f'Evaluation of {name}', facts, result, extra)}"
    finally:  # a report that fails costs no metrics
        print(text)


if __name__ == "__main__":
    run_door(main)
