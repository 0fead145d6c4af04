"""Write a split as a COCO instances file: python -m data.convert CONFIG|RUN [KEY=VALUE ...]."""

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from doors import OptionParser, config_and_overrides, run_door

if TYPE_CHECKING:
    from data.sample import DetectionSet
    from detector.config import Config


def main() -> None:
    parser = OptionParser(
        prog="python -m data.convert",
        description="Write a split of a data set of any format as a COCO instances file, with the boxes, "
        "classes and ids that training uses. With a run or checkpoint in place of CONFIG, it is the ground "
        "truth that matches evaluate.py --results.",
        epilog="Example: python -m data.convert configs/own.yaml data.format=voc data.root=my_set "
        "--split val --output val.json",
    )
    parser.add_argument(
        "words",
        nargs="+",
        metavar="CONFIG|RUN_DIR_OR_CHECKPOINT|KEY=VALUE",
        help="a configuration that describes the data set, a run or a checkpoint; and settings as dotted "
        "keys",
    )
    parser.add_argument("--split", choices=("train", "val", "test"), required=True, help="the split to write")
    parser.add_argument("--output", metavar="FILE", type=Path, required=True, help="the file to write")
    a = parser.parse_intermixed_args()
    source, overrides = config_and_overrides(a.words)
    if source is None:
        parser.error("CONFIG is missing: give the YAML file that train.py is given, or a run folder")
    convert(Path(source), overrides, a.split, a.output)


def convert(source: Path, overrides: list[str], split: str, output: Path) -> None:
    """Read the split named on the command line and write it; print what it holds and how to train on it."""
    from detector.evaluation.coco_instances import BEGINNING, instances_pieces
    from detector.output import check_output, write_pieces

    check_output("--output", output, BEGINNING)
    config, records = _read(source, overrides, split)
    root = _folder_of_all(Path(config.data.root), records.files.tolist())
    write_pieces(output, instances_pieces(records, root))
    crowds = int(records.ignore.sum())
    regions = f" ({crowds} of them crowd or difficult)" if crowds else ""
    print(f"{output}: {len(records)} images, {len(records.boxes)} boxes{regions}")
    keys = {"format": "coco", "root": root, "images": ".", "annotations": os.path.relpath(output, root)}
    print("read by " + " ".join(shlex.quote(f"data.{key}={value}") for key, value in keys.items()))


def _read(source: Path, overrides: list[str], split: str) -> tuple["Config", "DetectionSet"]:
    """Read the split, with the classes of the run, or those that a training would have."""
    from detector.builders.data import build_set
    from detector.config.file import load_config
    from detector.evaluation.checkpoint import read_checkpoint

    if source.is_dir() or source.suffix == ".pt":
        of_run = read_checkpoint(source, overrides)
        return of_run.config, build_set(of_run.config.data, split, tuple(of_run.content["classes"]))
    config = load_config(source, overrides)
    # Other splits may list other classes, or in another order.
    train = build_set(config.data, "train")
    return config, train if split == "train" else build_set(config.data, split, train.classes)


def _folder_of_all(root: Path, files: list[str]) -> Path:
    """data.root, or its nearest ancestor that contains all images: those of a YOLO set may be elsewhere.

    Raises:
        InputError: there is none, because the images are on several drives.
    """
    from errors import InputError

    root = root.parent if root.is_file() else root  # data.yaml of a YOLO set
    try:
        # Not resolved: symbolic links may lead anywhere the user wants.
        common = os.path.commonpath(map(os.path.abspath, [str(root), *files]))
    except ValueError:
        raise InputError(f"--output: {root} and the images are on different drives") from None
    if root.is_absolute():
        return Path(common)
    return Path(os.path.relpath(common))


if __name__ == "__main__":
    run_door(main)
