"""Write a split as a COCO instances file: python -m data.convert CONFIG|RUN [KEY=VALUE ...]."""

import os
import shlex
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from doors import OptionParser, config_and_overrides, run_door

if TYPE_CHECKING:
    from data.sample import DetectionSet
    from detector.config import Config, DataConfig


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
    from errors import InputError

    if "{split}" in str(output):
        raise InputError(
            f"--output: data.annotations would replace '{{split}}' in {output}; write the name of the split"
        )
    check_output("--output", output, BEGINNING)
    config, records = _read(source, overrides, split)
    root, names = _names(Path(config.data.root), records.files.tolist())
    write_pieces(output, instances_pieces(records, names))
    crowds = int(records.ignore.sum())
    regions = f" ({crowds} of them crowd or difficult)" if crowds else ""
    print(f"{output}: {len(records)} images, {len(records.boxes)} boxes{regions}")
    print(f"read by {_overrides(config.data, split, root, output)}")


def _read(source: Path, overrides: list[str], split: str) -> tuple["Config", "DetectionSet"]:
    """Read the split, with the classes of the run, or those that a training would have."""
    from detector.builders.data import build_set
    from detector.config.file import load_config
    from detector.evaluation.checkpoint import read_checkpoint

    if source.is_dir() or source.suffix == ".pt" or zipfile.is_zipfile(source):
        of_run = read_checkpoint(source, overrides)
        return of_run.config, build_set(of_run.config.data, split, tuple(of_run.content["classes"]))
    config = load_config(source, overrides)
    # Other splits may list other classes, or in another order.
    train = build_set(config.data, "train")
    return config, train if split == "train" else build_set(config.data, split, train.classes)


def _names(root: Path, files: list[str]) -> tuple[Path, list[str]]:
    """data.root, or its nearest ancestor that contains all images, and their names relative to that.

    The images of a YOLO set may be outside its folder.

    Raises:
        InputError: there is none, because the images are on several drives.
    """
    from errors import InputError

    root = root.parent if root.is_file() else root  # data.yaml of a YOLO set
    # Symbolic links may lead anywhere the user wants, and stay in the names; but the parent of a link (..) is
    # that of the folder it leads to.
    follow = any(".." in Path(file).parts for file in files)
    absolute: Callable[[str], str] = os.path.realpath if follow else os.path.abspath
    paths = [absolute(file) for file in files]
    try:
        common = os.path.commonpath([absolute(str(root)), *paths])
    except ValueError:
        raise InputError(f"--output: {root} and the images are on different drives") from None
    names = [Path(os.path.relpath(path, common)).as_posix() for path in paths]
    return Path(common if root.is_absolute() else os.path.relpath(common)), names


def _overrides(data: "DataConfig", split: str, root: Path, output: Path) -> str:
    """The overrides with which a training that has read the split reads the file instead."""
    annotations = output.absolute()
    if annotations.is_relative_to(root.absolute()):
        annotations = annotations.relative_to(root.absolute())
    words = ["data.format=coco", f"data.root={root}", "data.images=.", f"data.annotations={annotations}"]
    if data.merge:
        words.append("data.merge={}")
    if isinstance(getattr(data.splits, split), list):  # it would be read once for each
        words.append(f"data.splits.{split}={split}")
    return shlex.join(words)


if __name__ == "__main__":
    run_door(main)
