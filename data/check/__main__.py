"""Look for faults in a data set: python -m data.check CONFIG [KEY=VALUE ...]."""

import sys
from pathlib import Path

from doors import OptionParser, config_and_overrides, run_door

_FOUND = 1
# The beginnings of files written by --json and --html, which may be overwritten.
_EARLIER = {"--json": r'\{\s*"configuration"', "--html": r"[^\n]*\n[^\n]*aploss-detector data check"}


def main() -> None:
    parser = OptionParser(
        prog="python -m data.check",
        description="Find everything that is wrong with the data of a configuration, and check how well "
        "its anchors fit.",
        epilog="Exit codes: 0 if nothing hurts training, 1 if something does, 2 for bad input. Example: "
        "python -m data.check configs/own.yaml data.root=my_set --html check.html",
    )
    parser.add_argument(
        "words",
        nargs="+",
        metavar="CONFIG|KEY=VALUE",
        help="a YAML configuration file, and settings as dotted keys",
    )
    parser.add_argument(
        "--json", metavar="FILE", type=Path, help="write all findings with all their places as JSON"
    )
    parser.add_argument(
        "--html", metavar="FILE", type=Path, help="write an HTML page with charts and samples"
    )
    parser.add_argument(
        "--fast", action="store_true", help="check the annotations only, without decoding images"
    )
    a = parser.parse_intermixed_args()
    config, overrides = config_and_overrides(a.words)
    if config is None:
        parser.error("CONFIG is missing: give the YAML file that train.py is given")
    check(config, overrides, a.json, a.html, a.fast)


def check(config_name: str, overrides: list[str], json: Path | None, html: Path | None, fast: bool) -> None:
    """Examine the configuration named on the command line, print the report, write the files."""
    from data.check.report import as_json
    from data.check.text import lines
    from detector.config.file import load_config
    from detector.output import check_output, write_text
    from detector.training.data_check import examine
    from errors import InputError

    for option, path in (("--json", json), ("--html", html)):
        if path is not None:
            check_output(option, path, _EARLIER[option])
    if json is not None and html is not None and json.resolve() == html.resolve():
        raise InputError(f"--json and --html are both {json}; name two different files")
    config = load_config(Path(config_name), overrides)
    done = examine(config, " ".join([config_name, *overrides]), decode=not fast)
    if json is not None:
        write_text(json, as_json(done.report))
    if html is not None:
        from data.check.page import page
        from data.check.pictures import place_pictures, sample_pictures
        from detector.builders.data import build_pipeline

        samples = []
        if "train" in done.sets:
            pipeline = build_pipeline(config.data, training=True)
            samples = sample_pictures(done.sets["train"], pipeline, config.train.seed)
        places = place_pictures(done.report.findings, done.sets)
        write_text(html, page(done.report, samples, places))
    print("\n".join(lines(done.report)))
    if done.report.hurts:
        sys.exit(_FOUND)


if __name__ == "__main__":
    run_door(main)
