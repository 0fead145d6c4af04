"""Checkpoints: written atomically, holding only tensors and plain values, read without running code.

The newest two are kept. A checkpoint is a zip file with a CRC-32 for every record, which torch ignores
when reading; here it is checked, so that a flipped bit is detected and not trained with.
"""

import contextlib
import errno
import io
import logging
import os
import pickle
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from detector.output import TEMPORARY, discard, name_that_fits, sync
from errors import InputError, first_line, some_of

if TYPE_CHECKING:
    from typing_extensions import Buffer

log = logging.getLogger(__name__)

FORMAT = 1
LAST, PREVIOUS, BEST, DAMAGED = "last.pt", "previous.pt", "best.pt", "damaged.pt"
_NEEDED = {
    "model": dict,
    "config": dict,
    "classes": list | tuple,
    "category_ids": list | tuple,
    "step": int,
    "epoch": int,
}
_MAP = {"logits", "probabilities"}  # keys of a calibration map
_EXPORTED = (".onnx", ".torchscript")
_OTHERS = (".json", ".yaml", ".yml", ".xml", ".txt", ".csv", ".zip", ".jpg", ".jpeg", ".png")
# How torch's restricted unpickler reports a file that would call something.
_CODE = re.compile(r"GLOBAL|Unsupported class|unrecognized function|Can only (create|build)", re.IGNORECASE)


def save_checkpoint(
    path: Path, content: dict[str, Any], previous: Path | None = None, then: str = "continue with --resume"
) -> None:
    """Write a checkpoint so that `path` always holds a complete one: temporary file, then rename.

    Args:
        previous: where to keep the file that was at `path` before.
        then: what the user should do after a failure, once there is space; for the message.

    Raises:
        InputError: no permission or no space; the old file at `path` is still there.
    """
    temporary = path.with_name(name_that_fits(f".{path.name}", TEMPORARY))
    try:
        with _Told(io.FileIO(temporary, "w")) as file, _telling(file):
            torch.save({"format": FORMAT, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            _keep(path, previous)
        temporary.replace(path)
    except OSError as error:
        there = path.exists() or (previous is not None and previous.exists())
        kept = "the previous checkpoint is kept: " if there else ""
        reason = error.strerror or first_line(error)
        if not path.parent.is_dir():
            raise InputError(f"cannot write {path}: its folder is gone; restore it, then {then}") from None
        if previous is not None and not there:
            then += ", which starts over, as there is no checkpoint yet"
        raise InputError(f"cannot write {path} ({reason}); {kept}free some space, then {then}") from None
    finally:
        discard(temporary)
    with contextlib.suppress(OSError):  # not every system can sync a folder
        sync(path.parent)


class _Told(io.BufferedWriter):
    """A file that remembers why a write failed: torch turns every error into RuntimeError, even Ctrl-C."""

    error: BaseException | None = None

    def write(self, content: "Buffer") -> int:
        try:
            return super().write(content)
        except BaseException as error:
            self.error = error
            raise


@contextlib.contextmanager
def _telling(file: _Told) -> Iterator[None]:
    try:
        yield
    except RuntimeError:
        if file.error is not None:
            raise file.error from None
        raise


def _keep(path: Path, previous: Path) -> None:
    """Make `previous` the file that is at `path`, while it stays at `path` too.

    Renaming it instead would leave no `path` for as long as the system takes to free the old `previous`.
    """
    link = previous.with_suffix(".link")
    link.unlink(missing_ok=True)
    try:
        link.hardlink_to(path)
    except OSError:  # not every file system has hard links; a run killed here resumes from `previous`
        path.replace(previous)
        return
    link.replace(previous)
    link.unlink(missing_ok=True)  # renaming does nothing if both already are the same file


def load_newest(run: Path, *, say: bool = True) -> dict[str, Any]:
    """The newest undamaged checkpoint of a run folder.

    Args:
        say: log a warning if that is not last.pt.

    Raises:
        InputError: there is no checkpoint, or none is undamaged.
    """
    folder = run / "checkpoints"
    found = [path for path in (folder / LAST, folder / PREVIOUS) if path.is_file()]
    if not found:
        raise InputError(f"--resume: {run} has no checkpoints/{LAST} to continue from")
    for path, other in zip(found, [*found[1:], None], strict=True):
        try:
            content = load_checkpoint(path)
        except DamagedCheckpoint as error:
            if other is None:
                raise InputError(
                    f"{error.path} is damaged or incomplete, and there is no older checkpoint to continue "
                    f"from; start a new run (with the best weights: model.init={folder / BEST})"
                ) from None
            if say:
                log.warning(
                    f"{path} is damaged or incomplete; the run continues from {other.name}, the checkpoint "
                    "before it"
                )
            continue
        if say and path.name != LAST:
            log.warning(f"using {path}, the newest complete checkpoint, of step {content['step']}")
        return content
    raise AssertionError("unreachable")


def checkpoint_mark(run: Path) -> tuple[int, int] | None:
    """Identifies the current last.pt of a run, to notice its replacement; None if there is none."""
    try:
        status = (run / "checkpoints" / LAST).stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns


def set_aside_damaged(run: Path) -> None:
    """Rename a damaged last.pt, or the next save would replace the undamaged previous.pt by it."""
    path = run / "checkpoints" / LAST
    try:
        if path.is_file():
            load_tensors(path)
    except DamagedCheckpoint:
        path.replace(path.with_name(DAMAGED))
        log.warning(f"{path} has been renamed to {DAMAGED}")


class DamagedCheckpoint(InputError):
    """A file that cannot be read as a checkpoint: damaged, incomplete or of another kind."""

    def __init__(self, path: Path) -> None:
        if path.suffix in _EXPORTED:
            text = (
                f"{path} is an exported model (docs/export.md explains how to use it); give the run folder "
                "instead"
            )
        elif path.suffix.lower() in _OTHERS:
            text = (
                f"{path} is not a checkpoint; give a run folder, or a file such as {BEST} in its "
                "checkpoints folder"
            )
        else:
            others = f"{LAST}, {PREVIOUS} and {BEST} are in the same folder"
            text = f"{path} is damaged or incomplete, or not a checkpoint; use another one ({others})"
        super().__init__(text)
        self.path = path


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of this project to the CPU. Pickled code in it is refused, not run.

    Raises:
        InputError: the file is missing, damaged, or not a checkpoint of this project.
    """
    content = load_tensors(path)
    if not isinstance(content, dict) or not all(
        isinstance(content.get(key), kind) for key, kind in _NEEDED.items()
    ):
        plain = isinstance(content, dict) and all(isinstance(value, Tensor) for value in content.values())
        remedy = "give a run folder or its best.pt"
        if plain:
            remedy = f"to start from a plain state dict, use train.py with model.init={path}"
        raise InputError(f"{path} is not a checkpoint of this project; {remedy}")
    if content.get("format", FORMAT) != FORMAT:
        raise InputError(
            f"{path} has format {content['format']!r}, but this version reads {FORMAT}; use the version "
            "that wrote it"
        )
    if (problem := _what_is_wrong(content)) is not None:
        raise InputError(f"{path} is a checkpoint that has been altered ({problem}); use another one")
    return content


def _what_is_wrong(content: dict[str, Any]) -> str | None:
    """The first problem in values that a user may have edited; others surface where they are used."""
    classes = content["classes"]
    if not all(isinstance(name, str) for name in classes) or len(set(classes)) != len(classes):
        return "its classes are not distinct names"
    ids, metrics, fitted = content["category_ids"], content.get("metrics"), content.get("calibration")
    if len(ids) != len(classes):
        return f"{len(classes)} classes but {len(ids)} category_ids"
    if not all(type(one) is int for one in ids) or len(set(ids)) != len(ids):
        return "its category_ids are not distinct whole numbers"
    if not all(isinstance(value, Tensor) for value in content["model"].values()):
        return "its model contains more than tensors"
    if not isinstance(metrics, dict | None):
        return f"its metrics are a {type(metrics).__name__}"
    per_class = (metrics or {}).get("per_class", {})
    if not isinstance(per_class, dict) or not all(isinstance(one, dict) for one in per_class.values()):
        return "its metrics have no per_class"
    if not isinstance(content.get("evaluated"), int | None):
        return "evaluated is not a step"
    maps = [fitted] if isinstance(fitted, dict) else fitted or []
    if not isinstance(maps, list) or not all(isinstance(one, dict) and _MAP <= one.keys() for one in maps):
        return "its calibration is malformed"
    return None


def load_tensors(path: Path) -> Any:
    """The content that torch.save wrote to a file, if it is only tensors and plain values.

    Raises:
        DamagedCheckpoint: the file is truncated or altered.
        InputError: the file is missing or unreadable, or holds anything else.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if archive.testzip() is not None:
                    raise DamagedCheckpoint(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"checkpoint {path} does not exist") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder, not a checkpoint") from None
    except pickle.UnpicklingError as error:
        if _CODE.search(str(error)):
            raise InputError(
                f"{path} contains Python objects besides tensors, which could run code; it is not loaded"
            ) from None
        raise DamagedCheckpoint(path) from None
    except DamagedCheckpoint:
        raise
    except (PermissionError, MemoryError) as error:
        raise InputError(
            f"{path} cannot be read ({getattr(error, 'strerror', 'too little memory')})"
        ) from None
    except Exception as error:  # the unpickler can raise almost anything on bytes that are no pickle
        # An error of the disk, not of the file's content: a network drive that is gone, too many open files.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise InputError(f"{path} cannot be read ({error.strerror})") from None
        raise DamagedCheckpoint(path) from None


def find_checkpoint(path: Path, key: str = "") -> Path:
    """The best checkpoint of a run folder, or the path itself if it is a file.

    Args:
        key: prefix of error messages: the setting or option that named the path.

    Raises:
        InputError: the path does not exist, or the folder holds no best.pt.
    """
    if not path.is_dir():
        if not path.exists():
            fetch = f" (download {url})" if (url := _torchvisions(path.name)) else ""
            raise InputError(f"{key}{path} does not exist; give a run folder or a checkpoint file{fetch}")
        return path
    found = path / "checkpoints" / BEST
    if not found.is_file() and (path / "checkpoints" / LAST).is_file():
        raise InputError(
            f"{key}{path} has not been evaluated yet and so has no checkpoints/{BEST}; give "
            f"{path / 'checkpoints' / LAST}, or continue the run with train.py --resume {path}"
        )
    if not found.is_file():
        runs = sorted(str(one.parents[1]) for one in path.glob(f"*/checkpoints/{BEST}"))
        there = f"; there are {some_of(runs, 5)}" if runs else ""
        raise InputError(
            f"{key}{path} has no checkpoints/{BEST}; give a run folder or a checkpoint file{there}"
        )
    return found


def _torchvisions(name: str) -> str | None:
    """The URL of the torchvision weights with this file name, if they are of its RetinaNet."""
    from torchvision.models import detection

    kinds = detection.RetinaNet_ResNet50_FPN_Weights, detection.RetinaNet_ResNet50_FPN_V2_Weights
    urls = [str(kind.DEFAULT.url) for kind in kinds]
    return next((url for url in urls if url.endswith(f"/{name}")), None)


def load_weights(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load a state dict that must fit exactly.

    Raises:
        InputError: names or shapes differ; the first difference is named.
    """
    own = model.state_dict()
    for name, tensor in own.items():
        if name not in state:
            raise InputError(f"{source} has no '{name}'; it has another architecture")
        if state[name].shape != tensor.shape:
            raise InputError(
                f"{source}: '{name}' has shape {tuple(state[name].shape)}, but this model needs "
                f"{tuple(tensor.shape)}; it has another architecture or number of classes"
            )
    extra = [name for name in state if name not in own]
    if extra:
        raise InputError(
            f"{source} has '{extra[0]}', which this model does not have; it has another architecture"
        )
    model.load_state_dict(state)
