"""The losses side by side: one recipe, several seeds, mean and spread of AP, overall and per class.

    python -m benchmarks.accuracy configs/bccd_quick.yaml data.root=datasets/bccd --seeds 0 1 2

Trains with train.py as a user does, one run after the other or --side-by-side, each in its own folder
under --output. Finished runs are not repeated and interrupted ones are resumed, so the same command
continues where it was stopped, and prints the table once all runs are finished.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.measure import report, section
from detector.config.file import load_config
from errors import InputError

ROOT = Path(__file__).parents[1]
# One process with several threads is slower than several processes with one thread.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


def train(words: Sequence[str], run: Path, threads: dict[str, str]) -> None:
    """Train into the folder `run`, or resume it; does nothing if it is finished.

    Raises:
        RuntimeError: train.py failed.
    """
    if (run / "final.json").is_file():
        return
    resumed = (run / "config.yaml").is_file()
    words = ["--resume", str(run)] if resumed else [*words, f"run.dir={run}"]
    with Path(f"{run}.log").open("a") as log:
        # The last weights, not the best: selecting on the reported split would bias the result.
        last = str(run / "checkpoints" / "last.pt")
        for step in (["train.py", *words], ["evaluate.py", last, "--output", str(run / "final.json")]):
            code = subprocess.call(
                [sys.executable, *step], cwd=ROOT, stdout=log, stderr=log, env={**os.environ, **threads}
            )
            if code != 0:
                raise RuntimeError(f"{step[0]} ended with code {code}; see {log.name}")


def rows(results: dict[str, list[dict[str, Any]]]) -> tuple[list[str], list[list[str]]]:
    """Header and one row per loss: mean ± sample standard deviation over the seeds, in points."""
    classes = list(next(iter(results.values()))[0]["per_class"])
    overall = ["AP", "AP50", "AP75"]
    errors = {"calibration_error_raw": "error of raw scores", "calibration_error_held_out": "calibrated"}
    header = ["loss", *overall, *(f"{name} AP / AP50" for name in classes), *errors.values()]
    table = []
    for loss, metrics in results.items():
        cells = [spread([one[key] for one in metrics]) for key in overall]
        for name in classes:
            each = [one["per_class"][name] for one in metrics]
            cells.append(" / ".join(spread([one[key] for one in each]) for key in ("AP", "AP50")))
        cells += [spread([one[key] for one in metrics]) for key in errors]
        table.append([loss, *cells])
    return header, table


def _settings(config: str, words: Sequence[str], threads: str) -> str:
    """What the results depend on: arguments, code version, number of threads, resolved configuration."""
    git = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    version = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    resolved = load_config(Path(config), [*words]).model_dump_json(indent=1)
    return "\n".join((" ".join([config, *words]), f"code: {version or 'unknown'}", threads, resolved))


def spread(values: Sequence[float]) -> str:
    if min(values) < 0:  # COCO's -1 for a class without gt boxes
        return "-"
    mean = f"{100 * statistics.mean(values):.1f}"
    return f"{mean} ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else mean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("config")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--losses", nargs="+", default=["ap", "alrp", "rank_sort", "focal", "ce_ohem"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("runs/accuracy"))
    parser.add_argument("--side-by-side", type=int, default=1, metavar="N", help="N runs of one thread each")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the report there as well")
    args = parser.parse_args()
    output = args.output.resolve() / Path(args.config).stem
    output.mkdir(parents=True, exist_ok=True)
    threads = ONE_THREAD if args.side_by_side > 1 else {}
    try:
        for loss in args.losses:  # check all before training for hours
            load_config(Path(args.config), [*args.settings, f"loss.name={loss}"])
    except InputError as error:
        raise SystemExit(f"error: {error}") from None
    of_a_run = f"{'one thread' if threads else 'the usual threads'} a run"
    settings, written = _settings(args.config, args.settings, of_a_run), output / "settings.txt"
    if written.is_file() and written.read_text() != settings:
        raise SystemExit(
            f"{output} holds runs of other settings or of other code (see {written}); give another --output"
        )
    written.write_text(settings)
    runs = {(loss, seed): output / f"{loss}-{seed}" for seed in args.seeds for loss in args.losses}
    with ThreadPoolExecutor(args.side_by_side) as pool:
        jobs = [
            pool.submit(
                train,
                [args.config, *args.settings, f"loss.name={loss}", f"train.seed={seed}"],
                run,
                threads,
            )
            for (loss, seed), run in runs.items()
        ]
        try:
            for job in jobs:
                job.result()
        except (
            BaseException
        ):  # a failure or Ctrl-C: cancel waiting jobs, which would delay the report by hours
            pool.shutdown(cancel_futures=True)
            raise
    results = {
        loss: [json.loads((runs[loss, seed] / "final.json").read_text()) for seed in args.seeds]
        for loss in args.losses
    }
    note = f"""Points (100 is perfect) after the last epoch, mean ± standard deviation,
seeds {args.seeds}; {of_a_run}.
The last two columns are the detection calibration error, before calibration and held out after it."""
    report([section(Path(args.config).stem, *rows(results), note)], args.report)


if __name__ == "__main__":
    main()
