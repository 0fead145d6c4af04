"""Checkpoints: written atomically, holding only tensors and plain values, read without running code."""

import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from errors import InputError

FORMAT = 1
# What torch's restricted unpickler says of a file that would call something.
_CODE = re.compile(r"GLOBAL|Unsupported class|unrecognized function|Can only (create|build)", re.IGNORECASE)


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint so that `path` always holds a whole one: temporary file, then rename.

    Raises:
        InputError: no permission or no space; what was at `path` is still there.
    """
    temporary = path.with_suffix(".tmp")
    try:
        with temporary.open("wb") as file:
            torch.save({"format": FORMAT, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        temporary.unlink(missing_ok=True)
        raise InputError(
            f"cannot write {path} ({str(error).splitlines()[0]}); free some space or choose another "
            f"run.dir, then continue with --resume"
        ) from None


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of this project, on the CPU. Pickled code in it is refused, not run.

    Raises:
        InputError: the file is missing, damaged, or not a checkpoint of this project.
    """
    content = load_tensors(path)
    needed = ("model", "config", "classes", "category_ids", "step", "epoch")
    if not isinstance(content, dict) or any(key not in content for key in needed):
        raise InputError(
            f"{path} is not a checkpoint of this project; a plain state dict can be loaded with "
            f"model.init={path.name} of train.py"
        )
    return content


def load_tensors(path: Path) -> Any:
    """What torch.save wrote into a file, if it is tensors and plain values.

    Raises:
        InputError: the file is missing, damaged, or holds anything else.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"checkpoint {path} does not exist") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder, not a checkpoint") from None
    except pickle.UnpicklingError as error:
        if _CODE.search(str(error)):
            raise InputError(
                f"{path} holds Python objects beside tensors, which could run code; it is not loaded"
            ) from None
        raise InputError(_damaged(path)) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile):
        raise InputError(_damaged(path)) from None


def _damaged(path: Path) -> str:
    return (
        f"checkpoint {path} is damaged or incomplete; use another one "
        "(last.pt and best.pt stand side by side)"
    )


def find_checkpoint(path: Path, name: str) -> Path:
    """The checkpoint `name` of a run folder, or the path itself if it is a file.

    Raises:
        InputError: there is nothing.
    """
    if not path.is_dir():
        if not path.exists():
            raise InputError(f"{path} does not exist; give a run folder or a checkpoint file")
        return path
    found = path / "checkpoints" / name
    if not found.is_file():
        raise InputError(f"{path} holds no checkpoints/{name}; give a run folder or a checkpoint file")
    return found


def load_weights(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load a state dict that must fit exactly.

    Raises:
        InputError: names or shapes differ; the first difference is named.
    """
    own = model.state_dict()
    for name, tensor in own.items():
        if name not in state:
            raise InputError(f"{source} has no '{name}'; it is of another architecture")
        if state[name].shape != tensor.shape:
            raise InputError(
                f"{source}: '{name}' has shape {tuple(state[name].shape)}, this model wants "
                f"{tuple(tensor.shape)}; it is of another architecture or number of classes"
            )
    extra = [name for name in state if name not in own]
    if extra:
        raise InputError(
            f"{source} has '{extra[0]}', which this model does not; it is of another architecture"
        )
    model.load_state_dict(state)
