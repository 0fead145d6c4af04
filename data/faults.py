"""What a reader finds wrong at one place of a data set: raised at once, or collected to be listed whole."""

from pathlib import Path

from errors import InputError


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


def raise_or_collect(fault: DataFault, faults: list[DataFault] | None) -> None:
    """Raise the fault; where faults are collected, note it, and the reader goes on without what it concerns.

    Raises:
        DataFault: `faults` is None.
    """
    if faults is None:
        raise fault
    faults.append(fault)
