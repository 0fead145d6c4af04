"""Score a checkpoint on a split of its data set, or any COCO results file."""

import argparse
import json
from pathlib import Path

from doors import run_door


def main() -> None:
    parser = argparse.ArgumentParser(description="COCO metrics of a checkpoint, or of a COCO results file.")
    parser.add_argument(
        "model", nargs="?", metavar="RUN_DIR_OR_CHECKPOINT", help="takes best.pt of a run folder"
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="dotted configuration keys")
    parser.add_argument("--split", choices=("val", "test"), default="val")
    parser.add_argument("--output", metavar="FILE", type=Path, help="write the metrics as JSON")
    parser.add_argument("--predictions", metavar="RESULTS.json", type=Path, help="COCO results to score")
    parser.add_argument("--annotations", metavar="INSTANCES.json", type=Path, help="the gt for --predictions")
    a = parser.parse_intermixed_args()
    evaluate(a.model, a.overrides, a.split, a.output, a.predictions, a.annotations)


def evaluate(
    model: str | None,
    overrides: list[str],
    split: str,
    output: Path | None,
    predictions: Path | None,
    annotations: Path | None,
) -> None:
    """Score what the command line names, print the table, write the JSON."""
    from detector.evaluation.coco import evaluate_files
    from detector.training.monitor import metrics_table
    from detector.training.run_folder import write_text
    from errors import InputError

    if output is not None and not output.absolute().parent.is_dir():
        raise InputError(f"--output: the folder {output.parent} does not exist")
    extra: dict[str, float] = {}
    if predictions is not None or annotations is not None:
        if predictions is None or annotations is None or model is not None or overrides:
            raise InputError("--predictions and --annotations go together, and without a model")
        result, title = evaluate_files(predictions, annotations), str(predictions)
    elif model is None:
        raise InputError("give a run folder or a checkpoint, or --predictions with --annotations")
    else:
        from detector.evaluation.checkpoint import evaluate_checkpoint

        done = evaluate_checkpoint(Path(model), overrides, split)
        result, extra = done.scores.coco, done.scores.extra
        title = f"{done.file}, split {split} of {done.config.data.root} ({len(done.records)} images)"
    print(metrics_table(result, extra, title))
    if output is not None:
        write_text(output, json.dumps({**result.as_json(), **extra}, indent=2) + "\n")


if __name__ == "__main__":
    run_door(main)
