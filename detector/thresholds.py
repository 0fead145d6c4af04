"""Score thresholds on a command line: 0.5, or car=0.3,cup=0.6."""

import re
from collections.abc import Callable, Mapping

from errors import InputError, number_of

_NUMBER = re.compile(r"[-+]?[\d.]+([eE][-+]?\d+)?")


def parse_thresholds(text: str) -> dict[str, float]:
    """Parse --threshold: the minimum scores by class name, with "" for all other classes.

    Raises:
        InputError: a threshold is not a number in [0, 1], or is given twice.
    """
    found: dict[str, float] = {}
    for part in parts_of(text, _is_whole):
        name, _, number = part.rpartition("=")
        if name.strip() in found:
            twice = name.strip() or "the threshold of all classes"
            raise InputError(f"--threshold: {twice} is given twice{_with_a_point(text)}")
        found[name.strip()] = value = number_of("--threshold", number)
        if not 0 <= value <= 1:
            raise InputError(f"--threshold must be a score from 0 to 1, got {part}{_with_a_point(text)}")
    return found


def _is_whole(part: str) -> bool:
    """Whether a part is a complete threshold, or empty."""
    return "=" in part or not part.strip() or bool(_NUMBER.fullmatch(part.strip()))


def parts_of(text: str, is_whole: Callable[[str], bool]) -> list[str]:
    """Split at commas, except those within a class name. The last part may be incomplete."""
    parts, held = [], ""
    for piece in text.split(","):
        held = f"{held},{piece}" if held else piece
        if is_whole(held):
            parts.append(held)
            held = ""
    return [*parts, held] if held else parts


def chosen_thresholds(least: Mapping[str, float], usual: Mapping[str, float]) -> dict[str, float]:
    """The threshold of each class: the one given for it, or the one given for all, or the usual one.

    Args:
        least: from `parse_thresholds`.
        usual: default thresholds by class name, in the order of the classes.

    Raises:
        InputError: a class does not exist.
    """
    unknown = [name for name in least if name not in ("", *usual)]
    if unknown:
        raise InputError(f"--threshold: there is no class '{unknown[0]}'; the classes are {', '.join(usual)}")
    return {name: least.get(name, least.get("", value)) for name, value in usual.items()}


def _with_a_point(text: str) -> str:
    """A hint for numbers written with a decimal comma, such as 0,5; else ""."""
    number = re.search(r"(?<![\d.])[01],\d+(?=,|$)", text)
    return f"; write decimals with a point: {number[0].replace(',', '.')}" if number else ""
