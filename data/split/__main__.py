"""Set images aside for validation: python -m data.split INSTANCES.json | VOC_FOLDER | YOLO_FOLDER."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from doors import OptionParser, run_door

if TYPE_CHECKING:
    from data.split.whole import WholeSet

log = logging.getLogger(__name__)

_VAL = "0.2"
_MOST_FOLDS = 99


def main() -> None:
    parser = OptionParser(
        prog="python -m data.split",
        description="Divide a data set into a training, a validation and, if wanted, a test set. Each gets "
        "its share of every class; images that look nearly alike stay together. Writes lists or annotation "
        "files; moves and changes nothing.",
        epilog="Example: python -m data.split my_set/annotations/all.json --val 0.2",
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        type=Path,
        help="a COCO instances file, a folder in the VOC layout, or a folder with a YOLO data.yaml (its "
        "train is divided)",
    )
    parser.add_argument(
        "--val", metavar="SHARE", help=f"share of the images for validation (default: {_VAL})"
    )
    parser.add_argument(
        "--folds",
        metavar="K",
        help="for cross-validation instead: make K validation sets, each with the rest to train on",
    )
    parser.add_argument(
        "--test", default="0", metavar="SHARE", help="share of the images for a test set (default: none)"
    )
    parser.add_argument(
        "--seed", default="0", help="random seed; another one gives another split (default: 0)"
    )
    parser.add_argument(
        "--images", metavar="DIR", type=Path, help="COCO: folder of the images (default: searched for)"
    )
    parser.add_argument(
        "--keep-folders",
        action="store_true",
        help="keep the images of a folder together, for example the frames of a video",
    )
    parser.add_argument(
        "--fast", action="store_true", help="do not decode images, and do not look for similar ones"
    )
    a = parser.parse_args()
    split(a.source, a.val, a.folds, a.test, a.seed, a.images, a.keep_folders, a.fast)


def split(
    path: Path,
    val: str | None,
    folds: str | None,
    test: str,
    seed: str,
    images: Path | None,
    keep_folders: bool,
    fast: bool,
) -> None:
    """Read the set named on the command line, divide it, write the parts, print what they contain."""
    from data.split.division import divide
    from data.split.whole import open_whole

    count, number = _folds(folds, val), _whole("--seed", seed)
    shares = _shares(val or _VAL, test) if count is None else _shares_of_folds(count, test)
    whole = open_whole(path, images)
    held = {name: [name] for name in shares}  # for each file, the parts whose images it lists
    for k in range(1, 1 + (count or 0)):
        held[f"train{k}"] = [name for name in shares if name not in (f"val{k}", "test")]
    outputs = {name: whole.file_of(name) for name in held}
    for file in outputs.values():
        _check_output(file, whole)
    division = divide(whole.records, shares, number, keep_folders, fast)
    _write_all({outputs[n]: partial(whole.text_of, division.rows(*parts)) for n, parts in held.items()})
    for line in division.shortcomings():
        log.warning(line)
    print("\n".join(division.lines()))
    print(f"written: {', '.join(map(str, outputs.values()))}\n{whole.next_step(list(held), count)}")


def _folds(folds: str | None, val: str | None) -> int | None:
    from errors import InputError

    if folds is None:
        return None
    if val is not None:
        raise InputError(
            f"--val {val} --folds {folds}: with --folds all validation sets have the same size; leave out "
            "--val"
        )
    count = _whole("--folds", folds)
    if not 2 <= count <= _MOST_FOLDS:
        raise InputError(f"--folds must be from 2 to {_MOST_FOLDS}, got {folds}; five or ten are usual")
    return count


def _shares_of_folds(count: int, test: str) -> dict[str, float]:
    """The fraction of images in each fold (and the test set); the folds are the validation sets."""
    of_test = _share("--test", test)
    folds = {f"val{k}": (1 - of_test) / count for k in range(1, 1 + count)}
    return folds | ({"test": of_test} if of_test else {})


def _shares(val: str, test: str) -> dict[str, float]:
    """The fraction of images in each split."""
    from errors import InputError

    of_val, of_test = _share("--val", val), _share("--test", test)
    if of_val == 0:
        raise InputError(f"--val must be a share of the images above 0, such as 0.2, got {val}")
    if of_val + of_test >= 1:
        raise InputError(f"--val {val} --test {test} leave nothing to train on")
    return {"train": 1 - of_val - of_test, "val": of_val} | ({"test": of_test} if of_test else {})


def _share(option: str, text: str) -> float:
    from errors import InputError, number_of

    share = number_of(option, text)
    if not 0 <= share < 1:
        raise InputError(f"{option} must be a share of the images from 0 to below 1, such as 0.2, got {text}")
    return share


def _whole(option: str, text: str) -> int:
    from errors import InputError

    if not text.isdecimal():
        raise InputError(f"{option} must be a whole number, got {text}")
    return int(text)


def _check_output(file: Path, whole: "WholeSet") -> None:
    """Raises InputError if a part cannot be written there, or the file exists."""
    from detector.output import check_output
    from errors import InputError

    if file in whole.sources:
        raise InputError(f"{file} would be overwritten, but is the file to be divided; {whole.rename}")
    if file.exists():
        raise InputError(f"{file} already exists and is left as it is; move it away to divide the set again")
    place = next(parent for parent in file.absolute().parents if parent.is_dir())
    check_output("the parts", place / file.name)


def _write_all(texts: dict[Path, Callable[[], str]]) -> None:
    """Write all files or none; each text is generated just before writing, as all together may be large."""
    from detector.output import write_text

    done: list[Path] = []
    try:
        for file, text in texts.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            write_text(file, text())
            done.append(file)
    except BaseException:
        for file in done:
            file.unlink(missing_ok=True)
        raise


if __name__ == "__main__":
    run_door(main)
