"""Put images aside for validation: python -m data.split INSTANCES.json | VOC_FOLDER | YOLO_FOLDER."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from doors import OptionParser, number_of, run_door

if TYPE_CHECKING:
    from data.split.whole import WholeSet

log = logging.getLogger(__name__)


def main() -> None:
    parser = OptionParser(
        prog="python -m data.split",
        description="Divide a data set into training and validation, and a test set if wanted. Each gets "
        "its share of every class; images that look nearly alike stay on one side. Writes lists and "
        "annotation files, moves and changes nothing.",
        epilog="Example: python -m data.split my_set/annotations/all.json --val 0.2",
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        type=Path,
        help="a COCO instances file, a folder of the VOC layout, or one with a YOLO data.yaml (its train)",
    )
    parser.add_argument("--val", default="0.2", metavar="SHARE", help="of the images (default: 0.2)")
    parser.add_argument("--test", default="0", metavar="SHARE", help="of the images (default: no test set)")
    parser.add_argument("--seed", default="0", help="another one gives another split (default: 0)")
    parser.add_argument(
        "--images", metavar="DIR", type=Path, help="COCO: where the images are (default: looked for)"
    )
    parser.add_argument(
        "--keep-folders", action="store_true", help="keep the images of a folder together, as of one video"
    )
    parser.add_argument(
        "--fast", action="store_true", help="decode no image, and look for none that are alike"
    )
    a = parser.parse_args()
    split(a.source, a.val, a.test, a.seed, a.images, a.keep_folders, a.fast)


def split(
    path: Path, val: str, test: str, seed: str, images: Path | None, keep_folders: bool, fast: bool
) -> None:
    """Read what the command line names, divide it, write the parts, say what they hold."""
    from data.split.division import divide
    from data.split.whole import open_whole

    shares, number = _shares(val, test), _whole("--seed", seed)
    whole = open_whole(path, images)
    outputs = {name: whole.file_of(name) for name in shares}
    for file in outputs.values():
        _check_output(file, whole)
    division = divide(whole.records, shares, number, keep_folders, fast)
    _write_all({file: whole.text_of(division.rows(name)) for name, file in outputs.items()})
    for line in division.short():
        log.warning(line)
    print("\n".join(division.lines()))
    print(f"written: {', '.join(map(str, outputs.values()))}\n{whole.next_step(list(shares))}")


def _shares(val: str, test: str) -> dict[str, float]:
    """The part of the images that goes to each split."""
    from errors import InputError

    shares = {"train": 1.0}
    for name, text in (("val", val), ("test", test)):
        share = number_of(f"--{name}", text)
        if not 0 <= share < 1 or (name == "val" and share == 0):
            raise InputError(f"--{name}: a share of the images below 1 is wanted, such as 0.2, not {text}")
        if share:
            shares[name] = share
            shares["train"] -= share
    if shares["train"] <= 0:
        raise InputError(f"--val {val} --test {test} leave nothing to train on")
    return shares


def _whole(option: str, text: str) -> int:
    from errors import InputError

    if not text.isdecimal():
        raise InputError(f"{option}: a whole number is wanted, not {text}")
    return int(text)


def _check_output(file: Path, whole: "WholeSet") -> None:
    """Raises InputError: a part cannot be written there, or something is there."""
    from detector.output import check_output
    from errors import InputError

    if file in whole.sources:
        raise InputError(f"{file} is itself what is to be divided; {whole.rename}")
    if file.exists():
        raise InputError(f"{file} is there already, and is left as it is; move it away to divide anew")
    place = next(parent for parent in file.absolute().parents if parent.is_dir())
    check_output("the parts", place / file.name)


def _write_all(texts: dict[Path, str]) -> None:
    """All files, or none of them."""
    from detector.output import write_text

    done: list[Path] = []
    try:
        for file, text in texts.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            write_text(file, text)
            done.append(file)
    except BaseException:
        for file in done:
            file.unlink(missing_ok=True)
        raise


if __name__ == "__main__":
    run_door(main)
