"""Maps the transforms listed in a configuration to albumentations' classes or our own."""

import difflib
import inspect
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import albumentations as A
from pydantic import ValidationError

from data.mosaic import Mosaic
from data.own_transforms import IoUCrop, ResizeWithin, ZoomOut
from errors import InputError

_OWN = {"ResizeWithin": ResizeWithin, "ZoomOut": ZoomOut, "IoUCrop": IoUCrop}
# The model does these itself. A later resize returns uint8 again, so their effect would be lost unnoticed.
_OF_THE_MODEL = ("Normalize", "ToFloat", "ToTensorV2", "ToTensor3D")

# The parameters of resizing transforms, in pixels.
_SIDES = {
    "ResizeWithin": ("long", "short"),
    "Resize": ("height", "width"),
    "LongestMaxSize": ("max_size",),
    "SmallestMaxSize": ("max_size",),
}


def resized_to(size: int, transforms: Sequence[Any], evaluation: Sequence[Any]) -> list[Any]:
    """Rescale the parameters of all resizing transforms so that evaluation resizes images to `size` px.

    Args:
        size: the long side in evaluation, or its maximum.
        transforms: list to change, as for `Pipeline`.
        evaluation: list of evaluation, as for `Pipeline`; its ResizeWithin is the reference.

    Raises:
        InputError: `evaluation` has no ResizeWithin, or `transforms` no resizing transform.
    """
    longs = [
        transform["ResizeWithin"].get("long")
        for transform in evaluation
        if isinstance(transform, dict) and isinstance(transform.get("ResizeWithin"), dict)
    ]
    long = longs[-1] if longs else None
    long = long[-1] if isinstance(long, list) and long else long
    if not isinstance(long, int) or long < 1:
        raise InputError(
            "data.image_size scales the ResizeWithin of data.transforms, and data.transforms.eval has "
            "none; set data.image_size=null if the lists already give the sizes"
        )
    found: list[Any] = []
    for transform in transforms:
        _with_sides(transform, found.append)
    if not found:
        raise InputError(
            f"data.image_size scales {', '.join(_SIDES)}, and data.transforms.train has none of them; set "
            "data.image_size=null if the lists already give the sizes"
        )

    def to_size(value: Any) -> Any:
        if isinstance(value, list):
            return [to_size(each) for each in value]
        return max(1, round(value * size / long)) if isinstance(value, int) else value

    return [_with_sides(transform, to_size) for transform in transforms]


def _with_sides(transform: Any, change: Callable[[Any], Any]) -> Any:
    """A copy of a transform, and of those it contains (OneOf etc.), with `change` applied to its sizes."""
    if not isinstance(transform, dict):
        return transform
    made = {}
    for name, parameters in transform.items():
        made[name] = dict(parameters) if isinstance(parameters, dict) else parameters
        if isinstance(parameters, dict):
            sides = [side for side in _SIDES.get(name, ()) if side in parameters]
            made[name] |= {side: change(parameters[side]) for side in sides}
            if isinstance(parameters.get("transforms"), list):
                made[name]["transforms"] = [_with_sides(each, change) for each in parameters["transforms"]]
    return made


def make_transforms(transforms: Any, where: str, after: int = 0) -> list[Any]:
    """The transforms that a list names, without the first `after`."""
    if not isinstance(transforms, list | tuple):
        raise InputError(f"{where}: must be a list of transforms, got {transforms!r}")
    return [_make(transform, f"{where}[{i}]") for i, transform in enumerate(transforms) if i >= after]


def mosaic_of(transforms: Any, where: str) -> Mosaic | None:
    """The Mosaic, if the list begins with one; else None."""
    if not isinstance(transforms, list | tuple) or not transforms:
        return None
    name, parameters = _parts_of(transforms[0], f"{where}[0]")
    if name != "Mosaic":
        return None
    try:
        return _strict(Mosaic, parameters)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}[0]: Mosaic: {error}") from None


def _parts_of(transform: Any, where: str) -> tuple[str, dict[str, Any]]:
    """Name and parameters of a list entry."""
    if isinstance(transform, str):
        transform = {transform: {}}
    if not isinstance(transform, dict) or len(transform) != 1:
        got = sorted(map(str, transform)) if isinstance(transform, dict) else repr(transform)
        raise InputError(f"{where}: must be a single transform, got {got}")
    ((name, parameters),) = transform.items()
    if not isinstance(parameters, dict | None):
        raise InputError(f"{where}: {name}: parameters must be written {{NAME: VALUE}}, got {parameters!r}")
    return name, dict(parameters or {})


def _make(transform: Any, where: str) -> Any:
    name, parameters = _parts_of(transform, where)
    if name == "Mosaic":
        raise InputError(f"{where}: Mosaic must be the first transform, since it takes images as they are")
    kinds = _kinds()
    if name not in kinds:
        nearest = difflib.get_close_matches(str(name), kinds, n=1)
        hint = f"; did you mean '{nearest[0]}'?" if nearest else ""
        raise InputError(f"{where}: albumentations has no transform '{name}'{hint}")
    if name in _OF_THE_MODEL:
        raise InputError(
            f"{where}: leave out {name}: the model takes uint8 images and normalises them itself"
        )
    if issubclass(kinds[name], A.BaseCompose) and "transforms" in parameters:
        parameters["transforms"] = make_transforms(parameters["transforms"], f"{where}.{name}.transforms")
    try:
        # albumentations only warns of unknown parameters: a misspelt one would be lost.
        made = _strict(kinds[name], parameters)
    except Exception as error:  # third-party transforms may raise anything on a wrong parameter
        raise InputError(f"{where}: {name}: {_reason(error)}") from None
    wanted = set(getattr(made, "targets_as_params", ())) - {"image", "bboxes"}
    if wanted:
        raise InputError(
            f"{where}: {name} needs {', '.join(sorted(wanted))} besides the image and its boxes; leave it out"
        )
    return made


def _reason(error: Exception) -> str:
    if isinstance(error.__cause__, ValidationError):  # albumentations passes it on with a link and more
        return "; ".join(map(_said_of, error.__cause__.errors(include_url=False)))
    reason = " ".join(str(error).split())
    return reason if isinstance(error, TypeError | ValueError) else f"{type(error).__name__}: {reason}"


def _said_of(fault: Any) -> str:
    """Pydantic's message about one parameter, or about several together."""
    message = fault["msg"].removeprefix("Value error, ")
    if not fault["loc"]:
        return message
    got = "" if fault["type"] == "missing" else f", got {fault['input']!r}"
    return f"{'.'.join(map(str, fault['loc']))}: {message}{got}"


@cache
def _kinds() -> dict[str, type]:
    """All classes that may be named: transforms and compositions such as OneOf."""
    bases = A.BasicTransform, A.BaseCompose
    theirs = {name: kind for name, kind in vars(A).items() if isinstance(kind, type)}
    unfit = *bases, A.DualTransform, A.ImageOnlyTransform, A.Compose, A.ReplayCompose
    return {
        name: kind for name, kind in theirs.items() if issubclass(kind, bases) and kind not in unfit
    } | _OWN


def _strict(kind: type, parameters: dict[str, Any]) -> Any:
    accepted = set(inspect.signature(kind).parameters)
    unknown = sorted(set(parameters) - accepted)
    if unknown:
        hint = "; write a space after the colon" if ":" in str(unknown[0]) else ""
        raise ValueError(f"no parameter '{unknown[0]}'; it takes {', '.join(sorted(accepted))}{hint}")
    return kind(**parameters)
