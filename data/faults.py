"""Faults at one place of a data set: raised at once, or collected to be listed together."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TypeGuard

from errors import InputError

log = logging.getLogger(__name__)


class DataFault(InputError):
    """A fault of one image or annotation, with its place.

    Args:
        code: kind of fault, a key of the catalogue in data/check/findings.py.
        message: what is wrong, where, and what to do about it, in one line.
        image: file of the image concerned.
        image_id: id of that image, as in the annotations.
        annotation: number of the annotation, see `DetectionSet.annotation_ids`.
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
    """Collects only the faults that would otherwise be raised; warnings remain warnings."""


class UnreadableImages(Raised):
    """Collects the images that are missing or cannot be read; all other faults are raised."""

    CODES = ("image-missing", "image-unreadable")


def lists_all(faults: list[DataFault] | None) -> TypeGuard[list[DataFault]]:
    """Whether faults of every kind are collected, to be listed in full."""
    return faults is not None and not isinstance(faults, Raised)


def list_or_warn(found: Sequence[DataFault], faults: list[DataFault] | None, warning: str) -> None:
    """Report faults, if any: each one if faults of every kind are collected, else all in a single warning."""
    if lists_all(faults):
        faults += found
    elif found:
        log.warning(warning)


def raise_or_collect(fault: DataFault, faults: list[DataFault] | None) -> None:
    """Raise the fault, or append it if its kind is collected; the reader then skips what is faulty.

    Raises:
        DataFault: `faults` is None, or is `UnreadableImages` and the fault is of another kind.
    """
    if faults is None or (isinstance(faults, UnreadableImages) and fault.code not in faults.CODES):
        raise fault
    faults.append(fault)
