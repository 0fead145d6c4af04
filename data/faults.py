"""What a reader finds wrong at one place of a data set: raised at once, or collected to be listed whole."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TypeGuard

from errors import InputError

log = logging.getLogger(__name__)


class DataFault(InputError):
    """A fault of one image or annotation, with its place.

    Args:
        code: its kind, a key of the catalogue in data/check/findings.py.
        message: what, where, and what to do, in one line.
        image: the image file that it concerns.
        image_id: of that image, as in the annotations.
        annotation: the number of the annotation, as in `DetectionSet.annotation_ids`.
    """

    def __init__(
        self,
        code: str,
        message: str,
        image: Path | None = None,
        image_id: int | None = None,
        annotation: int | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.image = image
        self.image_id = image_id
        self.annotation = annotation


class Raised(list[DataFault]):
    """Collects what would be raised: what is a warning elsewhere is one here."""


class UnreadableImages(Raised):
    """Collects the images that are missing or cannot be read; every other fault is raised."""

    CODES = ("image-missing", "image-unreadable")


def lists_all(faults: list[DataFault] | None) -> TypeGuard[list[DataFault]]:
    """Whether faults of every kind are collected, to be listed whole."""
    return faults is not None and not isinstance(faults, Raised)


def list_or_warn(found: Sequence[DataFault], faults: list[DataFault] | None, warning: str) -> None:
    """Note the faults found, if any: each where all are listed, else all of them in one warning."""
    if lists_all(faults):
        faults += found
    elif found:
        log.warning(warning)


def raise_or_collect(fault: DataFault, faults: list[DataFault] | None) -> None:
    """Raise the fault; where its like are collected, note it: the reader goes on without what it concerns.

    Raises:
        DataFault: `faults` is None, or is of `UnreadableImages` and this is none.
    """
    if faults is None or (isinstance(faults, UnreadableImages) and fault.code not in faults.CODES):
        raise fault
    faults.append(fault)
